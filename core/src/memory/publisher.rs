//! Publishing: into all matching queues or none.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use parking_lot::MutexGuard;
use smallvec::SmallVec;

use super::backlog::{Backlog, Wakers};
use super::broker::{Broker, Route};
use super::queue::Queue;
use super::transport::{Connection, closed};
use crate::clock::after;
use crate::pattern::Progress;
use crate::pattern::publish_subscribe::{
    Entry, Guarantee, PublishBatch, Published, Publisher, Receipt, SubscriptionId, Target, no_route,
};
use crate::{Error, ErrorKind, Message, Subject};

/// The role that publishes. An entry that finds room is stored on the spot; only the wait for room is a future.
#[derive(Debug)]
pub(super) struct MemoryPublisher {
    connection: Arc<Connection>,
}

impl MemoryPublisher {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Publisher for MemoryPublisher {
    fn publish(&self, mut batch: PublishBatch) -> Progress<PublishBatch> {
        let connection = &self.connection;
        if let [entry] = batch.entries()
            && push_alone(connection, entry)
        {
            batch.record(Published::Accepted(Receipt::new()));
            return Progress::Done(batch);
        }
        let mut outbox = Outbox {
            next: 0,
            patient: true,
        };
        match outbox.push(connection, &mut batch) {
            Ok(()) => Progress::Done(batch),
            Err(full) => {
                let deadline = after(connection.clock.now(), batch.timeout());
                let connection = Arc::clone(connection);
                Progress::pending(outbox.wait_and_push(connection, batch, full, deadline))
            }
        }
    }
}

/// Pushes a single message for a subject that one queue takes, and which has room: the usual case, made short. `false`
/// says that nothing happened and that the long way is to be taken.
fn push_alone(connection: &Connection, entry: &Entry) -> bool {
    let Entry {
        message,
        target,
        not_before,
        guarantee: _,
    } = entry;
    let broker = &connection.broker.0;
    if *target != Target::Subject
        || not_before.is_some()
        || connection.is_closed()
        || message.payload().len() > broker.config().max_payload
    {
        return false;
    }
    let pushed = broker.with_known_route(message.subject(), |route| {
        let mut state = route.only_queue()?.lock();
        if !state.has_room(message.byte_len()) {
            return None;
        }
        let kept = broker.keep(message, None, &*connection.clock);
        state.push(message, None, None, kept);
        let mut wakers = Wakers::new();
        if state.is_awaited() {
            state.wakers(&mut wakers);
        }
        Some(wakers)
    });
    let Some(wakers) = pushed.flatten() else {
        return false;
    };
    wakers.into_iter().for_each(std::task::Waker::wake);
    broker.shared.changed();
    true
}

/// A batch on its way into the queues.
struct Outbox {
    /// The first entry that has no outcome yet.
    next: usize,
    /// Whether a full queue is waited for; else the entry is refused.
    patient: bool,
}

/// The queue that has no room.
type Full = Arc<Queue>;

impl Outbox {
    /// Pushes as many entries as there is room for.
    fn push(&mut self, connection: &Connection, batch: &mut PublishBatch) -> Result<(), Full> {
        if connection.is_closed() {
            batch.record_rest(|| Published::Rejected(closed()));
            return Ok(());
        }
        while let Some(entry) = batch.entries().get(self.next) {
            match &entry.target {
                Target::Subject => self.push_run(connection, batch)?,
                Target::Subscription(subscription) => {
                    let outcome = push_copy(connection, subscription, entry);
                    batch.record(outcome);
                    self.next += 1;
                }
            }
        }
        Ok(())
    }

    /// Pushes the entries of one subject that follow each other, under one look-up and one lock of the queues.
    fn push_run(&mut self, connection: &Connection, batch: &mut PublishBatch) -> Result<(), Full> {
        let broker = &connection.broker.0;
        let Some(first) = batch.entries().get(self.next) else {
            return Ok(());
        };
        let subject = first.message.subject().clone();
        let mut wakers = Wakers::new();
        let mut dropped = 0;
        let result = broker.with_route(&subject, |route| {
            let mut open = Open::new(route, broker, connection);
            let mut result = Ok(());
            while let Some(entry) = batch.entries().get(self.next)
                && entry.target == Target::Subject
                && *entry.message.subject() == subject
            {
                let outcome = match open.push(entry) {
                    Ok(outcome) => outcome,
                    Err(full) if self.patient => {
                        result = Err(Arc::clone(full));
                        break;
                    }
                    Err(full) => Published::Rejected(overloaded(full, &subject, batch.timeout())),
                };
                batch.record(outcome);
                self.next += 1;
            }
            dropped = open.dropped;
            open.close(&mut wakers);
            result
        });
        if dropped > 0 {
            metrics::counter!("anywire.memory.dropped").increment(dropped);
        }
        wakers.into_iter().for_each(std::task::Waker::wake);
        broker.shared.changed();
        result
    }

    /// Waits for room as long as the batch allows, and pushes what it can.
    async fn wait_and_push(
        mut self,
        connection: Arc<Connection>,
        mut batch: PublishBatch,
        mut full: Full,
        deadline: Instant,
    ) -> PublishBatch {
        let mut timer = connection.clock.sleep_until(deadline);
        let mut closing = pin!(connection.closed());
        loop {
            let queue = full;
            let turn = queue.room.enter();
            let pushed = poll_fn(|cx| {
                turn.watch(cx.waker());
                self.patient = Pin::new(&mut timer).poll(cx).is_pending();
                match self.push(&connection, &mut batch) {
                    // Pushing refuses all that is left once the transport is closed.
                    Err(full) if Arc::ptr_eq(&full, &queue) => match closing.as_mut().poll(cx) {
                        Poll::Ready(()) => Poll::Ready(self.push(&connection, &mut batch)),
                        Poll::Pending => Poll::Pending,
                    },
                    pushed => Poll::Ready(pushed),
                }
            })
            .await;
            drop(turn);
            match pushed {
                Ok(()) => return batch,
                Err(other) => full = other,
            }
        }
    }
}

/// The queues of a route, locked.
struct Open<'a> {
    route: &'a Route,
    states: SmallVec<[MutexGuard<'a, Backlog>; 4]>,
    max_payload: usize,
    connection: &'a Connection,
    /// How many copies were dropped, at most once, for want of room.
    dropped: u64,
}

impl<'a> Open<'a> {
    fn new(route: &'a Route, broker: &Broker, connection: &'a Connection) -> Self {
        Self {
            route,
            states: route.queues.iter().map(|queue| queue.lock()).collect(),
            max_payload: broker.config().max_payload,
            connection,
            dropped: 0,
        }
    }

    /// Pushes an entry to all queues, or to none: then one of them is full.
    fn push(&mut self, entry: &Entry) -> Result<Published, &'a Full> {
        let Entry {
            message,
            target: _,
            not_before,
            guarantee,
        } = entry;
        if let Some(error) = too_large(message, self.max_payload) {
            return Ok(Published::Rejected(error));
        }
        let route = self.route;
        if route.queues.is_empty() && route.letters.is_none() && route.stores.is_empty() {
            return Ok(match guarantee {
                Guarantee::AtLeastOnce => Published::Rejected(no_route(message.subject())),
                Guarantee::AtMostOnce => Published::Accepted(Receipt::new().with_unrouted(true)),
            });
        }
        let letter = match route
            .letters
            .as_ref()
            .map(|store| store.keep_letter(message))
        {
            None => None,
            Some(Ok(letter)) => Some(letter),
            Some(Err(full)) => return Ok(Published::Rejected(full)),
        };
        let size = message.byte_len();
        if *guarantee == Guarantee::AtLeastOnce
            && let Some(full) = self.full(size)
        {
            if let Some(letter) = letter {
                letter.done();
            }
            return Err(full);
        }
        let due = not_before.filter(|due| *due > self.connection.clock.now());
        let broker = &self.connection.broker.0;
        let kept = match route.letters {
            None => broker.keep(message, due, &*self.connection.clock),
            Some(_) => None,
        };
        // What is in the history is there for a new group.
        for store in route.stores.iter().filter(|_| kept.is_none()) {
            store.keep(message);
        }
        for (state, queue) in self.states.iter_mut().zip(&route.queues) {
            // A queue that may lose messages keeps nobody waiting.
            if state.has_room(size) {
                let grouped = queue.subscription.group.is_some();
                let letter = letter.as_ref().filter(|_| grouped).cloned();
                state.push(message, due, letter, kept);
            } else {
                self.dropped += 1;
            }
        }
        Ok(Published::Accepted(Receipt::new()))
    }

    /// The first queue that must not lose a message and has no room for it.
    fn full(&self, size: usize) -> Option<&'a Full> {
        let mut queues = self.states.iter().zip(&self.route.queues);
        let full = queues.find(|(state, queue)| {
            queue.guarantee == Guarantee::AtLeastOnce && !state.has_room(size)
        });
        full.map(|(_, queue)| queue)
    }

    fn close(mut self, wakers: &mut Wakers) {
        for state in &mut self.states {
            state.wakers(wakers);
        }
    }
}

/// Pushes a retry copy or a redriven dead letter to one subscription.
///
/// It counts as waiting, but is never refused for want of room: it replaces a delivery that is acknowledged once the
/// copy is accepted, so that there is no more of them than there were, and a handler that retries into its own full
/// queue must not wait for itself.
fn push_copy(connection: &Connection, subscription: &SubscriptionId, entry: &Entry) -> Published {
    let broker = &connection.broker.0;
    let Entry {
        message,
        target: _,
        not_before,
        guarantee: _,
    } = entry;
    if let Some(error) = too_large(message, broker.config().max_payload) {
        return Published::Rejected(error);
    }
    let Some(queue) = broker.find(subscription) else {
        let message = "the subscription does not exist; start its handler first";
        return Published::Rejected(
            Error::new(ErrorKind::NotFound, message).with_context("subscription", subscription),
        );
    };
    let is_later = |due: &Instant| *due > connection.clock.now();
    let mut wakers = Wakers::new();
    let mut state = queue.lock();
    state.push(message, not_before.filter(is_later), None, None);
    state.wakers(&mut wakers);
    drop(state);
    wakers.into_iter().for_each(std::task::Waker::wake);
    broker.shared.changed();
    Published::Accepted(Receipt::new())
}

pub(super) fn too_large(message: &Message, max_payload: usize) -> Option<Error> {
    let size = message.payload().len();
    (size > max_payload).then(|| {
        let text = format!(
            "the payload has {size} bytes, memory takes {max_payload}; raise `max_payload`, or send a reference to it"
        );
        Error::new(ErrorKind::TooLarge, text).with_context("subject", message.subject())
    })
}

fn overloaded(queue: &Queue, subject: &Subject, timeout: std::time::Duration) -> Error {
    let message = format!(
        "a queue stayed full for {}; add consumers, or raise `queue` or `queue_bytes`",
        humantime::format_duration(timeout)
    );
    Error::new(ErrorKind::Overloaded, message)
        .with_context("subject", subject)
        .with_context("subscription", &queue.subscription)
}
