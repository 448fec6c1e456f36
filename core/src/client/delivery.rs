//! One delivery of a subscription, to be settled by hand.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::Client;
use super::subscribe::SubscriptionShared;
use crate::context::Context;
use crate::engine::{LONGEST, copies};
use crate::pattern::Tag;
use crate::pattern::publish_subscribe::Settlement;
use crate::{Error, Message, Position, Support};

/// A received message that must be settled. Settling consumes it; one that is dropped goes back and is delivered again.
///
/// It derefs to its payload.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anywire::Result<()> {
/// use std::time::Duration;
///
/// # let app = anywire::App::new("shop").start().await?;
/// # let client = app.client();
/// let mut orders = client.subscribe::<u32>("shop.placed").group("audit").await?;
/// client.emit("shop.placed", &7).await?;
///
/// let delivery = orders.next().await.unwrap()?;
/// assert_eq!(*delivery, 7);
/// delivery.retry_after(Duration::from_millis(1)).await?; // it comes again
///
/// let again = orders.next().await.unwrap()?;
/// assert_eq!(again.take().await?, 7);
/// # Ok(())
/// # }
/// ```
#[must_use = "a delivery that is dropped is delivered again"]
pub struct Delivery<P> {
    payload: Option<P>,
    context: Context,
    tag: Tag,
    shared: Arc<SubscriptionShared>,
    settled: bool,
}

impl<P> Delivery<P> {
    pub(super) fn new(
        payload: P,
        context: Context,
        tag: Tag,
        shared: Arc<SubscriptionShared>,
    ) -> Self {
        Self {
            payload: Some(payload),
            context,
            tag,
            shared,
            settled: false,
        }
    }

    /// The message as it came.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.context.message
    }

    /// What is known of the delivery: captures, headers, attempt.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Where the message stands in what its wire keeps: to be written down, and to [start](crate::Start::Position) from again.
    /// `None` for a copy that was sent again, and where the wire keeps nothing.
    #[must_use]
    pub fn position(&self) -> Option<&Position> {
        self.context.position()
    }

    /// A client whose messages descend from this delivery.
    #[must_use]
    pub fn client(&self) -> Client {
        self.context.client()
    }

    /// Done: the wire may forget it. Completes when the wire has been told.
    ///
    /// # Errors
    /// `Stale` where the delivery is no longer ours: it is delivered again.
    pub async fn ack(mut self) -> Result<(), Error> {
        self.settle(Settlement::Ack).await
    }

    /// Done, and here is the payload.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn take(mut self) -> Result<P, Error> {
        self.settle(Settlement::Ack).await?;
        let gone = || Error::new(crate::ErrorKind::Closed, "the payload was taken before");
        self.payload.take().ok_or_else(gone)
    }

    /// Gives it back, to be delivered again at once.
    ///
    /// # Errors
    /// `Stale` where the delivery is no longer ours: it is delivered again anyway.
    pub async fn retry(mut self) -> Result<(), Error> {
        self.settle(Settlement::Return).await
    }

    /// Has it delivered again after a while, 2^27 s (four years) at the most.
    ///
    /// # Errors
    /// As [`retry`](Self::retry); `Unsupported` for a private copy where the wire cannot hold one.
    pub async fn retry_after(mut self, delay: Duration) -> Result<(), Error> {
        let delay = delay.min(LONGEST);
        if self.shared.wire.capabilities.return_after == Support::Native {
            return self.settle(Settlement::ReturnAfter(delay)).await;
        }
        copies::publish_retry(
            &self.shared.wire,
            &self.context,
            &self.shared.spec.subscription,
            delay,
        )
        .await?;
        self.settle(Settlement::Ack).await
    }

    /// Puts it among the group's dead letters, then acknowledges it. A private copy is acknowledged.
    ///
    /// # Errors
    /// Where the dead letter could not be stored: the delivery goes back.
    pub async fn dead_letter(mut self, reason: impl Into<String>) -> Result<(), Error> {
        if let Some(group) = self.shared.spec.subscription.group.clone() {
            copies::publish_dead_letter(&self.shared.wire, &self.context, &group, &reason.into())
                .await?;
        }
        self.settle(Settlement::Ack).await
    }

    /// Sends a dead letter back to the subscription that failed it, then acknowledges it here.
    ///
    /// # Errors
    /// As [`Client::redrive`]: the dead letter stays.
    pub async fn redrive(mut self) -> Result<(), Error> {
        copies::redrive(&self.context.scope.client, &self.context.message).await?;
        self.settle(Settlement::Ack).await
    }

    async fn settle(&mut self, settlement: Settlement) -> Result<(), Error> {
        self.settled = true;
        self.context.settled();
        self.shared.settle(self.tag, settlement).await
    }
}

impl<P> Deref for Delivery<P> {
    type Target = P;

    fn deref(&self) -> &P {
        match &self.payload {
            Some(payload) => payload,
            // Only `take` empties it, and it consumes the delivery.
            None => unreachable!("the payload is there until the delivery is consumed"),
        }
    }
}

impl<P> Drop for Delivery<P> {
    fn drop(&mut self) {
        if !self.settled {
            self.shared.give_back(self.tag);
        }
    }
}

impl<P> fmt::Debug for Delivery<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.context.message)
            .finish_non_exhaustive()
    }
}
