//! What a careful person writes on rdkafka.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anywire_benches::progress::{IN_FLIGHT, Progress, Sending, fresh, one_by_one, text};
use anywire_benches::{Measured, Raw, allocated, call};
use futures::StreamExt;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::oneshot;

/// As many as ours makes.
const PARTITIONS: i32 = 4;
/// How often a position is told.
const COMMIT: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(20);
const ID: &str = "id";
const REPLY_TO: &str = "reply-to";

/// The broker's address.
#[derive(Clone)]
pub(crate) struct Kafka(pub(crate) String);

impl Raw for Kafka {
    async fn calls(self, callers: u64, count: u64) -> Measured {
        calls(&self.0, callers, count).await
    }

    async fn publish(self, size: usize, count: u64, sending: Sending) -> Measured {
        publish(&self.0, size, count, sending).await
    }

    async fn consume(self, size: usize, count: u64, _window: usize) -> Measured {
        consume(&self.0, size, count).await
    }

    async fn both(self, size: usize, count: u64) -> Measured {
        both(&self.0, size, count).await
    }

    async fn clean(self) {
        clean(&self.0).await;
    }
}

fn encode(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).expect("JSON")
}

fn decode(payload: &[u8]) -> String {
    serde_json::from_slice(payload).expect("JSON")
}

fn producer(servers: &str) -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .create()
        .expect("a producer")
}

fn consumer(servers: &str, group: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "50")
        .create()
        .expect("a consumer")
}

fn admin(servers: &str) -> AdminClient<DefaultClientContext> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers);
    AdminClient::from_config(&config).expect("an admin")
}

/// A topic as ours makes it.
async fn topic(servers: &str, name: &str, partitions: i32) {
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let made = admin(servers)
        .create_topics(&[topic], &AdminOptions::new())
        .await;
    for topic in made.expect("topics") {
        topic.expect("a topic");
    }
    // Until it has leaders a producer would look for them, a tenth of a second at a time.
    let looking = consumer(servers, "looking");
    loop {
        let found = looking.fetch_metadata(Some(name), Duration::from_secs(5));
        let found = found.expect("metadata");
        let is_there = |topic: &rdkafka::metadata::MetadataTopic| {
            topic.partitions().len() == partitions as usize
                && topic.partitions().iter().all(|part| part.leader() >= 0)
        };
        if found.topics().iter().all(is_there) {
            return;
        }
    }
}

async fn send(producer: &FutureProducer, topic: &str, text: &str) {
    let payload = encode(text);
    let id = anywire::MessageId::random().to_string();
    let headers = OwnedHeaders::new().insert(Header {
        key: ID,
        value: Some(&id),
    });
    let record = FutureRecord::<(), _>::to(topic)
        .payload(&payload)
        .headers(headers);
    let sent = producer.send_result(record).expect("there is room");
    sent.await.expect("told").expect("stored");
}

async fn send_all(producer: &FutureProducer, topic: &str, size: usize, count: u64) {
    let text = text(size);
    futures::stream::iter(0..count)
        .map(|_| send(producer, topic, &text))
        .buffer_unordered(IN_FLIGHT)
        .collect::<()>()
        .await;
}

async fn publish(servers: &str, size: usize, count: u64, sending: Sending) -> Measured {
    let (producer, name) = (producer(servers), fresh());
    topic(servers, &name, PARTITIONS).await;
    let (start, before) = (Instant::now(), allocated());
    let mut samples = Vec::new();
    if sending == Sending::OneByOne {
        let text = text(size);
        samples = one_by_one(count, || send(&producer, &name, &text)).await;
    } else {
        send_all(&producer, &name, size, count).await;
    }
    Measured::since(start, before, count).with_latencies(samples)
}

/// Consumes all, and tells its position every so often and in the end.
fn run_consumer(servers: &str, name: &str, progress: &Progress) {
    let consumer = consumer(servers, name);
    consumer.subscribe(&[name]).expect("subscribes");
    let (mut left, mut told) = (progress.count(), Instant::now());
    while left > 0 {
        let Some(record) = consumer.poll(POLL) else {
            continue;
        };
        let record = record.expect("delivered");
        progress.handle(&decode(record.payload().expect("a payload")));
        left -= 1;
        if told.elapsed() >= COMMIT && left > 0 {
            let _ = consumer.commit_consumer_state(CommitMode::Async);
            told = Instant::now();
        }
    }
    let committed = consumer.commit_consumer_state(CommitMode::Sync);
    committed.expect("a position");
}

async fn consume(servers: &str, size: usize, count: u64) -> Measured {
    let (producer, name) = (producer(servers), fresh());
    topic(servers, &name, PARTITIONS).await;
    send_all(&producer, &name, size, count).await;
    let progress = Progress::new(count);
    let (from, handled) = (servers.to_owned(), Arc::clone(&progress));
    let consuming = tokio::task::spawn_blocking(move || run_consumer(&from, &name, &handled));
    consuming.await.expect("no panic");
    progress.since_first()
}

async fn both(servers: &str, size: usize, count: u64) -> Measured {
    let (producer, name) = (producer(servers), fresh());
    topic(servers, &name, PARTITIONS).await;
    let progress = Progress::new(count);
    let (from, handled, of) = (servers.to_owned(), Arc::clone(&progress), name.clone());
    let consuming = tokio::task::spawn_blocking(move || run_consumer(&from, &of, &handled));
    let (start, before) = (Instant::now(), allocated());
    send_all(&producer, &name, size, count).await;
    progress.all().await;
    let measured = Measured::since(start, before, count);
    consuming.await.expect("no panic");
    measured
}

/// The callers that wait, by number.
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>>;

async fn calls(servers: &str, callers: u64, count: u64) -> Measured {
    let (calls, replies) = (fresh(), fresh());
    topic(servers, &calls, PARTITIONS).await;
    topic(servers, &replies, 1).await;
    let over = Arc::new(AtomicBool::new(false));
    let waiting = Waiting::default();
    let serving = {
        let (servers, calls, over) = (servers.to_owned(), calls.clone(), Arc::clone(&over));
        std::thread::spawn(move || serve(&servers, &calls, &over))
    };
    let listening = {
        let (servers, replies, over) = (servers.to_owned(), replies.clone(), Arc::clone(&over));
        let waiting = Arc::clone(&waiting);
        std::thread::spawn(move || listen(&servers, &replies, &waiting, &over))
    };
    let producer = producer(servers);
    let (payload, next) = (encode(&text(128)), Arc::new(AtomicU64::new(0)));
    let ask = move |_| {
        let (producer, waiting, payload) =
            (producer.clone(), Arc::clone(&waiting), payload.clone());
        let (calls, replies, next) = (calls.clone(), replies.clone(), Arc::clone(&next));
        async move {
            let (sender, reply) = oneshot::channel();
            let id = next.fetch_add(1, Ordering::Relaxed);
            waiting.lock().expect("whole").insert(id, sender);
            let id = id.to_string();
            let headers = OwnedHeaders::new()
                .insert(Header {
                    key: ID,
                    value: Some(&id),
                })
                .insert(Header {
                    key: REPLY_TO,
                    value: Some(&replies),
                });
            let record = FutureRecord::<(), _>::to(&calls)
                .payload(&payload)
                .headers(headers);
            // Whether it is stored is told by the reply.
            drop(producer.send_result(record).expect("there is room"));
            std::hint::black_box(decode(&reply.await.expect("answers")));
        }
    };
    // The members have joined when the first call is answered.
    ask(0).await;
    let measured = call(callers, count, 1, ask).await;
    over.store(true, Ordering::Relaxed);
    serving.join().expect("no panic");
    listening.join().expect("no panic");
    measured
}

fn header<'a>(record: &'a BorrowedMessage<'_>, name: &str) -> &'a str {
    let headers = record.headers().expect("headers");
    let mut found = headers.iter().filter(|header| header.key == name);
    let value = found.next().and_then(|header| header.value);
    std::str::from_utf8(value.expect("a value")).expect("text")
}

/// Answers what is asked, each call at most once: the position is told first.
fn serve(servers: &str, calls: &str, over: &AtomicBool) {
    let (consumer, producer) = (consumer(servers, calls), producer(servers));
    consumer.subscribe(&[calls]).expect("subscribes");
    while !over.load(Ordering::Relaxed) {
        let mut together = Vec::new();
        let mut next = consumer.poll(POLL);
        while let Some(record) = next {
            together.push(record.expect("delivered"));
            next = consumer.poll(Duration::ZERO);
        }
        if together.is_empty() {
            continue;
        }
        let committed = consumer.commit_consumer_state(CommitMode::Sync);
        committed.expect("a position");
        for record in together {
            let payload = encode(&decode(record.payload().expect("a payload")));
            let headers = OwnedHeaders::new().insert(Header {
                key: ID,
                value: Some(header(&record, ID)),
            });
            let reply = FutureRecord::<(), _>::to(header(&record, REPLY_TO))
                .payload(&payload)
                .headers(headers);
            drop(producer.send_result(reply).expect("there is room"));
        }
    }
}

/// Hands replies to those who wait.
fn listen(servers: &str, replies: &str, waiting: &Waiting, over: &AtomicBool) {
    let consumer = consumer(servers, replies);
    consumer.subscribe(&[replies]).expect("subscribes");
    while !over.load(Ordering::Relaxed) {
        let Some(record) = consumer.poll(POLL) else {
            continue;
        };
        let record = record.expect("delivered");
        let id = header(&record, ID).parse().expect("a number");
        let caller = waiting.lock().expect("whole").remove(&id);
        let payload = record.payload().expect("a payload").to_vec();
        caller.expect("a caller").send(payload).expect("waits");
    }
}

/// Deletes the topics of the bench.
async fn clean(servers: &str) {
    let looking = consumer(servers, "looking");
    let found = looking.fetch_metadata(None, Duration::from_secs(5));
    let found = found.expect("metadata");
    let names: Vec<&str> = found.topics().iter().map(|topic| topic.name()).collect();
    let names: Vec<&str> = names
        .into_iter()
        .filter(|name| name.contains("bench"))
        .collect();
    if !names.is_empty() {
        let deleted = admin(servers)
            .delete_topics(&names, &AdminOptions::new())
            .await;
        deleted.expect("deletes");
    }
}
