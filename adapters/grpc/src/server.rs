//! Our server: one for each address at which this program listens, shared by all who listen there.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use anywire::clock::Clock;
use anywire::config::Endpoint;
use anywire::{Error, ErrorKind};
use futures::future::{BoxFuture, Either, select};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, HealthService};
use tower_service::Service;

use crate::config::{self, GrpcConfig};
use crate::front::{Front, late_answer};
use crate::socket::Sockets;
use crate::switchboard::Switchboard;
use crate::wire;

/// The most bytes of metadata in one message, in both directions.
pub(crate) const MAX_METADATA: u32 = 128 * 1024;
/// How many requests beyond those that we hold are heard, to be refused.
const SPARE: usize = 256;
/// How much sooner than the library we tell that a deadline has passed: it tells something else. More than a tick of its timers;
/// where little time is left, less.
const SOONER: Duration = Duration::from_millis(2);
/// How long clients without a request may take to go: one that is silent never does, and the library waits for it.
const LINGER: Duration = Duration::from_millis(500);

/// The servers of this program, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Hubs(Mutex<HashMap<String, Weak<Hub>>>);

impl Hubs {
    /// The one at this address.
    ///
    /// # Errors
    /// `Config` where it is there with another configuration.
    pub(crate) fn at(
        &self,
        listen: &Endpoint,
        config: &GrpcConfig,
        clock: &Arc<dyn Clock>,
    ) -> Result<Arc<Hub>, Error> {
        let mut hubs = self.0.lock();
        hubs.retain(|_, hub| hub.strong_count() > 0);
        let address = listen.to_string();
        if let Some(hub) = hubs.get(&address).and_then(Weak::upgrade) {
            return match hub.config == *config {
                true => Ok(hub),
                false => Err(Error::config(format!(
                    "two transports of this program listen at {address} with different settings; give both the same, or each an address of its own"
                ))),
            };
        }
        let hub = Arc::new(Hub {
            listen: listen.clone(),
            config: config.clone(),
            board: Arc::new(Switchboard::default()),
            clock: Arc::clone(clock),
            turn: tokio::sync::Mutex::default(),
            house: Mutex::default(),
        });
        hubs.insert(address, Arc::downgrade(&hub));
        Ok(hub)
    }
}

/// What is served at an address. It listens while somebody has opened something.
pub(crate) struct Hub {
    listen: Endpoint,
    config: GrpcConfig,
    pub(crate) board: Arc<Switchboard>,
    clock: Arc<dyn Clock>,
    /// Held while the server starts, and while it ends until its port is free.
    turn: tokio::sync::Mutex<()>,
    house: Mutex<House>,
}

/// The server, while anybody has a seat.
#[derive(Default)]
struct House {
    seats: usize,
    /// How many of them are about to be given up.
    closing: usize,
    running: Option<Running>,
}

/// A server that runs. It ends with this.
struct Running {
    /// Asks clients to go, and ends when they have.
    stop: CancellationToken,
    /// Ends what is left.
    cut: CancellationToken,
    /// The requests that are under way.
    admitted: Arc<Semaphore>,
    /// Resolves when the port is free.
    closed: oneshot::Receiver<()>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.cut.cancel();
    }
}

/// Keeps the server running. With the last one it ends: in order by [`release`](Self::release), and where that is dropped or never
/// called, what is under way is cut off.
pub(crate) struct Seat {
    hub: Arc<Hub>,
    is_taken: bool,
    is_closing: bool,
}

impl Seat {
    /// Tells that the seat is about to be given up. Once all are, nobody is told any more that nobody listens.
    pub(crate) fn prepare(&mut self) {
        if !std::mem::replace(&mut self.is_closing, true) {
            let mut house = self.hub.house.lock();
            house.closing += 1;
            self.hub.board.set_closing(house.closing == house.seats);
        }
    }

    /// Ends one user's part, and with the last the server: clients are asked to go, and what is under way may take `grace`.
    /// `false` says that it took longer and was cut off.
    pub(crate) async fn release(mut self, grace: Duration) -> bool {
        let hub = Arc::clone(&self.hub);
        let turn = hub.turn.lock().await;
        let Some(mut ending) = self.leave() else {
            return true;
        };
        ending.stop.cancel();
        let _ = (&mut ending.closed).await;
        // Whoever comes next may listen while the last requests end.
        drop(turn);
        let deadline = hub.clock.now() + grace;
        let all = u32::try_from(hub.most()).unwrap_or(u32::MAX);
        let admitted = Arc::clone(&ending.admitted);
        let in_time = tokio::select! {
            _ = &mut ending.task => return true,
            _ = admitted.acquire_many(all) => true,
            () = hub.clock.sleep_until(deadline) => false,
        };
        if in_time && tokio::time::timeout(LINGER, &mut ending.task).await.is_ok() {
            return true;
        }
        ending.cut.cancel();
        let _ = tokio::time::timeout(LINGER, &mut ending.task).await;
        ending.task.abort();
        in_time
    }

    /// Gives the seat up. With the last one comes the server, which is to end.
    fn leave(&mut self) -> Option<Running> {
        if !std::mem::take(&mut self.is_taken) {
            return None;
        }
        let mut house = self.hub.house.lock();
        house.seats -= 1;
        house.closing -= usize::from(self.is_closing);
        self.hub.board.set_closing(house.closing == house.seats);
        match house.seats {
            0 => house.running.take(),
            _ => None,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        drop(self.leave());
    }
}

impl Hub {
    /// Listens, if nobody does yet.
    ///
    /// # Errors
    /// `Config` where the address is not to be had or a file cannot be read.
    pub(crate) async fn retain(self: &Arc<Self>, runtime: &Handle) -> Result<Seat, Error> {
        let _turn = self.turn.lock().await;
        if let Some(seat) = self.join() {
            return Ok(seat);
        }
        let running = self.start(runtime).await?;
        let mut house = self.house.lock();
        house.running = Some(running);
        Ok(self.sit(&mut house))
    }

    /// A seat at the server that runs already.
    fn join(self: &Arc<Self>) -> Option<Seat> {
        let mut house = self.house.lock();
        let running = house.running.as_ref()?;
        let is_over = running.task.is_finished();
        (!is_over).then(|| self.sit(&mut house))
    }

    fn sit(self: &Arc<Self>, house: &mut House) -> Seat {
        house.seats += 1;
        self.board.set_closing(false);
        Seat {
            hub: Arc::clone(self),
            is_taken: true,
            is_closing: false,
        }
    }

    async fn start(&self, runtime: &Handle) -> Result<Running, Error> {
        let named = |error: Error| {
            error
                .with_operation("listen")
                .with_context("address", &self.listen)
        };
        let tls = self.config.server_tls().map_err(named)?;
        let (health, probe) = health();
        let admitted = Arc::new(Semaphore::new(self.most()));
        let services = Services {
            probe,
            reflection: Reflection::new(&self.config.descriptors).map_err(named)?,
            hub: Front {
                board: Arc::clone(&self.board),
                clock: Arc::clone(&self.clock),
                admitted: Arc::clone(&admitted),
                max_payload: self.config.max_payload,
                patience: self.config.keep_alive + self.config.keep_alive_timeout,
            },
        };
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let (open, closed) = oneshot::channel();
        let mut server = Server::builder()
            .max_connection_age(self.config.max_connection_age)
            .http2_keepalive_interval(Some(self.config.keep_alive))
            .http2_keepalive_timeout(Some(self.config.keep_alive_timeout))
            .http2_max_header_list_size(MAX_METADATA)
            // Callers whose deadlines end together reset their streams together: that is no attack.
            .http2_max_pending_accept_reset_streams(Some(self.config.max_concurrent))
            .max_concurrent_streams(streams(self.config.max_concurrent));
        if let Some(tls) = tls {
            server = server.tls_config(tls).map_err(|error| {
                named(
                    Error::config("the certificate or key of our server cannot be used")
                        .with_source(error),
                )
            })?;
        }
        // The listener belongs to the runtime that polls it first.
        let (host, port) = (
            self.listen.host.clone(),
            self.listen.port.unwrap_or_default(),
        );
        let binding = runtime.spawn(async move { TcpListener::bind((host, port)).await });
        let listener = binding
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|error| named(cannot_listen(error)))?;
        let sockets = Sockets::new(listener, &self.config, cut.clone(), open);
        let stopping = stop.clone().cancelled_owned();
        let telling = tell(self.board.open_news(), health);
        let task = runtime.spawn(async move {
            let serving = server.serve_with_incoming_shutdown(services, sockets, stopping);
            let served = tokio::select! {
                served = serving => served,
                () = telling => return,
            };
            if let Err(error) = served {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "our gRPC server has ended"
                );
            }
        });
        tracing::info!(address = %self.listen, "listening for gRPC");
        Ok(Running {
            stop,
            cut,
            admitted,
            closed,
            task,
        })
    }

    fn most(&self) -> usize {
        self.config.max_concurrent.min(Semaphore::MAX_PERMITS)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("listen", &self.listen)
            .field("board", &self.board)
            .finish_non_exhaustive()
    }
}

/// How many streams a client may open at once: more than we hold, as what is not even sent is refused by nobody and goes nowhere.
fn streams(most: usize) -> u32 {
    u32::try_from(most.saturating_add(SPARE)).unwrap_or(u32::MAX)
}

fn cannot_listen(error: std::io::Error) -> Error {
    let text = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "somebody else listens there; stop him, or take another port"
        }
        std::io::ErrorKind::PermissionDenied => {
            "listening there is not allowed; take a port above 1023"
        }
        _ => "listening there is not possible; is it an address of this machine?",
    };
    Error::new(ErrorKind::Config, text).with_source(error)
}

fn health() -> (HealthReporter, HealthProbe) {
    let reporter = HealthReporter::new();
    let service = HealthService::from_health_reporter(reporter.clone());
    let probe = tonic_health::pb::health_server::HealthServer::new(service);
    (reporter, probe)
}

/// Tells probes whether anybody takes requests: who stops is left out while it ends what it has begun.
async fn tell(mut open: watch::Receiver<bool>, health: HealthReporter) {
    loop {
        let status = match *open.borrow_and_update() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        health.set_service_status("", status).await;
        if open.changed().await.is_err() {
            return;
        }
    }
}

type HealthProbe = tonic_health::pb::health_server::HealthServer<HealthService>;

type Answered = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

/// Reflection in both of its versions, where there are descriptors.
#[derive(Clone)]
struct Reflection {
    v1: Routed,
    v1alpha: Routed,
}

impl Reflection {
    fn new(files: &[std::path::PathBuf]) -> Result<Option<Self>, Error> {
        if files.is_empty() {
            return Ok(None);
        }
        let mut sets = Vec::with_capacity(files.len());
        for file in files {
            sets.push(config::read(file)?);
        }
        let builder = || {
            let builder = tonic_reflection::server::Builder::configure();
            sets.iter().fold(builder, |builder, set| {
                builder.register_encoded_file_descriptor_set(set)
            })
        };
        let wrong = |error| {
            Error::config("`descriptors` names a file that is no descriptor set").with_source(error)
        };
        Ok(Some(Self {
            v1: Routed::new(builder().build_v1().map_err(wrong)?),
            v1alpha: Routed::new(builder().build_v1alpha().map_err(wrong)?),
        }))
    }
}

/// A service of the library's, without its type.
#[derive(Clone)]
struct Routed(Arc<dyn Fn(http::Request<Body>) -> Answered + Send + Sync>);

impl Routed {
    fn new<S>(service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        // The library's generated services are always ready.
        Self(Arc::new(move |request| {
            Box::pin(service.clone().call(request))
        }))
    }
}

/// All that is served: the handlers, and what every gRPC server has beside them.
#[derive(Clone)]
struct Services {
    probe: HealthProbe,
    reflection: Option<Reflection>,
    hub: Front,
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answered;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answered {
        let path = request.uri().path();
        if path.starts_with("/grpc.health.v1.Health/") {
            return Box::pin(self.probe.call(request));
        }
        if let Some(reflection) = &self.reflection {
            if path.starts_with("/grpc.reflection.v1.ServerReflection/") {
                return (reflection.v1.0)(request);
            }
            if path.starts_with("/grpc.reflection.v1alpha.ServerReflection/") {
                return (reflection.v1alpha.0)(request);
            }
        }
        let front = self.hub.clone();
        let left = wire::time_left(request.headers());
        let late = left.map(|left| left - SOONER.min(left / 8));
        let late = late.map(|left| front.clock.sleep_until(front.clock.now() + left));
        Box::pin(async move {
            let answer = pin!(front.answer(request));
            Ok(match late {
                None => answer.await,
                Some(late) => match select(answer, late).await {
                    Either::Left((answer, _)) => answer,
                    Either::Right(_) => late_answer(),
                },
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::clock::TokioClock;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    const SOON: Duration = Duration::from_secs(10);

    fn hub() -> Arc<Hub> {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = Endpoint {
            host: "127.0.0.1".into(),
            port: Some(free.local_addr().unwrap().port()),
        };
        let clock: Arc<dyn Clock> = Arc::new(TokioClock);
        Hubs::default()
            .at(&listen, &GrpcConfig::default(), &clock)
            .unwrap()
    }

    /// A client of the server, which learns of its end.
    async fn client(hub: &Hub) -> TcpStream {
        let port = hub.listen.port.unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // The server's first words: it is not asked to go before it has taken the connection.
        client.read_u8().await.unwrap();
        client
    }

    /// All that it hears until the end.
    async fn hears_the_end(mut client: TcpStream) -> bool {
        let mut said = Vec::new();
        let end = tokio::time::timeout(SOON, client.read_to_end(&mut said));
        end.await.is_ok()
    }

    #[tokio::test]
    async fn a_release_that_is_dropped_cuts_off_what_is_under_way() {
        let hub = hub();
        let seat = hub.retain(&Handle::current()).await.unwrap();
        let admitted = {
            let house = hub.house.lock();
            Arc::clone(&house.running.as_ref().unwrap().admitted)
        };
        let _request = admitted.try_acquire_owned().unwrap();
        let client = client(&hub).await;
        let mut release = Box::pin(seat.release(Duration::from_secs(3600)));
        // Once the port is free, it waits for the request.
        while hub.turn.try_lock().is_err() || hub.house.lock().running.is_some() {
            assert!(futures::poll!(&mut release).is_pending());
            tokio::task::yield_now().await;
        }
        drop(release);
        assert!(hears_the_end(client).await);
    }

    #[tokio::test]
    async fn who_vanishes_while_another_comes_or_goes_is_counted() {
        let hub = hub();
        let (one, other) = (
            hub.retain(&Handle::current()).await.unwrap(),
            hub.retain(&Handle::current()).await.unwrap(),
        );
        let client = client(&hub).await;
        let turn = hub.turn.lock().await;
        drop(one);
        drop(other);
        drop(turn);
        assert!(hears_the_end(client).await);
    }
}
