//! A running app.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::{BoxFuture, Either, join_all, select};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::health::{HandlerHealth, Health, TransportHealth};
use crate::client::Client;
use crate::clock::after;
use crate::engine::{Crew, Work};
use crate::{Error, ErrorKind};

/// How long a shutdown waits for what cannot be waited for within the grace, in real time.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// An app that has started: its client, its health, and its end.
///
/// Dropping it without [`shutdown`](Self::shutdown) abandons the handlers that run; what they held is delivered again.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anywire::Result<()> {
/// use anywire::App;
///
/// let app = App::new("shop").start().await?;
/// assert!(app.health().is_ok());
/// app.shutdown().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping a running app abandons its handlers"]
pub struct RunningApp {
    client: Client,
    members: Vec<Box<dyn Member>>,
    workers: JoinSet<()>,
    stopping: CancellationToken,
    /// Fires when the grace has passed, and when the app is dropped.
    abandoned: DropGuard,
    grace: Duration,
}

/// One handler of a running app.
pub(crate) trait Member: Send + Sync {
    fn health(&self) -> HandlerHealth;

    /// Stops pulling, now; what was buffered goes back as the future runs.
    fn stop(&self) -> BoxFuture<'static, Result<(), Error>>;
}

impl RunningApp {
    pub(super) fn new(
        client: Client,
        members: Vec<Box<dyn Member>>,
        workers: JoinSet<()>,
        stopping: CancellationToken,
        abandoned: CancellationToken,
        grace: Duration,
    ) -> Self {
        Self {
            client,
            members,
            workers,
            stopping,
            abandoned: abandoned.drop_guard(),
            grace,
        }
    }

    /// A client of the app's transports.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Fires when the app begins to stop. Cancelling it stops nothing.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.child_token()
    }

    /// Whether messages flow and each handler that should consume does.
    #[must_use]
    pub fn health(&self) -> Health {
        let wires = self.client.core().wires.iter();
        let transports = wires.map(|wire| {
            let status = wire.transport.status().borrow().clone();
            TransportHealth {
                name: wire.name.clone(),
                status,
            }
        });
        Health {
            transports: transports.collect(),
            handlers: self.members.iter().map(|member| member.health()).collect(),
        }
    }

    /// Stops the app: pulls no more, lets handlers finish within `grace` (25 s), settles, flushes, closes.
    ///
    /// What was not finished goes back unacknowledged and is never dead-lettered.
    ///
    /// # Errors
    /// `Timeout` where handlers had to be abandoned; else the first transport's error.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the handlers that still run.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        let clock = Arc::clone(&self.client.core().clock);
        let end = after(clock.now(), self.grace);
        // Nobody pulls any more before waiting handlers are told: what they give back would come straight to them again.
        let stops: Vec<_> = self.members.iter().map(|member| member.stop()).collect();
        self.stopping.cancel();
        let drained = {
            let drain = std::pin::pin!(drain(stops, &mut self.workers));
            matches!(select(drain, clock.sleep_until(end)).await, Either::Left(_))
        };
        self.abandoned.disarm().cancel();
        self.workers.abort_all();
        // A handler that blocks its thread cannot be dropped; nobody waits for it for ever.
        let gone = {
            let gone = std::pin::pin!(async { while self.workers.join_next().await.is_some() {} });
            let limit = std::pin::pin!(tokio::time::sleep(LAST_WAIT));
            matches!(select(gone, limit).await, Either::Left(_))
        };
        self.members.clear();
        let core = self.client.core();
        core.closed.store(true, Ordering::Release);
        let left = end.saturating_duration_since(clock.now()).max(LAST_WAIT);
        let closed = core.wires.close(left).await;
        tracing::info!(app = core.app, drained, "stopped");
        if drained {
            return closed;
        }
        if let Err(error) = closed {
            tracing::warn!(%error, "a transport could not be closed");
        }
        let how = if gone {
            "still ran"
        } else {
            "still block a thread"
        };
        let message = format!(
            "handlers {how} after {:?}; their messages are delivered again",
            self.grace
        );
        Err(Error::new(ErrorKind::Timeout, message).with_operation("shutdown"))
    }

    /// Waits for SIGTERM or Ctrl-C, then shuts down. A second signal exits at once, with status 130.
    #[cfg(feature = "signals")]
    pub(super) async fn run_until(self, mut signals: super::signals::Signals) -> Result<(), Error> {
        let name = signals.next().await;
        tracing::info!(signal = name, "stopping; a second signal exits at once");
        let second = std::pin::pin!(signals.next());
        match select(std::pin::pin!(self.shutdown()), second).await {
            Either::Left((result, _)) => result,
            Either::Right((name, _)) => {
                tracing::warn!(signal = name, "exiting at once");
                std::process::exit(130);
            }
        }
    }
}

/// Waits until the subscriptions have stopped, and then for the workers.
async fn drain(stops: Vec<BoxFuture<'static, Result<(), Error>>>, workers: &mut JoinSet<()>) {
    for stopped in join_all(stops).await {
        if let Err(error) = stopped {
            tracing::warn!(%error, "a subscription could not be stopped");
        }
    }
    while workers.join_next().await.is_some() {}
}

impl fmt::Debug for RunningApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningApp")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

impl<W: Work> Member for Arc<Crew<W>> {
    fn health(&self) -> HandlerHealth {
        HandlerHealth {
            name: self.work().name().to_owned(),
            consuming: self.is_running(),
            stuck: self.work().stuck(),
        }
    }

    fn stop(&self) -> BoxFuture<'static, Result<(), Error>> {
        match Crew::stop(self) {
            Some(source) => W::stop(source),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }
}
