//! What a careful person writes on async-nats.

use std::sync::Arc;
use std::time::Instant;

use anywire_benches::{Measured, Raw, allocated, call};
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream;
use async_nats::jetstream::{self, consumer::AckPolicy};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use anywire_benches::progress::{IN_FLIGHT, Progress, Sending, fresh, one_by_one, text};

/// The server's address.
#[derive(Clone)]
pub(crate) struct Nats(pub(crate) String);

impl Raw for Nats {
    async fn calls(self, callers: u64, count: u64) -> Measured {
        calls(self.0, callers, count).await
    }

    async fn publish(self, size: usize, count: u64, sending: Sending) -> Measured {
        publish(self.0, size, count, sending).await
    }

    async fn consume(self, size: usize, count: u64, window: usize) -> Measured {
        consume(self.0, size, count, window).await
    }

    async fn both(self, size: usize, count: u64) -> Measured {
        both(self.0, size, count).await
    }

    async fn clean(self) {
        clean(&self.0).await;
    }
}

async fn connect(url: &str) -> Client {
    async_nats::connect(url).await.expect("a server")
}

/// A round trip: what was subscribed before is subscribed now.
async fn settle(client: &Client) {
    let nobody = client.request(fresh(), Bytes::new()).await;
    nobody.expect_err("nobody answers");
}

fn encode(text: &str) -> Bytes {
    serde_json::to_vec(text).expect("JSON").into()
}

fn decode(payload: &[u8]) -> String {
    serde_json::from_slice(payload).expect("JSON")
}

pub(crate) async fn core(url: String, size: usize, count: u64) -> Measured {
    let (publisher, subscriber) = (connect(&url).await, connect(&url).await);
    let subject = async_nats::Subject::from(format!("{}.tick", fresh()));
    let group = "bench".to_owned();
    let mut messages = subscriber
        .queue_subscribe(subject.clone(), group)
        .await
        .expect("subscribes");
    settle(&subscriber).await;
    let progress = Progress::new(count);
    let handled = Arc::clone(&progress);
    let (start, before) = (Instant::now(), allocated());
    let consumer = tokio::spawn(async move {
        for _ in 0..count {
            let message = messages.next().await.expect("open");
            handled.handle(&decode(&message.payload));
        }
    });
    let text = text(size);
    for number in 0..count {
        progress.before(number).await;
        let published = publisher.publish(subject.clone(), encode(&text)).await;
        published.expect("publishes");
    }
    publisher.flush().await.expect("flushes");
    consumer.await.expect("no panic");
    Measured::since(start, before, count)
}

/// As many frames from one side to the other's inbox, each with its number, and a word of credit for each half of the window.
pub(crate) async fn frames(url: String, size: usize, count: u64) -> Measured {
    const WINDOW: u64 = 256;
    let (sender, receiver) = (connect(&url).await, connect(&url).await);
    let (inbox, credit) = (receiver.new_inbox(), sender.new_inbox());
    let mut frames = receiver.subscribe(inbox.clone()).await.expect("subscribes");
    let mut credits = sender.subscribe(credit.clone()).await.expect("subscribes");
    settle(&receiver).await;
    settle(&sender).await;
    let text = text(size);
    let (start, before) = (Instant::now(), allocated());
    let sending = tokio::spawn(async move {
        let inbox = async_nats::Subject::from(inbox);
        let mut left = WINDOW;
        for number in 1..=count {
            while left == 0 {
                credits.next().await.expect("open");
                left += WINDOW / 2;
            }
            left -= 1;
            let mut headers = HeaderMap::new();
            headers.insert("frame", format!("i {number}"));
            let sent = sender.publish_with_headers(inbox.clone(), headers, encode(&text));
            sent.await.expect("publishes");
        }
        sender.flush().await.expect("flushes");
    });
    let credit = async_nats::Subject::from(credit);
    for number in 1..=count {
        let frame = frames.next().await.expect("open");
        let headers = frame.headers.expect("a number");
        let told = headers.get("frame").expect("a number").as_str();
        let told = told
            .strip_prefix("i ")
            .and_then(|number| number.parse().ok());
        assert_eq!(told, Some(number), "in order");
        std::hint::black_box(decode(&frame.payload));
        if number.is_multiple_of(WINDOW / 2) {
            let sent = receiver.publish(credit.clone(), Bytes::new()).await;
            sent.expect("publishes");
        }
    }
    let measured = Measured::since(start, before, count);
    sending.await.expect("no panic");
    measured
}

pub(crate) async fn calls(url: String, callers: u64, count: u64) -> Measured {
    let (caller, server) = (connect(&url).await, connect(&url).await);
    let subject = async_nats::Subject::from(format!("{}.echo", fresh()));
    let mut requests = server
        .queue_subscribe(subject.clone(), "bench".to_owned())
        .await
        .expect("subscribes");
    settle(&server).await;
    let serving = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let text = decode(&request.payload);
            if let Some(reply) = request.reply {
                let sent = server.publish(reply, encode(&text)).await;
                sent.expect("replies");
            }
        }
    });
    let text = text(128);
    let measured = call(callers, count, 1, move |_| {
        let (caller, subject, payload) = (caller.clone(), subject.clone(), encode(&text));
        async move {
            let reply = caller.request(subject, payload).await.expect("answers");
            std::hint::black_box(decode(&reply.payload));
        }
    })
    .await;
    serving.abort();
    measured
}

/// A stream as ours makes it.
async fn stream(context: &jetstream::Context, token: &str) -> stream::Stream {
    let config = stream::Config {
        name: token.to_owned(),
        subjects: vec![format!("{token}.>")],
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    };
    context.create_stream(config).await.expect("a stream")
}

fn context(client: &Client) -> jetstream::Context {
    jetstream::ContextBuilder::new()
        .max_ack_inflight(IN_FLIGHT)
        .backpressure_on_inflight(true)
        .build(client.clone())
}

async fn send(context: &jetstream::Context, subject: &async_nats::Subject, text: &str) {
    let mut headers = HeaderMap::new();
    let id = anywire::MessageId::random().to_string();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, id);
    let sent = context.publish_with_headers(subject.clone(), headers, encode(text));
    sent.await.expect("sent").await.expect("stored");
}

async fn send_all(context: &jetstream::Context, token: &str, size: usize, count: u64) {
    let subject = async_nats::Subject::from(format!("{token}.tick"));
    let text = text(size);
    futures::stream::iter(0..count)
        .map(|_| send(context, &subject, &text))
        .buffer_unordered(IN_FLIGHT)
        .collect::<()>()
        .await;
}

async fn publish(url: String, size: usize, count: u64, sending: Sending) -> Measured {
    let client = connect(&url).await;
    let context = context(&client);
    let token = fresh();
    stream(&context, &token).await;
    let (start, before) = (Instant::now(), allocated());
    let mut samples = Vec::new();
    if sending == Sending::OneByOne {
        let subject = async_nats::Subject::from(format!("{token}.tick"));
        let text = text(size);
        samples = one_by_one(count, || send(&context, &subject, &text)).await;
    } else {
        send_all(&context, &token, size, count).await;
    }
    Measured::since(start, before, count).with_latencies(samples)
}

/// Consumes until all are acknowledged.
async fn run_consumer(stream: &stream::Stream, progress: &Progress, window: usize) {
    let config = pull::Config {
        durable_name: Some("bench".to_owned()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: 4096,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.expect("a consumer");
    let messages = consumer.stream().max_messages_per_batch(window).messages();
    let mut messages = messages.await.expect("messages");
    for _ in 0..progress.count() {
        let message = messages.try_next().await.expect("delivered").expect("open");
        progress.handle(&decode(&message.payload));
        message.ack().await.expect("acks");
    }
}

async fn consume(url: String, size: usize, count: u64, window: usize) -> Measured {
    let client = connect(&url).await;
    let context = context(&client);
    let token = fresh();
    let stream = stream(&context, &token).await;
    send_all(&context, &token, size, count).await;
    let progress = Progress::new(count);
    run_consumer(&stream, &progress, window).await;
    client.flush().await.expect("flushes");
    progress.since_first()
}

async fn both(url: String, size: usize, count: u64) -> Measured {
    let (publisher, client) = (connect(&url).await, connect(&url).await);
    let (sending, context) = (context(&publisher), context(&client));
    let token = fresh();
    let stream = stream(&context, &token).await;
    let progress = Progress::new(count);
    let (start, before) = (Instant::now(), allocated());
    let handled = Arc::clone(&progress);
    let consumer = tokio::spawn(async move { run_consumer(&stream, &handled, IN_FLIGHT).await });
    send_all(&sending, &token, size, count).await;
    consumer.await.expect("no panic");
    client.flush().await.expect("flushes");
    Measured::since(start, before, count)
}

/// Deletes the streams of the bench.
async fn clean(url: &str) {
    let context = jetstream::new(connect(url).await);
    let names: Vec<String> = context
        .stream_names()
        .filter_map(|name| std::future::ready(name.ok()))
        .collect()
        .await;
    for name in names.iter().filter(|name| name.contains("bench")) {
        context.delete_stream(name).await.expect("deletes");
    }
}
