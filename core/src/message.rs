//! The message and its first-class fields.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use smol_str::SmolStr;

use crate::codec::ContentType;
use crate::headers::is_reserved;
use crate::{Error, ErrorKind, Headers, Pattern, Subject};

/// The longest key that can be sent, in bytes.
pub(crate) const MAX_KEY: usize = 1024;
/// The longest id and correlation id that can be sent, in bytes.
const MAX_ID: usize = 255;

/// A message: a subject, a payload, headers, and the fields that brokers have a native place for.
///
/// The payload is the codec's bytes and nothing else. A message is one pointer: cloning shares everything, and changing a
/// shared one copies its fields first.
///
/// ```
/// use anywire::{Message, Subject};
///
/// let message = Message::new(Subject::parse("shop.eu.placed")?, r#"{"id":1}"#).with_key("c-17");
/// assert_eq!(message.key().unwrap().as_bytes(), b"c-17");
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone)]
pub struct Message(Arc<Fields>);

#[derive(Clone)]
struct Fields {
    subject: Subject,
    payload: Bytes,
    headers: Headers,
    id: Option<MessageId>,
    key: Option<Key>,
    content_type: Option<ContentType>,
    timestamp: Option<SystemTime>,
    deadline: Option<Duration>,
    rare: Option<Box<Rare>>,
    guard: Option<Guard>,
}

/// Fields that a plain event does not have, kept out of its way.
#[derive(Clone, Debug, Default)]
struct Rare {
    correlation_id: Option<SmolStr>,
    reply_to: Option<SmolStr>,
    error_code: Option<SmolStr>,
    frame: Option<SmolStr>,
    trail: Option<Trail>,
}

impl Message {
    /// A message with nothing but a subject and a payload.
    pub fn new(subject: Subject, payload: impl Into<Bytes>) -> Self {
        Self(Arc::new(Fields {
            subject,
            payload: payload.into(),
            headers: Headers::new(),
            id: None,
            key: None,
            content_type: None,
            timestamp: None,
            deadline: None,
            rare: None,
            guard: None,
        }))
    }

    /// Sets the id.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<MessageId>) -> Self {
        self.fields_mut().id = Some(id.into());
        self
    }

    /// Sets the key: messages of one key are handled in order.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Key>) -> Self {
        self.fields_mut().key = Some(key.into());
        self
    }

    /// Sets the headers.
    #[must_use]
    pub fn with_headers(mut self, headers: Headers) -> Self {
        self.fields_mut().headers = headers;
        self
    }

    /// Says how the payload is encoded. `None` means the default, JSON.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<Option<ContentType>>) -> Self {
        let content_type = content_type.into();
        if content_type.is_some() || self.0.content_type.is_some() {
            self.fields_mut().content_type = content_type;
        }
        self
    }

    /// Sets the time at which it was published.
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: SystemTime) -> Self {
        self.fields_mut().timestamp = Some(timestamp);
        self
    }

    /// Sets the correlation id, which links what belongs to one conversation.
    #[must_use]
    pub fn with_correlation_id(mut self, id: impl Into<SmolStr>) -> Self {
        self.rare_mut().correlation_id = Some(id.into());
        self
    }

    /// Sets the address that a reply goes to. For adapters; a user's calls carry the client's own inbox.
    #[must_use]
    pub fn with_reply_to(mut self, address: impl Into<SmolStr>) -> Self {
        self.rare_mut().reply_to = Some(address.into());
        self
    }

    /// Sets the time that a call has left.
    #[must_use]
    pub fn with_deadline(mut self, remaining: Duration) -> Self {
        self.fields_mut().deadline = Some(remaining);
        self
    }

    /// Marks a reply as an error with this code; its payload is a [`RemoteError`](crate::RemoteError) as JSON.
    #[must_use]
    pub fn with_error_code(mut self, code: impl Into<SmolStr>) -> Self {
        self.rare_mut().error_code = Some(code.into());
        self
    }

    /// Says which frame of a streaming call it is. For adapters.
    #[must_use]
    pub fn with_frame(mut self, frame: impl Into<SmolStr>) -> Self {
        self.rare_mut().frame = Some(frame.into());
        self
    }

    /// Sets what a retry copy or a dead letter tells about its past.
    #[must_use]
    pub fn with_trail(mut self, trail: impl Into<Option<Trail>>) -> Self {
        self.rare_mut().trail = trail.into();
        self
    }

    /// Sends the same message to another subject.
    #[must_use]
    pub fn with_subject(mut self, subject: Subject) -> Self {
        self.fields_mut().subject = subject;
        self
    }

    /// The subject it was sent to. For a retry copy that is the original's subject.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.0.subject
    }

    /// The bytes as they were sent.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// The headers that the sender set, the framework's own not among them.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// The headers, to be changed.
    pub fn headers_mut(&mut self) -> &mut Headers {
        &mut self.fields_mut().headers
    }

    /// The id, where the sender or the wire gave one.
    #[must_use]
    pub fn id(&self) -> Option<&MessageId> {
        self.0.id.as_ref()
    }

    /// The key, where the sender gave one.
    #[must_use]
    pub fn key(&self) -> Option<&Key> {
        self.0.key.as_ref()
    }

    /// How the payload is encoded; `None` means the default, JSON.
    #[must_use]
    pub fn content_type(&self) -> Option<&ContentType> {
        self.0.content_type.as_ref()
    }

    /// When it was published, where the wire tells.
    #[must_use]
    pub fn timestamp(&self) -> Option<SystemTime> {
        self.0.timestamp
    }

    /// What links the messages of one conversation.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.0.rare.as_ref()?.correlation_id.as_deref()
    }

    /// Where a reply goes.
    #[must_use]
    pub fn reply_to(&self) -> Option<&str> {
        self.0.rare.as_ref()?.reply_to.as_deref()
    }

    /// The time a call had left when it was sent.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.0.deadline
    }

    /// The code of an error reply.
    #[must_use]
    pub fn error_code(&self) -> Option<&str> {
        self.0.rare.as_ref()?.error_code.as_deref()
    }

    /// Which frame of a streaming call it is.
    #[must_use]
    pub fn frame(&self) -> Option<&str> {
        self.0.rare.as_ref()?.frame.as_deref()
    }

    /// What a retry copy or a dead letter tells about its past; `None` on a message that has not failed.
    #[must_use]
    pub fn trail(&self) -> Option<&Trail> {
        self.0.rare.as_ref()?.trail.as_ref()
    }

    /// Payload and headers together, in bytes: what bounded queues count.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.0.payload.len() + self.0.headers.byte_len()
    }

    /// What a user may send of it: no trail, no reply address, deadline, error code or frame, no reserved header.
    pub(crate) fn into_plain(mut self) -> Self {
        if self.0.deadline.is_some() {
            self.fields_mut().deadline = None;
        }
        if self.0.rare.is_some() {
            let correlation_id = self.correlation_id().map(SmolStr::from);
            self.fields_mut().rare = correlation_id.map(|id| {
                Box::new(Rare {
                    correlation_id: Some(id),
                    ..Rare::default()
                })
            });
        }
        if self.headers().iter().any(|(name, _)| is_reserved(name)) {
            self.headers_mut().remove_reserved();
        }
        self
    }

    /// Refuses what a wire would have to cut or could be tricked with.
    ///
    /// # Errors
    /// `TooLarge` for a key over 1,024 bytes; `Config` for an id or a correlation id that is empty, longer than 255 bytes,
    /// or holds a control character.
    pub(crate) fn check_fields(&self) -> Result<(), Error> {
        if let Some(key) = self.key()
            && key.0.len() > MAX_KEY
        {
            let size = key.0.len();
            let text = format!("a key of {size} bytes is over the limit of {MAX_KEY}");
            return Err(
                Error::new(ErrorKind::TooLarge, text).with_context("subject", self.subject())
            );
        }
        let id = self.id().and_then(MessageId::as_foreign);
        for (what, text) in [("id", id), ("correlation id", self.correlation_id())] {
            let Some(text) = text else { continue };
            if text.is_empty() || text.len() > MAX_ID || text.contains(char::is_control) {
                return Err(Error::config(format!(
                    "the {what} must have 1 to {MAX_ID} bytes and no control character"
                ))
                .with_context("subject", self.subject()));
            }
        }
        Ok(())
    }

    pub(crate) fn trail_mut(&mut self) -> &mut Trail {
        let Fields { subject, rare, .. } = self.fields_mut();
        let rare = rare.get_or_insert_default();
        rare.trail
            .get_or_insert_with(|| Trail::new(subject.clone()))
    }

    pub(crate) fn take_error_code(&mut self) -> Option<String> {
        let rare = self.fields_mut().rare.as_mut()?;
        rare.error_code.take().map(String::from)
    }

    pub(crate) fn set_id(&mut self, id: MessageId) {
        self.fields_mut().id = Some(id);
    }

    pub(crate) fn guard(&self) -> Option<&Guard> {
        self.0.guard.as_ref()
    }

    pub(crate) fn set_guard(&mut self, guard: Option<Guard>) {
        self.fields_mut().guard = guard;
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.fields_mut().rare.get_or_insert_default()
    }

    fn fields_mut(&mut self) -> &mut Fields {
        Arc::make_mut(&mut self.0)
    }
}

/// Leaves the payload and the header values out: they may be secret.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("subject", &self.0.subject)
            .field("payload", &format_args!("{} bytes", self.0.payload.len()))
            .field("headers", &self.0.headers)
            .field("id", &self.0.id)
            .field("key", &self.0.key.as_ref().map(|key| key.0.len()))
            .field("content_type", &self.0.content_type)
            .field("deadline", &self.0.deadline)
            .field("rare", &self.0.rare)
            .finish_non_exhaustive()
    }
}

/// Kept by a message and everything that it causes; dropped with the last of them. The testing kit counts by it.
#[derive(Clone)]
pub(crate) struct Guard(
    #[allow(dead_code, reason = "held to be dropped")] pub(crate) Arc<dyn Any + Send + Sync>,
);

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

/// Identifies a message, for deduplication. Sixteen bytes inline when it is ours, text when a foreign program chose it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MessageId(Repr);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    Ours([u8; 16]),
    Foreign(SmolStr),
}

impl MessageId {
    /// A random id of 128 bits.
    ///
    /// For deduplication, not for secrecy: it comes from a fast generator, seeded once for each thread.
    #[must_use]
    pub fn random() -> Self {
        Self(Repr::Ours(crate::random::bits().to_le_bytes()))
    }

    /// An id from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Repr::Ours(bytes))
    }

    /// Reads an id from the wire: 32 lower-case hexadecimal digits are ours, anything else is kept as it came.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        parse_hex(text).map_or_else(|| Self(Repr::Foreign(text.into())), Self::from_bytes)
    }

    /// The sixteen bytes, for an id of ours.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8; 16]> {
        match &self.0 {
            Repr::Ours(bytes) => Some(bytes),
            Repr::Foreign(_) => None,
        }
    }
}

impl MessageId {
    fn as_foreign(&self) -> Option<&str> {
        match &self.0 {
            Repr::Ours(_) => None,
            Repr::Foreign(text) => Some(text),
        }
    }
}

fn parse_hex(text: &str) -> Option<[u8; 16]> {
    let digits = text.as_bytes();
    let lower = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    if digits.len() != 32 || !digits.iter().all(lower) {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Ours(bytes) => write!(f, "{:032x}", u128::from_be_bytes(*bytes)),
            Repr::Foreign(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Ours(_) => fmt::Display::fmt(self, f),
            Repr::Foreign(text) => write!(f, "{text:?}"),
        }
    }
}

impl From<&str> for MessageId {
    fn from(text: &str) -> Self {
        Self::parse(text)
    }
}

impl From<String> for MessageId {
    fn from(text: String) -> Self {
        Self::parse(&text)
    }
}

/// What orders messages: those of one key are handled one at a time. Any bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Bytes);

impl Key {
    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key's bytes, shared.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<&String> for Key {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<Bytes> for Key {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<u64> for Key {
    fn from(number: u64) -> Self {
        Self(number.to_string().into())
    }
}

/// The past of a message that failed: kept on retry copies and dead letters, under the reserved headers.
#[derive(Clone, Debug, PartialEq)]
pub struct Trail {
    /// The subject that the original was sent to.
    pub subject: Subject,
    /// The pattern of the subscription that failed it.
    pub pattern: Option<Pattern>,
    /// The group of that subscription.
    pub group: Option<String>,
    /// The handler that failed it.
    pub handler: Option<String>,
    /// How many attempts have failed.
    pub attempt: u32,
    /// The transport that it came from.
    pub origin: Option<String>,
    /// What the last attempt failed with.
    pub error: Option<String>,
    /// When the first attempt failed.
    pub first_at: Option<SystemTime>,
    /// When the last attempt failed.
    pub last_at: Option<SystemTime>,
    /// When a delayed copy is due, on wires that have no native place for it.
    pub due: Option<SystemTime>,
}

impl Trail {
    /// A trail without a past yet.
    #[must_use]
    pub fn new(subject: Subject) -> Self {
        Self {
            subject,
            pattern: None,
            group: None,
            handler: None,
            attempt: 0,
            origin: None,
            error: None,
            first_at: None,
            last_at: None,
            due: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn debug_shows_no_payload_and_no_key() {
        let message = Message::new(Subject::parse("a.b").unwrap(), "canary").with_key("canary");
        assert!(!format!("{message:?}").contains("canary"));
    }

    proptest! {
        #[test]
        fn an_id_survives_its_text(bytes in any::<[u8; 16]>(), text in any::<String>()) {
            let ours = MessageId::from_bytes(bytes);
            prop_assert_eq!(MessageId::parse(&ours.to_string()), ours);
            prop_assert_eq!(MessageId::parse(&text).to_string(), text);
        }
    }
}
