//! The client that publishes: one per transport, made anew where the library has given it up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anywire::Error;
use parking_lot::RwLock;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer,
};

use crate::errors;
use crate::health::Health;
use crate::window::{Report, Window};

/// A client of the library, until its end. Dropping that waits for it, up to half a second, so a thread of its own does it.
pub(crate) struct Native(RwLock<Option<Arc<ThreadedProducer<Deliveries>>>>);

impl Native {
    /// Hands a record over. It was not taken where that fails.
    pub(crate) fn send(&self, record: BaseRecord<'_, [u8], [u8], usize>) -> Result<(), Code> {
        let client = self.0.read();
        let Some(client) = &*client else {
            return Err(Code::PurgeQueue);
        };
        let sent = client.send(record);
        sent.map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(Code::Unknown))
    }

    /// Asks the brokers. Blocks, and holds nobody up meanwhile.
    pub(crate) fn ask<T>(
        &self,
        question: impl FnOnce(&Client<Deliveries>) -> KafkaResult<T>,
    ) -> KafkaResult<T> {
        let client = self.0.read().clone().ok_or(KafkaError::Canceled)?;
        question(client.client())
    }

    fn flush(&self, patience: Duration) -> bool {
        let client = self.0.read().clone();
        let flushed = client.map(|client| client.flush(patience));
        flushed.is_some_and(|flushed| flushed.is_ok())
    }

    /// Has all that is under way reported, and ends. Blocks, but nobody who publishes.
    fn end(&self) {
        let client = self.0.write().take();
        if let Some(client) = client {
            client.purge(PurgeConfig::default().queue().inflight());
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        if let Some(client) = self.0.get_mut().take() {
            apart(move || drop(client));
        }
    }
}

/// Does something that blocks on a thread of its own.
pub(crate) fn apart(task: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name("kafka drop".to_owned());
    if let Err(error) = thread.spawn(task) {
        tracing::error!(%error, "no thread can be started to end a client");
    }
}

/// The client that publishes, and what it has under way.
pub(crate) struct Producer {
    native: RwLock<Arc<Native>>,
    client: ClientConfig,
    pub(crate) window: Arc<Window>,
    health: Arc<Health>,
    ended: AtomicBool,
}

impl Producer {
    pub(crate) fn new(
        client: ClientConfig,
        window: Window,
        health: &Arc<Health>,
    ) -> Result<Self, Error> {
        let window = Arc::new(window);
        let native = make(&client, &window, health)?;
        Ok(Self {
            native: RwLock::new(native),
            client,
            window,
            health: Arc::clone(health),
            ended: AtomicBool::new(false),
        })
    }

    pub(crate) fn current(&self) -> Arc<Native> {
        Arc::clone(&self.native.read())
    }

    /// Makes the client anew: the library refuses to publish when the order of what was sent cannot be known any more.
    pub(crate) fn renew(&self, given_up: &Arc<Native>) -> Result<(), Error> {
        let mut native = self.native.write();
        if self.ended.load(Ordering::Acquire) {
            return Err(errors::closed());
        }
        if Arc::ptr_eq(&native, given_up) {
            tracing::warn!("the producer was given up by its library and is made anew");
            *native = make(&self.client, &self.window, &self.health)?;
            // What it has is sent again by whoever wants it stored.
            let given_up = Arc::clone(given_up);
            apart(move || given_up.end());
        }
        Ok(())
    }

    /// Lets go of the brokers.
    pub(crate) fn end(&self) {
        let native = self.native.write();
        self.ended.store(true, Ordering::Release);
        let native = Arc::clone(&native);
        apart(move || native.end());
    }

    /// Waits until the brokers have confirmed everything. Blocks.
    pub(crate) fn flush(&self, patience: Duration) -> bool {
        self.current().flush(patience) && self.window.is_empty()
    }
}

fn make(
    client: &ClientConfig,
    window: &Arc<Window>,
    health: &Arc<Health>,
) -> Result<Arc<Native>, Error> {
    let deliveries = Deliveries {
        window: Arc::clone(window),
        health: Arc::clone(health),
    };
    let made = ThreadedProducer::from_config_and_context(client, deliveries);
    let made = made.map_err(|error| errors::from(&error, "making a producer"))?;
    Ok(Arc::new(Native(RwLock::new(Some(Arc::new(made))))))
}

/// Hears what became of messages.
pub(crate) struct Deliveries {
    window: Arc<Window>,
    health: Arc<Health>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.health.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.health.hear(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let Some((tally, at)) = self.window.leave(number) else {
            return;
        };
        let report = match result {
            // A new partition takes whatever comes first. Where it was not ready for the first records, which are tried
            // again, and took the next ones, the library holds the first ones for repeated and so for stored.
            Ok(stored) if stored.offset() < 0 => Report::Failed(Code::OutOfOrderSequenceNumber),
            Ok(_) => Report::Stored,
            Err((error, _)) => Report::Failed(error.rdkafka_error_code().unwrap_or(Code::Unknown)),
        };
        tally.end(at, report);
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}
