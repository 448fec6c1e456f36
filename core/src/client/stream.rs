//! Opening streaming calls.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::Client;
use super::emit::encode;
use crate::clock::after;
use crate::headers::HeaderValue;
use crate::pattern::streaming::{Duplex, Opening};
use crate::payload::{FromPayload, IntoPayload};
use crate::stream::{Limits, Outbound, Uploading};
use crate::{Error, Inbound, Message, Subject};

/// What a streaming call is opened with, whatever its kind.
struct Call {
    client: Client,
    message: Result<Message, Error>,
    sends: bool,
    open_timeout: Duration,
    timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
}

/// What was opened.
struct Opened {
    duplex: Duplex,
    subject: Subject,
    limits: Option<Limits>,
}

impl Call {
    fn new(client: &Client, message: Result<Message, Error>, sends: bool) -> Self {
        Self {
            client: client.clone(),
            message,
            sends,
            open_timeout: client.core().request_timeout,
            timeout: None,
            idle_timeout: None,
        }
    }

    fn header(&mut self, name: &str, value: HeaderValue) {
        if let Ok(message) = &mut self.message
            && let Err(error) = message.headers_mut().append(name, value)
        {
            self.message = Err(error);
        }
    }

    async fn open(self) -> Result<Opened, Error> {
        let opened = self.begin().await;
        opened.map_err(|error| error.with_operation("open"))
    }

    async fn begin(self) -> Result<Opened, Error> {
        let core = self.client.core();
        core.check_open()?;
        let mut message = self.message?;
        if let Some(cause) = self.client.cause() {
            cause.mark(&mut message);
        }
        let subject = message.subject().clone();
        let streamer = core.wires.streamer(&subject)?;
        let now = core.clock.now();
        let until = self.timeout.map(|timeout| after(now, timeout));
        let deadline = after(now, self.open_timeout);
        let opening = Opening {
            message,
            deadline: until.map_or(deadline, |until| until.min(deadline)),
            until,
            sends: self.sends,
        };
        let opened = streamer.open(opening).await;
        Ok(Opened {
            duplex: opened.map_err(|error| error.with_context("subject", &subject))?,
            limits: Limits::new(Arc::clone(&core.clock), until, self.idle_timeout),
            subject,
        })
    }
}

/// A streaming call on its way out; awaiting it opens the call.
#[must_use = "a streaming call is opened when the builder is awaited"]
pub struct Open<'a, O> {
    call: Call,
    client: PhantomData<&'a Client>,
    opened: PhantomData<fn() -> O>,
}

/// The replies to one request: what [`Client::stream`] opens.
#[derive(Debug)]
pub struct Replies<R>(PhantomData<fn() -> R>);

/// Many requests and one reply: what [`Client::upload`] opens.
#[derive(Debug)]
pub struct Requests<T: ?Sized, R>(PhantomData<fn(&T) -> R>);

/// Many of both: what [`Client::duplex`] opens.
#[derive(Debug)]
pub struct Both<T: ?Sized, R>(PhantomData<fn(&T) -> R>);

impl<O> Open<'_, O> {
    pub(super) fn with_request<Q: IntoPayload + ?Sized>(
        client: &Client,
        subject: Result<Subject, Error>,
        request: &Q,
    ) -> Self {
        let message = subject.and_then(|subject| encode(client, subject, request));
        Self::new(Call::new(client, message, false))
    }

    pub(super) fn with_items(client: &Client, subject: Result<Subject, Error>) -> Self {
        let message = subject.map(|subject| Message::new(subject, ""));
        Self::new(Call::new(client, message, true))
    }

    fn new(call: Call) -> Self {
        Self {
            call,
            client: PhantomData,
            opened: PhantomData,
        }
    }

    /// Sets how long the acceptance may take. Default: 10 s.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.call.open_timeout = timeout;
        self
    }

    /// Sets how long the whole may take. Its handler ends by then, too. Default: as long as it takes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.call.timeout = Some(timeout);
        self
    }

    /// Sets how long the next item may take. Default: as long as it takes; a side that is lost is noticed anyway.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.call.idle_timeout = Some(timeout);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<HeaderValue>) -> Self {
        self.call.header(name, value.into());
        self
    }
}

impl<'a, R: FromPayload> IntoFuture for Open<'a, Replies<R>> {
    type Output = Result<Inbound<R>, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let opened = self.call.open().await?;
            let source = opened.duplex.source;
            Ok(Inbound::new(source, opened.subject, opened.limits))
        })
    }
}

impl<'a, T, R> IntoFuture for Open<'a, Requests<T, R>>
where
    T: IntoPayload + ?Sized + 'static,
    R: FromPayload,
{
    type Output = Result<Uploading<T, R>, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let codec = self.call.client.codec();
            let opened = self.call.open().await?;
            let Duplex { sink, source } = opened.duplex;
            let items = Outbound::new(sink, opened.subject.clone(), codec);
            let reply = Inbound::new(source, opened.subject, opened.limits);
            Ok(Uploading::new(items, reply))
        })
    }
}

impl<'a, T, R> IntoFuture for Open<'a, Both<T, R>>
where
    T: IntoPayload + ?Sized + 'static,
    R: FromPayload,
{
    type Output = Result<(Outbound<T>, Inbound<R>), Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let codec = self.call.client.codec();
            let opened = self.call.open().await?;
            let Duplex { sink, source } = opened.duplex;
            let items = Outbound::new(sink, opened.subject.clone(), codec);
            Ok((items, Inbound::new(source, opened.subject, opened.limits)))
        })
    }
}

impl<O> fmt::Debug for Open<'_, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("message", &self.call.message)
            .finish_non_exhaustive()
    }
}
