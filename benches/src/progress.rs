//! How far a round is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};

use crate::{Measured, allocated};

/// How many events may be on their way from the publisher to the handler, where the wire drops what a subscriber cannot hold.
const ON_THE_WAY: usize = 32 * 1024;
/// How many confirmations are waited for at once.
pub const IN_FLIGHT: usize = 1000;

/// How events are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// One after the other, each awaited.
    OneByOne,
    /// One by one, a thousand of them awaited at once.
    InFlight,
    /// A thousand at a time.
    All,
}

/// Does something so many times, one after the other. Gives how long each took.
pub async fn one_by_one<F>(count: u64, mut once: impl FnMut() -> F) -> Vec<Duration>
where
    F: Future<Output = ()>,
{
    let mut samples = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        once().await;
        samples.push(begun.elapsed());
    }
    samples
}

/// Tells the publisher that the consumer has caught up, a thousand at a time, and the bench that all is done.
#[derive(Debug)]
pub struct Progress {
    room: Semaphore,
    handled: AtomicU64,
    first: OnceLock<(Instant, u64)>,
    done: Notify,
    count: u64,
}

impl Progress {
    /// Of so many events.
    #[must_use]
    pub fn new(count: u64) -> Arc<Self> {
        Arc::new(Self {
            room: Semaphore::new(ON_THE_WAY),
            handled: AtomicU64::new(0),
            first: OnceLock::new(),
            done: Notify::new(),
            count,
        })
    }

    /// How many there are in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What a handler does.
    pub fn handle(&self, text: &str) {
        std::hint::black_box(text);
        let before = self.handled.fetch_add(1, Ordering::Relaxed);
        if before == 0 {
            let _ = self.first.set((Instant::now(), allocated()));
        }
        if (before + 1).is_multiple_of(1024) {
            self.room.add_permits(1024);
        }
        if before + 1 == self.count {
            self.done.notify_one();
        }
    }

    /// Waits for room for a thousand more. To be asked with every number.
    pub async fn before(&self, number: u64) {
        if number.is_multiple_of(1024) {
            let room = self.room.acquire_many(1024).await.expect("never closed");
            room.forget();
        }
    }

    /// Waits until all are handled.
    pub async fn all(&self) {
        self.done.notified().await;
    }

    /// From the first one that was handled to now.
    #[must_use]
    pub fn since_first(&self) -> Measured {
        let (start, allocated) = *self.first.get().expect("something was handled");
        Measured::since(start, allocated, self.count)
    }
}

/// A payload whose JSON has so many bytes.
#[must_use]
pub fn text(size: usize) -> String {
    "x".repeat(size - 2)
}

/// A first token that no round before had: each round has objects of its own on the broker.
#[must_use]
pub fn fresh() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("bench{}x{number}", std::process::id())
}
