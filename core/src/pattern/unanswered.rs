use std::fmt;
use std::task::{Context, Waker};

use parking_lot::Mutex;
use slab::Slab;

use super::Tag;
use crate::{Error, ErrorKind};

/// The calls that an adapter has handed over and nobody has answered yet, with what it keeps of each.
///
/// It is the window of a [`CallSpec`](super::request_reply::CallSpec), for a wire whose client library has none: pull no more
/// calls than there is [`room`](Self::room), [`begin`](Self::begin) each, and [`end`](Self::end) it with its reply.
///
/// ```
/// use anywire::pattern::request_reply::Unanswered;
/// use futures::task::noop_waker;
///
/// let waker = noop_waker();
/// let mut cx = std::task::Context::from_waker(&waker);
/// let unanswered = Unanswered::new(2);
/// let tag = unanswered.begin("what the reply needs");
/// assert_eq!(unanswered.room(&mut cx), 1);
/// assert_eq!(unanswered.end(tag).unwrap(), "what the reply needs");
/// assert!(unanswered.end(tag).is_err(), "one reply wins");
/// ```
pub struct Unanswered<T = ()> {
    window: usize,
    calls: Mutex<Calls<T>>,
}

struct Calls<T> {
    begun: Slab<Begun<T>>,
    serial: u64,
    waker: Option<Waker>,
}

struct Begun<T> {
    serial: u64,
    kept: T,
}

impl<T> Unanswered<T> {
    /// None yet, and at most `window` of them.
    #[must_use]
    pub fn new(window: usize) -> Self {
        let calls = Calls {
            begun: Slab::new(),
            serial: 0,
            waker: None,
        };
        Self {
            window,
            calls: Mutex::new(calls),
        }
    }

    /// How many calls may begin. Where none may, the task is woken when one ends.
    pub fn room(&self, cx: &mut Context<'_>) -> usize {
        let mut calls = self.calls.lock();
        let room = self.window.saturating_sub(calls.begun.len());
        if room == 0 {
            calls.waker = Some(cx.waker().clone());
        }
        room
    }

    /// Begins a call. The tag names it, and no other one ever.
    pub fn begin(&self, kept: T) -> Tag {
        let mut calls = self.calls.lock();
        calls.serial += 1;
        let serial = calls.serial;
        Tag {
            slot: calls.begun.insert(Begun { serial, kept }) as u64,
            epoch: serial,
        }
    }

    /// Ends a call, and gives what was kept of it.
    ///
    /// # Errors
    /// `Stale` where it ended before.
    pub fn end(&self, tag: Tag) -> Result<T, Error> {
        let mut calls = self.calls.lock();
        let slot = usize::try_from(tag.slot).ok();
        let slot = slot.filter(|slot| {
            let begun = calls.begun.get(*slot);
            begun.is_some_and(|begun| begun.serial == tag.epoch)
        });
        let begun = slot.and_then(|slot| calls.begun.try_remove(slot));
        let begun = begun.ok_or_else(answered)?;
        let waker = calls.waker.take();
        drop(calls);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(begun.kept)
    }
}

impl<T> fmt::Debug for Unanswered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unanswered")
            .field("window", &self.window)
            .field("calls", &self.calls.lock().begun.len())
            .finish()
    }
}

fn answered() -> Error {
    Error::new(
        ErrorKind::Stale,
        "the call was answered before; one reply wins",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::task::{ArcWake, waker};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl ArcWake for Wakes {
        fn wake_by_ref(wakes: &Arc<Self>) {
            wakes.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_full_window_wakes_its_task_when_a_call_ends() {
        let wakes = Arc::new(Wakes::default());
        let waker = waker(Arc::clone(&wakes));
        let mut cx = Context::from_waker(&waker);
        let unanswered = Unanswered::new(2);
        let tags = [1, 2].map(|number| unanswered.begin(number));
        assert_eq!(unanswered.room(&mut cx), 0);
        assert_eq!(unanswered.end(tags[1]).unwrap(), 2);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(unanswered.room(&mut cx), 1);
        assert_eq!(unanswered.end(tags[0]).unwrap(), 1);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "nobody waited");
    }

    #[test]
    fn a_tag_ends_its_own_call_and_no_later_one_in_its_place() {
        let unanswered = Unanswered::new(2);
        let first = unanswered.begin(());
        unanswered.end(first).unwrap();
        let second = unanswered.begin(());
        assert_eq!(first.slot, second.slot);
        assert_eq!(unanswered.end(first).unwrap_err().kind(), ErrorKind::Stale);
        unanswered.end(second).unwrap();
    }
}
