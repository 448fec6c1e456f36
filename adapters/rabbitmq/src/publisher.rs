//! Publishing: to the exchange, to the queue of one subscription, and for later.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use anywire::clock::Sleep;
use anywire::pattern::Progress;
use anywire::pattern::publish_subscribe::{
    Entry, Guarantee, PublishBatch, Published, Publisher, Receipt, Target, no_route,
};
use anywire::{Error, ErrorKind, Message};

use crate::errors;
use crate::outlet::Outlet;
use crate::parcel::{Parcel, Sent, Ticket};
use crate::topology;
use crate::transport::Connection;
use crate::wire::{self, Sending};

/// The role that publishes.
#[derive(Debug)]
pub(crate) struct RabbitmqPublisher {
    connection: Arc<Connection>,
}

impl RabbitmqPublisher {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Publisher for RabbitmqPublisher {
    fn publish(&self, mut batch: PublishBatch) -> Progress<PublishBatch> {
        if self.connection.is_closed() {
            batch.record_rest(|| Published::Rejected(errors::closed()));
            return Progress::Done(batch);
        }
        if batch.is_empty() {
            return Progress::Done(batch);
        }
        let mut round = Round::new(&self.connection, batch);
        match round.advance() {
            true => Progress::pending(Confirming { round: Some(round) }),
            false => Progress::pending(round.finish()),
        }
    }
}

/// A batch on its way.
struct Round {
    connection: Arc<Connection>,
    batch: PublishBatch,
    ticket: Arc<Ticket>,
    /// The next entry to be handed over.
    next: usize,
    timer: Sleep,
}

impl Round {
    fn new(connection: &Arc<Connection>, batch: PublishBatch) -> Self {
        let clock = &connection.clock;
        Self {
            timer: clock.sleep_until(clock.now() + batch.timeout()),
            ticket: Arc::new(Ticket::new(batch.len())),
            connection: Arc::clone(connection),
            batch,
            next: 0,
        }
    }

    /// Hands over what can be handed over at once; `false` where something has to be waited for.
    fn advance(&mut self) -> bool {
        while let Some(entry) = self.batch.entries().get(self.next) {
            let handed = match prepare_now(&self.connection, entry) {
                Ok(Some((outlet, parcel))) => {
                    match outlet.try_send(parcel, &self.ticket, self.next) {
                        Some(handed) => handed,
                        None => return false,
                    }
                }
                Ok(None) => return false,
                Err(error) => Err(Sent::Refused(error)),
            };
            self.note(handed);
        }
        true
    }

    /// An entry that was not handed over has its fate already.
    fn note(&mut self, handed: Result<(), Sent>) {
        if let Err(sent) = handed {
            self.ticket.note(self.next, sent);
        }
        self.next += 1;
    }

    async fn finish(mut self) -> PublishBatch {
        while let Some(entry) = self.batch.entries().get(self.next) {
            let handed = tokio::select! {
                biased;
                handed = hand_over(&self.connection, entry, &self.ticket, self.next) => handed,
                () = &mut self.timer => return self.conclude(),
            };
            self.note(handed);
        }
        Confirming { round: Some(self) }.await
    }

    /// Records the outcomes.
    fn conclude(mut self) -> PublishBatch {
        let fates = self.ticket.take();
        for (index, sent) in fates.into_iter().enumerate().take(self.next) {
            let outcome = outcome(&self.connection, &self.batch.entries()[index], sent);
            self.batch.record(outcome);
        }
        // What was not sent by the deadline never will be.
        self.batch
            .record_rest(|| Published::Rejected(self.connection.outlet.waits_for()));
        self.batch
    }
}

/// A batch that was handed over whole, and waits for its confirmations.
struct Confirming {
    round: Option<Round>,
}

impl Future for Confirming {
    type Output = PublishBatch;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PublishBatch> {
        if let Some(round) = &mut self.round
            && round.ticket.poll(cx).is_pending()
            && Pin::new(&mut round.timer).poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        match self.round.take() {
            Some(round) => Poll::Ready(round.conclude()),
            None => unreachable!("polled again after it was ready"),
        }
    }
}

/// Hands an entry to its channel.
///
/// # Errors
/// What became of one that was not.
async fn hand_over(
    connection: &Connection,
    entry: &Entry,
    ticket: &Arc<Ticket>,
    index: usize,
) -> Result<(), Sent> {
    loop {
        let sent = async {
            let (outlet, parcel) = prepare(connection, entry).await.map_err(Sent::Refused)?;
            outlet.send(parcel, ticket, index).await
        };
        match sent.await {
            // Nothing was sent; the link waits for the next connection.
            Err(Sent::Refused(error)) if error.kind() == ErrorKind::Disconnected => {
                tokio::task::yield_now().await;
            }
            sent => return sent,
        }
    }
}

/// An entry as it leaves us; `None` where a queue or an exchange must be there first.
///
/// # Errors
/// Why it cannot be sent.
fn prepare_now<'a>(
    connection: &'a Connection,
    entry: &Entry,
) -> Result<Option<(&'a Outlet, Parcel)>, Error> {
    let names = &connection.topology.names;
    if delay(connection, entry).is_some() {
        return Ok(None);
    }
    let (exchange, key) = match &entry.target {
        Target::Subject => (
            names.exchange(),
            Cow::Borrowed(entry.message.subject().as_str()),
        ),
        Target::Subscription(subscription) => ("", Cow::Owned(names.subscription(subscription))),
    };
    parcel(connection, entry, exchange, &key, Wait::None).map(Some)
}

async fn prepare<'a>(
    connection: &'a Connection,
    entry: &Entry,
) -> Result<(&'a Outlet, Parcel), Error> {
    if let Some(prepared) = prepare_now(connection, entry)? {
        return Ok(prepared);
    }
    check_size(connection, &entry.message)?;
    let delay = delay(connection, entry).unwrap_or_default();
    let topology = &connection.topology;
    match &entry.target {
        Target::Subject => {
            let seconds = topology::seconds(delay)?;
            let declaring = topology.ensure_ladder(&connection.main, seconds);
            let exchange = connection.main.while_live(declaring).await?;
            let key = entry.message.subject().as_str();
            parcel(connection, entry, &exchange, key, Wait::Ladder(seconds))
        }
        Target::Subscription(subscription) => {
            let queue = topology.names.subscription(subscription);
            let waiting = topology.ensure_delay_for(&connection.main, &queue, delay);
            let queue = connection.main.while_live(waiting).await?;
            parcel(connection, entry, "", &queue, Wait::Queue)
        }
    }
}

/// How long an entry waits for its time.
fn delay(connection: &Connection, entry: &Entry) -> Option<Duration> {
    let due = entry.not_before?;
    let left = due.saturating_duration_since(connection.clock.now());
    (!left.is_zero()).then_some(left)
}

/// Where an entry waits for its time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    None,
    /// In a queue for one subscription.
    Queue,
    /// On the ladder, for so many seconds.
    Ladder(u32),
}

fn parcel<'a>(
    connection: &'a Connection,
    entry: &Entry,
    exchange: &str,
    key: &str,
    wait: Wait,
) -> Result<(&'a Outlet, Parcel), Error> {
    let Entry {
        message,
        target,
        not_before: _,
        guarantee,
    } = entry;
    check_size(connection, message)?;
    let is_direct = *target == Target::Subject;
    let stored = *guarantee == Guarantee::AtLeastOnce || !is_direct || wait != Wait::None;
    let sending = Sending {
        persistent: stored,
        priority: connection.config.priority,
        subject: (!is_direct).then_some(message.subject()),
        is_call: false,
        seconds: match wait {
            Wait::Ladder(seconds) => seconds,
            Wait::None | Wait::Queue => 0,
        },
    };
    let parcel = Parcel {
        exchange: wire::short(exchange, "exchange")?,
        key: wire::short(key, "subject")?,
        properties: wire::properties(message, sending)?,
        payload: message.payload().clone(),
        mandatory: stored,
    };
    let outlet = match stored {
        true => &connection.outlet,
        false => &connection.air,
    };
    Ok((outlet, parcel))
}

fn outcome(connection: &Connection, entry: &Entry, sent: Option<Sent>) -> Published {
    let subject = entry.message.subject();
    match sent {
        Some(Sent::Confirmed) => Published::Accepted(Receipt::new()),
        // Nobody asked whether anybody takes it.
        Some(Sent::Returned) if entry.guarantee == Guarantee::AtMostOnce => {
            Published::Accepted(Receipt::new())
        }
        Some(Sent::Returned) => {
            if entry.not_before.is_some() {
                connection.topology.forget_delays();
            }
            Published::Rejected(no_route(subject))
        }
        Some(Sent::Refused(error)) => Published::Rejected(error.with_context("subject", subject)),
        Some(Sent::Unknown(error)) => Published::Unknown(error.with_context("subject", subject)),
        None => Published::Unknown(Error::new(
            ErrorKind::OutcomeUnknown,
            "nothing was confirmed by the deadline; the message may be stored",
        )),
    }
}

/// # Errors
/// `TooLarge`: the broker would close the channel, and with it the publishes of others.
pub(crate) fn check_size(connection: &Connection, message: &Message) -> Result<(), Error> {
    let most = connection.max_size.load(Ordering::Relaxed);
    match message.payload().len() {
        size if size > most => {
            Err(errors::too_large(size, most).with_context("subject", message.subject()))
        }
        _ => Ok(()),
    }
}
