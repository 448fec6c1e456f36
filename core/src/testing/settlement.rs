//! Waiting for all the work that one emit causes.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::{BoxFuture, Either, select};
use tokio::sync::watch;

use super::World;
use crate::client::Options;
use crate::clock::Clock;
use crate::message::Guard;
use crate::{Client, Emit, Error, ErrorKind, Message, Receipt};

/// In real time, how long nothing may happen while work is still running before a test is told so.
const PATIENCE: Duration = Duration::from_secs(30);

/// An emit in a test. Awaiting it publishes the event and waits until all the work that it caused is done.
///
/// That is counted along the causal chain: every message that a handler emits through its [`Client`] keeps the count up,
/// a retry and a delayed copy too. The clock jumps to the next timer whenever nothing else is left to happen.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anywire::Result<()> {
/// use anywire::testing::TestApp;
/// use anywire::{App, Client, Result, Router};
///
/// async fn placed(count: u32, client: Client) -> Result<()> {
///     client.emit("billing.charge", &(count * 250)).await?;
///     Ok(())
/// }
/// async fn charge(_cents: u32) -> Result<()> {
///     Ok(())
/// }
/// let router = Router::new().on_event("shop.placed", placed).on_event("billing.charge", charge);
/// let test = TestApp::start(App::new("shop").router(router)).await?;
/// test.emit("shop.placed", &2).await?; // both handlers have ended
/// assert_eq!(test.handled("charge"), 1);
/// # Ok(())
/// # }
/// ```
#[must_use = "an event is emitted when the settlement is awaited"]
pub struct Settlement {
    client: Client,
    world: Arc<World>,
    /// Names the emit in the error of a test that hangs.
    message: Result<Message, Error>,
    options: Options,
}

impl Settlement {
    pub(super) fn new(
        client: Client,
        world: Arc<World>,
        emit: impl FnOnce(&Client) -> Emit<'_>,
    ) -> Self {
        let (message, options) = emit(&client).into_parts();
        Self {
            client,
            world,
            message,
            options,
        }
    }

    async fn run(self) -> Result<Receipt, Error> {
        let mut message = self.message?;
        let subject = message.subject().clone();
        let (guard, mut done) = watch::channel(());
        message.set_guard(Some(Guard(Arc::new(guard))));
        let receipt = self
            .world
            .drive(Emit::of_parts(&self.client, message, self.options).into_future())
            .await?;
        let settled = self.world.drive(async {
            // The channel closes with the last message that holds the guard.
            while done.changed().await.is_ok() {}
        });
        let limit = pin!(tokio::time::sleep(PATIENCE));
        match select(pin!(settled), limit).await {
            Either::Left(_) => Ok(receipt),
            Either::Right(_) => {
                let message = format!(
                    "the work that it caused still ran after {PATIENCE:?}; does a handler hang?"
                );
                Err(Error::new(ErrorKind::Timeout, message).with_context("subject", &subject))
            }
        }
    }
}

impl IntoFuture for Settlement {
    type Output = Result<Receipt, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl fmt::Debug for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settlement")
            .field("message", &self.message)
            .finish_non_exhaustive()
    }
}

impl World {
    /// Runs `future`, and moves the clock whenever only the framework's timers are left.
    pub(super) async fn drive<F: Future>(&self, future: F) -> F::Output {
        let changed = self.broker.watch();
        let mut future = pin!(future);
        loop {
            // Let everything that is ready run; what a broker's change wakes runs before us.
            let step = pin!(async {
                for _ in 0..64 {
                    tokio::task::yield_now().await;
                }
            });
            future = match select(future, step).await {
                Either::Left((output, _)) => return output,
                Either::Right(((), future)) => future,
            };
            if self.is_idle() && self.clock.advance_to_next() {
                continue;
            }
            let change = pin!(changed.notified());
            let pause = pin!(tokio::time::sleep(Duration::from_millis(1)));
            future = match select(future, select(change, pause)).await {
                Either::Left((output, _)) => return output,
                Either::Right((_, future)) => future,
            };
        }
    }

    /// Nothing is queued, and what is unsettled waits for a timer of ours.
    fn is_idle(&self) -> bool {
        let load = self.broker.load(self.clock.now());
        load.ready == 0 && load.unsettled == self.waiting.load(Ordering::Acquire)
    }
}
