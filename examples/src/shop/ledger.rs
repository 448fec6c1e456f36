//! The customer's books: what was sent, and what became of it.
//!
//! Messages may come twice, and late. So an entry is closed by the first end that it is told of, and whatever is not open
//! is none of our business: an end that was told before, or somebody else's order.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::summary::Summary;

/// What was sent and has not ended yet, and the counts of what has.
#[derive(Debug, Default)]
pub struct Ledger {
    summary: Summary,
    /// Every order's id so far, to know one that is repeated.
    known: HashSet<String>,
    orders: HashMap<String, Open>,
    /// The ids of the messages that nobody can decode.
    undecodable: HashSet<String>,
    all_sent: bool,
    told: u64,
}

/// An order that waits for its two ends.
#[derive(Debug, Default)]
struct Open {
    charge: Option<End>,
    reserve: Option<End>,
}

/// How a part of an order ended; `Err` holds the reason of a dead letter.
type End = Result<(), String>;

/// A part of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It is charged.
    Charge,
    /// It is reserved.
    Reserve,
}

impl Ledger {
    /// A line was read.
    pub fn read(&mut self) {
        self.summary.read += 1;
    }

    /// It was blank.
    pub fn blank(&mut self) {
        self.summary.blank += 1;
    }

    /// It was longer than a line may be.
    pub fn too_long(&mut self) {
        self.summary.too_long += 1;
    }

    /// The input ended before its end.
    pub fn cut(&mut self, reason: &str) {
        self.summary.cut = Some(reason.to_owned());
    }

    /// The shop refused to quote it.
    pub fn refused(&mut self, reason: &str) {
        count(&mut self.summary.refused, reason);
    }

    /// The call took so long.
    pub fn quoted(&mut self, latency: Duration) {
        self.summary.quotes.push(latency);
    }

    /// It could not be sent.
    pub fn unsent(&mut self, reason: &str) {
        count(&mut self.summary.unsent, reason);
    }

    /// Opens an order that is about to be placed. `false`: there was one of this id before, which is all there is to it.
    pub fn place(&mut self, order: &str) -> bool {
        if !self.known.insert(order.to_owned()) {
            self.summary.repeated += 1;
            return false;
        }
        self.summary.placed += 1;
        self.orders.insert(order.to_owned(), Open::default());
        true
    }

    /// The order that was to be placed was not.
    pub fn not_placed(&mut self, order: &str, reason: &str) {
        if self.orders.remove(order).is_some() {
            self.summary.placed -= 1;
            self.unsent(reason);
        }
    }

    /// Opens a line that nobody can decode and that is about to be sent as the message `id`.
    pub fn send_undecodable(&mut self, id: &str) {
        self.summary.undecodable += 1;
        self.undecodable.insert(id.to_owned());
    }

    /// The line that was to be sent was not.
    pub fn not_sent(&mut self, id: &str, reason: &str) {
        if self.undecodable.remove(id) {
            self.summary.undecodable -= 1;
            self.unsent(reason);
        }
    }

    /// Part of an order is done, at this attempt.
    pub fn done(&mut self, order: &str, part: Part, attempts: u32) {
        self.end(order, part, attempts, Ok(()));
    }

    /// Part of an order is a dead letter, after so many attempts.
    pub fn dead(&mut self, order: &str, part: Part, attempts: u32, reason: &str) {
        self.end(order, part, attempts, Err(reason.to_owned()));
    }

    /// A message that nobody could decode is a dead letter. `false`: it was none of ours.
    pub fn dead_undecodable(&mut self, id: &str, reason: &str) -> bool {
        let ours = self.undecodable.remove(id);
        if ours {
            self.told += 1;
            count(&mut self.summary.dead_undecodable, reason);
        }
        ours
    }

    /// Nothing more will be sent.
    pub fn all_sent(&mut self) {
        self.all_sent = true;
    }

    /// Whether all was sent and has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.all_sent && self.orders.is_empty() && self.undecodable.is_empty()
    }

    /// Grows with each end that is told: whoever waits can see that it goes on. `None` while there is more to send.
    #[must_use]
    pub fn told(&self) -> Option<u64> {
        self.all_sent.then_some(self.told)
    }

    /// The counts so far.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Closes the books after so long.
    #[must_use]
    pub fn close(self, elapsed: Duration) -> Summary {
        let mut summary = self.summary;
        summary.elapsed = elapsed;
        summary.quotes.sort_unstable();
        summary.open = self.orders.into_keys().collect();
        summary.open.sort_unstable();
        summary.open_undecodable = self.undecodable.len() as u64;
        summary
    }

    fn end(&mut self, order: &str, part: Part, attempts: u32, end: End) {
        let Some(open) = self.orders.get_mut(order) else {
            return;
        };
        let slot = match part {
            Part::Charge => &mut open.charge,
            Part::Reserve => &mut open.reserve,
        };
        if slot.is_some() {
            return;
        }
        *slot = Some(end);
        self.told += 1;
        self.summary.retried += u64::from(attempts.saturating_sub(1));
        let (Some(charge), Some(reserve)) = (&open.charge, &open.reserve) else {
            return;
        };
        match charge.as_ref().and(reserve.as_ref()) {
            Ok(()) => self.summary.fulfilled += 1,
            Err(reason) => count(&mut self.summary.dead, reason),
        }
        self.orders.remove(order);
    }
}

fn count(counts: &mut std::collections::BTreeMap<String, u64>, reason: &str) {
    *counts.entry(reason.to_owned()).or_default() += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(ids: &[&str]) -> Ledger {
        let mut ledger = Ledger::default();
        for id in ids {
            ledger.read();
            assert!(ledger.place(id));
        }
        ledger.all_sent();
        ledger
    }

    #[test]
    fn an_order_that_is_told_of_twice_counts_once() {
        let mut ledger = placed(&["a", "b"]);
        for _ in 0..2 {
            ledger.done("a", Part::Charge, 3);
        }
        for _ in 0..2 {
            ledger.done("a", Part::Reserve, 1);
        }
        ledger.dead("b", Part::Charge, 2, "declined");
        ledger.done("b", Part::Charge, 1);
        ledger.done("b", Part::Reserve, 1);
        assert!(ledger.is_over());
        let summary = ledger.close(Duration::from_secs(1));
        assert_eq!(summary.problems(), [""; 0]);
        assert_eq!((summary.fulfilled, summary.retried), (1, 3));
        assert_eq!(summary.dead["declined"], 1);
    }

    #[test]
    fn an_order_that_is_repeated_is_not_placed_again() {
        let mut ledger = placed(&["a"]);
        ledger.read();
        assert!(!ledger.place("a"));
        ledger.done("a", Part::Charge, 1);
        ledger.done("a", Part::Reserve, 1);
        assert!(!ledger.place("a"));
        assert_eq!(ledger.summary().repeated, 2);
        assert_eq!(ledger.summary().placed, 1);
    }

    #[test]
    fn a_stranger_changes_nothing() {
        let mut ledger = placed(&["a"]);
        ledger.done("b", Part::Charge, 9);
        assert!(!ledger.dead_undecodable("x", "y"));
        assert_eq!((ledger.told(), ledger.summary().retried), (Some(0), 0));
    }

    #[test]
    fn an_order_without_its_second_end_is_missing() {
        let mut ledger = placed(&["a"]);
        ledger.done("a", Part::Charge, 1);
        assert!(!ledger.is_over());
        let problems = ledger.close(Duration::ZERO).problems();
        assert!(problems.join("\n").contains("a"), "{problems:?}");
    }
}
