//! The behaviour of the memory transport, through the driver traits. Time is the tests' own.

#![allow(clippy::unwrap_used)]

mod calls;
mod dead_letters;
mod events;
mod overload;
mod replay;
mod settling;

use std::sync::Arc;
use std::time::Duration;

use super::{MemoryBroker, MemoryConfig, adapter_on};
use crate::clock::ManualClock;
use crate::config::TransportConfig;
use crate::pattern::publish_subscribe::{
    Entry, Incoming, PublishBatch, Published, Received, Settle, SettleBatch, Settlement, Spec,
    SubscriptionId,
};
use crate::pattern::{Batch, Progress, Tag, pull};
use crate::transport::{Adapter, Transport};
use crate::{Error, ErrorKind, Message, Pattern, Subject};

/// A broker, a client on it, and the time.
struct Rig {
    broker: MemoryBroker,
    clock: ManualClock,
    transport: Arc<dyn Transport>,
}

const PATIENCE: Duration = Duration::from_secs(5);

impl Rig {
    async fn new() -> Self {
        Self::with(MemoryConfig::default()).await
    }

    async fn with(config: MemoryConfig) -> Self {
        let broker = MemoryBroker::with_config(config);
        let clock = ManualClock::new();
        let transport = connect(&broker, &clock).await;
        Self {
            broker,
            clock,
            transport,
        }
    }

    async fn open(&self, spec: Spec) -> Box<dyn Incoming> {
        self.try_open(spec).await.unwrap()
    }

    async fn try_open(&self, spec: Spec) -> Result<Box<dyn Incoming>, Error> {
        self.transport
            .subscriber()
            .subscribe(&[spec])
            .await
            .remove(0)
    }

    fn start(&self, entries: impl IntoIterator<Item = Entry>) -> Progress<PublishBatch> {
        let mut batch = PublishBatch::new(PATIENCE);
        entries.into_iter().for_each(|entry| batch.push(entry));
        self.transport.publisher().publish(batch)
    }

    /// Publishes one entry that must not have to wait.
    fn publish(&self, entry: Entry) -> Published {
        let Progress::Done(batch) = self.start([entry]) else {
            panic!("the publish has to wait");
        };
        batch.into_parts().1.remove(0)
    }

    fn emit(&self, subject: &str, payload: &str) {
        assert_accepted(&self.publish(entry(subject, payload)));
    }

    fn backlog(&self, group: &str, pattern: &str) -> Option<usize> {
        self.broker
            .backlog(&SubscriptionId::new(group, parse(pattern)))
    }
}

async fn connect(broker: &MemoryBroker, clock: &ManualClock) -> Arc<dyn Transport> {
    let config = TransportConfig::bare("main", "shop", "memory");
    let clock = Arc::new(clock.clone());
    adapter_on(broker).connect(config, clock).await.unwrap()
}

fn parse(pattern: &str) -> Pattern {
    Pattern::parse(pattern).unwrap()
}

fn spec(group: &str, pattern: &str) -> Spec {
    Spec::new(SubscriptionId::new(group, parse(pattern)))
}

fn message(subject: &str, payload: &str) -> Message {
    Message::new(Subject::parse_any(subject).unwrap(), payload.to_owned())
}

fn entry(subject: &str, payload: &str) -> Entry {
    Entry::new(message(subject, payload))
}

/// What a consumer gets at once, at most `room` deliveries.
async fn take(incoming: &mut dyn Incoming, room: usize) -> Vec<Received> {
    let mut batch = Batch::new(room);
    let pulled = futures::future::poll_immediate(pull(incoming, &mut batch)).await;
    pulled.transpose().unwrap();
    batch.drain().collect()
}

async fn take_one(incoming: &mut dyn Incoming) -> Received {
    let mut taken = take(incoming, 1).await;
    assert_eq!(taken.len(), 1, "nothing to take");
    taken.remove(0)
}

fn payloads<'a>(taken: &'a [Received]) -> Vec<&'a str> {
    let text = |received: &'a Received| std::str::from_utf8(received.message.payload()).unwrap();
    taken.iter().map(text).collect()
}

fn settle(settler: &Arc<dyn Settle>, tag: Tag, settlement: Settlement) -> Result<(), Error> {
    let mut batch = SettleBatch::default();
    batch.push(tag, settlement);
    let Progress::Done(batch) = settler.settle(batch) else {
        panic!("settling has to wait");
    };
    batch.into_single()
}

fn ack(settler: &Arc<dyn Settle>, received: &Received) {
    settle(settler, received.tag, Settlement::Ack).unwrap();
}

#[track_caller]
fn assert_accepted(outcome: &Published) {
    assert!(matches!(outcome, Published::Accepted(_)), "{outcome:?}");
}

#[track_caller]
fn assert_rejected(outcome: &Published, kind: ErrorKind) {
    match outcome {
        Published::Rejected(error) => assert_eq!(error.kind(), kind, "{error}"),
        other => panic!("{other:?}"),
    }
}
