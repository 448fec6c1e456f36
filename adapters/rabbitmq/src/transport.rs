//! The adapter, and a client's connection in its roles.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anywire::clock::Clock;
use anywire::config::TransportConfig;
use anywire::pattern::publish_subscribe::{Guarantee, Publisher, Spec, Subscriber};
use anywire::pattern::request_reply::{CallSpec, Requester, Responder};
use anywire::pattern::streaming::{Emulation, Streamer};
use anywire::transport::{Adapter, BrokerObject, Status, Transport};
use anywire::{
    Capabilities, DeliveryCount, Error, ErrorKind, Limits, MAX_SUBJECT_LEN, OrderScope, Support,
};
use async_trait::async_trait;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::{OnceCell, watch};

use crate::calls::{self, RabbitmqRequester, Waiting};
use crate::config::RabbitmqConfig;
use crate::errors;
use crate::link::{Link, News};
use crate::names::Names;
use crate::outlet::{Outlet, Prepare, Setup};
use crate::post::RabbitmqPost;
use crate::publisher::RabbitmqPublisher;
use crate::server::RabbitmqResponder;
use crate::subscriber::RabbitmqSubscriber;
use crate::topology::Topology;

/// Connects to RabbitMQ: what [`adapter`](crate::adapter) makes.
#[derive(Clone, Copy, Debug, Default)]
pub struct RabbitmqAdapter(());

#[async_trait]
impl Adapter for RabbitmqAdapter {
    fn schemes(&self) -> &'static [&'static str] {
        &[crate::SCHEME, crate::AMQP_SCHEME, crate::TLS_SCHEME]
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        RabbitmqConfig::from_transport(config).map(drop)
    }

    fn capabilities(&self, config: &TransportConfig) -> Capabilities {
        let config = RabbitmqConfig::from_transport(config).unwrap_or_default();
        capabilities(config.max_message_size)
    }

    fn describe(
        &self,
        config: &TransportConfig,
        specs: &[Spec],
        calls: &[CallSpec],
    ) -> Vec<BrokerObject> {
        let config = RabbitmqConfig::from_transport(config).unwrap_or_default();
        describe(&config, specs, calls)
    }

    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error> {
        let connection = Connection::open(config, clock).await?;
        Ok(Arc::new(RabbitmqTransport { connection }))
    }
}

fn describe(config: &RabbitmqConfig, specs: &[Spec], calls: &[CallSpec]) -> Vec<BrokerObject> {
    let names = Names::new(&config.exchange);
    let object = |kind, name: String, permissions: &[&'static str]| BrokerObject {
        kind,
        name,
        permissions: permissions.to_vec(),
    };
    let mut objects = Vec::new();
    if !specs.is_empty() {
        let exchange = names.exchange().to_owned();
        objects.push(object(
            "exchange",
            exchange,
            &["configure", "read", "write"],
        ));
    }
    if !calls.is_empty() {
        let exchange = names.calls_exchange();
        objects.push(object(
            "exchange",
            exchange,
            &["configure", "read", "write"],
        ));
    }
    let queue = ["configure", "read", "write"];
    for spec in specs {
        let Some(group) = &spec.subscription.group else {
            let all = format!("{}~private/*", names.exchange());
            objects.push(object("queue", all, &queue));
            continue;
        };
        match spec.guarantee {
            Guarantee::AtMostOnce => {
                objects.push(object("queue", names.fleeting(&spec.subscription), &queue));
            }
            Guarantee::AtLeastOnce => {
                let name = names.subscription(&spec.subscription);
                let waiting = format!("{}~delay/*/{name}", names.exchange());
                objects.push(object("queue", name, &queue));
                objects.push(object("queue", waiting, &queue));
                let letters = anywire::Subject::dead_letters(group).to_string();
                if let Ok(pattern) = anywire::Pattern::parse_any(&letters) {
                    objects.push(object("queue", names.store(&pattern), &queue));
                }
            }
        }
    }
    for call in calls {
        objects.push(object("queue", names.calls(&call.pattern), &queue));
    }
    let mut unique = Vec::with_capacity(objects.len());
    for object in objects {
        if !unique.contains(&object) {
            unique.push(object);
        }
    }
    unique
}

fn capabilities(max_payload: usize) -> Capabilities {
    Capabilities {
        durable: Support::Native,
        groups: Support::Native,
        order: OrderScope::KeyInGroup,
        replay: Support::Unsupported,
        return_after: Support::Unsupported,
        delivery_count: DeliveryCount::LowerBound,
        confirm: Support::Native,
        unroutable: Support::Native,
        dedup: None,
        wildcards: Support::Native,
        calls: Support::Native,
        no_responder: Support::Native,
        streams: Support::Emulated,
        delay: Support::Emulated,
        limits: Limits {
            max_payload,
            max_subject: MAX_SUBJECT_LEN,
            binary_headers: true,
        },
    }
}

/// A client's connection in its roles.
#[derive(Debug)]
pub(crate) struct RabbitmqTransport {
    connection: Arc<Connection>,
}

impl RabbitmqTransport {
    pub(crate) fn native(&self) -> Option<Arc<lapin::Connection>> {
        self.connection.main.now()
    }
}

#[async_trait]
impl Transport for RabbitmqTransport {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.connection.max_size.load(Ordering::Relaxed))
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(RabbitmqPublisher::new(Arc::clone(&self.connection)))
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(RabbitmqSubscriber::new(Arc::clone(&self.connection)))
    }

    fn requester(&self) -> Option<Arc<dyn Requester>> {
        Some(Arc::new(RabbitmqRequester::new(Arc::clone(
            &self.connection,
        ))))
    }

    fn responder(&self) -> Option<Arc<dyn Responder>> {
        Some(Arc::new(RabbitmqResponder::new(Arc::clone(
            &self.connection,
        ))))
    }

    fn streamer(&self) -> Option<Arc<dyn Streamer>> {
        let connection = &self.connection;
        Some(Arc::new(Emulation::new(
            self.requester()?,
            self.responder()?,
            Arc::new(RabbitmqPost::new(Arc::clone(connection))),
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
    pub(crate) config: RabbitmqConfig,
    pub(crate) transport: Arc<TransportConfig>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Publishes and calls. The broker stops reading from it when it has no room, so nothing is settled here.
    pub(crate) main: Arc<Link>,
    pub(crate) topology: Topology,
    /// Publishes what is confirmed.
    pub(crate) outlet: Outlet,
    /// Publishes what is not: events that may be lost, and replies.
    pub(crate) air: Outlet,
    /// Publishes calls, and gets their replies.
    pub(crate) calls: Outlet,
    pub(crate) waiting: Arc<Waiting>,
    /// The largest payload: what is configured, or less where the broker takes less.
    pub(crate) max_size: Arc<AtomicUsize>,
    health: Arc<Health>,
    /// Consumes.
    consuming: OnceCell<Arc<Link>>,
    closed: AtomicBool,
    ends: Mutex<Slab<Weak<dyn End>>>,
}

/// Something that a transport ends when it closes.
pub(crate) trait End: Send + Sync {
    /// Stops delivering and gives back what was not pulled. May be called again.
    fn end(&self) -> BoxFuture<'_, ()>;
}

/// The state of the connections.
#[derive(Debug)]
struct Health {
    name: String,
    status: watch::Sender<Status>,
    links: Mutex<[News; 2]>,
}

/// Which of the connections.
#[derive(Clone, Copy)]
enum Role {
    Main = 0,
    Consuming = 1,
}

impl Health {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            status: watch::Sender::new(Status::Connected),
            links: Mutex::new([News::Up, News::Up]),
        }
    }

    /// What happened to a connection.
    fn hear(&self, role: Role, news: &News) {
        let mut links = self.links.lock();
        links[role as usize] = news.clone();
        let status = match &*links {
            [News::Down, _] => Status::Reconnecting,
            [_, News::Down] => Status::Degraded("the connection that consumes was lost".to_owned()),
            [News::Blocked(reason), _] => {
                Status::Degraded(format!("RabbitMQ takes no publishes: {reason}"))
            }
            [News::Up, _] => Status::Connected,
        };
        self.status.send_if_modified(|now| {
            if *now == Status::Closed || *now == status {
                return false;
            }
            tracing::info!(transport = %self.name, was = ?now, is = ?status, "the connection to RabbitMQ changed");
            *now = status;
            true
        });
    }
}

impl Connection {
    async fn open(transport: TransportConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, Error> {
        let config = RabbitmqConfig::from_transport(&transport)?;
        let transport = Arc::new(transport);
        let health = Arc::new(Health::new(&transport.name));
        let told = Arc::clone(&health);
        let changed = Box::new(move |news: &News| told.hear(Role::Main, news));
        let main = Arc::new(Link::connect(&config, &transport, "publish", changed).await?);
        let topology = Topology::new(config.clone(), Arc::clone(&transport));
        let max_size = Arc::new(AtomicUsize::new(config.max_message_size));
        let outlet = |confirm: bool, exchange: &str, prepare: Prepare| {
            let setup = Setup {
                confirm,
                exchange: exchange.to_owned(),
                prepare,
                window: config.publish_window,
                window_bytes: config.publish_window_bytes,
                max_size: Arc::clone(&max_size),
            };
            Outlet::new(Arc::clone(&main), setup)
        };
        let plain = || -> Prepare { Box::new(|_| Box::pin(std::future::ready(Ok(())))) };
        let waiting = Arc::new(Waiting::default());
        let listening = Arc::clone(&waiting);
        let listen: Prepare = Box::new(move |channel| calls::prepare(&listening, channel));
        let names = &topology.names;
        Ok(Arc::new(Self {
            outlet: outlet(true, names.exchange(), plain()),
            air: outlet(false, names.exchange(), plain()),
            calls: outlet(true, &names.calls_exchange(), listen),
            config,
            transport,
            clock,
            main,
            topology,
            waiting,
            max_size,
            health,
            consuming: OnceCell::new(),
            closed: AtomicBool::new(false),
            ends: Mutex::default(),
        }))
    }

    /// The connection that consumes, made when it is first needed.
    pub(crate) async fn consuming(&self) -> Result<Arc<Link>, Error> {
        let link = self.consuming.get_or_try_init(async || {
            let told = Arc::clone(&self.health);
            let changed = Box::new(move |news: &News| told.hear(Role::Consuming, news));
            let link = Link::connect(&self.config, &self.transport, "consume", changed).await?;
            Ok::<_, Error>(Arc::new(link))
        });
        link.await.cloned()
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

    /// Ties something to the transport, until [`untie`](Self::untie).
    pub(crate) fn tie(&self, end: Weak<dyn End>) -> usize {
        self.ends.lock().insert(end)
    }

    pub(crate) fn untie(&self, tie: usize) {
        self.ends.lock().try_remove(tie);
    }

    fn ends(&self) -> Vec<Arc<dyn End>> {
        let ends = self.ends.lock();
        ends.iter().filter_map(|(_, end)| end.upgrade()).collect()
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
        let is_connected = self.main.is_connected();
        let left = || deadline.saturating_duration_since(self.clock.now());
        if let Some(consuming) = self.consuming.get() {
            consuming.close(left()).await;
        }
        for outlet in [&self.outlet, &self.air, &self.calls] {
            outlet.close();
        }
        // The replies' address goes last.
        self.main.close(left()).await;
        self.health.status.send_replace(Status::Closed);
        match in_time || !is_connected {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Timeout,
                "RabbitMQ did not confirm everything within the grace; what was not confirmed may be lost or come again",
            )),
        }
    }

    /// Ends what is tied to us, and waits for what is in flight.
    async fn finish(&self) {
        join_all(self.ends().iter().map(|end| end.end())).await;
        self.outlet.flushed().await;
        self.air.flushed().await;
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("transport", &self.transport.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_that_of_both_connections() {
        let health = Health::new("main");
        let hear = |role, news| {
            health.hear(role, &news);
            health.status.borrow().clone()
        };
        assert!(matches!(
            hear(Role::Consuming, News::Down),
            Status::Degraded(_)
        ));
        assert_eq!(hear(Role::Main, News::Down), Status::Reconnecting);
        assert_eq!(hear(Role::Consuming, News::Up), Status::Reconnecting);
        assert_eq!(hear(Role::Main, News::Up), Status::Connected);
        let blocked = hear(Role::Main, News::Blocked("low on memory".to_owned()));
        assert!(matches!(blocked, Status::Degraded(why) if why.contains("low on memory")));
        assert_eq!(hear(Role::Main, News::Up), Status::Connected);
    }
}
