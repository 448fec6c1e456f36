//! The border post: a [`Message`] becomes metadata and a frame, and comes back. The only file that knows which entry means
//! what.
//!
//! | field | on gRPC |
//! |---|---|
//! | payload | the frame's bytes, as the codec made them |
//! | content type | `application/grpc+json` for JSON, `+proto` for Protocol Buffers (plain `application/grpc` is read as that, too), `+x` for `application/x`; `anywire-content-type` where that does not tell it |
//! | id, key | `anywire-id`, `anywire-key` |
//! | correlation id, time | `anywire-correlation-id`, `anywire-time` |
//! | deadline | `grpc-timeout` |
//! | an id, a correlation id or a content type that is no printable ASCII | the same name with `-bin` behind it, in base64 |
//! | headers | metadata of the same name in lower case; a name with a value that is no printable ASCII gets `-bin` behind it |
//!
//! `anywire-binary` names the headers to which we have added `-bin`, so that between two apps they come back under their own
//! names. A name that means something to HTTP or gRPC gets `anywire-plain-` before it.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anywire::{ContentType, Message, Subject, wire};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

const CORRELATION_ID: &str = "anywire-correlation-id";
/// When the message was published, in milliseconds since 1970.
const TIME: &str = "anywire-time";
/// The content type, where that of gRPC does not tell it.
const EXACT_TYPE: &str = "anywire-content-type";
/// The names of the headers that have got a suffix from us, with commas between them.
const BINARY: &str = "anywire-binary";
/// What precedes a user's header whose own name means something to HTTP or gRPC.
const PLAIN: &str = "anywire-plain-";
/// What a name ends in whose values are bytes.
const BIN: &str = "-bin";
/// The time that a call has left.
pub(crate) const TIMEOUT: &str = "grpc-timeout";
/// The longest time that a call is believed to have left.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Peers pad or do not pad, both are right.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The metadata of `message`, and the content type that goes with it.
pub(crate) fn metadata(message: &Message) -> (HeaderMap, HeaderValue) {
    let mut metadata = HeaderMap::new();
    let (native, exact) = native_type(message.content_type());
    if let Some(exact) = exact {
        put(&mut metadata, EXACT_TYPE, exact.as_str().as_bytes());
    }
    for (name, text) in wire::fields(message) {
        // The deadline has a native place, and an error is a status.
        if name == wire::ID || name == wire::KEY {
            put(&mut metadata, name, text.as_bytes());
        }
    }
    if let Some(id) = message.correlation_id() {
        put(&mut metadata, CORRELATION_ID, id.as_bytes());
    }
    if let Some(time) = message.timestamp() {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        put(
            &mut metadata,
            TIME,
            since.as_millis().to_string().as_bytes(),
        );
    }
    put_headers(&mut metadata, message);
    (metadata, native)
}

fn put_headers(metadata: &mut HeaderMap, message: &Message) {
    let headers = message.headers();
    let mut binary: Vec<String> = Vec::new();
    for (name, value) in headers.iter() {
        let mut lower = name.to_ascii_lowercase();
        if is_taken(&lower) {
            lower.insert_str(0, PLAIN);
        }
        if headers.contains(&format!("{name}{BIN}")) {
            // That one has the name that this one would get.
            lower.insert_str(0, PLAIN);
        }
        let is_bin = lower.ends_with(BIN);
        // Values of one name keep their order where they travel under one name.
        if !is_bin && !headers.get_all(name).all(|value| is_printable(value)) {
            if !binary.contains(&lower) {
                binary.push(lower.clone());
            }
            lower.push_str(BIN);
            append(metadata, &lower, BASE64.encode(value).as_bytes());
        } else if is_bin {
            append(metadata, &lower, BASE64.encode(value).as_bytes());
        } else {
            append(metadata, &lower, value);
        }
    }
    if !binary.is_empty() {
        put(metadata, BINARY, binary.join(",").as_bytes());
    }
}

/// Why metadata cannot be read: a sentence for the peer.
pub(crate) type Illegible = String;

/// Reads what a peer sent.
///
/// # Errors
/// A sentence that names the entry that is wrong.
pub(crate) fn read(
    subject: Subject,
    payload: Bytes,
    metadata: &HeaderMap,
) -> Result<Message, Illegible> {
    let mut message =
        Message::new(subject, payload).with_content_type(content_type(metadata.get(CONTENT_TYPE)));
    let ours = metadata.get(BINARY).and_then(|names| names.to_str().ok());
    for (name, value) in metadata {
        let name = name.as_str();
        match name.strip_suffix(BIN).unwrap_or(name) {
            CORRELATION_ID => message = message.with_correlation_id(text(name, value)?),
            EXACT_TYPE => message = message.with_content_type(ContentType::new(text(name, value)?)),
            wire::ID => {
                wire::read(&mut message, wire::ID, text(name, value)?.as_bytes());
            }
            _ if name == TIME => {
                if let Some(time) = read_time(legible(name, value)?) {
                    message = message.with_timestamp(time);
                }
            }
            _ if name == TIMEOUT => {
                message = message.with_deadline(timeout(legible(name, value)?)?);
            }
            _ if name == BINARY || is_native(name) => {}
            _ => read_header(&mut message, name, value, ours)?,
        }
    }
    Ok(message)
}

/// The text of an entry of ours, which may stand in base64 under the name with `-bin`.
fn text<'a>(name: &str, value: &'a HeaderValue) -> Result<Cow<'a, str>, Illegible> {
    if !name.ends_with(BIN) {
        return legible(name, value).map(Cow::Borrowed);
    }
    let bytes = BASE64.decode(value.as_bytes().trim_ascii());
    let bytes = bytes.map_err(|_| illegible(name, "is not base64"))?;
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => Ok(Cow::Owned(text)),
        _ => Err(illegible(name, "is no text")),
    }
}

fn legible<'a>(name: &str, value: &'a HeaderValue) -> Result<&'a str, Illegible> {
    value.to_str().map_err(|_| {
        illegible(
            name,
            "holds bytes that are no text; such values belong under a name that ends in -bin",
        )
    })
}

fn read_header(
    message: &mut Message,
    name: &str,
    value: &HeaderValue,
    ours: Option<&str>,
) -> Result<(), Illegible> {
    let plain = |name: &str| name.strip_prefix(PLAIN).map(str::to_owned);
    let Some(stem) = name.strip_suffix(BIN) else {
        legible(name, value)?;
        if let Some(plain) = plain(name) {
            message
                .headers_mut()
                .append_foreign(&plain, Bytes::copy_from_slice(value.as_bytes()));
        } else if !wire::read(message, name, value.as_bytes()) {
            message
                .headers_mut()
                .append_foreign(name, Bytes::copy_from_slice(value.as_bytes()));
        }
        return Ok(());
    };
    let is_ours = ours.is_some_and(|names| names.split(',').any(|name| name == stem));
    let name_there = if is_ours { stem } else { name };
    let name_there = plain(name_there).unwrap_or_else(|| name_there.to_owned());
    // Several values may come as one, with commas between them.
    for part in value.as_bytes().split(|byte| *byte == b',') {
        let bytes = BASE64.decode(part.trim_ascii());
        let bytes = bytes.map_err(|_| illegible(name, "is not base64"))?;
        if !wire::read(message, &name_there, &bytes) {
            message
                .headers_mut()
                .append_foreign(&name_there, bytes.into());
        }
    }
    Ok(())
}

fn illegible(name: &str, why: &str) -> Illegible {
    format!("the metadata `{name}` {why}")
}

/// The content type that gRPC is told, and the exact one where that does not tell it.
fn native_type(content_type: Option<&ContentType>) -> (HeaderValue, Option<&ContentType>) {
    let Some(exact) = content_type else {
        return (HeaderValue::from_static("application/grpc+json"), None);
    };
    if *exact == ContentType::PROTOBUF {
        return (HeaderValue::from_static("application/grpc+proto"), None);
    }
    if *exact == ContentType::JSON {
        return (
            HeaderValue::from_static("application/grpc+json"),
            Some(exact),
        );
    }
    let simple = |text: &&str| {
        text.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !text.is_empty()
            && !["json", "proto"].contains(text)
    };
    let suffix = exact.as_str().strip_prefix("application/").filter(simple);
    match suffix.map(|suffix| HeaderValue::try_from(format!("application/grpc+{suffix}"))) {
        Some(Ok(native)) => (native, None),
        _ => (HeaderValue::from_static("application/grpc"), Some(exact)),
    }
}

/// What gRPC's content type says of the payload; `None` is JSON.
fn content_type(native: Option<&HeaderValue>) -> Option<ContentType> {
    let text = native
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let text = text
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    match text.strip_prefix("application/grpc").unwrap_or_default() {
        "+json" => None,
        "" | "+proto" => Some(ContentType::PROTOBUF),
        other => Some(ContentType::new(format!(
            "application/{}",
            other.trim_start_matches('+')
        ))),
    }
}

/// Whether content of this type is a gRPC message at all.
pub(crate) fn is_grpc(native: Option<&HeaderValue>) -> bool {
    native.is_some_and(|value| {
        let bytes = value.as_bytes();
        let name = b"application/grpc";
        bytes.len() >= name.len()
            && bytes[..name.len()].eq_ignore_ascii_case(name)
            && matches!(bytes.get(name.len()), None | Some(b'+' | b';'))
    })
}

/// Reads `grpc-timeout`: at most eight digits, and a unit.
fn timeout(text: &str) -> Result<Duration, Illegible> {
    let wrong = || {
        illegible(
            TIMEOUT,
            "is not up to eight digits and a unit, one of H, M, S, m, u, n",
        )
    };
    let (digits, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(wrong)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let left = match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return Err(wrong()),
    };
    Ok(left.min(LONGEST))
}

/// How much time a request has left, if it says so legibly.
pub(crate) fn time_left(metadata: &HeaderMap) -> Option<Duration> {
    timeout(metadata.get(TIMEOUT)?.to_str().ok()?).ok()
}

/// Writes `grpc-timeout`. Rounded up: a server that gives up later than the caller answers nobody, one that gives up earlier
/// answers wrongly.
pub(crate) fn timeout_of(left: Duration) -> HeaderValue {
    let left = left.min(LONGEST);
    let micros = left.as_nanos().div_ceil(1_000).max(1);
    let text = if micros < 100_000_000 {
        format!("{micros}u")
    } else {
        format!("{}m", left.as_micros().div_ceil(1_000))
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("86400S"))
}

fn read_time(text: &str) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(text.parse().ok()?))
}

/// Sets an entry of ours; bytes that are no printable ASCII go under the name with `-bin`, which is read back like any other.
fn put(metadata: &mut HeaderMap, name: &'static str, value: &[u8]) {
    match is_printable(value) {
        true => append(metadata, name, value),
        false => append(
            metadata,
            &format!("{name}{BIN}"),
            BASE64.encode(value).as_bytes(),
        ),
    }
}

fn append(metadata: &mut HeaderMap, name: &str, value: &[u8]) {
    // A name that `Headers` took, in lower case, and a printable value are legal.
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
        metadata.append(name, value);
    }
}

/// What HTTP carries unchanged: no control character, nothing beyond ASCII, no space at the ends.
fn is_printable(value: &[u8]) -> bool {
    value.iter().all(|byte| (0x20..=0x7e).contains(byte)) && value.trim_ascii().len() == value.len()
}

/// Whether a user's header of this name would be taken for something else on the way.
fn is_taken(name: &str) -> bool {
    is_native(name) || name.starts_with("grpc-") || name == "authorization"
}

/// Names that belong to HTTP or gRPC.
fn is_native(name: &str) -> bool {
    matches!(
        name,
        "te" | "content-type"
            | "content-length"
            | "user-agent"
            | "host"
            | "connection"
            | "keep-alive"
            | "proxy-connection"
            | "transfer-encoding"
            | "upgrade"
            | "trailer"
            | "date"
            | "grpc-status"
            | "grpc-message"
            | "grpc-encoding"
            | "grpc-accept-encoding"
            | "grpc-message-type"
            | "grpc-status-details-bin"
            | TIMEOUT
    ) || name.starts_with(':')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::{Headers, MessageId};
    use proptest::prelude::*;

    fn message() -> Message {
        Message::new(Subject::parse("a.b").unwrap(), "x")
    }

    /// To metadata and back.
    fn there_and_back(message: &Message) -> Message {
        let (mut metadata, native) = metadata(message);
        metadata.insert(CONTENT_TYPE, native);
        read(
            message.subject().clone(),
            message.payload().clone(),
            &metadata,
        )
        .unwrap()
    }

    fn headers_of(message: &Message) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = message
            .headers()
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()))
            .collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    }

    #[test]
    fn the_fields_of_a_message_survive() {
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let sent = message()
            .with_id(MessageId::random())
            .with_key("ä.ö")
            .with_correlation_id("c-1")
            .with_timestamp(time);
        let read = there_and_back(&sent);
        assert_eq!(read.id(), sent.id());
        assert_eq!(read.key(), sent.key());
        assert_eq!(read.correlation_id(), Some("c-1"));
        assert_eq!(read.timestamp(), Some(time));
        assert!(read.headers().is_empty());
    }

    #[test]
    fn a_field_that_is_no_ascii_survives() {
        let sent = message()
            .with_id("bestellung-ä")
            .with_correlation_id("gespräch 4")
            .with_content_type(ContentType::new("text/plain; note=\"ü\""));
        let (metadata, _) = metadata(&sent);
        assert_eq!(metadata["anywire-id-bin"], "YmVzdGVsbHVuZy3DpA");
        let read = there_and_back(&sent);
        assert_eq!(read.id(), sent.id());
        assert_eq!(read.correlation_id(), sent.correlation_id());
        assert_eq!(read.content_type(), sent.content_type());
        assert!(read.headers().is_empty());
    }

    #[test]
    fn the_content_type_survives_and_is_native_where_grpc_has_it() {
        for (exact, native) in [
            (None, "application/grpc+json"),
            (Some("application/json"), "application/grpc+json"),
            (Some("application/protobuf"), "application/grpc+proto"),
            (Some("application/cbor"), "application/grpc+cbor"),
            (
                Some("application/octet-stream"),
                "application/grpc+octet-stream",
            ),
            (Some("application/vnd.x+json; a=b"), "application/grpc"),
            (Some("application/proto"), "application/grpc"),
            (Some("text/plain"), "application/grpc"),
        ] {
            let sent = message().with_content_type(exact.map(ContentType::new));
            assert_eq!(metadata(&sent).1, native);
            assert_eq!(there_and_back(&sent).content_type(), sent.content_type());
        }
        let plain = content_type(Some(&HeaderValue::from_static("application/grpc")));
        assert_eq!(plain, Some(ContentType::PROTOBUF));
    }

    #[test]
    fn a_foreign_peer_sees_native_metadata() {
        let mut headers = Headers::new();
        headers.append("Tenant", "blue").unwrap();
        headers.append("raw", [0, 255].as_slice()).unwrap();
        headers.append("te", "x").unwrap();
        let (metadata, _) = metadata(&message().with_headers(headers));
        assert_eq!(metadata["tenant"], "blue");
        assert_eq!(metadata["raw-bin"], "AP8");
        assert_eq!(metadata["anywire-plain-te"], "x");
    }

    #[test]
    fn foreign_metadata_keeps_its_names() {
        let mut metadata = HeaderMap::new();
        metadata.insert("trace-bin", HeaderValue::from_static("AP8=, AQ"));
        metadata.insert("user-agent", HeaderValue::from_static("grpc-python"));
        metadata.insert(TIMEOUT, HeaderValue::from_static("1500m"));
        let message = read(Subject::parse("a.b").unwrap(), Bytes::new(), &metadata).unwrap();
        let values: Vec<_> = message.headers().get_all("trace-bin").cloned().collect();
        assert_eq!(values, [vec![0, 255], vec![1]]);
        assert_eq!(message.headers().len(), 2);
        assert_eq!(message.deadline(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn bad_metadata_is_told_by_its_name() {
        let long = "123456789S";
        for (name, value) in [
            ("x-bin", b"***".as_slice()),
            ("anywire-id-bin", b"***"),
            ("anywire-correlation-id-bin", b"//8"),
            ("anywire-content-type-bin", b"YQ0K"),
            ("tenant", b"\xff\xfe"),
            (TIMEOUT, b"soon"),
            (TIMEOUT, b""),
            (TIMEOUT, b"S"),
            (TIMEOUT, b"-1S"),
            (TIMEOUT, long.as_bytes()),
        ] {
            let mut metadata = HeaderMap::new();
            metadata.insert(name, HeaderValue::from_bytes(value).unwrap());
            let error = read(Subject::parse("a.b").unwrap(), Bytes::new(), &metadata).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_forged_reserved_entry_is_no_header() {
        let mut metadata = HeaderMap::new();
        metadata.insert("anywire-attempt", HeaderValue::from_static("4294967295"));
        metadata.insert("anywire-unheard-of", HeaderValue::from_static("x"));
        let message = read(Subject::parse("a.b").unwrap(), Bytes::new(), &metadata).unwrap();
        assert!(message.headers().is_empty());
    }

    #[test]
    fn a_timeout_is_written_as_it_is_read() {
        for left in [1, 999, 1_000_000, 99_999_999, 100_000_000, 86_400_000_000] {
            let left = Duration::from_micros(left);
            let text = timeout_of(left);
            let read = timeout(text.to_str().unwrap()).unwrap();
            assert!(
                read >= left && read < left + Duration::from_millis(1),
                "{text:?}"
            );
        }
        assert_eq!(timeout_of(Duration::ZERO), "1u");
    }

    proptest! {
        #[test]
        fn headers_of_any_bytes_survive(
            headers in prop::collection::vec(
                ("[A-Za-z0-9_.-]{1,12}(-bin)?", prop::collection::vec(any::<u8>(), 0..12)),
                0..8,
            ),
        ) {
            let mut all = Headers::new();
            for (name, value) in headers {
                // A reserved name is refused.
                let _ = all.append(&name, value.as_slice());
            }
            let sent = message().with_headers(all);
            let read = there_and_back(&sent);
            prop_assert_eq!(headers_of(&read), headers_of(&sent));
        }
    }
}
