//! Making a call.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;

use super::Client;
use super::emit::encode;
use crate::clock::after;
use crate::headers::HeaderValue;
use crate::pattern::Progress;
use crate::payload::{FromPayload, IntoPayload};
use crate::{Error, ErrorKind, Message, RemoteError, Subject};

/// A call on its way out; awaiting it makes the call and yields its reply.
#[must_use = "a call is made when the builder is awaited"]
pub struct Request<'a, R> {
    client: &'a Client,
    message: Result<Message, Error>,
    timeout: Duration,
    reply: PhantomData<fn() -> R>,
}

impl<'a, R: FromPayload> Request<'a, R> {
    pub(super) fn new<Q: IntoPayload + ?Sized>(
        client: &'a Client,
        subject: Result<Subject, Error>,
        request: &Q,
    ) -> Self {
        let message = subject.and_then(|subject| encode(client, subject, request));
        Self {
            client,
            message,
            timeout: client.core().request_timeout,
            reply: PhantomData,
        }
    }

    /// Sets the deadline. Default: 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<HeaderValue>) -> Self {
        self.message = self.message.and_then(|mut message| {
            message.headers_mut().append(name, value)?;
            Ok(message)
        });
        self
    }

    /// Sends the request. What comes back is its subject, for the errors, and the wait for the reply.
    fn begin(self) -> Result<(Subject, Progress<Result<Message, Error>>), Error> {
        let core = self.client.core();
        core.check_open()?;
        let mut message = self.message?;
        if let Some(cause) = self.client.cause() {
            cause.mark(&mut message);
        }
        let subject = message.subject().clone();
        let requester = core.wires.requester(&subject)?;
        let deadline = after(core.clock.now(), self.timeout);
        let reply = requester.request(message.with_deadline(self.timeout), deadline);
        Ok((subject, reply))
    }
}

fn read<R: FromPayload>(subject: &Subject, reply: Result<Message, Error>) -> Result<R, Error> {
    let read = reply.map_err(|error| error.with_context("subject", subject));
    let read = read.and_then(|reply| match reply.error_code() {
        None => R::from_payload(&reply),
        Some(code) => {
            Err(Error::remote(remote_error(code, &reply)).with_context("subject", subject))
        }
    });
    read.map_err(|error| error.with_operation("request"))
}

/// A reply whose details cannot be read is still an error, with its code.
fn remote_error(code: &str, reply: &Message) -> RemoteError {
    let read = serde_json::from_slice(reply.payload());
    read.unwrap_or_else(|_| RemoteError::new(code, "the handler's error could not be read"))
}

impl<'a, R: FromPayload> IntoFuture for Request<'a, R> {
    type Output = Result<R, Error>;
    type IntoFuture = RequestFuture<'a, R>;

    fn into_future(self) -> RequestFuture<'a, R> {
        RequestFuture(State::Start(self))
    }
}

/// A call under way. Dropping it gives the call up.
pub struct RequestFuture<'a, R>(State<'a, R>);

#[allow(
    clippy::large_enum_variant,
    reason = "boxing the start is the allocation that this type avoids"
)]
enum State<'a, R> {
    Start(Request<'a, R>),
    Waiting(Subject, BoxFuture<'static, Result<Message, Error>>),
    Over,
}

impl<R: FromPayload> Future for RequestFuture<'_, R> {
    type Output = Result<R, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Start(_) = self.0 {
            let State::Start(request) = std::mem::replace(&mut self.0, State::Over) else {
                unreachable!()
            };
            match request.begin() {
                Ok((subject, Progress::Done(reply))) => return Poll::Ready(read(&subject, reply)),
                Ok((subject, Progress::Pending(reply))) => self.0 = State::Waiting(subject, reply),
                Err(error) => return Poll::Ready(Err(error.with_operation("request"))),
            }
        }
        let State::Waiting(subject, reply) = &mut self.0 else {
            unreachable!("polled again after it was ready")
        };
        let reply = ready!(reply.as_mut().poll(cx));
        let result = read(subject, reply);
        self.0 = State::Over;
        Poll::Ready(result)
    }
}

impl<R> fmt::Debug for RequestFuture<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestFuture")
    }
}

impl<R> fmt::Debug for Request<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("message", &self.message)
            .finish_non_exhaustive()
    }
}

/// The error of a call whose transport has no calls, or of a reply that is none. Kept beside the code that reads replies.
pub(crate) fn error_reply(request: &Subject, error: &RemoteError) -> Message {
    let payload = serde_json::to_vec(error).unwrap_or_default();
    Message::new(request.clone(), payload).with_error_code(error.code())
}

impl Error {
    /// A timeout of a call. For adapters.
    #[must_use]
    pub fn call_timeout(subject: &Subject) -> Self {
        Self::new(ErrorKind::Timeout, "no reply came before the deadline")
            .with_context("subject", subject)
    }

    /// The error of a call that nobody answers. For adapters.
    #[must_use]
    pub fn no_responder(subject: &Subject) -> Self {
        let remedy =
            "no handler answers this subject; is its service running, on the same transport?";
        Self::new(ErrorKind::NoRoute, remedy).with_context("subject", subject)
    }
}
