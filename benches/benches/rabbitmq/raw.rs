//! What a careful person writes on lapin.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anywire_benches::progress::{IN_FLIGHT, Progress, Sending, fresh, one_by_one, text};
use anywire_benches::{Measured, Raw, allocated, call};
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::sync::oneshot;

/// How long a queue outlives its use, in milliseconds.
pub(crate) const EXPIRES: i64 = 300_000;
const EXCHANGE: &str = "bench";
const REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// How many deliveries are acknowledged together at most.
const TOGETHER: usize = 128;

/// The broker's address.
#[derive(Clone)]
pub(crate) struct Rabbitmq(pub(crate) String);

impl Raw for Rabbitmq {
    async fn calls(self, callers: u64, count: u64) -> Measured {
        calls(&self.0, callers, count).await
    }

    async fn publish(self, size: usize, count: u64, sending: Sending) -> Measured {
        publish(&self.0, size, count, sending).await
    }

    async fn consume(self, size: usize, count: u64, window: usize) -> Measured {
        consume(&self.0, size, count, window).await
    }

    async fn both(self, size: usize, count: u64) -> Measured {
        both(&self.0, size, count).await
    }

    /// The queues go by themselves.
    async fn clean(self) {}
}

async fn connect(url: &str) -> Connection {
    let connection = Connection::connect(url, ConnectionProperties::default());
    connection.await.expect("a broker")
}

async fn confirming(connection: &Connection) -> Channel {
    let channel = connection.create_channel().await.expect("a channel");
    let selected = channel.confirm_select(ConfirmSelectOptions::default());
    selected.await.expect("confirms");
    channel
}

fn encode(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).expect("JSON")
}

fn decode(payload: &[u8]) -> String {
    serde_json::from_slice(payload).expect("JSON")
}

fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

/// A queue as ours makes it.
async fn queue(channel: &Channel, name: &str) {
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let kind = ExchangeKind::Topic;
    let declared = channel.exchange_declare(EXCHANGE.into(), kind, durable, FieldTable::default());
    declared.await.expect("an exchange");
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let arguments = table([
        ("x-queue-type", AMQPValue::LongString("quorum".into())),
        ("x-expires", AMQPValue::LongLongInt(EXPIRES)),
        ("x-message-ttl", AMQPValue::LongLongInt(7 * 24 * 3_600_000)),
        (
            "x-delivery-limit",
            AMQPValue::LongLongInt(i64::from(i32::MAX)),
        ),
    ]);
    let declared = channel.queue_declare(name.into(), durable, arguments);
    declared.await.expect("a queue");
    let bound = channel.queue_bind(
        name.into(),
        EXCHANGE.into(),
        name.into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.expect("bound");
}

const MANDATORY: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};

async fn send(channel: &Channel, key: &str, text: &str) {
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(anywire::MessageId::random().to_string().into());
    let payload = encode(text);
    let sent = channel.basic_publish(EXCHANGE.into(), key.into(), MANDATORY, &payload, properties);
    let confirmation = sent.await.expect("sent").await.expect("confirmed");
    assert!(confirmation.is_ack(), "refused");
}

async fn send_all(channel: &Channel, key: &str, size: usize, count: u64) {
    let text = text(size);
    futures::stream::iter(0..count)
        .map(|_| send(channel, key, &text))
        .buffer_unordered(IN_FLIGHT)
        .collect::<()>()
        .await;
}

async fn publish(url: &str, size: usize, count: u64, sending: Sending) -> Measured {
    let connection = connect(url).await;
    let (channel, name) = (confirming(&connection).await, fresh());
    queue(&channel, &name).await;
    let (start, before) = (Instant::now(), allocated());
    let mut samples = Vec::new();
    if sending == Sending::OneByOne {
        let text = text(size);
        samples = one_by_one(count, || send(&channel, &name, &text)).await;
    } else {
        send_all(&channel, &name, size, count).await;
    }
    let measured = Measured::since(start, before, count).with_latencies(samples);
    close(connection).await;
    measured
}

/// Consumes until all are acknowledged, as many at a time as are there.
async fn run_consumer(connection: &Connection, name: &str, progress: &Progress, window: usize) {
    let channel = connection.create_channel().await.expect("a channel");
    let prefetch = u16::try_from(window).expect("small");
    let limited = channel.basic_qos(prefetch, BasicQosOptions::default());
    limited.await.expect("a prefetch");
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(name.into(), "".into(), options, FieldTable::default());
    let mut deliveries = pin!(consumer.await.expect("a consumer").ready_chunks(TOGETHER));
    let mut left = progress.count();
    while left > 0 {
        let together = deliveries.next().await.expect("open");
        left -= together.len() as u64;
        let mut last = 0;
        for delivery in together {
            let delivery = delivery.expect("delivered");
            progress.handle(&decode(&delivery.data));
            last = delivery.delivery_tag;
        }
        let acknowledged = channel.basic_ack(last, BasicAckOptions { multiple: true });
        acknowledged.await.expect("acknowledges");
    }
    channel.close(200, "OK".into()).await.expect("closes");
}

async fn consume(url: &str, size: usize, count: u64, window: usize) -> Measured {
    let connection = connect(url).await;
    let (channel, name) = (confirming(&connection).await, fresh());
    queue(&channel, &name).await;
    send_all(&channel, &name, size, count).await;
    let progress = Progress::new(count);
    run_consumer(&connection, &name, &progress, window).await;
    let measured = progress.since_first();
    close(connection).await;
    measured
}

async fn both(url: &str, size: usize, count: u64) -> Measured {
    let (publisher, consumer) = (connect(url).await, connect(url).await);
    let (channel, name) = (confirming(&publisher).await, fresh());
    queue(&channel, &name).await;
    let progress = Progress::new(count);
    let (start, before) = (Instant::now(), allocated());
    let (handled, from) = (Arc::clone(&progress), name.clone());
    let consuming = tokio::spawn(async move {
        run_consumer(&consumer, &from, &handled, IN_FLIGHT).await;
        close(consumer).await;
    });
    send_all(&channel, &name, size, count).await;
    progress.all().await;
    let measured = Measured::since(start, before, count);
    consuming.await.expect("no panic");
    close(publisher).await;
    measured
}

async fn close(connection: Connection) {
    connection.close(200, "OK".into()).await.expect("closes");
}

/// The callers that wait, by correlation id.
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>>;

async fn calls(url: &str, callers: u64, count: u64) -> Measured {
    let (client, server) = (connect(url).await, connect(url).await);
    let name = fresh();
    let serving = tokio::spawn(serve(
        server.create_channel().await.expect("a channel"),
        name.clone(),
    ));
    let channel = client.create_channel().await.expect("a channel");
    await_queue(&client, &name).await;
    let no_ack = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let replies = channel.basic_consume(REPLY_TO.into(), "".into(), no_ack, FieldTable::default());
    let mut replies = replies.await.expect("replies");
    let waiting = Waiting::default();
    let known = Arc::clone(&waiting);
    let listening = tokio::spawn(async move {
        while let Some(Ok(reply)) = replies.next().await {
            let id = reply.properties.correlation_id().as_ref();
            let id = id.and_then(|id| id.as_str().parse().ok()).expect("an id");
            let caller = known.lock().expect("whole").remove(&id);
            caller.expect("a caller").send(reply.data).expect("waits");
        }
    });
    let (payload, next) = (encode(&text(128)), Arc::new(Mutex::new(0)));
    let measured = call(callers, count, 1, move |_| {
        let (channel, waiting, payload) = (channel.clone(), Arc::clone(&waiting), payload.clone());
        let (name, next) = (name.clone(), Arc::clone(&next));
        async move {
            let (sender, reply) = oneshot::channel();
            let id: u64 = {
                let mut next = next.lock().expect("whole");
                *next += 1;
                *next
            };
            waiting.lock().expect("whole").insert(id, sender);
            let properties = BasicProperties::default()
                .with_correlation_id(id.to_string().into())
                .with_reply_to(REPLY_TO.into())
                .with_expiration("30000".into());
            let sent =
                channel.basic_publish("".into(), name.into(), MANDATORY, &payload, properties);
            sent.await.expect("sent");
            std::hint::black_box(decode(&reply.await.expect("answers")));
        }
    })
    .await;
    serving.abort();
    listening.abort();
    close(client).await;
    close(server).await;
    measured
}

/// Waits until the server has made its queue.
async fn await_queue(connection: &Connection, name: &str) {
    loop {
        let channel = connection.create_channel().await.expect("a channel");
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let found = channel.queue_declare(name.into(), passive, FieldTable::default());
        if found.await.is_ok_and(|queue| queue.consumer_count() > 0) {
            return;
        }
    }
}

async fn serve(channel: Channel, name: String) {
    let fleeting = QueueDeclareOptions {
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(name.as_str().into(), fleeting, FieldTable::default());
    declared.await.expect("a queue");
    let limited = channel.basic_qos(256, BasicQosOptions::default());
    limited.await.expect("a prefetch");
    let options = BasicConsumeOptions::default();
    let calls = channel.basic_consume(name.into(), "".into(), options, FieldTable::default());
    let mut calls = calls.await.expect("calls");
    while let Some(Ok(call)) = calls.next().await {
        let acknowledged = channel.basic_ack(call.delivery_tag, BasicAckOptions::default());
        acknowledged.await.expect("acknowledges");
        let payload = encode(&decode(&call.data));
        let to = call.properties.reply_to().clone().expect("an address");
        let id = call.properties.correlation_id().clone().expect("an id");
        let properties = BasicProperties::default().with_correlation_id(id);
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish("".into(), to, options, &payload, properties);
        sent.await.expect("replies");
    }
}
