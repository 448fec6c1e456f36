//! Patterns: what a handler listens to.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use smol_str::SmolStr;

use super::{Subject, Wildcards, bad_pattern, check_length, check_tokens, is_reserved};
use crate::{Error, Result};

/// One token of a [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Token {
    Literal(SmolStr),
    One(Option<SmolStr>),
    Rest,
}

/// What a handler listens to: a subject that may hold `*` (one token), `{name}` (one token, captured) and a final `>`
/// (the rest, one or more tokens).
///
/// Two patterns are equal when they match the same subjects: `shop.{region}.placed` equals `shop.*.placed`, since to a
/// broker they are the same thing.
///
/// ```
/// use anywire::{Pattern, Subject};
///
/// let pattern = Pattern::parse("shop.{region}.placed")?;
/// let subject = Subject::parse("shop.eu.placed")?;
/// let captures = pattern.captures(&subject).unwrap();
/// assert_eq!(captures.get("region"), Some("eu"));
/// assert_eq!(pattern.wildcards(), "shop.*.placed");
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone)]
pub struct Pattern(Arc<Parsed>);

struct Parsed {
    /// As the user wrote it.
    text: SmolStr,
    /// With captures as `*`: the identity of the pattern.
    wildcards: SmolStr,
    tokens: Vec<Token>,
}

impl Pattern {
    /// Reads a pattern that a user may listen to. `anywire.dead.<group>` is the one framework subject allowed.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for an illegal token, a `>` that is not last, a capture named twice or a reserved first
    /// token; [`TooLarge`](crate::ErrorKind::TooLarge) above [`MAX_SUBJECT_LEN`](crate::MAX_SUBJECT_LEN).
    pub fn parse(text: &str) -> Result<Self, Error> {
        let pattern = Self::parse_any(text)?;
        let reserved = matches!(&pattern.0.tokens[0], Token::Literal(first) if is_reserved(first));
        if reserved && !text.starts_with("anywire.dead.") {
            return Err(bad_pattern(text, "its first token is reserved"));
        }
        Ok(pattern)
    }

    /// Reads a pattern, framework subjects included. For adapters.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), without the rule about reserved first tokens.
    pub fn parse_any(text: &str) -> Result<Self, Error> {
        check_length(text)?;
        check_tokens(text.as_bytes(), Wildcards::Allowed).map_err(|why| bad_pattern(text, why))?;
        let tokens: Vec<Token> = text.split('.').map(Token::read).collect();
        let mut names: Vec<&SmolStr> = tokens.iter().filter_map(Token::name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(bad_pattern(text, "it names a capture twice"));
        }
        let wildcards = tokens
            .iter()
            .map(Token::wildcard)
            .collect::<Vec<_>>()
            .join(".")
            .into();
        Ok(Self(Arc::new(Parsed {
            text: text.into(),
            wildcards,
            tokens,
        })))
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The pattern with its captures as `*`: what a broker sees.
    #[must_use]
    pub fn wildcards(&self) -> &str {
        &self.0.wildcards
    }

    /// The names of the captures, in order.
    pub fn capture_names(&self) -> impl Iterator<Item = &str> {
        self.0
            .tokens
            .iter()
            .filter_map(Token::name)
            .map(SmolStr::as_str)
    }

    /// The subject, where the pattern matches just one.
    #[must_use]
    pub fn as_subject(&self) -> Option<Subject> {
        self.is_literal().then(|| Subject(self.0.wildcards.clone()))
    }

    /// Whether the pattern matches just one subject.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.0
            .tokens
            .iter()
            .all(|token| matches!(token, Token::Literal(_)))
    }

    /// Whether the pattern ends in `>`.
    #[must_use]
    pub fn has_tail(&self) -> bool {
        matches!(self.0.tokens.last(), Some(Token::Rest))
    }

    /// Whether this listens to a dead-letter subject.
    #[must_use]
    pub fn is_dead_letters(&self) -> bool {
        self.0.text.starts_with("anywire.dead.")
    }

    /// Whether `subject` is one that this pattern listens to.
    #[must_use]
    pub fn matches(&self, subject: &Subject) -> bool {
        if self.leads_with_wildcard() && subject.is_reserved() {
            return false;
        }
        let mut rest = subject.tokens();
        for token in &self.0.tokens {
            let found = rest.next();
            match (token, found) {
                (_, None) => return false,
                (Token::Rest, Some(_)) => return true,
                (Token::Literal(literal), Some(found)) if literal != found => return false,
                (Token::Literal(_) | Token::One(_), Some(_)) => {}
            }
        }
        rest.next().is_none()
    }

    /// What the captures hold for `subject`, or `None` where the pattern does not match it.
    #[must_use]
    pub fn captures<'a>(&'a self, subject: &'a Subject) -> Option<Captures<'a>> {
        self.matches(subject).then_some(Captures {
            pattern: self,
            subject,
        })
    }

    /// Whether some subject matches both patterns.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut left, mut right) = (self.0.tokens.iter(), other.0.tokens.iter());
        if self.hides_from(other) || other.hides_from(self) {
            return false;
        }
        loop {
            match (left.next(), right.next()) {
                (None, None) => return true,
                (None, Some(_)) | (Some(_), None) => return false,
                (Some(Token::Rest), Some(_)) | (Some(_), Some(Token::Rest)) => return true,
                (Some(Token::Literal(a)), Some(Token::Literal(b))) if a != b => return false,
                (Some(_), Some(_)) => {}
            }
        }
    }

    /// Whether each subject that matches `other` matches this pattern too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let (mut left, mut right) = (self.0.tokens.iter(), other.0.tokens.iter());
        if self.hides_from(other) {
            return false;
        }
        loop {
            match (left.next(), right.next()) {
                (None, None) => return true,
                (None, Some(_)) | (Some(_), None) => return false,
                (Some(Token::Rest), Some(_)) => return true,
                (Some(_), Some(Token::Rest)) => return false,
                (Some(Token::One(_)), Some(_)) => {}
                (Some(Token::Literal(a)), Some(Token::Literal(b))) if a == b => {}
                (Some(Token::Literal(_)), Some(_)) => return false,
            }
        }
    }

    fn leads_with_wildcard(&self) -> bool {
        !matches!(self.0.tokens[0], Token::Literal(_))
    }

    /// A leading wildcard never meets a reserved first token.
    fn hides_from(&self, other: &Self) -> bool {
        let reserved = matches!(&other.0.tokens[0], Token::Literal(first) if is_reserved(first));
        reserved && self.leads_with_wildcard()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.wildcards == other.0.wildcards
    }
}

impl Eq for Pattern {}

impl std::hash::Hash for Pattern {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.wildcards.hash(state);
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.text)
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl Token {
    fn read(text: &str) -> Self {
        match text {
            "*" => Self::One(None),
            ">" => Self::Rest,
            _ => match text
                .strip_prefix('{')
                .and_then(|name| name.strip_suffix('}'))
            {
                Some(name) => Self::One(Some(name.into())),
                None => Self::Literal(text.into()),
            },
        }
    }

    fn name(&self) -> Option<&SmolStr> {
        match self {
            Self::One(name) => name.as_ref(),
            Self::Literal(_) | Self::Rest => None,
        }
    }

    fn wildcard(&self) -> &str {
        match self {
            Self::Literal(text) => text,
            Self::One(_) => "*",
            Self::Rest => ">",
        }
    }
}

/// The captured tokens of one subject. Values are as they stand in the subject; see [`Subject::unescape`].
#[derive(Clone, Copy, Debug)]
pub struct Captures<'a> {
    pattern: &'a Pattern,
    subject: &'a Subject,
}

impl<'a> Captures<'a> {
    /// The captures as (name, value), in order.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let tokens = self.pattern.0.tokens.iter().zip(self.subject.tokens());
        tokens.filter_map(|(token, value)| Some((token.name()?.as_str(), value)))
    }

    /// The value of the capture `name`.
    #[must_use]
    pub fn get(self, name: &str) -> Option<&'a str> {
        self.iter()
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value)
    }

    /// The value of the k-th capture, from 0.
    #[must_use]
    pub fn nth(self, index: usize) -> Option<&'a str> {
        self.iter().nth(index).map(|(_, value)| value)
    }
}
