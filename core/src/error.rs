//! The one error type of the framework's own calls.

use std::error::Error as StdError;
use std::fmt;

use serde::de::DeserializeOwned;

use crate::RemoteError;

/// What went wrong, for code that has to decide. Read the message, act on the kind.
///
/// ```
/// use anywire::{ErrorKind, Subject};
///
/// let error = Subject::parse("shop..placed").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Config);
/// assert!(ErrorKind::Unavailable.is_retryable() && !ErrorKind::Config.is_retryable());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The configuration, a pattern, a contract or a builder call is wrong. Stops the start.
    Config,
    /// The transport cannot be reached now.
    Unavailable,
    /// The connection was lost while the operation was under way.
    Disconnected,
    /// The deadline passed.
    Timeout,
    /// The operation was cancelled by its caller or by shutdown.
    Cancelled,
    /// The app, client, subscription or transport has been closed.
    Closed,
    /// The broker object (queue, stream, topic) does not exist.
    NotFound,
    /// Nobody listens: no store took the event, no handler answers the call.
    NoRoute,
    /// Authentication or permission was refused.
    Denied,
    /// The broker or peer refused this message.
    Rejected,
    /// A payload, header or name is over its limit.
    TooLarge,
    /// A bounded queue or window stayed full until the deadline.
    Overloaded,
    /// A delivery was settled that is no longer ours to settle.
    Stale,
    /// A payload could not be encoded or decoded.
    Codec,
    /// The transport cannot do this.
    Unsupported,
    /// The handler on the other side answered with an error.
    Remote,
    /// It cannot be known whether the broker took the message.
    OutcomeUnknown,
}

impl ErrorKind {
    /// The kind's name as it stands in messages, logs and metrics, such as `no_route`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Unavailable => "unavailable",
            Self::Disconnected => "disconnected",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Closed => "closed",
            Self::NotFound => "not_found",
            Self::NoRoute => "no_route",
            Self::Denied => "denied",
            Self::Rejected => "rejected",
            Self::TooLarge => "too_large",
            Self::Overloaded => "overloaded",
            Self::Stale => "stale",
            Self::Codec => "codec",
            Self::Unsupported => "unsupported",
            Self::Remote => "remote",
            Self::OutcomeUnknown => "outcome_unknown",
        }
    }

    /// Whether trying again later may help without anybody changing anything.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Unavailable
                | Self::Disconnected
                | Self::Timeout
                | Self::NoRoute
                | Self::Overloaded
                | Self::OutcomeUnknown
        )
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of the framework: opaque, with a [kind](Error::kind), a one-line message, a small context and a source.
///
/// `Display` is one line for the person on call and never repeats the source; `Debug` is the readable paragraph.
/// A vendor's error is reached through [`source`](StdError::source) and a downcast.
///
/// ```
/// use anywire::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::NoRoute, "no subscription matches").with_context("subject", "shop.eu.placed");
/// assert!(error.is_retryable());
/// assert_eq!(error.to_string(), "no subscription matches (subject: shop.eu.placed)");
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    operation: Option<&'static str>,
    context: Vec<(&'static str, String)>,
    remote: Option<RemoteError>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Makes an error of `kind`; `message` is lower case, without a full stop, and says what to do about it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            operation: None,
            context: Vec::new(),
            remote: None,
            source: None,
        }))
    }

    /// Shorthand for an error of kind [`ErrorKind::Config`].
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Wraps what a handler on the other side answered.
    #[must_use]
    pub fn remote(remote: RemoteError) -> Self {
        let mut error = Self::new(
            ErrorKind::Remote,
            format!(
                "the handler answered {}: {}",
                printable(remote.code()),
                printable(remote.message())
            ),
        );
        error.0.remote = Some(remote);
        error
    }

    /// Names the operation that failed, such as `publish`.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.0.operation = Some(operation);
        self
    }

    /// Adds a fact, such as the subject or the transport. The first value given for a key stays.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        if self.context(key).is_none() {
            self.0.context.push((key, value.to_string()));
        }
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same operation may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match &self.0.remote {
            Some(remote) => remote.is_retryable(),
            None => self.0.kind.is_retryable(),
        }
    }

    /// The operation that failed, if it was named.
    #[must_use]
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// A fact of the context, by its key.
    #[must_use]
    pub fn context(&self, key: &str) -> Option<&str> {
        let found = self.0.context.iter().find(|(name, _)| *name == key);
        found.map(|(_, value)| value.as_str())
    }

    /// What the handler on the other side answered, for kind [`ErrorKind::Remote`].
    #[must_use]
    pub fn as_remote(&self) -> Option<&RemoteError> {
        self.0.remote.as_ref()
    }

    /// The handler's own typed error, where it sent one that reads as an `E`.
    #[must_use]
    pub fn remote_as<E: DeserializeOwned>(&self) -> Option<E> {
        self.0.remote.as_ref().and_then(RemoteError::details_as)
    }
}

/// A peer's text, fit for a log: cut, and on one line.
fn printable(text: &str) -> String {
    let mut line = String::new();
    for char in text.chars().take(256) {
        if char.is_control() {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
    }
    line
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(operation) = self.0.operation {
            write!(f, "{operation}: ")?;
        }
        f.write_str(&self.0.message)?;
        for (index, (key, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{key}: {value}", if index == 0 { " (" } else { ", " })?;
        }
        if self.0.context.is_empty() {
            Ok(())
        } else {
            f.write_str(")")
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} [{}]", self.0.kind)?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, "\n  caused by: {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_and_leaves_the_source_to_debug() {
        let error = Error::new(ErrorKind::Denied, "publishing is not allowed")
            .with_operation("publish")
            .with_context("subject", "a.b")
            .with_context("transport", "main")
            .with_source(std::io::Error::other("permissions violation"));
        assert_eq!(
            error.to_string(),
            "publish: publishing is not allowed (subject: a.b, transport: main)"
        );
        assert!(format!("{error:?}").contains("caused by: permissions violation"));
        assert!(!error.is_retryable());
    }

    #[test]
    fn the_first_value_of_a_context_key_stays() {
        let error = Error::config("x")
            .with_context("file", "a")
            .with_context("file", "b");
        assert_eq!(error.context("file"), Some("a"));
    }
}
