//! Names on the broker: injective, so that two subjects never share a topic unless a rule packs them.
//!
//! A topic's name is made of `[A-Za-z0-9._-]`, at most 249 of them. What else a subject may hold becomes `_xHH`, and an
//! underscore that would read like the beginning of such an escape is escaped itself, so `user_events` stays what it is.

use std::borrow::Cow;
use std::fmt::Write;

use anywire::{Error, ErrorKind, Pattern, Subject};

/// The longest name of a topic.
pub(crate) const MAX_TOPIC: usize = 249;
/// What the topics of the framework begin with.
pub(crate) const RESERVED: &str = "anywire.";
/// Kafka's own topics, which nobody subscribes to.
pub(crate) const INTERNAL: &str =
    "^__consumer_offsets$,^__transaction_state$,^__share_group_state$,^__cluster_metadata$";
/// The group that moves due messages to their topics.
pub(crate) const MOVERS: &str = "anywire.delay";
/// The group of all who answer calls.
pub(crate) const SERVERS: &str = "anywire.calls";

const RETRY: &str = "anywire.retry.";
const DELAY: &str = "anywire.delay.";
const CALLS: &str = "anywire.calls.";
const REPLIES: &str = "anywire.replies.";
const PATTERN: &str = "anywire.pattern.";

/// The topic of a subject.
///
/// # Errors
/// `TooLarge` where the name would be longer than Kafka allows.
pub(crate) fn topic(subject: &Subject) -> Result<Cow<'_, str>, Error> {
    let text = subject.as_str();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    match text.len() <= MAX_TOPIC && text.bytes().all(is_plain) {
        true => Ok(Cow::Borrowed(text)),
        false => bounded(escape(text)).map(Cow::Owned),
    }
}

/// The subject that a topic stands for; `None` where it is none of ours.
pub(crate) fn subject(topic: &str) -> Option<Subject> {
    Subject::parse_any(&unescape(topic)?).ok()
}

/// The topic that tells publishers of a pattern whose topics they may create.
pub(crate) fn marker(pattern: &Pattern) -> Result<String, Error> {
    bounded(format!("{PATTERN}{}", escape(pattern.wildcards())))
}

/// The pattern that a topic tells of.
pub(crate) fn marked(topic: &str) -> Option<Pattern> {
    Pattern::parse_any(&unescape(topic.strip_prefix(PATTERN)?)?).ok()
}

/// The topic of the calls to a pattern.
pub(crate) fn calls(pattern: &Pattern) -> Result<String, Error> {
    bounded(format!("{CALLS}{}", escape(pattern.wildcards())))
}

/// The topic of the calls to a subject that has a topic of its own.
pub(crate) fn calls_to(subject: &Subject) -> Result<String, Error> {
    bounded(format!("{CALLS}{}", escape(subject.as_str())))
}

/// The pattern whose calls a topic carries.
pub(crate) fn called(topic: &str) -> Option<Pattern> {
    Pattern::parse_any(&unescape(topic.strip_prefix(CALLS)?)?).ok()
}

/// The topic of the replies to an app's calls.
pub(crate) fn replies(app: &str) -> Result<String, Error> {
    bounded(format!("{REPLIES}{}", escape(&Subject::escape(app))))
}

/// Whether replies may go to a topic.
pub(crate) fn takes_replies(topic: &str) -> bool {
    let app = topic.strip_prefix(REPLIES);
    app.is_some_and(|app| !app.is_empty() && topic.len() <= MAX_TOPIC && is_legal(app))
}

/// How long a copy waits at most: a rung of the ladder of powers of two, in seconds, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rung {
    Now,
    /// Two to this power.
    Power(u32),
}

/// The topmost rung: about four years.
const TOP: u32 = 27;

impl Rung {
    /// The lowest rung that is not below `wait`.
    pub(crate) fn of(wait: std::time::Duration) -> Self {
        if wait.is_zero() {
            return Self::Now;
        }
        let top = std::time::Duration::from_secs(1 << TOP);
        let wait = wait.min(top);
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self::Power(seconds.next_power_of_two().trailing_zeros().min(TOP))
    }

    /// The highest rung that is not above `wait`, or the lowest. What waits on a rung of its own length is in the order of its
    /// time, so that nobody waits behind one who has more of it.
    pub(crate) fn below(wait: std::time::Duration) -> Self {
        Self::Power(wait.as_secs().max(1).ilog2().min(TOP))
    }

    /// How long it lasts.
    pub(crate) fn length(self) -> std::time::Duration {
        match self {
            Self::Now => std::time::Duration::ZERO,
            Self::Power(power) => std::time::Duration::from_secs(1 << power),
        }
    }

    /// The rungs below it, on which the rest of a wait is spent.
    pub(crate) fn lower(self) -> impl Iterator<Item = Self> {
        let top = match self {
            Self::Now => 0,
            Self::Power(power) => power,
        };
        (0..top).map(Self::Power)
    }
}

impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::Power(power) => write!(f, "{}", 1_u64 << power),
        }
    }
}

/// The topic of a group's copies on a rung.
pub(crate) fn retry(group: &str, rung: Rung) -> Result<String, Error> {
    bounded(format!("{}{rung}", retry_prefix(group)))
}

/// The regular expression of all topics with a group's copies.
pub(crate) fn retries(group: &str) -> String {
    format!("^{}[a-z0-9]+$", quote(&retry_prefix(group)))
}

fn retry_prefix(group: &str) -> String {
    format!("{RETRY}{}.", escape(&Subject::escape(group)))
}

/// The topic of the events that wait on a rung.
pub(crate) fn delay(rung: Rung) -> String {
    format!("{DELAY}{rung}")
}

/// The regular expression of all topics with events that wait.
pub(crate) fn delays() -> String {
    format!("^{}[0-9]+$", quote(DELAY))
}

/// What the topics of the events that wait begin with.
pub(crate) fn is_delay(topic: &str) -> bool {
    topic.starts_with(DELAY)
}

/// Whether a topic carries copies for single subscriptions.
pub(crate) fn is_retry(topic: &str) -> bool {
    topic.starts_with(RETRY)
}

/// Whether a topic carries copies for a group's subscriptions.
pub(crate) fn is_retry_of(topic: &str, group: &str) -> bool {
    topic.starts_with(&retry_prefix(group))
}

/// What a consumer subscribes to for a pattern: a topic, or a regular expression.
pub(crate) fn subscription(pattern: &Pattern) -> Result<String, Error> {
    if let Some(subject) = pattern.as_subject() {
        return topic(&subject).map(Cow::into_owned);
    }
    let mut expression = String::from("^");
    for (at, token) in pattern.wildcards().split('.').enumerate() {
        if at > 0 {
            expression.push_str("\\.");
        }
        match (token, at) {
            ("*", 0) => expression.push_str(&foreign_token()),
            (">", 0) => {
                let _ = write!(expression, "{}(\\..+)?", foreign_token());
            }
            ("*", _) => expression.push_str("[^.]+"),
            (">", _) => expression.push_str(".+"),
            (literal, _) => expression.push_str(&quote(&escape(literal))),
        }
    }
    expression.push('$');
    Ok(expression)
}

/// A first token that is not the framework's: a consumer that were assigned other groups' topics would read them all.
/// POSIX expressions know no "anything but".
fn foreign_token() -> String {
    let word = RESERVED.trim_end_matches('.');
    let mut ways = Vec::with_capacity(2 * word.len() + 1);
    for (at, letter) in word.char_indices() {
        let start = &word[..at];
        ways.push(format!("{start}[^.{letter}][^.]*"));
        if at > 0 {
            ways.push(start.to_owned());
        }
    }
    ways.push(format!("{word}[^.]+"));
    format!("({})", ways.join("|"))
}

/// Takes a name for what it is in a regular expression.
fn quote(name: &str) -> String {
    name.replace('.', "\\.")
}

fn is_legal(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.bytes().all(legal)
}

fn escape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut name = String::with_capacity(bytes.len());
    for (at, &byte) in bytes.iter().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if plain && !(byte == b'_' && escaped(&bytes[at..]).is_some()) {
            name.push(char::from(byte));
        } else {
            // Writing to a text does not fail.
            let _ = write!(name, "_x{byte:02X}");
        }
    }
    name
}

fn unescape(name: &str) -> Option<String> {
    let mut bytes = name.as_bytes();
    let mut text = Vec::with_capacity(bytes.len());
    while let Some((&first, rest)) = bytes.split_first() {
        if let Some(byte) = escaped(bytes) {
            text.push(byte);
            bytes = bytes.get(4..)?;
        } else {
            text.push(first);
            bytes = rest;
        }
    }
    String::from_utf8(text).ok()
}

/// The byte that an escape at the beginning stands for.
fn escaped(bytes: &[u8]) -> Option<u8> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    match *bytes {
        [b'_', b'x', high, low, ..] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    }
}

fn bounded(name: String) -> Result<String, Error> {
    if name.len() <= MAX_TOPIC {
        return Ok(name);
    }
    let text = format!(
        "the name of its topic would have {} characters, Kafka allows {MAX_TOPIC}; use a shorter subject, or pack it into a topic by a rule",
        name.len()
    );
    Err(Error::new(ErrorKind::TooLarge, text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse_any(text).unwrap()
    }

    #[test]
    fn a_plain_subject_is_its_topic() {
        for text in ["shop.eu.placed", "user_events", "A-b.c_d", "a_x3d", "a_x"] {
            let subject = Subject::parse(text).unwrap();
            assert_eq!(topic(&subject).unwrap(), text);
        }
    }

    #[test]
    fn what_kafka_does_not_take_is_escaped() {
        let subject = Subject::parse("a=2E.b@c_x3D").unwrap();
        assert_eq!(topic(&subject).unwrap(), "a_x3D2E.b_x40c_x5Fx3D");
    }

    #[test]
    fn a_copy_waits_on_the_next_rung() {
        let name = |millis| Rung::of(Duration::from_millis(millis)).to_string();
        let rungs = [0, 1, 1000, 1001, 5000, 120_000].map(name);
        assert_eq!(rungs, ["now", "1", "1", "2", "8", "128"]);
        assert_eq!(Rung::of(Duration::MAX).to_string(), "134217728");
    }

    #[test]
    fn replies_go_to_topics_of_replies_alone() {
        assert!(takes_replies(&replies("shop").unwrap()));
        for hostile in [
            "anywire.replies.",
            "anywire.dead.shop",
            "shop",
            "anywire.replies.a b",
        ] {
            assert!(!takes_replies(hostile), "{hostile}");
        }
    }

    #[test]
    fn a_pattern_is_told_of_and_read_again() {
        for text in ["a.*.b", "a.>", ">"] {
            let it = pattern(text);
            assert_eq!(marked(&marker(&it).unwrap()), Some(it.clone()));
            assert_eq!(called(&calls(&it).unwrap()), Some(it));
        }
    }

    #[test]
    fn a_leading_wildcard_leaves_the_frameworks_topics_alone() {
        let expression = subscription(&pattern("*.x")).unwrap();
        assert!(expression.contains("|any[^.w][^.]*|") && expression.contains("|anywire[^.]+)"));
    }

    proptest! {
        #[test]
        fn a_subject_comes_back(text in "[a-b_xA-F0-9=@~%:-]{1,8}(\\.[a-b_xA-F0-9=@~%:-]{1,8}){0,3}") {
            let it = Subject::parse(&text).unwrap();
            let topic = topic(&it).unwrap();
            prop_assert!(is_legal(&topic));
            prop_assert_eq!(subject(&topic), Some(it));
        }

        #[test]
        fn any_topic_is_read(topic in any::<String>()) {
            let _ = (subject(&topic), marked(&topic), called(&topic));
        }
    }
}
