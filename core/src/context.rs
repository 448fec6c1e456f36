//! What a handler may know about its delivery.

use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::Position;
use crate::client::{Cause, Client, ClientCore};
use crate::extract::StateMap;
use crate::pattern::publish_subscribe::Native;
use crate::router::HandlerInfo;
use crate::stream_handler::Ends;
use crate::{Codec, Headers, Key, Message, MessageId, Subject};

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
#[derive(Debug)]
pub struct Context {
    pub(crate) message: Message,
    pub(crate) scope: Arc<Scope>,
    pub(crate) failed: u32,
    /// When the first attempt failed that failed here.
    pub(crate) first_failed: Option<SystemTime>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) native: Option<Native>,
    /// The directions of a streaming call.
    pub(crate) ends: Option<Arc<Ends>>,
    pub(crate) position: Option<Position>,
    /// What the copies that handlers and layers hold share with the engine's own; not made for handlers that take none.
    shared: OnceLock<Arc<Shared>>,
}

/// What all copies of a context share.
#[derive(Debug, Default)]
struct Shared {
    cancelled: OnceLock<CancellationToken>,
    /// Of this attempt: the next one counts its emits anew.
    cause: OnceLock<Arc<Cause>>,
}

/// What all deliveries of one handler share.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) info: Arc<HandlerInfo>,
    pub(crate) client: Arc<ClientCore>,
    pub(crate) states: Arc<StateMap>,
    /// How replies, and what the handler's client sends, are encoded.
    pub(crate) codec: Codec,
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
            ends: None,
            position: None,
            first_failed: None,
            shared: OnceLock::new(),
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
        self.failed.saturating_add(1)
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

    /// Where the message stands in what its wire keeps: to be written down, and to [start](crate::Start::Position) from again.
    /// `None` for a call, for a copy that was sent again, and where the wire keeps nothing.
    #[must_use]
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Fires when the message is settled, and when the grace of a shutdown has passed; not when a shutdown begins.
    #[must_use]
    pub fn cancellation(&self) -> CancellationToken {
        self.token(self.shared()).clone()
    }

    /// A client whose messages descend from this one: they carry its trace, and a redelivery emits the same ids.
    ///
    /// All clients of one attempt count together, so that equal messages get different ids whichever of them emits them.
    #[must_use]
    pub fn client(&self) -> Client {
        let cause = self
            .shared()
            .cause
            .get_or_init(|| Arc::new(Cause::new(self)));
        Client::caused(&self.scope.client, Arc::clone(cause))
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

    pub(crate) fn settled(&self) {
        // Who shares nothing with us cannot ask for the token any more.
        if let Some(shared) = self.shared.get()
            && (Arc::strong_count(shared) > 1 || shared.cancelled.get().is_some())
        {
            self.token(shared).cancel();
        }
    }

    /// One more attempt has failed, at `now`. The next one has the same token, and counts its emits from the start.
    pub(crate) fn fail(&mut self, now: SystemTime) {
        self.failed = self.failed.saturating_add(1);
        self.first_failed.get_or_insert(now);
        if let Some(shared) = self.shared.take() {
            let cancelled = OnceLock::from(self.token(&shared).clone());
            self.shared = OnceLock::from(Arc::new(Shared {
                cancelled,
                cause: OnceLock::new(),
            }));
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        self.shared.get_or_init(Arc::default)
    }

    fn token<'a>(&self, shared: &'a Shared) -> &'a CancellationToken {
        shared
            .cancelled
            .get_or_init(|| self.scope.abandoned.child_token())
    }
}

/// A copy shares its token and its client's count with the original.
impl Clone for Context {
    fn clone(&self) -> Self {
        Self {
            message: self.message.clone(),
            scope: Arc::clone(&self.scope),
            failed: self.failed,
            first_failed: self.first_failed,
            deadline: self.deadline,
            native: self.native.clone(),
            ends: self.ends.clone(),
            position: self.position.clone(),
            shared: OnceLock::from(Arc::clone(self.shared())),
        }
    }
}
