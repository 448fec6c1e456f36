//! Waiting for room in something bounded, first come first served.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use parking_lot::Mutex;
use smallvec::SmallVec;

/// Where those wait who found no room.
///
/// As many are woken as there are free places. Who is woken and yet finds none, because somebody who had not waited
/// was quicker, keeps the place in front, so that nobody waits for ever.
#[derive(Debug, Default)]
pub(super) struct Room {
    line: Mutex<Line>,
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    /// Everybody who waits, in order; `None` for those who are woken and have not looked yet.
    wakers: BTreeMap<u64, Option<Waker>>,
}

impl Room {
    /// Whether anybody waits. To be asked after the room was made, under the lock that guards it or later.
    pub(super) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Wakes those who have waited longest.
    pub(super) fn offer(&self, places: usize) {
        let mut woken: SmallVec<[Waker; 8]> = SmallVec::new();
        let mut line = self.line.lock();
        let front = line.wakers.values_mut().take(places);
        woken.extend(front.filter_map(Option::take));
        drop(line);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Wakes everybody: what they wait for is gone.
    pub(super) fn dissolve(&self) {
        self.offer(usize::MAX);
    }

    /// Joins the line.
    pub(super) fn enter(&self) -> Turn<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut line = self.line.lock();
        line.next += 1;
        let number = line.next;
        line.wakers.insert(number, None);
        Turn { room: self, number }
    }
}

/// A place in the line. Whoever leaves it makes the next look for room.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    room: &'a Room,
    number: u64,
}

impl Turn<'_> {
    /// Asks to be woken when there may be room. To be called before room is looked for, each time.
    pub(super) fn watch(&self, waker: &Waker) {
        let mut line = self.room.line.lock();
        if let Some(watching) = line.wakers.get_mut(&self.number) {
            match watching {
                Some(known) => known.clone_from(waker),
                None => *watching = Some(waker.clone()),
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let left = self.room.line.lock().wakers.remove(&self.number);
        drop(left);
        if self.room.waiting.fetch_sub(1, Ordering::SeqCst) > 1 {
            self.room.offer(1);
        }
    }
}
