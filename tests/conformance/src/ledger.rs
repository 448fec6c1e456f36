//! Who sent what, and who got it: rules R1 and R2.

use std::collections::{BTreeMap, HashMap};

use anywire::pattern::publish_subscribe::{Entry, Published};
use anywire::{ContentType, Message, MessageId};

/// The books of one receiver: what was published for it, and what it received.
///
/// They balance when `confirmed ⊆ received ⊆ confirmed ∪ unknown` and duplicates stay below their ceiling. Duplicates are
/// counted, never dropped. Every message that arrives is compared with what was sent.
///
/// Methods panic where the books cannot balance any more: that is how a test reports.
#[derive(Debug, Default)]
pub struct Ledger {
    accounts: HashMap<MessageId, Account>,
    /// Accounts that are confirmed and have not arrived.
    missing: usize,
    repeated: usize,
}

/// One message.
#[derive(Debug)]
struct Account {
    sent: Message,
    confirmed: bool,
    arrivals: usize,
}

impl Ledger {
    /// Empty books.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Books for these messages, all of them confirmed.
    pub fn of<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Self {
        let mut ledger = Self::new();
        ledger.confirm(messages);
        ledger
    }

    /// Enters messages that the wire has confirmed.
    pub fn confirm<'a>(&mut self, messages: impl IntoIterator<Item = &'a Message>) {
        for message in messages {
            self.open(message, true);
        }
    }

    /// Enters messages whose fate nobody waited for.
    pub fn enter_unknown<'a>(&mut self, messages: impl IntoIterator<Item = &'a Message>) {
        for message in messages {
            self.open(message, false);
        }
    }

    /// Enters entries by their outcomes. What was rejected must not arrive.
    ///
    /// # Panics
    /// When there is not one outcome for each entry.
    pub fn enter(&mut self, entries: &[Entry], outcomes: &[Published]) {
        assert_eq!(entries.len(), outcomes.len(), "one outcome for each entry");
        for (Entry { message, .. }, outcome) in entries.iter().zip(outcomes) {
            self.repeated += usize::from(self.accounts.contains_key(&id(message)));
            match outcome {
                Published::Accepted(_) => self.open(message, true),
                Published::Unknown(_) => self.open(message, false),
                Published::Rejected(_) => {}
            }
        }
    }

    fn open(&mut self, message: &Message, confirmed: bool) {
        let account = self.accounts.entry(id(message)).or_insert_with(|| Account {
            sent: message.clone(),
            confirmed: false,
            arrivals: 0,
        });
        if confirmed && !account.confirmed {
            account.confirmed = true;
            self.missing += usize::from(account.arrivals == 0);
        }
    }

    /// Enters a message that arrived; it must be one that was sent, unchanged.
    ///
    /// # Panics
    /// For a message that nobody sent or that was changed on its way.
    pub fn receive(&mut self, message: &Message) {
        let Some(account) = self.accounts.get_mut(&id(message)) else {
            panic!("a message arrived that was not published or was rejected: {message:?}");
        };
        assert_intact(&account.sent, message);
        self.missing -= usize::from(account.confirmed && account.arrivals == 0);
        account.arrivals += 1;
    }

    /// How many confirmed messages have not arrived.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// How many different messages have arrived.
    #[must_use]
    pub fn arrived(&self) -> usize {
        let arrived = |account: &&Account| account.arrivals > 0;
        self.accounts.values().filter(arrived).count()
    }

    /// How many entries were published again after their fate was unknown: each may be a duplicate.
    #[must_use]
    pub fn repeated(&self) -> usize {
        self.repeated
    }

    /// How many arrivals were not the first of their message.
    #[must_use]
    pub fn duplicates(&self) -> usize {
        let more = |account: &Account| account.arrivals.saturating_sub(1);
        self.accounts.values().map(more).sum()
    }

    /// Adds the arrivals of another receiver that shares the work.
    ///
    /// # Panics
    /// For arrivals of messages that these books do not know.
    pub fn merge(&mut self, messages: &[Message]) {
        for message in messages {
            self.receive(message);
        }
    }

    /// Balances the books.
    ///
    /// # Panics
    /// When a confirmed message is missing or duplicates exceed `ceiling`.
    pub fn balance(&self, ceiling: usize) {
        let (missing, duplicates) = (self.missing(), self.duplicates());
        let total = self
            .accounts
            .values()
            .filter(|account| account.confirmed)
            .count();
        assert_eq!(
            missing, 0,
            "{missing} of {total} confirmed messages were lost"
        );
        assert!(
            duplicates <= ceiling,
            "{duplicates} duplicates of {total} messages; at most {ceiling} are allowed"
        );
    }
}

/// Compares what arrived with what was sent.
///
/// # Panics
/// Where they differ.
pub fn assert_intact(sent: &Message, arrived: &Message) {
    assert_eq!(arrived.subject(), sent.subject(), "subject");
    assert_eq!(arrived.payload(), sent.payload(), "payload");
    assert_eq!(arrived.id(), sent.id(), "id");
    assert_eq!(arrived.key(), sent.key(), "key");
    assert_eq!(
        arrived.correlation_id(),
        sent.correlation_id(),
        "correlation id"
    );
    assert_eq!(content_type(arrived), content_type(sent), "content type");
    assert_eq!(headers(arrived), headers(sent), "headers");
}

/// A message that names no content type is JSON, and may come with the name or without.
fn content_type(message: &Message) -> ContentType {
    message.content_type().cloned().unwrap_or(ContentType::JSON)
}

/// Headers as they are promised: spelling of names and the order across them do not count, the order of values does.
pub(crate) fn headers(message: &Message) -> BTreeMap<String, Vec<String>> {
    let mut headers: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (name, value) in message.headers().iter() {
        let values = headers.entry(name.to_ascii_lowercase()).or_default();
        values.push(value.escape_ascii().to_string());
    }
    headers
}

fn id(message: &Message) -> MessageId {
    let Some(id) = message.id() else {
        panic!("a message has lost its id: {message:?}");
    };
    id.clone()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::pattern::publish_subscribe::Receipt;
    use anywire::{Error, ErrorKind, Headers, Subject};

    fn message(body: &'static str) -> Message {
        let mut headers = Headers::new();
        headers.append("Tenant", "blue").unwrap();
        Message::new(Subject::parse("a.b").unwrap(), body)
            .with_id(MessageId::random())
            .with_headers(headers)
    }

    #[test]
    fn books_balance_when_all_arrived_once() {
        let messages = [message("1"), message("2")];
        let mut ledger = Ledger::of(&messages);
        ledger.merge(&messages);
        ledger.balance(0);
    }

    #[test]
    #[should_panic(expected = "1 of 2 confirmed messages were lost")]
    fn a_lost_message_shows() {
        let messages = [message("1"), message("2")];
        let mut ledger = Ledger::of(&messages);
        ledger.receive(&messages[0]);
        ledger.balance(0);
    }

    #[test]
    #[should_panic(expected = "1 duplicates of 1 messages; at most 0 are allowed")]
    fn a_duplicate_shows() {
        let message = message("1");
        let mut ledger = Ledger::of([&message]);
        ledger.merge(&[message.clone(), message]);
        ledger.balance(0);
    }

    #[test]
    #[should_panic(expected = "not published or was rejected")]
    fn a_phantom_shows() {
        Ledger::of([&message("1")]).receive(&message("1"));
    }

    #[test]
    #[should_panic(expected = "headers")]
    fn a_lost_header_shows() {
        let sent = message("1");
        let mut ledger = Ledger::of([&sent]);
        ledger.receive(&sent.with_headers(Headers::new()));
    }

    #[test]
    fn unknown_messages_may_arrive_and_rejected_ones_may_not() {
        let entries = [message("1"), message("2"), message("3")].map(Entry::new);
        let error = || Error::new(ErrorKind::OutcomeUnknown, "cut");
        let outcomes = [
            Published::Accepted(Receipt::new()),
            Published::Unknown(error()),
            Published::Rejected(error()),
        ];
        let mut ledger = Ledger::new();
        ledger.enter(&entries, &outcomes);
        ledger.receive(&entries[0].message);
        ledger.balance(0);
        ledger.receive(&entries[1].message);
        ledger.balance(0);
        let rejected = std::panic::AssertUnwindSafe(|| ledger.receive(&entries[2].message));
        assert!(std::panic::catch_unwind(rejected).is_err());
    }
}
