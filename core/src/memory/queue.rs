//! The queue of one subscription: what waits, what is out with a consumer, and who is parked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque, hash_map};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use smallvec::SmallVec;

use super::broker::Shared;
use super::room::Room;
use super::store::Letter;
use crate::clock::Clock;
use crate::message::Key;
use crate::pattern::publish_subscribe::{
    Guarantee, Order, Received, SettleBatch, Settlement, SubscriptionId,
};
use crate::pattern::{Batch, Tag};
use crate::{Error, ErrorKind, Message};

/// The tag's epoch of a delivery that was settled before it was made.
const SETTLED: u64 = 0;

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

/// The queue of one subscription. All its state is under one lock, which nothing foreign runs under: what is woken or
/// dropped is woken or dropped later.
pub(super) struct Queue {
    /// Unique in the broker. Several queues are locked in this order.
    pub(super) number: u64,
    pub(super) subscription: SubscriptionId,
    pub(super) guarantee: Guarantee,
    pub(super) order: Order,
    pub(super) room: Room,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

/// What is under a queue's lock.
pub(super) struct State {
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
    /// Who is woken first, so that consumers that take one message each take turns.
    turn: usize,
}

/// A message in the queue.
struct Slot {
    number: u64,
    message: Message,
    size: usize,
    deliveries: u32,
    letter: Option<Box<Letter>>,
    out: Option<Out>,
}

/// Says that a message is out with a consumer, and by which delivery.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Out {
    epoch: u64,
    member: usize,
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

/// What a consumer got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Something.
    Some,
    /// Nothing now; the next delayed message is due then. The consumer is parked.
    Nothing(Option<Instant>),
    /// Nothing, for good.
    End,
}

impl Queue {
    pub(super) fn new(
        number: u64,
        subscription: SubscriptionId,
        guarantee: Guarantee,
        order: Order,
        bound: Bound,
        shared: Arc<Shared>,
    ) -> Self {
        let tracked = guarantee == Guarantee::AtLeastOnce;
        Self {
            number,
            subscription,
            guarantee,
            order,
            room: Room::default(),
            shared,
            state: Mutex::new(State {
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
                turn: 0,
            }),
        }
    }

    /// Locks the queue to push. The caller wakes [`State::wakers`] when it has unlocked it.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Adds a consumer.
    pub(super) fn join(&self, window: usize) -> usize {
        self.state.lock().members.insert(Member {
            waker: None,
            unsettled: 0,
            window: window.max(1),
            ended: false,
        })
    }

    /// Delivers to a consumer what there is, as far as its window and the batch have room; else parks it.
    pub(super) fn take(
        &self,
        member: usize,
        cx: &Context<'_>,
        clock: &dyn Clock,
        batch: &mut Batch<Received>,
    ) -> Taken {
        let mut state = self.state.lock();
        if !state.delayed.is_empty() {
            state.promote(clock.now());
        }
        let Some(room) = state.room_of(member) else {
            return Taken::End;
        };
        let room = room.min(batch.room());
        let mut taken = 0;
        let mut epoch = SETTLED;
        while taken < room
            && let Some(index) = state.next()
        {
            if taken == 0 && state.tracked {
                epoch = self.shared.reserve_epochs(room);
            }
            let epoch = epoch + if state.tracked { taken as u64 } else { 0 };
            if let Some(delivery) = state.deliver(index, Out { epoch, member }) {
                batch.push(delivery);
                taken += 1;
            }
        }
        if taken == 0 {
            state.park(member, cx.waker());
        }
        let free = state.free();
        let wanted = self.room.is_wanted() && state.is_worth_waking(taken == 0);
        let due = state.next_due();
        drop(state);
        if wanted {
            self.room.offer(free);
        }
        if taken == 0 {
            Taken::Nothing(due)
        } else {
            Taken::Some
        }
    }

    /// Settles what a consumer holds.
    pub(super) fn settle(&self, member: usize, clock: &dyn Clock, batch: &mut SettleBatch) {
        let mut done: SmallVec<[Slot; 4]> = SmallVec::new();
        let mut state = self.state.lock();
        let before = state.room_of(member);
        let mut returned = false;
        for index_in_batch in 0..batch.items().len() {
            let (tag, settlement) = batch.items()[index_in_batch];
            if !state.tracked && tag.epoch == SETTLED {
                continue;
            }
            let epoch = tag.epoch;
            let index = usize::try_from(tag.slot).unwrap_or(usize::MAX);
            if !state.withdraw(index, Out { epoch, member }) {
                batch.fail(index_in_batch, stale(&self.subscription));
                continue;
            }
            match settlement {
                Settlement::Ack => {
                    returned |= state.release_key(index);
                    done.extend(state.forget(index));
                }
                Settlement::Return => {
                    state.put_back(index);
                    returned = true;
                }
                Settlement::ReturnAfter(delay) => {
                    state.release_key(index);
                    state.put_off(index, clock.now() + delay);
                    returned = true;
                }
            }
        }
        let mut wakers = Wakers::new();
        if returned {
            state.wakers(&mut wakers);
        } else if before == Some(0) {
            wakers.extend(state.unpark(member));
        }
        let free = state.free();
        drop(state);
        self.conclude(done, wakers, free);
    }

    /// Stops delivering to a consumer. What it holds stays to be settled.
    pub(super) fn end(&self, member: usize) {
        let mut state = self.state.lock();
        let waker = state.unpark(member);
        if let Some(member) = state.members.get_mut(member) {
            member.ended = true;
        }
        drop(state);
        self.conclude(SmallVec::new(), waker.into_iter().collect(), 0);
    }

    /// Takes back what a consumer holds, for the others.
    pub(super) fn give_back(&self, member: usize) {
        let mut wakers = Wakers::new();
        let mut state = self.state.lock();
        state.give_back(member);
        state.wakers(&mut wakers);
        drop(state);
        self.conclude(SmallVec::new(), wakers, 0);
    }

    /// Removes a consumer and takes back what it holds.
    pub(super) fn leave(&self, member: usize) {
        self.give_back(member);
        let gone = self.state.lock().members.try_remove(member);
        drop(gone);
    }

    /// Drops all that waits: the subscription is gone. Publishers that wait for it look for another way.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        let dropped = state.clear();
        drop(state);
        drop(dropped);
        self.room.dissolve();
        self.shared.changed();
    }

    fn conclude(&self, done: SmallVec<[Slot; 4]>, wakers: Wakers, free: usize) {
        for letter in done.iter().filter_map(|slot| slot.letter.as_ref()) {
            letter.done();
        }
        drop(done);
        if free > 0 && self.room.is_wanted() {
            self.room.offer(free);
        }
        wakers.into_iter().for_each(Waker::wake);
        self.shared.changed();
    }
}

impl State {
    /// Whether a message of this size fits. An empty queue takes any.
    pub(super) fn has_room(&self, size: usize) -> bool {
        let waiting = self.waiting();
        waiting == 0 || (waiting < self.bound.messages && self.bytes + size <= self.bound.bytes)
    }

    /// Adds a message, whether there is room or not.
    pub(super) fn push(&mut self, message: &Message, due: Option<Instant>, letter: Option<Letter>) {
        let size = message.byte_len();
        let number = self.number();
        let index = self.slots.insert(Slot {
            number,
            message: message.clone(),
            size,
            deliveries: 0,
            letter: letter.map(Box::new),
            out: None,
        });
        self.bytes += size;
        match due {
            None => self.ready.push_back(index),
            Some(due) => self.delayed.push(Reverse(Delayed { due, number, index })),
        }
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
    fn room_of(&self, member: usize) -> Option<usize> {
        let member = self.members.get(member).filter(|member| !member.ended)?;
        Some(member.window.saturating_sub(member.unsettled))
    }

    /// Moves what is due: ahead of the others what was delivered before, behind them what was only published for later.
    fn promote(&mut self, now: Instant) {
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
    fn next(&mut self) -> Option<usize> {
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

    fn deliver(&mut self, index: usize, out: Out) -> Option<Received> {
        let slot = self.slots.get_mut(index)?;
        slot.deliveries = slot.deliveries.saturating_add(1);
        self.bytes -= slot.size;
        let deliveries = Some(slot.deliveries);
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
        })
    }

    /// Takes a message back from a consumer, if it is out by that very delivery.
    fn withdraw(&mut self, index: usize, out: Out) -> bool {
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
    fn forget(&mut self, index: usize) -> Option<Slot> {
        let slot = self.slots.try_remove(index)?;
        self.bytes -= slot.size;
        (slot.letter.is_some() || slot.message.guard().is_some()).then_some(slot)
    }

    /// Lets the next message of this one's key go. Tells whether there is one.
    fn release_key(&mut self, index: usize) -> bool {
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
    fn put_back(&mut self, index: usize) {
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
    fn put_off(&mut self, index: usize, due: Instant) {
        if let Some(slot) = self.slots.get(index) {
            let number = slot.number;
            self.delayed.push(Reverse(Delayed { due, number, index }));
        }
    }

    fn give_back(&mut self, member: usize) {
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
    fn clear(&mut self) -> Vec<Slot> {
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

    fn park(&mut self, member: usize, waker: &Waker) {
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

    fn unpark(&mut self, member: usize) -> Option<Waker> {
        let waker = self.members.get_mut(member)?.waker.take();
        self.parked -= usize::from(waker.is_some());
        waker
    }

    /// How many places are free.
    fn free(&self) -> usize {
        self.bound.messages.saturating_sub(self.waiting())
    }

    /// Whether to wake publishers now or when there is more room. A consumer that parks leaves no doubt.
    fn is_worth_waking(&self, parked: bool) -> bool {
        let worth = WAKE_AT.min(self.bound.messages / 2);
        parked || self.waiting() == 0 || self.free() >= worth
    }
}

fn stale(subscription: &SubscriptionId) -> Error {
    let message =
        "the delivery is no longer ours to settle; it was settled before or went back to the queue";
    Error::new(ErrorKind::Stale, message).with_context("subscription", subscription)
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("subscription", &self.subscription.to_string())
            .finish_non_exhaustive()
    }
}
