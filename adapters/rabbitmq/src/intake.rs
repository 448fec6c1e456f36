//! The messages of one subscription.

use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use anywire::pattern::publish_subscribe::{
    Guarantee, Incoming, Provision, Received, Settle, SettleBatch, Settlement, Spec,
};
use anywire::pattern::{Batch, Progress, PullResult, Pulled, Tag};
use anywire::{Error, ErrorKind, Order, Subject};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, message::Delivery};
use parking_lot::Mutex;

use crate::errors;
use crate::feed::{self, Active, Fed, Feed, Seat};
use crate::ledger::{Ledger, Word};
use crate::link::Link;
use crate::transport::{Connection, End};
use crate::wire::{self, Origin};

/// The messages of one subscription.
#[derive(Debug)]
pub(crate) struct Intake {
    shared: Arc<Shared>,
    feed: Feed,
}

/// What pulling, settling and closing share.
#[derive(Debug)]
pub(crate) struct Shared {
    connection: Arc<Connection>,
    link: Arc<Link>,
    spec: Spec,
    /// What a queue of our own alone is named by.
    unique: u128,
    /// The subject of what was put into the queue itself.
    literal: Option<Subject>,
    seat: Arc<Seat>,
    ledger: Mutex<Ledger>,
    tie: usize,
}

impl Intake {
    pub(crate) async fn open(connection: &Arc<Connection>, spec: &Spec) -> Result<Self, Error> {
        let link = connection.consuming().await?;
        let unique = rand::random();
        let opening = {
            let (connection, link, spec) =
                (Arc::downgrade(connection), Arc::clone(&link), spec.clone());
            move || -> BoxFuture<'static, Result<Active, Error>> {
                let (connection, link, spec) =
                    (Weak::clone(&connection), Arc::clone(&link), spec.clone());
                Box::pin(async move {
                    let connection = connection.upgrade().ok_or_else(errors::closed)?;
                    connection.check_open()?;
                    let opening = consume(&connection, &link, &spec, unique);
                    let opened = link.while_live(opening).await;
                    opened.map_err(|error| may_be_made_again(error, &spec))
                })
            }
        };
        let in_order = spec.order == Order::KeyInGroup;
        let clock = Arc::clone(&connection.clock);
        let feed = Feed::open(Box::new(opening), in_order, clock).await?;
        let keeps = in_order && spec.guarantee == Guarantee::AtLeastOnce;
        let shared = Arc::new_cyclic(|this: &Weak<Shared>| Shared {
            tie: connection.tie(Weak::clone(this) as Weak<dyn End>),
            connection: Arc::clone(connection),
            link,
            spec: spec.clone(),
            unique,
            literal: spec.subscription.pattern.as_subject(),
            seat: Arc::clone(feed.seat()),
            ledger: Mutex::new(Ledger::new(keeps)),
        });
        // A close that came between the check and the tie ended everybody but us.
        connection.check_open()?;
        Ok(Self { shared, feed })
    }
}

/// Opens a consumer on a channel of its own.
async fn consume(
    connection: &Connection,
    link: &Link,
    spec: &Spec,
    unique: u128,
) -> Result<Active, Error> {
    let topology = &connection.topology;
    let channel = link.channel().await?;
    let queue = topology
        .ensure_subscription(link, &channel, spec, unique)
        .await?;
    let window = u16::try_from(spec.window).unwrap_or(u16::MAX).max(1);
    let prefetch = connection.config.prefetch.unwrap_or(u16::MAX).min(window);
    let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
    qos.await.map_err(errors::operation)?;
    let mut arguments = FieldTable::default();
    if let Some(priority) = connection.config.consumer_priority {
        arguments.insert("x-priority".into(), AMQPValue::LongInt(priority));
    }
    let consumer = channel.basic_consume(
        queue.as_str().into(),
        "".into(),
        BasicConsumeOptions::default(),
        arguments,
    );
    let consumer = feed::in_time(consumer).await?;
    Ok(Active {
        channel: Arc::new(channel),
        consumer,
    })
}

/// What is deleted while we declare it is missed a moment later; the next attempt makes it.
fn may_be_made_again(error: Error, spec: &Spec) -> Error {
    match (error.kind(), spec.provision) {
        (ErrorKind::NotFound, Provision::Create) => {
            let message = "a queue or exchange went away while it was declared";
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        }
        _ => error,
    }
}

#[async_trait]
impl Incoming for Intake {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<Received>,
    ) -> Poll<PullResult> {
        self.shared.deliver_again(batch);
        let mut last = None;
        while batch.room() > 0 {
            match self.feed.poll(cx) {
                Poll::Ready(Fed::Delivery(delivery)) => {
                    last = Some(delivery.delivery_tag);
                    self.shared.take_in(*delivery, batch);
                }
                Poll::Ready(Fed::Lost) => self.shared.ledger.lock().begin_anew(),
                Poll::Ready(Fed::Failed(error)) if batch.is_empty() => {
                    return Poll::Ready(match error.kind() {
                        ErrorKind::Closed => Ok(Pulled::End),
                        _ => Err(error),
                    });
                }
                Poll::Ready(Fed::Over) if batch.is_empty() => {
                    return Poll::Ready(Ok(Pulled::End));
                }
                Poll::Ready(Fed::Failed(_) | Fed::Over) | Poll::Pending => break,
            }
        }
        self.shared.settle_early(last);
        match batch.is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(Ok(Pulled::Some)),
        }
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::clone(&self.shared) as Arc<dyn Settle>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.shared.wind_up().await;
        Ok(())
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.shared.seat.abandon();
        self.shared.leave_when_settled();
        self.shared.delete_private();
    }
}

impl Shared {
    fn deliver_again(&self, batch: &mut Batch<Received>) {
        let mut ledger = self.ledger.lock();
        while batch.room() > 0
            && let Some(received) = ledger.next_again()
        {
            batch.push(received);
        }
    }

    fn take_in(&self, delivery: Delivery, batch: &mut Batch<Received>) {
        let key = delivery.routing_key.as_str();
        let origin = Origin {
            key,
            direct: delivery.exchange.as_str().is_empty(),
            fallback: self.literal.as_ref(),
        };
        let read = wire::read(origin, delivery.data.into(), &delivery.properties);
        let tag = delivery.delivery_tag;
        // A wildcard in first position is bound to what belongs to the framework as well.
        if !self
            .spec
            .subscription
            .pattern
            .matches(read.message.subject())
        {
            self.ledger.lock().pass_by(tag);
            return;
        }
        batch.push(match self.spec.guarantee {
            Guarantee::AtMostOnce => {
                let nothing_to_settle = Tag { slot: 0, epoch: 0 };
                Received::new(read.message, nothing_to_settle)
            }
            Guarantee::AtLeastOnce => {
                self.ledger
                    .lock()
                    .take_in(tag, read.message, read.deliveries)
            }
        });
    }

    /// Acknowledges what needs no settling: all of it at most once, and what was passed by.
    fn settle_early(&self, last: Option<u64>) {
        let Some(last) = last else {
            return;
        };
        let mut words = Vec::new();
        match self.spec.guarantee {
            Guarantee::AtMostOnce => words.push(Word::Ack {
                tag: last,
                multiple: true,
            }),
            Guarantee::AtLeastOnce => self.ledger.lock().words(&mut words),
        }
        if let Some(channel) = self.seat.channel().filter(|_| !words.is_empty()) {
            words
                .into_iter()
                .for_each(|word| feed::send(tell(&channel, word)));
        }
    }

    async fn wind_up(&self) {
        self.seat.stop().await;
        self.leave_when_settled();
        if self.spec.subscription.group.is_none() && self.link.is_connected() {
            let topology = &self.connection.topology;
            let queue = topology.queue(&self.spec, self.unique);
            let _ = topology.delete(&self.link, &queue).await;
        }
    }

    /// Whoever waits for his turn gets it as soon as nothing that we have is still being handled.
    fn leave_when_settled(&self) {
        let in_order = self.spec.order == Order::KeyInGroup;
        if in_order && self.ledger.lock().is_settled() {
            self.seat.leave();
        }
    }

    /// A queue of our own goes with us.
    fn delete_private(self: &Arc<Self>) {
        if self.spec.subscription.group.is_none()
            && self.link.is_connected()
            && !self.connection.is_closed()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let shared = Arc::clone(self);
            runtime.spawn(async move { shared.wind_up().await });
        }
    }
}

async fn tell(channel: &Channel, word: Word) -> lapin::Result<()> {
    match word {
        Word::Ack { tag, multiple } => channel.basic_ack(tag, BasicAckOptions { multiple }).await,
        Word::Nack { tag } => feed::give_back_one(channel, tag).await,
    }
}

impl Settle for Shared {
    fn settle(&self, mut batch: SettleBatch) -> Progress<SettleBatch> {
        if self.connection.is_closed() {
            (0..batch.items().len()).for_each(|index| batch.fail(index, errors::closed()));
            return Progress::Done(batch);
        }
        if self.spec.guarantee == Guarantee::AtMostOnce {
            return Progress::Done(batch);
        }
        // Before the channel: one that is newer than its connection here would only be given up early.
        let epoch = self.link.epoch();
        let Some(channel) = self.seat.channel() else {
            (0..batch.items().len()).for_each(|index| batch.fail(index, stale()));
            return Progress::Done(batch);
        };
        let words = self.words(&mut batch);
        // Handed over here and now, in order; what is awaited is that the last is written.
        let mut last = None;
        for word in words {
            let channel = Arc::clone(&channel);
            let mut telling = async move { tell(&channel, word).await }.boxed();
            match (&mut telling).now_or_never() {
                Some(told) => last = Some(std::future::ready(told).boxed()),
                None => last = Some(telling),
            }
        }
        self.leave_when_settled();
        match last {
            None => Progress::Done(batch),
            Some(last) => {
                let end = self.link.end_of(epoch);
                Progress::pending(async move {
                    let is_told = tokio::select! {
                        biased;
                        told = last => told.is_ok(),
                        () = end => false,
                    };
                    if !is_told {
                        fail_rest(&mut batch);
                    }
                    batch
                })
            }
        }
    }
}

impl Shared {
    /// What the broker is to be told; what cannot be settled is marked.
    fn words(&self, batch: &mut SettleBatch) -> Vec<Word> {
        let mut words = Vec::new();
        let mut failed = Vec::new();
        let mut ledger = self.ledger.lock();
        let mut kept = false;
        for (index, (tag, settlement)) in batch.items().iter().enumerate() {
            match settlement {
                Settlement::Ack if ledger.ack(*tag) => {}
                Settlement::Return => match ledger.give_back(*tag) {
                    Some(Some(word)) => words.push(word),
                    Some(None) => kept = true,
                    None => failed.push((index, stale())),
                },
                Settlement::ReturnAfter(_) => failed.push((index, no_return_after())),
                Settlement::Ack => failed.push((index, stale())),
            }
        }
        ledger.words(&mut words);
        drop(ledger);
        if kept {
            self.seat.wake();
        }
        for (index, error) in failed {
            batch.fail(index, error);
        }
        words
    }
}

fn fail_rest(batch: &mut SettleBatch) {
    let failed: Vec<_> = batch.failed().iter().map(|(index, _)| *index).collect();
    for index in 0..batch.items().len() {
        if !failed.contains(&index) {
            batch.fail(index, stale());
        }
    }
}

fn stale() -> Error {
    Error::new(
        ErrorKind::Stale,
        "the delivery is not ours any more: it was settled, or its channel is gone; it comes again",
    )
}

fn no_return_after() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "RabbitMQ takes nothing back for later; publish a copy with not_before and acknowledge",
    )
}

impl End for Shared {
    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.wind_up())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.connection.untie(self.tie);
    }
}
