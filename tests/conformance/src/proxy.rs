//! A small TCP proxy that misbehaves on demand: what stands between a client and its broker in a fault test.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::try_join;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The most that is held of each direction of a connection, in bytes.
const BUFFER: usize = 16 * 1024;
/// How often a throttled direction moves, per second.
const SLICES: u64 = 20;

/// A proxy on a loopback port of its own.
///
/// It forwards faithfully until it is told otherwise. Faults hold for connections that are open and for those to come,
/// until [`heal`](Self::heal). Dropping it closes everything.
///
/// ```
/// # async fn example(broker: std::net::SocketAddr) -> std::io::Result<()> {
/// use anywire_conformance::proxy::{Direction, Proxy};
///
/// let proxy = Proxy::start(broker).await?;
/// // ... connect the client under test to proxy.address() ...
/// proxy.cut_after(Direction::ToServer, 1000); // the publish breaks off in the middle of a frame
/// proxy.heal().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the broker.
    ToServer,
    /// From the broker to the client.
    ToClient,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::ToServer, Self::ToClient];
}

/// What a proxy has seen since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections that are open now.
    pub open: u64,
    /// Bytes forwarded to the broker.
    pub to_server: u64,
    /// Bytes forwarded to the client.
    pub to_client: u64,
}

impl Proxy {
    /// Listens on a free loopback port and forwards to `upstream`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(upstream));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            accepting: tokio::sync::Mutex::new(Some(accepting)),
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has seen.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            accepted: self.shared.accepted.load(Ordering::Relaxed),
            open: self.shared.open.load(Ordering::Relaxed),
            to_server: self.shared.to_server.forwarded.load(Ordering::Relaxed),
            to_client: self.shared.to_client.forwarded.load(Ordering::Relaxed),
        }
    }

    /// Forwards `bytes` more in `direction`, over all connections together, then closes the connection that carries the
    /// last of them. Happens once.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.shared.lane(direction).ambush.lock().cut = Some(bytes);
    }

    /// Inverts the byte that comes `offset` bytes from now in `direction`, over all connections together. Happens once.
    pub fn flip(&self, direction: Direction, offset: u64) {
        self.shared.lane(direction).ambush.lock().flip = Some(offset);
    }

    /// Closes every open connection in an orderly way.
    pub fn close_all(&self) {
        self.shared.end(End::Close);
    }

    /// Ends every open connection with a TCP reset.
    pub fn reset_all(&self) {
        self.shared.end(End::Reset);
    }

    /// Ends one direction of every open connection; the other goes on.
    pub fn half_close(&self, direction: Direction) {
        self.change(direction, |faults| faults.half_closes += 1);
    }

    /// Lets nothing through in `direction`, and tells nobody: connections stay open, and what was held goes through
    /// when it is healed, as after a cut cable. New connections are accepted.
    pub fn blackhole(&self, direction: Direction) {
        self.change(direction, |faults| faults.blackhole = true);
    }

    /// Holds everything in `direction` for `delay`. At most 16 KiB are under way, so it also bounds the throughput.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.change(direction, |faults| faults.delay = delay);
    }

    /// Lets at most `bytes_per_second` through in `direction`, for each connection.
    pub fn throttle(&self, direction: Direction, bytes_per_second: u64) {
        self.change(direction, |faults| faults.rate = Some(bytes_per_second));
    }

    /// Refuses new connections, as a broker does that is down. Open ones stay.
    pub async fn refuse(&self) {
        if let Some(accepting) = self.accepting.lock().await.take() {
            accepting.abort();
            // The port is closed once the task is gone.
            let _ = accepting.await;
        }
    }

    /// Ends all faults: forwards faithfully and accepts new connections.
    ///
    /// # Errors
    /// When the port was taken by somebody else while connections were refused.
    pub async fn heal(&self) -> io::Result<()> {
        for direction in Direction::BOTH {
            *self.shared.lane(direction).ambush.lock() = Ambush::default();
            self.change(direction, |faults| {
                *faults = Faults {
                    half_closes: faults.half_closes,
                    ..Faults::default()
                };
            });
        }
        let mut accepting = self.accepting.lock().await;
        if accepting.is_none() {
            let listener = TcpListener::bind(self.address).await?;
            *accepting = Some(tokio::spawn(accept(listener, Arc::clone(&self.shared))));
        }
        Ok(())
    }

    fn change(&self, direction: Direction, change: impl FnOnce(&mut Faults)) {
        self.shared.lane(direction).faults.send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.get_mut().take() {
            accepting.abort();
        }
        self.close_all();
    }
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    to_server: Lane,
    to_client: Lane,
    ends: watch::Sender<End>,
    accepted: AtomicU64,
    open: AtomicU64,
}

/// How open connections are ended.
#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Reset,
}

impl Shared {
    fn new(upstream: SocketAddr) -> Self {
        Self {
            upstream,
            to_server: Lane::default(),
            to_client: Lane::default(),
            ends: watch::Sender::new(End::Close),
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
        }
    }

    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::ToServer => &self.to_server,
            Direction::ToClient => &self.to_client,
        }
    }

    fn end(&self, end: End) {
        self.ends.send_replace(end);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of file descriptors, or a connection that broke before it was accepted.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let ends = shared.ends.subscribe();
        tokio::spawn(carry(client, Arc::clone(&shared), ends));
    }
}

async fn carry(mut client: TcpStream, shared: Arc<Shared>, mut ends: watch::Receiver<End>) {
    let _open = Open::new(&shared.open);
    let server = tokio::select! {
        _ = ends.changed() => return,
        server = TcpStream::connect(shared.upstream) => server,
    };
    let Ok(mut server) = server else { return };
    // Small frames must not wait for each other's acknowledgements: delays are ours to make.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let ended = tokio::select! {
        _ = ends.changed() => Some(*ends.borrow()),
        _ = try_join(
            shared.to_server.forward(from_client, to_server),
            shared.to_client.forward(from_server, to_client),
        ) => None,
    };
    if let Some(End::Reset) = ended {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

struct Open<'a>(&'a AtomicU64);

impl<'a> Open<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One direction of all connections.
#[derive(Debug, Default)]
struct Lane {
    faults: watch::Sender<Faults>,
    ambush: Mutex<Ambush>,
    forwarded: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    blackhole: bool,
    delay: Duration,
    rate: Option<u64>,
    /// Counts up, so that a connection is half-closed once and those that come later are not.
    half_closes: u64,
}

impl Faults {
    fn slice(&self) -> usize {
        let room = self.rate.map_or(u64::MAX, |rate| (rate / SLICES).max(1));
        usize::try_from(room).unwrap_or(BUFFER).min(BUFFER)
    }

    fn wait(&self, bytes: usize) -> Duration {
        let seconds = self.rate.map_or(0.0, |rate| bytes as f64 / rate as f64);
        self.delay + Duration::from_secs_f64(seconds)
    }
}

/// What happens once, so many bytes from now.
#[derive(Debug, Default)]
struct Ambush {
    cut: Option<u64>,
    flip: Option<u64>,
}

impl Ambush {
    /// Spoils `bytes` where it must, and says how many of them get through and whether the connection ends there.
    fn strike(&mut self, bytes: &mut [u8]) -> (usize, bool) {
        let len = bytes.len() as u64;
        let (through, cut) = match self.cut {
            Some(left) if left <= len => (left, true),
            _ => (len, false),
        };
        self.cut = if cut {
            None
        } else {
            self.cut.map(|left| left - len)
        };
        if let Some(offset) = self.flip {
            let byte = usize::try_from(offset)
                .ok()
                .and_then(|at| bytes.get_mut(at));
            self.flip = match byte {
                Some(byte) => {
                    *byte = !*byte;
                    None
                }
                None => Some(offset - len),
            };
        }
        (through as usize, cut)
    }
}

impl Lane {
    async fn forward(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let mut news = self.faults.subscribe();
        let half_closes = news.borrow().half_closes;
        loop {
            let faults = *news.borrow_and_update();
            if faults.half_closes != half_closes {
                break;
            }
            let read = tokio::select! {
                biased;
                _ = news.changed() => continue,
                read = from.read(&mut buffer[..faults.slice()]), if !faults.blackhole => read?,
            };
            if read == 0 {
                break;
            }
            // The fault itself. A timer rounds up to a millisecond, which a cable without one must not cost.
            let wait = faults.wait(read);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            // The cable may have been cut while the bytes were held.
            let _ = news.wait_for(|faults| !faults.blackhole).await;
            let (through, cut) = self.ambush.lock().strike(&mut buffer[..read]);
            to.write_all(&buffer[..through]).await?;
            self.forwarded.fetch_add(through as u64, Ordering::Relaxed);
            if cut {
                to.flush().await?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        to.shutdown().await
    }
}

#[cfg(test)]
mod tests;
