//! The queue of one subscription, shared by those who publish to it, take from it and settle.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::backlog::{Backlog, Bound, Out, SETTLED, Slot, Wakers};
use super::broker::Shared;
use super::room::Room;
use crate::clock::Clock;
use crate::pattern::Batch;
use crate::pattern::publish_subscribe::{
    Guarantee, Order, Received, SettleBatch, Settlement, SubscriptionId,
};
use crate::{Error, ErrorKind};

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
    backlog: Mutex<Backlog>,
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
        Self {
            number,
            subscription,
            guarantee,
            order,
            room: Room::default(),
            shared,
            backlog: Mutex::new(Backlog::new(guarantee, order, bound)),
        }
    }

    /// Locks the queue to push. The caller wakes [`Backlog::wakers`] when it has unlocked it.
    pub(super) fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock()
    }

    /// Adds a consumer.
    pub(super) fn join(&self, window: usize) -> usize {
        self.backlog.lock().join(window)
    }

    /// Delivers to a consumer what there is, as far as its window and the batch have room; else parks it.
    pub(super) fn take(
        &self,
        member: usize,
        cx: &Context<'_>,
        clock: &dyn Clock,
        batch: &mut Batch<Received>,
    ) -> Taken {
        let tracked = self.is_tracked();
        let mut backlog = self.backlog.lock();
        if backlog.has_delayed() {
            backlog.promote(clock.now());
        }
        let Some(room) = backlog.room_of(member) else {
            return Taken::End;
        };
        let room = room.min(batch.room());
        let mut taken = 0;
        let mut epoch = SETTLED;
        while taken < room
            && let Some(index) = backlog.next()
        {
            if taken == 0 && tracked {
                epoch = self.shared.reserve_epochs(room);
            }
            let epoch = epoch + if tracked { taken as u64 } else { 0 };
            if let Some(delivery) = backlog.deliver(index, Out { epoch, member }) {
                batch.push(delivery);
                taken += 1;
            }
        }
        if taken == 0 && backlog.is_over() {
            return Taken::End;
        }
        if taken == 0 {
            backlog.park(member, cx.waker());
        }
        let free = backlog.free();
        let wanted = self.room.is_wanted() && backlog.is_worth_waking(taken == 0);
        let due = backlog.next_due();
        drop(backlog);
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
        let mut backlog = self.backlog.lock();
        let before = backlog.room_of(member);
        let mut returned = false;
        for index_in_batch in 0..batch.items().len() {
            let (tag, settlement) = batch.items()[index_in_batch];
            if !self.is_tracked() && tag.epoch == SETTLED {
                continue;
            }
            let epoch = tag.epoch;
            let index = usize::try_from(tag.slot).unwrap_or(usize::MAX);
            if !backlog.withdraw(index, Out { epoch, member }) {
                batch.fail(index_in_batch, stale(&self.subscription));
                continue;
            }
            match settlement {
                Settlement::Ack => {
                    returned |= backlog.release_key(index);
                    done.extend(backlog.forget(index));
                }
                Settlement::Return => {
                    backlog.put_back(index);
                    returned = true;
                }
                Settlement::ReturnAfter(delay) => {
                    backlog.release_key(index);
                    backlog.put_off(index, clock.now() + delay);
                    returned = true;
                }
            }
        }
        let mut wakers = Wakers::new();
        if returned {
            backlog.wakers(&mut wakers);
        } else if before == Some(0) {
            wakers.extend(backlog.unpark(member));
        }
        let free = backlog.free();
        drop(backlog);
        self.conclude(done, wakers, free);
    }

    /// Stops delivering to a consumer. What it holds stays to be settled.
    pub(super) fn end(&self, member: usize) {
        let mut backlog = self.backlog.lock();
        let waker = backlog.end(member);
        drop(backlog);
        self.conclude(SmallVec::new(), waker.into_iter().collect(), 0);
    }

    /// Takes back what a consumer holds, for the others.
    pub(super) fn give_back(&self, member: usize) {
        let mut wakers = Wakers::new();
        let mut backlog = self.backlog.lock();
        backlog.give_back(member);
        backlog.wakers(&mut wakers);
        drop(backlog);
        self.conclude(SmallVec::new(), wakers, 0);
    }

    /// Removes a consumer and takes back what it holds.
    pub(super) fn leave(&self, member: usize) {
        self.give_back(member);
        self.backlog.lock().leave(member);
    }

    /// Drops all that waits, for something else to be put in its place; `false` where somebody is at work.
    pub(super) fn empty(&self) -> bool {
        let mut backlog = self.backlog.lock();
        if backlog.is_consumed() || backlog.unsettled() > 0 {
            return false;
        }
        let dropped = backlog.clear();
        let free = backlog.free();
        drop(backlog);
        drop(dropped);
        self.room.offer(free);
        true
    }

    /// Drops all that waits: the subscription is gone. Publishers that wait for it look for another way.
    pub(super) fn clear(&self) {
        let mut backlog = self.backlog.lock();
        let dropped = backlog.clear();
        drop(backlog);
        drop(dropped);
        self.room.dissolve();
        self.shared.changed();
    }

    /// Whether deliveries are to be settled; else they were before they are made.
    fn is_tracked(&self) -> bool {
        self.guarantee == Guarantee::AtLeastOnce
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
