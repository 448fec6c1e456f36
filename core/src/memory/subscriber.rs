//! Subscriptions: pulling, settling, and giving back what is not settled.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use async_trait::async_trait;

use super::queue::{Queue, Taken};
use super::transport::{Connection, End, closed};
use crate::Error;
use crate::clock::Sleep;
use crate::pattern::publish_subscribe::{
    Incoming, Received, Settle, SettleBatch, Spec, Start, Store, Stored, Subscriber, SubscriptionId,
};
use crate::pattern::{Batch, Progress, PullResult, Pulled};

/// The role that subscribes.
#[derive(Debug)]
pub(super) struct MemorySubscriber {
    connection: Arc<Connection>,
}

impl MemorySubscriber {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    fn open(&self, spec: &Spec) -> Result<Box<dyn Incoming>, Error> {
        self.connection.check_open()?;
        let now = self.connection.clock.now();
        let queue = self.connection.broker.0.open(spec, now)?;
        let consumer = Consumer::join(Arc::clone(&self.connection), queue, spec.window);
        // A close that came between the check and the tie ended everybody but us.
        self.connection.check_open()?;
        Ok(Box::new(MemoryIncoming {
            consumer,
            timer: None,
        }))
    }
}

#[async_trait]
impl Subscriber for MemorySubscriber {
    async fn subscribe(&self, specs: &[Spec]) -> Vec<Result<Box<dyn Incoming>, Error>> {
        specs.iter().map(|spec| self.open(spec)).collect()
    }

    async fn declare(&self, stores: &[Store]) -> Vec<Result<(), Error>> {
        let declare = |store| {
            self.connection.check_open()?;
            self.connection.broker.0.declare(store)
        };
        stores.iter().map(declare).collect()
    }

    async fn stored(&self, group: &str) -> Result<Vec<Stored>, Error> {
        self.connection.check_open()?;
        Ok(self.connection.broker.0.stored(group))
    }

    async fn reset(&self, subscription: &SubscriptionId, start: &Start) -> Result<(), Error> {
        self.connection.check_open()?;
        let now = self.connection.clock.now();
        self.connection.broker.0.reset(subscription, start, now)
    }
}

/// The messages of one consumer of a queue.
#[derive(Debug)]
struct MemoryIncoming {
    consumer: Arc<Consumer>,
    /// The time of the next delayed message, while there is nothing else.
    timer: Option<(Instant, Sleep)>,
}

impl MemoryIncoming {
    /// Whether the time of the next delayed message has come; else the task is woken then.
    fn is_due(&mut self, cx: &mut Context<'_>, due: Instant) -> bool {
        let clock = &self.consumer.connection.clock;
        let (at, timer) = self
            .timer
            .get_or_insert_with(|| (due, clock.sleep_until(due)));
        if *at != due {
            (*at, *timer) = (due, clock.sleep_until(due));
        }
        Pin::new(timer).poll(cx).is_ready()
    }
}

#[async_trait]
impl Incoming for MemoryIncoming {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<Received>,
    ) -> Poll<PullResult> {
        loop {
            match self.consumer.take(cx, batch) {
                Taken::Some => return Poll::Ready(Ok(Pulled::Some)),
                Taken::End => return Poll::Ready(Ok(Pulled::End)),
                Taken::Nothing(None) => self.timer = None,
                Taken::Nothing(Some(due)) if self.is_due(cx, due) => {
                    self.timer = None;
                    continue;
                }
                Taken::Nothing(Some(_)) => {}
            }
            return Poll::Pending;
        }
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::clone(&self.consumer) as Arc<dyn Settle>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.timer = None;
        self.consumer.stop();
        if Arc::strong_count(&self.consumer) == 1 {
            // No settler is left, so nobody can settle what was pulled.
            self.consumer.queue.give_back(self.consumer.member);
        }
        Ok(())
    }
}

impl Drop for MemoryIncoming {
    fn drop(&mut self) {
        self.consumer.stop();
    }
}

/// A consumer's place at its queue, shared by those who pull and those who settle. With the last of them it gives back
/// what was not settled.
#[derive(Debug)]
struct Consumer {
    connection: Arc<Connection>,
    queue: Arc<Queue>,
    member: usize,
    tie: usize,
}

impl Consumer {
    fn join(connection: Arc<Connection>, queue: Arc<Queue>, window: usize) -> Arc<Self> {
        let member = queue.join(window);
        Arc::new_cyclic(|this: &Weak<Self>| {
            let tie = connection.tie(Weak::clone(this) as Weak<dyn End>);
            Self {
                connection,
                queue,
                member,
                tie,
            }
        })
    }

    fn take(&self, cx: &Context<'_>, batch: &mut Batch<Received>) -> Taken {
        let clock = &*self.connection.clock;
        self.queue.take(self.member, cx, clock, batch)
    }

    /// Takes nothing more. A broadcast subscription ends with its consumer.
    fn stop(&self) {
        self.queue.end(self.member);
        if self.queue.subscription.group.is_none() {
            self.connection.broker.0.forget(&self.queue);
        }
    }
}

impl Settle for Consumer {
    fn settle(&self, mut batch: SettleBatch) -> Progress<SettleBatch> {
        if self.connection.is_closed() {
            for index in 0..batch.items().len() {
                batch.fail(index, closed());
            }
        } else {
            let clock = &*self.connection.clock;
            self.queue.settle(self.member, clock, &mut batch);
        }
        Progress::Done(batch)
    }
}

impl End for Consumer {
    fn end(&self) {
        self.stop();
        self.queue.give_back(self.member);
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.connection.untie(self.tie);
        self.queue.leave(self.member);
    }
}
