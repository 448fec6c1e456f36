//! Messages that are kept before anybody subscribes: dead letters, and what a rule declares.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Error, ErrorKind, Message, Pattern};

/// A store that was declared.
pub(super) struct Store {
    pub(super) pattern: Pattern,
    bound: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    next: u64,
    messages: BTreeMap<u64, Message>,
}

/// Ties a dead letter in a subscription's queue to its original in the store.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    store: Arc<Store>,
    number: u64,
}

impl Letter {
    /// Takes the original out of the store: the subscription has dealt with it.
    pub(super) fn done(&self) {
        let removed = self.store.kept.lock().messages.remove(&self.number);
        drop(removed);
    }
}

impl Store {
    pub(super) fn new(pattern: Pattern, bound: usize) -> Self {
        Self {
            pattern,
            bound,
            kept: Mutex::default(),
        }
    }

    /// Whether this keeps dead letters, which are never given up, or messages of which the oldest make room.
    pub(super) fn is_dead_letters(&self) -> bool {
        self.pattern.is_dead_letters()
    }

    /// Keeps a dead letter.
    ///
    /// # Errors
    /// [`ErrorKind::Overloaded`] when the store is full: the caller holds the original.
    pub(super) fn keep_letter(self: &Arc<Self>, message: &Message) -> Result<Letter, Error> {
        let mut kept = self.kept.lock();
        if kept.messages.len() >= self.bound {
            let message = format!(
                "the dead-letter store is full ({} messages); redrive or acknowledge some",
                self.bound
            );
            return Err(Error::new(ErrorKind::Overloaded, message)
                .with_context("subject", self.pattern.wildcards()));
        }
        let number = kept.push(message);
        Ok(Letter {
            store: Arc::clone(self),
            number,
        })
    }

    /// Keeps a message that no subscription took yet; the oldest makes room.
    pub(super) fn keep(&self, message: &Message) {
        let mut kept = self.kept.lock();
        if kept.messages.len() >= self.bound {
            kept.messages.pop_first();
        }
        kept.push(message);
    }

    /// What a new subscription from the earliest starts with. Dead letters stay here until they are acknowledged;
    /// other messages move to the first subscription that asks.
    pub(super) fn earliest(self: &Arc<Self>, pattern: &Pattern) -> Vec<(Message, Option<Letter>)> {
        let mut kept = self.kept.lock();
        if self.is_dead_letters() {
            let letter = |(number, message): (&u64, &Message)| {
                let store = Arc::clone(self);
                let number = *number;
                (message.clone(), Some(Letter { store, number }))
            };
            return kept.messages.iter().map(letter).collect();
        }
        let (moved, left) = std::mem::take(&mut kept.messages)
            .into_iter()
            .partition(|(_, message)| pattern.matches(message.subject()));
        kept.messages = left;
        let moved: BTreeMap<u64, Message> = moved;
        moved.into_values().map(|message| (message, None)).collect()
    }

    /// Copies of all that is kept, oldest first.
    pub(super) fn messages(&self) -> Vec<Message> {
        self.kept.lock().messages.values().cloned().collect()
    }
}

impl Kept {
    fn push(&mut self, message: &Message) -> u64 {
        let number = self.next;
        self.next += 1;
        let mut message = message.clone();
        // What is kept here causes nothing any more.
        message.set_guard(None);
        self.messages.insert(number, message);
        number
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}
