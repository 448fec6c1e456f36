//! The adapter, and a client's connection in its roles.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anywire::clock::Clock;
use anywire::config::TransportConfig;
use anywire::pattern::publish_subscribe::{Guarantee, Publisher, Spec, Subscriber, SubscriptionId};
use anywire::pattern::request_reply::{CallSpec, Requester, Responder};
use anywire::pattern::streaming::{Emulation, Streamer};
use anywire::transport::{Adapter, BrokerObject, Status, Transport};
use anywire::{Capabilities, DeliveryCount, Error, Limits, OrderScope, Pattern, Support};
use async_trait::async_trait;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{OnceCell, watch};

use crate::calls::KafkaRequester;
use crate::catalog::Catalog;
use crate::config::{self, KafkaConfig};
use crate::errand::{self, Errand};
use crate::errors;
use crate::group::{Group, Kind, Settings};
use crate::health::Health;
use crate::intake::Intake;
use crate::names;
use crate::post::KafkaPost;
use crate::producer::{self, Producer};
use crate::publisher::KafkaPublisher;
use crate::replies::Replies;
use crate::server::KafkaResponder;
use crate::shelf::SeatKey;
use crate::subscriber::KafkaSubscriber;
use crate::subscription::Begin;
use crate::window::Window;

/// How often the brokers are looked at while all is well: a connection that died in silence is noticed within 25 s.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How often while it is not.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Connects to Kafka: what [`adapter`](crate::adapter) makes.
#[derive(Clone, Copy, Debug, Default)]
pub struct KafkaAdapter(());

#[async_trait]
impl Adapter for KafkaAdapter {
    fn schemes(&self) -> &'static [&'static str] {
        &[crate::SCHEME, crate::TLS_SCHEME]
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        KafkaConfig::from_transport(config).map(drop)
    }

    fn capabilities(&self, config: &TransportConfig) -> Capabilities {
        let config = KafkaConfig::from_transport(config).unwrap_or_default();
        capabilities(&config)
    }

    fn describe(
        &self,
        config: &TransportConfig,
        specs: &[Spec],
        calls: &[CallSpec],
    ) -> Vec<BrokerObject> {
        let rules = config::rules(config).unwrap_or_default();
        let object = |kind, name: String, permissions: &[&'static str]| BrokerObject {
            kind,
            name,
            permissions: permissions.to_vec(),
        };
        let mut objects = Vec::new();
        for spec in specs {
            let pattern = &spec.subscription.pattern;
            let packed = rules.iter().find_map(|rule| {
                let topic = rule.topic.topic.clone()?;
                rule.pattern.covers(pattern).then_some(topic)
            });
            let topic = match packed {
                Some(topic) => Ok(topic),
                None => names::subscription(pattern),
            };
            objects
                .extend(topic.map(|topic| object("topic", topic, &["create", "describe", "read"])));
            let Some(group) = &spec.subscription.group else {
                continue;
            };
            objects.push(object("group", group.to_string(), &["read"]));
            if spec.guarantee == Guarantee::AtLeastOnce {
                let copies = names::retries(group);
                objects.push(object(
                    "topic",
                    copies,
                    &["create", "describe", "read", "write"],
                ));
            }
        }
        for call in calls {
            let topic = names::calls(&call.pattern);
            objects
                .extend(topic.map(|topic| object("topic", topic, &["create", "describe", "read"])));
        }
        if !calls.is_empty() {
            objects.push(object("group", names::SERVERS.to_owned(), &["read"]));
        }
        objects
    }

    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error> {
        let connection = Connection::open(config, clock).await?;
        Ok(Arc::new(KafkaTransport { connection }))
    }
}

fn capabilities(config: &KafkaConfig) -> Capabilities {
    Capabilities {
        durable: Support::Native,
        groups: Support::Native,
        order: OrderScope::KeyAloneInGroup,
        replay: Support::Native,
        return_after: Support::Unsupported,
        delivery_count: DeliveryCount::None,
        confirm: Support::Native,
        unroutable: Support::Emulated,
        dedup: None,
        wildcards: Support::Emulated,
        calls: Support::Emulated,
        no_responder: Support::Unsupported,
        streams: Support::Emulated,
        delay: Support::Emulated,
        limits: Limits {
            max_payload: config.max_payload,
            max_subject: names::MAX_TOPIC,
            binary_headers: true,
        },
    }
}

/// A client's connection in its roles.
#[derive(Debug)]
pub(crate) struct KafkaTransport {
    connection: Arc<Connection>,
}

impl KafkaTransport {
    pub(crate) fn client_config(&self) -> Option<rdkafka::ClientConfig> {
        let settings = &self.connection.settings;
        settings.config.admin(&settings.transport).ok()
    }
}

#[async_trait]
impl Transport for KafkaTransport {
    fn capabilities(&self) -> Capabilities {
        capabilities(&self.connection.settings.config)
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(KafkaPublisher::new(Arc::clone(&self.connection)))
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(KafkaSubscriber::new(Arc::clone(&self.connection)))
    }

    fn requester(&self) -> Option<Arc<dyn Requester>> {
        Some(Arc::new(KafkaRequester::new(Arc::clone(&self.connection))))
    }

    fn responder(&self) -> Option<Arc<dyn Responder>> {
        Some(Arc::new(KafkaResponder::new(Arc::clone(&self.connection))))
    }

    fn streamer(&self) -> Option<Arc<dyn Streamer>> {
        let (connection, settings) = (&self.connection, &self.connection.settings);
        Some(Arc::new(Emulation::new(
            self.requester()?,
            self.responder()?,
            Arc::new(KafkaPost::new(Arc::clone(connection))),
            Arc::clone(&settings.clock),
            settings.transport.stream_heartbeat,
        )))
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.connection.settings.health.status.subscribe()
    }

    async fn close(&self, grace: Duration) -> Result<(), Error> {
        self.connection.close(grace).await
    }
}

/// What a client's roles share.
pub(crate) struct Connection {
    pub(crate) settings: Arc<Settings>,
    pub(crate) producer: Arc<Producer>,
    pub(crate) catalog: Catalog,
    /// The replies to our calls, heard from the first call on.
    pub(crate) replies: OnceCell<Replies>,
    groups: Mutex<HashMap<Kind, Arc<Group>>>,
    moves: AtomicBool,
    closed: AtomicBool,
    this: Weak<Self>,
}

impl Connection {
    async fn open(transport: TransportConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, Error> {
        let config = KafkaConfig::from_transport(&transport)?;
        let health = Arc::new(Health::new(&transport.name));
        let window = Window::new(config.max_in_flight, config.max_in_flight_bytes);
        let producer = Producer::new(config.producer(&transport)?, window, &health)?;
        let producer = Arc::new(producer);
        let settings = Arc::new(Settings {
            rules: config::rules(&transport)?.into(),
            config,
            transport: Arc::new(transport),
            clock,
            health,
        });
        let connection = Arc::new_cyclic(|this| Self {
            catalog: Catalog::new(&settings, &producer),
            settings,
            producer,
            replies: OnceCell::new(),
            groups: Mutex::default(),
            moves: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            this: Weak::clone(this),
        });
        if let Err(error) = connection.catalog.look().await {
            // Dropping a client of the library may block for a moment.
            connection.release().await;
            let transport = &connection.settings.transport;
            return Err(error
                .with_operation("connect")
                .with_context("transport", &transport.name)
                .with_context("address", transport.address()));
        }
        tokio::spawn(watch_over(Arc::downgrade(&connection)));
        Ok(connection)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// # Errors
    /// `Closed` after the close.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match self.is_closed() {
            true => Err(errors::closed()),
            false => Ok(()),
        }
    }

    /// Gives somebody a seat at the consumer of a kind, which is started where it is the first.
    pub(crate) fn sit_down(
        &self,
        kind: &Kind,
        subscription: &SubscriptionId,
        window: usize,
        begin: Begin,
    ) -> Result<(Arc<Group>, SeatKey), Error> {
        let mut groups = self.groups.lock();
        // A close that came before has ended everybody, and nobody must come after it.
        self.check_open()?;
        if let Some(group) = groups.get(kind)
            && let Some(seat) = group.sit_down(subscription, window, begin.clone())
        {
            return Ok((Arc::clone(group), seat));
        }
        // Each of these is for one reader, and nobody comes back to it.
        groups.retain(|kind, group| !matches!(kind, Kind::Reader(_)) || !group.is_stopping());
        let group = Group::start(kind.clone(), &self.settings)?;
        self.catalog.tell(&group);
        let seat = group.sit_down(subscription, window, begin);
        let seat = seat.ok_or_else(errors::closed)?;
        if let Kind::Group(name) = kind {
            let strays = SubscriptionId::new(name.as_str(), subscription.pattern.clone());
            let strays = group.sit_for_strays(&strays, errand::TOGETHER);
            let strays = strays.ok_or_else(errors::closed)?;
            let intake = Intake::new(Arc::clone(&group), strays);
            self.run(intake, Errand::DeadLetters(name.clone()));
        }
        // The one before has left its group, or is about to: it only tells its last positions.
        groups.insert(kind.clone(), Arc::clone(&group));
        Ok((group, seat))
    }

    fn run(&self, intake: Intake, errand: Errand) {
        let connection = Weak::clone(&self.this);
        tokio::spawn(errand::run(connection, intake, errand));
    }

    /// Helps to move events whose time has come.
    pub(crate) fn start_moving(&self) {
        if self.is_closed() || self.moves.swap(true, Ordering::AcqRel) {
            return;
        }
        let Ok(everything) = Pattern::parse_any(">") else {
            return;
        };
        let id = SubscriptionId::new(names::MOVERS, everything);
        match self.sit_down(&Kind::Movers, &id, errand::TOGETHER, Begin::default()) {
            Ok((group, seat)) => {
                self.run(Intake::new(group, seat), Errand::Home);
            }
            Err(error) => {
                tracing::warn!(%error, "events that wait for their time are left to others");
                self.moves.store(false, Ordering::Release);
            }
        }
    }

    async fn close(&self, grace: Duration) -> Result<(), Error> {
        {
            let _nobody_comes = self.groups.lock();
            if self.closed.swap(true, Ordering::AcqRel) {
                return Ok(());
            }
        }
        let clock = &self.settings.clock;
        let deadline = clock.now() + grace;
        let groups: Vec<_> = self.groups.lock().drain().map(|(_, group)| group).collect();
        groups.iter().for_each(|group| group.stop());
        let finished = tokio::select! {
            finished = self.finish(&groups, grace) => finished,
            () = clock.sleep_until(deadline) => false,
        };
        // A member that says goodbye is not missed. Nothing is lost with one that cannot.
        let goodbye = async {
            join_all(groups.iter().map(|group| group.ended())).await;
            self.release().await;
        };
        tokio::select! {
            () = goodbye => {}
            () = clock.sleep_until(deadline) => {}
        }
        if let Some(replies) = self.replies.get() {
            // The replies' address goes last.
            replies.stop();
        }
        self.producer.end();
        let is_down = self.settings.health.is_down();
        self.settings.health.status.send_replace(Status::Closed);
        match finished || is_down {
            true => Ok(()),
            false => Err(Error::new(
                anywire::ErrorKind::Timeout,
                "Kafka did not confirm everything within the grace; what was not confirmed may be lost or come again",
            )),
        }
    }

    /// Waits for the last positions, and for what is under way.
    async fn finish(&self, groups: &[Arc<Group>], grace: Duration) -> bool {
        let producer = Arc::clone(&self.producer);
        let flushed = tokio::task::spawn_blocking(move || producer.flush(grace));
        let told = join_all(groups.iter().map(|group| group.has_told()));
        let (flushed, _) = tokio::join!(flushed, told);
        flushed.unwrap_or(false)
    }

    /// Drops the clients that may block while they are dropped.
    async fn release(&self) {
        let admin = self.catalog.take_admin();
        let _ = tokio::task::spawn_blocking(move || drop(admin)).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.settings.health.status.send_replace(Status::Closed);
        for group in self.groups.get_mut().values() {
            group.stop();
        }
        if let Some(replies) = self.replies.get() {
            replies.stop();
        }
        // Dropping it waits for the library, which the runtime's threads must not.
        if let Some(admin) = self.catalog.take_admin() {
            producer::apart(move || drop(admin));
        }
    }
}

/// Looks at the brokers from time to time, and at once where they seem to be gone.
async fn watch_over(connection: Weak<Connection>) {
    let mut interval = LOOK_INTERVAL;
    loop {
        let Some(settings) = connection
            .upgrade()
            .map(|connection| Arc::clone(&connection.settings))
        else {
            return;
        };
        let mut status = settings.health.status.subscribe();
        tokio::select! {
            () = settings.clock.sleep_until(settings.clock.now() + interval) => {}
            () = settings.health.doubt.notified() => {}
            closed = status.wait_for(|status| *status == Status::Closed) => {
                drop(closed);
                return;
            }
        }
        drop(settings);
        let Some(connection) = connection.upgrade() else {
            return;
        };
        let looked = tokio::select! {
            looked = connection.catalog.look() => looked,
            closed = status.wait_for(|status| *status == Status::Closed) => {
                drop(closed);
                return;
            }
        };
        interval = if looked.is_ok() {
            LOOK_INTERVAL
        } else {
            RETRY_INTERVAL
        };
        if looked.is_err() {
            tokio::select! {
                () = connection.catalog.revive() => {}
                closed = status.wait_for(|status| *status == Status::Closed) => {
                    drop(closed);
                    return;
                }
            }
        }
        if looked.is_ok() {
            let groups: Vec<_> = connection.groups.lock().values().cloned().collect();
            // Who has been here for a while helps to move what waits. All apps of a cluster are one group for that, which
            // everyone who comes or goes puts in order again.
            if !groups.is_empty() && connection.catalog.has_delayed() {
                connection.start_moving();
            }
            groups.iter().for_each(|group| group.shelf.lock().resume());
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("transport", &self.settings.transport)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
