//! The vendor's errors as ours: one line each, with a remedy and without a secret.

use anywire::pattern::publish_subscribe::{Published, no_route};
use anywire::{Error, ErrorKind, Subject};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// The error of every operation after the close.
pub(crate) fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the Kafka transport was closed; connect again",
    )
}

/// The error of a settlement that comes too late.
pub(crate) fn stale() -> Error {
    Error::new(
        ErrorKind::Stale,
        "the delivery is not ours any more: it was settled before, or its partition went to somebody else",
    )
}

pub(crate) fn unreachable() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "no Kafka broker can be reached; look at the URL, the network and the brokers",
    )
}

/// What the broker or the library says about an operation that is not a publish.
pub(crate) fn from(error: &KafkaError, doing: &'static str) -> Error {
    // The library's own answer leaves out what creating a topic failed for.
    let code = match error {
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    };
    let (kind, remedy) = match code {
        Some(code) => meaning(code),
        None => (ErrorKind::Config, "look at the keys of the kafka section"),
    };
    let what = match code {
        Some(code) => code.to_string(),
        // The text of the others may quote a value of the configuration.
        None => match error {
            KafkaError::ClientConfig(_, _, key, _) => format!("the key `{key}`"),
            _ => "the client".to_owned(),
        },
    };
    let error = Error::new(kind, format!("{doing} failed: {what}; {remedy}"));
    match code {
        Some(code) => error.with_source(KafkaError::Global(code)),
        None => error,
    }
}

/// The outcome of a publish that the library reported as failed.
pub(crate) fn outcome(code: Code, subject: &Subject, limit: usize) -> Published {
    if is_definite(code) {
        return Published::Rejected(refused(code, subject, limit));
    }
    let text = "no broker confirmed the message in time; it may be stored";
    let error = Error::new(ErrorKind::OutcomeUnknown, text);
    let error = error.with_context("subject", subject);
    Published::Unknown(error.with_source(KafkaError::MessageProduction(code)))
}

/// Whether a message that was reported with this is certainly not stored. Of all else a broker may have stored it and not got to say
/// so: the library tries again by itself, and tells what the last try ended with. It throws away what waits for that as well, when
/// it gives up the producer.
pub(crate) fn is_definite(code: Code) -> bool {
    matches!(
        code,
        Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::UnsupportedForMessageFormat
            | Code::InvalidRequiredAcks
            | Code::PolicyViolation
            | Code::NotEnoughReplicas
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::Authentication
            | Code::QueueFull
    )
}

/// Why a message was certainly not stored.
pub(crate) fn refused(code: Code, subject: &Subject, limit: usize) -> Error {
    match code {
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            no_route(subject)
        }
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => {
            too_large(limit).with_context("subject", subject)
        }
        Code::PurgeQueue => closed(),
        Code::QueueFull => full().with_context("subject", subject),
        _ => {
            let (kind, remedy) = meaning(code);
            Error::new(
                kind,
                format!("the broker refused the message: {code}; {remedy}"),
            )
            .with_context("subject", subject)
            .with_source(KafkaError::MessageProduction(code))
        }
    }
}

pub(crate) fn too_large(limit: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "the message is larger than this Kafka takes ({limit} bytes of payload here); raise max_payload here and max.message.bytes on the broker, or send a reference to it"
        ),
    )
}

pub(crate) fn full() -> Error {
    Error::new(
        ErrorKind::Overloaded,
        "too much was in flight until the deadline; publish less at once, or raise max_in_flight",
    )
}

/// What a code means to us, and what to do about it.
fn meaning(code: Code) -> (ErrorKind, &'static str) {
    match code {
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => (
            ErrorKind::Denied,
            "give the app's user the permissions that `describe` lists",
        ),
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState => (ErrorKind::Denied, "check user, password and sasl_mechanism"),
        Code::SSL => (
            ErrorKind::Config,
            "look at the broker's certificate, its name and tls.ca, or whether it speaks TLS at all",
        ),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => (
            ErrorKind::NotFound,
            "create the topic, or set provision = \"create\"",
        ),
        Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::PolicyViolation
        | Code::InvalidArgument
        | Code::UnsupportedVersion => (
            ErrorKind::Config,
            "look at partitions, replicas and the other keys of the kafka section",
        ),
        Code::NotEnoughReplicas
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::KafkaStorageError
        | Code::NotController
        | Code::CoordinatorNotAvailable
        | Code::CoordinatorLoadInProgress => {
            (ErrorKind::Unavailable, "too few brokers are in sync")
        }
        Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::TimedOutQueue
        | Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::NetworkException
        | Code::WaitingForCoordinator => (
            ErrorKind::Unavailable,
            "look at the brokers and the network to them",
        ),
        _ => (ErrorKind::Rejected, "look at the broker's log"),
    }
}
