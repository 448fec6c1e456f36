//! Leaving a shelf: what becomes of what a subscription had not finished.

use std::time::{Duration, Instant};

use anywire::pattern::publish_subscribe::SubscriptionId;

use super::{SeatKey, Shelf, SubscriptionKey, addressed};
use crate::subscription::{Arrived, Subscription};

impl Shelf {
    /// Delivers nothing more to a seat. What waits is for the others of the subscription.
    pub(crate) fn close_seat(&mut self, key: SeatKey) {
        self.version += 1;
        if let Some(seat) = self.seat(key) {
            seat.open = false;
        }
        if let Some(subscription) = self.subscriptions.get_mut(&key.subscription) {
            subscription.wake();
        }
    }

    /// Lets nobody come any more, unless somebody is there.
    pub(crate) fn retire(&mut self) -> bool {
        let nobody = self.subscriptions().next().is_none();
        self.retired |= nobody;
        self.retired
    }

    /// Frees a seat: what it holds waits for another one.
    pub(crate) fn leave(&mut self, key: SeatKey) {
        self.version += 1;
        let Some(subscription) = self.subscriptions.get_mut(&key.subscription) else {
            return;
        };
        let Some(seat) = subscription.seats.try_remove(key.seat) else {
            return;
        };
        for (_, held) in seat.held {
            subscription.put_back(held.arrived);
        }
        subscription.wake();
        if subscription.seats.is_empty() {
            subscription.left = Some(Instant::now());
        }
    }

    /// Gives up those who left long ago: what they had of it is for whoever takes the strays.
    ///
    /// Not at once, and not while everybody is about to leave: when a whole app goes, one subscription after the other, what
    /// those had who went first is read again by the next one. Only where there is no position to be kept nobody is waited for.
    pub(crate) fn bury(&mut self, patience: Duration) {
        let is_anybody_open = self.all().any(|(_, subscription)| subscription.is_open());
        let patience = match self.keeps {
            true if !is_anybody_open => return self.forget_when_they_left(),
            true => patience,
            false => Duration::ZERO,
        };
        if !self.keeps {
            self.empty_closed();
        }
        let is_over = |left: &Instant| left.elapsed() >= patience;
        let all = self.all();
        let over = all.filter(|(_, subscription)| subscription.left.as_ref().is_some_and(is_over));
        let over: Vec<SubscriptionKey> = over.map(|(key, _)| key).collect();
        for key in over {
            self.version += 1;
            let Some(Subscription { id, ready, .. }) = self.subscriptions.remove(&key) else {
                continue;
            };
            if self.keeps && !ready.is_empty() {
                tracing::warn!(subscription = %id, messages = ready.len(), "a subscription has left for good with messages that it had not handled; they become dead letters");
            }
            for arrived in ready {
                self.hand_on(arrived, &id);
            }
        }
    }

    /// They are waited for from the moment on when somebody is there to wait for them.
    fn forget_when_they_left(&mut self) {
        let now = Instant::now();
        for subscription in self.subscriptions.values_mut() {
            subscription.left = subscription.left.map(|_| now);
        }
    }

    /// What nobody will take any more holds nobody up.
    fn empty_closed(&mut self) {
        let closed = self.subscriptions.values_mut();
        for subscription in closed.filter(|subscription| !subscription.is_open()) {
            subscription.ready_bytes = 0;
            for arrived in subscription.ready.drain(..) {
                if let Some(partition) = self.partitions.get_mut(&arrived.partition) {
                    self.moved |= partition.watermark.done(arrived.ticket);
                }
            }
        }
    }

    /// Gives what was for a subscription to whoever takes the strays, or counts it as done where nobody does.
    fn hand_on(&mut self, arrived: Arrived, of: &SubscriptionId) {
        let strays = self.strays.filter(|_| self.keeps);
        if let Some(strays) = strays.and_then(|key| self.subscriptions.get_mut(&key)) {
            let message = addressed(arrived.message, Some(of.pattern.clone()));
            strays.put_back(Arrived { message, ..arrived });
            strays.wake();
        } else if let Some(partition) = self.partitions.get_mut(&arrived.partition) {
            self.moved |= partition.watermark.done(arrived.ticket);
        }
    }
}
