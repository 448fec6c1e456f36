//! The vendor's errors as ours: one line each, with a remedy and without a secret.

use std::error::Error as StdError;
use std::io;

use anywire::config::TransportConfig;
use anywire::{Error, ErrorKind};
use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::{ConnectError, ConnectErrorKind};

/// The error of every operation after the close.
pub(crate) fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the NATS transport was closed; connect again",
    )
}

/// The error of what was under way when the connection broke.
pub(crate) fn disconnected(error: impl StdError + Send + Sync + 'static) -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the connection to the NATS server was lost; it is being made again",
    )
    .with_source(error)
}

pub(crate) fn publish(error: PublishError) -> Error {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Error::new(
            ErrorKind::TooLarge,
            "payload and headers are over the server's max_payload; raise it there, or send a reference",
        ),
        PublishErrorKind::InvalidSubject => {
            Error::config("NATS does not take this subject; see `Subject::escape`")
        }
        // The task of the connection is gone.
        PublishErrorKind::Send => closed(),
    }
    .with_source(error)
}

pub(crate) fn connect(error: ConnectError, config: &TransportConfig) -> Error {
    let (kind, why) = refusal(&error);
    Error::new(kind, why)
        .with_operation("connect")
        .with_context("transport", &config.name)
        .with_context("address", config.address())
        .with_source(error)
}

fn refusal(error: &ConnectError) -> (ErrorKind, &'static str) {
    let denied = (
        ErrorKind::Denied,
        "the NATS server refused our credentials; check user, password, token, NKey or credentials file",
    );
    let tls = (
        ErrorKind::Config,
        "no TLS connection to the NATS server: look at its certificate, its name and tls.ca, or whether it speaks TLS at all",
    );
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => denied,
        ConnectErrorKind::Tls => tls,
        ConnectErrorKind::ServerParse => (
            ErrorKind::Config,
            "the server's address cannot be read; write it as nats://host:port",
        ),
        _ if is_caused(error, |cause| tells_of_credentials(&cause.to_string())) => denied,
        _ if is_caused(error, is_tls) => tls,
        ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => {
            (ErrorKind::Unavailable, "the NATS server cannot be reached")
        }
    }
}

fn is_caused(error: &dyn StdError, by: impl Fn(&(dyn StdError + 'static)) -> bool) -> bool {
    let mut cause = error.source();
    while let Some(found) = cause {
        if by(found) {
            return true;
        }
        cause = found.source();
    }
    false
}

/// The server says `Authorization Violation`, `User Authentication Expired`, `Account Authentication Expired`.
fn tells_of_credentials(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("authorization violation") || text.contains("authentication")
}

/// What rustls finds wrong comes as invalid data.
fn is_tls(cause: &(dyn StdError + 'static)) -> bool {
    cause.downcast_ref::<async_nats::rustls::Error>().is_some()
        || cause.downcast_ref::<io::Error>().is_some_and(|error| {
            error.kind() == io::ErrorKind::InvalidData
                || error
                    .get_ref()
                    .is_some_and(|inner| inner.is::<async_nats::rustls::Error>())
        })
}
