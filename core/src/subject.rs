//! Subjects (where a message is sent) and patterns (what a handler listens to). Parsed once, at the door.

mod pattern;

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use smol_str::SmolStr;

pub use pattern::{Captures, Pattern};

use crate::{Error, ErrorKind, Result};

/// The longest subject or pattern, in bytes. It is the shortest limit of the wires (an AMQP short string).
pub const MAX_SUBJECT_LEN: usize = 255;

/// First tokens that belong to the framework or to a broker. A leading wildcard never matches them.
const RESERVED_FIRST: [&str; 3] = ["anywire", "_INBOX", "amq"];

/// The dotted name a message is sent to, such as `shop.eu.placed`. Holds no wildcard.
///
/// Tokens are made of ASCII letters, digits and `_ - = : @ ~ %`. User data becomes a token with [`Subject::escape`].
///
/// ```
/// use anywire::Subject;
///
/// let subject = Subject::parse("shop.eu.placed")?;
/// assert_eq!(subject.tokens().collect::<Vec<_>>(), ["shop", "eu", "placed"]);
/// assert!(Subject::parse("shop.*.placed").is_err());
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(SmolStr);

impl Subject {
    /// Reads a subject that a user may publish to.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an empty or illegal token, a wildcard or a reserved first token;
    /// [`ErrorKind::TooLarge`] above [`MAX_SUBJECT_LEN`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let subject = Self::parse_any(text)?;
        if subject.is_reserved() {
            return Err(bad_subject(text, "its first token is reserved"));
        }
        Ok(subject)
    }

    /// Reads a subject, framework subjects such as `anywire.dead.shop` included. For adapters.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), without the rule about reserved first tokens.
    pub fn parse_any(text: &str) -> Result<Self, Error> {
        if !is_plain(text.as_bytes()) {
            // Something is wrong; find out what.
            check_length(text)?;
            check_tokens(text.as_bytes(), Wildcards::Refused)
                .map_err(|why| bad_subject(text, why))?;
        }
        Ok(Self(SmolStr::new(text)))
    }

    /// Where the dead letters of `group` are kept: `anywire.dead.<group>`.
    #[must_use]
    pub fn dead_letters(group: &str) -> Self {
        Self(smol_str::format_smolstr!(
            "anywire.dead.{}",
            Self::escape(group)
        ))
    }

    /// Turns any text into one legal token, reversibly: other characters become `=XX`, by their UTF-8 bytes.
    ///
    /// ```
    /// # use anywire::Subject;
    /// assert_eq!(Subject::escape("a.b*"), "a=2Eb=2A");
    /// assert_eq!(Subject::unescape("a=2Eb=2A"), "a.b*");
    /// ```
    #[must_use]
    pub fn escape(text: &str) -> String {
        Self::escape_bytes(text.as_bytes())
    }

    /// As [`escape`](Self::escape), for any bytes. For adapters.
    #[must_use]
    pub fn escape_bytes(bytes: &[u8]) -> String {
        use fmt::Write;
        if bytes.is_empty() {
            return "=".to_owned();
        }
        let mut token = String::with_capacity(bytes.len());
        for &byte in bytes {
            if is_token_byte(byte) && byte != b'=' {
                token.push(char::from(byte));
            } else {
                let _ = write!(token, "={byte:02X}");
            }
        }
        token
    }

    /// Reads back what [`escape`](Self::escape) made. Text that is not an escape stays as it is.
    #[must_use]
    pub fn unescape(token: &str) -> String {
        String::from_utf8(Self::unescape_bytes(token).into()).unwrap_or_else(|_| token.to_owned())
    }

    /// As [`unescape`](Self::unescape), to bytes. For adapters.
    #[must_use]
    pub fn unescape_bytes(token: &str) -> Bytes {
        if token == "=" {
            return Bytes::new();
        }
        let bytes = token.as_bytes();
        let mut text = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            let hex = (bytes[at] == b'=')
                .then(|| token.get(at + 1..at + 3))
                .flatten();
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => {
                    text.push(byte);
                    at += 3;
                }
                None => {
                    text.push(bytes[at]);
                    at += 1;
                }
            }
        }
        text.into()
    }

    /// The subject as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tokens between the dots.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether the first token belongs to the framework or to a broker.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        // Most first tokens differ from the reserved ones in their first byte already.
        matches!(self.0.as_bytes().first(), Some(b'a' | b'_')) && is_reserved(self.first_token())
    }

    /// Whether this is a dead-letter subject.
    #[must_use]
    pub fn is_dead_letters(&self) -> bool {
        self.0.starts_with("anywire.dead.")
    }

    fn first_token(&self) -> &str {
        let end = self
            .0
            .bytes()
            .position(|byte| byte == b'.')
            .unwrap_or(self.0.len());
        &self.0[..end]
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for Subject {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl std::borrow::Borrow<str> for Subject {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Whether `*`, `{name}` and `>` may stand for tokens.
#[derive(Clone, Copy, PartialEq)]
enum Wildcards {
    Allowed,
    Refused,
}

/// Checks a pattern in a `const`: what [`Event::new`](crate::Event::new) and [`Call::new`](crate::Call::new) panic on.
pub(crate) const fn check_const(text: &str) {
    assert!(
        text.len() <= MAX_SUBJECT_LEN,
        "the pattern is longer than 255 bytes"
    );
    if check_tokens(text.as_bytes(), Wildcards::Allowed).is_err() {
        panic!(
            "not a pattern: tokens of letters, digits and _-=:@~% between dots, `*`, `{{name}}`, `>` only at the end"
        );
    }
}

const fn check_tokens(bytes: &[u8], wildcards: Wildcards) -> std::result::Result<(), &'static str> {
    let mut start = 0;
    let mut at = 0;
    loop {
        if at == bytes.len() || bytes[at] == b'.' {
            if at == start {
                return Err("it has an empty token");
            }
            let last = at == bytes.len();
            if let Err(why) = check_token(bytes, start, at, last, wildcards) {
                return Err(why);
            }
            if last {
                return Ok(());
            }
            start = at + 1;
        }
        at += 1;
    }
}

const fn check_token(
    bytes: &[u8],
    start: usize,
    end: usize,
    last: bool,
    wildcards: Wildcards,
) -> std::result::Result<(), &'static str> {
    let first = bytes[start];
    let allowed = matches!(wildcards, Wildcards::Allowed);
    if end - start == 1 && (first == b'*' || first == b'>') {
        if !allowed {
            return Err("a subject to publish to holds no wildcard");
        }
        return if first == b'>' && !last {
            Err("`>` may only be the last token")
        } else {
            Ok(())
        };
    }
    if first == b'{' {
        if !allowed {
            return Err(
                "a subject to publish to holds no capture; fill it, as in `PLACED.with(\"region\", region)`",
            );
        }
        if bytes[end - 1] != b'}' || end - start < 3 {
            return Err("a capture is a whole token, as in `{region}`");
        }
        return check_bytes(bytes, start + 1, end - 1);
    }
    check_bytes(bytes, start, end)
}

const fn check_bytes(
    bytes: &[u8],
    start: usize,
    end: usize,
) -> std::result::Result<(), &'static str> {
    let mut at = start;
    while at < end {
        if !is_token_byte(bytes[at]) {
            return Err(
                "tokens are made of ASCII letters, digits and _-=:@~% (see `Subject::escape`)",
            );
        }
        at += 1;
    }
    Ok(())
}

const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'=' | b':' | b'@' | b'~' | b'%')
}

/// Which bytes tokens are made of: an emit parses its subject, so this is on the hot path.
const TOKEN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_token_byte(byte as u8);
        byte += 1;
    }
    table
};

/// Whether this is a subject: the quick answer, without a reason.
fn is_plain(bytes: &[u8]) -> bool {
    let mut in_token = false;
    for &byte in bytes {
        if TOKEN_BYTES[usize::from(byte)] {
            in_token = true;
        } else if byte == b'.' && in_token {
            in_token = false;
        } else {
            return false;
        }
    }
    in_token && bytes.len() <= MAX_SUBJECT_LEN
}

fn is_reserved(first_token: &str) -> bool {
    RESERVED_FIRST.contains(&first_token)
}

fn check_length(text: &str) -> Result<(), Error> {
    if text.len() <= MAX_SUBJECT_LEN {
        return Ok(());
    }
    let message = format!(
        "a subject of {} bytes is over the limit of {MAX_SUBJECT_LEN}",
        text.len()
    );
    Err(Error::new(ErrorKind::TooLarge, message))
}

fn bad_subject(text: &str, why: &str) -> Error {
    Error::config(format!("{:?} is not a subject: {why}", clip(text)))
}

fn bad_pattern(text: &str, why: &str) -> Error {
    Error::config(format!("{:?} is not a pattern: {why}", clip(text)))
}

/// Peer text in messages is cut; `{:?}` escapes it.
fn clip(text: &str) -> &str {
    text.get(..256).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect(text)
    }

    fn subject(text: &str) -> Subject {
        Subject::parse_any(text).expect(text)
    }

    #[test]
    fn hostile_names_are_refused() {
        let long = "a.".repeat(10_000) + "a";
        for text in [
            "", ".", "a.", ".a", "a..b", "a b", "a\r\nb", "a\0b", "a/b", "a.*", "a.>", "ä",
            "a.{b}", "a#", "$SYS.a", &long,
        ] {
            assert!(Subject::parse(text).is_err(), "{text:?}");
        }
        for text in [
            "a.>.b",
            "a.{b",
            "a.{}",
            "a.b}",
            "a.{b}.{b}",
            "a.**",
            "x{y}",
            "a.{b.c}",
            "anywire.reply.x",
            "amq.x",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text:?}");
        }
        assert!(Subject::parse("anywire.dead.shop").is_err());
        assert!(Pattern::parse("anywire.dead.shop").is_ok());
    }

    #[test]
    fn a_leading_wildcard_never_meets_a_reserved_first_token() {
        for text in ["anywire.dead.shop", "_INBOX.x", "amq.gen"] {
            assert!(!pattern(">").matches(&subject(text)));
            assert!(!pattern("*.>").matches(&subject(text)));
        }
        assert!(pattern("anywire.dead.*").matches(&subject("anywire.dead.shop")));
        assert!(!pattern(">").overlaps(&pattern("anywire.dead.shop")));
        assert!(!pattern(">").covers(&pattern("anywire.dead.shop")));
    }

    #[test]
    fn renaming_a_capture_changes_nothing() {
        assert_eq!(pattern("a.{x}.>"), pattern("a.*.>"));
        assert_eq!(pattern("a.{x}").wildcards(), "a.*");
        assert_eq!(pattern("a.{x}").capture_names().collect::<Vec<_>>(), ["x"]);
    }

    /// The definition of matching, written as plainly as can be.
    fn naive(pattern: &[&str], subject: &[&str]) -> bool {
        match (pattern, subject) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            ([p, pattern @ ..], [s, subject @ ..]) => {
                (*p == "*" || p == s) && naive(pattern, subject)
            }
            _ => false,
        }
    }

    fn tokens(wild: bool) -> impl Strategy<Value = Vec<&'static str>> {
        let token = prop_oneof![
            Just("a"),
            Just("b"),
            Just("c"),
            Just(if wild { "*" } else { "a" })
        ];
        let tail = if wild {
            prop_oneof![Just(None), Just(Some(">"))].boxed()
        } else {
            Just(None).boxed()
        };
        (prop::collection::vec(token, 1..5), tail).prop_map(|(mut tokens, tail)| {
            tokens.extend(tail);
            tokens
        })
    }

    proptest! {
        #[test]
        fn the_quick_check_agrees_with_the_thorough_one(text in "[a.*>{}# ]{0,8}") {
            let thorough = check_tokens(text.as_bytes(), Wildcards::Refused).is_ok();
            prop_assert_eq!(is_plain(text.as_bytes()), thorough);
        }

        #[test]
        fn the_matcher_agrees_with_the_naive_one(p in tokens(true), s in tokens(false)) {
            prop_assert_eq!(pattern(&p.join(".")).matches(&subject(&s.join("."))), naive(&p, &s));
        }

        #[test]
        fn overlap_and_cover_agree_with_matching(p in tokens(true), q in tokens(true), s in tokens(false)) {
            let (p, q, s) = (pattern(&p.join(".")), pattern(&q.join(".")), subject(&s.join(".")));
            prop_assert_eq!(p.overlaps(&q), q.overlaps(&p));
            if p.matches(&s) && q.matches(&s) {
                prop_assert!(p.overlaps(&q));
            }
            if p.covers(&q) {
                prop_assert!(p.overlaps(&q));
                prop_assert!(!q.matches(&s) || p.matches(&s));
            }
        }

        #[test]
        fn any_text_survives_escaping_and_never_steers(text in any::<String>()) {
            let token = Subject::escape(&text);
            prop_assert!(token.bytes().all(is_token_byte));
            prop_assert_eq!(Subject::unescape(&token), text);
        }

        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = Subject::parse(&text);
            let _ = Pattern::parse(&text);
            let _ = Subject::unescape(&text);
        }
    }
}
