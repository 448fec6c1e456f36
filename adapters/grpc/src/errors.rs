//! gRPC's status and our errors: a handler's refusal becomes a status with details and comes back whole, and what a foreign
//! peer or the library answers becomes an error that says what to do.
//!
//! | code of a refusal | status | | foreign status | is |
//! |---|---|---|---|---|
//! | `invalid_payload` | `INVALID_ARGUMENT` | | `UNIMPLEMENTED` | `NoRoute` |
//! | `internal` | `INTERNAL` | | `UNAVAILABLE` | `Unavailable` |
//! | `too_large` | `OUT_OF_RANGE` | | `DEADLINE_EXCEEDED` | `Timeout` |
//! | the name of a status, such as `not_found` | that status | | `RESOURCE_EXHAUSTED` | `Overloaded` |
//! | any other, that may be tried again | `UNAVAILABLE` | | `PERMISSION_DENIED`, `UNAUTHENTICATED` | `Denied` |
//! | any other | `FAILED_PRECONDITION` | | `CANCELLED` | `Cancelled` |
//! | | | | any other | a remote error whose code is the status' name, such as `not_found` |

use std::collections::HashMap;
use std::error::Error as StdError;
use std::time::Duration;

use anywire::pattern::publish_subscribe::Published;
use anywire::{Error, ErrorKind, Message, RemoteError, Subject, Trail};
use serde_json::{Value, json};
use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tonic_types::{ErrorDetails, StatusExt};

/// Whose reasons those are that a handler of ours gave.
const HANDLER: &str = "anywire";
/// Whose reasons those are that our server gave in a handler's place.
const SERVER: &str = "anywire-server";
/// The reason of a status that says that no handler has begun: another server may be asked.
const NOT_BEGUN: &str = "not_begun";
/// The reason of an event that was not handled to its end, and may have begun.
const GIVEN_BACK: &str = "given_back";
/// The reason of an event that a handler has failed for good.
const FAILED: &str = "event_failed";
/// The largest details that travel, as text: they are metadata, which peers bound.
const MAX_DETAILS: usize = 32 * 1024;
/// The longest message of a status.
const MAX_MESSAGE: usize = 1024;
/// What a server of our library says at the deadline, under the wrong code.
const EXPIRED: &str = "Timeout expired";
/// How statuses begin that our library makes, without a cause, of an answer that broke off or is none. The handler may have run.
const BROKEN_OFF: [&str; 4] = [
    "protocol error: ",
    "Missing response message",
    "Unexpected EOF decoding stream",
    "Content is compressed with",
];
/// What stands in the details of an error that may be tried again.
const TRY_AGAIN: Duration = Duration::ZERO;

/// The error of every operation after the close.
pub(crate) fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the gRPC transport was closed; connect again",
    )
}

/// The error of a payload that is over our limit.
pub(crate) fn too_large(message: &Message, limit: usize) -> Option<Error> {
    let size = message.payload().len();
    (size > limit).then(|| {
        let text = format!(
            "the payload has {size} bytes, the limit is {limit}; raise max_payload here and at the peer, or send a reference to it"
        );
        Error::new(ErrorKind::TooLarge, text).with_context("subject", message.subject())
    })
}

/// The status of a handler's refusal.
pub(crate) fn refusal(error: &RemoteError) -> Status {
    let mut metadata = HashMap::new();
    if let Some(details) = error.details() {
        let text = details.to_string();
        if text.len() <= MAX_DETAILS {
            metadata.insert("details".to_owned(), text);
        } else {
            tracing::warn!(
                code = error.code(),
                size = text.len(),
                "the details of a refusal are too large for a status and are left out"
            );
        }
    }
    let mut details = ErrorDetails::with_error_info(clip(error.code()), HANDLER, metadata);
    if error.is_retryable() {
        details.set_retry_info(Some(TRY_AGAIN));
    }
    Status::with_error_details(code_of(error), clip(error.message()), details)
}

/// The end of a stream whose sender went before it.
pub(crate) fn given_up_by_sender() -> RemoteError {
    RemoteError::new("cancelled", "the sender gave the stream up before its end")
}

/// As a status of the library's own side, which takes `CANCELLED` of a request for its end.
pub(crate) fn given_up() -> Status {
    let error = given_up_by_sender();
    let details = ErrorDetails::with_error_info(error.code(), HANDLER, HashMap::new());
    Status::with_error_details(Code::Aborted, error.message(), details)
}

/// The status of what our server cannot give to a handler now; nothing has begun.
pub(crate) fn not_begun(code: Code, why: &str) -> Status {
    let details = ErrorDetails::with_error_info(NOT_BEGUN, SERVER, HashMap::new());
    Status::with_error_details(code, why, details)
}

/// The status of an event that a service which is stopping did not end.
pub(crate) fn given_back() -> Status {
    let details = ErrorDetails::with_error_info(GIVEN_BACK, SERVER, HashMap::new());
    let why = "the service is stopping and has not handled the event to its end";
    Status::with_error_details(Code::Unavailable, why, details)
}

/// The status of an event that a handler has failed for good, with all that is known of its end.
pub(crate) fn event_failed(trail: &Trail) -> Status {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let error = text(&trail.error);
    let (group, handler) = (text(&trail.group), text(&trail.handler));
    let why = format!("handler `{handler}` of `{group}` has failed it: {error}");
    let metadata = HashMap::from([
        ("group".to_owned(), group),
        ("handler".to_owned(), handler),
        ("attempts".to_owned(), trail.attempt.to_string()),
        ("error".to_owned(), error),
    ]);
    let details = ErrorDetails::with_error_info(FAILED, SERVER, metadata);
    Status::with_error_details(Code::FailedPrecondition, clip(&why), details)
}

fn code_of(error: &RemoteError) -> Code {
    match error.code() {
        RemoteError::INVALID_PAYLOAD => Code::InvalidArgument,
        RemoteError::TOO_LARGE => Code::OutOfRange,
        RemoteError::EXPIRED => Code::DeadlineExceeded,
        code => match NAMES.iter().find(|(_, name)| *name == code) {
            Some((status, _)) => *status,
            None if error.is_retryable() => Code::Unavailable,
            None => Code::FailedPrecondition,
        },
    }
}

/// The statuses that are errors, by name.
const NAMES: [(Code, &str); 16] = [
    (Code::Cancelled, "cancelled"),
    (Code::Unknown, "unknown"),
    (Code::InvalidArgument, "invalid_argument"),
    (Code::DeadlineExceeded, "deadline_exceeded"),
    (Code::NotFound, "not_found"),
    (Code::AlreadyExists, "already_exists"),
    (Code::PermissionDenied, "permission_denied"),
    (Code::ResourceExhausted, "resource_exhausted"),
    (Code::FailedPrecondition, "failed_precondition"),
    (Code::Aborted, "aborted"),
    (Code::OutOfRange, "out_of_range"),
    (Code::Unimplemented, "unimplemented"),
    (Code::Internal, RemoteError::INTERNAL),
    (Code::Unavailable, "unavailable"),
    (Code::DataLoss, "data_loss"),
    (Code::Unauthenticated, "unauthenticated"),
];

/// What a status means to who has asked.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The handler has answered with an error.
    Refused(RemoteError),
    /// No handler has begun. Another peer may be asked; the connection of this one is fine.
    NotBegun(Error),
    /// There was no connection, so that nothing was sent. Another peer may be asked.
    NotSent(Error),
    /// An event was not handled to its end, and a handler may have begun.
    GivenBack(Error),
    /// An event has been handled, in vain.
    Failed(Error),
    /// The connection ended, or nothing came in time: the handler may have run.
    Lost(Error),
    /// Anything else: no handler of ours has run to its end.
    Error(Error),
}

/// What became of a request to `subject`.
pub(crate) fn verdict(status: Status, subject: &Subject) -> Verdict {
    if status.source().is_some() {
        return of_the_library(status, subject);
    }
    let details = status.get_error_details();
    let info = details.error_info();
    let by = |domain: &str| info.filter(|info| info.domain == domain);
    if let Some(info) = by(HANDLER) {
        let said = info.metadata.get("details");
        let said = said.and_then(|text| serde_json::from_str::<Value>(text).ok());
        let error = RemoteError::new(info.reason.as_str(), status.message())
            .with_details(said)
            .with_retryable(details.retry_info().is_some());
        return Verdict::Refused(error);
    }
    if let Some(info) = by(SERVER) {
        return match info.reason.as_str() {
            FAILED => Verdict::Failed(failed(&status, &info.metadata)),
            NOT_BEGUN => Verdict::NotBegun(of_foreign(status, subject)),
            _ => Verdict::GivenBack(of_foreign(status, subject)),
        };
    }
    let is_broken_off = |status: &Status| {
        let mut texts = BROKEN_OFF.iter();
        texts.any(|text| status.message().starts_with(text))
    };
    if info.is_none() && is_broken_off(&status) {
        return Verdict::Lost(broken_off(status).with_context("subject", subject));
    }
    if status.code() == Code::Cancelled && status.message() == EXPIRED {
        return Verdict::Error(Error::call_timeout(subject).with_source(status));
    }
    match status.code() {
        // Whoever answers so has looked for a handler and has none.
        Code::Unimplemented => Verdict::NotBegun(of_foreign(status, subject)),
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Cancelled => Verdict::Error(of_foreign(status, subject)),
        code => {
            let name = NAMES.iter().find(|(known, _)| *known == code);
            let name = name.map_or("unknown", |(_, name)| name);
            let said = info.map(|info| {
                json!({ "reason": info.reason, "domain": info.domain, "metadata": info.metadata })
            });
            let retryable = code == Code::Aborted || details.retry_info().is_some();
            let error = RemoteError::new(name, status.message())
                .with_details(said)
                .with_retryable(retryable);
            Verdict::Refused(error)
        }
    }
}

fn failed(status: &Status, metadata: &HashMap<String, String>) -> Error {
    let of = |key: &str| metadata.get(key).map_or("", String::as_str);
    let details = json!({
        "group": of("group"),
        "handler": of("handler"),
        "attempts": of("attempts").parse::<u32>().unwrap_or_default(),
        "error": of("error"),
    });
    let remote = RemoteError::new("event_failed", status.message()).with_details(Some(details));
    Error::new(ErrorKind::Rejected, one_line(status.message()))
        .with_context("group", one_line(of("group")))
        .with_context("handler", one_line(of("handler")))
        .with_context("attempts", one_line(of("attempts")))
        .with_source(Error::remote(remote))
}

/// The error of a status that a peer has sent.
fn of_foreign(status: Status, subject: &Subject) -> Error {
    let (kind, why) = match status.code() {
        Code::Unimplemented => return Error::no_responder(subject).with_source(status),
        Code::Unavailable => (ErrorKind::Unavailable, "the peer cannot answer now"),
        Code::DeadlineExceeded => (ErrorKind::Timeout, "the peer gave up at the deadline"),
        Code::ResourceExhausted => (ErrorKind::Overloaded, "the peer has too much to do"),
        Code::PermissionDenied | Code::Unauthenticated => (
            ErrorKind::Denied,
            "the peer refused us; check certificate and token",
        ),
        Code::Cancelled => (ErrorKind::Cancelled, "the peer cancelled it"),
        _ => (ErrorKind::Rejected, "the peer refused it"),
    };
    let text = match status.message() {
        "" => why.to_owned(),
        message => format!("{why}: {}", one_line(message)),
    };
    Error::new(kind, text)
        .with_context("subject", subject)
        .with_source(status)
}

/// The error of a status that our own library has made: nothing came back.
fn of_the_library(status: Status, subject: &Subject) -> Verdict {
    let named = |error: Error| error.with_context("subject", subject);
    if cause::<ConnectError>(&status).is_some() {
        return Verdict::NotSent(named(unreachable_peer(&status)));
    }
    if cause::<TimeoutExpired>(&status).is_some() {
        return Verdict::Lost(Error::call_timeout(subject).with_source(status));
    }
    if is_unsent(&status) {
        return Verdict::NotSent(named(disconnected(status)));
    }
    Verdict::Lost(named(disconnected(status)))
}

/// Whether the request has certainly not reached a handler: the peer refused the stream before it looked at it, or asked the
/// connection to go and has not taken the stream (RFC 9113, 6.8: one above the last that it names), or the connection was gone before
/// the request was written.
fn is_unsent(status: &Status) -> bool {
    let refused = |error: &h2::Error| match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => true,
        Some(h2::Reason::NO_ERROR) => error.is_go_away() && error.is_remote(),
        _ => false,
    };
    cause::<h2::Error>(status).is_some_and(refused)
        || cause::<hyper::Error>(status).is_some_and(hyper::Error::is_canceled)
}

fn disconnected(status: Status) -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the connection to the peer was lost; it is being made again",
    )
    .with_source(status)
}

fn broken_off(status: Status) -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the peer's answer broke off, or is none of gRPC",
    )
    .with_source(status)
}

/// The error of a connection that could not be made.
pub(crate) fn unreachable_peer(error: &(dyn StdError + 'static)) -> Error {
    let text = chain(error);
    // rustls' errors are known by their text: its types are not the library's.
    let tls = [
        "invalid peer certificate",
        "InvalidCertificate",
        "received corrupt message",
        "received fatal alert",
        "HTTP/2 was not negotiated",
        "certificate",
    ];
    if tls.iter().any(|part| text.contains(part)) {
        return Error::config(format!(
            "no TLS connection to the peer: look at its certificate, at tls.ca, tls.cert and tls.server_name, or whether it speaks TLS at all: {text}"
        ));
    }
    Error::new(
        ErrorKind::Unavailable,
        format!("the peer cannot be reached: {text}"),
    )
}

fn cause<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = match error.downcast_ref::<Status>() {
            Some(status) => status.message().to_owned(),
            None => error.to_string(),
        };
        if !parts.iter().any(|other| other.contains(&part)) {
            parts.push(part);
        }
        next = error.source();
    }
    one_line(&parts.join(": "))
}

/// The error of an event whose fate is not known.
pub(crate) fn unknown(error: Error) -> Published {
    let text = "the peer did not say whether the event was handled; it may have been";
    Published::Unknown(Error::new(ErrorKind::OutcomeUnknown, text).with_source(error))
}

/// A peer's text, fit for a log.
fn one_line(text: &str) -> String {
    text.chars()
        .take(MAX_MESSAGE)
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

fn clip(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn subject() -> Subject {
        Subject::parse("shop.quote").unwrap()
    }

    fn refused(status: Status) -> RemoteError {
        match verdict(status, &subject()) {
            Verdict::Refused(error) => error,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_refusal_comes_back_whole(
            code in "[a-z_]{1,20}", message in ".{0,200}", text in any::<Option<String>>(), retryable: bool,
        ) {
            let sent = RemoteError::new(code, message)
                .with_details(text.map(|text| json!({ "text": text })))
                .with_retryable(retryable);
            prop_assert_eq!(refused(refusal(&sent)), sent);
        }
    }

    #[test]
    fn a_refusal_has_the_status_that_fits_it() {
        for (code, retryable, status) in [
            ("invalid_payload", false, Code::InvalidArgument),
            ("internal", false, Code::Internal),
            ("not_found", false, Code::NotFound),
            ("unavailable", true, Code::Unavailable),
            ("sold_out", false, Code::FailedPrecondition),
            ("sold_out", true, Code::Unavailable),
        ] {
            let error = RemoteError::new(code, "x").with_retryable(retryable);
            assert_eq!(refusal(&error).code(), status, "{code}");
        }
    }

    #[test]
    fn details_that_are_too_large_are_left_out() {
        let large = RemoteError::new("x", "y").with_details(Some("z".repeat(MAX_DETAILS).into()));
        assert_eq!(refused(refusal(&large)).details(), None);
    }

    #[test]
    fn a_foreign_status_is_an_error_of_its_kind() {
        for (code, kind) in [
            (Code::Unavailable, ErrorKind::Unavailable),
            (Code::DeadlineExceeded, ErrorKind::Timeout),
            (Code::ResourceExhausted, ErrorKind::Overloaded),
            (Code::PermissionDenied, ErrorKind::Denied),
            (Code::Unauthenticated, ErrorKind::Denied),
            (Code::Cancelled, ErrorKind::Cancelled),
        ] {
            match verdict(Status::new(code, "no"), &subject()) {
                Verdict::Error(error) => assert_eq!(error.kind(), kind),
                other => panic!("{code:?}: {other:?}"),
            }
        }
        let nobody = verdict(Status::unimplemented(""), &subject());
        assert!(matches!(nobody, Verdict::NotBegun(error) if error.kind() == ErrorKind::NoRoute));
        let error = refused(Status::not_found("no tea"));
        assert_eq!((error.code(), error.message()), ("not_found", "no tea"));
        assert!(refused(Status::aborted("")).is_retryable());
    }

    #[test]
    fn a_failed_event_tells_who_has_failed_it() {
        let mut trail = Trail::new(subject());
        trail.group = Some("billing".into());
        trail.handler = Some("charge".into());
        trail.error = Some("no funds".into());
        trail.attempt = 3;
        let Verdict::Failed(error) = verdict(event_failed(&trail), &subject()) else {
            panic!("not failed");
        };
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert_eq!(error.context("group"), Some("billing"));
        assert!(error.to_string().contains("no funds"), "{error}");
    }

    #[test]
    fn what_has_not_begun_may_be_asked_elsewhere() {
        let full = not_begun(Code::ResourceExhausted, "full");
        let verdict = verdict(full, &subject());
        assert!(
            matches!(verdict, Verdict::NotBegun(error) if error.kind() == ErrorKind::Overloaded)
        );
    }
}
