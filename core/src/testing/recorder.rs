//! What a test can ask about: what was emitted, and what became of it.

use std::fmt;

use parking_lot::Mutex;

use crate::Message;

/// The most entries that a record keeps; a test that needs more counts for itself.
const MAX_ENTRIES: usize = 100_000;

/// What a handler made of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It ended well.
    Handled,
    /// An attempt failed and is tried again.
    Retried,
    /// It became a dead letter.
    DeadLettered,
    /// It was not worth keeping.
    Discarded,
}

/// One outcome of one attempt.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The handler.
    pub handler: String,
    /// The message.
    pub message: Message,
    /// What became of it.
    pub outcome: Outcome,
    /// The failure's text, where it failed.
    pub error: Option<String>,
}

/// The record of a test.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Record>);

#[derive(Default)]
struct Record {
    emitted: Vec<Message>,
    unrouted: Vec<Message>,
    outcomes: Vec<Recorded>,
}

impl Recorder {
    pub(crate) fn emitted(&self, message: &Message) {
        push(&mut self.0.lock().emitted, unguarded(message));
    }

    pub(crate) fn unrouted(&self, message: &Message) {
        push(&mut self.0.lock().unrouted, unguarded(message));
    }

    pub(crate) fn outcome(
        &self,
        handler: &str,
        message: &Message,
        outcome: Outcome,
        error: Option<String>,
    ) {
        let recorded = Recorded {
            handler: handler.to_owned(),
            message: unguarded(message),
            outcome,
            error,
        };
        push(&mut self.0.lock().outcomes, recorded);
    }

    pub(super) fn all_emitted(&self) -> Vec<Message> {
        self.0.lock().emitted.clone()
    }

    pub(super) fn all_unrouted(&self) -> Vec<Message> {
        self.0.lock().unrouted.clone()
    }

    pub(super) fn outcomes(&self) -> Vec<Recorded> {
        self.0.lock().outcomes.clone()
    }
}

/// A record must not keep what it records from being done.
fn unguarded(message: &Message) -> Message {
    let mut message = message.clone();
    message.set_guard(None);
    message
}

fn push<T>(entries: &mut Vec<T>, entry: T) {
    if entries.len() < MAX_ENTRIES {
        entries.push(entry);
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}
