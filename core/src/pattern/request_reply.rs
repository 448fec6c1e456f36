//! Request/reply: calls with one reply each. At most once: no call is ever retried or redelivered by the serving side.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_trait::async_trait;
use smol_str::SmolStr;

pub use super::unanswered::Unanswered;
use super::{Batch, Progress, PullResult, Tag};
use crate::{Error, Message, Pattern};

/// Makes calls.
pub trait Requester: fmt::Debug + Send + Sync {
    /// Sends a request and waits for its reply.
    ///
    /// The adapter
    /// - may be called concurrently, and must use one reply address for all calls of a client;
    /// - must end by `deadline` with exactly one result: [`Timeout`](crate::ErrorKind::Timeout) when it passes;
    /// - must answer [`NoRoute`](crate::ErrorKind::NoRoute) at once where the wire tells that nobody listens;
    /// - must take only a reply to a pending call, once, and drop any other, counted and without a flood of logs;
    /// - must not send the request twice.
    ///
    /// A reply that is an error is a message with an [`error_code`](Message::error_code), not an `Err`. Dropping the
    /// future gives the call up and leaks nothing.
    fn request(&self, message: Message, deadline: Instant) -> Progress<Result<Message, Error>>;
}

/// Answers calls.
#[async_trait]
pub trait Responder: fmt::Debug + Send + Sync {
    /// Serves patterns; one result each, in order, and only when calls to it reach us.
    ///
    /// All who serve a pattern, in whatever app, share its calls.
    async fn serve(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingCalls>, Error>>;
}

/// The calls to one pattern.
#[async_trait]
pub trait IncomingCalls: fmt::Debug + Send {
    /// Pulls at most [`Batch::room`] calls. As [`Incoming::poll_batch`](super::publish_subscribe::Incoming::poll_batch).
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedCall>,
    ) -> Poll<PullResult>;

    /// The way back. Outlives the serving, so that running calls can be answered while it stops.
    fn replier(&self) -> Arc<dyn Replier>;

    /// Stops serving. Calls that were not pulled go to somebody else or fail at their callers.
    async fn stop(&mut self) -> Result<(), Error>;
}

/// Sends replies.
pub trait Replier: fmt::Debug + Send + Sync {
    /// Sends one reply and tells whether the wire took it.
    ///
    /// The adapter must send it only where the wire's replies may go: an address in the request that could be anything
    /// else (another handler's subject, a wildcard, a broker's own) must be refused when the call is received.
    fn reply(&self, reply: Reply) -> Progress<Result<(), Error>>;
}

/// What serving a pattern needs. An adapter destructures it in full.
#[derive(Clone, Debug)]
pub struct CallSpec {
    /// What is answered.
    pub pattern: Pattern,
    /// The most calls that may be unanswered at once.
    pub window: usize,
    /// Whether the handler takes the items of its callers: always `false` for calls, which have one request.
    pub items: bool,
}

impl CallSpec {
    /// A spec with a window of 256.
    #[must_use]
    pub fn new(pattern: Pattern) -> Self {
        Self {
            pattern,
            window: 256,
            items: false,
        }
    }

    /// Says that the handler takes the items of its callers.
    #[must_use]
    pub fn with_items(mut self, items: bool) -> Self {
        self.items = items;
        self
    }

    /// Sets the most calls that may be unanswered at once; at least 1.
    #[must_use]
    pub fn with_window(mut self, window: usize) -> Self {
        self.window = window.max(1);
        self
    }
}

/// A call that was received.
#[derive(Debug)]
pub struct ReceivedCall {
    /// The request.
    pub message: Message,
    /// Names it when it is answered.
    pub tag: Tag,
    /// When the caller gives up, on our clock; `None` where it did not say.
    pub deadline: Option<Instant>,
}

/// An answer on its way back. An adapter destructures it in full.
#[derive(Debug)]
pub struct Reply {
    /// The call it answers.
    pub tag: Tag,
    /// Where the caller asked for it, as it stood in the request.
    pub reply_to: Option<SmolStr>,
    /// The request's correlation id.
    pub correlation_id: Option<SmolStr>,
    /// The answer. Its subject is the request's.
    pub message: Message,
}
