//! The rows that every broker has, against a program written by hand on its client library.

use std::future::Future;

use crate::progress::{IN_FLIGHT, Sending};
use crate::{Measured, Runtime, Table, Wire, alternate};

/// A program on the raw client, with the guarantee that ours has: the same JSON, the same ids, confirmed publishes,
/// explicit acknowledgements, as many in flight.
pub trait Raw: Clone + Send + 'static {
    /// As [`Wire::calls`].
    fn calls(self, callers: u64, count: u64) -> impl Future<Output = Measured> + Send;
    /// As [`Wire::publish`].
    fn publish(
        self,
        size: usize,
        count: u64,
        sending: Sending,
    ) -> impl Future<Output = Measured> + Send;
    /// As [`Wire::consume`].
    fn consume(
        self,
        size: usize,
        count: u64,
        window: usize,
    ) -> impl Future<Output = Measured> + Send;
    /// As [`Wire::both`].
    fn both(self, size: usize, count: u64) -> impl Future<Output = Measured> + Send;
    /// Deletes what the rounds have left on the broker.
    fn clean(self) -> impl Future<Output = ()> + Send;
}

/// How much of it, and which rows.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Multiplies the numbers of messages.
    pub scale: u64,
    /// How often each side runs.
    pub rounds: usize,
    only: String,
}

impl Extent {
    /// `--quick` for a first look, `--only TEXT` for the rows whose names hold it.
    #[must_use]
    pub fn from_args() -> Self {
        let quick = std::env::args().any(|argument| argument == "--quick");
        let mut arguments = std::env::args().skip_while(|argument| argument != "--only");
        let (scale, rounds) = if quick { (1, 3) } else { (4, 7) };
        Self {
            scale,
            rounds,
            only: arguments.nth(1).unwrap_or_default(),
        }
    }

    /// Whether the row is asked for.
    #[must_use]
    pub fn wants(&self, row: &str) -> bool {
        row.contains(&self.only)
    }
}

/// Confirmed publishing, consuming, both and calls. `count` is how many events a second the broker takes, about.
pub fn rows<R: Raw>(table: &mut Table, extent: &Extent, wire: &Wire, raw: &R, count: u64) {
    let mut compare = |name: &str,
                       goal: &str,
                       ours: &mut dyn FnMut() -> Measured,
                       baseline: &mut dyn FnMut() -> Measured| {
        if extent.wants(name) {
            let clean = |measured| {
                Runtime::Two.run(raw.clone().clean());
                measured
            };
            let (ours, raw) = alternate(extent.rounds, || clean(ours()), || clean(baseline()));
            table.row(name, goal, &ours, &raw);
        }
    };
    let count = count * extent.scale;
    for (callers, share) in [(1, 16), (100, 1)] {
        compare(
            &format!("call, {callers} in flight"),
            ">= 0.90",
            &mut || Runtime::Two.run(wire.clone().calls(callers, count / share)),
            &mut || Runtime::Two.run(raw.clone().calls(callers, count / share)),
        );
    }
    for (sending, how, share, goal) in [
        (Sending::OneByOne, "one at a time", 16, ">= 0.90"),
        (Sending::InFlight, "emits, 1,000 in flight", 1, ">= 0.90"),
        (Sending::All, "emit_all, 1,000 in flight", 1, ">= 0.95"),
    ] {
        let raw_sending = match sending {
            Sending::OneByOne => Sending::OneByOne,
            Sending::InFlight | Sending::All => Sending::InFlight,
        };
        compare(
            &format!("publish confirmed, {how}"),
            goal,
            &mut || Runtime::Two.run(wire.clone().publish(128, count / share, sending)),
            &mut || Runtime::Two.run(raw.clone().publish(128, count / share, raw_sending)),
        );
    }
    for (window, what) in [(256, "256 (the default)"), (IN_FLIGHT, "1,000")] {
        compare(
            &format!("consume, {what} unsettled"),
            ">= 0.95",
            &mut || Runtime::Two.run(wire.clone().consume(128, count, window)),
            &mut || Runtime::Two.run(raw.clone().consume(128, count, window)),
        );
    }
    for (sending, how, goal) in [
        (Sending::InFlight, "emits", ">= 0.90"),
        (Sending::All, "emit_all", ">= 0.95"),
    ] {
        compare(
            &format!("publish and consume, {how}"),
            goal,
            &mut || Runtime::Two.run(wire.clone().both(128, count, sending)),
            &mut || Runtime::Two.run(raw.clone().both(128, count)),
        );
    }
}
