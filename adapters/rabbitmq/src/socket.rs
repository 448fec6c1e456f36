//! The library's runtime with sockets of our own: what they bring has gone through the [`Sieve`].

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anywire::transport::Seldom;
use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures::{AsyncRead, AsyncWrite, Stream};
use lapin::AsyncTcpStream;

use crate::sieve::Sieve;

/// How much is asked of the network at once.
const CHUNK: usize = 64 * 1024;

/// A connection to the broker, encrypted or not.
type Raw = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// Tokio, with [`Socket`]s.
#[derive(Clone, Debug)]
pub(crate) struct Kit(Tokio);

impl Kit {
    /// The runtime that we are in.
    pub(crate) fn current() -> Runtime<Self> {
        Runtime::new(Self(Tokio::current()))
    }
}

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        blocking: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(blocking)
    }
}

impl Reactor for Kit {
    type TcpStream = Socket;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// For handles of others; the library has none.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _handle: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Socket, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Socket::new(AsyncTcpStream::Plain(connecting.await?))) }
    }
}

/// A connection whose bytes the library can read.
pub(crate) struct Socket {
    raw: Raw,
    sieve: Sieve,
    /// What came: up to `taken` the library has it, up to `ready` it may have it, up to `filled` is a frame that is not complete.
    buffer: Vec<u8>,
    taken: usize,
    ready: usize,
    filled: usize,
    told: Seldom,
}

impl Socket {
    pub(crate) fn new(raw: Raw) -> Self {
        Self {
            raw,
            sieve: Sieve::default(),
            buffer: vec![0; CHUNK],
            taken: 0,
            ready: 0,
            filled: 0,
            told: Seldom::default(),
        }
    }

    /// Hears what the broker says; `false` at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.taken > 0 {
            self.buffer.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.ready -= self.taken;
            self.taken = 0;
        }
        if self.filled == self.buffer.len() {
            // A frame that is larger; the sieve looks into none beyond its bound.
            self.buffer.resize(self.filled + CHUNK, 0);
        }
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        let count = ready!(Pin::new(&mut self.raw).poll_read(cx, room))?;
        if count == 0 {
            return Poll::Ready(Ok(false));
        }
        self.filled += count;
        let fresh = self.buffer.get_mut(self.ready..self.filled);
        let mended = self.sieve.mend(fresh.unwrap_or_default());
        self.ready += mended.ready;
        if mended.changed {
            metrics::counter!("anywire.rabbitmq.unreadable_names").increment(1);
            if self.told.is_due() {
                tracing::warn!(
                    "a foreign message has names that are not UTF-8, or headers that cannot be read; it is delivered with `?` in their place"
                );
            }
        }
        Poll::Ready(Ok(true))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.taken == this.ready {
            if !ready!(this.poll_fill(cx))? {
                return Poll::Ready(Ok(0));
            }
        }
        let ready = this.buffer.get(this.taken..this.ready).unwrap_or_default();
        let count = ready.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..count), ready.get(..count)) {
            to.copy_from_slice(from);
        }
        this.taken += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.raw).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.raw).poll_write_vectored(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.raw).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.raw).poll_close(cx)
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}
