//! Streaming calls: opened by a call, carried by two bounded pipes.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::calls::{MemoryRequester, MemoryResponder};
use super::transport::{Connection, End, closed};
use crate::client::error_reply;
use crate::pattern::request_reply::{
    CallSpec, IncomingCalls, ReceivedCall, Replier, Reply, Requester, Responder,
};
use crate::pattern::streaming::{
    Door, Duplex, IncomingStreams, Item, ItemSink, ItemSource, Opening, ReceivedStream, Streamer,
    WINDOW, WINDOW_BYTES, abandoned, no_stream, read_refusal, unwanted,
};
use crate::pattern::{Batch, PullResult, Pulled};
use crate::{Error, ErrorKind, Message, RemoteError};

/// What the reply that accepts a stream is marked with.
const ACCEPTED: &str = "accepted";

/// The streams that were opened and not yet accepted, by the number that their openings hold.
#[derive(Debug, Default)]
pub(super) struct Openings(Mutex<HashMap<u128, Opened>>);

#[derive(Debug)]
struct Opened {
    pipes: Pipes,
    sends: bool,
    until: Option<std::time::Instant>,
}

/// Both directions of a stream, as one of its sides has them.
#[derive(Clone, Debug)]
struct Pipes {
    out: Arc<Pipe>,
    into: Arc<Pipe>,
}

/// One direction of a stream.
#[derive(Default)]
struct Pipe {
    state: Mutex<Flow>,
    /// Fires when nobody reads.
    stopped: CancellationToken,
}

#[derive(Default)]
struct Flow {
    items: VecDeque<Item>,
    bytes: usize,
    taken: u64,
    /// How the sender ended it.
    end: Option<Option<RemoteError>>,
    is_unread: bool,
    /// A transport that was closed.
    is_cut: bool,
    reader: Option<Waker>,
    sender: Option<Waker>,
}

/// The role that opens and accepts.
#[derive(Debug)]
pub(super) struct MemoryStreamer {
    connection: Arc<Connection>,
}

impl MemoryStreamer {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

#[async_trait]
impl Streamer for MemoryStreamer {
    fn open(&self, opening: Opening) -> BoxFuture<'static, Result<Duplex, Error>> {
        Box::pin(open(Arc::clone(&self.connection), opening))
    }

    async fn accept(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingStreams>, Error>> {
        let responder = MemoryResponder::new(Arc::clone(&self.connection));
        let served = responder.serve(specs).await.into_iter().zip(specs);
        let accepting = served.map(|(calls, spec)| {
            let calls = calls?;
            Ok(Box::new(MemoryStreams {
                connection: Arc::clone(&self.connection),
                replier: calls.replier(),
                received: Batch::new(spec.window),
                calls,
            }) as Box<dyn IncomingStreams>)
        });
        accepting.collect()
    }
}

/// Takes an opening back that nobody has accepted.
struct Open<'a> {
    openings: &'a Openings,
    number: u128,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.openings.0.lock().remove(&self.number);
    }
}

async fn open(connection: Arc<Connection>, opening: Opening) -> Result<Duplex, Error> {
    let Opening {
        message,
        deadline,
        until,
        sends,
    } = opening;
    let subject = message.subject().clone();
    let (up, down) = (Arc::<Pipe>::default(), Arc::<Pipe>::default());
    if !sends {
        up.end(None);
    }
    let duplex = Pipes {
        out: Arc::clone(&up),
        into: Arc::clone(&down),
    }
    .into_duplex(&connection);
    let opened = Opened {
        pipes: Pipes {
            out: down,
            into: up,
        },
        sends,
        until,
    };
    let number = crate::random::bits();
    let openings = &connection.broker.0.openings;
    openings.0.lock().insert(number, opened);
    let open = Open { openings, number };
    let requester = MemoryRequester::new(Arc::clone(&connection));
    let request = requester.request(message.with_frame(number.to_string()), deadline);
    let reply = request.wait().await?;
    drop(open);
    if let Some(code) = reply.error_code() {
        return Err(Error::remote(read_refusal(code, &reply)).with_context("subject", &subject));
    }
    match reply.frame() {
        Some(ACCEPTED) => Ok(duplex),
        _ => Err(no_stream(&subject)),
    }
}

/// The streaming calls to one pattern.
#[derive(Debug)]
struct MemoryStreams {
    connection: Arc<Connection>,
    calls: Box<dyn IncomingCalls>,
    replier: Arc<dyn Replier>,
    received: Batch<ReceivedCall>,
}

impl MemoryStreams {
    fn read(&self, call: ReceivedCall) -> Option<ReceivedStream> {
        let ReceivedCall {
            message,
            tag,
            deadline: _,
        } = call;
        let reply = Box::new(Reply {
            tag,
            reply_to: None,
            correlation_id: None,
            message: Message::new(message.subject().clone(), ""),
        });
        let number = message.frame().and_then(|frame| frame.parse().ok());
        let opened = number.and_then(|number: u128| {
            let mut openings = self.connection.broker.0.openings.0.lock();
            openings.remove(&number)
        });
        let mut entrance = Box::new(Entrance {
            connection: Arc::clone(&self.connection),
            replier: Arc::clone(&self.replier),
            pending: Some((reply, None)),
        });
        let Some(opened) = opened else {
            entrance.answer(Err(RemoteError::not_streaming()));
            return None;
        };
        let stopped = opened.pipes.out.stopped.clone();
        if let Some((_, pipes)) = &mut entrance.pending {
            *pipes = Some(opened.pipes);
        }
        Some(ReceivedStream {
            message,
            deadline: opened.until,
            sends: opened.sends,
            stopped,
            door: entrance,
        })
    }
}

#[async_trait]
impl IncomingStreams for MemoryStreams {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedStream>,
    ) -> Poll<PullResult> {
        while batch.is_empty() {
            self.received.set_room(batch.room());
            match self.calls.poll_batch(cx, &mut self.received) {
                Poll::Ready(Ok(Pulled::Some)) => {}
                other => return other,
            }
            let calls: Vec<ReceivedCall> = self.received.drain().collect();
            for call in calls {
                if let Some(stream) = self.read(call) {
                    batch.push(stream);
                }
            }
        }
        Poll::Ready(Ok(Pulled::Some))
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.calls.stop().await
    }
}

/// A stream that waits to be accepted.
struct Entrance {
    connection: Arc<Connection>,
    replier: Arc<dyn Replier>,
    pending: Option<(Box<Reply>, Option<Pipes>)>,
}

impl Entrance {
    /// Answers the opening, once. Memory never makes a reply wait.
    fn answer(&mut self, decision: Result<(), RemoteError>) -> Option<Pipes> {
        let (mut reply, pipes) = self.pending.take()?;
        reply.message = match decision {
            Ok(()) => reply.message.with_frame(ACCEPTED),
            Err(error) => error_reply(reply.message.subject(), &error),
        };
        // A caller that has given up is told by its halves.
        let _ = self.replier.reply(*reply);
        pipes
    }
}

#[async_trait]
impl Door for Entrance {
    async fn accept(mut self: Box<Self>) -> Result<Duplex, Error> {
        let pipes = self.answer(Ok(()));
        let pipes = pipes.ok_or_else(|| Error::new(ErrorKind::Stale, "it was decided before"))?;
        Ok(pipes.into_duplex(&self.connection))
    }

    async fn refuse(mut self: Box<Self>, error: RemoteError) -> Result<(), Error> {
        self.answer(Err(error));
        Ok(())
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        let error = RemoteError::new("unavailable", "the service is stopping");
        self.answer(Err(error.with_retryable(true)));
    }
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entrance").finish_non_exhaustive()
    }
}

impl Pipes {
    fn into_duplex(self, connection: &Arc<Connection>) -> Duplex {
        let tied = Arc::new_cyclic(|this: &Weak<Tied>| Tied {
            tie: connection.tie(Weak::clone(this) as Weak<dyn End>),
            connection: Arc::clone(connection),
            pipes: self.clone(),
        });
        Duplex {
            sink: Box::new(Sink {
                pipe: self.out,
                _tied: Arc::clone(&tied),
            }),
            source: Box::new(Source {
                pipe: self.into,
                _tied: tied,
            }),
        }
    }
}

/// Ends a stream with the transport of one of its sides.
struct Tied {
    connection: Arc<Connection>,
    tie: usize,
    pipes: Pipes,
}

impl End for Tied {
    fn end(&self) {
        self.pipes.out.cut();
        self.pipes.into.cut();
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        self.connection.untie(self.tie);
    }
}

impl Pipe {
    fn end(&self, end: Option<RemoteError>) {
        let mut flow = self.state.lock();
        flow.end.get_or_insert(end);
        flow.wake();
    }

    fn cut(&self) {
        let mut flow = self.state.lock();
        flow.is_cut = true;
        flow.wake();
        drop(flow);
        self.stopped.cancel();
    }
}

impl Flow {
    fn wake(&mut self) {
        let waiting = [self.reader.take(), self.sender.take()];
        waiting.into_iter().flatten().for_each(Waker::wake);
    }

    fn check_sending(&self) -> Result<(), Error> {
        match (self.is_cut, self.is_unread || self.end.is_some()) {
            (true, _) => Err(closed()),
            (false, true) => Err(unwanted()),
            (false, false) => Ok(()),
        }
    }
}

struct Sink {
    pipe: Arc<Pipe>,
    _tied: Arc<Tied>,
}

impl ItemSink for Sink {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut flow = self.pipe.state.lock();
        flow.check_sending()?;
        if flow.items.len() < WINDOW && flow.bytes < WINDOW_BYTES {
            return Poll::Ready(Ok(()));
        }
        flow.sender = Some(cx.waker().clone());
        Poll::Pending
    }

    fn start_send(&mut self, item: Item) -> Result<(), Error> {
        let limit = self._tied.connection.broker.0.config().max_payload;
        let size = item.payload.len();
        if size > limit {
            let text = format!("an item has {size} bytes, the transport takes {limit}");
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        let mut flow = self.pipe.state.lock();
        flow.check_sending()?;
        flow.bytes += size;
        flow.items.push_back(item);
        if let Some(reader) = flow.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(
        &mut self,
        _cx: &mut Context<'_>,
        end: Option<&RemoteError>,
    ) -> Poll<Result<(), Error>> {
        self.pipe.end(end.cloned());
        Poll::Ready(Ok(()))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.pipe.end(Some(abandoned()));
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sink").field(&self.pipe).finish()
    }
}

struct Source {
    pipe: Arc<Pipe>,
    _tied: Arc<Tied>,
}

impl ItemSource for Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>> {
        let mut flow = self.pipe.state.lock();
        if let Some(item) = flow.items.pop_front() {
            flow.bytes -= item.payload.len();
            flow.taken += 1;
            // A sender that was stopped begins again when it can send some at once.
            if flow.items.len() <= WINDOW / 2
                && flow.bytes <= WINDOW_BYTES / 2
                && let Some(sender) = flow.sender.take()
            {
                sender.wake();
            }
            return Poll::Ready(Some(Ok(item)));
        }
        if let Some(end) = &mut flow.end {
            return Poll::Ready(end.take().map(|error| Err(Error::remote(error))));
        }
        if flow.is_cut {
            flow.end = Some(None);
            let error = closed().with_context("last", flow.taken);
            return Poll::Ready(Some(Err(error)));
        }
        flow.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let mut flow = self.pipe.state.lock();
        flow.is_unread = true;
        flow.items.clear();
        flow.bytes = 0;
        let has_ended = flow.end.is_some();
        flow.wake();
        drop(flow);
        if !has_ended {
            self.pipe.stopped.cancel();
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.pipe).finish()
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe")
            .field("items", &self.state.lock().items.len())
            .finish_non_exhaustive()
    }
}
