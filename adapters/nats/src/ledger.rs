//! What is ours at the moment: received and not delivered, delivered and not settled.

use std::collections::VecDeque;
use std::task::{Context, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anywire::pattern::Tag;
use anywire::pattern::publish_subscribe::Received;
use anywire::{Message, Position};
use async_nats::Subject;
use slab::Slab;

/// The deliveries of one subscription.
pub(crate) struct Ledger {
    /// Delivered and not settled.
    held: Slab<Held>,
    /// Received and not delivered.
    ready: VecDeque<Arrived>,
    /// For each source, how many of its messages are held or ready.
    counts: Vec<usize>,
    /// Numbers the deliveries, so that a used slot is another.
    serial: u64,
    closed: bool,
    waker: Option<Waker>,
}

/// A message that has come.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) message: Message,
    /// Where it is settled.
    pub(crate) address: Subject,
    /// Which of the subscription's consumers brought it.
    pub(crate) source: usize,
    pub(crate) since: Instant,
    pub(crate) deliveries: u32,
    /// Where it stands in its stream.
    pub(crate) sequence: u64,
    pub(crate) position: Option<Position>,
}

struct Held {
    serial: u64,
    arrived: Arrived,
}

impl Ledger {
    pub(crate) fn new(sources: usize) -> Self {
        Self {
            held: Slab::new(),
            ready: VecDeque::new(),
            counts: vec![0; sources],
            serial: 0,
            closed: false,
            waker: None,
        }
    }

    /// Notes who is to be woken; `false` once it is closed.
    pub(crate) fn watch(&mut self, cx: &Context<'_>) -> bool {
        let waker = self.waker.as_ref();
        if !waker.is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        !self.closed
    }

    /// The task to wake, as there is room or news.
    pub(crate) fn take_waker(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// How many messages of a source are here.
    pub(crate) fn count(&self, source: usize) -> usize {
        self.counts.get(source).copied().unwrap_or_default()
    }

    /// Whether something waits to be delivered.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(crate) fn take_in(&mut self, arrived: Arrived) {
        self.add(arrived.source);
        self.ready.push_back(arrived);
    }

    /// The next delivery, unless so many are unsettled.
    pub(crate) fn deliver(&mut self, window: usize) -> Option<Received> {
        if self.held.len() >= window {
            return None;
        }
        let arrived = self.ready.pop_front()?;
        self.serial += 1;
        let serial = self.serial;
        let (message, deliveries) = (arrived.message.clone(), arrived.deliveries);
        let position = arrived.position.clone();
        let slot = self.held.insert(Held { serial, arrived });
        let tag = Tag {
            slot: slot as u64,
            epoch: serial,
        };
        let mut received = Received::new(message, tag);
        received.deliveries = Some(deliveries);
        received.position = position;
        Some(received)
    }

    pub(crate) fn holds(&self, tag: Tag) -> bool {
        let slot = usize::try_from(tag.slot).ok();
        let held = slot.and_then(|slot| self.held.get(slot));
        held.is_some_and(|held| held.serial == tag.epoch)
    }

    /// Takes a delivery out, if the tag names one.
    pub(crate) fn settle(&mut self, tag: Tag) -> Option<Arrived> {
        if !self.holds(tag) {
            return None;
        }
        let arrived = self
            .held
            .try_remove(usize::try_from(tag.slot).ok()?)?
            .arrived;
        self.subtract(arrived.source);
        Some(arrived)
    }

    /// Puts a delivery back among those that wait, where it was in its stream.
    pub(crate) fn put_back(&mut self, mut arrived: Arrived) {
        arrived.deliveries = arrived.deliveries.saturating_add(1);
        self.add(arrived.source);
        let is_later =
            |other: &Arrived| other.source == arrived.source && other.sequence > arrived.sequence;
        let at = self.ready.iter().position(is_later);
        self.ready.insert(at.unwrap_or(self.ready.len()), arrived);
    }

    /// Lets go of what is ready, and with `all` of what is held; gives where it is returned to, in order.
    pub(crate) fn give_back(&mut self, all: bool) -> Vec<Subject> {
        let mut left: Vec<Arrived> = self.ready.drain(..).collect();
        if all {
            left.extend(self.held.drain().map(|held| held.arrived));
        }
        left.sort_by_key(|arrived| (arrived.source, arrived.sequence));
        for arrived in &left {
            self.subtract(arrived.source);
        }
        left.into_iter().map(|arrived| arrived.address).collect()
    }

    /// Where a sign of life goes for what has been here since before then.
    pub(crate) fn older_than(&self, before: Instant) -> Vec<Subject> {
        let held = self.held.iter().map(|(_, held)| &held.arrived);
        let all = held.chain(&self.ready);
        let old = all.filter(|arrived| arrived.since <= before);
        old.map(|arrived| arrived.address.clone()).collect()
    }

    fn add(&mut self, source: usize) {
        if let Some(count) = self.counts.get_mut(source) {
            *count += 1;
        }
    }

    fn subtract(&mut self, source: usize) {
        if let Some(count) = self.counts.get_mut(source) {
            *count -= 1;
        }
    }
}

/// What the address of a delivery tells about it: `$JS.ACK[.domain.account].stream.consumer.deliveries.sequence.....time.left`.
pub(crate) struct Told {
    pub(crate) deliveries: u32,
    pub(crate) sequence: u64,
    pub(crate) time: Option<SystemTime>,
    /// How many messages the consumer has left, where that is told.
    pub(crate) left: Option<u64>,
}

impl Told {
    pub(crate) fn read(address: &str) -> Self {
        let tokens = address.split('.').count();
        let mut fields = address.split('.').skip(if tokens > 9 { 6 } else { 4 });
        let mut number = || fields.next().and_then(|token| token.parse::<u64>().ok());
        let deliveries = number().and_then(|count| u32::try_from(count).ok());
        let sequence = number();
        let _of_consumer = number();
        let time = number().and_then(|nanos| UNIX_EPOCH.checked_add(Duration::from_nanos(nanos)));
        let left = number();
        Self {
            deliveries: deliveries.unwrap_or(1),
            sequence: sequence.unwrap_or_default(),
            time,
            left,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn arrived(sequence: u64) -> Arrived {
        let subject = anywire::Subject::parse("a.b").unwrap();
        Arrived {
            message: Message::new(subject, "x"),
            address: format!("address.{sequence}").into(),
            source: 0,
            since: Instant::now(),
            deliveries: 1,
            sequence,
            position: None,
        }
    }

    fn filled(count: u64) -> Ledger {
        let mut ledger = Ledger::new(1);
        (1..=count).for_each(|sequence| ledger.take_in(arrived(sequence)));
        ledger
    }

    #[test]
    fn a_tag_settles_once_and_never_another() {
        let mut ledger = filled(2);
        let first = ledger.deliver(1).unwrap().tag;
        assert!(ledger.deliver(1).is_none(), "the window is full");
        assert_eq!(ledger.settle(first).unwrap().sequence, 1);
        let second = ledger.deliver(1).unwrap().tag;
        assert_eq!(second.slot, first.slot, "the slot is used again");
        assert!(ledger.settle(first).is_none());
        assert!(ledger.holds(second));
        assert_eq!(ledger.count(0), 1);
    }

    #[test]
    fn what_is_put_back_comes_before_what_was_behind_it() {
        let mut ledger = filled(4);
        let tags = [0; 3].map(|_| ledger.deliver(9).unwrap().tag);
        for at in [1, 0, 2] {
            let returned = ledger.settle(tags[at]).unwrap();
            ledger.put_back(returned);
        }
        let again: Vec<_> = std::iter::from_fn(|| ledger.deliver(9)).collect();
        let counts: Vec<_> = again.iter().map(|received| received.deliveries).collect();
        assert_eq!(counts, [Some(2), Some(2), Some(2), Some(1)]);
        let settled = again
            .iter()
            .map(|received| ledger.settle(received.tag).unwrap().sequence);
        assert_eq!(settled.collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn what_is_given_back_goes_in_the_order_of_the_stream() {
        let mut ledger = filled(3);
        let held = ledger.deliver(9).unwrap().tag;
        assert_eq!(ledger.give_back(false).len(), 2);
        assert!(ledger.holds(held));
        ledger.take_in(arrived(4));
        let all: Vec<_> = ledger
            .give_back(true)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(all, ["address.1", "address.4"]);
        assert!(!ledger.holds(held));
        assert_eq!(ledger.count(0), 0);
    }

    #[test]
    fn the_address_of_a_delivery_tells_about_it() {
        let time = Duration::from_nanos(1_763_000_000_000_000_001);
        for address in [
            "$JS.ACK.S.C.3.17.9.1763000000000000001.4",
            "$JS.ACK.hub.ACC.S.C.3.17.9.1763000000000000001.4.token",
        ] {
            let told = Told::read(address);
            assert_eq!((told.deliveries, told.sequence), (3, 17), "{address}");
            assert_eq!(told.time.unwrap().duration_since(UNIX_EPOCH).unwrap(), time);
        }
    }
}
