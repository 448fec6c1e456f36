//! The border post: a [`Message`] becomes AMQP properties and comes back. The only file that knows which field means what.
//!
//! | field | on AMQP |
//! |---|---|
//! | id | `message_id` |
//! | content type | `content_type` |
//! | correlation id | `correlation_id`; of a call, `anywire-correlation`, as the property tells calls apart |
//! | time | `timestamp`, which has seconds, and `anywire-time`, which has milliseconds |
//! | key, deadline, error code, trail | the reserved headers of [`anywire::wire`] |
//! | headers | text as long strings, other bytes as byte arrays, several values as an array; a name that means something to the broker gets a prefix |

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anywire::{ContentType, Error, ErrorKind, Message, MessageId, Subject, wire};
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};

/// What the correlation ids of our calls begin with.
pub(crate) const CALL: &str = "anywire:";
/// The correlation id of a call, as the user gave it.
const CORRELATION: &str = "anywire-correlation";
/// When the message was published, in milliseconds since 1970.
const TIME: &str = "anywire-time";
/// What precedes a user's header whose own name means something to the broker or to us.
const PLAIN: &str = "anywire-plain-";
/// What precedes a foreign value that is neither text, bytes, number nor truth: the rest is JSON.
const OPAQUE: &[u8] = b"=?amqp?";
/// The most bytes of headers: they travel in one frame, and the smallest that brokers are set to is 128 KiB.
const MAX_HEADER_BYTES: usize = 120 * 1024;
/// What a field takes besides its name and value.
const FIELD: usize = 8;

/// How many deliveries are taken for returns from a buffer: up to 4.2 the broker counts what a handler never saw.
const BUFFERED: u32 = 20;

/// How a message is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sending<'a> {
    /// Kept on disk.
    pub(crate) persistent: bool,
    /// Its priority in the queue.
    pub(crate) priority: Option<u8>,
    /// The subject that it keeps while it travels under another key.
    pub(crate) subject: Option<&'a Subject>,
    /// It is a call or a reply: `correlation_id` is not the user's.
    pub(crate) is_call: bool,
    /// How many seconds it waits on the ladder.
    pub(crate) seconds: u32,
}

/// The header by which the ladder knows who waits on a rung.
pub(crate) fn rung(step: u32) -> String {
    format!("anywire-rung-{step}")
}

/// The properties of `message`.
///
/// # Errors
/// `TooLarge` for what AMQP has no room for.
pub(crate) fn properties(
    message: &Message,
    sending: Sending<'_>,
) -> Result<BasicProperties, Error> {
    let Sending {
        persistent,
        priority,
        subject,
        is_call,
        seconds,
    } = sending;
    let mut properties =
        BasicProperties::default().with_delivery_mode(if persistent { 2 } else { 1 });
    if let Some(priority) = priority {
        properties = properties.with_priority(priority);
    }
    if let Some(id) = message.id() {
        properties = properties.with_message_id(short(id.to_string(), "id")?);
    }
    if let Some(content_type) = message.content_type() {
        let text = short(content_type.as_str(), "content type")?;
        properties = properties.with_content_type(text);
    }
    if let Some(id) = message.correlation_id().filter(|_| !is_call) {
        properties = properties.with_correlation_id(short(id, "correlation id")?);
    }
    if let Some(time) = message.timestamp() {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        properties = properties.with_timestamp(since.as_secs());
    }
    match headers(message, subject, is_call, seconds)? {
        Some(headers) => Ok(properties.with_headers(headers)),
        None => Ok(properties),
    }
}

/// The header table; none where the properties say it all.
fn headers(
    message: &Message,
    subject: Option<&Subject>,
    is_call: bool,
    seconds: u32,
) -> Result<Option<FieldTable>, Error> {
    let mut table = Table::default();
    for step in (0..u32::BITS).filter(|step| seconds >> step & 1 == 1) {
        table.put(&rung(step), AMQPValue::Boolean(true))?;
    }
    if let Some(id) = message.correlation_id().filter(|_| is_call) {
        table.put(CORRELATION, text(id.as_bytes()))?;
    }
    let since = message
        .timestamp()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    if let Some(since) = since.filter(|since| since.subsec_millis() != 0) {
        table.put(TIME, text(since.as_millis().to_string().as_bytes()))?;
    }
    if message.key().is_some()
        || message.trail().is_some()
        || message.deadline().is_some()
        || message.error_code().is_some()
        || message.frame().is_some()
    {
        for (name, value) in wire::fields(message) {
            if name != wire::ID {
                table.put(name, text(value.as_bytes()))?;
            }
        }
    }
    if let Some(subject) = subject
        && message.trail().is_none()
    {
        table.put(wire::SUBJECT, text(subject.as_str().as_bytes()))?;
    }
    for (name, value) in message.headers().iter() {
        let name = match is_taken(name) {
            true => Cow::Owned(format!("{PLAIN}{name}")),
            false => Cow::Borrowed(name),
        };
        table.add(&name, outgoing(value))?;
    }
    Ok(table.finish())
}

/// A header table while it is made. Names are looked up without case, as a field table would hold two spellings apart.
#[derive(Default)]
struct Table {
    fields: BTreeMap<ShortString, AMQPValue>,
    bytes: usize,
}

impl Table {
    fn put(&mut self, name: &str, value: AMQPValue) -> Result<(), Error> {
        self.count(name, &value)?;
        self.fields.insert(short(name, "header name")?, value);
        Ok(())
    }

    /// Adds a value to those that the name has.
    fn add(&mut self, name: &str, value: AMQPValue) -> Result<(), Error> {
        let of_name = self
            .fields
            .iter_mut()
            .find(|(found, _)| found.as_str().eq_ignore_ascii_case(name));
        let Some((_, there)) = of_name else {
            return self.put(name, value);
        };
        match there {
            AMQPValue::FieldArray(values) => values.push(value.clone()),
            one => {
                let first = std::mem::replace(one, AMQPValue::Void);
                *one = AMQPValue::FieldArray(vec![first, value.clone()].into());
            }
        }
        self.count(name, &value)
    }

    fn count(&mut self, name: &str, value: &AMQPValue) -> Result<(), Error> {
        self.bytes += FIELD + name.len() + size(value);
        match self.bytes > MAX_HEADER_BYTES {
            true => Err(Error::new(
                ErrorKind::TooLarge,
                "the headers do not fit into one AMQP frame; put what is large into the payload",
            )),
            false => Ok(()),
        }
    }

    fn finish(self) -> Option<FieldTable> {
        (!self.fields.is_empty()).then(|| self.fields.into())
    }
}

fn size(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => text.len(),
        AMQPValue::ByteArray(bytes) => bytes.len(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(size).sum::<usize>() + FIELD,
        AMQPValue::FieldTable(table) => {
            let size = |(name, value): (&ShortString, &AMQPValue)| {
                name.as_str().len() + size(value) + FIELD
            };
            table.inner().iter().map(size).sum::<usize>()
        }
        _ => FIELD,
    }
}

fn text(value: &[u8]) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A value that a foreign program gave us as something else goes on as that.
fn outgoing(value: &[u8]) -> AMQPValue {
    if let Some(json) = value.strip_prefix(OPAQUE) {
        return match serde_json::from_slice(json) {
            Ok(native) if opaque(&native) == value => native,
            _ => AMQPValue::ByteArray(value.into()),
        };
    }
    match std::str::from_utf8(value) {
        Ok(_) => text(value),
        Err(_) => AMQPValue::ByteArray(value.into()),
    }
}

fn opaque(value: &AMQPValue) -> Vec<u8> {
    let mut bytes = OPAQUE.to_vec();
    // A value without a form in JSON is told as nothing.
    bytes.extend(serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec()));
    bytes
}

/// What came in.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) message: Message,
    /// A lower bound of its deliveries, this one included.
    pub(crate) deliveries: u32,
}

/// Where a message came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    /// The key under which it was routed last.
    pub(crate) key: &'a str,
    /// It was sent to the queue itself: the key is the queue's name.
    pub(crate) direct: bool,
    /// The subject of what was sent to the queue itself and does not say it.
    pub(crate) fallback: Option<&'a Subject>,
}

/// Reads what the broker delivered.
pub(crate) fn read(origin: Origin<'_>, payload: Bytes, properties: &BasicProperties) -> Incoming {
    let subject = match origin.fallback.filter(|_| origin.direct) {
        Some(subject) => subject.clone(),
        None => legal(origin.key),
    };
    let mut message = Message::new(subject, payload);
    if let Some(id) = properties.message_id() {
        message = message.with_id(MessageId::parse(id.as_str()));
    }
    if let Some(content_type) = properties.content_type() {
        message = message.with_content_type(ContentType::new(content_type.as_str()));
    }
    let correlation = properties.correlation_id().as_ref();
    if let Some(id) = correlation.filter(|id| !id.as_str().starts_with(CALL)) {
        message = message.with_correlation_id(id.as_str());
    }
    let stamp = properties
        .timestamp()
        .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let mut reading = Reading {
        message,
        stamp,
        kept_subject: None,
        direct: origin.direct,
        earlier: 0,
    };
    if let Some(headers) = properties.headers() {
        for (name, value) in headers.inner() {
            reading.header(name.as_str(), value);
        }
    }
    reading.finish()
}

/// A message while its headers are read.
struct Reading {
    message: Message,
    stamp: Option<SystemTime>,
    kept_subject: Option<Subject>,
    direct: bool,
    earlier: u64,
}

impl Reading {
    fn header(&mut self, name: &str, value: &AMQPValue) {
        // The text of a foreign program is its own, whatever it is called.
        if is_brokers(name) && (name != "x-death" || !matches!(value, AMQPValue::LongString(_))) {
            self.note(name, value);
            return;
        }
        match value {
            AMQPValue::FieldArray(values) if is_several(values) => {
                let values = values.as_slice().iter();
                values.for_each(|value| self.value(name, incoming(value)));
            }
            value => self.value(name, incoming(value)),
        }
    }

    /// What the broker counts.
    fn note(&mut self, name: &str, value: &AMQPValue) {
        if name == "x-delivery-count" || name == "x-acquired-count" {
            self.earlier = self.earlier.max(number(value).unwrap_or_default());
        }
    }

    fn value(&mut self, name: &str, value: Bytes) {
        let message = &mut self.message;
        if let Some(plain) = strip_prefix(name, PLAIN) {
            message.headers_mut().append_foreign(plain, value);
        } else if name.eq_ignore_ascii_case(TIME) {
            self.stamp = read_time(&value).or(self.stamp);
        } else if name.eq_ignore_ascii_case(CORRELATION) {
            if let Ok(id) = std::str::from_utf8(&value) {
                *message = message.clone().with_correlation_id(id);
            }
        } else if self.direct && name.eq_ignore_ascii_case(wire::SUBJECT) {
            let subject = std::str::from_utf8(&value).ok();
            self.kept_subject = subject.and_then(|subject| Subject::parse_any(subject).ok());
        } else if !wire::read(message, name, &value) {
            message.headers_mut().append_foreign(name, value);
        }
    }

    fn finish(self) -> Incoming {
        let mut message = self.message;
        if let Some(stamp) = self.stamp {
            message = message.with_timestamp(stamp);
        }
        if let Some(subject) = self.kept_subject {
            if let Some(mut trail) = message.trail().cloned() {
                trail.subject = subject.clone();
                message = message.with_trail(trail);
            }
            message = message.with_subject(subject);
        }
        let earlier = u32::try_from(self.earlier).unwrap_or(u32::MAX);
        Incoming {
            message,
            deliveries: earlier.saturating_sub(BUFFERED).saturating_add(1),
        }
    }
}

fn is_several(values: &FieldArray) -> bool {
    let is_text = |value: &AMQPValue| {
        matches!(
            value,
            AMQPValue::LongString(_) | AMQPValue::ByteArray(_) | AMQPValue::ShortString(_)
        )
    };
    // One value alone would come back as one.
    values.as_slice().len() > 1 && values.as_slice().iter().all(is_text)
}

fn incoming(value: &AMQPValue) -> Bytes {
    match value {
        AMQPValue::LongString(text) => Bytes::copy_from_slice(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => Bytes::copy_from_slice(bytes.as_slice()),
        AMQPValue::ShortString(text) => Bytes::copy_from_slice(text.as_str().as_bytes()),
        AMQPValue::Boolean(value) => value.to_string().into(),
        AMQPValue::ShortShortInt(value) => value.to_string().into(),
        AMQPValue::ShortShortUInt(value) => value.to_string().into(),
        AMQPValue::ShortInt(value) => value.to_string().into(),
        AMQPValue::ShortUInt(value) => value.to_string().into(),
        AMQPValue::LongInt(value) => value.to_string().into(),
        AMQPValue::LongUInt(value) => value.to_string().into(),
        AMQPValue::LongLongInt(value) => value.to_string().into(),
        AMQPValue::Float(value) => value.to_string().into(),
        AMQPValue::Double(value) => value.to_string().into(),
        AMQPValue::Timestamp(value) => value.to_string().into(),
        AMQPValue::DecimalValue(_)
        | AMQPValue::FieldArray(_)
        | AMQPValue::FieldTable(_)
        | AMQPValue::Void => opaque(value).into(),
    }
}

fn number(value: &AMQPValue) -> Option<u64> {
    match value {
        AMQPValue::LongLongInt(value) => u64::try_from(*value).ok(),
        AMQPValue::LongInt(value) => u64::try_from(*value).ok(),
        AMQPValue::LongUInt(value) => Some(u64::from(*value)),
        AMQPValue::ShortInt(value) => u64::try_from(*value).ok(),
        AMQPValue::ShortUInt(value) => Some(u64::from(*value)),
        AMQPValue::ShortShortInt(value) => u64::try_from(*value).ok(),
        AMQPValue::ShortShortUInt(value) => Some(u64::from(*value)),
        _ => None,
    }
}

/// The subject as we know subjects: a token of a foreign program that we would not take is escaped.
pub(crate) fn legal(key: &str) -> Subject {
    if let Ok(subject) = Subject::parse_any(key) {
        return subject;
    }
    let escape = |token: &str| match Subject::parse_any(token) {
        Ok(token) => token.to_string(),
        Err(_) => Subject::escape(token),
    };
    let tokens: Vec<_> = key.split('.').map(escape).collect();
    let mut text = tokens.join(".");
    text.truncate(anywire::MAX_SUBJECT_LEN);
    Subject::parse_any(text.trim_end_matches('.'))
        .expect("escaped tokens between dots are a subject")
}

/// A text for which AMQP has 255 bytes. The library panics on a longer one.
pub(crate) fn short(text: impl Into<String>, what: &str) -> Result<ShortString, Error> {
    ShortString::try_new(text).map_err(|_| {
        Error::new(
            ErrorKind::TooLarge,
            format!("the {what} is longer than the 255 bytes that AMQP has for it"),
        )
    })
}

/// Whether a user's header of this name would be taken for something else on the way.
fn is_taken(name: &str) -> bool {
    is_brokers(name) || name.eq_ignore_ascii_case("cc") || name.eq_ignore_ascii_case("bcc")
}

/// What the broker writes into the headers itself. In a message that is sent again, 3.x takes it for a cycle.
fn is_brokers(name: &str) -> bool {
    const NAMES: [&str; 3] = ["x-death", "x-delivery-count", "x-acquired-count"];
    NAMES.iter().any(|taken| name.eq_ignore_ascii_case(taken))
        || strip_prefix(name, "x-first-death-").is_some()
        || strip_prefix(name, "x-last-death-").is_some()
}

fn strip_prefix<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = name.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn read_time(text: &[u8]) -> Option<SystemTime> {
    let millis = std::str::from_utf8(text).ok()?.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::{Headers, Trail};
    use proptest::prelude::*;

    fn message() -> Message {
        Message::new(Subject::parse("a.b").unwrap(), "x")
    }

    fn origin(key: &str, direct: bool) -> Origin<'_> {
        Origin {
            key,
            direct,
            fallback: None,
        }
    }

    /// Through the properties and back.
    fn there_and_back(message: &Message, sending: Sending<'_>, key: &str) -> Message {
        let properties = properties(message, sending).unwrap();
        let direct = sending.subject.is_some();
        read(origin(key, direct), message.payload().clone(), &properties).message
    }

    fn foreign(fields: Vec<(&str, AMQPValue)>) -> Incoming {
        let fields = fields
            .into_iter()
            .map(|(name, value)| (ShortString::from(name), value));
        let table: BTreeMap<_, _> = fields.collect();
        let properties = BasicProperties::default().with_headers(table.into());
        read(origin("a.b", false), Bytes::new(), &properties)
    }

    #[test]
    fn a_plain_message_has_no_headers() {
        let properties = properties(&message().with_id("7"), Sending::default()).unwrap();
        assert!(properties.headers().is_none());
        assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "7");
    }

    #[test]
    fn native_fields_come_back() {
        let time = UNIX_EPOCH + Duration::from_millis(1_763_000_000_123);
        let sent = message()
            .with_id("7")
            .with_key("k.1")
            .with_content_type(ContentType::new("text/plain"))
            .with_correlation_id("c")
            .with_timestamp(time);
        let came = there_and_back(&sent, Sending::default(), "a.b");
        assert_eq!(came.id(), sent.id());
        assert_eq!(came.key(), sent.key());
        assert_eq!(came.content_type(), sent.content_type());
        assert_eq!(came.correlation_id(), Some("c"));
        assert_eq!(came.timestamp(), Some(time));
    }

    #[test]
    fn a_copy_keeps_its_subject_and_its_past() {
        let trail = Trail {
            group: Some("shop\r\n".into()),
            attempt: 3,
            ..Trail::new(Subject::parse("a.b").unwrap())
        };
        for trail in [None, Some(trail)] {
            let sent = message().with_id("7").with_trail(trail);
            let subject = sent.subject().clone();
            let sending = Sending {
                subject: Some(&subject),
                ..Sending::default()
            };
            let came = there_and_back(&sent, sending, "anywire/g/a.*");
            assert_eq!(came.subject(), sent.subject());
            assert_eq!(came.trail(), sent.trail());
        }
    }

    #[test]
    fn the_correlation_id_of_a_call_does_not_meet_the_users() {
        let sending = Sending {
            is_call: true,
            ..Sending::default()
        };
        let properties = properties(&message().with_correlation_id("mine"), sending).unwrap();
        let properties = properties.with_correlation_id(format!("{CALL}1-2").into());
        let came = read(origin("a.b", false), Bytes::new(), &properties).message;
        assert_eq!(came.correlation_id(), Some("mine"));
    }

    #[test]
    fn foreign_types_are_kept() {
        let inner: BTreeMap<ShortString, AMQPValue> =
            [("x".into(), AMQPValue::LongInt(1))].into_iter().collect();
        let table = AMQPValue::FieldTable(inner.into());
        let came = foreign(vec![
            ("number", AMQPValue::LongLongInt(-7)),
            ("truth", AMQPValue::Boolean(true)),
            ("table", table.clone()),
            ("void", AMQPValue::Void),
            (
                "several",
                AMQPValue::FieldArray(vec![text(b"1"), text(b"2")].into()),
            ),
            ("anywire-attempt", AMQPValue::LongUInt(4_000_000_000)),
            ("x-death", AMQPValue::FieldArray(vec![table.clone()].into())),
            ("x-delivery-count", AMQPValue::LongLongInt(22)),
        ]);
        let headers = came.message.headers();
        assert_eq!(headers.get_str("number"), Some("-7"));
        assert_eq!(headers.get_str("truth"), Some("true"));
        assert_eq!(headers.get_all("several").count(), 2);
        assert!(!headers.contains("x-death"));
        assert_eq!(came.deliveries, 3);
        let again = properties(&came.message, Sending::default()).unwrap();
        let fields = again.headers().as_ref().unwrap().inner();
        assert_eq!(fields.get("table"), Some(&table));
        assert_eq!(fields.get("void"), Some(&AMQPValue::Void));
    }

    #[test]
    fn a_users_header_cannot_steer_the_broker() {
        let mut given = Headers::new();
        given.append("CC", "other.key").unwrap();
        given.append("x-death", "mine").unwrap();
        let sent = message().with_headers(given);
        let properties = properties(&sent, Sending::default()).unwrap();
        let fields = properties.headers().as_ref().unwrap().inner();
        assert!(fields.get("CC").is_none() && fields.get("x-death").is_none());
        let came = there_and_back(&sent, Sending::default(), "a.b");
        assert_eq!(came.headers().get_str("cc"), Some("other.key"));
        assert_eq!(came.headers().get_str("x-death"), Some("mine"));
    }

    #[test]
    fn what_is_too_long_for_amqp_is_refused() {
        let mut given = Headers::new();
        given.append_foreign(&"n".repeat(256), Bytes::new());
        let mut large = Headers::new();
        large.append_foreign("name", vec![b'v'; MAX_HEADER_BYTES].into());
        for message in [
            message().with_headers(given),
            message().with_headers(large),
            message().with_content_type(ContentType::new("t".repeat(256))),
        ] {
            let error = properties(&message, Sending::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooLarge);
        }
    }

    #[test]
    fn what_was_sent_to_the_queue_has_the_subject_of_its_pattern() {
        let subject = Subject::parse("a.b").unwrap();
        let properties = BasicProperties::default();
        let of = |fallback| {
            let origin = Origin {
                fallback,
                ..origin("anywire/g/a.b", true)
            };
            read(origin, Bytes::new(), &properties).message
        };
        assert_eq!(of(Some(&subject)).subject(), &subject);
        assert_eq!(of(None).subject().as_str(), "anywire=2Fg=2Fa.b");
    }

    proptest! {
        #[test]
        fn any_value_survives(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 1..4)) {
            let mut given = Headers::new();
            for value in &values {
                given.append("name", value.as_slice()).unwrap();
            }
            let came = there_and_back(&message().with_headers(given.clone()), Sending::default(), "a.b");
            prop_assert_eq!(came.headers(), &given);
        }

        #[test]
        fn any_text_survives(text in "(=\\?amqp\\?)?\\PC{0,6}[ \t\u{a0}]?") {
            let mut given = Headers::new();
            given.append("name", text.as_str()).unwrap();
            let came = there_and_back(&message().with_headers(given.clone()), Sending::default(), "a.b");
            prop_assert_eq!(came.headers(), &given);
        }

        #[test]
        fn any_key_is_read(key in any::<String>()) {
            let _ = read(origin(&key, false), Bytes::new(), &BasicProperties::default());
        }
    }
}
