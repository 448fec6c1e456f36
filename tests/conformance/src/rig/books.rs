//! Who sent what, and what was handled: the books of one stream of numbered events.

use std::collections::{HashMap, HashSet};
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anywire::{Client, ErrorKind, Result};
use parking_lot::Mutex;

/// How much longer than its deadline anything may take on a busy machine.
pub const SLACK: Duration = Duration::from_secs(1);

/// Books that balance when all that was accepted is handled.
#[derive(Clone, Debug, Default)]
pub struct Books(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    accepted: HashSet<u64>,
    unknown: HashSet<u64>,
    refused: HashMap<u64, String>,
    handled: HashMap<u64, u64>,
    /// Of what was accepted, how much was not handled.
    missing: u64,
    again: u64,
}

/// What the books say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// How many emits have ended.
    pub sent: usize,
    /// How many of them the wire has taken.
    pub accepted: usize,
    /// How many of them it may have taken.
    pub unknown: usize,
    /// How many of them it has not.
    pub refused: usize,
    /// How many different numbers were handled.
    pub handled: usize,
    /// How often one was handled that had been before.
    pub again: u64,
    /// How many were accepted and not handled yet.
    pub lost: u64,
}

impl Books {
    /// A handler that enters what it is given.
    pub fn handler(&self) -> impl Fn(u64) -> Ready<Result<()>> + Send + Sync + 'static + use<> {
        let books = self.clone();
        move |number| {
            books.handle(number);
            ready(Ok(()))
        }
    }

    fn handle(&self, number: u64) {
        let mut entries = self.0.lock();
        let times = entries.handled.entry(number).or_default();
        *times += 1;
        if *times > 1 {
            entries.again += 1;
        } else if entries.accepted.contains(&number) {
            entries.missing -= 1;
        }
    }

    /// Emits the next number, by this deadline.
    ///
    /// # Panics
    /// When it takes longer.
    pub async fn emit(&self, client: &Client, subject: &str, timeout: Duration) {
        let number = {
            let mut entries = self.0.lock();
            entries.next += 1;
            entries.next
        };
        let start = Instant::now();
        let emitted = client.emit(subject, &number).timeout(timeout).await;
        let took = start.elapsed();
        assert!(took < timeout + SLACK, "an emit took {took:?}");
        let mut entries = self.0.lock();
        match emitted {
            Ok(_) => {
                entries.accepted.insert(number);
                entries.missing += u64::from(!entries.handled.contains_key(&number));
            }
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                entries.unknown.insert(number);
            }
            Err(error) => {
                entries.refused.insert(number, error.to_string());
            }
        }
    }

    /// The balance of the moment.
    #[must_use]
    pub fn balance(&self) -> Balance {
        let entries = self.0.lock();
        Balance {
            sent: entries.accepted.len() + entries.unknown.len() + entries.refused.len(),
            accepted: entries.accepted.len(),
            unknown: entries.unknown.len(),
            refused: entries.refused.len(),
            handled: entries.handled.len(),
            again: entries.again,
            lost: entries.missing,
        }
    }

    /// Looks for what came from nowhere.
    ///
    /// # Panics
    /// For what was handled and refused, or never sent.
    pub fn assert_true(&self) {
        let entries = self.0.lock();
        for number in entries.handled.keys() {
            let why = entries.refused.get(number);
            assert!(why.is_none(), "{number} was handled and refused: {why:?}");
            let sent = entries.accepted.contains(number) || entries.unknown.contains(number);
            assert!(sent, "{number} was handled and not sent");
        }
    }
}
