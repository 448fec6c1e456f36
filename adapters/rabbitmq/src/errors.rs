//! The vendor's errors as ours: one line each, with a remedy and without a secret.

use std::io;

use anywire::config::TransportConfig;
use anywire::{Error, ErrorKind};
use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

/// The error of every operation after the close.
pub(crate) fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the RabbitMQ transport was closed; connect again",
    )
}

/// The error of what was under way when the connection broke.
pub(crate) fn disconnected() -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the connection to RabbitMQ was lost; it is being made again",
    )
}

/// The error of what cannot begin as there is no connection.
pub(crate) fn unreachable() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "RabbitMQ could not be reached by the deadline",
    )
}

/// What the broker said when it refused, if it did.
pub(crate) fn refusal(error: &lapin::Error) -> Option<&AMQPError> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(refusal) => Some(refusal),
        _ => None,
    }
}

/// Whether the broker refused with this error of a channel.
pub(crate) fn is_soft(error: &lapin::Error, soft: &AMQPSoftError) -> bool {
    refusal(error).is_some_and(
        |refusal| matches!(refusal.kind(), AMQPErrorKind::Soft(found) if found == soft),
    )
}

/// The error of an operation on a channel.
pub(crate) fn operation(error: lapin::Error) -> Error {
    if matches!(error.kind(), lapin::ErrorKind::ChannelsLimitReached) {
        let message = "the connection has as many channels as RabbitMQ allows; raise its channel_max, or have fewer handlers in one app";
        return Error::new(ErrorKind::Overloaded, message).with_source(error);
    }
    let Some(refused) = refusal(&error) else {
        return disconnected().with_source(error);
    };
    let text = refused.get_message().to_string();
    let (kind, message) = match refused.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => (
            ErrorKind::Denied,
            format!("RabbitMQ refuses: {text}; give the user the permission"),
        ),
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => (
            ErrorKind::NotFound,
            format!("RabbitMQ refuses: {text}; create it, or set `provision = \"create\"`"),
        ),
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => (
            ErrorKind::Config,
            format!("RabbitMQ refuses: {text}; {}", difference(&text)),
        ),
        AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => (
            ErrorKind::Config,
            format!("RabbitMQ refuses: {text}; another connection owns it, take another name"),
        ),
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => (
            ErrorKind::Config,
            format!("RabbitMQ refuses: {text}; look at its limits"),
        ),
        AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED) => return disconnected(),
        AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => {
            (ErrorKind::Rejected, format!("RabbitMQ refuses: {text}"))
        }
    };
    Error::new(kind, message).with_source(error)
}

/// The remedy for an object that is there and differs. The broker names the argument: `inequivalent arg 'x-queue-type' for
/// queue 'a' in vhost '/': received 'quorum' but current is 'classic'`.
fn difference(text: &str) -> String {
    match quoted(text, "inequivalent arg ") {
        Some(argument) => format!(
            "`{argument}` differs from what is there: change the configuration, or delete the object when it is empty"
        ),
        None => "look at the configuration".to_owned(),
    }
}

/// The text in single quotes that follows `after`.
pub(crate) fn quoted<'a>(text: &'a str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(after)?;
    let (quoted, _) = rest.strip_prefix('\'')?.split_once('\'')?;
    Some(quoted)
}

pub(crate) fn connect(error: lapin::Error, config: &TransportConfig) -> Error {
    let (kind, why) = failure(&error);
    with_address(Error::new(kind, why), config).with_source(error)
}

/// A server that takes a connection and says nothing.
pub(crate) fn silent(config: &TransportConfig) -> Error {
    let error = Error::new(
        ErrorKind::Unavailable,
        "RabbitMQ does not answer; look whether it runs, and whether it is RabbitMQ",
    );
    with_address(error, config)
}

fn with_address(error: Error, config: &TransportConfig) -> Error {
    error
        .with_operation("connect")
        .with_context("transport", &config.name)
        .with_context("address", config.address())
}

fn failure(error: &lapin::Error) -> (ErrorKind, String) {
    let say = |kind, text: &str| (kind, text.to_owned());
    match error.kind() {
        lapin::ErrorKind::ProtocolError(refused) => {
            let text = refused.get_message().to_string();
            match refused.kind() {
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => say(
                    ErrorKind::Denied,
                    "RabbitMQ refused our credentials; check user, password or certificate",
                ),
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if text.contains("not found") => (
                    ErrorKind::Config,
                    format!("RabbitMQ refuses: {text}; create it, or change the vhost"),
                ),
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if text.contains("limit") => (
                    ErrorKind::Unavailable,
                    format!("RabbitMQ refuses: {text}; raise the limit"),
                ),
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => (
                    ErrorKind::Denied,
                    format!("RabbitMQ refuses: {text}; give the user access to the vhost"),
                ),
                AMQPErrorKind::Hard(
                    AMQPHardError::CONNECTIONFORCED | AMQPHardError::INTERNALERROR,
                ) => (
                    ErrorKind::Unavailable,
                    format!("RabbitMQ refuses: {text}; it starts or stops"),
                ),
                AMQPErrorKind::Soft(_) | AMQPErrorKind::Hard(_) => (
                    ErrorKind::Config,
                    format!("RabbitMQ refuses the connection: {text}"),
                ),
            }
        }
        lapin::ErrorKind::InvalidProtocolVersion(_) | lapin::ErrorKind::ParsingError(_) => say(
            ErrorKind::Config,
            "the server does not speak AMQP 0-9-1; check host and port",
        ),
        lapin::ErrorKind::AuthProviderError(_) => say(
            ErrorKind::Denied,
            "RabbitMQ asks for more than we can answer; check the SASL mechanism",
        ),
        lapin::ErrorKind::IOError(error) if is_tls(error) => say(
            ErrorKind::Config,
            "no TLS connection to RabbitMQ: look at its certificate, its name and tls.ca, or whether it speaks TLS at all",
        ),
        _ => say(ErrorKind::Unavailable, "RabbitMQ cannot be reached"),
    }
}

/// What rustls finds wrong comes as invalid data, what it refuses to begin as invalid input.
fn is_tls(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
    )
}

pub(crate) fn too_large(size: usize, most: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "the payload has {size} bytes, this RabbitMQ takes {most}; raise max_message_size here and on the broker, or send a reference to it"
        ),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn refused(kind: impl Into<AMQPErrorKind>, text: &str) -> Error {
        let error = AMQPError::new(kind.into(), text.into());
        operation(lapin::ErrorKind::ProtocolError(error).into())
    }

    #[test]
    fn a_difference_is_named() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received 'quorum' but current is 'classic'";
        let error = refused(AMQPSoftError::PRECONDITIONFAILED, text);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error.to_string().contains("`x-queue-type` differs"),
            "{error}"
        );
    }

    #[test]
    fn what_the_broker_says_has_a_kind() {
        for (kind, expected) in [
            (AMQPSoftError::ACCESSREFUSED, ErrorKind::Denied),
            (AMQPSoftError::NOTFOUND, ErrorKind::NotFound),
            (AMQPSoftError::RESOURCELOCKED, ErrorKind::Config),
        ] {
            assert_eq!(refused(kind, "no").kind(), expected);
        }
        let gone = operation(lapin::ErrorKind::MissingHeartbeatError.into());
        assert_eq!(gone.kind(), ErrorKind::Disconnected);
    }
}
