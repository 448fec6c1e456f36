//! Connections to the instances of one service: looked up, connected and connected again by one task, taken in turn.

use std::collections::HashMap;
use std::error::Error as _;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anywire::config::{Endpoint as Address, TransportConfig};
use anywire::{Error, ErrorKind};
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower_service::Service;

use crate::codec::Plain;
use crate::config::{GrpcConfig, is_encrypted};
use crate::errors;
use crate::server::MAX_METADATA;

/// Between two attempts to connect to an address while somebody waits for it.
const WANTED: Duration = Duration::from_millis(50);
/// Between two attempts while nobody does, doubled each time.
const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(10);
/// How long looking up a name may take.
const LOOKUP: Duration = Duration::from_secs(4);

/// The instances of one service.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
}

struct Shared {
    dial: Dial,
    addresses: Vec<Address>,
    peers: Mutex<Vec<Arc<Peer>>>,
    turn: AtomicUsize,
    /// Counts what has changed: an attempt that ended, a connection that was lost, names that were looked up.
    news: watch::Sender<u64>,
    /// Somebody waits for a connection.
    wanted: Notify,
    /// How often all names have been looked up, and why the last time failed.
    lookups: AtomicU64,
    lookup_error: Mutex<Option<String>>,
    resolve_every: Duration,
    /// Whether connections are made before they are needed.
    is_eager: bool,
}

/// How connections are made.
struct Dial {
    tls: Option<ClientTlsConfig>,
    server_name: Option<String>,
    is_encrypted: bool,
    config: GrpcConfig,
}

/// One connection to one address.
pub(crate) struct Peer {
    /// Whose certificate is expected.
    host: String,
    address: SocketAddr,
    /// Tells several connections to one address apart.
    number: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    channel: Option<Channel>,
    /// Which connection it is.
    epoch: u64,
    is_dialing: bool,
    /// When the last attempt began, and how many have failed in a row.
    began: Option<Instant>,
    failures: u32,
    error: Option<(ErrorKind, String)>,
    /// Whether it has last been heard to say nothing: then a connection alone is no sign of life.
    is_suspect: bool,
}

/// A connection that is up, to be used once.
#[derive(Clone)]
pub(crate) struct Line {
    peer: Arc<Peer>,
    channel: Channel,
    epoch: u64,
}

/// What has been asked in vain for one request.
pub(crate) type Tried = SmallVec<[(SocketAddr, usize); 2]>;

impl Pool {
    /// A pool for these addresses; its task ends with it.
    pub(crate) fn new(
        addresses: &[Address],
        config: &GrpcConfig,
        transport: &TransportConfig,
        tls: Option<ClientTlsConfig>,
        is_eager: bool,
    ) -> Self {
        let shared = Arc::new(Shared {
            dial: Dial {
                tls,
                server_name: transport.tls.server_name.clone(),
                is_encrypted: is_encrypted(transport),
                config: config.clone(),
            },
            addresses: addresses.to_vec(),
            peers: Mutex::default(),
            turn: AtomicUsize::new(0),
            news: watch::Sender::new(0),
            wanted: Notify::new(),
            lookups: AtomicU64::new(0),
            lookup_error: Mutex::default(),
            resolve_every: config.resolve_every,
            is_eager,
        });
        let keeper = tokio::spawn(Arc::clone(&shared).keep());
        Self { shared, keeper }
    }

    /// Whether anybody can be reached, as far as is known: (connections that are up, all).
    pub(crate) fn standing(&self) -> (usize, usize) {
        let peers = self.shared.peers.lock();
        let up = peers
            .iter()
            .filter(|peer| peer.state.lock().channel.is_some())
            .count();
        (up, peers.len())
    }

    /// What changes.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.shared.news.subscribe()
    }

    /// The next connection in turn that was not tried, waiting for one where none is up.
    ///
    /// # Errors
    /// `Unavailable` or `Config` when an attempt at each address has failed since; `None` when all were tried.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn line(&self, tried: &Tried) -> Result<Option<Line>, Error> {
        if let Some(line) = self.shared.up(tried) {
            return Ok(Some(line));
        }
        let mut news = self.shared.news.subscribe();
        let lookups = self.shared.lookups.load(Ordering::Acquire);
        let began = Instant::now();
        loop {
            if let Some(line) = self.shared.up(tried) {
                return Ok(Some(line));
            }
            match self.shared.outlook(tried, began, lookups) {
                Outlook::Tried => return Ok(None),
                Outlook::Hopeless(error) => return Err(error),
                Outlook::Waiting => {}
            }
            self.shared.wanted.notify_one();
            if news.changed().await.is_err() {
                return Err(errors::closed());
            }
        }
    }

    /// Makes no more connections, and lets go of those that there are.
    pub(crate) fn close(&self) {
        self.keeper.abort();
        self.shared.peers.lock().clear();
    }

    /// A connection for the vendor's door.
    pub(crate) fn native(&self) -> Option<Channel> {
        self.shared.up(&Tried::new()).map(|line| line.channel)
    }

    /// Takes note that a request found its connection gone: it is made anew.
    pub(crate) fn lost(&self, line: &Line) {
        self.let_go(line, false);
    }

    /// Takes note that nothing was heard on a connection until a deadline: it is made anew, and used once its peer has said anything.
    pub(crate) fn silent(&self, line: &Line) {
        self.let_go(line, true);
    }

    fn let_go(&self, line: &Line, is_suspect: bool) {
        let mut state = line.peer.state.lock();
        if state.epoch == line.epoch {
            state.channel = None;
            state.is_suspect = is_suspect;
            state.failures = 0;
            state.began = None;
            drop(state);
            self.shared.wanted.notify_one();
            self.shared.told();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (up, all) = self.standing();
        f.debug_struct("Pool")
            .field("addresses", &self.shared.addresses)
            .field("up", &up)
            .field("all", &all)
            .finish_non_exhaustive()
    }
}

/// What somebody who finds no connection may hope for.
enum Outlook {
    Waiting,
    /// Everything was tried.
    Tried,
    Hopeless(Error),
}

impl Shared {
    /// The next peer in turn that is up.
    fn up(&self, tried: &Tried) -> Option<Line> {
        let peers = self.peers.lock();
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = peers.len();
        (0..count).find_map(|step| {
            let peer = &peers[(start.wrapping_add(step)) % count];
            if tried.contains(&peer.key()) {
                return None;
            }
            let state = peer.state.lock();
            Some(Line {
                channel: state.channel.clone()?,
                epoch: state.epoch,
                peer: Arc::clone(peer),
            })
        })
    }

    fn outlook(&self, tried: &Tried, began: Instant, lookups: u64) -> Outlook {
        let peers = self.peers.lock();
        let left: Vec<_> = peers
            .iter()
            .filter(|peer| !tried.contains(&peer.key()))
            .collect();
        if left.is_empty() {
            if !peers.is_empty() {
                return Outlook::Tried;
            }
            if self.lookups.load(Ordering::Acquire) == lookups {
                return Outlook::Waiting;
            }
            let why = self.lookup_error.lock().clone();
            let why = why.unwrap_or_else(|| "there is no address".to_owned());
            return Outlook::Hopeless(Error::new(ErrorKind::Unavailable, why));
        }
        let mut last = None;
        for peer in left {
            let state = peer.state.lock();
            let is_told = !state.is_dialing && state.began.is_some_and(|at| at >= began);
            match &state.error {
                Some((kind, text)) if is_told => last = Some((*kind, text.clone(), peer.address)),
                _ => return Outlook::Waiting,
            }
        }
        match last {
            Some((kind, text, address)) => {
                Outlook::Hopeless(Error::new(kind, text).with_context("peer", address))
            }
            None => Outlook::Waiting,
        }
    }

    fn told(&self) {
        self.news.send_modify(|news| *news = news.wrapping_add(1));
    }

    /// Looks names up, and makes connections, for as long as the pool lives.
    async fn keep(self: Arc<Self>) {
        let mut dialing = FuturesUnordered::<BoxFuture<'static, ()>>::new();
        let mut looking: Option<BoxFuture<'static, ()>> = Some(Arc::clone(&self).look_up().boxed());
        let mut looked = Instant::now();
        let mut is_wanted = false;
        loop {
            let next = self.dial_due(&mut dialing, is_wanted);
            is_wanted = false;
            let again = looking.is_none().then(|| looked + self.resolve_every);
            let wake = wake(next, again);
            tokio::select! {
                () = async { match &mut looking { Some(look) => look.await, None => std::future::pending().await } } => {
                    looking = None;
                    looked = Instant::now();
                    // Whoever waits for a connection says so again.
                    self.told();
                }
                Some(()) = dialing.next(), if !dialing.is_empty() => self.told(),
                () = self.wanted.notified() => {
                    is_wanted = true;
                    // Nobody is known: a name that was not there may be now.
                    let nobody = self.peers.lock().is_empty() && looked.elapsed() >= WANTED;
                    if looking.is_none() && nobody {
                        looking = Some(Arc::clone(&self).look_up().boxed());
                    }
                }
                () = wake => {
                    is_wanted = next.is_some_and(|next| next <= Instant::now());
                    if looking.is_none() && looked.elapsed() >= self.resolve_every {
                        looking = Some(Arc::clone(&self).look_up().boxed());
                    }
                }
            }
        }
    }

    /// Begins the attempts that are due, and tells when the next one is.
    fn dial_due(
        self: &Arc<Self>,
        dialing: &mut FuturesUnordered<BoxFuture<'static, ()>>,
        is_wanted: bool,
    ) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for peer in self.peers.lock().iter() {
            let mut state = peer.state.lock();
            if state.channel.is_some() || state.is_dialing {
                continue;
            }
            let pause = match state.failures {
                0 => Duration::ZERO,
                _ if is_wanted => WANTED,
                failures => {
                    let pause = FIRST.saturating_mul(1 << failures.min(10)).min(LAST);
                    pause.mul_f64(0.75 + rand::random::<f64>() / 4.0)
                }
            };
            let due = state.began.map_or(now, |began| began + pause);
            let is_welcome = is_wanted || self.is_eager || state.failures == 0 && state.epoch > 0;
            if due > now {
                next = Some(next.map_or(due, |next| next.min(due)));
            } else if is_welcome {
                state.is_dialing = true;
                state.began = Some(now);
                dialing.push(Arc::clone(self).connect(Arc::clone(peer)).boxed());
            }
        }
        // An attempt that nobody waits for is not made where connections are made on demand.
        next.filter(|_| self.is_eager || is_wanted)
    }

    async fn connect(self: Arc<Self>, peer: Arc<Peer>) {
        let is_suspect = peer.state.lock().is_suspect;
        let made = match self.dial.connect(&peer).await {
            Ok(channel) if is_suspect => self.dial.listen(channel).await,
            made => made,
        };
        let mut state = peer.state.lock();
        state.is_dialing = false;
        match made {
            Ok(channel) => {
                state.channel = Some(channel);
                state.epoch += 1;
                state.failures = 0;
                state.error = None;
                state.is_suspect = false;
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                if state.failures == 1 {
                    tracing::debug!(peer = %peer.address, %error, "no connection");
                }
                state.error = Some((error.kind(), error.to_string()));
            }
        }
    }

    /// Looks all names up, and takes what they say now. What is not named any more is let go; what is under way there ends.
    async fn look_up(self: Arc<Self>) {
        let found = join_all(self.addresses.iter().map(look_up)).await;
        let mut all: Vec<(String, SocketAddr)> = Vec::new();
        let mut failed: HashMap<String, String> = HashMap::new();
        for (address, found) in self.addresses.iter().zip(found) {
            match found {
                Ok(found) => all.extend(found.into_iter().map(|at| (address.host.clone(), at))),
                Err(why) => {
                    failed.insert(address.host.clone(), why);
                }
            }
        }
        let mut peers = self.peers.lock();
        // A name server that does not answer is no reason to let go of what is known.
        let is_named = |peer: &Peer| {
            all.iter()
                .any(|(host, at)| *host == peer.host && *at == peer.address)
                || failed.contains_key(&peer.host)
        };
        peers.retain(|peer| is_named(peer));
        for (host, address) in all {
            for number in 0..self.dial.config.connections {
                let is_known = peers
                    .iter()
                    .any(|peer| peer.address == address && peer.number == number);
                if !is_known {
                    peers.push(Arc::new(Peer {
                        host: host.clone(),
                        address,
                        number,
                        state: Mutex::default(),
                    }));
                }
            }
        }
        drop(peers);
        *self.lookup_error.lock() = failed.into_values().next();
        self.lookups.fetch_add(1, Ordering::AcqRel);
    }
}

/// Ends when the next attempt is due, or when names are to be looked up again: never for what is under way already.
async fn wake(attempt: Option<Instant>, lookup: Option<Instant>) {
    match attempt.into_iter().chain(lookup).min() {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn look_up(address: &Address) -> Result<Vec<SocketAddr>, String> {
    let port = address.port.unwrap_or_default();
    if let Ok(ip) = address.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let lookup = tokio::net::lookup_host((address.host.as_str(), port));
    match tokio::time::timeout(LOOKUP, lookup).await {
        Ok(Ok(found)) => Ok(found.collect()),
        Ok(Err(error)) => Err(format!(
            "the name {} cannot be looked up: {error}",
            address.host
        )),
        Err(_) => Err(format!(
            "the name {} was not looked up in time",
            address.host
        )),
    }
}

impl Dial {
    async fn connect(&self, peer: &Peer) -> Result<Channel, Error> {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        let authority = Address {
            host: peer.host.clone(),
            port: Some(peer.address.port()),
        };
        let config = &self.config;
        let endpoint = Endpoint::from_shared(format!("{scheme}://{authority}"));
        let endpoint = endpoint.map_err(|error| wrong(peer, error))?;
        let mut endpoint = endpoint
            .user_agent(concat!("anywire/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| wrong(peer, error))?
            .http2_keep_alive_interval(config.keep_alive)
            .keep_alive_timeout(config.keep_alive_timeout)
            .keep_alive_while_idle(config.keep_alive_while_idle)
            .http2_max_header_list_size(MAX_METADATA)
            // Answers to calls that were given up come late, and many at once.
            .http2_max_concurrent_reset_streams(config.max_in_flight);
        if let Some(tls) = &self.tls {
            let name = self.server_name.as_ref().unwrap_or(&peer.host);
            endpoint = endpoint
                .tls_config(tls.clone().domain_name(name))
                .map_err(|error| {
                    Error::config("tls.ca, tls.cert or tls.key cannot be used").with_source(error)
                })?;
        }
        let (address, timeout) = (peer.address, config.connect_timeout);
        let connector = tower_fn(move |_: http::Uri| {
            Box::pin(async move {
                let stream = tokio::time::timeout(timeout, TcpStream::connect(address)).await;
                let stream =
                    stream.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            })
        });
        let connecting = endpoint.connect_with_connector(connector);
        // A peer that takes the connection and says nothing.
        match tokio::time::timeout(timeout, connecting).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(errors::unreachable_peer(&error)),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                "the peer takes connections and does not speak; does it listen with the same scheme?",
            )),
        }
    }

    /// Waits until the peer says anything, and be it that it does not know what it is asked.
    async fn listen(&self, channel: Channel) -> Result<Channel, Error> {
        let mut health = HealthClient::new(channel.clone());
        let asked = health.check(HealthCheckRequest::default());
        match tokio::time::timeout(self.config.connect_timeout, asked).await {
            Ok(Err(status)) if status.source().is_some() => Err(errors::unreachable_peer(&status)),
            Ok(_) => Ok(channel),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                "the peer takes connections and answers nothing",
            )),
        }
    }
}

fn wrong(peer: &Peer, error: tonic::transport::Error) -> Error {
    Error::config(format!("{} is no address", peer.host)).with_source(error)
}

impl Peer {
    fn key(&self) -> (SocketAddr, usize) {
        (self.address, self.number)
    }
}

impl Line {
    /// What it is told apart by.
    pub(crate) fn key(&self) -> (SocketAddr, usize) {
        self.peer.key()
    }

    /// Who is at its other end.
    pub(crate) fn address(&self) -> SocketAddr {
        self.peer.address
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn unary(
        &self,
        path: PathAndQuery,
        request: Request<Bytes>,
        native: HeaderValue,
        max_payload: usize,
    ) -> Result<Response<Bytes>, Status> {
        let mut grpc = self.client(native, max_payload).await?;
        grpc.unary(request, path, Plain).await
    }

    /// Sends a request and waits for the beginning of its answers.
    pub(crate) async fn server_streaming(
        &self,
        path: PathAndQuery,
        request: Request<Bytes>,
        native: HeaderValue,
        max_payload: usize,
    ) -> Result<Response<Streaming<Bytes>>, Status> {
        let mut grpc = self.client(native, max_payload).await?;
        grpc.server_streaming(request, path, Plain).await
    }

    /// Sends requests and waits for the beginning of their answers.
    pub(crate) async fn streaming<S>(
        &self,
        path: PathAndQuery,
        requests: Request<S>,
        native: HeaderValue,
        max_payload: usize,
    ) -> Result<Response<Streaming<Bytes>>, Status>
    where
        S: Stream<Item = Bytes> + Send + 'static,
    {
        let mut grpc = self.client(native, max_payload).await?;
        grpc.streaming(requests, path, Plain).await
    }

    async fn client(
        &self,
        native: HeaderValue,
        max_payload: usize,
    ) -> Result<tonic::client::Grpc<Typed>, Status> {
        let typed = Typed {
            channel: self.channel.clone(),
            native,
        };
        let mut grpc = tonic::client::Grpc::new(typed)
            .max_decoding_message_size(max_payload)
            .max_encoding_message_size(max_payload);
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::from_error(Box::new(error)))?;
        Ok(grpc)
    }
}

/// A channel whose requests have a content type of their own: the library knows only one.
#[derive(Clone)]
struct Typed {
    channel: Channel,
    native: HeaderValue,
}

impl Service<http::Request<Body>> for Typed {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        request
            .headers_mut()
            .insert(CONTENT_TYPE, self.native.clone());
        self.channel.call(request)
    }
}

/// A service of a function, which is always ready.
#[derive(Clone)]
struct Function<F>(F);

fn tower_fn<F>(function: F) -> Function<F> {
    Function(function)
}

impl<F, T, U> Service<http::Uri> for Function<F>
where
    F: Fn(http::Uri) -> U,
    U: Future<Output = Result<T, std::io::Error>>,
{
    type Response = T;
    type Error = std::io::Error;
    type Future = U;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> U {
        (self.0)(uri)
    }
}
