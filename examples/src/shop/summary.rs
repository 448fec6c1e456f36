//! The summary of a run, which balances to the last line, or says what is missing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How many of a list are shown.
const SHOWN: usize = 8;

/// The counts of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Lines read.
    pub read: u64,
    /// Lines with nothing on them.
    pub blank: u64,
    /// Lines that were too long to be looked at.
    pub too_long: u64,
    /// Orders whose id came before.
    pub repeated: u64,
    /// Orders that the shop did not quote, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Lines that could not be sent, by reason.
    pub unsent: BTreeMap<String, u64>,
    /// Lines that no order can be read from, sent as they came.
    pub undecodable: u64,
    /// Orders placed.
    pub placed: u64,
    /// Orders charged and reserved.
    pub fulfilled: u64,
    /// Orders of which a part is a dead letter, by reason.
    pub dead: BTreeMap<String, u64>,
    /// Dead letters of undecodable lines, by reason.
    pub dead_undecodable: BTreeMap<String, u64>,
    /// Attempts that failed and were tried again.
    pub retried: u64,
    /// How long the calls took, in order.
    pub quotes: Vec<Duration>,
    /// How long it all took.
    pub elapsed: Duration,
    /// The orders of which nothing more was heard.
    pub open: Vec<String>,
    /// The undecodable lines of which nothing more was heard.
    pub open_undecodable: u64,
    /// Why the input could not be read to its end.
    pub cut: Option<String>,
    /// Whether the run was told to stop before the input's end.
    pub stopped: bool,
}

impl Summary {
    /// What does not balance, a sentence each. Empty: every line is accounted for.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut balance = |what: &str, left: u64, parts: u64| {
            if left != parts {
                problems.push(format!("{left} {what}, but {parts} accounted for"));
            }
        };
        let lines = self.blank
            + self.too_long
            + self.repeated
            + total(&self.refused)
            + total(&self.unsent)
            + self.undecodable
            + self.placed;
        balance("lines read", self.read, lines);
        balance(
            "orders placed",
            self.placed,
            self.fulfilled + total(&self.dead),
        );
        let letters = total(&self.dead_undecodable);
        balance("undecodable lines sent", self.undecodable, letters);
        if !self.open.is_empty() {
            let shown = list(self.open.iter().cloned(), self.open.len());
            problems.push(format!("nothing more was heard of {shown}"));
        }
        if !self.unsent.is_empty() {
            let reasons = reasons(&self.unsent);
            problems.push(format!("some lines could not be sent: {reasons}"));
        }
        if let Some(cut) = &self.cut {
            problems.push(format!("the input could not be read to its end: {cut}"));
        }
        problems
    }

    /// The latency that so many percent of the calls did not exceed.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.quotes.len().saturating_sub(1);
        self.quotes
            .get(last * percent / 100)
            .copied()
            .unwrap_or_default()
    }

    /// Orders placed per second.
    #[must_use]
    pub fn rate(&self) -> u64 {
        let millis = u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX);
        self.placed * 1000 / millis.max(1)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        writeln!(f, "{:>7} lines read in {seconds:.1} s", self.read)?;
        row(f, self.blank, "blank", "")?;
        row(f, self.too_long, "too long", "")?;
        row(f, self.repeated, "repeated", "")?;
        row(f, total(&self.refused), "refused", &reasons(&self.refused))?;
        row(f, total(&self.unsent), "not sent", &reasons(&self.unsent))?;
        row(f, self.undecodable, "undecodable", "")?;
        row(f, self.placed, "placed", "")?;
        writeln!(f, "{:>7} orders placed", self.placed)?;
        row(f, self.fulfilled, "charged and reserved", "")?;
        row(f, total(&self.dead), "dead-lettered", &reasons(&self.dead))?;
        writeln!(f, "{:>7} undecodable lines", self.undecodable)?;
        let letters = &self.dead_undecodable;
        row(f, total(letters), "dead-lettered", &reasons(letters))?;
        writeln!(
            f,
            "{:>7} attempts retried; {} orders/s; quote p50 {:.2?}, p99 {:.2?}",
            self.retried,
            self.rate(),
            self.percentile(50),
            self.percentile(99),
        )?;
        if self.stopped {
            writeln!(f, "stopped before the end of the input")?;
        }
        let problems = self.problems();
        if problems.is_empty() {
            return f.write_str("every line is accounted for");
        }
        write!(f, "it does not balance: {}", problems.join("; "))
    }
}

pub(super) fn row(
    f: &mut fmt::Formatter<'_>,
    count: u64,
    what: &str,
    reasons: &str,
) -> fmt::Result {
    match (count, reasons) {
        (0, _) => Ok(()),
        (_, "") => writeln!(f, "  {count:>7} {what}"),
        _ => writeln!(f, "  {count:>7} {what}: {reasons}"),
    }
}

pub(super) fn total(counts: &BTreeMap<String, u64>) -> u64 {
    counts.values().sum()
}

/// The reasons, the most frequent first.
pub(super) fn reasons(counts: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let shown = sorted
        .into_iter()
        .map(|(reason, count)| format!("{count} {reason}"));
    list(shown, counts.len())
}

fn list(items: impl Iterator<Item = String>, count: usize) -> String {
    let mut shown: Vec<String> = items.take(SHOWN).collect();
    if count > SHOWN {
        shown.push(format!("{} more", count - SHOWN));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balanced() -> Summary {
        Summary {
            read: 10,
            blank: 1,
            too_long: 1,
            repeated: 1,
            refused: BTreeMap::from([("unknown_item".to_owned(), 2)]),
            undecodable: 2,
            placed: 3,
            fulfilled: 2,
            dead: BTreeMap::from([("declined".to_owned(), 1)]),
            dead_undecodable: BTreeMap::from([("missing field".to_owned(), 2)]),
            ..Summary::default()
        }
    }

    #[test]
    fn a_summary_balances_only_to_the_last_line() {
        assert_eq!(balanced().problems(), [""; 0]);
        type Break = fn(&mut Summary);
        let breaks: [(Break, &str); 7] = [
            (|it| it.cut = Some("disk on fire".into()), "disk on fire"),
            (|it| it.read += 1, "11 lines read, but 10"),
            (|it| it.fulfilled -= 1, "3 orders placed, but 2"),
            (|it| it.dead.clear(), "3 orders placed, but 2"),
            (|it| it.dead_undecodable.clear(), "2 undecodable lines"),
            (|it| it.open.push("o-7".into()), "o-7"),
            (
                |it| {
                    it.read += 1;
                    it.unsent.insert("timed out".into(), 1);
                },
                "timed out",
            ),
        ];
        for (broken, tells) in breaks {
            let mut summary = balanced();
            broken(&mut summary);
            let problems = summary.problems().join("; ");
            assert!(problems.contains(tells), "{problems:?} lacks {tells:?}");
            assert!(summary.to_string().contains("does not balance"));
        }
    }

    #[test]
    fn a_percentile_is_one_of_the_latencies() {
        let mut summary = Summary::default();
        assert_eq!(summary.percentile(99), Duration::ZERO);
        summary.quotes = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(summary.percentile(50), Duration::from_millis(50));
        assert_eq!(summary.percentile(99), Duration::from_millis(99));
        assert_eq!(summary.percentile(100), Duration::from_millis(100));
    }
}
