//! Streaming calls over a wire that has calls and inboxes. The opening is a call to the subject; every later frame goes from
//! inbox to inbox.

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{BoxFuture, Either, select};
use smol_str::SmolStr;

use super::entrance::Incoming;
use super::exchange::Exchange;
use super::frame::{End, Frame, Side};
use super::line::{Line, first_credit};
use super::{Duplex, IncomingStreams, Opening, Streamer};
use crate::clock::Clock;
use crate::pattern::Progress;
use crate::pattern::request_reply::{CallSpec, Requester, Responder};
use crate::{Error, ErrorKind, Message, RemoteError, Subject};

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
        Self {
            requester,
            responder,
            exchange: Exchange::new(post, clock, heartbeat),
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
            let incoming = Incoming::new(calls?, Arc::clone(&self.exchange), spec.window);
            Ok(Box::new(incoming) as Box<dyn IncomingStreams>)
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
    if exchange.remember(&line)?.is_some() {
        let text = "another stream has the number that was drawn for this one";
        return Err(Error::new(ErrorKind::Rejected, text));
    }
    let left = until.map(|until| until.saturating_duration_since(exchange.clock.now()));
    let frame = Frame::Open {
        stream: end.stream,
        sends,
        credit: first_credit(),
        left,
        heartbeat: exchange.heartbeat,
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
        Some(Frame::Accept {
            run,
            credit,
            heartbeat,
            address,
        }) => {
            line.meet(run, (address, heartbeat), credit);
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
