//! The adapter, and a client's connection to a broker.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::watch;

use super::broker::MemoryBroker;
use super::calls::{MemoryRequester, MemoryResponder};
use super::config::MemoryConfig;
use super::publisher::MemoryPublisher;
use super::streams::MemoryStreamer;
use super::subscriber::MemorySubscriber;
use crate::clock::Clock;
use crate::config::TransportConfig;
use crate::pattern::publish_subscribe::{Publisher, Spec, Subscriber};
use crate::pattern::request_reply::{CallSpec, Requester, Responder};
use crate::pattern::streaming::Streamer;
use crate::transport::{Adapter, BrokerObject, Status, Transport};
use crate::{
    Capabilities, DeliveryCount, Error, ErrorKind, Limits, MAX_SUBJECT_LEN, OrderScope, Support,
};

/// Connects to a [`MemoryBroker`]: what [`adapter`](super::adapter) and [`adapter_on`](super::adapter_on) make.
#[derive(Clone, Debug, Default)]
pub struct MemoryAdapter {
    broker: MemoryBroker,
}

impl MemoryAdapter {
    pub(super) fn new(broker: MemoryBroker) -> Self {
        Self { broker }
    }

    /// The broker that this adapter connects to.
    #[must_use]
    pub fn broker(&self) -> &MemoryBroker {
        &self.broker
    }
}

#[async_trait]
impl Adapter for MemoryAdapter {
    fn schemes(&self) -> &'static [&'static str] {
        &[super::SCHEME]
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        MemoryConfig::from_transport(config).map(drop)
    }

    fn capabilities(&self, config: &TransportConfig) -> Capabilities {
        capabilities(&MemoryConfig::from_transport(config).unwrap_or_default())
    }

    fn describe(
        &self,
        _config: &TransportConfig,
        specs: &[Spec],
        calls: &[CallSpec],
    ) -> Vec<BrokerObject> {
        let object = |kind, name| BrokerObject {
            kind,
            name,
            // Who is in the process may do anything.
            permissions: Vec::new(),
        };
        let queues = specs
            .iter()
            .map(|spec| object("queue", spec.subscription.to_string()));
        let services = calls
            .iter()
            .map(|spec| object("service", spec.pattern.wildcards().to_owned()));
        queues.chain(services).collect()
    }

    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error> {
        self.broker
            .0
            .configure(MemoryConfig::from_transport(&config)?);
        Ok(Arc::new(MemoryTransport {
            connection: Arc::new(Connection::new(self.broker.clone(), clock)),
        }))
    }
}

fn capabilities(config: &MemoryConfig) -> Capabilities {
    Capabilities {
        durable: Support::Unsupported,
        groups: Support::Native,
        order: OrderScope::KeyInGroup,
        replay: match config.history {
            0 => Support::Unsupported,
            _ => Support::Native,
        },
        return_after: Support::Native,
        delivery_count: DeliveryCount::Exact,
        confirm: Support::Native,
        unroutable: Support::Native,
        dedup: None,
        wildcards: Support::Native,
        calls: Support::Native,
        no_responder: Support::Native,
        streams: Support::Native,
        delay: Support::Native,
        limits: Limits {
            max_payload: config.max_payload,
            max_subject: MAX_SUBJECT_LEN,
            binary_headers: true,
        },
    }
}

/// A client's connection in its roles.
#[derive(Debug)]
struct MemoryTransport {
    connection: Arc<Connection>,
}

#[async_trait]
impl Transport for MemoryTransport {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.connection.broker.0.config())
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(MemoryPublisher::new(Arc::clone(&self.connection)))
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(MemorySubscriber::new(Arc::clone(&self.connection)))
    }

    fn requester(&self) -> Option<Arc<dyn Requester>> {
        Some(Arc::new(MemoryRequester::new(Arc::clone(&self.connection))))
    }

    fn responder(&self) -> Option<Arc<dyn Responder>> {
        Some(Arc::new(MemoryResponder::new(Arc::clone(&self.connection))))
    }

    fn streamer(&self) -> Option<Arc<dyn Streamer>> {
        Some(Arc::new(MemoryStreamer::new(Arc::clone(&self.connection))))
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.connection.status.subscribe()
    }

    async fn close(&self, _grace: Duration) -> Result<(), Error> {
        self.connection.close();
        Ok(())
    }
}

/// What a client's roles share: the broker, the clock, and what ends with it.
pub(super) struct Connection {
    pub(super) broker: MemoryBroker,
    pub(super) clock: Arc<dyn Clock>,
    /// Tells this client's calls from others'.
    pub(super) client: u64,
    status: watch::Sender<Status>,
    closed: AtomicBool,
    ends: Mutex<Slab<Weak<dyn End>>>,
}

/// Something that a transport ends when it closes.
pub(super) trait End: Send + Sync {
    /// Stops pulls and gives back what is unfinished. Called once.
    fn end(&self);
}

static CLIENTS: AtomicU64 = AtomicU64::new(0);

impl Connection {
    pub(super) fn new(broker: MemoryBroker, clock: Arc<dyn Clock>) -> Self {
        Self {
            broker,
            clock,
            client: CLIENTS.fetch_add(1, Ordering::Relaxed),
            status: watch::Sender::new(Status::Connected),
            closed: AtomicBool::new(false),
            ends: Mutex::default(),
        }
    }

    /// # Errors
    /// [`ErrorKind::Closed`] once the transport is closed.
    pub(super) fn check_open(&self) -> Result<(), Error> {
        if self.is_closed() {
            Err(closed())
        } else {
            Ok(())
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Ends when the transport is closed.
    pub(super) async fn closed(&self) {
        let mut status = self.status.subscribe();
        // An error means that the sender is gone, and it is ours.
        let _ = status.wait_for(|status| *status == Status::Closed).await;
    }

    /// Ties something to the transport, until [`untie`](Self::untie).
    pub(super) fn tie(&self, end: Weak<dyn End>) -> usize {
        self.ends.lock().insert(end)
    }

    pub(super) fn untie(&self, tie: usize) {
        self.ends.lock().try_remove(tie);
    }

    fn close(&self) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let ends: Vec<Weak<dyn End>> = {
            let ends = self.ends.lock();
            ends.iter().map(|(_, end)| Weak::clone(end)).collect()
        };
        for end in ends.iter().filter_map(Weak::upgrade) {
            end.end();
        }
        self.broker.0.calls.hang_up(self.client);
        self.status.send_replace(Status::Closed);
    }
}

/// The error of every operation after the close.
pub(super) fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the memory transport was closed; connect again",
    )
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
