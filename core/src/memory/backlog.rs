//! What waits for a subscription, what is out with its consumers, and which of them are parked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque, hash_map};
use std::task::Waker;
use std::time::Instant;

use slab::Slab;
use smallvec::SmallVec;

use super::history;
use super::store::Letter;
use crate::Message;
use crate::message::Key;
use crate::pattern::Tag;
use crate::pattern::publish_subscribe::{Guarantee, Order, Received};

/// The tag's epoch of a delivery that was settled before it was made.
pub(super) const SETTLED: u64 = 0;

/// Publishers that wait are woken when so many places are free, or half of them, or when a consumer has settled
/// something: not for each place, since a wake-up costs more than a message.
const WAKE_AT: usize = 64;

/// Those to wake, once no lock is held.
pub(super) type Wakers = SmallVec<[Waker; 2]>;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// What is under a queue's lock.
pub(super) struct Backlog {
    bound: Bound,
    /// Whether deliveries are to be settled; else they were before they are made.
    tracked: bool,
    /// Whether a key that is out with a consumer holds its other messages back.
    keyed: bool,
    next_number: u64,
    /// All messages, where they stay from the publish to the settlement. The places below hold their indices.
    slots: Slab<Slot>,
    ready: VecDeque<usize>,
    /// What was delivered before and came back, by its number: it goes before `ready`, in its old order.
    returned: BTreeMap<u64, usize>,
    delayed: BinaryHeap<Reverse<Delayed>>,
    keys: HashMap<Key, Held>,
    /// The size of the messages that wait, which are those that are not out.
    bytes: usize,
    /// How many are out with a consumer.
    out: usize,
    members: Slab<Member>,
    /// How many members hold a waker.
    parked: usize,
    /// Whether nothing comes any more once this is taken.
    bounded: bool,
    /// Who is woken first, so that consumers that take one message each take turns.
    turn: usize,
}

/// A message in the queue.
pub(super) struct Slot {
    number: u64,
    message: Message,
    size: usize,
    deliveries: u32,
    pub(super) letter: Option<Box<Letter>>,
    /// Its number in the history.
    kept: Option<u64>,
    out: Option<Out>,
}

/// Says that a message is out with a consumer, and by which delivery.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Out {
    pub(super) epoch: u64,
    pub(super) member: usize,
}

/// A message that is not due yet. The one that is due first is the least.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Delayed {
    due: Instant,
    number: u64,
    index: usize,
}

/// A key whose messages come one at a time.
#[derive(Default)]
struct Held {
    /// Whether one of them is out; else the next of them is in `returned`.
    out: bool,
    waiting: BTreeMap<u64, usize>,
}

/// A consumer of the queue.
struct Member {
    waker: Option<Waker>,
    unsettled: usize,
    window: usize,
    ended: bool,
}

impl Backlog {
    pub(super) fn new(guarantee: Guarantee, order: Order, bound: Bound) -> Self {
        let tracked = guarantee == Guarantee::AtLeastOnce;
        Self {
            bound,
            tracked,
            keyed: tracked && order == Order::KeyInGroup,
            next_number: 0,
            slots: Slab::new(),
            ready: VecDeque::new(),
            returned: BTreeMap::new(),
            delayed: BinaryHeap::new(),
            keys: HashMap::new(),
            bytes: 0,
            out: 0,
            members: Slab::new(),
            parked: 0,
            bounded: false,
            turn: 0,
        }
    }

    /// Says that nothing comes any more.
    pub(super) fn finish(&mut self) {
        self.bounded = true;
    }

    /// Whether all is taken, and nothing comes any more.
    pub(super) fn is_over(&self) -> bool {
        self.bounded && self.waiting() == 0
    }

    /// Adds a consumer.
    pub(super) fn join(&mut self, window: usize) -> usize {
        self.members.insert(Member {
            waker: None,
            unsettled: 0,
            window: window.max(1),
            ended: false,
        })
    }

    /// Ends a consumer: it takes nothing more. Its waker, if it is parked.
    pub(super) fn end(&mut self, member: usize) -> Option<Waker> {
        let waker = self.unpark(member);
        if let Some(member) = self.members.get_mut(member) {
            member.ended = true;
        }
        waker
    }

    /// Removes a consumer that holds nothing.
    pub(super) fn leave(&mut self, member: usize) {
        self.members.try_remove(member);
    }

    pub(super) fn has_delayed(&self) -> bool {
        !self.delayed.is_empty()
    }

    /// Whether a message of this size fits. An empty queue takes any.
    pub(super) fn has_room(&self, size: usize) -> bool {
        let waiting = self.waiting();
        waiting == 0 || (waiting < self.bound.messages && self.bytes + size <= self.bound.bytes)
    }

    /// Adds a message, whether there is room or not.
    pub(super) fn push(
        &mut self,
        message: &Message,
        due: Option<Instant>,
        letter: Option<Letter>,
        kept: Option<u64>,
    ) {
        let size = message.byte_len();
        let number = self.number();
        let index = self.slots.insert(Slot {
            number,
            message: message.clone(),
            size,
            deliveries: 0,
            letter: letter.map(Box::new),
            kept,
            out: None,
        });
        self.bytes += size;
        match due {
            None => self.ready.push_back(index),
            Some(due) => self.delayed.push(Reverse(Delayed { due, number, index })),
        }
    }

    /// Whether a consumer is parked.
    pub(super) fn is_awaited(&self) -> bool {
        self.parked > 0
    }

    /// How many messages wait: those that are not out.
    pub(super) fn waiting(&self) -> usize {
        self.slots.len() - self.out
    }

    /// How many are out with a consumer.
    pub(super) fn unsettled(&self) -> usize {
        self.out
    }

    /// How many wait and are due.
    pub(super) fn due(&self, now: Instant) -> usize {
        let later = self.delayed.iter().filter(|delayed| delayed.0.due > now);
        self.waiting() - later.count()
    }

    /// When the next delayed message is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.peek().map(|delayed| delayed.0.due)
    }

    /// Whether a consumer takes from here.
    pub(super) fn is_consumed(&self) -> bool {
        self.members.iter().any(|(_, member)| !member.ended)
    }

    /// Takes the wakers of the consumers that can take something, one after the other in front.
    pub(super) fn wakers(&mut self, wakers: &mut Wakers) {
        if self.parked == 0 {
            return;
        }
        let from = wakers.len();
        for (_, member) in &mut self.members {
            if member.unsettled < member.window
                && let Some(waker) = member.waker.take()
            {
                self.parked -= 1;
                wakers.push(waker);
            }
        }
        let woken = &mut wakers[from..];
        if woken.len() > 1 {
            self.turn = self.turn.wrapping_add(1);
            let front = self.turn % woken.len();
            woken.rotate_left(front);
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// How many more deliveries a consumer may hold; `None` when it takes no more.
    pub(super) fn room_of(&self, member: usize) -> Option<usize> {
        let member = self.members.get(member).filter(|member| !member.ended)?;
        Some(member.window.saturating_sub(member.unsettled))
    }

    /// Moves what is due: ahead of the others what was delivered before, behind them what was only published for later.
    pub(super) fn promote(&mut self, now: Instant) {
        while let Some(Reverse(first)) = self.delayed.peek()
            && first.due <= now
        {
            let index = first.index;
            self.delayed.pop();
            let number = self.number();
            match self.slots.get_mut(index) {
                Some(slot) if slot.deliveries == 0 => {
                    slot.number = number;
                    self.ready.push_back(index);
                }
                Some(slot) => {
                    self.returned.insert(slot.number, index);
                }
                None => {}
            }
        }
    }

    /// The next message that may be delivered now.
    pub(super) fn next(&mut self) -> Option<usize> {
        loop {
            let index = match self.returned.pop_first() {
                Some((_, index)) => index,
                None => self.ready.pop_front()?,
            };
            if !self.keyed {
                return Some(index);
            }
            let slot = self.slots.get(index)?;
            let Some(key) = slot.message.key() else {
                return Some(index);
            };
            let held = self.keys.entry(key.clone()).or_default();
            if !held.out {
                held.out = true;
                return Some(index);
            }
            held.waiting.insert(slot.number, index);
        }
    }

    pub(super) fn deliver(&mut self, index: usize, out: Out) -> Option<Received> {
        let slot = self.slots.get_mut(index)?;
        slot.deliveries = slot.deliveries.saturating_add(1);
        self.bytes -= slot.size;
        let deliveries = Some(slot.deliveries);
        let position = slot.kept.map(history::position);
        let (message, tag) = if self.tracked {
            slot.out = Some(out);
            let tag = Tag {
                slot: index as u64,
                epoch: out.epoch,
            };
            let message = slot.message.clone();
            self.out += 1;
            if let Some(member) = self.members.get_mut(out.member) {
                member.unsettled += 1;
            }
            (message, tag)
        } else {
            let Slot {
                message, letter, ..
            } = self.slots.remove(index);
            if let Some(letter) = letter {
                letter.done();
            }
            let tag = Tag {
                slot: 0,
                epoch: SETTLED,
            };
            (message, tag)
        };
        Some(Received {
            message,
            tag,
            deliveries,
            native: None,
            position,
        })
    }

    /// Takes a message back from a consumer, if it is out by that very delivery.
    pub(super) fn withdraw(&mut self, index: usize, out: Out) -> bool {
        let found = self.slots.get_mut(index);
        let Some(slot) = found.filter(|slot| slot.out == Some(out)) else {
            return false;
        };
        slot.out = None;
        self.bytes += slot.size;
        self.out -= 1;
        if let Some(member) = self.members.get_mut(out.member) {
            member.unsettled -= 1;
        }
        true
    }

    /// Removes a message that is done with. Comes back what must be dropped outside of the lock: the rest is memory.
    pub(super) fn forget(&mut self, index: usize) -> Option<Slot> {
        let slot = self.slots.get(index)?;
        self.bytes -= slot.size;
        let foreign = slot.letter.is_some() || slot.message.guard().is_some();
        let slot = self.slots.remove(index);
        foreign.then_some(slot)
    }

    /// Lets the next message of this one's key go. Tells whether there is one.
    pub(super) fn release_key(&mut self, index: usize) -> bool {
        if !self.keyed {
            return false;
        }
        let slot = self.slots.get(index);
        let Some(key) = slot.and_then(|slot| slot.message.key()) else {
            return false;
        };
        let hash_map::Entry::Occupied(mut entry) = self.keys.entry(key.clone()) else {
            return false;
        };
        let held = entry.get_mut();
        held.out = false;
        let next = held.waiting.pop_first();
        if held.waiting.is_empty() {
            entry.remove();
        }
        let found = next.is_some();
        self.returned.extend(next);
        found
    }

    /// Gives a delivery back to the queue, where it was.
    pub(super) fn put_back(&mut self, index: usize) {
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        let key = slot.message.key().filter(|_| self.keyed);
        match key.and_then(|key| self.keys.get_mut(key)) {
            // It waits with the others of its key, and the first of them goes.
            Some(held) => {
                held.waiting.insert(slot.number, index);
                self.release_key(index);
            }
            None => {
                self.returned.insert(slot.number, index);
            }
        }
    }

    /// Gives a delivery back for later.
    pub(super) fn put_off(&mut self, index: usize, due: Instant) {
        if let Some(slot) = self.slots.get(index) {
            let number = slot.number;
            self.delayed.push(Reverse(Delayed { due, number, index }));
        }
    }

    pub(super) fn give_back(&mut self, member: usize) {
        let out = |(index, slot): (usize, &Slot)| {
            let out = slot.out.filter(|out| out.member == member)?;
            Some((index, out))
        };
        let held: Vec<(usize, Out)> = self.slots.iter().filter_map(out).collect();
        for (index, out) in held {
            if self.withdraw(index, out) {
                self.put_back(index);
            }
        }
    }

    /// Takes out all that waits.
    pub(super) fn clear(&mut self) -> Vec<Slot> {
        self.ready.clear();
        self.returned.clear();
        self.delayed.clear();
        self.keys.clear();
        self.bytes = 0;
        let waits = |(index, slot): (usize, &Slot)| slot.out.is_none().then_some(index);
        let waiting: Vec<usize> = self.slots.iter().filter_map(waits).collect();
        let slots = waiting.into_iter();
        slots
            .filter_map(|index| self.slots.try_remove(index))
            .collect()
    }

    pub(super) fn park(&mut self, member: usize, waker: &Waker) {
        if let Some(member) = self.members.get_mut(member) {
            match &mut member.waker {
                Some(parked) => parked.clone_from(waker),
                None => {
                    member.waker = Some(waker.clone());
                    self.parked += 1;
                }
            }
        }
    }

    pub(super) fn unpark(&mut self, member: usize) -> Option<Waker> {
        let waker = self.members.get_mut(member)?.waker.take();
        self.parked -= usize::from(waker.is_some());
        waker
    }

    /// How many places are free.
    pub(super) fn free(&self) -> usize {
        self.bound.messages.saturating_sub(self.waiting())
    }

    /// Whether to wake publishers now or when there is more room. A consumer that parks leaves no doubt.
    pub(super) fn is_worth_waking(&self, parked: bool) -> bool {
        let worth = WAKE_AT.min(self.bound.messages / 2);
        parked || self.waiting() == 0 || self.free() >= worth
    }
}
