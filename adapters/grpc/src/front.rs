//! What becomes of a request: which desk it is for, and how its answer goes back.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anywire::clock::Clock;
use anywire::{Message, RemoteError, Subject};
use bytes::Bytes;
use futures::Stream;
use futures::future::join_all;
use http::header::{CONTENT_TYPE, HeaderValue};
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{ServerStreamingService, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::body::{Upload, Whole};
use crate::codec::Plain;
use crate::desk::{Answer, Desk};
use crate::errors;
use crate::names;
use crate::pipe::{Outgoing, pipe, unaccepted};
use crate::streams::{ACCEPTED, Nothing, Opened, Received};
use crate::switchboard::{Destination, Switchboard};
use crate::wire;

/// Brings requests to their desks.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) board: Arc<Switchboard>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) admitted: Arc<Semaphore>,
    pub(crate) max_payload: usize,
    /// How long a request of one message may be on its way.
    pub(crate) patience: Duration,
}

impl Front {
    pub(crate) async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        if !wire::is_grpc(request.headers().get(CONTENT_TYPE)) {
            let mut response = http::Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return response;
        }
        let Ok(admitted) = Arc::clone(&self.admitted).try_acquire_owned() else {
            metrics::counter!("anywire.grpc.shed").increment(1);
            return errors::not_begun(Code::ResourceExhausted, "too many requests at once")
                .into_http();
        };
        let path = request.uri().path();
        // What is ours alone, such as a dead letter, never comes from outside.
        let subject = names::subject(path).filter(|subject| !subject.is_reserved());
        let Some(subject) = subject else {
            return Status::unimplemented("no handler answers this method").into_http();
        };
        match self.board.find(&subject, self.clock.now()) {
            Destination::Nobody => {
                Status::unimplemented("no handler answers this method").into_http()
            }
            Destination::Stopping => stopping().into_http(),
            Destination::Call(desk) => self.unary(Unary::Call(desk), subject, request).await,
            Destination::Event(copies) => self.unary(Unary::Event(copies), subject, request).await,
            Destination::Stream(desk, items) => {
                let attended = Streamed {
                    board: Arc::clone(&self.board),
                    desk,
                    subject,
                    now: self.clock.now(),
                    max_payload: self.max_payload,
                    native: request.headers().get(CONTENT_TYPE).cloned(),
                    admitted: Some(admitted),
                };
                self.stream(attended, items, request).await
            }
        }
    }

    fn whole(&self, request: http::Request<Body>) -> http::Request<Body> {
        request.map(|body| Body::new(Whole::new(body, &self.clock, self.patience)))
    }

    /// Many answers to one request, or to many.
    async fn stream(
        &self,
        attended: Streamed,
        items: bool,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        let mut grpc = tonic::server::Grpc::new(Plain)
            .max_decoding_message_size(self.max_payload)
            .max_encoding_message_size(self.max_payload);
        let mut response = match items {
            true => {
                let request = request.map(|items| Body::new(Upload(items)));
                grpc.streaming(attended, request).await
            }
            false => grpc.server_streaming(attended, self.whole(request)).await,
        };
        if let Some(NativeType(native)) = response.extensions_mut().remove() {
            response.headers_mut().insert(CONTENT_TYPE, native);
        }
        response
    }

    /// One request, one answer.
    async fn unary(
        &self,
        unary: Unary,
        subject: Subject,
        request: http::Request<Body>,
    ) -> http::Response<Body> {
        let attended = Attended {
            unary,
            subject,
            now: self.clock.now(),
        };
        let mut grpc = tonic::server::Grpc::new(Plain)
            .max_decoding_message_size(self.max_payload)
            .max_encoding_message_size(self.max_payload);
        let mut response = grpc.unary(attended, self.whole(request)).await;
        if let Some(NativeType(native)) = response.extensions_mut().remove() {
            response.headers_mut().insert(CONTENT_TYPE, native);
        }
        response
    }
}

/// The content type of a reply, on its way past the library, which knows only one.
#[derive(Clone)]
struct NativeType(HeaderValue);

/// A request that is answered once.
enum Unary {
    Call(Arc<Desk>),
    Event(SmallVec<[Arc<Desk>; 2]>),
}

struct Attended {
    unary: Unary,
    subject: Subject,
    now: Instant,
}

impl UnaryService<Bytes> for Attended {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (metadata, _, payload) = request.into_parts();
        let metadata = metadata.into_headers();
        let read = wire::read(self.subject.clone(), payload, &metadata);
        let unary = std::mem::replace(&mut self.unary, Unary::Event(SmallVec::new()));
        let now = self.now;
        Box::pin(async move {
            let message = read.map_err(Status::invalid_argument)?;
            let deadline = message.deadline().map(|left| now + left);
            match unary {
                Unary::Call(desk) => call(&desk, message, deadline).await,
                Unary::Event(copies) => event(&copies, &message, deadline).await,
            }
        })
    }
}

async fn call(
    desk: &Desk,
    message: Message,
    deadline: Option<Instant>,
) -> Result<Response<Bytes>, Status> {
    respond(&ask(desk, message, deadline).await?)
}

/// Puts a request down and waits for its answer.
async fn ask(desk: &Desk, message: Message, deadline: Option<Instant>) -> Result<Message, Status> {
    if !desk.has_room() {
        metrics::counter!("anywire.grpc.shed").increment(1);
        return Err(errors::not_begun(
            Code::ResourceExhausted,
            "too many calls wait for this handler",
        ));
    }
    let waiting = desk.put(message, deadline).ok_or_else(stopping)?;
    match waiting.await {
        Ok(Answer::Reply(reply)) => Ok(reply),
        Ok(Answer::Abandoned | Answer::GivenBack | Answer::Done | Answer::Failed(_)) => {
            Err(unaccepted())
        }
        Err(_) => Err(stopping()),
    }
}

pub(crate) fn late_answer() -> http::Response<Body> {
    Status::deadline_exceeded("the deadline of the request has passed").into_http()
}

fn stopping() -> Status {
    errors::not_begun(Code::Unavailable, "the service is stopping")
}

fn respond(reply: &Message) -> Result<Response<Bytes>, Status> {
    if let Some(code) = reply.error_code() {
        let error = serde_json::from_slice::<RemoteError>(reply.payload());
        let error = error.unwrap_or_else(|_| RemoteError::new(code, "the handler refused"));
        return Err(errors::refusal(&error));
    }
    let (metadata, native) = wire::metadata(reply);
    let mut response = Response::new(reply.payload().clone());
    *response.metadata_mut() = MetadataMap::from_headers(metadata);
    response.extensions_mut().insert(NativeType(native));
    Ok(response)
}

/// A copy for each subscription; the answer comes when all are settled.
async fn event(
    copies: &[Arc<Desk>],
    message: &Message,
    deadline: Option<Instant>,
) -> Result<Response<Bytes>, Status> {
    if !copies.iter().all(|desk| desk.has_room()) {
        metrics::counter!("anywire.grpc.shed").increment(1);
        return Err(errors::not_begun(
            Code::ResourceExhausted,
            "too many events wait for a handler",
        ));
    }
    let puts = copies
        .iter()
        .map(|desk| desk.put(message.clone(), deadline));
    let waiting: SmallVec<[_; 2]> = puts.flatten().collect();
    let (mut has_begun, mut is_whole) = (false, true);
    let mut failed = None;
    for answer in join_all(waiting).await {
        has_begun |= answer.is_ok();
        match answer {
            Ok(Answer::Done | Answer::Reply(_)) => {}
            Ok(Answer::Failed(trail)) => failed = failed.or(Some(trail)),
            Ok(Answer::Abandoned | Answer::GivenBack) | Err(_) => is_whole = false,
        }
    }
    // Sent again, it finds another instance; what the other subscriptions have done they do again.
    match is_whole {
        false if has_begun => return Err(errors::given_back()),
        false => return Err(stopping()),
        true => {}
    }
    match failed {
        Some(trail) => Err(errors::event_failed(&trail)),
        None => Ok(Response::new(Bytes::new())),
    }
}

/// A streaming call.
struct Streamed {
    board: Arc<Switchboard>,
    desk: Arc<Desk>,
    subject: Subject,
    now: Instant,
    max_payload: usize,
    /// How the caller's payloads are encoded: the answers are, too.
    native: Option<HeaderValue>,
    admitted: Option<OwnedSemaphorePermit>,
}

/// The answers to a streaming call. The server does not end before they have.
struct Answers {
    items: Outgoing,
    _admitted: Option<OwnedSemaphorePermit>,
}

impl Stream for Answers {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.items).poll_next(cx)
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

impl Streamed {
    fn attend(
        &mut self,
        metadata: MetadataMap,
        payload: Bytes,
        items: Option<Streaming<Bytes>>,
    ) -> Answering {
        let read = wire::read(self.subject.clone(), payload, &metadata.into_headers());
        let (board, desk) = (Arc::clone(&self.board), Arc::clone(&self.desk));
        let (now, max_payload, native) = (self.now, self.max_payload, self.native.take());
        let admitted = self.admitted.take();
        Box::pin(async move {
            let message = read.map_err(Status::invalid_argument)?;
            let (sink, outgoing) = pipe(max_payload);
            let opened = Opened {
                sink,
                sends: items.is_some(),
                until: message.deadline().map(|left| now + left),
                source: match items {
                    Some(items) => Box::new(Received::new(items, &message)),
                    None => Box::new(Nothing),
                },
            };
            let waiting = board.openings.put(opened);
            let opening = message.with_frame(waiting.number.to_string());
            let reply = ask(&desk, opening, None).await?;
            drop(waiting);
            if reply.frame() != Some(ACCEPTED) {
                return Err(respond(&reply).err().unwrap_or_else(unaccepted));
            }
            let mut response = Response::new(Answers {
                items: outgoing,
                _admitted: admitted,
            });
            if let Some(native) = native {
                response.extensions_mut().insert(NativeType(native));
            }
            Ok(response)
        })
    }
}

impl StreamingService<Bytes> for Streamed {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Answering;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Answering {
        let (metadata, _, items) = request.into_parts();
        self.attend(metadata, Bytes::new(), Some(items))
    }
}

impl ServerStreamingService<Bytes> for Streamed {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Answering;

    fn call(&mut self, request: Request<Bytes>) -> Answering {
        let (metadata, _, payload) = request.into_parts();
        self.attend(metadata, payload, None)
    }
}
