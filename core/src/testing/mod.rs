//! The testing kit: the production app on memory, with a clock that the test owns.

mod recorder;
mod settlement;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

pub(crate) use recorder::Recorder;
pub use recorder::{Outcome, Recorded};
pub use settlement::Settlement;

use crate::app::{RunningApp, TestKit};
use crate::clock::{Clock, ManualClock};
use crate::contract::{CallPattern, EventPattern, EventTarget};
use crate::memory::{self, MemoryBroker};
use crate::payload::{FromPayload, IntoPayload};
use crate::{App, Client, Emit, Error, HandlerError, Message, Router};

/// A production app on the memory transport.
///
/// Every transport of the configuration is mapped to memory and `ANYWIRE_*` URLs are ignored. An emit that nobody takes is
/// recorded instead of refused. The clock stands still: it jumps to the next timer when nothing is queued or running any
/// more and a [`Settlement`] is awaited, and it can be [advanced](Self::advance) by hand.
///
/// ```
/// use anywire::testing::TestApp;
/// use anywire::{App, Result, Router};
///
/// async fn welcome(_name: String) -> Result<()> {
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let app = App::new("greeter").router(Router::new().on_event("user.created", welcome));
/// let test = TestApp::start(app).await?;
/// test.emit("user.created", "Ada").await?;
/// assert_eq!(test.handled("welcome"), 1);
/// # Ok(())
/// # }
/// ```
pub struct TestApp {
    app: RunningApp,
    stubs: parking_lot::Mutex<Vec<RunningApp>>,
    world: Arc<World>,
}

/// What a test owns.
pub(crate) struct World {
    pub(crate) clock: ManualClock,
    pub(crate) broker: MemoryBroker,
    pub(crate) recorder: Arc<Recorder>,
    /// Deliveries that wait for one of the framework's timers.
    pub(crate) waiting: Arc<AtomicUsize>,
}

impl TestApp {
    /// Starts the app on memory.
    ///
    /// # Errors
    /// As [`App::start`].
    pub async fn start(app: App) -> Result<Self, Error> {
        let world = Arc::new(World {
            clock: ManualClock::new(),
            broker: MemoryBroker::new(),
            recorder: Arc::default(),
            waiting: Arc::default(),
        });
        let app = world.adopt(app)?.start().await?;
        Ok(Self {
            app,
            stubs: parking_lot::Mutex::default(),
            world,
        })
    }

    /// Emits an event; awaiting the builder yields when all the work that it caused is done: cascades, retries, delays.
    pub fn emit<P: IntoPayload + ?Sized>(
        &self,
        target: impl EventTarget<P>,
        payload: &P,
    ) -> Settlement {
        Settlement::new(self.client(), Arc::clone(&self.world), |client| {
            client.emit(target, payload)
        })
    }

    /// As [`emit`](Self::emit), with a key, headers or an id: the closure gets a client and returns its emit.
    pub fn emit_with(&self, emit: impl FnOnce(&Client) -> Emit<'_>) -> Settlement {
        Settlement::new(self.client(), Arc::clone(&self.world), emit)
    }

    /// The app's client, for calls and subscriptions.
    #[must_use]
    pub fn client(&self) -> Client {
        self.app.client()
    }

    /// The app.
    pub fn app(&self) -> &RunningApp {
        &self.app
    }

    /// Answers the calls of another service.
    ///
    /// # Errors
    /// Where the app answers them itself.
    pub async fn stub<Q, R, E, T>(
        &self,
        pattern: T,
        answer: impl Fn(Q) -> Result<R, E> + Send + Sync + 'static,
    ) -> Result<(), Error>
    where
        Q: FromPayload,
        R: IntoPayload + Send + 'static,
        E: HandlerError,
        T: CallPattern<Q, R, E>,
    {
        let number = self.stubs.lock().len();
        let route = Router::new().on_call(pattern, move |request: Q| {
            std::future::ready(answer(request))
        });
        let stub = self
            .world
            .adopt(App::new(format!("stub-{number}")).router(route))?
            .start()
            .await?;
        self.stubs.lock().push(stub);
        Ok(())
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        self.world.clock.advance(by);
    }

    /// The time on the test's clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.world.clock.now()
    }

    /// What was emitted to a pattern, decoded, in order.
    ///
    /// # Panics
    /// On a bad pattern, and where a payload does not read as a `P`: both are mistakes of the test.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a contract or a literal reads better at the call than a reference to it"
    )]
    #[must_use]
    pub fn emitted<P: FromPayload>(&self, pattern: impl EventPattern<P>) -> Vec<P> {
        decode(&self.world.recorder.all_emitted(), &pattern)
    }

    /// What was emitted to a pattern and taken by nobody, decoded, in order.
    ///
    /// # Panics
    /// As [`emitted`](Self::emitted).
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a contract or a literal reads better at the call than a reference to it"
    )]
    #[must_use]
    pub fn unrouted<P: FromPayload>(&self, pattern: impl EventPattern<P>) -> Vec<P> {
        decode(&self.world.recorder.all_unrouted(), &pattern)
    }

    /// All outcomes so far, in order.
    #[must_use]
    pub fn outcomes(&self) -> Vec<Recorded> {
        self.world.recorder.outcomes()
    }

    /// How many deliveries the handler has finished well.
    #[must_use]
    pub fn handled(&self, handler: &str) -> usize {
        self.count(handler, Outcome::Handled)
    }

    /// How many attempts of the handler have failed and were tried again.
    #[must_use]
    pub fn retried(&self, handler: &str) -> usize {
        self.count(handler, Outcome::Retried)
    }

    /// How many deliveries the handler has discarded.
    #[must_use]
    pub fn discarded(&self, handler: &str) -> usize {
        self.count(handler, Outcome::Discarded)
    }

    /// How many deliveries of the handler became dead letters.
    #[must_use]
    pub fn dead_lettered(&self, handler: &str) -> usize {
        self.count(handler, Outcome::DeadLettered)
    }

    /// The dead letters of a group, in order.
    #[must_use]
    pub fn dead_letters(&self, group: &str) -> Vec<Message> {
        self.world.broker.dead_letters(group)
    }

    /// Stops the app.
    ///
    /// # Errors
    /// As [`RunningApp::shutdown`].
    pub async fn shutdown(self) -> Result<(), Error> {
        let stubs = std::mem::take(&mut *self.stubs.lock());
        for stub in stubs {
            stub.shutdown().await?;
        }
        self.app.shutdown().await
    }

    fn count(&self, handler: &str, outcome: Outcome) -> usize {
        let outcomes = self.outcomes();
        outcomes
            .iter()
            .filter(|recorded| recorded.handler == handler && recorded.outcome == outcome)
            .count()
    }
}

impl fmt::Debug for TestApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestApp")
            .field("app", &self.app)
            .finish_non_exhaustive()
    }
}

impl World {
    fn adopt(&self, app: App) -> Result<App, Error> {
        let config = app.take_config()?.on_memory();
        let kit = TestKit {
            recorder: Arc::clone(&self.recorder),
            waiting: Arc::clone(&self.waiting),
        };
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        Ok(app
            .for_test(kit, memory::adapter_on(&self.broker), config)
            .clock(clock))
    }
}

fn decode<P: FromPayload>(messages: &[Message], pattern: &impl EventPattern<P>) -> Vec<P> {
    let pattern = pattern.pattern().unwrap_or_else(|error| panic!("{error}"));
    let matching = messages
        .iter()
        .filter(|message| pattern.matches(message.subject()));
    matching
        .map(|message| P::from_payload(message).unwrap_or_else(|error| panic!("{error}")))
        .collect()
}
