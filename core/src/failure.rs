//! What a handler fails with, and what the framework does about it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::{Error, ErrorKind, RemoteError};

/// What becomes of a message whose handler failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Class {
    /// Try again, by the retry schedule; then the dead letters.
    #[default]
    Transient,
    /// Trying again is no use: the dead letters, at once.
    Permanent,
    /// Not worth keeping: acknowledge and count.
    Discard,
}

/// A typed error of a handler: `#[derive(HandlerError)]` writes the implementation.
///
/// A caller gets `code`, `message` and `details`, and reads the typed error back with
/// [`Error::remote_as`](crate::Error::remote_as).
///
/// ```
/// use std::borrow::Cow;
/// use anywire::{Class, HandlerError};
///
/// #[derive(Debug)]
/// struct SoldOut;
///
/// impl HandlerError for SoldOut {
///     fn code(&self) -> Cow<'static, str> {
///         "sold_out".into()
///     }
///
///     fn message(&self) -> String {
///         "there is none left".to_owned()
///     }
/// }
/// assert_eq!(SoldOut.into_failure().class(), Class::Permanent);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an error that a handler can return",
    label = "not a handler's error",
    note = "derive `HandlerError` for it, or return `anywire::Result<_>`, into which `?` turns any standard error"
)]
pub trait HandlerError: fmt::Debug + Send + Sync + 'static {
    /// What a caller branches on, such as `unknown_item`.
    fn code(&self) -> Cow<'static, str>;

    /// A sentence for people. It leaves the process: no internals.
    fn message(&self) -> String;

    /// What becomes of the message; for a call, whether the caller may try again.
    fn class(&self) -> Class {
        Class::Permanent
    }

    /// The error itself, for the caller to decode.
    fn details(&self) -> Option<Value> {
        None
    }

    /// The failure that the framework works with.
    fn into_failure(self) -> Failure
    where
        Self: Sized,
    {
        Failure(Box::new(Inner {
            class: self.class(),
            message: self.message(),
            code: Some(self.code()),
            details: self.details(),
            retry_after: None,
            source: None,
        }))
    }
}

/// What handlers return by default when they fail. Any standard error becomes one through `?`, as a transient failure.
///
/// It does not implement `std::error::Error` itself, which is what makes that conversion possible.
///
/// ```
/// use anywire::{Class, Failure, Result};
///
/// fn parse(text: &str) -> Result<u32> {
///     Ok(text.parse()?) // any standard error: transient
/// }
/// assert_eq!(parse("x").unwrap_err().class(), Class::Transient);
/// assert_eq!(Failure::permanent("no such item").class(), Class::Permanent);
/// ```
pub struct Failure(Box<Inner>);

struct Inner {
    class: Class,
    message: String,
    code: Option<Cow<'static, str>>,
    details: Option<Value>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    /// A failure that is retried.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(Class::Transient, message)
    }

    /// A failure that goes to the dead letters at once.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(Class::Permanent, message)
    }

    /// A message that is not worth keeping: acknowledged and counted.
    pub fn discard(message: impl Into<String>) -> Self {
        Self::new(Class::Discard, message)
    }

    /// A failure of the given class.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            class,
            message: message.into(),
            code: None,
            details: None,
            retry_after: None,
            source: None,
        }))
    }

    /// Sets the class.
    #[must_use]
    pub fn with_class(mut self, class: Class) -> Self {
        self.0.class = class;
        self
    }

    /// Waits so long before the next attempt, instead of the schedule's step. Makes the failure transient.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.class = Class::Transient;
        self.0.retry_after = Some(delay);
        self
    }

    /// Gives callers a code to branch on. A failure with a code shows its message to the caller.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.0.code = Some(code.into());
        self
    }

    /// Gives callers details to decode. A value that JSON cannot hold is left out.
    #[must_use]
    pub fn with_details(mut self, details: impl serde::Serialize) -> Self {
        self.0.details = serde_json::to_value(details).ok();
        self
    }

    /// What becomes of the message.
    #[must_use]
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// What went wrong, in one line.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The code for callers, if it has one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The wait that was asked for.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The error behind it.
    #[must_use]
    pub fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }

    /// All that is known, in one line: for dead letters and for tests. The causes of a payload that cannot be read quote
    /// it, so that this is not for logs.
    pub(crate) fn detail(&self) -> String {
        let mut line = self.0.message.clone();
        if let Some(source) = self.source() {
            append_causes(&mut line, source);
        }
        line
    }

    /// A payload that cannot be read, as a layer and a caller see it.
    pub(crate) fn undecodable(error: Error) -> Self {
        let mut failure = Self::permanent(format!("undecodable: {error}"))
            .with_code(RemoteError::INVALID_PAYLOAD);
        failure.0.source = Some(Box::new(error));
        failure
    }

    /// What a caller sees. Without a code that is `internal` and `error_id`, never the text.
    pub(crate) fn to_remote(&self, error_id: impl FnOnce() -> String) -> RemoteError {
        let retryable = self.0.class == Class::Transient;
        match &self.0.code {
            Some(code) => RemoteError::new(code.as_ref(), self.0.message.as_str())
                .with_details(self.0.details.clone()),
            None => RemoteError::new(
                RemoteError::INTERNAL,
                format!("internal error {}", error_id()),
            ),
        }
        .with_retryable(retryable)
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let own = (&error as &dyn StdError).downcast_ref::<Error>();
        let class = own.map_or(Class::Transient, class_of);
        let message = match own {
            // Its source may quote the payload.
            Some(own) if own.kind() == ErrorKind::Codec => own.to_string(),
            _ => one_line(&error),
        };
        let mut failure = Self::new(class, message);
        failure.0.source = Some(Box::new(error));
        failure
    }
}

/// What an error of the framework's own calls means for the message whose handler let it through.
fn class_of(error: &Error) -> Class {
    match error.kind() {
        ErrorKind::Config | ErrorKind::Codec | ErrorKind::TooLarge | ErrorKind::Unsupported => {
            Class::Permanent
        }
        ErrorKind::Remote if !error.is_retryable() => Class::Permanent,
        _ => Class::Transient,
    }
}

/// The error and its causes, in one line.
pub(crate) fn one_line(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    append_causes(&mut line, error);
    line
}

fn append_causes(line: &mut String, error: &dyn StdError) {
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
}

impl HandlerError for Failure {
    fn code(&self) -> Cow<'static, str> {
        self.0
            .code
            .clone()
            .unwrap_or(Cow::Borrowed(RemoteError::INTERNAL))
    }

    fn message(&self) -> String {
        self.0.message.clone()
    }

    fn class(&self) -> Class {
        self.0.class
    }

    fn details(&self) -> Option<Value> {
        self.0.details.clone()
    }

    fn into_failure(self) -> Failure {
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.0.message, self.0.class)
    }
}

/// Says what a failure means, on any `Result`.
///
/// ```
/// use anywire::{Class, Result, ResultExt};
///
/// fn check(text: &str) -> Result<u32> {
///     Ok(text.parse().permanent()?)
/// }
/// assert_eq!(check("x").unwrap_err().class(), Class::Permanent);
/// ```
pub trait ResultExt<T>: Sized {
    /// An error is transient: retried.
    ///
    /// # Errors
    /// The error, as a transient failure.
    fn transient(self) -> Result<T, Failure>;

    /// An error is permanent: to the dead letters.
    ///
    /// # Errors
    /// The error, as a permanent failure.
    fn permanent(self) -> Result<T, Failure>;

    /// An error means that the message is not worth keeping.
    ///
    /// # Errors
    /// The error, as a discarding failure.
    fn discard(self) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> ResultExt<T> for Result<T, E> {
    fn transient(self) -> Result<T, Failure> {
        self.map_err(|error| error.into().with_class(Class::Transient))
    }

    fn permanent(self) -> Result<T, Failure> {
        self.map_err(|error| error.into().with_class(Class::Permanent))
    }

    fn discard(self) -> Result<T, Failure> {
        self.map_err(|error| error.into().with_class(Class::Discard))
    }
}

/// Keeps what a typed error says of itself where a bare `?` would take it for any standard error.
pub trait Classified<T> {
    /// Turns a [`HandlerError`] into a [`Failure`] with its own class, code and details.
    ///
    /// # Errors
    /// The error, as the failure that it describes.
    fn classified(self) -> Result<T, Failure>;
}

impl<T, E: HandlerError> Classified<T> for Result<T, E> {
    fn classified(self) -> Result<T, Failure> {
        self.map_err(HandlerError::into_failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_mark_keeps_the_kind_of_our_own_error() {
        let class = |kind| Failure::from(Error::new(kind, "x")).class();
        assert_eq!(class(ErrorKind::NoRoute), Class::Transient);
        assert_eq!(class(ErrorKind::Codec), Class::Permanent);
        assert_eq!(
            Failure::from(std::io::Error::other("x")).class(),
            Class::Transient
        );
    }

    #[test]
    fn a_caller_sees_the_text_of_classified_failures_only() {
        let internal = Failure::transient("password is hunter2").to_remote(|| "e-1".into());
        assert_eq!(internal.code(), "internal");
        assert!(!internal.message().contains("hunter2") && internal.message().contains("e-1"));
        let told = Failure::permanent("no such item")
            .with_code("unknown_item")
            .to_remote(|| "e-1".into());
        assert_eq!(
            (told.code(), told.message(), told.is_retryable()),
            ("unknown_item", "no such item", false)
        );
    }

    #[test]
    fn an_explicit_delay_makes_a_failure_transient() {
        let failure = Failure::permanent("x").retry_after(Duration::from_secs(3));
        assert_eq!(
            (failure.class(), failure.delay()),
            (Class::Transient, Some(Duration::from_secs(3)))
        );
    }
}
