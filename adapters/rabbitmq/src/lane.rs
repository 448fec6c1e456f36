//! One channel that publishes.
//!
//! The library gives a returned message to whichever confirmation it resolves next. So no confirmation is believed alone:
//! one task of each channel takes them in the order in which they were resolved, and tells a message's fate only when all
//! that were resolved before it, or together with it, have been looked at.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use anywire::{Error, ErrorKind};
use futures::future::{BoxFuture, FusedFuture};
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use futures::{FutureExt, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::protocol::AMQPSoftError;
use lapin::{Channel, Confirmation};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use crate::errors;
use crate::parcel::{Parcel, Sent, Ticket, identity, route};
use crate::refusals::Refusals;

/// A place in the window. Dropping it makes room.
pub(crate) struct Room {
    pub(crate) _count: OwnedSemaphorePermit,
    pub(crate) _bytes: OwnedSemaphorePermit,
}

/// One channel.
pub(crate) struct Lane {
    channel: Channel,
    has_exchange: AtomicBool,
    is_retired: AtomicBool,
    board: Mutex<Board>,
    driver: AtomicWaker,
    max_size: Arc<AtomicUsize>,
    refusals: Arc<Refusals>,
}

/// What is in flight.
#[derive(Default)]
struct Board {
    /// What was handed over since the driver looked.
    handed: Vec<Flight>,
    /// By number, from `base` on.
    slots: VecDeque<Option<Slot>>,
    base: u64,
    /// Nobody looks after what would be handed over.
    is_over: bool,
}

type Flight = BoxFuture<'static, (u64, lapin::Result<Confirmation>)>;

/// A message in flight.
struct Slot {
    ticket: Arc<Ticket>,
    index: usize,
    route: u64,
    id: u64,
    size: usize,
    /// Whether an exchange may give it to several queues.
    goes_to_many: bool,
    is_returned: bool,
    _room: Room,
}

impl Lane {
    pub(crate) fn new(
        channel: Channel,
        max_size: Arc<AtomicUsize>,
        refusals: Arc<Refusals>,
    ) -> Arc<Self> {
        Arc::new(Self {
            channel,
            has_exchange: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            board: Mutex::default(),
            driver: AtomicWaker::new(),
            max_size,
            refusals,
        })
    }

    /// Whether the exchange is known to be there.
    pub(crate) fn has_exchange(&self) -> bool {
        self.has_exchange.load(Ordering::Relaxed)
    }

    pub(crate) fn note_exchange(&self) {
        self.has_exchange.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Ends the channel once all fates are known.
    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
        self.driver.wake();
    }

    /// Puts a message on the channel, in the order of the calls; gives it back where the channel is gone.
    pub(crate) fn launch(
        self: &Arc<Self>,
        parcel: Parcel,
        room: Room,
        ticket: &Arc<Ticket>,
        index: usize,
    ) -> Result<(), Box<(Parcel, Room)>> {
        let mut board = self.board.lock();
        if board.is_over || !self.is_open() {
            return Err(Box::new((parcel, room)));
        }
        let slot = Slot {
            ticket: Arc::clone(ticket),
            index,
            route: parcel.route(),
            id: identity(&parcel.properties),
            size: parcel.payload.len(),
            goes_to_many: !parcel.exchange.as_str().is_empty(),
            is_returned: false,
            _room: room,
        };
        let number = board.base + board.slots.len() as u64;
        let mut flight = fly(Arc::clone(self), parcel, number);
        // The first poll hands the message over; the driver's later ones see what becomes of it.
        if let Poll::Ready(ended) = flight.poll_unpin(&mut Context::from_waker(Waker::noop())) {
            flight = std::future::ready(ended).boxed();
        }
        ticket.open();
        board.slots.push_back(Some(slot));
        board.handed.push(flight);
        drop(board);
        self.driver.wake();
        Ok(())
    }

    /// Whether there is nothing left to look after. The library never resolves what it was handed in the moment of the end.
    fn rest(&self, is_lost: bool, is_empty: bool) -> Poll<()> {
        let is_retired = self.is_retired.load(Ordering::Acquire);
        let is_lost = is_lost || (is_retired && !self.is_open());
        let mut board = self.board.lock();
        let is_over = is_lost || (is_retired && is_empty && board.handed.is_empty());
        if !is_over {
            return Poll::Pending;
        }
        board.is_over = true;
        board.handed.clear();
        let left: Vec<_> = board.slots.drain(..).flatten().collect();
        drop(board);
        for slot in left {
            slot.ticket.end(slot.index, Sent::Unknown(unconfirmed()));
        }
        Poll::Ready(())
    }

    /// Notes which message a returned one is.
    fn note_return(&self, returned: &lapin::message::BasicReturnMessage) {
        let delivery = &returned.delivery;
        let of = route(delivery.exchange.as_str(), delivery.routing_key.as_str());
        let id = identity(&delivery.properties);
        let mut board = self.board.lock();
        let mut slots = board.slots.iter_mut().flatten();
        let found = slots.find(|slot| slot.route == of && slot.id == id && !slot.is_returned);
        if let Some(slot) = found {
            slot.is_returned = true;
        }
    }

    /// Tells what became of a message.
    fn tell(&self, number: u64, ended: lapin::Result<Confirmation>) {
        let mut board = self.board.lock();
        let at = usize::try_from(number - board.base).unwrap_or(usize::MAX);
        let Some(slot) = board.slots.get_mut(at).and_then(Option::take) else {
            return;
        };
        while let Some(None) = board.slots.front() {
            board.slots.pop_front();
            board.base += 1;
        }
        drop(board);
        let sent = match ended {
            Ok(Confirmation::Ack(_)) if slot.is_returned => Sent::Returned,
            Ok(Confirmation::Ack(_) | Confirmation::NotRequested) => Sent::Confirmed,
            // https://www.rabbitmq.com/docs/maxlength: all other queues that have room take it.
            Ok(Confirmation::Nack(_)) if slot.goes_to_many => Sent::Unknown(full()),
            Ok(Confirmation::Nack(_)) => Sent::Refused(full()),
            Err(error) => self.lost(&slot, error),
        };
        slot.ticket.end(slot.index, sent);
    }

    /// The channel was closed. One message may be the cause; the others share its fate and may be sent again.
    fn lost(&self, slot: &Slot, error: lapin::Error) -> Sent {
        if let Some(refusal) = errors::refusal(&error) {
            let text = refusal.get_message().as_str();
            if errors::is_soft(&error, &AMQPSoftError::ACCESSREFUSED) && is_cause(slot.route, text)
            {
                return Sent::Refused(self.refusals.remember(slot.route, text));
            }
            if errors::is_soft(&error, &AMQPSoftError::PRECONDITIONFAILED)
                && let Some((size, most)) = sizes(text)
            {
                self.max_size.fetch_min(most, Ordering::Relaxed);
                if size == slot.size {
                    return Sent::Refused(errors::too_large(size, most));
                }
            }
        }
        Sent::Unknown(unconfirmed().with_source(error))
    }
}

fn fly(lane: Arc<Lane>, parcel: Parcel, number: u64) -> Flight {
    Box::pin(async move {
        let Parcel {
            exchange,
            key,
            properties,
            payload,
            mandatory,
        } = parcel;
        let options = BasicPublishOptions {
            mandatory,
            ..BasicPublishOptions::default()
        };
        let channel = &lane.channel;
        let written = channel.basic_publish(exchange, key, options, &payload, properties);
        match written.await {
            Ok(confirmation) => (number, confirmation.await),
            Err(error) => (number, Err(error)),
        }
    })
}

/// Takes the confirmations of a channel, until it is retired and all are there, or its connection is at its end.
pub(crate) async fn drive(lane: Arc<Lane>, end: impl Future<Output = ()>) {
    let mut end = pin!(end.fuse());
    let mut flying = FuturesUnordered::new();
    // Resolved, but not told yet.
    let mut seen = Vec::new();
    std::future::poll_fn(|cx| {
        lane.driver.register(cx.waker());
        // What the connection still brought is there when its end is told.
        let is_lost = end.is_terminated() || end.poll_unpin(cx).is_ready();
        loop {
            let fresh = take_resolved(&lane, &mut flying, cx);
            for (number, ended) in seen.drain(..) {
                lane.tell(number, ended);
            }
            if fresh.is_empty() {
                return lane.rest(is_lost, flying.is_empty());
            }
            seen = fresh;
            // The library resolves what one frame confirms under a lock that this takes: afterwards all of it is seen.
            let _ = lane.channel.wait_for_confirms().now_or_never();
        }
    })
    .await;
}

/// What has been resolved since the last look; notes what was returned.
fn take_resolved(
    lane: &Lane,
    flying: &mut FuturesUnordered<Flight>,
    cx: &mut Context<'_>,
) -> Vec<(u64, lapin::Result<Confirmation>)> {
    let handed = std::mem::take(&mut lane.board.lock().handed);
    flying.extend(handed);
    let mut resolved = Vec::new();
    while let Poll::Ready(Some((number, mut ended))) = flying.poll_next_unpin(cx) {
        if let Ok(Confirmation::Ack(returned) | Confirmation::Nack(returned)) = &mut ended
            && let Some(returned) = returned.take()
        {
            lane.note_return(&returned);
        }
        resolved.push((number, ended));
    }
    resolved
}

/// Whether a refusal is about this route: `write access to topic 'a.b' in exchange 'anywire' in vhost '/' refused for
/// user 'shop'`, or `... access to exchange 'anywire' ...`.
fn is_cause(of: u64, text: &str) -> bool {
    let Some(exchange) = errors::quoted(text, "exchange ") else {
        return false;
    };
    match errors::quoted(text, "topic ") {
        Some(key) => route(exchange, key) == of,
        // All that goes there is refused; what was confirmed is not asked.
        None => true,
    }
}

/// `message size 17000000 is larger than configured max size 16777216`.
fn sizes(text: &str) -> Option<(usize, usize)> {
    let number = |after: &str| {
        let (_, rest) = text.split_once(after)?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    Some((number("message size ")?, number("max size ")?))
}

fn full() -> Error {
    Error::new(
        ErrorKind::Overloaded,
        "a queue refused the message: it is full; add consumers, or raise its length",
    )
}

fn unconfirmed() -> Error {
    Error::new(
        ErrorKind::OutcomeUnknown,
        "the channel or the connection was lost before the confirmation came",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_refusal_names_its_cause() {
        let topic = "ACCESS_REFUSED - write access to topic 'a.b' in exchange 'anywire' in vhost '/' refused for user 'shop'";
        assert!(is_cause(route("anywire", "a.b"), topic));
        assert!(!is_cause(route("anywire", "a.c"), topic));
        let exchange = "ACCESS_REFUSED - write access to exchange 'anywire' in vhost '/' refused for user 'shop'";
        assert!(is_cause(route("anywire", "a.c"), exchange));
    }

    #[test]
    fn the_brokers_limit_is_learnt() {
        let text = "PRECONDITION_FAILED - message size 17000000 is larger than configured max size 16777216";
        assert_eq!(sizes(text), Some((17_000_000, 16_777_216)));
        assert_eq!(sizes("PRECONDITION_FAILED - unknown delivery tag 7"), None);
    }
}
