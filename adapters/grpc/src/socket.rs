//! The connections that our server accepts: as many as are allowed, and each with an end that we can bring about.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::config::GrpcConfig;

/// The wait after a connection that could not be accepted: mostly there are too many files open.
const PAUSE: Duration = Duration::from_millis(100);

/// The bytes with which a client of HTTP/2 begins.
const PREFACE: usize = 24;

/// The connections as they come. They hold the port until this is dropped.
pub(crate) struct Sockets {
    listener: TcpListener,
    room: Arc<Semaphore>,
    /// How long a client may take to begin.
    patience: Duration,
    is_encrypted: bool,
    /// Ends all connections at once.
    cut: CancellationToken,
    pause: Option<Pin<Box<Sleep>>>,
    /// Tells that the port is free again.
    _closed: tokio::sync::oneshot::Sender<()>,
}

impl Sockets {
    pub(crate) fn new(
        listener: TcpListener,
        config: &GrpcConfig,
        cut: CancellationToken,
        closed: tokio::sync::oneshot::Sender<()>,
    ) -> Self {
        Self {
            listener,
            room: Arc::new(Semaphore::new(
                config.max_connections.min(Semaphore::MAX_PERMITS),
            )),
            patience: config.connect_timeout,
            is_encrypted: config.server_cert.is_some(),
            cut,
            pause: None,
            _closed: closed,
        }
    }
}

impl Stream for Sockets {
    type Item = io::Result<Socket>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(cx));
                this.pause = None;
            }
            let stream = match ready!(this.listener.poll_accept(cx)) {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    this.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&this.room).try_acquire_owned() else {
                metrics::counter!("anywire.grpc.connections_refused").increment(1);
                continue;
            };
            // Small frames would wait for one another.
            let _ = stream.set_nodelay(true);
            return Poll::Ready(Some(Ok(Socket {
                stream,
                cut: Box::pin(this.cut.clone().cancelled_owned()),
                greeting: Some(Greeting {
                    left: PREFACE,
                    counts: !this.is_encrypted,
                    until: Box::pin(tokio::time::sleep(this.patience)),
                }),
                _permit: permit,
            })));
        }
    }
}

/// A connection that was accepted.
pub(crate) struct Socket {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until the client has begun: who connects and says nothing would hold one of the places for ever.
    greeting: Option<Greeting>,
    _permit: OwnedSemaphorePermit,
}

/// What is still to come of a client's first words.
struct Greeting {
    left: usize,
    /// With TLS, a client that is none has said its own before it hears ours.
    counts: bool,
    until: Pin<Box<Sleep>>,
}

impl Socket {
    fn spoke(&mut self) {
        if let Some(greeting) = &mut self.greeting {
            greeting.counts = true;
        }
    }
}

impl Connected for Socket {
    type ConnectInfo = Option<SocketAddr>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.peer_addr().ok()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if let Some(greeting) = &mut this.greeting {
            if greeting.counts {
                let said = buffer.filled().len() - before;
                greeting.left = greeting.left.saturating_sub(said);
            }
            if greeting.left == 0 {
                this.greeting = None;
            } else if read.is_pending() && greeting.until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.spoke();
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.spoke();
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
}
