//! What a handler may know about its delivery.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::client::{Cause, Client, ClientCore};
use crate::extract::StateMap;
use crate::pattern::publish_subscribe::Native;
use crate::router::HandlerInfo;
use crate::{Headers, Key, Message, MessageId, Subject};

/// A delivery as its handler and its layers see it: the message, where it came from, and which attempt this is.
///
/// Cheap to clone. As an extractor it may stand anywhere after the payload.
///
/// ```
/// use anywire::{Context, Result};
///
/// async fn placed(order: u32, context: Context) -> Result<()> {
///     println!("{order} on {}, attempt {}", context.subject(), context.attempt());
///     Ok(())
/// }
/// # let _ = anywire::Router::new().on_event("shop.placed", placed);
/// ```
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) message: Message,
    pub(crate) scope: Arc<Scope>,
    pub(crate) failed: u32,
    pub(crate) deadline: Option<Instant>,
    pub(crate) native: Option<Native>,
    pub(crate) cancelled: OnceLock<CancellationToken>,
}

/// What all deliveries of one handler share.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) info: Arc<HandlerInfo>,
    pub(crate) client: Arc<ClientCore>,
    pub(crate) states: Arc<StateMap>,
    /// Fires when the grace of a shutdown has passed.
    pub(crate) abandoned: CancellationToken,
}

impl Context {
    pub(crate) fn new(message: Message, scope: Arc<Scope>) -> Self {
        let failed = message.trail().map_or(0, |trail| trail.attempt);
        Self {
            message,
            scope,
            failed,
            deadline: None,
            native: None,
            cancelled: OnceLock::new(),
        }
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The subject that it was sent to.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        self.message.subject()
    }

    /// Its headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.message.headers()
    }

    /// Its id, where it has one.
    #[must_use]
    pub fn id(&self) -> Option<&MessageId> {
        self.message.id()
    }

    /// Its key, where it has one.
    #[must_use]
    pub fn key(&self) -> Option<&Key> {
        self.message.key()
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.failed + 1
    }

    /// The capture `name`, its escapes read back.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<String> {
        let captures = self.scope.info.pattern.captures(self.subject())?;
        captures.get(name).map(Subject::unescape)
    }

    /// The handler that runs.
    #[must_use]
    pub fn handler(&self) -> &HandlerInfo {
        &self.scope.info
    }

    /// When the attempt is given up, for a call whose caller said so.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The vendor's own message, where the adapter hands it out and it is a `T`.
    #[must_use]
    pub fn native<T: std::any::Any>(&self) -> Option<&T> {
        self.native.as_ref().and_then(Native::downcast_ref)
    }

    /// Fires when the message is settled, and when the grace of a shutdown has passed; not when a shutdown begins.
    #[must_use]
    pub fn cancellation(&self) -> CancellationToken {
        self.cancelled
            .get_or_init(|| self.scope.abandoned.child_token())
            .clone()
    }

    /// A client whose messages descend from this one: they carry its trace, and a redelivery emits the same ids.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::caused(&self.scope.client, Cause::new(self))
    }

    /// A value that was given to [`App::state`](crate::App::state).
    #[must_use]
    pub fn state<T: std::any::Any>(&self) -> Option<&T> {
        self.scope.states.get()
    }

    pub(crate) fn capture_at(&self, index: usize) -> Option<&str> {
        self.scope
            .info
            .pattern
            .captures(self.message.subject())?
            .nth(index)
    }

    /// The copy that a handler gets: its token is made now, so that settling reaches it.
    pub(crate) fn for_handler(&self) -> Self {
        let _ = self.cancellation();
        self.clone()
    }

    pub(crate) fn settled(&self) {
        if let Some(token) = self.cancelled.get() {
            token.cancel();
        }
    }
}
