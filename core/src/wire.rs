//! The framework's reserved headers, for adapters: a field as text where the wire has no native place for it.
//!
//! An adapter writes the fields that its wire lacks with [`fields`] and hands every inbound `anywire-*` header to
//! [`read`], which clamps what a peer may have forged.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::message::MAX_KEY;
use crate::{Key, Message, MessageId, Pattern, Subject, Trail};

/// The longest error text that a trail carries, in bytes.
pub(crate) const MAX_ERROR: usize = 1024;
/// The longest frame of a streaming call that is read, in bytes.
const MAX_FRAME: usize = 1024;
/// The longest other text that is read from a reserved header, in bytes.
const MAX_TEXT: usize = 255;
/// The highest attempt that is believed.
const MAX_ATTEMPT: u32 = 1_000;
/// The longest time that a call may claim to have left.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// The id of the message.
pub const ID: &str = "anywire-id";
/// The key of the message.
pub const KEY: &str = "anywire-key";
/// The subject that the message was first sent to.
pub const SUBJECT: &str = "anywire-subject";
/// The pattern of the subscription that failed it.
pub const PATTERN: &str = "anywire-pattern";
/// The group of the subscription that failed it.
pub const GROUP: &str = "anywire-group";
/// The handler that failed it.
pub const HANDLER: &str = "anywire-handler";
/// How many attempts have failed.
pub const ATTEMPT: &str = "anywire-attempt";
/// The transport that it came from.
pub const ORIGIN: &str = "anywire-origin";
/// What the last attempt failed with; on a reply, the error's code.
pub const ERROR: &str = "anywire-error";
/// When the first attempt failed, in milliseconds since 1970.
pub const FIRST_AT: &str = "anywire-first-at";
/// When the last attempt failed, in milliseconds since 1970.
pub const LAST_AT: &str = "anywire-last-at";
/// When a delayed copy is due, in milliseconds since 1970.
pub const DUE: &str = "anywire-due";
/// The time that a call has left, in milliseconds.
pub const DEADLINE: &str = "anywire-deadline";
/// Which frame of an emulated streaming call it is.
pub const FRAME: &str = "anywire-frame";

/// The fields of `message` as (reserved header, text). The adapter leaves out those that its wire has a place for.
#[must_use]
pub fn fields(message: &Message) -> Vec<(&'static str, String)> {
    let mut fields = Vec::new();
    let mut add = |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
    add(ID, message.id().map(MessageId::to_string));
    add(
        KEY,
        message
            .key()
            .map(|key| Subject::escape_bytes(key.as_bytes())),
    );
    add(
        DEADLINE,
        message.deadline().map(|left| left.as_millis().to_string()),
    );
    add(FRAME, message.frame().map(str::to_owned));
    if message.trail().is_none() {
        add(ERROR, message.error_code().map(str::to_owned));
    }
    if let Some(trail) = message.trail() {
        add(SUBJECT, Some(trail.subject.to_string()));
        add(
            PATTERN,
            trail
                .pattern
                .as_ref()
                .map(|pattern| pattern.wildcards().to_owned()),
        );
        add(GROUP, trail.group.clone());
        add(HANDLER, trail.handler.clone());
        add(ATTEMPT, Some(trail.attempt.to_string()));
        add(ORIGIN, trail.origin.clone());
        add(
            ERROR,
            trail
                .error
                .as_deref()
                .map(|text| clip(text, MAX_ERROR).to_owned()),
        );
        add(FIRST_AT, trail.first_at.map(millis));
        add(LAST_AT, trail.last_at.map(millis));
        add(DUE, trail.due.map(millis));
    }
    fields
}

/// Reads one inbound header into `message`. `false` means that the name is not reserved and belongs to the user.
///
/// A reserved header that does not read as what it should be is dropped; numbers and texts are clamped.
pub fn read(message: &mut Message, name: &str, value: &[u8]) -> bool {
    if !crate::headers::is_reserved(name) {
        return false;
    }
    if let Ok(text) = std::str::from_utf8(value) {
        let name = name.to_ascii_lowercase();
        let max = match name.as_str() {
            ERROR => MAX_ERROR,
            FRAME => MAX_FRAME,
            // Escaped, a byte takes up to three.
            KEY => 3 * MAX_KEY,
            _ => MAX_TEXT,
        };
        read_text(message, &name, clip(text, max));
    }
    true
}

fn read_text(message: &mut Message, name: &str, text: &str) {
    let owned = || Some(text.to_owned());
    match name {
        ID => message.set_id(MessageId::parse(text)),
        KEY => replace(message, |message| {
            message.with_key(Key::from(Subject::unescape_bytes(text)))
        }),
        DEADLINE => {
            if let Ok(left) = text.parse() {
                let left = Duration::from_millis(left).min(MAX_DEADLINE);
                replace(message, |message| message.with_deadline(left));
            }
        }
        FRAME => replace(message, |message| message.with_frame(text)),
        SUBJECT => {
            if let Ok(subject) = Subject::parse_any(text) {
                trail(message).subject = subject;
            }
        }
        PATTERN => trail(message).pattern = Pattern::parse_any(text).ok(),
        GROUP => trail(message).group = owned(),
        HANDLER => trail(message).handler = owned(),
        ATTEMPT => {
            trail(message).attempt = text
                .parse::<u32>()
                .map_or(0, |count| count.min(MAX_ATTEMPT))
        }
        ORIGIN => trail(message).origin = owned(),
        // A trail's error, or a reply's code: headers come in any order, so it may be known later which.
        ERROR if message.trail().is_some() => trail(message).error = owned(),
        ERROR => replace(message, |message| message.with_error_code(text)),
        FIRST_AT => trail(message).first_at = time(text),
        LAST_AT => trail(message).last_at = time(text),
        DUE => trail(message).due = time(text),
        _ => {}
    }
}

/// The trail, begun with the error that came before it.
fn trail(message: &mut Message) -> &mut Trail {
    if message.trail().is_none() {
        message.trail_mut().error = message.take_error_code();
    }
    message.trail_mut()
}

fn replace(message: &mut Message, change: impl FnOnce(Message) -> Message) {
    let changed = change(message.clone());
    *message = changed;
}

pub(crate) fn clip(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn millis(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis()
        .to_string()
}

fn time(text: &str) -> Option<SystemTime> {
    text.parse()
        .ok()
        .and_then(|millis| UNIX_EPOCH.checked_add(Duration::from_millis(millis)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message::new(Subject::parse("a.b").unwrap(), "x")
    }

    #[test]
    fn a_trail_survives_its_headers_in_any_order() {
        let mut sent = message();
        *sent.trail_mut() = Trail {
            group: Some("shop".into()),
            attempt: 3,
            error: Some("no luck".into()),
            ..Trail::new(Subject::parse("c.d").unwrap())
        };
        let mut headers = fields(&sent);
        for _ in 0..headers.len() {
            headers.rotate_left(1);
            let mut read_back = message();
            for (name, value) in &headers {
                assert!(read(&mut read_back, name, value.as_bytes()));
            }
            assert_eq!(read_back.trail(), sent.trail());
            assert_eq!(read_back.error_code(), None);
        }
    }

    #[test]
    fn the_code_of_a_reply_is_no_trail() {
        let sent = message().with_error_code("unlucky");
        let mut read_back = message();
        for (name, value) in fields(&sent) {
            read(&mut read_back, name, value.as_bytes());
        }
        assert_eq!(
            (read_back.error_code(), read_back.trail()),
            (Some("unlucky"), None)
        );
    }

    #[test]
    fn the_longest_key_comes_back_whole() {
        let sent = message().with_key("ä.".repeat(MAX_KEY / 3).as_str());
        let mut read_back = message();
        for (name, value) in fields(&sent) {
            read(&mut read_back, name, value.as_bytes());
        }
        assert_eq!(read_back.key(), sent.key());
    }

    #[test]
    fn forged_headers_are_clamped_or_dropped() {
        let mut forged = message();
        for (name, value) in [
            ("Anywire-Attempt", "4294967295"),
            (DEADLINE, "18446744073709551615"),
            (SUBJECT, "a\r\nb"),
            (PATTERN, "a..b"),
            (DUE, "18446744073709551615"),
            ("anywire-unheard-of", "x"),
        ] {
            assert!(read(&mut forged, name, value.as_bytes()), "{name}");
        }
        assert!(read(&mut forged, ERROR, "e".repeat(5_000).as_bytes()));
        assert!(read(&mut forged, ID, &[0xff, 0xfe]));
        let trail = forged.trail().unwrap();
        assert_eq!(trail.attempt, MAX_ATTEMPT);
        assert_eq!(trail.subject.as_str(), "a.b");
        assert_eq!(trail.pattern, None);
        assert_eq!(trail.error.as_ref().unwrap().len(), MAX_ERROR);
        assert_eq!(forged.deadline(), Some(MAX_DEADLINE));
        assert_eq!(forged.id(), None);
        assert!(!read(&mut forged, "tenant", b"blue"));
    }
}
