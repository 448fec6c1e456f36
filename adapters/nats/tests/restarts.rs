//! The ledger: nothing that was accepted is lost, however often the server is stopped and killed.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anywire::clock::TokioClock;
use anywire::config::Config;
use anywire::pattern::publish_subscribe::{
    Entry, Guarantee, Incoming, PublishBatch, Published, SettleBatch, Settlement, Spec,
    SubscriptionId,
};
use anywire::pattern::{Batch, pull};
use anywire::transport::{Adapter, Transport};
use anywire::{Message, MessageId, Pattern, Subject};
use anywire_conformance::Profile;
use rustix::process::Signal;
use support::Server;
use support::trials::tests_with_a_server;

tests_with_a_server![nothing_accepted_is_lost_through_restarts,];

const SUBJECT: &str = "ledger.entries";
/// How many messages are published together.
const CHUNK: usize = 100;
/// What a consumer holds.
const WINDOW: usize = 256;
/// The most that one restart may bring twice: what was held, and what was acknowledged shortly before. The server writes
/// down later how far a consumer is, and a killed one has not.
const TWICE: usize = WINDOW + 2_000;
/// How long all may take to arrive once the last restart is over.
const PATIENCE: Duration = Duration::from_secs(60);

async fn connect(server: &Server) -> Arc<dyn Transport> {
    let adapter = anywire_nats::adapter();
    let text = format!(
        "url = \"{}\"\n[transports.main.nats]\nack_wait = \"2s\"",
        server.url()
    );
    let config = Config::from_toml(&text).unwrap();
    let config = config
        .resolve("main", "ledger", &[adapter.schemes()])
        .unwrap();
    adapter.connect(config, Arc::new(TokioClock)).await.unwrap()
}

/// Publishes all, each until it is accepted, as core does: with the id that it had.
async fn publish_all(client: Arc<dyn Transport>, count: usize, accepted: Arc<AtomicUsize>) {
    let publisher = client.publisher();
    for first in (0..count).step_by(CHUNK) {
        let message = |number: usize| {
            let subject = Subject::parse(SUBJECT).unwrap();
            Message::new(subject, number.to_string()).with_id(MessageId::random())
        };
        let mut left: Vec<_> = (first..(first + CHUNK).min(count)).map(message).collect();
        while !left.is_empty() {
            let mut batch = PublishBatch::new(Duration::from_secs(2));
            for message in &left {
                let entry = Entry::new(message.clone());
                batch.push(entry.with_guarantee(Guarantee::AtLeastOnce));
            }
            let (_, outcomes) = publisher.publish(batch).wait().await.into_parts();
            let before = left.len();
            let mut outcomes = outcomes.iter();
            left.retain(|_| !matches!(outcomes.next(), Some(Published::Accepted(_))));
            accepted.fetch_add(before - left.len(), Ordering::Relaxed);
            if left.len() == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Receives until each has come; gives how often each came.
async fn receive_all(mut incoming: Box<dyn Incoming>, count: usize) -> HashMap<usize, usize> {
    let settler = incoming.settler();
    let mut seen: HashMap<usize, usize> = HashMap::new();
    let mut batch = Batch::new(WINDOW);
    while seen.len() < count {
        match pull(&mut *incoming, &mut batch).await {
            Ok(_) => {}
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        let mut settle = SettleBatch::default();
        for received in batch.drain() {
            let number = std::str::from_utf8(received.message.payload()).unwrap();
            *seen.entry(number.parse().unwrap()).or_default() += 1;
            settle.push(received.tag, Settlement::Ack);
        }
        batch.set_room(WINDOW);
        settler.settle(settle).wait().await;
    }
    incoming.stop().await.unwrap();
    seen
}

async fn nothing_accepted_is_lost_through_restarts() {
    let (count, restarts) = match Profile::from_env().unwrap() {
        Profile::Smoke => (10_000, 6),
        _ => (100_000, 20),
    };
    let server = Server::start("").unwrap();
    let (sender, receiver) = (connect(&server).await, connect(&server).await);
    let pattern = Pattern::parse(SUBJECT).unwrap();
    let spec = Spec::new(SubscriptionId::new("auditors", pattern)).with_window(WINDOW);
    let opened = receiver.subscriber().subscribe(&[spec]).await.pop();
    let receiving = tokio::spawn(receive_all(opened.unwrap().unwrap(), count));
    let accepted = Arc::new(AtomicUsize::new(0));
    let publishing = tokio::spawn(publish_all(
        Arc::clone(&sender),
        count,
        Arc::clone(&accepted),
    ));
    for restart in 1..=restarts {
        let due = count * restart / (restarts + 1);
        while accepted.load(Ordering::Relaxed) < due {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let signal = if restart % 2 == 0 {
            Signal::KILL
        } else {
            Signal::TERM
        };
        server.end(signal).unwrap();
        server.launch().unwrap();
    }
    publishing.await.unwrap();
    let healed = Instant::now();
    let seen = tokio::time::timeout(PATIENCE, receiving).await;
    let seen = seen.expect("all messages arrive").unwrap();
    let twice: usize = seen.values().map(|times| times - 1).sum();
    println!(
        "{count} messages, {restarts} restarts: 0 lost, {twice} came twice, all there {:?} after the last was accepted",
        healed.elapsed()
    );
    assert_eq!(seen.len(), count);
    assert!(twice <= restarts * TWICE, "{twice} came twice");
    sender.close(Duration::from_secs(5)).await.unwrap();
    receiver.close(Duration::from_secs(5)).await.unwrap();
}
