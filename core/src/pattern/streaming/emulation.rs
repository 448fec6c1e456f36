//! Streaming calls over a wire that has calls and inboxes. The opening is a call to the subject; every later frame goes from
//! inbox to inbox.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::{BoxFuture, Either, select};
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use smol_str::SmolStr;
use tokio::sync::mpsc;

use super::frame::{End, Frame, Side};
use super::line::{Broken, Line, first_credit};
use super::{Door, Duplex, IncomingStreams, Opening, ReceivedStream, Streamer};
use crate::client::error_reply;
use crate::clock::{Clock, after};
use crate::pattern::request_reply::{
    CallSpec, IncomingCalls, ReceivedCall, Replier, Reply, Requester, Responder,
};
use crate::pattern::{Batch, Progress, PullResult, Pulled};
use crate::{Error, ErrorKind, Message, RemoteError, Subject};

/// The most streams that one client has open at once.
const MAX_STREAMS: usize = 65_536;
/// The most frames of no item (credit, signs of life, stops) that wait to be sent.
const MAX_WAITING: usize = 4_096;
/// How often the streams are looked through, for each sign of life that is due.
const LOOKS: u32 = 4;

/// Carries frames from inbox to inbox: what the emulation needs of an adapter beside calls.
#[async_trait]
pub trait Post: fmt::Debug + Send + Sync {
    /// Opens our inbox, of which a client has one, and tells its address: what others write to, without white space. What
    /// arrives there goes to `mailbox`, in order, until the transport closes.
    async fn open(&self, mailbox: Weak<dyn Mailbox>) -> Result<SmolStr, Error>;

    /// Sends a frame to an inbox. Its [`correlation_id`](Message::correlation_id) and its [`frame`](Message::frame) must
    /// arrive with it.
    ///
    /// The adapter
    /// - must keep the order of frames to one address, those whose future has not ended excepted: the caller waits for it;
    /// - must refuse an address that is no inbox of a client with [`Denied`](crate::ErrorKind::Denied): a peer chose it;
    /// - must not send a frame twice, and need not store it.
    fn send(&self, address: &str, frame: Message) -> Progress<Result<(), Error>>;
}

/// Takes what arrives in an inbox.
pub trait Mailbox: fmt::Debug + Send + Sync {
    /// A frame has arrived.
    fn deliver(&self, frame: Message);

    /// Nothing will arrive any more: the inbox is gone. Every stream over it ends.
    fn lost(&self);
}

/// The [`Streamer`] of a wire without streams.
///
/// Items are numbered, so that the end is told apart from a loss; the reader allows [`WINDOW`](super::WINDOW) items and
/// [`WINDOW_BYTES`](super::WINDOW_BYTES) at a time; both sides give signs of life, and who is silent for twice the time
/// between them is lost.
#[derive(Clone, Debug)]
pub struct Emulation {
    requester: Arc<dyn Requester>,
    responder: Arc<dyn Responder>,
    exchange: Arc<Exchange>,
}

/// The streams of one client.
pub(super) struct Exchange {
    pub(super) post: Arc<dyn Post>,
    pub(super) clock: Arc<dyn Clock>,
    heartbeat: Duration,
    address: OnceLock<SmolStr>,
    opening: tokio::sync::Mutex<()>,
    lines: Mutex<HashMap<End, Weak<Line>>>,
    waiting: mpsc::Sender<Errand>,
    /// For the keeper, who starts with the inbox.
    errands: Mutex<Option<mpsc::Receiver<Errand>>>,
}

/// What is sent by the way.
enum Errand {
    Frame(SmolStr, Message),
    Reply(Arc<dyn Replier>, Box<Reply>),
}

impl Emulation {
    /// Streams over these roles of a transport. After `heartbeat` without anything else, a sign of life is sent.
    #[must_use]
    pub fn new(
        requester: Arc<dyn Requester>,
        responder: Arc<dyn Responder>,
        post: Arc<dyn Post>,
        clock: Arc<dyn Clock>,
        heartbeat: Duration,
    ) -> Self {
        let (waiting, errands) = mpsc::channel(MAX_WAITING);
        let exchange = Exchange {
            post,
            clock,
            heartbeat,
            address: OnceLock::new(),
            opening: tokio::sync::Mutex::new(()),
            lines: Mutex::default(),
            waiting,
            errands: Mutex::new(Some(errands)),
        };
        Self {
            requester,
            responder,
            exchange: Arc::new(exchange),
        }
    }
}

#[async_trait]
impl Streamer for Emulation {
    fn open(&self, opening: Opening) -> BoxFuture<'static, Result<Duplex, Error>> {
        let (requester, exchange) = (Arc::clone(&self.requester), Arc::clone(&self.exchange));
        Box::pin(async move {
            let deadline = opening.deadline;
            let clock = Arc::clone(&exchange.clock);
            let subject = opening.message.subject().clone();
            let opened = pin!(open(&exchange, requester, opening));
            match select(opened, clock.sleep_until(deadline)).await {
                Either::Left((opened, _)) => opened,
                Either::Right(_) => Err(Error::call_timeout(&subject)),
            }
        })
    }

    async fn accept(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingStreams>, Error>> {
        if let Err(error) = self.exchange.inbox().await {
            let refused = |_| Err(Error::new(error.kind(), error.to_string()));
            return specs.iter().map(refused).collect();
        }
        let served = self.responder.serve(specs).await;
        let accepting = served.into_iter().zip(specs).map(|(calls, spec)| {
            let calls = calls?;
            Ok(Box::new(Incoming {
                replier: calls.replier(),
                calls,
                exchange: Arc::clone(&self.exchange),
                received: Batch::new(spec.window),
                answers: FuturesUnordered::new(),
            }) as Box<dyn IncomingStreams>)
        });
        accepting.collect()
    }
}

async fn open(
    exchange: &Arc<Exchange>,
    requester: Arc<dyn Requester>,
    opening: Opening,
) -> Result<Duplex, Error> {
    let Opening {
        message,
        deadline,
        until,
        sends,
    } = opening;
    let address = exchange.inbox().await?;
    let subject = message.subject().clone();
    let end = End {
        stream: crate::random::bits(),
        side: Side::Caller,
    };
    let line = Line::new(exchange, end, subject.clone(), (sends, true));
    exchange.remember(end, &line)?;
    let left = until.map(|until| until.saturating_duration_since(exchange.clock.now()));
    let frame = Frame::Open {
        stream: end.stream,
        sends,
        credit: first_credit(),
        left,
        address,
    };
    let message = message.with_frame(frame.to_string());
    // Whoever gives up from here on leaves halves behind that tell the other side so.
    let duplex = line.halves();
    let reply = requester.request(message, deadline).wait().await?;
    if let Some(code) = reply.error_code() {
        return Err(Error::remote(read_refusal(code, &reply)).with_context("subject", &subject));
    }
    match reply.frame().and_then(Frame::read) {
        Some(Frame::Accept { credit, address }) => {
            line.meet(address, credit);
            Ok(duplex)
        }
        _ => Err(no_stream(&subject)),
    }
}

/// What a handler refused an opening with.
pub(crate) fn read_refusal(code: &str, reply: &Message) -> RemoteError {
    let read = serde_json::from_slice(reply.payload());
    read.unwrap_or_else(|_| RemoteError::new(code, "the refusal could not be read"))
}

/// The error of an opening that was answered like a call.
pub(crate) fn no_stream(subject: &Subject) -> Error {
    let text =
        "this subject answers calls with one reply and no streaming calls; use `client.request`";
    Error::new(ErrorKind::Unsupported, text).with_context("subject", subject)
}

impl Exchange {
    /// Our address, and with it the inbox that has it.
    async fn inbox(self: &Arc<Self>) -> Result<SmolStr, Error> {
        if let Some(address) = self.address.get() {
            return Ok(address.clone());
        }
        let _turn = self.opening.lock().await;
        if let Some(address) = self.address.get() {
            return Ok(address.clone());
        }
        let mailbox: Weak<dyn Mailbox> = {
            let weak: Weak<Self> = Arc::downgrade(self);
            weak
        };
        let address = self.post.open(mailbox).await?;
        if let Some(errands) = self.errands.lock().take() {
            tokio::spawn(keep(Arc::downgrade(self), errands));
        }
        Ok(self.address.get_or_init(|| address).clone())
    }

    pub(super) fn address(&self) -> Option<SmolStr> {
        self.address.get().cloned()
    }

    fn remember(&self, end: End, line: &Arc<Line>) -> Result<(), Error> {
        let mut lines = self.lines.lock();
        if lines.len() >= MAX_STREAMS {
            let text = format!("{MAX_STREAMS} streams are open; end some, or use more clients");
            return Err(Error::new(ErrorKind::Overloaded, text));
        }
        if lines.contains_key(&end) {
            return Err(Error::new(
                ErrorKind::Rejected,
                "the stream is open already",
            ));
        }
        lines.insert(end, Arc::downgrade(line));
        Ok(())
    }

    pub(super) fn forget(&self, end: End) {
        self.lines.lock().remove(&end);
    }

    /// Sends a frame by the way. Where too many wait it is left out: the next sign of life makes up for it.
    pub(super) fn tell(&self, address: SmolStr, frame: Message) {
        self.run(Errand::Frame(address, frame));
    }

    fn run(&self, errand: Errand) {
        if self.waiting.try_send(errand).is_err() {
            metrics::counter!("anywire.streams.frames_left_out").increment(1);
        }
    }

    fn find(&self, end: End) -> Option<Arc<Line>> {
        self.lines.lock().get(&end).and_then(Weak::upgrade)
    }

    fn all(&self) -> Vec<Arc<Line>> {
        // A line that goes looks itself up here: it must not go while we look.
        self.lines
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    fn look(&self) {
        let now = self.clock.now();
        let ago = |time: Duration| now.checked_sub(time).unwrap_or(now);
        let (quiet, silent) = (ago(self.heartbeat / 2), ago(self.heartbeat * 7 / 4));
        for line in self.all() {
            line.keep(now, quiet, silent);
        }
    }
}

impl Mailbox for Exchange {
    fn deliver(&self, frame: Message) {
        let end = frame.correlation_id().and_then(End::read);
        let (Some(end), Some(read)) = (end, frame.frame().and_then(Frame::read)) else {
            metrics::counter!("anywire.streams.strange_frames").increment(1);
            return;
        };
        if let Some(line) = self.find(end) {
            return line.receive(&read, &frame);
        }
        // Who still believes in a stream that is over here is told.
        if let Frame::Beat { address, .. } = read {
            let gone = Message::new(frame.subject().clone(), "")
                .with_correlation_id(end.other().to_string())
                .with_frame(Frame::Gone.to_string());
            self.tell(address, gone);
        }
    }

    fn lost(&self) {
        for line in self.all() {
            line.fail(Broken::Lost);
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("address", &self.address)
            .field("streams", &self.lines.lock().len())
            .finish_non_exhaustive()
    }
}

/// Runs the errands and looks after the streams, until nobody has them any more.
async fn keep(exchange: Weak<Exchange>, mut errands: mpsc::Receiver<Errand>) {
    let mut due: Option<Instant> = None;
    loop {
        let Some(strong) = exchange.upgrade() else {
            return;
        };
        let (post, clock) = (Arc::clone(&strong.post), Arc::clone(&strong.clock));
        let pause = strong.heartbeat / LOOKS;
        drop(strong);
        let at = *due.get_or_insert_with(|| after(clock.now(), pause));
        let errand = match select(pin!(errands.recv()), clock.sleep_until(at)).await {
            Either::Left((errand, _)) => errand,
            Either::Right(_) => {
                due = None;
                let Some(strong) = exchange.upgrade() else {
                    return;
                };
                strong.look();
                continue;
            }
        };
        let sent = match errand {
            None => return,
            Some(Errand::Frame(address, frame)) => post.send(&address, frame).wait().await,
            Some(Errand::Reply(replier, reply)) => replier.reply(*reply).wait().await,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "a frame of a stream could not be sent");
        }
    }
}

/// The openings of streams among the calls to one pattern.
struct Incoming {
    calls: Box<dyn IncomingCalls>,
    replier: Arc<dyn Replier>,
    exchange: Arc<Exchange>,
    received: Batch<ReceivedCall>,
    /// To those that open nothing.
    answers: FuturesUnordered<BoxFuture<'static, Result<(), Error>>>,
}

impl Incoming {
    /// The stream that a call opens, if it does.
    fn read(&self, call: ReceivedCall) -> Result<ReceivedStream, Box<Reply>> {
        let ReceivedCall {
            message,
            tag,
            deadline: _,
        } = call;
        let mut reply = Reply {
            tag,
            reply_to: message.reply_to().map(Into::into),
            correlation_id: message.correlation_id().map(Into::into),
            message: Message::new(message.subject().clone(), ""),
        };
        let mut refuse = |error: RemoteError| {
            reply.message = error_reply(message.subject(), &error);
        };
        let Some(frame) = message.frame() else {
            refuse(RemoteError::not_streaming());
            return Err(Box::new(reply));
        };
        let Some(Frame::Open {
            stream,
            sends,
            credit,
            left,
            address,
        }) = Frame::read(frame)
        else {
            let text = "the opening of a stream cannot be read";
            refuse(RemoteError::new(RemoteError::INVALID_PAYLOAD, text));
            return Err(Box::new(reply));
        };
        let end = End {
            stream,
            side: Side::Server,
        };
        let subject = message.subject().clone();
        let line = Line::new(&self.exchange, end, subject, (true, sends));
        if let Err(error) = self.exchange.remember(end, &line) {
            refuse(RemoteError::new("overloaded", error.to_string()).with_retryable(true));
            return Err(Box::new(reply));
        }
        line.meet(address, credit);
        let now = self.exchange.clock.now();
        Ok(ReceivedStream {
            deadline: left.map(|left| after(now, left)),
            sends,
            stopped: line.stopped.clone(),
            door: Box::new(Entrance {
                line: Some(line),
                replier: Arc::clone(&self.replier),
                reply: Some(Box::new(reply)),
            }),
            message,
        })
    }

    fn poll_answers(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(sent)) = self.answers.poll_next_unpin(cx) {
            if let Err(error) = sent {
                tracing::debug!(%error, "a reply could not be sent");
            }
        }
    }
}

#[async_trait]
impl IncomingStreams for Incoming {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedStream>,
    ) -> Poll<PullResult> {
        loop {
            self.poll_answers(cx);
            self.received.set_room(batch.room());
            match self.calls.poll_batch(cx, &mut self.received) {
                Poll::Ready(Ok(Pulled::Some)) => {}
                other => return other,
            }
            let calls: VecDeque<ReceivedCall> = self.received.drain().collect();
            for call in calls {
                match self.read(call) {
                    Ok(stream) => batch.push(stream),
                    Err(reply) => match self.replier.reply(*reply) {
                        Progress::Done(_) => {}
                        Progress::Pending(answer) => self.answers.push(answer),
                    },
                }
            }
            if !batch.is_empty() {
                return Poll::Ready(Ok(Pulled::Some));
            }
        }
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.calls.stop().await
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

/// A stream that waits to be accepted.
struct Entrance {
    line: Option<Arc<Line>>,
    replier: Arc<dyn Replier>,
    reply: Option<Box<Reply>>,
}

impl Entrance {
    fn take(&mut self) -> Option<(Arc<Line>, Box<Reply>)> {
        self.line.take().zip(self.reply.take())
    }
}

#[async_trait]
impl Door for Entrance {
    async fn accept(mut self: Box<Self>) -> Result<Duplex, Error> {
        let Some((line, mut reply)) = self.take() else {
            return Err(Error::new(
                ErrorKind::Stale,
                "the stream was accepted before",
            ));
        };
        let Some(address) = line.exchange().address() else {
            return Err(Error::new(ErrorKind::Closed, "there is no inbox"));
        };
        let credit = first_credit();
        let accept = Frame::Accept { credit, address };
        reply.message = reply.message.with_frame(accept.to_string());
        // Its halves tell the caller if we are given up here.
        let duplex = line.halves();
        self.replier.reply(*reply).wait().await?;
        Ok(duplex)
    }

    async fn refuse(mut self: Box<Self>, error: RemoteError) -> Result<(), Error> {
        let Some((line, mut reply)) = self.take() else {
            return Ok(());
        };
        line.dismiss();
        reply.message = error_reply(reply.message.subject(), &error);
        self.replier.reply(*reply).wait().await
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        if let Some((line, mut reply)) = self.take() {
            let error = RemoteError::new("unavailable", "the service is stopping");
            reply.message = error_reply(reply.message.subject(), &error.with_retryable(true));
            line.dismiss();
            let replier = Arc::clone(&self.replier);
            line.exchange().run(Errand::Reply(replier, reply));
        }
    }
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entrance").field(&self.line).finish()
    }
}
