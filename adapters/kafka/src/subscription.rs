//! Who gets messages of a consumer: what waits for them, and what they hold.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Instant;

use anywire::Message;
use anywire::pattern::publish_subscribe::{Start, SubscriptionId};
use rustc_hash::FxHashSet;
use slab::Slab;

use crate::shelf::PartitionKey;
use crate::watermark::Ticket;

/// How much may wait for a subscription.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
}

/// Where somebody begins in a topic that its group has never read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Begin {
    /// The topics that were there already when it began with what is new.
    pub(crate) skips: Option<FxHashSet<String>>,
    /// A time or a position; else the earliest.
    pub(crate) place: Option<Start>,
    /// For a bounded read, the topics that it reads.
    pub(crate) bounded: Option<Vec<String>>,
}

/// Somebody who wants messages of a group.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) id: SubscriptionId,
    pub(crate) begin: Begin,
    pub(crate) ready: VecDeque<Arrived>,
    pub(crate) ready_bytes: usize,
    /// Since when it has had no seat, though others of its group have.
    pub(crate) left: Option<Instant>,
    /// Several of one identity share the work.
    pub(crate) seats: Slab<Seat>,
}

/// Somebody who pulls.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) window: usize,
    pub(crate) held: Slab<Held>,
    pub(crate) waker: Option<Waker>,
    pub(crate) open: bool,
}

/// A delivery that is not settled.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) serial: u64,
    pub(crate) arrived: Arrived,
}

/// A message for a subscription, and what is done when it is.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) message: Message,
    pub(crate) partition: PartitionKey,
    pub(crate) offset: i64,
    pub(crate) ticket: Ticket,
}

impl Subscription {
    pub(crate) fn is_open(&self) -> bool {
        self.seats.iter().any(|(_, seat)| seat.open)
    }

    /// What is settled before it is delivered is lost with us: no more of it waits than those who are here will take.
    pub(crate) fn room(&self, bounds: Bounds, early: bool) -> usize {
        let open = self.seats.iter().filter(|(_, seat)| seat.open);
        let windows = open.fold(0, |sum: usize, (_, seat)| sum.saturating_add(seat.window));
        let count = match early {
            true => bounds.count.min(windows),
            false => bounds.count,
        };
        match self.ready_bytes < bounds.bytes {
            true => count.saturating_sub(self.ready.len()),
            false => 0,
        }
    }

    pub(crate) fn wake(&mut self) {
        for (_, seat) in &mut self.seats {
            if let Some(waker) = seat.waker.take() {
                waker.wake();
            }
        }
    }

    /// Puts a delivery back among those that wait, where it was in its partition.
    pub(crate) fn put_back(&mut self, arrived: Arrived) {
        self.ready_bytes += arrived.message.byte_len();
        let is_later =
            |other: &Arrived| other.partition == arrived.partition && other.ticket > arrived.ticket;
        let at = self.ready.iter().position(is_later);
        self.ready.insert(at.unwrap_or(self.ready.len()), arrived);
    }

    /// Puts back all that is held.
    pub(crate) fn take_back(&mut self) {
        let seats = self.seats.iter_mut();
        let held: Vec<Held> = seats.flat_map(|(_, seat)| seat.held.drain()).collect();
        for held in held {
            self.put_back(held.arrived);
        }
        self.wake();
    }

    /// Lets go of everything of a partition.
    pub(crate) fn forget(&mut self, partition: PartitionKey) {
        self.ready.retain(|arrived| arrived.partition != partition);
        self.ready_bytes = self
            .ready
            .iter()
            .map(|arrived| arrived.message.byte_len())
            .sum();
        for (_, seat) in &mut self.seats {
            seat.held
                .retain(|_, held| held.arrived.partition != partition);
            // There may be room in its window now.
            if let Some(waker) = seat.waker.take() {
                waker.wake();
            }
        }
    }
}
