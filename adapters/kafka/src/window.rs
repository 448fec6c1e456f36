//! What is under way to the brokers: bounded, and told apart by a number that the library carries along.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use rdkafka::error::RDKafkaErrorCode as Code;
use slab::Slab;
use smallvec::SmallVec;
use tokio::sync::Notify;

/// The messages that were handed to the library and have no report yet.
#[derive(Debug)]
pub(crate) struct Window {
    pending: Mutex<Pending>,
    /// Told when there is room again.
    room: Notify,
    max_count: usize,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Pending {
    messages: Slab<Sent>,
    bytes: usize,
    /// How many wait for room, so that nobody is woken for nothing.
    waiting: usize,
}

impl Pending {
    fn takes(&self, bytes: usize, most: usize) -> bool {
        self.messages.is_empty() || self.bytes + bytes <= most
    }
}

#[derive(Debug)]
struct Sent {
    /// Who wants to know; nobody does of a message that may be lost.
    tally: Option<(Arc<Tally>, usize)>,
    bytes: usize,
}

impl Window {
    pub(crate) fn new(max_count: usize, max_bytes: usize) -> Self {
        Self {
            pending: Mutex::default(),
            room: Notify::new(),
            max_count,
            max_bytes,
        }
    }

    /// Takes a place; the number names it to the library. `None` where there is no room. A message that alone is over the
    /// bound of bytes goes when nothing else is under way.
    pub(crate) fn enter(&self, tally: Option<(Arc<Tally>, usize)>, bytes: usize) -> Option<usize> {
        let mut pending = self.pending.lock();
        if pending.messages.len() >= self.max_count || !pending.takes(bytes, self.max_bytes) {
            return None;
        }
        pending.bytes += bytes;
        Some(pending.messages.insert(Sent { tally, bytes }))
    }

    /// A message was reported, or not taken by the library.
    pub(crate) fn leave(&self, number: usize) -> Option<(Arc<Tally>, usize)> {
        let mut pending = self.pending.lock();
        let sent = pending.messages.try_remove(number)?;
        pending.bytes -= sent.bytes;
        // Half of it is worth waking for: not each single place.
        let wake = pending.waiting > 0 && pending.messages.len() <= self.max_count / 2;
        drop(pending);
        if wake {
            self.room.notify_waiters();
        }
        sent.tally
    }

    /// Waits until there may be room for a message.
    pub(crate) async fn wait(&self, bytes: usize) {
        let _waiting = Waiting::new(self);
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.has_room(bytes) {
                return;
            }
            room.await;
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        let pending = self.pending.lock();
        pending.messages.len() <= self.max_count / 2 && pending.takes(bytes, self.max_bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.lock().messages.is_empty()
    }
}

/// Somebody who waits for room.
struct Waiting<'a>(&'a Window);

impl<'a> Waiting<'a> {
    fn new(window: &'a Window) -> Self {
        window.pending.lock().waiting += 1;
        Self(window)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.pending.lock().waiting -= 1;
    }
}

/// What became of the messages of one batch. One allocation for all of them.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    reports: SmallVec<[Report; 8]>,
    open: usize,
    waker: Option<Waker>,
}

/// What is known about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// It was not handed over.
    Unsent,
    /// The library has it.
    Sent,
    /// The brokers have it.
    Stored,
    Failed(Code),
}

impl Tally {
    pub(crate) fn new(count: usize) -> Self {
        Self(Mutex::new(Counts {
            reports: SmallVec::from_elem(Report::Unsent, count),
            ..Counts::default()
        }))
    }

    /// A message is about to be handed over.
    pub(crate) fn begin(&self, at: usize) {
        let mut counts = self.0.lock();
        if let Some(report) = counts.reports.get_mut(at) {
            *report = Report::Sent;
            counts.open += 1;
        }
    }

    /// It was handed back.
    pub(crate) fn take_back(&self, at: usize) {
        let mut counts = self.0.lock();
        if let Some(report) = counts.reports.get_mut(at) {
            *report = Report::Unsent;
            counts.open -= 1;
        }
    }

    /// A message has come to its end.
    pub(crate) fn end(&self, at: usize, ended: Report) {
        let mut counts = self.0.lock();
        let Some(report) = counts.reports.get_mut(at) else {
            return;
        };
        *report = ended;
        counts.open -= 1;
        if counts.open == 0
            && let Some(waker) = counts.waker.take()
        {
            drop(counts);
            waker.wake();
        }
    }

    /// Whether all that was handed over has come to its end.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut counts = self.0.lock();
        if counts.open == 0 {
            return Poll::Ready(());
        }
        if !counts
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            counts.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(crate) fn report(&self, at: usize) -> Report {
        let counts = self.0.lock();
        counts.reports.get(at).copied().unwrap_or(Report::Unsent)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_full_window_takes_nothing_until_half_of_it_is_done() {
        let window = Window::new(4, 100);
        let places: Vec<_> = std::iter::from_fn(|| window.enter(None, 1)).collect();
        assert_eq!(places.len(), 4);
        let mut waiting = Box::pin(window.wait(1));
        assert!((&mut waiting).now_or_never().is_none());
        window.leave(places[0]);
        assert!(
            (&mut waiting).now_or_never().is_none(),
            "one place is not worth it"
        );
        window.leave(places[1]);
        assert!(waiting.now_or_never().is_some());
    }

    #[test]
    fn bytes_are_bounded_but_a_giant_goes_alone() {
        let window = Window::new(4, 10);
        let giant = window.enter(None, 50).unwrap();
        assert!(window.enter(None, 1).is_none());
        window.leave(giant);
        assert!(window.enter(None, 6).is_some());
        assert!(window.enter(None, 6).is_none());
        assert!(window.enter(None, 4).is_some());
    }

    #[test]
    fn who_waits_for_more_bytes_than_there_are_sleeps_until_there_are() {
        let window = Window::new(100, 100);
        let places: Vec<_> = (0..4).map(|_| window.enter(None, 10).unwrap()).collect();
        assert!(window.enter(None, 70).is_none());
        let mut waiting = Box::pin(window.wait(70));
        assert!((&mut waiting).now_or_never().is_none());
        for (number, place) in places.into_iter().enumerate() {
            let is_there = (&mut waiting).now_or_never().is_some();
            assert_eq!(is_there, number > 0, "after {number}");
            if is_there {
                return;
            }
            window.leave(place);
        }
    }
}
