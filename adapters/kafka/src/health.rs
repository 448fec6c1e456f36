//! The state of the connection: what the clients say about the brokers, and a look at them from time to time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anywire::transport::Status;
use anywire::{Error, ErrorKind};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use tokio::sync::{Notify, watch};

use crate::group::Kind;

/// The state of a transport's connection.
#[derive(Debug)]
pub(crate) struct Health {
    name: String,
    pub(crate) status: watch::Sender<Status>,
    /// Told when the brokers seem to be gone.
    pub(crate) doubt: Notify,
    /// Why the broker does not let us in, where that is why.
    refusal: Mutex<Option<(ErrorKind, String)>>,
    objections: AtomicU64,
    is_down: AtomicBool,
}

impl Health {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            status: watch::Sender::new(Status::Connected),
            doubt: Notify::new(),
            refusal: Mutex::default(),
            objections: AtomicU64::new(0),
            is_down: AtomicBool::new(false),
        }
    }

    /// What a client says that concerns all of it.
    pub(crate) fn hear(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        tracing::debug!(transport = %self.name, %error, reason, "a Kafka client speaks");
        match code {
            Some(Code::AllBrokersDown) => {
                self.is_down.store(true, Ordering::Release);
                self.doubt.notify_one();
            }
            Some(
                Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::UnsupportedSASLMechanism,
            ) => {
                let text = "the Kafka broker refused our credentials; check user, password and sasl_mechanism";
                *self.refusal.lock() = Some((ErrorKind::Denied, text.to_owned()));
            }
            Some(Code::SSL) => {
                let text = "no TLS connection to the Kafka broker: look at its certificate, its name and tls.ca, or whether it speaks TLS at all";
                *self.refusal.lock() = Some((ErrorKind::Config, text.to_owned()));
            }
            _ => {}
        }
    }

    /// What a consumer says about its topics or its group.
    pub(crate) fn hear_consumer(&self, group: &Kind, error: &KafkaError) {
        let transport = &self.name;
        match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => self.hear(error, "consumer"),
            // Topics come and go, and members of a group are thrown out of it after a pause: it joins again.
            Some(
                Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::BrokerTransportFailure
                | Code::Resolve
                | Code::OperationTimedOut,
            ) => {
                tracing::debug!(%transport, ?group, %error, "a consumer speaks");
            }
            _ => {
                metrics::counter!("anywire.kafka.objections").increment(1);
                let count = self.objections.fetch_add(1, Ordering::Relaxed) + 1;
                // Told seldom: it may come with each request.
                if count.is_power_of_two() {
                    tracing::warn!(%transport, ?group, %error, count, "a consumer was refused something");
                }
            }
        }
    }

    pub(crate) fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        let transport = &self.name;
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(%transport, facility, text, "librdkafka");
            }
            RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning
            | RDKafkaLogLevel::Notice
            | RDKafkaLogLevel::Info
            | RDKafkaLogLevel::Debug => {
                tracing::debug!(%transport, facility, text, "librdkafka");
            }
        }
    }

    /// Why the brokers do not answer.
    pub(crate) fn why(&self) -> Error {
        match &*self.refusal.lock() {
            Some((kind, text)) => Error::new(*kind, text.clone()),
            None => crate::errors::unreachable(),
        }
    }

    /// The brokers answered, or did not.
    pub(crate) fn answered(&self, is_there: bool) {
        self.is_down.store(!is_there, Ordering::Release);
        if is_there {
            *self.refusal.lock() = None;
        }
        let status = match is_there {
            true => Status::Connected,
            false => Status::Reconnecting,
        };
        let transport = &self.name;
        self.status.send_if_modified(|now| {
            if *now == Status::Closed || *now == status {
                return false;
            }
            tracing::info!(%transport, was = ?now, is = ?status, "the connection to Kafka changed");
            *now = status;
            true
        });
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.status.borrow() == Status::Closed
    }

    pub(crate) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Acquire) || *self.status.borrow() == Status::Reconnecting
    }
}

/// The ear of a client that neither publishes nor consumes.
#[derive(Clone, Debug)]
pub(crate) struct Ear(pub(crate) std::sync::Arc<Health>);

impl ClientContext for Ear {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.0.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.hear(&error, reason);
    }
}
