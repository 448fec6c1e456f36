//! Making a call.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::time::Duration;

use futures::future::BoxFuture;

use super::Client;
use super::emit::encode;
use crate::clock::after;
use crate::headers::HeaderValue;
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

    async fn run(self) -> Result<R, Error> {
        let core = self.client.core();
        core.check_open()?;
        let mut message = self.message?;
        if let Some(cause) = self.client.cause() {
            cause.mark(&mut message);
        }
        let subject = message.subject().clone();
        let requester = core.wires.requester(&subject)?;
        let deadline = after(core.clock.now(), self.timeout);
        let reply = requester
            .request(message.with_deadline(self.timeout), deadline)
            .wait()
            .await;
        let reply = reply.map_err(|error| {
            error
                .with_operation("request")
                .with_context("subject", &subject)
        })?;
        match reply.error_code() {
            None => R::from_payload(&reply),
            Some(code) => {
                Err(Error::remote(remote_error(code, &reply)).with_context("subject", &subject))
            }
        }
        .map_err(|error| error.with_operation("request"))
    }
}

/// A reply whose details cannot be read is still an error, with its code.
fn remote_error(code: &str, reply: &Message) -> RemoteError {
    let read = serde_json::from_slice(reply.payload());
    read.unwrap_or_else(|_| RemoteError::new(code, "the handler's error could not be read"))
}

impl<'a, R: FromPayload> IntoFuture for Request<'a, R> {
    type Output = Result<R, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
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
