//! Calls: core NATS requests, answered to one inbox of each client.

use std::fmt;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use anywire::pattern::request_reply::{
    CallSpec, IncomingCalls, ReceivedCall, Replier, Reply, Requester, Responder, Unanswered,
};
use anywire::pattern::{Batch, Progress, PullResult, Pulled};
use anywire::{Error, ErrorKind, Message, Pattern, Subject};
use async_nats::StatusCode;
use async_nats::message::OutboundMessage;
use async_trait::async_trait;
use futures::future::BoxFuture;
use serde::Deserialize;

use crate::inflow::Inflow;
use crate::link::Handed;
use crate::names;
use crate::publisher::too_large;
use crate::transport::{Connection, End};
use crate::wire::{self, Sending};

/// The role that calls.
#[derive(Debug)]
pub(crate) struct NatsRequester {
    connection: Arc<Connection>,
}

impl NatsRequester {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Requester for NatsRequester {
    fn request(&self, message: Message, deadline: Instant) -> Progress<Result<Message, Error>> {
        let connection = Arc::clone(&self.connection);
        if let Err(error) = connection.check_open() {
            return Progress::Done(Err(error));
        }
        if let Some(error) = too_large(&connection, &message) {
            return Progress::Done(Err(error));
        }
        let message = match message.deadline() {
            Some(_) => message,
            None => {
                let left = deadline.saturating_duration_since(connection.clock.now());
                message.with_deadline(left)
            }
        };
        Progress::pending(async move {
            tokio::select! {
                answer = call(&connection, &message) => answer,
                () = connection.clock.sleep_until(deadline) => Err(late(&message)),
            }
        })
    }
}

async fn call(connection: &Connection, message: &Message) -> Result<Message, Error> {
    let address = connection.main.subject(message.subject().as_str());
    let mut reply = connection.main.expect(Some(address.clone()), None);
    let outbound = OutboundMessage {
        subject: address,
        reply: Some(reply.address().clone()),
        payload: message.payload().clone(),
        headers: wire::headers(message, Sending::default()),
    };
    connection.main.send(outbound).await?;
    loop {
        let answer = (&mut reply)
            .await
            .map_err(|lost| Error::from(lost).with_context("subject", message.subject()))?;
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(nobody(message.subject()));
        }
        if may_be_a_confirmation(&answer) && is_captured(connection, message.subject()).await {
            // The stream is told about; the answer itself may still come.
            continue;
        }
        let clock = &*connection.clock;
        let read = wire::read(
            message.subject().as_str(),
            answer.payload,
            answer.headers.as_ref(),
            None,
            clock,
        );
        return Ok(read.message);
    }
}

/// Whether a stream might have sent this: it says so and nothing else.
fn may_be_a_confirmation(answer: &async_nats::Message) -> bool {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "what is there is all that matters")]
    struct Confirmation {
        stream: String,
        seq: u64,
        domain: Option<String>,
        duplicate: Option<bool>,
    }
    let plain = answer
        .headers
        .as_ref()
        .is_none_or(async_nats::HeaderMap::is_empty);
    plain
        && answer.payload.starts_with(b"{")
        && serde_json::from_slice::<Confirmation>(&answer.payload).is_ok()
}

async fn is_captured(connection: &Connection, subject: &Subject) -> bool {
    let Ok(pattern) = Pattern::parse_any(subject.as_str()) else {
        return false;
    };
    match connection.topology.captor(&pattern).await {
        Ok(Some(stream)) => {
            metrics::counter!("anywire.nats.captured_calls").increment(1);
            tracing::error!(%subject, stream, "a stream stores the calls to this subject and answers them with its confirmation; take the subject out of the stream");
            true
        }
        Ok(None) | Err(_) => false,
    }
}

/// The error for a call that nobody serves.
fn nobody(subject: &Subject) -> Error {
    let message = "nobody answers this subject; start its handler first";
    Error::new(ErrorKind::NoRoute, message).with_context("subject", subject)
}

fn late(message: &Message) -> Error {
    let text = "no reply came by the deadline; allow more time, or look at the handler";
    Error::new(ErrorKind::Timeout, text).with_context("subject", message.subject())
}

/// The role that answers calls.
#[derive(Debug)]
pub(crate) struct NatsResponder {
    connection: Arc<Connection>,
}

impl NatsResponder {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    async fn open(&self, spec: &CallSpec) -> Result<Box<dyn IncomingCalls>, Error> {
        let CallSpec {
            pattern,
            window,
            // An opening tells whether there will be some.
            items: _,
        } = spec;
        let connection = &self.connection;
        connection.check_open()?;
        connection.topology.keep_for_calls(pattern).await?;
        let group = names::calls(pattern);
        let bound = connection.config.buffer;
        let inflow = Inflow::open(&connection.main, pattern, Some(group), bound).await?;
        let server = Arc::new_cyclic(|this: &Weak<Server>| Server {
            connection: Arc::clone(connection),
            inflow,
            unanswered: Unanswered::new(*window),
            tie: connection.tie(Weak::clone(this) as Weak<dyn End>),
        });
        // A close that came between the check and the tie ended everybody but us.
        connection.check_open()?;
        Ok(Box::new(NatsCalls { server }))
    }
}

#[async_trait]
impl Responder for NatsResponder {
    async fn serve(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingCalls>, Error>> {
        let mut opened = Vec::with_capacity(specs.len());
        for spec in specs {
            let served = self.open(spec).await;
            opened.push(served.map_err(|error| {
                error
                    .with_operation("serve")
                    .with_context("pattern", &spec.pattern)
            }));
        }
        opened
    }
}

/// The calls to one pattern.
#[derive(Debug)]
struct NatsCalls {
    server: Arc<Server>,
}

#[async_trait]
impl IncomingCalls for NatsCalls {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedCall>,
    ) -> Poll<PullResult> {
        while batch.is_empty() {
            let room = self.server.unanswered.room(cx).min(batch.room());
            if room == 0 {
                return Poll::Pending;
            }
            let Some(some) = ready!(self.server.inflow.poll_some(cx, room)) else {
                return Poll::Ready(Ok(Pulled::End));
            };
            for native in some {
                batch_call(&self.server, native, batch);
            }
        }
        Poll::Ready(Ok(Pulled::Some))
    }

    fn replier(&self) -> Arc<dyn Replier> {
        Arc::clone(&self.server) as Arc<dyn Replier>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.server.stop().await;
        Ok(())
    }
}

fn batch_call(server: &Server, native: async_nats::Message, batch: &mut Batch<ReceivedCall>) {
    let address = native.reply.as_ref().map(|reply| reply.as_str());
    let Some(address) = address.filter(|address| server.may_answer(address)) else {
        metrics::counter!("anywire.nats.unanswerable_calls").increment(1);
        tracing::debug!(subject = %native.subject, "a call without an address that may be answered is dropped");
        return;
    };
    let clock = &*server.connection.clock;
    let address = smol_str::SmolStr::new(address);
    let headers = native.headers.as_ref();
    let read = wire::read(&native.subject, native.payload, headers, None, clock);
    let left = read.message.deadline();
    batch.push(ReceivedCall {
        message: read.message.with_reply_to(address),
        tag: server.unanswered.begin(()),
        deadline: left.map(|left| clock.now() + left),
    });
}

/// What pulling and answering share.
struct Server {
    connection: Arc<Connection>,
    inflow: Inflow,
    unanswered: Unanswered,
    tie: usize,
}

impl Server {
    fn may_answer(&self, address: &str) -> bool {
        may_answer(&self.connection.config.inbox_prefix, address)
    }

    /// Takes no more calls. Those that were not begun are sent on: to another server, or back with the news that there is
    /// none.
    async fn stop(&self) {
        for call in self.inflow.stop().await {
            let outbound = OutboundMessage {
                subject: call.subject,
                reply: call.reply,
                payload: call.payload,
                headers: call.headers,
            };
            let _ = self.connection.main.send(outbound).await;
        }
    }
}

/// A peer chooses where we publish: only an inbox is one that may be answered.
pub(crate) fn may_answer(prefix: &str, address: &str) -> bool {
    let is_inbox = |prefix: &str| {
        let rest = address.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
    };
    address.len() <= anywire::MAX_SUBJECT_LEN
        && !address.contains(['*', '>'])
        && (is_inbox("_INBOX") || is_inbox(prefix))
}

impl Replier for Server {
    fn reply(&self, reply: Reply) -> Progress<Result<(), Error>> {
        let Reply {
            tag,
            reply_to,
            correlation_id: _,
            message,
        } = reply;
        let connection = &self.connection;
        let Some(address) = reply_to.filter(|address| self.may_answer(address)) else {
            return Progress::Done(Err(unanswerable()));
        };
        if let Err(stale) = self.unanswered.end(tag) {
            return Progress::Done(Err(stale));
        }
        if let Some(error) = too_large(connection, &message) {
            return Progress::Done(Err(error));
        }
        let outbound = OutboundMessage {
            subject: address.as_str().into(),
            reply: None,
            payload: message.payload().clone(),
            headers: wire::headers(&message, Sending::default()),
        };
        match connection.main.send_now(outbound) {
            Handed::Over(sent) => Progress::Done(sent),
            Handed::Back(outbound) => {
                let connection = Arc::clone(connection);
                Progress::pending(async move { connection.main.send(*outbound).await })
            }
        }
    }
}

impl End for Server {
    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.stop())
    }

    fn renew(&self, _before: Instant) {}

    fn reconnected(&self) {}

    fn clear_hostile(&self) -> BoxFuture<'_, ()> {
        // Nothing comes twice here.
        Box::pin(std::future::ready(()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.connection.untie(self.tie);
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("inflow", &self.inflow)
            .field("unanswered", &self.unanswered)
            .finish_non_exhaustive()
    }
}

fn unanswerable() -> Error {
    Error::new(
        ErrorKind::Denied,
        "the call names an address that no reply may go to; replies go to inboxes alone",
    )
}
