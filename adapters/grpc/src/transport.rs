//! The adapter, and a program's place among its peers in its roles.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anywire::clock::Clock;
use anywire::config::{Endpoint, TransportConfig};
use anywire::pattern::publish_subscribe::{Publisher, Spec, Subscriber};
use anywire::pattern::request_reply::{CallSpec, Requester, Responder};
use anywire::pattern::streaming::Streamer;
use anywire::transport::{Adapter, BrokerObject, Status, Transport};
use anywire::{
    Capabilities, DeliveryCount, Error, ErrorKind, Limits, MAX_SUBJECT_LEN, Message, OrderScope,
    Subject, Support,
};
use async_trait::async_trait;
use http::header::{AUTHORIZATION, HeaderValue};
use parking_lot::Mutex;
use slab::Slab;
use smol_str::SmolStr;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::JoinHandle;
use tonic::Request;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::calls::{GrpcRequester, GrpcResponder, nobody_to_call};
use crate::config::{GrpcConfig, Places};
use crate::errors::{self, Verdict};
use crate::names;
use crate::part::Part;
use crate::pool::{Line, Pool, Tried};
use crate::progress::Progress;
use crate::publisher::GrpcPublisher;
use crate::server::{Hub, Hubs, Seat};
use crate::streams::{GrpcStreamer, Reader};
use crate::subscriber::GrpcSubscriber;
use crate::wire;

/// How many connections of one request may turn out to be gone before it was sent.
const MOST_STALE: u32 = 4;

/// Makes transports that call their peers and are called by them: what [`adapter`](crate::adapter) makes.
///
/// All transports of one adapter, and of its clones, that listen at the same address share one server there.
#[derive(Clone, Debug, Default)]
pub struct GrpcAdapter {
    hubs: Arc<Hubs>,
    runtime: Option<Handle>,
}

impl GrpcAdapter {
    /// Runs its servers on this runtime. Default: on the one that opens the first subscription at an address, which must outlive all
    /// others there.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let adapter = anywire_grpc::adapter().runtime(tokio::runtime::Handle::current());
    /// # let _ = adapter;
    /// # }
    /// ```
    #[must_use]
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }
}

#[async_trait]
impl Adapter for GrpcAdapter {
    fn schemes(&self) -> &'static [&'static str] {
        &[crate::SCHEME, crate::TLS_SCHEME]
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        GrpcConfig::from_transport(config).map(drop)
    }

    fn capabilities(&self, config: &TransportConfig) -> Capabilities {
        let read = GrpcConfig::from_transport(config);
        capabilities(&read.map(|(config, _)| config).unwrap_or_default())
    }

    fn describe(
        &self,
        _config: &TransportConfig,
        specs: &[Spec],
        calls: &[CallSpec],
    ) -> Vec<BrokerObject> {
        let method = |pattern: &str| BrokerObject {
            kind: "method",
            name: pattern.to_owned(),
            // Whoever reaches us may call it; with client_ca, whoever has a certificate.
            permissions: vec!["call"],
        };
        let events = specs
            .iter()
            .map(|spec| method(spec.subscription.pattern.wildcards()));
        let calls = calls.iter().map(|spec| method(spec.pattern.wildcards()));
        events.chain(calls).collect()
    }

    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error> {
        let connection = Connection::open(self, config, clock)?;
        Ok(Arc::new(GrpcTransport { connection }))
    }
}

fn capabilities(config: &GrpcConfig) -> Capabilities {
    Capabilities {
        // The sender is the store.
        durable: Support::Unsupported,
        groups: Support::Emulated,
        // Requests overtake one another.
        order: OrderScope::None,
        replay: Support::Unsupported,
        return_after: Support::Unsupported,
        delivery_count: DeliveryCount::None,
        // More than stored: handled.
        confirm: Support::Native,
        unroutable: Support::Native,
        dedup: None,
        wildcards: Support::Native,
        calls: Support::Native,
        no_responder: Support::Native,
        streams: Support::Native,
        delay: Support::Unsupported,
        limits: Limits {
            max_payload: config.max_payload,
            max_subject: MAX_SUBJECT_LEN,
            binary_headers: true,
        },
    }
}

/// The transport in its roles.
#[derive(Debug)]
pub(crate) struct GrpcTransport {
    connection: Arc<Connection>,
}

impl GrpcTransport {
    pub(crate) fn channel(&self) -> Option<Channel> {
        self.connection.peers.as_ref()?.pool.native()
    }
}

#[async_trait]
impl Transport for GrpcTransport {
    fn capabilities(&self) -> Capabilities {
        capabilities(&self.connection.config)
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(GrpcPublisher::new(Arc::clone(&self.connection)))
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(GrpcSubscriber::new(Arc::clone(&self.connection)))
    }

    fn requester(&self) -> Option<Arc<dyn Requester>> {
        Some(Arc::new(GrpcRequester::new(Arc::clone(&self.connection))))
    }

    fn responder(&self) -> Option<Arc<dyn Responder>> {
        Some(Arc::new(GrpcResponder::new(Arc::clone(&self.connection))))
    }

    fn streamer(&self) -> Option<Arc<dyn Streamer>> {
        Some(Arc::new(GrpcStreamer::new(Arc::clone(&self.connection))))
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.connection.status.subscribe()
    }

    async fn close(&self, grace: Duration) -> Result<(), Error> {
        self.connection.close(grace).await
    }
}

/// The instances that get an event of a group, or calls.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: SmolStr,
    pool: Pool,
    /// Whether it is ourselves: then nobody there is nobody at all.
    is_self: bool,
}

/// What the roles share.
pub(crate) struct Connection {
    pub(crate) config: GrpcConfig,
    pub(crate) clock: Arc<dyn Clock>,
    /// Which groups have taken an event that others have not.
    pub(crate) progress: Progress,
    transport: TransportConfig,
    runtime: Option<Handle>,
    peers: Option<Group>,
    groups: Vec<Group>,
    hub: Option<Arc<Hub>>,
    /// Holds the hub open, once we listen.
    seat: tokio::sync::Mutex<Option<Seat>>,
    in_flight: Semaphore,
    status: watch::Sender<Status>,
    watcher: Mutex<Option<JoinHandle<()>>>,
    bearer: Option<HeaderValue>,
    closed: AtomicBool,
    parts: Mutex<Slab<Weak<Part>>>,
    /// The streams that we have opened.
    streams: Mutex<Slab<Weak<Reader>>>,
}

impl Group {
    /// A connection to an instance that was not tried; `None` when all were.
    pub(crate) async fn line(&self, tried: &Tried) -> Result<Option<Line>, Error> {
        self.pool.line(tried).await
    }
}

impl Connection {
    fn open(
        adapter: &GrpcAdapter,
        transport: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, Error> {
        let (config, places) = GrpcConfig::from_transport(&transport)?;
        let Places {
            listen,
            peers,
            groups,
            is_self,
        } = places;
        let tls = GrpcConfig::client_tls(&transport)?;
        let hub = listen
            .map(|listen| adapter.hubs.at(&listen, &config, &clock))
            .transpose()?;
        let group = |name: &str, addresses: &[Endpoint], is_self: bool| Group {
            name: name.into(),
            pool: Pool::new(addresses, &config, &transport, tls.clone(), !is_self),
            is_self,
        };
        let peers = (!peers.is_empty()).then(|| group("peers", &peers, is_self));
        let groups: Vec<_> = groups
            .iter()
            .map(|(name, all)| group(name, all, false))
            .collect();
        let bearer = transport.token.as_ref().map(|token| {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
            let mut value =
                value.map_err(|_| Error::config("the token holds what no header takes"))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let connection = Arc::new(Self {
            in_flight: Semaphore::new(config.max_in_flight.min(Semaphore::MAX_PERMITS)),
            config,
            clock,
            progress: Progress::default(),
            bearer: bearer.transpose()?,
            transport,
            runtime: adapter.runtime.clone(),
            peers,
            groups,
            hub,
            seat: tokio::sync::Mutex::default(),
            status: watch::Sender::new(Status::Connected),
            watcher: Mutex::default(),
            closed: AtomicBool::new(false),
            parts: Mutex::default(),
            streams: Mutex::default(),
        });
        connection.watch();
        Ok(connection)
    }

    /// Keeps the status true, by what the pools tell.
    fn watch(self: &Arc<Self>) {
        let pools = || {
            self.peers
                .iter()
                .chain(&self.groups)
                .filter(|group| !group.is_self)
        };
        let mut news: Vec<_> = pools().map(|group| group.pool.news()).collect();
        if news.is_empty() {
            return;
        }
        self.look();
        let this = Arc::downgrade(self);
        let watcher = tokio::spawn(async move {
            loop {
                let changed = news.iter_mut().map(|news| Box::pin(news.changed()));
                if futures::future::select_all(changed).await.0.is_err() {
                    return;
                }
                let Some(this) = this.upgrade() else { return };
                this.look();
            }
        });
        *self.watcher.lock() = Some(watcher);
    }

    fn look(&self) {
        let (mut up, mut all) = (0, 0);
        let pools = self
            .peers
            .iter()
            .chain(&self.groups)
            .filter(|group| !group.is_self);
        for group in pools {
            let (of_up, of_all) = group.pool.standing();
            up += of_up;
            all += of_all;
        }
        self.status.send_if_modified(|now| {
            let status = match (up, all) {
                _ if up == all && all > 0 => Status::Connected,
                // Who is called himself goes on with that: services that wait for one another would never be healthy.
                (0, _) if self.hub.is_none() => Status::Reconnecting,
                _ => Status::Degraded(format!("{} of {all} peers cannot be reached", all - up)),
            };
            if *now == Status::Closed || *now == status {
                return false;
            }
            tracing::info!(transport = %self.transport.name, was = ?now, is = ?status, "the peers that can be reached changed");
            *now = status;
            true
        });
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

    /// Ends when the transport is closed.
    pub(crate) async fn closed(&self) {
        let mut status = self.status.subscribe();
        // An error means that the sender is gone, and it is ours.
        let _ = status.wait_for(|status| *status == Status::Closed).await;
    }

    /// Our server, where we listen.
    pub(crate) fn hub(&self) -> Option<&Arc<Hub>> {
        self.hub.as_ref()
    }

    /// Our server.
    ///
    /// # Errors
    /// `Config` where the URL does not say where.
    pub(crate) fn home(&self) -> Result<&Arc<Hub>, Error> {
        self.hub.as_ref().ok_or_else(|| {
            let name = &self.transport.name;
            Error::config(format!(
                "transport \"{name}\" has handlers and does not say where to listen; add ?listen=0.0.0.0:50051 to its URL"
            ))
        })
    }

    /// Listens, if we do not yet.
    ///
    /// # Errors
    /// As [`home`](Self::home), and where the address is not to be had.
    pub(crate) async fn listen(&self) -> Result<(), Error> {
        let hub = self.home()?;
        let mut seat = self.seat.lock().await;
        if seat.is_none() {
            self.check_open()?;
            let runtime = self.runtime.clone().unwrap_or_else(Handle::current);
            *seat = Some(hub.retain(&runtime).await?);
        }
        Ok(())
    }

    /// Who answers calls.
    ///
    /// # Errors
    /// `Config` where nobody is named.
    pub(crate) fn peers(&self, subject: &Subject) -> Result<&Group, Error> {
        let nobody = || nobody_to_call().with_context("subject", subject);
        self.peers.as_ref().ok_or_else(nobody)
    }

    /// Whether we are to answer our own calls.
    pub(crate) fn is_own(&self, subject: &Subject) -> bool {
        self.peers(subject).is_ok_and(|group| group.is_self)
    }

    /// Takes note that a connection is gone.
    pub(crate) fn lost(&self, subject: &Subject, line: &Line) {
        if let Ok(group) = self.peers(subject) {
            group.pool.lost(line);
        }
    }

    /// What we show to our peers.
    pub(crate) fn bearer(&self) -> Option<&HeaderValue> {
        self.bearer.as_ref()
    }

    /// Who gets events.
    ///
    /// # Errors
    /// `Config` where nobody is named.
    pub(crate) fn groups(&self) -> Result<&[Group], Error> {
        match self.groups.as_slice() {
            [] => self
                .peers
                .as_ref()
                .map(std::slice::from_ref)
                .ok_or_else(nobody_to_call),
            groups => Ok(groups),
        }
    }

    /// A place among the requests that are under way.
    ///
    /// # Errors
    /// `Closed` once the transport is closed.
    pub(crate) async fn turn(&self, subject: &Subject) -> Result<SemaphorePermit<'_>, Error> {
        let turn = self.in_flight.acquire().await;
        turn.map_err(|_| errors::closed().with_context("subject", subject))
    }

    /// Sends a request to an instance of a group, and to another one where that has certainly not begun with it.
    pub(crate) async fn ask(
        &self,
        group: &Group,
        message: &Message,
        deadline: Instant,
    ) -> Result<Message, Verdict> {
        let subject = message.subject();
        let path = names::path(subject).map_err(Verdict::Error)?;
        let mut tried = Tried::new();
        let mut last: Option<Verdict> = None;
        let mut stale = 0;
        loop {
            let line = match group.pool.line(&tried).await {
                Ok(Some(line)) => line,
                Ok(None) => {
                    return Err(
                        last.unwrap_or_else(|| Verdict::NotSent(Error::no_responder(subject)))
                    );
                }
                Err(error) => {
                    // That one has no such handler says nothing of another that cannot be reached.
                    return Err(match last {
                        Some(Verdict::NotBegun(told)) if told.kind() != ErrorKind::NoRoute => {
                            Verdict::NotBegun(told)
                        }
                        _ if group.is_self && error.kind() == ErrorKind::Unavailable => {
                            Verdict::NotBegun(Error::no_responder(subject).with_source(error))
                        }
                        _ => Verdict::NotSent(error.with_context("subject", subject)),
                    });
                }
            };
            let left = deadline.saturating_duration_since(self.clock.now());
            let (mut metadata, native) = wire::metadata(message);
            metadata.insert(wire::TIMEOUT, wire::timeout_of(left));
            if let Some(bearer) = &self.bearer {
                metadata.insert(AUTHORIZATION, bearer.clone());
            }
            let mut request = Request::new(message.payload().clone());
            *request.metadata_mut() = MetadataMap::from_headers(metadata);
            // Dropped at the deadline: whether the peer lives is found out by connecting anew, and asking.
            let silent = Silent {
                group,
                line: Some(&line),
                clock: &*self.clock,
                deadline,
            };
            let answered = line
                .unary(path.clone(), request, native, self.config.max_payload)
                .await;
            silent.spoke();
            let status = match answered {
                Ok(response) => {
                    let (metadata, payload, _) = response.into_parts();
                    let read = wire::read(subject.clone(), payload, &metadata.into_headers());
                    return read.map_err(|why| {
                        let text = format!("the reply cannot be read: {why}");
                        Verdict::Error(Error::new(ErrorKind::Codec, text))
                    });
                }
                Err(status) => status,
            };
            let verdict = match errors::verdict(status, subject) {
                Verdict::NotSent(error) | Verdict::Lost(error) if self.is_closed() => {
                    return Err(Verdict::Lost(errors::closed().with_source(error)));
                }
                verdict => verdict,
            };
            match verdict {
                Verdict::NotBegun(error) => {
                    tried.push(line.key());
                    // An instance that is stopping or full says more than one that has no such handler.
                    if last.is_none() || error.kind() != ErrorKind::NoRoute {
                        last = Some(Verdict::NotBegun(error));
                    }
                }
                Verdict::NotSent(error) => {
                    // The peer may have started again meanwhile: it is asked on a new connection.
                    group.pool.lost(&line);
                    stale += 1;
                    if stale > MOST_STALE {
                        return Err(Verdict::NotSent(error));
                    }
                }
                Verdict::Lost(error) => {
                    match error.kind() {
                        ErrorKind::Timeout => group.pool.silent(&line),
                        _ => group.pool.lost(&line),
                    }
                    return Err(Verdict::Lost(error.with_context("peer", line.address())));
                }
                other => return Err(other),
            }
        }
    }

    /// Ties a part to the transport, until [`untie`](Self::untie).
    pub(crate) fn tie(&self, part: Weak<Part>) -> usize {
        self.parts.lock().insert(part)
    }

    pub(crate) fn untie(&self, tie: usize) {
        self.parts.lock().try_remove(tie);
    }

    /// As [`tie`](Self::tie), for a stream that we have opened.
    pub(crate) fn tie_stream(&self, stream: Weak<Reader>) -> usize {
        self.streams.lock().insert(stream)
    }

    pub(crate) fn untie_stream(&self, tie: usize) {
        self.streams.lock().try_remove(tie);
    }

    fn give_streams_up(&self) {
        let streams: Vec<_> = {
            let streams = self.streams.lock();
            streams
                .iter()
                .filter_map(|(_, stream)| stream.upgrade())
                .collect()
        };
        streams.iter().for_each(|stream| stream.give_up());
    }

    fn parts(&self) -> Vec<Arc<Part>> {
        let parts = self.parts.lock();
        parts
            .iter()
            .filter_map(|(_, part)| part.upgrade())
            .collect()
    }

    async fn close(&self, grace: Duration) -> Result<(), Error> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let deadline = self.clock.now() + grace;
        if let Some(seat) = &mut *self.seat.lock().await {
            seat.prepare();
        }
        // No more requests; those that are under way end first.
        let all = u32::try_from(self.config.max_in_flight.min(Semaphore::MAX_PERMITS))
            .unwrap_or(u32::MAX);
        let sent = tokio::select! {
            _ = self.in_flight.acquire_many(all) => true,
            () = self.clock.sleep_until(deadline) => false,
        };
        self.give_streams_up();
        for part in self.parts() {
            part.end();
        }
        let left = deadline.saturating_duration_since(self.clock.now());
        let seat = self.seat.lock().await.take();
        let served = match seat {
            Some(seat) => seat.release(left).await,
            None => true,
        };
        self.in_flight.close();
        self.status.send_replace(Status::Closed);
        if let Some(watcher) = self.watcher.lock().take() {
            watcher.abort();
        }
        for group in self.peers.iter().chain(&self.groups) {
            group.pool.close();
        }
        match sent && served {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Timeout,
                "not everything that was under way ended within the grace; its senders may send it again",
            )),
        }
    }
}

/// Notes that a peer said nothing until the deadline, unless it spoke.
struct Silent<'a> {
    group: &'a Group,
    line: Option<&'a crate::pool::Line>,
    clock: &'a dyn Clock,
    deadline: Instant,
}

impl Silent<'_> {
    fn spoke(mut self) {
        self.line = None;
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        if let Some(line) = self.line
            && self.clock.now() >= self.deadline
        {
            self.group.pool.silent(line);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.lock().take() {
            watcher.abort();
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("transport", &self.transport)
            .field("peers", &self.peers)
            .field("groups", &self.groups)
            .field("hub", &self.hub)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
