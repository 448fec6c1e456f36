//! Transports that hold a transport: one that forwards everything, and those that misbehave in one way each.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anywire::clock::Clock;
use anywire::config::TransportConfig;
use anywire::pattern::publish_subscribe::{
    Entry, Incoming, PublishBatch, Published, Publisher, Received, Settle, SettleBatch, Settlement,
    Spec, Start, Store, Stored, Subscriber, SubscriptionId, Target,
};
use anywire::pattern::request_reply::{CallSpec, Requester, Responder};
use anywire::pattern::streaming::Streamer;
use anywire::pattern::{Batch, Progress, PullResult, Pulled, Tag};
use anywire::transport::{Adapter, BrokerObject, Status, Transport};
use anywire::{Capabilities, Error, ErrorKind, Headers, Message, Receipt};
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::broken_streams::BrokenStreamer;

/// How a transport misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not at all: a wrapper as it should be.
    None,
    DropsOneInAHundred,
    DeliversTwice,
    AcksEarly,
    IgnoresTheGroup,
    IgnoresTheWindow,
    SwapsTwoMessages,
    LosesHeaders,
    IgnoresTheDeadline,
    IgnoresTheDelay,
    IgnoresTheStart,
    IgnoresTheEnd,
    ResetsNothing,
    ResetsGroupsAtWork,
    ReportsUnknownAsAccepted,
    HidesThatNobodyListens,
    SettlesAStaleTag,
    RedeliversToTheWrongSubscription,
    MixesUpReplies,
    LeavesATaskBehind,
    DropsAnItem,
    EndsEarly,
    EndsWhereItBreaks,
    IgnoresCredit,
    LosesTheCancel,
}

/// An adapter whose transports have a fault.
#[derive(Debug)]
pub(crate) struct BrokenAdapter {
    inner: Arc<dyn Adapter>,
    fault: Fault,
    frozen: Arc<AtomicBool>,
}

impl BrokenAdapter {
    pub(crate) fn new(inner: Arc<dyn Adapter>, fault: Fault, frozen: Arc<AtomicBool>) -> Self {
        Self {
            inner,
            fault,
            frozen,
        }
    }
}

#[async_trait]
impl Adapter for BrokenAdapter {
    fn schemes(&self) -> &'static [&'static str] {
        self.inner.schemes()
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        self.inner.check(config)
    }

    fn capabilities(&self, config: &TransportConfig) -> Capabilities {
        self.inner.capabilities(config)
    }

    fn describe(
        &self,
        config: &TransportConfig,
        specs: &[Spec],
        calls: &[CallSpec],
    ) -> Vec<BrokerObject> {
        self.inner.describe(config, specs, calls)
    }

    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error> {
        let inner = self.inner.connect(config, clock).await?;
        Ok(Arc::new(Broken::new(
            inner,
            self.fault,
            Arc::clone(&self.frozen),
        )))
    }
}

/// A transport with a fault.
#[derive(Clone, Debug)]
struct Broken {
    inner: Arc<dyn Transport>,
    fault: Fault,
    shared: Arc<Shared>,
}

/// What the roles of one transport share.
#[derive(Debug, Default)]
struct Shared {
    /// The broker answers nothing.
    frozen: Arc<AtomicBool>,
    published: AtomicUsize,
    subscriptions: Mutex<Vec<SubscriptionId>>,
    /// What was delivered and not settled, newest last.
    delivered: Mutex<VecDeque<(Tag, Message)>>,
    replies: Mutex<HashMap<usize, Message>>,
}

impl Broken {
    fn new(inner: Arc<dyn Transport>, fault: Fault, frozen: Arc<AtomicBool>) -> Self {
        if fault == Fault::LeavesATaskBehind {
            tokio::spawn(std::future::pending::<()>());
        }
        let shared = Shared {
            frozen,
            ..Shared::default()
        };
        Self {
            inner,
            fault,
            shared: Arc::new(shared),
        }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }
}

#[async_trait]
impl Transport for Broken {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.clone())
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(self.clone())
    }

    fn requester(&self) -> Option<Arc<dyn Requester>> {
        self.inner.requester()?;
        Some(Arc::new(self.clone()))
    }

    fn responder(&self) -> Option<Arc<dyn Responder>> {
        self.inner.responder()
    }

    fn streamer(&self) -> Option<Arc<dyn Streamer>> {
        let inner = self.inner.streamer()?;
        Some(Arc::new(BrokenStreamer::new(inner, self.fault)))
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.inner.status()
    }

    async fn close(&self, grace: Duration) -> Result<(), Error> {
        self.inner.close(grace).await
    }
}

impl Publisher for Broken {
    fn publish(&self, batch: PublishBatch) -> Progress<PublishBatch> {
        if self.shared.frozen.load(Ordering::SeqCst) {
            return self.publish_to_a_frozen_broker(batch);
        }
        let timeout = batch.timeout();
        let (mut entries, _) = batch.into_parts();
        let mut sent = PublishBatch::new(timeout);
        // Which entries were handed on, and how often.
        let mut copies = Vec::with_capacity(entries.len());
        if self.is(Fault::SwapsTwoMessages) && entries.len() > 1 {
            entries.swap(0, 1);
        }
        for entry in &entries {
            let number = self.shared.published.fetch_add(1, Ordering::Relaxed);
            let mut entry = entry.clone();
            let count = match self.fault {
                Fault::DropsOneInAHundred if number % 100 == 99 => 0,
                Fault::DeliversTwice => 2,
                _ => 1,
            };
            if self.is(Fault::LosesHeaders) {
                entry.message = entry.message.with_headers(Headers::new());
            }
            if self.is(Fault::IgnoresTheDelay) {
                entry.not_before = None;
            }
            copies.push(count);
            (0..count).for_each(|_| sent.push(entry.clone()));
        }
        let hides = self.is(Fault::HidesThatNobodyListens);
        let published = self.inner.publisher().publish(sent);
        Progress::pending(async move {
            let (_, outcomes) = published.wait().await.into_parts();
            let mut outcomes = outcomes.into_iter();
            let mut answer = PublishBatch::new(timeout);
            entries.into_iter().for_each(|entry| answer.push(entry));
            for count in copies {
                let mut outcome = Published::Accepted(Receipt::new());
                (0..count).for_each(|_| outcome = outcomes.next().expect("an outcome"));
                answer.record(match outcome {
                    Published::Rejected(error) if hides && error.kind() == ErrorKind::NoRoute => {
                        Published::Accepted(Receipt::new())
                    }
                    outcome => outcome,
                });
            }
            answer
        })
    }
}

impl Broken {
    fn publish_to_a_frozen_broker(&self, mut batch: PublishBatch) -> Progress<PublishBatch> {
        let lies = self.is(Fault::ReportsUnknownAsAccepted);
        Progress::pending(async move {
            tokio::time::sleep(batch.timeout()).await;
            batch.record_rest(|| match lies {
                true => Published::Accepted(Receipt::new()),
                false => Published::Unknown(Error::new(
                    ErrorKind::OutcomeUnknown,
                    "the broker does not answer",
                )),
            });
            batch
        })
    }
}

#[async_trait]
impl Subscriber for Broken {
    async fn subscribe(&self, specs: &[Spec]) -> Vec<Result<Box<dyn Incoming>, Error>> {
        let mut specs = specs.to_vec();
        for spec in &mut specs {
            self.shared
                .subscriptions
                .lock()
                .push(spec.subscription.clone());
            if self.is(Fault::IgnoresTheGroup) && spec.subscription.group.is_some() {
                spec.subscription.group = Some(format!("{:x}", rand::random::<u64>()).into());
            }
            if self.is(Fault::IgnoresTheWindow) {
                spec.window = 100_000;
            }
            if self.is(Fault::IgnoresTheStart) {
                spec.start = Start::Earliest;
            }
            if self.is(Fault::IgnoresTheEnd) {
                spec.until = None;
            }
        }
        let opened = self.inner.subscriber().subscribe(&specs).await;
        let wrap = |(opened, spec): (Result<_, _>, Spec)| {
            opened.map(|inner: Box<dyn Incoming>| -> Box<dyn Incoming> {
                let settler = Arc::new(BrokenSettle {
                    transport: self.clone(),
                    inner: inner.settler(),
                    subscription: spec.subscription,
                });
                Box::new(BrokenIncoming { inner, settler })
            })
        };
        opened.into_iter().zip(specs).map(wrap).collect()
    }

    async fn declare(&self, stores: &[Store]) -> Vec<Result<(), Error>> {
        self.inner.subscriber().declare(stores).await
    }

    async fn stored(&self, group: &str) -> Result<Vec<Stored>, Error> {
        self.inner.subscriber().stored(group).await
    }

    async fn reset(&self, subscription: &SubscriptionId, start: &Start) -> Result<(), Error> {
        if self.is(Fault::ResetsNothing) {
            return Ok(());
        }
        let reset = self.inner.subscriber().reset(subscription, start).await;
        match reset {
            Err(error)
                if error.kind() == ErrorKind::Rejected && self.is(Fault::ResetsGroupsAtWork) =>
            {
                Ok(())
            }
            reset => reset,
        }
    }
}

#[derive(Debug)]
struct BrokenIncoming {
    inner: Box<dyn Incoming>,
    settler: Arc<BrokenSettle>,
}

#[async_trait]
impl Incoming for BrokenIncoming {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<Received>,
    ) -> Poll<PullResult> {
        let mut pulled = Batch::new(batch.room());
        let result = self.inner.poll_batch(cx, &mut pulled);
        let early = self.settler.transport.is(Fault::AcksEarly);
        let mut acks = SettleBatch::default();
        for received in pulled.drain() {
            acks.push(received.tag, Settlement::Ack);
            let delivered = (received.tag, received.message.clone());
            self.settler
                .transport
                .shared
                .delivered
                .lock()
                .push_back(delivered);
            batch.push(received);
        }
        if early && matches!(result, Poll::Ready(Ok(Pulled::Some))) {
            run(self.settler.inner.settle(acks));
        }
        result
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::clone(&self.settler) as Arc<dyn Settle>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.inner.stop().await
    }
}

#[derive(Debug)]
struct BrokenSettle {
    transport: Broken,
    inner: Arc<dyn Settle>,
    subscription: SubscriptionId,
}

impl Settle for BrokenSettle {
    fn settle(&self, batch: SettleBatch) -> Progress<SettleBatch> {
        match self.transport.fault {
            Fault::AcksEarly => Progress::Done(batch),
            Fault::SettlesAStaleTag => self.settle_something_else(batch),
            Fault::RedeliversToTheWrongSubscription => self.redeliver_elsewhere(batch),
            _ => self.inner.settle(batch),
        }
    }
}

impl BrokenSettle {
    /// Takes a tag that it does not know for the newest that it does.
    fn settle_something_else(&self, batch: SettleBatch) -> Progress<SettleBatch> {
        let inner = Arc::clone(&self.inner);
        let newest = self
            .transport
            .shared
            .delivered
            .lock()
            .back()
            .map(|(tag, _)| *tag);
        Progress::pending(async move {
            let settled = inner.settle(batch).wait().await;
            let mut answer = SettleBatch::default();
            let mut wrong = SettleBatch::default();
            for (tag, settlement) in settled.items() {
                answer.push(*tag, *settlement);
            }
            for _ in settled.failed() {
                newest
                    .iter()
                    .for_each(|tag| wrong.push(*tag, Settlement::Ack));
            }
            inner.settle(wrong).wait().await;
            answer
        })
    }

    /// Acks what was returned, and sends it to another subscription of this transport.
    fn redeliver_elsewhere(&self, batch: SettleBatch) -> Progress<SettleBatch> {
        let shared = &self.transport.shared;
        let other = shared
            .subscriptions
            .lock()
            .iter()
            .find(|id| **id != self.subscription)
            .cloned();
        let Some(other) = other else {
            return self.inner.settle(batch);
        };
        let mut settled = SettleBatch::default();
        let mut wrong = PublishBatch::new(Duration::from_secs(1));
        for (tag, settlement) in batch.items() {
            settled.push(*tag, Settlement::Ack);
            let delivered = shared.delivered.lock();
            let message = delivered.iter().find(|(delivered, _)| delivered == tag);
            if let (Settlement::Return, Some((_, message))) = (settlement, message) {
                let target = Target::Subscription(other.clone());
                wrong.push(Entry::new(message.clone()).with_target(target));
            }
        }
        run(self.transport.inner.publisher().publish(wrong));
        self.inner.settle(settled)
    }
}

impl Requester for Broken {
    fn request(&self, message: Message, deadline: Instant) -> Progress<Result<Message, Error>> {
        let deadline = match self.fault {
            Fault::IgnoresTheDeadline => deadline + Duration::from_secs(60),
            _ => deadline,
        };
        let inner = self
            .inner
            .requester()
            .expect("the inner transport has calls");
        let replied = inner.request(message, deadline);
        if !self.is(Fault::MixesUpReplies) {
            return replied;
        }
        let shared = Arc::clone(&self.shared);
        Progress::pending(async move {
            let reply = replied.wait().await?;
            let number = shared.published.fetch_add(1, Ordering::Relaxed);
            let mut replies = shared.replies.lock();
            replies.insert(number, reply.clone());
            Ok(number
                .checked_sub(1)
                .and_then(|before| replies.remove(&before))
                .unwrap_or(reply))
        })
    }
}

/// Sees an operation to its end without waiting for it.
fn run<T: Send + 'static>(progress: Progress<T>) {
    if let Progress::Pending(future) = progress {
        tokio::spawn(future);
    }
}
