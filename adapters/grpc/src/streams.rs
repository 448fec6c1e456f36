//! Streaming calls: the streams of HTTP/2.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anywire::pattern::request_reply::CallSpec;
use anywire::pattern::streaming::{
    Door, Duplex, IncomingStreams, Item, ItemSink, ItemSource, Opening, ReceivedStream, Streamer,
};
use anywire::pattern::{Batch, PullResult, Pulled, Tag};
use anywire::{ContentType, Error, ErrorKind, Message, RemoteError, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::desk::{Answer, Purpose, Taken};
use crate::errors::{self, Verdict};
use crate::names;
use crate::part::Part;
use crate::pipe::{Asking, Filling, pipe};
use crate::pool::{Line, Tried};
use crate::transport::Connection;
use crate::wire;

/// What the answer that accepts a stream is marked with.
pub(crate) const ACCEPTED: &str = "accepted";

/// The streams that have arrived and are not accepted yet, by the number that their openings hold.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    number: AtomicU64,
    opened: Mutex<HashMap<u64, Opened>>,
}

/// Our directions of a stream that has arrived.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) sink: Filling,
    pub(crate) source: Box<dyn ItemSource>,
    pub(crate) sends: bool,
    pub(crate) until: Option<Instant>,
}

/// An opening that waits; it is taken back where its caller goes.
pub(crate) struct Waiting<'a> {
    openings: &'a Openings,
    pub(crate) number: u64,
}

impl Openings {
    pub(crate) fn put(&self, opened: Opened) -> Waiting<'_> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.opened.lock().insert(number, opened);
        Waiting {
            openings: self,
            number,
        }
    }

    fn take(&self, opening: &Message) -> Option<Opened> {
        let number = opening.frame()?.parse().ok()?;
        self.opened.lock().remove(&number)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.openings.opened.lock().remove(&self.number);
    }
}

/// The role that opens and accepts.
#[derive(Debug)]
pub(crate) struct GrpcStreamer {
    connection: Arc<Connection>,
}

impl GrpcStreamer {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

/// What a specification asks for, and its window.
fn wanted(spec: &CallSpec) -> (Purpose, usize) {
    let CallSpec {
        pattern,
        window,
        items,
    } = spec;
    (Purpose::Streams(pattern.clone(), *items), *window)
}

#[async_trait]
impl Streamer for GrpcStreamer {
    fn open(&self, opening: Opening) -> BoxFuture<'static, Result<Duplex, Error>> {
        let connection = Arc::clone(&self.connection);
        Box::pin(async move {
            connection.check_open()?;
            let limit = connection.config.max_payload;
            if let Some(error) = errors::too_large(&opening.message, limit) {
                return Err(error);
            }
            let (deadline, clock) = (opening.deadline, Arc::clone(&connection.clock));
            let subject = opening.message.subject().clone();
            tokio::select! {
                biased;
                opened = open(&connection, opening) => opened,
                () = clock.sleep_until(deadline) => Err(Error::call_timeout(&subject)),
                () = connection.closed() => Err(errors::closed()),
            }
        })
    }

    async fn accept(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingStreams>, Error>> {
        let parts = Part::open(&self.connection, specs.iter().map(wanted)).await;
        let opened = parts.into_iter().zip(specs).map(|(part, spec)| match part {
            Ok(part) => Ok(Box::new(GrpcStreams { part }) as Box<dyn IncomingStreams>),
            Err(error) => Err(error
                .with_operation("accept")
                .with_context("pattern", &spec.pattern)),
        });
        opened.collect()
    }
}

async fn open(connection: &Arc<Connection>, opening: Opening) -> Result<Duplex, Error> {
    let Opening {
        message,
        // It is waited for by whoever has called us.
        deadline: _,
        until,
        sends,
    } = opening;
    let left = until.map(|until| until.saturating_duration_since(connection.clock.now()));
    match sends {
        true => open_with_items(connection, &message, left).await,
        false => open_with_request(connection, &message, left).await,
    }
}

/// The metadata of an opening, around what is sent with it.
fn request<T>(
    connection: &Connection,
    message: &Message,
    left: Option<Duration>,
    body: T,
) -> (Request<T>, http::HeaderValue) {
    let (mut metadata, native) = wire::metadata(message);
    if let Some(left) = left {
        metadata.insert(wire::TIMEOUT, wire::timeout_of(left));
    }
    if let Some(bearer) = connection.bearer() {
        metadata.insert(AUTHORIZATION, bearer.clone());
    }
    let mut request = Request::new(body);
    *request.metadata_mut() = MetadataMap::from_headers(metadata);
    (request, native)
}

/// One request: the handler has accepted when the headers of its answer are there. Another instance is asked where one has
/// certainly not begun.
async fn open_with_request(
    connection: &Arc<Connection>,
    message: &Message,
    left: Option<Duration>,
) -> Result<Duplex, Error> {
    let subject = message.subject();
    let path = names::path(subject)?;
    let mut tried = Tried::new();
    let mut last = None;
    loop {
        let Some(line) = next_line(connection, subject, &tried).await? else {
            return Err(last.unwrap_or_else(|| Error::no_responder(subject)));
        };
        let (request, native) = request(connection, message, left, message.payload().clone());
        let limit = connection.config.max_payload;
        let status = match line
            .server_streaming(path.clone(), request, native, limit)
            .await
        {
            Ok(response) => {
                let reader = Reader::new(connection, subject, Reading::of(subject, response)?);
                return Ok(Duplex {
                    sink: Box::new(Nothing),
                    source: Box::new(Source(reader)),
                });
            }
            Err(status) => status,
        };
        match errors::verdict(status, subject) {
            Verdict::NotBegun(error) => {
                tried.push(line.key());
                if last.is_none() || error.kind() != ErrorKind::NoRoute {
                    last = Some(error);
                }
            }
            Verdict::NotSent(error) => {
                connection.lost(subject, &line);
                tried.push(line.key());
                last.get_or_insert(error);
            }
            Verdict::Lost(error) => {
                connection.lost(subject, &line);
                return Err(error.with_context("peer", line.address()));
            }
            Verdict::Refused(error) => return Err(Error::remote(error)),
            Verdict::GivenBack(error) | Verdict::Failed(error) | Verdict::Error(error) => {
                return Err(error);
            }
        }
    }
}

/// Items: a foreign server may tell that it has accepted no sooner than it has read some, so nobody waits for that. Who
/// refuses does so before the first reply.
async fn open_with_items(
    connection: &Arc<Connection>,
    message: &Message,
    left: Option<Duration>,
) -> Result<Duplex, Error> {
    let subject = message.subject();
    let path = names::path(subject)?;
    let line = next_line(connection, subject, &Tried::new()).await?;
    let line = line.ok_or_else(|| Error::no_responder(subject))?;
    let limit = connection.config.max_payload;
    let (filling, outgoing) = pipe(limit);
    let (request, native) = request(connection, message, left, Asking(outgoing));
    let answer = tokio::spawn(async move { line.streaming(path, request, native, limit).await });
    let reader = Reader::new(connection, subject, Reading::Opening(Answering(answer)));
    let giving_up = Arc::clone(&reader);
    let sink = filling.or_else(Box::new(move || giving_up.give_up()));
    Ok(Duplex {
        sink: Box::new(sink),
        source: Box::new(Source(reader)),
    })
}

async fn next_line(
    connection: &Connection,
    subject: &Subject,
    tried: &Tried,
) -> Result<Option<Line>, Error> {
    let line = connection.peers(subject)?.line(tried).await;
    line.map_err(|error| match connection.is_own(subject) {
        // We are to answer ourselves, and do not.
        true if error.kind() == ErrorKind::Unavailable => {
            Error::no_responder(subject).with_source(error)
        }
        _ => error.with_context("subject", subject),
    })
}

/// The answer to a stream, on its way. Dropping it gives the stream up.
struct Answering(JoinHandle<Result<Response<Streaming<Bytes>>, Status>>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How far the reading of a stream is.
enum Reading {
    Opening(Answering),
    Open {
        items: Box<Streaming<Bytes>>,
        content_type: Option<ContentType>,
    },
    /// The sender of the request has given the stream up.
    GivenUp,
    Over,
}

impl Reading {
    fn of(subject: &Subject, response: Response<Streaming<Bytes>>) -> Result<Self, Error> {
        let (metadata, items, _) = response.into_parts();
        let read = wire::read(subject.clone(), Bytes::new(), &metadata.into_headers());
        let read = read.map_err(|why| {
            let text = format!("the answer cannot be read: {why}");
            Error::new(ErrorKind::Codec, text)
        })?;
        Ok(Self::Open {
            items: Box::new(items),
            content_type: read.content_type().cloned(),
        })
    }
}

/// What reads a stream, and what gives it up. It ends with its transport.
pub(crate) struct Reader {
    connection: Arc<Connection>,
    subject: Subject,
    state: Mutex<State>,
    tie: usize,
}

struct State {
    reading: Reading,
    seen: u64,
    waker: Option<std::task::Waker>,
}

impl Reader {
    fn new(connection: &Arc<Connection>, subject: &Subject, reading: Reading) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            connection: Arc::clone(connection),
            subject: subject.clone(),
            state: Mutex::new(State {
                reading,
                seen: 0,
                waker: None,
            }),
            tie: connection.tie_stream(Weak::clone(this)),
        })
    }

    /// Ends the whole call: our items end without an end of their own.
    pub(crate) fn give_up(&self) {
        let mut state = self.state.lock();
        if !matches!(state.reading, Reading::Over) {
            state.reading = Reading::GivenUp;
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>> {
        let mut state = self.state.lock();
        let state = &mut *state;
        loop {
            match &mut state.reading {
                Reading::Over => return Poll::Ready(None),
                Reading::GivenUp => {
                    state.reading = Reading::Over;
                    let text = "we gave the stream up before its end";
                    let error = match self.connection.is_closed() {
                        true => errors::closed(),
                        false => Error::new(ErrorKind::Cancelled, text),
                    };
                    return Poll::Ready(Some(Err(error.with_context("last", state.seen))));
                }
                Reading::Opening(answer) => {
                    let Poll::Ready(answered) = Pin::new(&mut answer.0).poll(cx) else {
                        state.waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    };
                    let answered = answered.unwrap_or_else(|_| Err(crate::pipe::unaccepted()));
                    let reading = answered
                        .map_err(|status| self.error(status, 0))
                        .and_then(|response| Reading::of(&self.subject, response));
                    match reading {
                        Ok(reading) => state.reading = reading,
                        Err(error) => {
                            state.reading = Reading::Over;
                            return Poll::Ready(Some(Err(error)));
                        }
                    }
                }
                Reading::Open {
                    items,
                    content_type,
                } => {
                    let Poll::Ready(next) = Pin::new(items).poll_next(cx) else {
                        state.waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    };
                    return Poll::Ready(match next {
                        Some(Ok(payload)) => {
                            state.seen += 1;
                            Some(Ok(Item {
                                payload,
                                content_type: content_type.clone(),
                            }))
                        }
                        Some(Err(status)) => {
                            state.reading = Reading::Over;
                            Some(Err(self.error(status, state.seen)))
                        }
                        None => {
                            state.reading = Reading::Over;
                            None
                        }
                    });
                }
            }
        }
    }

    fn error(&self, status: Status, seen: u64) -> Error {
        end(status, &self.subject, seen)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.connection.untie_stream(self.tie);
    }
}

/// What a reader gets where a stream ends with a status.
fn end(status: Status, subject: &Subject, seen: u64) -> Error {
    match errors::verdict(status, subject) {
        Verdict::Refused(error) => Error::remote(error),
        Verdict::NotBegun(error)
        | Verdict::NotSent(error)
        | Verdict::GivenBack(error)
        | Verdict::Failed(error)
        | Verdict::Lost(error)
        | Verdict::Error(error) => error.with_context("last", seen),
    }
}

/// What a caller reads.
struct Source(Arc<Reader>);

impl ItemSource for Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>> {
        self.0.poll_next(cx)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // The library resets the stream, and the handler is told.
        self.0.state.lock().reading = Reading::Over;
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.0.subject).finish()
    }
}

/// What a handler reads.
pub(crate) struct Received {
    items: Streaming<Bytes>,
    content_type: Option<ContentType>,
    subject: Subject,
    seen: u64,
    is_over: bool,
}

impl Received {
    pub(crate) fn new(items: Streaming<Bytes>, opening: &Message) -> Self {
        Self {
            items,
            content_type: opening.content_type().cloned(),
            subject: opening.subject().clone(),
            seen: 0,
            is_over: false,
        }
    }
}

impl ItemSource for Received {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let next = ready!(Pin::new(&mut self.items).poll_next(cx));
        Poll::Ready(match next {
            Some(Ok(payload)) => {
                self.seen += 1;
                Some(Ok(Item {
                    payload,
                    content_type: self.content_type.clone(),
                }))
            }
            Some(Err(status)) => {
                self.is_over = true;
                Some(Err(end(status, &self.subject, self.seen)))
            }
            None => {
                self.is_over = true;
                None
            }
        })
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Received").field(&self.subject).finish()
    }
}

/// The direction that has no items.
#[derive(Debug)]
pub(crate) struct Nothing;

impl ItemSource for Nothing {
    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>> {
        Poll::Ready(None)
    }
}

impl ItemSink for Nothing {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Err(ended()))
    }

    fn start_send(&mut self, _: Item) -> Result<(), Error> {
        Err(ended())
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(
        &mut self,
        _: &mut Context<'_>,
        _: Option<&RemoteError>,
    ) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Cancelled, "the stream was opened without items")
}

/// The streaming calls to one pattern.
#[derive(Debug)]
struct GrpcStreams {
    part: Arc<Part>,
}

#[async_trait]
impl IncomingStreams for GrpcStreams {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedStream>,
    ) -> Poll<PullResult> {
        while batch.is_empty() {
            let Some(taken) = ready!(self.part.poll_take(cx, batch.room())) else {
                return Poll::Ready(Ok(Pulled::End));
            };
            for call in taken {
                let Taken { message, tag, .. } = call;
                let Some(opened) = self.part.openings().take(&message) else {
                    // Its caller has gone meanwhile.
                    let _ = self.part.answer(tag, Answer::Abandoned);
                    continue;
                };
                batch.push(ReceivedStream {
                    deadline: opened.until,
                    sends: opened.sends,
                    stopped: opened.sink.stopped(),
                    door: Box::new(Entrance {
                        part: Arc::clone(&self.part),
                        tag,
                        message: message.clone(),
                        opened: Some(opened),
                    }),
                    message,
                });
            }
        }
        Poll::Ready(Ok(Pulled::Some))
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.part.stop();
        Ok(())
    }
}

impl Drop for GrpcStreams {
    fn drop(&mut self) {
        self.part.stop();
    }
}

/// A stream that waits to be accepted.
struct Entrance {
    part: Arc<Part>,
    tag: Tag,
    message: Message,
    opened: Option<Opened>,
}

impl Entrance {
    fn answer(&mut self, refusal: Option<&RemoteError>) -> Result<Opened, Error> {
        let stale = || Error::new(ErrorKind::Stale, "the stream was accepted before");
        let opened = self.opened.take().ok_or_else(stale)?;
        let subject = self.message.subject().clone();
        let reply = match refusal {
            None => Message::new(subject, "").with_frame(ACCEPTED),
            Some(error) => {
                let payload = serde_json::to_vec(error).unwrap_or_default();
                Message::new(subject, payload).with_error_code(error.code())
            }
        };
        self.part.answer(self.tag, Answer::Reply(reply))?;
        Ok(opened)
    }
}

#[async_trait]
impl Door for Entrance {
    async fn accept(mut self: Box<Self>) -> Result<Duplex, Error> {
        let opened = self.answer(None)?;
        self.part.keep(opened.sink.cutter());
        Ok(Duplex {
            sink: Box::new(opened.sink),
            source: opened.source,
        })
    }

    async fn refuse(mut self: Box<Self>, error: RemoteError) -> Result<(), Error> {
        self.answer(Some(&error)).map(drop)
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        let error = RemoteError::new("unavailable", "the service is stopping");
        // Who cannot be told is gone.
        let _ = self.answer(Some(&error.with_retryable(true)));
    }
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entrance").field(&self.message).finish()
    }
}
