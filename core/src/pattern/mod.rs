//! The patterns of the mission, one module each: the object-safe traits that an adapter implements.
//!
//! Users never hold these traits; they hold [`App`](crate::App), [`Client`](crate::Client) and
//! [`Delivery`](crate::Delivery). Every trait is batch-shaped and without default bodies, so that a wrapper that forgets
//! to forward does not compile.

pub mod publish_subscribe;
pub mod request_reply;
mod start;
pub mod streaming;
mod unanswered;

use std::fmt;
use std::future::Future;

use futures::future::BoxFuture;

/// An operation that an adapter often finishes on the spot: no allocation where it did.
///
/// `Done` holds the answer; `Pending` is a future for the cases that must wait.
///
/// ```
/// use anywire::pattern::Progress;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// assert_eq!(Progress::Done(1).wait().await, 1);
/// assert_eq!(Progress::pending(async { 2 }).wait().await, 2);
/// # }
/// ```
pub enum Progress<T> {
    /// Finished already.
    Done(T),
    /// Has to wait. Dropping the future gives the operation up; what was handed over may or may not happen.
    Pending(BoxFuture<'static, T>),
}

impl<T> Progress<T> {
    /// An operation that has to wait.
    pub fn pending(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self::Pending(Box::pin(future))
    }
}

impl<T: Send> Progress<T> {
    /// Waits for the answer.
    pub async fn wait(self) -> T {
        match self {
            Self::Done(value) => value,
            Self::Pending(future) => future.await,
        }
    }
}

impl<T> fmt::Debug for Progress<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done(_) => "Done",
            Self::Pending(_) => "Pending",
        })
    }
}

/// Names a delivery to the transport that made it.
///
/// `epoch` tells apart what `slot` meant before: a reconnect, a rebalance, an earlier use of the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// The adapter's own number for the delivery.
    pub slot: u64,
    /// The generation that the number belongs to.
    pub epoch: u64,
}

/// Where an adapter puts what it pulled. The buffer is reused, so pulling allocates nothing once it has grown.
///
/// ```
/// use anywire::pattern::Batch;
///
/// let mut batch = Batch::new(2);
/// batch.push("one");
/// assert_eq!((batch.len(), batch.room()), (1, 1));
/// assert_eq!(batch.drain().collect::<Vec<_>>(), ["one"]);
/// assert_eq!(batch.room(), 2);
/// ```
#[derive(Debug)]
pub struct Batch<T> {
    items: Vec<T>,
    room: usize,
}

impl<T> Batch<T> {
    /// A batch that takes at most `room` items.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self {
            items: Vec::with_capacity(room.min(256)),
            room,
        }
    }

    pub(crate) const fn empty() -> Self {
        Self {
            items: Vec::new(),
            room: 0,
        }
    }

    /// How many more items may be pushed. An adapter must not hand over more: the rest stays with it.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room - self.items.len().min(self.room)
    }

    /// Adds an item.
    pub fn push(&mut self, item: T) {
        debug_assert!(
            self.room() > 0,
            "an adapter pushed more than it was asked for"
        );
        self.items.push(item);
    }

    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The items.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter()
    }

    /// Takes the items out and asks for at most `room` the next time.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        self.items.drain(..)
    }

    /// Says how many items the next pull may bring.
    pub fn set_room(&mut self, room: usize) {
        self.room = room;
    }
}

/// What a pull ended with.
///
/// An `Err` whose error is retryable is news (the connection was lost, the adapter is at it); pulling goes on. Any other
/// error, and `Ok(Pulled::End)`, is the end.
pub type PullResult = Result<Pulled, crate::Error>;

/// The good ends of a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// At least one item was pushed.
    Some,
    /// Nothing will come any more: the subscription was stopped or the transport closed.
    End,
}

/// Waits for the next pull of an [`Incoming`](publish_subscribe::Incoming): a helper for programs that drive one by hand.
///
/// # Errors
/// As [`PullResult`].
///
/// # Cancel safety
/// Nothing is lost when the future is dropped: what was pulled is in `batch`.
pub async fn pull(
    incoming: &mut dyn publish_subscribe::Incoming,
    batch: &mut Batch<publish_subscribe::Received>,
) -> PullResult {
    std::future::poll_fn(|cx| incoming.poll_batch(cx, batch)).await
}

/// As [`pull`], for calls.
///
/// # Errors
/// As [`PullResult`].
///
/// # Cancel safety
/// Nothing is lost when the future is dropped: what was pulled is in `batch`.
pub async fn pull_calls(
    incoming: &mut dyn request_reply::IncomingCalls,
    batch: &mut Batch<request_reply::ReceivedCall>,
) -> PullResult {
    std::future::poll_fn(|cx| incoming.poll_batch(cx, batch)).await
}
