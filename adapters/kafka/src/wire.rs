//! The border post: a [`Message`] becomes a Kafka record and comes back. The only file that knows which header means what.
//!
//! | field | on Kafka |
//! |---|---|
//! | key | the record's key |
//! | time | the record's timestamp, in milliseconds |
//! | id | `anywire-id` |
//! | content type | `content-type` |
//! | correlation id | `kafka_correlationId` |
//! | reply address | `kafka_replyTopic` and `kafka_replyPartition` |
//! | subject | the topic; `anywire-subject` where a topic carries many |
//! | deadline, error code, trail | the reserved headers of [`anywire::wire`] |
//! | headers | as they are, as bytes; a name that means something to Kafka's clients or to us gets a prefix |
//! | no payload at all | an empty payload with the header `kafka-tombstone`; and back |

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anywire::clock::Clock;
use anywire::pattern::publish_subscribe::SubscriptionId;
use anywire::{ContentType, Message, MessageId, Subject, wire};
use bytes::Bytes;
use rdkafka::Timestamp;
use rdkafka::message::{
    BorrowedHeaders, BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders,
};

const CONTENT_TYPE: &str = "content-type";
const CORRELATION_ID: &str = "kafka_correlationId";
const REPLY_TOPIC: &str = "kafka_replyTopic";
const REPLY_PARTITION: &str = "kafka_replyPartition";
/// The correlation id of a call's author, where the native one is the caller's own.
const CORRELATION: &str = "anywire-correlation";
/// The pattern of the subscription that a copy is for.
const TO: &str = "anywire-to";
/// The time until which an event stays on its rung, where it waits for longer.
const UNTIL: &str = "anywire-until";
/// What precedes a user's header whose own name means something to us.
const PLAIN: &str = "anywire-plain-";
/// Marks an empty payload that is none at all.
pub(crate) const TOMBSTONE: &str = "kafka-tombstone";
/// Marks a record whose headers cannot be read.
pub(crate) const UNREADABLE: &str = "kafka-unreadable-headers";
/// A time that lies further ahead is forged: a bit more than the topmost rung.
const FURTHEST: Duration = Duration::from_secs(5 * 366 * 24 * 60 * 60);

/// How a message is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sending<'a> {
    /// The subject, where the topic does not tell it.
    pub(crate) subject: Option<&'a Subject>,
    /// The one subscription that it is for.
    pub(crate) to: Option<&'a SubscriptionId>,
    /// The time before which it must not be delivered.
    pub(crate) due: Option<SystemTime>,
    /// The time until which it stays in its topic, if it is not due then.
    pub(crate) until: Option<SystemTime>,
    /// Where its reply goes.
    pub(crate) reply: Option<&'a Address>,
    /// The token of the call that it replies to.
    pub(crate) token: Option<&'a str>,
}

/// Where a reply goes, and what tells the caller which call it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) token: String,
}

impl Address {
    /// As it stands in a message's `reply_to`.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (topic, rest) = text.split_once('/')?;
        let (partition, token) = rest.split_once('/')?;
        Some(Self {
            topic: topic.to_owned(),
            partition: partition.parse().ok().filter(|partition| *partition >= 0)?,
            token: token.to_owned(),
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.token)
    }
}

/// The headers of `message`; none where key and payload say it all.
pub(crate) fn headers(message: &Message, sending: Sending<'_>) -> Option<OwnedHeaders> {
    let mut headers = Written(None);
    if message.trail().is_none() && message.deadline().is_none() {
        // The common case, without the list of fields. The key is the record's.
        if let Some(id) = message.id() {
            headers.add(wire::ID, id.to_string().as_bytes());
        }
        if let Some(code) = message.error_code() {
            headers.add(wire::ERROR, code.as_bytes());
        }
        if let Some(frame) = message.frame() {
            headers.add(wire::FRAME, frame.as_bytes());
        }
    } else {
        for (name, text) in wire::fields(message) {
            if name != wire::KEY {
                headers.add(name, text.as_bytes());
            }
        }
    }
    if let Some(content_type) = message.content_type() {
        headers.add(CONTENT_TYPE, content_type.as_str().as_bytes());
    }
    let Sending {
        subject,
        to,
        due,
        until,
        reply,
        token,
    } = sending;
    // The token of a stream's frame says all that its correlation id does.
    let is_frame = token.is_some() && message.frame().is_some();
    let token = token.or(reply.map(|address| address.token.as_str()));
    if let Some(id) = message.correlation_id().filter(|_| !is_frame) {
        let name = token.map_or(CORRELATION_ID, |_| CORRELATION);
        headers.add(name, id.as_bytes());
    }
    if let Some(token) = token {
        headers.add(CORRELATION_ID, token.as_bytes());
    }
    if let Some(subject) = subject
        && message.trail().is_none()
    {
        headers.add(wire::SUBJECT, subject.as_str().as_bytes());
    }
    if let Some(subscription) = to {
        headers.add(TO, subscription.pattern.wildcards().as_bytes());
    }
    if let Some(due) = due {
        headers.add(wire::DUE, millis_up(due).to_string().as_bytes());
    }
    if let Some(until) = until {
        headers.add(UNTIL, millis_up(until).to_string().as_bytes());
    }
    if let Some(Address {
        topic,
        partition,
        token: _,
    }) = reply
    {
        headers.add(REPLY_TOPIC, topic.as_bytes());
        headers.add(REPLY_PARTITION, partition.to_string().as_bytes());
    }
    for (name, value) in message.headers().iter() {
        let name = match is_taken(name) {
            true => Cow::Owned(format!("{PLAIN}{name}")),
            false => Cow::Borrowed(name),
        };
        headers.add(&name, value);
    }
    headers.0
}

/// Headers that cost nothing while there are none.
struct Written(Option<OwnedHeaders>);

impl Written {
    fn add(&mut self, name: &str, value: &[u8]) {
        let header = Header {
            key: name,
            value: Some(value),
        };
        self.0 = Some(self.0.take().unwrap_or_default().insert(header));
    }
}

/// The payload of the record; `None` for a tombstone.
pub(crate) fn payload(message: &Message) -> Option<&[u8]> {
    let payload = message.payload();
    let is_tombstone = payload.is_empty() && message.headers().contains(TOMBSTONE);
    (!is_tombstone).then_some(payload)
}

/// The record's timestamp.
pub(crate) fn timestamp(message: &Message) -> Option<i64> {
    message.timestamp().map(millis)
}

/// What came in.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) message: Message,
    /// When it may be delivered at the earliest.
    pub(crate) due: Option<SystemTime>,
    /// Until when it stays where it is, if that is before it is due.
    pub(crate) until: Option<SystemTime>,
    /// The pattern of the one subscription that it is for.
    pub(crate) to: Option<String>,
}

/// What tells which call a record belongs to.
pub(crate) fn token<'a>(record: &'a BorrowedMessage<'_>) -> Option<&'a str> {
    let headers = record.headers()?;
    let mut all = (0..headers.count()).filter_map(|at| header(headers, at).ok()?);
    let token = all.find(|header| header.key == CORRELATION_ID)?;
    std::str::from_utf8(token.value?).ok()
}

/// A header. The library takes the names of headers for UTF-8 and panics where they are not.
fn header(headers: &BorrowedHeaders, at: usize) -> Result<Option<Header<'_, &[u8]>>, Unreadable> {
    catch_unwind(AssertUnwindSafe(|| headers.try_get(at))).map_err(|_| Unreadable)
}

struct Unreadable;

/// Reads a record. `subject` is that of its topic; `carrier` says that the topic carries messages of other subjects.
pub(crate) fn read(
    record: &BorrowedMessage<'_>,
    subject: &Subject,
    carrier: bool,
    clock: &dyn Clock,
) -> Incoming {
    let payload = record.payload().map(Bytes::copy_from_slice);
    let is_tombstone = payload.is_none();
    let mut message = Message::new(subject.clone(), payload.unwrap_or_default());
    if let Some(key) = record.key() {
        message = message.with_key(Bytes::copy_from_slice(key));
    }
    if let Some(time) = time(record.timestamp()) {
        message = message.with_timestamp(time);
    }
    let mut read = Read {
        message,
        carrier,
        subject: None,
        id: None,
        content_type: None,
        due: None,
        until: None,
        to: None,
        token: None,
        correlation: None,
        reply_topic: None,
        reply_partition: None,
    };
    if let Some(headers) = record.headers() {
        for at in 0..headers.count() {
            match header(headers, at) {
                Ok(Some(header)) => read.header(header.key, header.value.unwrap_or_default()),
                Ok(None) => break,
                Err(Unreadable) => {
                    metrics::counter!("anywire.kafka.unreadable_headers").increment(1);
                    read.message
                        .headers_mut()
                        .append_foreign(UNREADABLE, Bytes::from_static(b"1"));
                }
            }
        }
    }
    if is_tombstone && !read.message.headers().contains(TOMBSTONE) {
        read.message
            .headers_mut()
            .append_foreign(TOMBSTONE, Bytes::from_static(b"1"));
    }
    read.finish(clock)
}

/// A message whose headers are being read.
struct Read {
    message: Message,
    carrier: bool,
    subject: Option<Subject>,
    id: Option<MessageId>,
    content_type: Option<ContentType>,
    due: Option<SystemTime>,
    until: Option<SystemTime>,
    to: Option<String>,
    token: Option<String>,
    correlation: Option<String>,
    reply_topic: Option<String>,
    reply_partition: Option<i32>,
}

impl Read {
    fn header(&mut self, name: &str, value: &[u8]) {
        let text = std::str::from_utf8(value);
        match (name, text) {
            (CORRELATION_ID, Ok(text)) => self.token = Some(text.to_owned()),
            (CORRELATION, Ok(text)) => self.correlation = Some(text.to_owned()),
            (REPLY_TOPIC, Ok(text)) => self.reply_topic = Some(text.to_owned()),
            (REPLY_PARTITION, _) => self.reply_partition = partition(value),
            (wire::DUE, Ok(text)) => self.due = read_time(text),
            (UNTIL, Ok(text)) if self.carrier => self.until = read_time(text),
            (wire::SUBJECT, Ok(text)) if self.carrier => {
                self.subject = Subject::parse_any(text).ok();
            }
            (TO, Ok(text)) if self.carrier => self.to = Some(text.to_owned()),
            (wire::ID, Ok(text)) => self.id = Some(MessageId::parse(text)),
            // Of several, the record has its own.
            (wire::KEY, _) => {}
            (_, Ok(text)) if name.eq_ignore_ascii_case(CONTENT_TYPE) => {
                self.content_type = Some(ContentType::new(text));
            }
            _ => self.other(name, value),
        }
    }

    fn other(&mut self, name: &str, value: &[u8]) {
        let plain = strip_prefix(name, PLAIN);
        if plain.is_none() && wire::read(&mut self.message, name, value) {
            return;
        }
        let value = Bytes::copy_from_slice(value);
        let name = plain.unwrap_or(name);
        self.message.headers_mut().append_foreign(name, value);
    }

    fn finish(self, clock: &dyn Clock) -> Incoming {
        let mut message = self.message;
        if let Some(id) = self.id {
            message = message.with_id(id);
        }
        if let Some(content_type) = self.content_type {
            message = message.with_content_type(content_type);
        }
        if let Some(subject) = self.subject {
            if let Some(mut trail) = message.trail().cloned() {
                trail.subject = subject.clone();
                message = message.with_trail(trail);
            }
            message = message.with_subject(subject);
        }
        if let Some(topic) = self.reply_topic {
            let address = Address {
                topic,
                partition: self.reply_partition.unwrap_or_default(),
                token: self.token.clone().unwrap_or_default(),
            };
            message = message.with_reply_to(address.to_string());
        }
        if let Some(id) = self.correlation.or(self.token) {
            message = message.with_correlation_id(id);
        }
        let now = clock.wall();
        Incoming {
            message,
            until: self.until,
            due: self.due.filter(|due| *due > now && *due < now + FURTHEST),
            to: self.to,
        }
    }
}

/// As text, or as the four bytes that Spring writes.
fn partition(value: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(value).ok();
    let number = text.and_then(|text| text.parse::<i32>().ok());
    let number = number.or_else(|| value.try_into().ok().map(i32::from_be_bytes))?;
    (number >= 0).then_some(number)
}

/// Whether a user's header of this name would be taken for something else on the way.
fn is_taken(name: &str) -> bool {
    name.eq_ignore_ascii_case(CONTENT_TYPE)
        || [CORRELATION_ID, REPLY_TOPIC, REPLY_PARTITION].contains(&name)
}

fn strip_prefix<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = name.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Rounded up: what is due at a time must not come before it.
fn millis_up(time: SystemTime) -> u128 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().div_ceil(1_000_000)
}

fn time(timestamp: Timestamp) -> Option<SystemTime> {
    let millis = u64::try_from(timestamp.to_millis()?).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

fn read_time(text: &str) -> Option<SystemTime> {
    let millis = text.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_was_written() {
        let address = Address {
            topic: "anywire.replies.shop".to_owned(),
            partition: 3,
            token: "a/b".to_owned(),
        };
        assert_eq!(Address::read(&address.to_string()), Some(address));
        for text in ["", "topic", "topic/", "topic/-1/a", "topic/x/a", "topic/1"] {
            assert_eq!(Address::read(text), None, "{text}");
        }
    }

    #[test]
    fn a_partition_is_text_or_four_bytes() {
        assert_eq!(partition(b"12"), Some(12));
        assert_eq!(partition(&[0, 0, 0, 12]), Some(12));
        assert_eq!(partition(&[255, 0, 0, 12]), None);
        assert_eq!(partition(b"many"), Some(i32::from_be_bytes(*b"many")));
        assert_eq!(partition(b""), None);
    }
}
