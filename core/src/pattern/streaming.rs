//! Streaming calls: one request and many replies, many requests and one reply, or many of both. At most once: no stream is
//! ever opened again or continued by the serving side.

mod emulation;
mod entrance;
mod exchange;
mod frame;
mod halves;
mod line;

use std::fmt;
use std::task::{Context, Poll};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use self::emulation::{Emulation, Mailbox, Post};
pub(crate) use self::emulation::{no_stream, read_refusal};
pub(crate) use self::line::{abandoned, unwanted};
use super::request_reply::CallSpec;
use super::{Batch, PullResult};
use crate::{ContentType, Error, Message, RemoteError};

/// The most items that lie between a sender and a reader who takes none.
pub const WINDOW: usize = 256;
/// The most bytes that lie between them, one item beyond it.
pub const WINDOW_BYTES: usize = 1024 * 1024;

/// Opens streaming calls and accepts them.
#[async_trait]
pub trait Streamer: fmt::Debug + Send + Sync {
    /// Opens a streaming call: ends when it was accepted.
    ///
    /// The adapter
    /// - may be called concurrently;
    /// - must end by the opening's deadline, with [`Timeout`](crate::ErrorKind::Timeout) when it passes;
    /// - must answer [`NoRoute`](crate::ErrorKind::NoRoute) at once where the wire tells that nobody listens, and
    ///   [`Remote`](crate::ErrorKind::Remote) where the handler refused;
    /// - must not open it twice.
    ///
    /// Dropping the future gives the opening up; who accepts it afterwards must be told that nobody is there.
    fn open(&self, opening: Opening) -> BoxFuture<'static, Result<Duplex, Error>>;

    /// Accepts the streaming calls to patterns; one result each, in order, and only when they reach us.
    ///
    /// All who accept those of a pattern, in whatever app, share them.
    async fn accept(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingStreams>, Error>>;
}

/// The streaming calls to one pattern.
#[async_trait]
pub trait IncomingStreams: fmt::Debug + Send {
    /// Pulls at most [`Batch::room`] streaming calls. As
    /// [`Incoming::poll_batch`](super::publish_subscribe::Incoming::poll_batch).
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedStream>,
    ) -> Poll<PullResult>;

    /// Stops accepting. Those that were not pulled go to somebody else or fail at their callers; those that were go on.
    async fn stop(&mut self) -> Result<(), Error>;
}

/// What a streaming call is opened with. An adapter destructures it in full.
#[derive(Debug)]
pub struct Opening {
    /// Subject, headers, and the request's payload; empty where the caller sends items.
    pub message: Message,
    /// When the caller gives up waiting for the acceptance.
    pub deadline: Instant,
    /// When the whole of it has to be over, where that was said.
    pub until: Option<Instant>,
    /// Whether the caller sends items. Else its sink is closed from the start.
    pub sends: bool,
}

/// A streaming call that was received and waits to be accepted or refused.
#[derive(Debug)]
pub struct ReceivedStream {
    /// Subject, headers, and the request's payload.
    pub message: Message,
    /// When the whole of it has to be over, on our clock; `None` where the caller did not say.
    pub deadline: Option<Instant>,
    /// Whether the caller sends items.
    pub sends: bool,
    /// Fires when nobody reads what we send any more: the caller has stopped or is gone. It must do so within a second of
    /// its stop, or of the moment when the wire tells of its loss.
    pub stopped: CancellationToken,
    /// The decision. Dropping it refuses.
    pub door: Box<dyn Door>,
}

/// The decision over a streaming call.
#[async_trait]
pub trait Door: fmt::Debug + Send {
    /// Accepts it.
    async fn accept(self: Box<Self>) -> Result<Duplex, Error>;

    /// Refuses it: its caller gets this error.
    async fn refuse(self: Box<Self>, error: RemoteError) -> Result<(), Error>;
}

/// The two directions of a streaming call, as one of its sides has them.
#[derive(Debug)]
pub struct Duplex {
    /// What we send.
    pub sink: Box<dyn ItemSink>,
    /// What the other side sends.
    pub source: Box<dyn ItemSource>,
}

/// One item on its way: the codec's bytes and how to read them.
#[derive(Clone, Debug)]
pub struct Item {
    /// The bytes.
    pub payload: Bytes,
    /// How they are encoded; `None` means the default, JSON.
    pub content_type: Option<ContentType>,
}

/// The sending half. Items arrive in the order in which they were sent, each once, or the reader is told that some are
/// missing.
///
/// Dropping it before its close tells the reader that the stream was given up, which is an error there and no end.
pub trait ItemSink: fmt::Debug + Send {
    /// Waits until one more item may be sent: the reader bounds how many lie between us, in items and in bytes.
    ///
    /// An error is the end: [`Cancelled`](crate::ErrorKind::Cancelled) when the reader has stopped,
    /// [`Disconnected`](crate::ErrorKind::Disconnected) when it was lost.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>>;

    /// Sends an item. Called after [`poll_ready`](Self::poll_ready) was ready. An item that is too large is
    /// [`TooLarge`](crate::ErrorKind::TooLarge), and the stream goes on without it.
    fn start_send(&mut self, item: Item) -> Result<(), Error>;

    /// Waits until what was sent has left us.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>>;

    /// Ends the direction, after all items: with nothing, or with an error that the reader gets after them. Called until it
    /// is ready, with the same end. Where the side that has accepted ends its own, the call is over: what the other side still
    /// sends need not arrive.
    fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        end: Option<&RemoteError>,
    ) -> Poll<Result<(), Error>>;
}

/// The reading half. Dropping it tells the sender to stop.
pub trait ItemSource: fmt::Debug + Send {
    /// The next item; `None` after the last one, if the sender has ended the stream.
    ///
    /// An error comes after all items before it, and is the end: [`Remote`](crate::ErrorKind::Remote) with what the sender
    /// ended it with, [`Disconnected`](crate::ErrorKind::Disconnected) where the sender or some of its items were lost,
    /// with the number of the last item that came, from 1, as its context `last`.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>>;
}

/// Waits for the next pull of an [`IncomingStreams`]: a helper for programs that drive one by hand.
///
/// # Errors
/// As [`PullResult`].
///
/// # Cancel safety
/// Nothing is lost when the future is dropped: what was pulled is in `batch`.
pub async fn pull_streams(
    incoming: &mut dyn IncomingStreams,
    batch: &mut Batch<ReceivedStream>,
) -> PullResult {
    std::future::poll_fn(|cx| incoming.poll_batch(cx, batch)).await
}
