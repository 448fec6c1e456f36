//! NATS: events and calls against programs written by hand on async-nats, with the same guarantee, on the same server.
//!
//! Wants a server: `ANYWIRE_TEST_NATS_URL`, which `tools/brokers env nats` prints.

mod ours;
mod raw;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anywire_benches::{Counting, Measured, Runtime, Table, allocated, alternate, peak_memory};
use tokio::sync::Semaphore;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many events may be on their way from the publisher to the handler: core NATS drops what a subscriber cannot hold.
const ON_THE_WAY: usize = 32 * 1024;
/// How many confirmations are waited for at once.
const IN_FLIGHT: usize = 1000;

/// How events are handed over.
#[derive(Clone, Copy, PartialEq)]
enum Sending {
    /// One after the other, each awaited.
    OneByOne,
    /// One by one, a thousand of them awaited at once.
    InFlight,
    /// A thousand at a time.
    All,
}

/// Tells the publisher that the consumer has caught up, a thousand at a time, and the bench that all is done.
struct Progress {
    room: Semaphore,
    handled: AtomicU64,
    first: std::sync::OnceLock<(Instant, u64)>,
    done: tokio::sync::Notify,
    count: u64,
}

impl Progress {
    fn new(count: u64) -> Arc<Self> {
        Arc::new(Self {
            room: Semaphore::new(ON_THE_WAY),
            handled: AtomicU64::new(0),
            first: std::sync::OnceLock::new(),
            done: tokio::sync::Notify::new(),
            count,
        })
    }

    fn handle(&self, text: &str) {
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
    async fn before(&self, number: u64) {
        if number.is_multiple_of(1024) {
            let room = self.room.acquire_many(1024).await.expect("never closed");
            room.forget();
        }
    }

    async fn all(&self) {
        self.done.notified().await;
    }

    /// From the first one that was handled to now.
    fn since_first(&self) -> Measured {
        let (start, allocated) = *self.first.get().expect("something was handled");
        Measured::since(start, allocated, self.count)
    }
}

/// A payload whose JSON has so many bytes.
fn text(size: usize) -> String {
    "x".repeat(size - 2)
}

/// A first token that no round before had: each round has its own stream.
fn fresh() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("bench{}x{number}", std::process::id())
}

fn main() {
    let url = std::env::var("ANYWIRE_TEST_NATS_URL")
        .expect("ANYWIRE_TEST_NATS_URL: start a server with `tools/brokers start nats`");
    let quick = std::env::args().any(|argument| argument == "--quick");
    let only = std::env::args()
        .skip_while(|argument| argument != "--only")
        .nth(1)
        .unwrap_or_default();
    let (scale, rounds) = if quick { (1, 3) } else { (4, 7) };
    let mut table = Table::default();
    Table::heading();
    let wanted = |name: &str| name.contains(&only);
    for size in [128, 1024] {
        for (sending, how, goal) in [
            (Sending::OneByOne, "emit", ">= 0.90"),
            (Sending::All, "emit_all", ">= 0.95"),
        ] {
            let name = format!("core, publish to subscriber, {size} B, {how}");
            let count = 100 * 1024 * scale;
            if wanted(&name) {
                let (one, other) = (url.clone(), url.clone());
                let (ours, raw) = alternate(
                    rounds,
                    || Runtime::Two.run(ours::core(one.clone(), size, count, sending)),
                    || Runtime::Two.run(raw::core(other.clone(), size, count)),
                );
                table.row(&name, goal, &ours, &raw);
            }
        }
    }
    for callers in [1, 100] {
        let name = format!("call, {callers} in flight");
        let count = scale * if callers == 1 { 5_000 } else { 50_000 };
        if wanted(&name) {
            let (ours, raw) = alternate(
                rounds,
                || Runtime::Two.run(ours::calls(url.clone(), callers, count)),
                || Runtime::Two.run(raw::calls(url.clone(), callers, count)),
            );
            table.row(&name, ">= 0.90", &ours, &raw);
        }
    }
    for (sending, how, count, goal) in [
        (Sending::OneByOne, "one at a time", 4_096, ">= 0.90"),
        (
            Sending::InFlight,
            "emits, 1,000 in flight",
            40_960,
            ">= 0.90",
        ),
        (Sending::All, "emit_all, 1,000 in flight", 40_960, ">= 0.95"),
    ] {
        let name = format!("JetStream, publish confirmed, {how}");
        if wanted(&name) {
            let count = count * scale;
            let raw_sending = match sending {
                Sending::OneByOne => Sending::OneByOne,
                Sending::InFlight | Sending::All => Sending::InFlight,
            };
            let (ours, raw) = alternate(
                rounds,
                || Runtime::Two.run(ours::publish(url.clone(), 128, count, sending)),
                || Runtime::Two.run(raw::publish(url.clone(), 128, count, raw_sending)),
            );
            table.row(&name, goal, &ours, &raw);
        }
    }
    let count = 40_960 * scale;
    let name = "JetStream, consume, explicit acks";
    if wanted(name) {
        let (ours, raw) = alternate(
            rounds,
            || Runtime::Two.run(ours::consume(url.clone(), 128, count)),
            || Runtime::Two.run(raw::consume(url.clone(), 128, count)),
        );
        table.row(name, ">= 0.95", &ours, &raw);
    }
    let name = "JetStream, publish and consume";
    if wanted(name) {
        let (ours, raw) = alternate(
            rounds,
            || Runtime::Two.run(ours::both(url.clone(), 128, count)),
            || Runtime::Two.run(raw::both(url.clone(), 128, count)),
        );
        table.row(name, ">= 0.90", &ours, &raw);
    }
    if let Some(peak) = peak_memory() {
        println!("\npeak memory of the whole run: {peak} MiB");
    }
}
