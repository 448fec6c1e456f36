//! The framework's own time, so that a test can own it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

/// Where the framework reads the time and arms its timers. Deadlines, back-off and delays all run on it.
///
/// An implementor must keep `now` monotonic, and must never let `now` and timers disagree: when a timer ends, `now` is at
/// or past its instant.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The monotonic time.
    fn now(&self) -> Instant;

    /// The calendar time, for stamps only: no timeout is ever computed from it.
    fn wall(&self) -> SystemTime;

    /// A future that ends at `deadline`, at once if that has passed. Dropping it disarms the timer.
    fn sleep_until(&self, deadline: Instant) -> Sleep;
}

/// As far ahead as a deadline is set: a time beyond that is as good as never, and adding it to an instant may panic.
const FOREVER: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

/// The instant that lies `time` after `now`; never, for a time that no instant can tell.
pub(crate) fn after(now: Instant, time: Duration) -> Instant {
    now + time.min(FOREVER)
}

/// A timer of a [`Clock`].
pub struct Sleep(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Sleep {
    /// Wraps the clock's own timer.
    pub fn new(timer: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Box::pin(timer))
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sleep")
    }
}

/// tokio's time: the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioClock;

impl Clock for TokioClock {
    fn now(&self) -> Instant {
        // Not the operating system's: a test may have paused tokio's time, and timers run on that.
        tokio::time::Instant::now().into_std()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep::new(tokio::time::sleep_until(deadline.into()))
    }
}

/// A clock that stands still until it is advanced. Clones share the time.
///
/// ```
/// # use std::time::Duration;
/// use anywire::clock::{Clock, ManualClock};
///
/// let clock = ManualClock::new();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now() - before, Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<parking_lot::Mutex<Manual>>);

#[derive(Debug)]
struct Manual {
    now: Instant,
    wall: SystemTime,
    next_timer: u64,
    timers: std::collections::BTreeMap<(Instant, u64), std::task::Waker>,
}

impl ManualClock {
    /// A clock that stands at the present.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(parking_lot::Mutex::new(Manual {
            now: Instant::now(),
            wall: SystemTime::now(),
            next_timer: 0,
            timers: std::collections::BTreeMap::new(),
        })))
    }

    /// Moves the time on and wakes the timers that have ended.
    pub fn advance(&self, by: Duration) {
        let target = after(self.0.lock().now, by);
        self.move_to(target);
    }

    /// Moves the time to the next armed timer. `false` where none is armed.
    #[must_use = "false means that no timer is armed"]
    pub fn advance_to_next(&self) -> bool {
        let next = self.next_timer();
        next.inspect(|at| self.move_to(*at)).is_some()
    }

    /// When the next armed timer ends.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        self.0.lock().timers.keys().next().map(|(at, _)| *at)
    }

    fn move_to(&self, target: Instant) {
        let mut woken = Vec::new();
        {
            let mut manual = self.0.lock();
            let step = target.saturating_duration_since(manual.now);
            manual.now += step;
            manual.wall += step;
            while let Some(entry) = manual.timers.first_entry()
                && entry.key().0 <= target
            {
                woken.push(entry.remove());
            }
        }
        woken.into_iter().for_each(std::task::Waker::wake);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.0.lock().now
    }

    fn wall(&self) -> SystemTime {
        self.0.lock().wall
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep::new(ManualTimer {
            clock: self.clone(),
            deadline,
            id: None,
        })
    }
}

struct ManualTimer {
    clock: ManualClock,
    deadline: Instant,
    id: Option<u64>,
}

impl Future for ManualTimer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut manual = this.clock.0.lock();
        if manual.now >= this.deadline {
            return Poll::Ready(());
        }
        let id = *this.id.get_or_insert_with(|| {
            manual.next_timer += 1;
            manual.next_timer
        });
        manual
            .timers
            .insert((this.deadline, id), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for ManualTimer {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.clock.0.lock().timers.remove(&(self.deadline, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn timers_end_when_their_time_comes_and_not_before() {
        let clock = ManualClock::new();
        let start = clock.now();
        let timer = tokio::spawn(clock.sleep_until(start + Duration::from_secs(5)));
        while clock.next_timer().is_none() {
            tokio::task::yield_now().await;
        }
        clock.advance(Duration::from_secs(4));
        tokio::task::yield_now().await;
        assert!(!timer.is_finished());
        assert!(clock.advance_to_next());
        timer.await.unwrap();
        assert_eq!(clock.now(), start + Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn the_default_clock_agrees_with_its_timers_when_time_is_paused() {
        let start = TokioClock.now();
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(TokioClock.now() - start, Duration::from_secs(30));
        let deadline = TokioClock.now() + Duration::from_secs(5);
        let mut timer = TokioClock.sleep_until(deadline);
        assert!(futures::poll!(&mut timer).is_pending());
        timer.await;
        assert!(TokioClock.now() >= deadline);
    }

    #[tokio::test]
    async fn a_dropped_timer_is_disarmed() {
        let clock = ManualClock::new();
        let mut timer = clock.sleep_until(clock.now() + Duration::from_secs(5));
        assert!(futures::poll!(&mut timer).is_pending());
        drop(timer);
        assert_eq!(clock.next_timer(), None);
    }
}
