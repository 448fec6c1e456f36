//! The adapter, and a client's connection in its roles.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anywire::clock::Clock;
use anywire::config::TransportConfig;
use anywire::pattern::publish_subscribe::{Guarantee, Publisher, Spec, Subscriber};
use anywire::pattern::request_reply::{CallSpec, Requester, Responder};
use anywire::pattern::streaming::{Emulation, Streamer};
use anywire::transport::{Adapter, BrokerObject, Seldom, Status, Transport};
use anywire::{Capabilities, DeliveryCount, Error, Limits, MAX_SUBJECT_LEN, OrderScope, Support};
use async_nats::Event;
use async_trait::async_trait;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::{OnceCell, Semaphore, watch};

use crate::api::Api;
use crate::calls::{NatsRequester, NatsResponder};
use crate::config::{HEADER_ROOM, NatsConfig};
use crate::coverage::Coverage;
use crate::errors;
use crate::lease;
use crate::link::{Again, Link};
use crate::names;
use crate::post::NatsPost;
use crate::publisher::NatsPublisher;
use crate::subscriber::NatsSubscriber;
use crate::topology::Topology;

/// Connects to NATS: what [`adapter`](crate::adapter) makes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NatsAdapter(());

#[async_trait]
impl Adapter for NatsAdapter {
    fn schemes(&self) -> &'static [&'static str] {
        &[crate::SCHEME, crate::TLS_SCHEME]
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        NatsConfig::from_transport(config).map(drop)
    }

    fn capabilities(&self, config: &TransportConfig) -> Capabilities {
        let config = NatsConfig::from_transport(config).unwrap_or_default();
        capabilities(&config, config.max_payload)
    }

    fn describe(
        &self,
        config: &TransportConfig,
        specs: &[Spec],
        calls: &[CallSpec],
    ) -> Vec<BrokerObject> {
        let jetstream = NatsConfig::from_transport(config).is_ok_and(|config| config.jetstream);
        let object = |kind, name: String, permissions: &[&'static str]| BrokerObject {
            kind,
            name,
            permissions: permissions.to_vec(),
        };
        let of_spec = |spec: &Spec| {
            let pattern = spec.subscription.pattern.wildcards();
            if spec.guarantee == Guarantee::AtMostOnce || !jetstream {
                return vec![object("subject", pattern.to_owned(), &["subscribe"])];
            }
            let first = pattern.split('.').next().unwrap_or_default();
            let consumer = names::subscription(&spec.subscription);
            vec![
                object(
                    "stream",
                    names::stream(first),
                    &["create", "update", "read"],
                ),
                object("consumer", consumer.clone(), &["create", "read"]),
                object(
                    "consumer",
                    format!("{}/{consumer}", names::RETRY_STREAM),
                    &["create", "read"],
                ),
            ]
        };
        let of_call = |spec: &CallSpec| {
            object(
                "subject",
                spec.pattern.wildcards().to_owned(),
                &["subscribe"],
            )
        };
        let mut objects: Vec<_> = specs.iter().flat_map(of_spec).collect();
        objects.extend(calls.iter().map(of_call));
        objects
    }

    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error> {
        let connection = Connection::open(config, clock).await?;
        Ok(Arc::new(NatsTransport { connection }))
    }
}

fn capabilities(config: &NatsConfig, max_payload: usize) -> Capabilities {
    let stored = match config.jetstream {
        true => Support::Native,
        false => Support::Unsupported,
    };
    let emulated = match config.jetstream {
        true => Support::Emulated,
        false => Support::Unsupported,
    };
    Capabilities {
        durable: stored,
        groups: Support::Native,
        order: match config.jetstream {
            true => OrderScope::KeyInGroup,
            false => OrderScope::Consumer,
        },
        replay: stored,
        return_after: stored,
        delivery_count: match config.jetstream {
            true => DeliveryCount::Exact,
            false => DeliveryCount::None,
        },
        confirm: stored,
        unroutable: stored,
        dedup: config.jetstream.then_some(config.dedup_window),
        wildcards: Support::Native,
        calls: Support::Native,
        no_responder: Support::Native,
        streams: Support::Emulated,
        delay: emulated,
        limits: Limits {
            max_payload,
            max_subject: MAX_SUBJECT_LEN,
            binary_headers: false,
        },
    }
}

/// A client's connection in its roles.
#[derive(Debug)]
pub(crate) struct NatsTransport {
    connection: Arc<Connection>,
}

impl NatsTransport {
    pub(crate) fn client(&self) -> async_nats::Client {
        self.connection.main.client().clone()
    }
}

#[async_trait]
impl Transport for NatsTransport {
    fn capabilities(&self) -> Capabilities {
        capabilities(&self.connection.config, self.connection.max_payload())
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(NatsPublisher::new(Arc::clone(&self.connection)))
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(NatsSubscriber::new(Arc::clone(&self.connection)))
    }

    fn requester(&self) -> Option<Arc<dyn Requester>> {
        Some(Arc::new(NatsRequester::new(Arc::clone(&self.connection))))
    }

    fn responder(&self) -> Option<Arc<dyn Responder>> {
        Some(Arc::new(NatsResponder::new(Arc::clone(&self.connection))))
    }

    fn streamer(&self) -> Option<Arc<dyn Streamer>> {
        let connection = &self.connection;
        Some(Arc::new(Emulation::new(
            self.requester()?,
            self.responder()?,
            Arc::new(NatsPost::new(Arc::clone(connection))),
            Arc::clone(&connection.clock),
            connection.transport.stream_heartbeat,
        )))
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.connection.health.status.subscribe()
    }

    async fn close(&self, grace: Duration) -> Result<(), Error> {
        self.connection.close(grace).await
    }
}

/// What a client's roles share.
pub(crate) struct Connection {
    pub(crate) config: NatsConfig,
    pub(crate) transport: Arc<TransportConfig>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Publishes, calls, and what is not stored.
    pub(crate) main: Arc<Link>,
    pub(crate) topology: Arc<Topology>,
    pub(crate) coverage: Coverage,
    pub(crate) in_flight: Arc<Semaphore>,
    pub(crate) health: Arc<Health>,
    /// Consumes what is stored. It is apart from the other, as a stored message that the client library cannot read ends
    /// its connection, again and again.
    consuming: OnceCell<Arc<Link>>,
    /// Which connection the other one was when this one was lost the last time.
    main_epoch: AtomicU64,
    is_clearing: AtomicBool,
    closed: AtomicBool,
    ends: Mutex<Slab<Weak<dyn End>>>,
}

/// Something that a transport ends when it closes.
pub(crate) trait End: Send + Sync {
    /// Stops delivering and gives back what is unfinished. May be called again.
    fn end(&self) -> BoxFuture<'_, ()>;

    /// Gives signs of life for the deliveries that have been ours for longer than since `before`.
    fn renew(&self, before: Instant);

    /// The connection to JetStream is another one.
    fn reconnected(&self);

    /// Looks for messages that ended the connection to JetStream, and puts them away.
    fn clear_hostile(&self) -> BoxFuture<'_, ()>;
}

/// The state of the connections.
#[derive(Debug)]
pub(crate) struct Health {
    name: String,
    pub(crate) status: watch::Sender<Status>,
    objections: Seldom,
    /// Whether there is the connection without which nothing goes.
    has_main: AtomicBool,
    /// Whether there is the one that consumes from JetStream, where it is wanted.
    has_consuming: AtomicBool,
}

impl Health {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            status: watch::Sender::new(Status::Connected),
            objections: Seldom::default(),
            has_main: AtomicBool::new(true),
            has_consuming: AtomicBool::new(true),
        }
    }

    /// What happened to a connection. `main` tells whether it is the one without which nothing goes.
    fn hear(&self, event: &Event, main: bool) {
        let transport = &self.name;
        let has_link = match main {
            true => &self.has_main,
            false => &self.has_consuming,
        };
        match event {
            Event::Connected => has_link.store(true, Ordering::Release),
            Event::Disconnected | Event::Closed => has_link.store(false, Ordering::Release),
            Event::ServerError(error) => {
                // A permission that is missing is told like this, for each message that is published without it.
                metrics::counter!("anywire.nats.objections").increment(1);
                if self.objections.is_due() {
                    tracing::warn!(%transport, %error, "the NATS server objects");
                }
                return;
            }
            Event::SlowConsumer(_)
            | Event::LameDuckMode
            | Event::Draining
            | Event::ClientError(_) => return,
        }
        self.status.send_if_modified(|now| {
            // Looked at here, where one looks at a time: the last to do so sees both as they are.
            let status = self.of_links();
            if *now == Status::Closed || *now == status {
                return false;
            }
            tracing::info!(%transport, was = ?now, is = ?status, "the connection to NATS changed");
            *now = status;
            true
        });
    }

    fn of_links(&self) -> Status {
        let has = |link: &AtomicBool| link.load(Ordering::Acquire);
        match (has(&self.has_main), has(&self.has_consuming)) {
            (true, true) => Status::Connected,
            (true, false) => {
                Status::Degraded("the connection that consumes from JetStream was lost".to_owned())
            }
            (false, _) => Status::Reconnecting,
        }
    }
}

impl Connection {
    async fn open(transport: TransportConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, Error> {
        let config = NatsConfig::from_transport(&transport)?;
        let health = Arc::new(Health::new(&transport.name));
        let told = Arc::clone(&health);
        let changed = move |event: &Event, _: Again| told.hear(event, true);
        let main = Arc::new(Link::connect(&config, &transport, "main", changed).await?);
        let transport = Arc::new(transport);
        let api = Api::new(
            Arc::clone(&main),
            Arc::clone(&clock),
            config.domain.as_deref(),
        );
        let topology = Topology::new(api, config.clone(), Arc::clone(&transport));
        let topology = Arc::new(topology);
        Ok(Arc::new(Self {
            coverage: Coverage::new(Arc::clone(&topology)),
            in_flight: Arc::new(Semaphore::new(config.max_in_flight)),
            config,
            transport,
            clock,
            main,
            topology,
            health,
            consuming: OnceCell::new(),
            main_epoch: AtomicU64::new(1),
            is_clearing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            ends: Mutex::default(),
        }))
    }

    /// The connection that consumes from JetStream, made when it is first needed.
    pub(crate) async fn consuming(self: &Arc<Self>) -> Result<Arc<Link>, Error> {
        let link = self.consuming.get_or_try_init(async || {
            let (told, this) = (Arc::clone(&self.health), Arc::downgrade(self));
            let changed = move |event: &Event, again: Again| {
                told.hear(event, false);
                if again && let Some(this) = this.upgrade() {
                    this.consume_again();
                }
            };
            let link = Link::connect(&self.config, &self.transport, "jetstream", changed).await?;
            lease::keep(self);
            Ok::<_, Error>(Arc::new(link))
        });
        link.await.cloned()
    }

    /// The connection that consumes was lost and made again.
    fn consume_again(self: Arc<Self>) {
        let ends = self.ends();
        ends.iter().for_each(|end| end.reconnected());
        let broke_alone =
            self.main_epoch.swap(self.main.epoch(), Ordering::AcqRel) == self.main.epoch();
        if broke_alone && !self.is_clearing.swap(true, Ordering::AcqRel) {
            tokio::spawn(async move {
                for end in ends {
                    end.clear_hostile().await;
                }
                self.is_clearing.store(false, Ordering::Release);
            });
        }
    }

    /// # Errors
    /// `Closed` once the transport is closed.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match self.is_closed() {
            true => Err(errors::closed()),
            false => Ok(()),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The largest payload: what is configured, or less where the server takes less.
    pub(crate) fn max_payload(&self) -> usize {
        let server = self.main.client().max_payload();
        self.config
            .max_payload
            .min(server.saturating_sub(HEADER_ROOM.min(server / 2)))
    }

    /// Ties something to the transport, until [`untie`](Self::untie).
    pub(crate) fn tie(&self, end: Weak<dyn End>) -> usize {
        self.ends.lock().insert(end)
    }

    pub(crate) fn untie(&self, tie: usize) {
        self.ends.lock().try_remove(tie);
    }

    /// What is tied to the transport now.
    pub(crate) fn ends(&self) -> Vec<Arc<dyn End>> {
        let ends = self.ends.lock();
        ends.iter().filter_map(|(_, end)| end.upgrade()).collect()
    }

    /// # Errors
    /// `Unsupported` where the configuration says that there is none.
    pub(crate) fn require_jetstream(&self) -> Result<(), Error> {
        match self.config.jetstream {
            true => Ok(()),
            false => Err(no_jetstream()),
        }
    }

    async fn close(&self, grace: Duration) -> Result<(), Error> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let deadline = self.clock.now() + grace;
        let in_time = tokio::select! {
            () = self.finish() => true,
            () = self.clock.sleep_until(deadline) => false,
        };
        if let Some(consuming) = self.consuming.get() {
            consuming.close().await;
        }
        // The replies' address goes last.
        self.main.close().await;
        self.health.status.send_replace(Status::Closed);
        match in_time || !self.main.is_connected() {
            true => Ok(()),
            false => Err(Error::new(
                anywire::ErrorKind::Timeout,
                "NATS did not confirm everything within the grace; what was not confirmed may be lost or come again",
            )),
        }
    }

    /// Waits for what is under way.
    async fn finish(&self) {
        let all = u32::try_from(self.config.max_in_flight).unwrap_or(u32::MAX);
        let _ = self.in_flight.acquire_many(all).await;
        join_all(self.ends().iter().map(|end| end.end())).await;
        if let Some(consuming) = self.consuming.get() {
            let _ = consuming.echo().await;
        }
        let _ = self.main.echo().await;
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("transport", &self.transport)
            .field("main", &self.main)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// The error for what must not be lost where nothing is stored.
pub(crate) fn no_jetstream() -> Error {
    Error::new(
        anywire::ErrorKind::Unsupported,
        "core NATS delivers at most once; set delivery = \"at_most_once\", or use JetStream (jetstream = true)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_that_is_missed_most_is_told_of_in_whatever_order_they_go() {
        for order in [[true, false], [false, true]] {
            let health = Health::new("main");
            for main in order {
                health.hear(&Event::Disconnected, main);
            }
            assert_eq!(*health.status.borrow(), Status::Reconnecting, "{order:?}");
            health.hear(&Event::Connected, false);
            assert_eq!(*health.status.borrow(), Status::Reconnecting, "{order:?}");
            health.hear(&Event::Connected, true);
            assert_eq!(*health.status.borrow(), Status::Connected, "{order:?}");
            health.hear(&Event::Disconnected, false);
            assert!(matches!(*health.status.borrow(), Status::Degraded(_)));
        }
    }
}
