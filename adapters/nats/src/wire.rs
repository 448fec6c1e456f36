//! The border post: a [`Message`] becomes a NATS message and comes back. The only file that knows which header means what.
//!
//! | field | on NATS |
//! |---|---|
//! | id | `Nats-Msg-Id`, by which JetStream drops repeats; `anywire-id` beside it where a message is sent again on purpose |
//! | content type | `Content-Type` |
//! | correlation id | `Correlation-Id` |
//! | key, deadline, error code, frame, trail | the reserved headers of [`anywire::wire`] |
//! | time | `anywire-time`; the stream's own time where there is none |
//! | headers | as they are; a value that NATS would change is escaped, a name that means something to NATS gets a prefix |

use std::borrow::Cow;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anywire::clock::Clock;
use anywire::{ContentType, Message, MessageId, Subject, wire};
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

const MESSAGE_ID: &str = "Nats-Msg-Id";
const CONTENT_TYPE: &str = "Content-Type";
const CORRELATION_ID: &str = "Correlation-Id";
/// When the message was published, in milliseconds since 1970.
const TIME: &str = "anywire-time";
/// What precedes a user's header whose own name means something to NATS or to us.
const PLAIN: &str = "anywire-plain-";
/// What precedes a value that is escaped. A value that begins with it by nature is escaped as well.
const ESCAPED: &str = "=?anywire?";
/// A time that lies further ahead is forged.
const FURTHEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// How a message is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sending<'a> {
    /// Told apart from the first sending of the same id, so that deduplication does not take it for a repeat.
    pub(crate) again: bool,
    /// The subject that it keeps while it travels on another.
    pub(crate) subject: Option<&'a Subject>,
    /// The time before which it must not be delivered.
    pub(crate) due: Option<SystemTime>,
}

/// The headers of `message`; none where a plain payload says it all.
pub(crate) fn headers(message: &Message, sending: Sending<'_>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    if let Some(id) = message.id() {
        let text = id.to_string();
        if sending.again {
            let nonce = MessageId::random();
            put(&mut headers, MESSAGE_ID, &format!("{text}:{nonce}"));
            put(&mut headers, wire::ID, &text);
        } else {
            put(&mut headers, MESSAGE_ID, &text);
        }
    }
    if let Some(content_type) = message.content_type() {
        put(&mut headers, CONTENT_TYPE, content_type.as_str());
    }
    if let Some(id) = message.correlation_id() {
        put(&mut headers, CORRELATION_ID, id);
    }
    if let Some(time) = message.timestamp() {
        put(&mut headers, TIME, &millis(time));
    }
    if message.key().is_some()
        || message.trail().is_some()
        || message.deadline().is_some()
        || message.error_code().is_some()
        || message.frame().is_some()
    {
        for (name, text) in wire::fields(message) {
            if name != wire::ID {
                put(&mut headers, name, &text);
            }
        }
    }
    if let Some(subject) = sending.subject
        && message.trail().is_none()
    {
        put(&mut headers, wire::SUBJECT, subject.as_str());
    }
    if let Some(due) = sending.due {
        headers.insert(
            HeaderName::from_static(wire::DUE),
            header_value(&millis(due)),
        );
    }
    for (name, value) in message.headers().iter() {
        let name = if is_taken(name) {
            Cow::Owned(format!("{PLAIN}{name}"))
        } else {
            Cow::Borrowed(name)
        };
        headers.append(header_name(&name), header_value(&escape(value)));
    }
    (!headers.is_empty()).then_some(headers)
}

/// The headers of a stream's frame: what it is, and how to read its payload.
pub(crate) fn frame_headers(frame: &Message) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    let mut put = |name, text: Option<&str>| {
        if let Some(text) = text {
            headers.insert(HeaderName::from_static(name), header_value(text));
        }
    };
    put(wire::FRAME, frame.frame());
    put(wire::ERROR, frame.error_code());
    put(CONTENT_TYPE, frame.content_type().map(ContentType::as_str));
    Some(headers)
}

/// What came in: the message, and when it may be delivered at the earliest.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) message: Message,
    pub(crate) due: Option<SystemTime>,
}

/// Reads what NATS delivered. `time` is the stream's own.
pub(crate) fn read(
    subject: &str,
    payload: Bytes,
    headers: Option<&HeaderMap>,
    time: Option<SystemTime>,
    clock: &dyn Clock,
) -> Incoming {
    let copy = subject.starts_with("anywire.retry.");
    let mut message = Message::new(legal(subject), payload);
    let (mut due, mut kept_subject, mut stamp) = (None, None, time);
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        for value in values {
            let text = value.as_str();
            if name.eq_ignore_ascii_case(MESSAGE_ID) {
                if message.id().is_none() {
                    message = message.with_id(MessageId::parse(text));
                }
            } else if name.eq_ignore_ascii_case(CONTENT_TYPE) {
                message = message.with_content_type(ContentType::new(text));
            } else if name.eq_ignore_ascii_case(CORRELATION_ID) {
                message = message.with_correlation_id(text);
            } else if name.eq_ignore_ascii_case(TIME) {
                stamp = read_time(text).or(stamp);
            } else if name.eq_ignore_ascii_case(wire::DUE) {
                let now = clock.wall();
                due = read_time(text).filter(|due| *due > now && *due < now + FURTHEST);
            } else if copy && name.eq_ignore_ascii_case(wire::SUBJECT) {
                kept_subject = Subject::parse_any(text).ok();
            } else if let Some(plain) = strip_prefix(name, PLAIN) {
                message.headers_mut().append_foreign(plain, unescape(text));
            } else {
                let value = unescape(text);
                if !wire::read(&mut message, name, &value) {
                    message.headers_mut().append_foreign(name, value);
                }
            }
        }
    }
    if let Some(stamp) = stamp {
        message = message.with_timestamp(stamp);
    }
    if let Some(subject) = kept_subject {
        if let Some(mut trail) = message.trail().cloned() {
            trail.subject = subject.clone();
            message = message.with_trail(trail);
        }
        message = message.with_subject(subject);
    }
    Incoming { message, due }
}

/// The subject as we know subjects: a token of a foreign program that we would not take is escaped.
pub(crate) fn legal(subject: &str) -> Subject {
    if let Ok(subject) = Subject::parse_any(subject) {
        return subject;
    }
    let escape = |token: &str| match Subject::parse_any(token) {
        Ok(token) => token.to_string(),
        Err(_) => Subject::escape(token),
    };
    let tokens: Vec<_> = subject.split('.').map(escape).collect();
    let mut text = tokens.join(".");
    text.truncate(anywire::MAX_SUBJECT_LEN);
    Subject::parse_any(text.trim_end_matches('.'))
        .expect("escaped tokens between dots are a subject")
}

fn put(headers: &mut HeaderMap, name: &'static str, text: &str) {
    headers.insert(
        HeaderName::from_static(name),
        header_value(&escape_text(text)),
    );
}

/// A name that `Headers` took is legal on NATS.
fn header_name(name: &str) -> HeaderName {
    HeaderName::from_str(name).unwrap_or_else(|_| HeaderName::from_static("anywire-unnamed"))
}

/// Anything that is escaped is legal.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_default()
}

/// Whether a user's header of this name would be taken for something else on the way.
fn is_taken(name: &str) -> bool {
    strip_prefix(name, "nats-").is_some()
        || name.eq_ignore_ascii_case(CONTENT_TYPE)
        || name.eq_ignore_ascii_case(CORRELATION_ID)
}

fn strip_prefix<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = name.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn escape_text(text: &str) -> Cow<'_, str> {
    escape(text.as_bytes())
}

/// Makes text that NATS carries unchanged: no control characters, no space at the ends, UTF-8.
fn escape(value: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(value)
        && text.trim().len() == text.len()
        && !text.contains(char::is_control)
        && !text.starts_with(ESCAPED)
    {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{ESCAPED}{}", Subject::escape_bytes(value)))
}

fn unescape(text: &str) -> Bytes {
    match text.strip_prefix(ESCAPED) {
        Some(escaped) => Subject::unescape_bytes(escaped),
        None => Bytes::copy_from_slice(text.as_bytes()),
    }
}

fn millis(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().to_string()
}

fn read_time(text: &str) -> Option<SystemTime> {
    let millis = text.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::clock::TokioClock;
    use anywire::{Headers, Trail};
    use proptest::prelude::*;

    fn message() -> Message {
        Message::new(Subject::parse("a.b").unwrap(), "x")
    }

    /// Through the headers and back.
    fn there_and_back(message: &Message, sending: Sending<'_>, subject: &str) -> Incoming {
        let headers = headers(message, sending);
        let payload = message.payload().clone();
        read(subject, payload, headers.as_ref(), None, &TokioClock)
    }

    #[test]
    fn a_plain_message_has_no_headers() {
        assert!(headers(&message(), Sending::default()).is_none());
    }

    #[test]
    fn a_copy_keeps_its_subject_and_its_past() {
        let trail = Trail {
            group: Some("shop\r\n".into()),
            attempt: 3,
            error: Some("two\nlines".into()),
            ..Trail::new(Subject::parse("a.b").unwrap())
        };
        for trail in [None, Some(trail)] {
            let sent = message().with_id("7").with_trail(trail);
            let due = SystemTime::now() + Duration::from_secs(60);
            let subject = sent.subject().clone();
            let sending = Sending {
                again: true,
                subject: Some(&subject),
                due: Some(due),
            };
            let came = there_and_back(&sent, sending, "anywire.retry.g==a~b");
            assert_eq!(came.message.subject(), sent.subject());
            assert_eq!(came.message.id(), sent.id());
            assert_eq!(came.message.trail(), sent.trail());
            let off = came.due.unwrap().duration_since(due);
            assert!(off.unwrap_or_else(|early| early.duration()) < Duration::from_millis(2));
        }
    }

    #[test]
    fn a_message_that_is_sent_again_is_no_repeat() {
        let sent = message().with_id("7");
        let again = Sending {
            again: true,
            ..Sending::default()
        };
        let id = |sending| {
            headers(&sent, sending)
                .unwrap()
                .get(MESSAGE_ID)
                .unwrap()
                .clone()
        };
        assert_eq!(id(Sending::default()), id(Sending::default()));
        assert_ne!(id(again), id(again));
    }

    #[test]
    fn what_a_foreign_program_sends_comes_as_it_is() {
        let mut foreign = HeaderMap::new();
        foreign.append("x-death", "reason=expired");
        foreign.append("anywire-due", "not a time");
        foreign.append("anywire-attempt", "4000000000");
        let came = read("a b/c.d", Bytes::new(), Some(&foreign), None, &TokioClock);
        assert_eq!(
            came.message.headers().get_str("x-death"),
            Some("reason=expired")
        );
        assert_eq!(came.due, None);
        assert_eq!(came.message.subject().as_str(), "a=20b=2Fc.d");
    }

    #[test]
    fn a_forged_time_holds_nothing_back() {
        let mut forged = HeaderMap::new();
        forged.append("anywire-due", "99999999999999999");
        let came = read("a", Bytes::new(), Some(&forged), None, &TokioClock);
        assert_eq!(came.due, None);
    }

    #[test]
    fn a_users_header_cannot_steer_the_stream() {
        let mut given = Headers::new();
        given.append("Nats-Rollup", "all").unwrap();
        given.append("content-type", "mine").unwrap();
        let sent = message().with_headers(given);
        let map = headers(&sent, Sending::default()).unwrap();
        assert!(map.get("Nats-Rollup").is_none());
        let came = there_and_back(&sent, Sending::default(), "a.b");
        assert_eq!(came.message.headers().get_str("nats-rollup"), Some("all"));
        assert_eq!(came.message.headers().get_str("content-type"), Some("mine"));
        assert_eq!(came.message.content_type(), None);
    }

    proptest! {
        #[test]
        fn any_value_survives(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 1..4)) {
            let mut given = Headers::new();
            for value in &values {
                given.append("name", value.as_slice()).unwrap();
            }
            let came = there_and_back(&message().with_headers(given.clone()), Sending::default(), "a.b");
            prop_assert_eq!(came.message.headers(), &given);
        }

        #[test]
        fn any_text_survives(text in "(=\\?anywire\\?)?\\PC{0,6}[ \t\u{a0}]?") {
            let mut given = Headers::new();
            given.append("name", text.as_str()).unwrap();
            let came = there_and_back(&message().with_headers(given.clone()), Sending::default(), "a.b");
            prop_assert_eq!(came.message.headers(), &given);
        }

        #[test]
        fn any_subject_is_read(subject in any::<String>()) {
            let _ = read(&subject, Bytes::new(), None, None, &TokioClock);
        }
    }
}
