//! A channel that publishes: a bounded window of messages whose confirmations are awaited side by side.
//!
//! The library gives a returned message to whichever confirmation it resolves next. So no confirmation is believed alone:
//! one task of each channel takes them in the order in which they were resolved, and tells a message's fate only when all
//! that were resolved before it, or together with it, have been looked at.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anywire::{Error, ErrorKind};
use bytes::Bytes;
use futures::future::{BoxFuture, FusedFuture};
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use futures::{FutureExt, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, ExchangeKind};
use parking_lot::Mutex;
use rustc_hash::FxHasher;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::errors;
use crate::link::Link;

/// What a message takes besides its payload.
const OVERHEAD: usize = 256;
/// For how long what was refused once is refused without asking: each asking closes the channel that the others use.
const REMEMBERED: Duration = Duration::from_secs(5);
/// How many refusals are remembered.
const REFUSALS: usize = 64;

/// A message as it leaves us.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) exchange: ShortString,
    pub(crate) key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) payload: Bytes,
    /// Whether the broker gives it back where no queue takes it.
    pub(crate) mandatory: bool,
}

impl Parcel {
    fn route(&self) -> u64 {
        route(self.exchange.as_str(), self.key.as_str())
    }
}

/// What became of a message.
#[derive(Debug)]
pub(crate) enum Sent {
    /// Each queue that takes it has it; without confirms: it is on its way.
    Confirmed,
    /// No queue takes it.
    Returned,
    /// The broker does not have it.
    Refused(Error),
    /// The broker may have it.
    Unknown(Error),
}

/// Messages that are sent together, and what became of them.
#[derive(Debug, Default)]
pub(crate) struct Ticket {
    state: Mutex<TicketState>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct TicketState {
    sent: Vec<(usize, Sent)>,
    open: usize,
}

impl Ticket {
    fn open(&self) {
        self.state.lock().open += 1;
    }

    fn end(&self, index: usize, sent: Sent) {
        let mut state = self.state.lock();
        state.open -= 1;
        state.sent.push((index, sent));
        let last = state.open == 0;
        drop(state);
        if last {
            self.waker.wake();
        }
    }

    /// Waits until the fate of all that were handed over is known.
    pub(crate) async fn settled(&self) {
        std::future::poll_fn(|cx| {
            self.waker.register(cx.waker());
            match self.state.lock().open {
                0 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
    }

    /// What is known: index and fate, in no order.
    pub(crate) fn take(&self) -> Vec<(usize, Sent)> {
        std::mem::take(&mut self.state.lock().sent)
    }
}

/// What is done on a new channel before anything is published on it.
pub(crate) type Prepare =
    Box<dyn Fn(Channel) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// What an outlet is made of.
pub(crate) struct Setup {
    /// Whether the broker confirms.
    pub(crate) confirm: bool,
    /// The exchange that may be missing: nobody has subscribed yet.
    pub(crate) exchange: String,
    pub(crate) prepare: Prepare,
    pub(crate) window: usize,
    pub(crate) window_bytes: usize,
    /// The largest payload; where the broker takes less, it is learnt.
    pub(crate) max_size: Arc<AtomicUsize>,
}

/// A channel that publishes, and is opened again where it was closed.
pub(crate) struct Outlet {
    link: Arc<Link>,
    setup: Setup,
    count: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    lane: Mutex<Option<Arc<Lane>>>,
    opening: tokio::sync::Mutex<()>,
    refusals: Arc<Mutex<VecDeque<Refusal>>>,
}

/// Something that the broker refused.
#[derive(Debug)]
struct Refusal {
    route: u64,
    why: String,
    at: Instant,
}

impl Outlet {
    pub(crate) fn new(link: Arc<Link>, setup: Setup) -> Self {
        Self {
            link,
            count: Arc::new(Semaphore::new(setup.window)),
            bytes: Arc::new(Semaphore::new(setup.window_bytes)),
            setup,
            lane: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            refusals: Arc::default(),
        }
    }

    /// Hands a message over as soon as there is room and a connection; its fate is told to `ticket`.
    ///
    /// # Errors
    /// What was not sent, and why.
    pub(crate) async fn send(
        &self,
        parcel: Parcel,
        ticket: &Arc<Ticket>,
        index: usize,
    ) -> Result<(), Sent> {
        if let Some(error) = self.refused(parcel.route()) {
            return Err(Sent::Refused(error));
        }
        let room = self.room(parcel.payload.len()).await?;
        let mut parcel = (parcel, room);
        loop {
            if self.link.is_blocked() {
                self.link.unblocked().await;
            }
            let lane = self.lane().await.map_err(Sent::Refused)?;
            if parcel.0.exchange.as_str() == self.setup.exchange
                && !self.has_exchange(&lane).await?
            {
                return Err(Sent::Returned);
            }
            match lane.launch(parcel.0, parcel.1, ticket, index) {
                Ok(()) => return Ok(()),
                Err(back) => parcel = *back,
            }
            // The channel is gone and the next one cannot be opened before others had their turn.
            self.forget(&lane);
            tokio::task::yield_now().await;
        }
    }

    /// Why messages wait, if they do.
    pub(crate) fn waits_for(&self) -> Error {
        if !self.link.is_connected() {
            return errors::unreachable();
        }
        Error::new(
            ErrorKind::Overloaded,
            match self.link.is_blocked() {
                true => {
                    "RabbitMQ takes no publishes (an alarm: memory or disk); give it room, or consume faster"
                }
                false => {
                    "too much was in flight until the deadline; publish less at once, or raise publish_window"
                }
            },
        )
    }

    /// Ends the channel once all fates are known.
    pub(crate) fn close(&self) {
        if let Some(lane) = self.lane.lock().take() {
            lane.retire();
        }
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn flushed(&self) {
        let all = u32::try_from(self.setup.window).unwrap_or(u32::MAX);
        drop(self.count.acquire_many(all).await);
    }

    async fn room(&self, payload: usize) -> Result<Room, Sent> {
        let closed = |_| Sent::Refused(errors::closed());
        let size = (payload + OVERHEAD).min(self.setup.window_bytes);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let count = Arc::clone(&self.count).acquire_owned();
        let count = count.await.map_err(closed)?;
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(size);
        Ok(Room {
            _count: count,
            _bytes: bytes.await.map_err(closed)?,
        })
    }

    /// The channel, opened where there is none.
    pub(crate) async fn lane(&self) -> Result<Arc<Lane>, Error> {
        if let Some(lane) = self.current() {
            return Ok(lane);
        }
        let _one_at_a_time = self.opening.lock().await;
        if let Some(lane) = self.current() {
            return Ok(lane);
        }
        loop {
            match self.open().await {
                Ok(lane) => {
                    let before = self.lane.lock().replace(Arc::clone(&lane));
                    if let Some(before) = before {
                        before.retire();
                    }
                    return Ok(lane);
                }
                // The link waits for the next connection.
                Err(error) if error.kind() == ErrorKind::Disconnected => {
                    tokio::task::yield_now().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn current(&self) -> Option<Arc<Lane>> {
        let lane = self.lane.lock();
        lane.as_ref().filter(|lane| lane.is_open()).cloned()
    }

    fn forget(&self, gone: &Arc<Lane>) {
        let mut lane = self.lane.lock();
        if lane.as_ref().is_some_and(|lane| Arc::ptr_eq(lane, gone)) {
            *lane = None;
        }
        drop(lane);
        gone.retire();
    }

    async fn open(&self) -> Result<Arc<Lane>, Error> {
        let (_, epoch) = self.link.live().await?;
        let lane = self.link.while_live(self.prepare()).await?;
        tokio::spawn(drive(Arc::clone(&lane), self.link.end_of(epoch)));
        Ok(lane)
    }

    async fn prepare(&self) -> Result<Arc<Lane>, Error> {
        let channel = self.link.channel().await?;
        if self.setup.confirm {
            let selected = channel
                .confirm_select(ConfirmSelectOptions::default())
                .await;
            selected.map_err(errors::operation)?;
        }
        (self.setup.prepare)(channel.clone()).await?;
        Ok(Arc::new(Lane {
            channel,
            has_exchange: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            board: Mutex::default(),
            driver: AtomicWaker::new(),
            max_size: Arc::clone(&self.setup.max_size),
            refusals: Arc::clone(&self.refusals),
        }))
    }

    /// Whether the exchange is there. The broker closes the channel on a message to one that is not.
    async fn has_exchange(&self, lane: &Lane) -> Result<bool, Sent> {
        if lane.has_exchange.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let looking = self.link.while_live(self.find_exchange());
        let found = looking.await.map_err(Sent::Refused)?;
        lane.has_exchange.fetch_or(found, Ordering::Relaxed);
        Ok(found)
    }

    async fn find_exchange(&self) -> Result<bool, Error> {
        let channel = self.link.channel().await?;
        let name = self.setup.exchange.as_str().into();
        let options = ExchangeDeclareOptions {
            passive: true,
            ..ExchangeDeclareOptions::default()
        };
        let found = channel
            .exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default())
            .await;
        match found {
            Ok(()) => {
                let _ = channel.close(200, "OK".into()).now_or_never();
                Ok(true)
            }
            Err(error) if errors::is_soft(&error, &AMQPSoftError::NOTFOUND) => Ok(false),
            Err(error) => Err(errors::operation(error)),
        }
    }

    fn refused(&self, route: u64) -> Option<Error> {
        let mut refusals = self.refusals.lock();
        while let Some(first) = refusals.front()
            && first.at.elapsed() > REMEMBERED
        {
            refusals.pop_front();
        }
        let refusal = refusals.iter().find(|refusal| refusal.route == route)?;
        Some(denied(&refusal.why))
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

/// A place in the window. Dropping it makes room.
struct Room {
    _count: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// One channel.
pub(crate) struct Lane {
    channel: Channel,
    has_exchange: AtomicBool,
    is_retired: AtomicBool,
    board: Mutex<Board>,
    driver: AtomicWaker,
    max_size: Arc<AtomicUsize>,
    refusals: Arc<Mutex<VecDeque<Refusal>>>,
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
    pub(crate) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
        self.driver.wake();
    }

    /// Puts a message on the channel, in the order of the calls; gives it back where the channel is gone.
    fn launch(
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
                self.remember(slot.route, text);
                return Sent::Refused(denied(text));
            }
            if errors::is_soft(&error, &AMQPSoftError::PRECONDITIONFAILED)
                && let Some((size, most)) = sizes(text)
            {
                self.max_size.fetch_min(most, Ordering::Relaxed);
                if size == slot.size {
                    return Sent::Refused(too_large(size, most));
                }
            }
        }
        Sent::Unknown(unconfirmed().with_source(error))
    }

    fn remember(&self, route: u64, why: &str) {
        let mut refusals = self.refusals.lock();
        if refusals.iter().any(|refusal| refusal.route == route) {
            return;
        }
        if refusals.len() == REFUSALS {
            refusals.pop_front();
        }
        refusals.push_back(Refusal {
            route,
            why: why.to_owned(),
            at: Instant::now(),
        });
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
async fn drive(lane: Arc<Lane>, end: impl Future<Output = ()>) {
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

fn route(exchange: &str, key: &str) -> u64 {
    let mut hasher = FxHasher::default();
    (exchange, key).hash(&mut hasher);
    hasher.finish()
}

/// What tells two messages of one route apart.
fn identity(properties: &BasicProperties) -> u64 {
    let mut hasher = FxHasher::default();
    (properties.message_id(), properties.correlation_id()).hash(&mut hasher);
    hasher.finish()
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

pub(crate) fn too_large(size: usize, most: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "the payload has {size} bytes, this RabbitMQ takes {most}; raise max_message_size here and on the broker, or send a reference to it"
        ),
    )
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

fn denied(text: &str) -> Error {
    Error::new(
        ErrorKind::Denied,
        format!("RabbitMQ refuses: {text}; give the user the permission"),
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
