//! The framework's reserved headers, for adapters: a field as text where the wire has no native place for it.
//!
//! An adapter writes the fields that its wire lacks with [`fields`] and hands every inbound `anywire-*` header to
//! [`read`], which clamps what a peer may have forged.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Key, Message, MessageId, Pattern, Subject};

/// The longest error text that a trail carries, in bytes.
const MAX_ERROR: usize = 1024;
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
    add(ERROR, message.error_code().map(str::to_owned));
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
        let text = clip(
            text,
            if name.eq_ignore_ascii_case(ERROR) {
                MAX_ERROR
            } else {
                MAX_TEXT
            },
        );
        read_text(message, &name.to_ascii_lowercase(), text);
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
        SUBJECT => {
            if let Ok(subject) = Subject::parse_any(text) {
                message.trail_mut().subject = subject;
            }
        }
        PATTERN => message.trail_mut().pattern = Pattern::parse_any(text).ok(),
        GROUP => message.trail_mut().group = owned(),
        HANDLER => message.trail_mut().handler = owned(),
        ATTEMPT => {
            message.trail_mut().attempt = text
                .parse::<u32>()
                .map_or(0, |count| count.min(MAX_ATTEMPT))
        }
        ORIGIN => message.trail_mut().origin = owned(),
        ERROR => {
            if message.trail().is_some() {
                message.trail_mut().error = owned();
            }
            replace(message, |message| message.with_error_code(text));
        }
        FIRST_AT => message.trail_mut().first_at = time(text),
        LAST_AT => message.trail_mut().last_at = time(text),
        DUE => message.trail_mut().due = time(text),
        _ => {}
    }
}

fn replace(message: &mut Message, change: impl FnOnce(Message) -> Message) {
    let changed = change(message.clone());
    *message = changed;
}

fn clip(text: &str, max: usize) -> &str {
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
