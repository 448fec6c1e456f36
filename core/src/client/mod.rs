//! The sending side: events, calls and subscriptions of one's own.

mod cause;
mod delay;
mod delivery;
mod emit;
mod emit_all;
mod request;
mod stream;
mod subscribe;
mod wires;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) use cause::Cause;
pub use delivery::Delivery;
pub(crate) use emit::Options;
pub use emit::{Emit, EmitFuture};
pub use emit_all::{EmitAll, EmitAllError};
pub(crate) use request::error_reply;
pub use request::{Request, RequestFuture};
pub use stream::{Both, Open, Replies, Requests};
pub use subscribe::{Subscribe, Subscription};
pub(crate) use wires::{SubjectRoute, Wire, Wires};

use crate::clock::Clock;
use crate::contract::{CallTarget, EventPattern, EventTarget, Many, One, StreamTarget};
use crate::pattern::publish_subscribe::SubscriptionId;
use crate::payload::{FromPayload, IntoPayload};
use crate::telemetry::ClientMetrics;
use crate::testing::Recorder;
use crate::{Codec, Error, ErrorKind, Inbound, Message, Pattern, Start};

/// Emits events, makes calls and opens subscriptions, over the transports that the configuration names.
///
/// Cheap to clone and safe to share. A handler that takes one gets a client whose messages descend from the delivery:
/// they carry its trace, and a redelivered handler emits the same ids, so that deduplication works.
///
/// ```
/// use anywire::{App, Client, Result, Router};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// async fn double(number: u32) -> Result<u32> {
///     Ok(number * 2)
/// }
/// let app = App::new("math").router(Router::new().on_call("math.double", double)).url("memory://").start().await?;
/// let answer: u32 = app.client().request("math.double", &21).await?;
/// assert_eq!(answer, 42);
/// # app.shutdown().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    core: Arc<ClientCore>,
    cause: Option<Arc<Cause>>,
}

/// What all clients of one app share.
pub(crate) struct ClientCore {
    pub(crate) app: String,
    pub(crate) codec: Codec,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) wires: Wires,
    pub(crate) emit_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) dead_letter_retention: Duration,
    pub(crate) metrics: ClientMetrics,
    pub(crate) recorder: Option<Arc<Recorder>>,
    pub(crate) closed: AtomicBool,
}

impl Client {
    /// Connects a program that only sends: the app's configuration and adapters, without its handlers.
    ///
    /// The connections close when [`close`](Self::close) is called.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// use anywire::{App, Client, Unrouted};
    ///
    /// let client = Client::connect(App::new("probe").url("memory://")).await?;
    /// let receipt = client.emit("probe.alive", &true).unrouted(Unrouted::Ignore).await?;
    /// assert!(receipt.is_unrouted());
    /// client.close().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`App::start`](crate::App::start).
    pub async fn connect(app: crate::App) -> Result<Self, Error> {
        app.connect().await
    }

    /// Publishes an event. Completes when the transport's guarantee is met, or by its deadline (10 s).
    ///
    /// The target is a subject or a contract; the payload is encoded now. Nothing is sent before the builder is awaited.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// # let app = anywire::App::new("shop").start().await?;
    /// # let client = app.client();
    /// let mut placed = client.subscribe::<u32>("shop.*.placed").await?;
    /// client.emit("shop.eu.placed", &7).key("c-17").header("tenant", "blue").await?;
    /// assert_eq!(placed.next().await.unwrap()?.take().await?, 7);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `NoRoute` where nobody takes it, `Overloaded` where a queue stayed full, `OutcomeUnknown` where it cannot be known
    /// whether it was stored, `Codec`, `TooLarge`, `Config`, `Closed`.
    ///
    /// # Cancel safety
    /// A dropped future may or may not have published the event.
    pub fn emit<P: IntoPayload + ?Sized>(
        &self,
        target: impl EventTarget<P>,
        payload: &P,
    ) -> Emit<'_> {
        Emit::new(self, target.subject(), payload)
    }

    /// Publishes many events to one target, pipelined.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// # let app = anywire::App::new("shop").start().await?;
    /// # let client = app.client();
    /// let _ticks = client.subscribe::<u32>("metrics.tick").await?;
    /// let receipts = client.emit_all("metrics.tick", &[1, 2, 3]).await?;
    /// assert_eq!(receipts.len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// An [`EmitAllError`] that holds each entry's result, where any of them failed.
    ///
    /// # Cancel safety
    /// A dropped future may have published any of the events.
    pub fn emit_all<'p, P: IntoPayload + 'p>(
        &self,
        target: impl EventTarget<P>,
        payloads: impl IntoIterator<Item = &'p P>,
    ) -> EmitAll<'_> {
        EmitAll::new(self, target.subject(), payloads)
    }

    /// Publishes a message as it is: its id, key, headers and content type are kept. For bridges.
    ///
    /// # Errors
    /// As [`emit`](Self::emit).
    pub fn forward(&self, message: Message) -> Emit<'_> {
        Emit::forward(self, message)
    }

    /// Makes a call and waits for its reply, at most until its deadline (10 s).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// use std::time::Duration;
    /// use anywire::ErrorKind;
    ///
    /// # let app = anywire::App::new("shop").start().await?;
    /// # let client = app.client();
    /// let quote = client.request::<_, u32>("shop.quote", "tea").timeout(Duration::from_secs(2)).await;
    /// assert_eq!(quote.unwrap_err().kind(), ErrorKind::NoRoute); // nobody answers here
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Remote` with what the handler answered, `NoRoute` at once where nobody listens and the wire can tell, `Timeout`.
    ///
    /// # Cancel safety
    /// Dropping the future gives the call up; its handler may or may not run.
    pub fn request<Q, R>(&self, target: impl CallTarget<Q, R>, request: &Q) -> Request<'_, R>
    where
        Q: IntoPayload + ?Sized,
        R: FromPayload,
    {
        Request::new(self, target.subject(), request)
    }

    /// Opens a streaming call with one request and many replies; awaiting it yields them, once the handler has accepted.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// use anywire::{App, Result, Router};
    /// use futures::{Stream, StreamExt, stream};
    ///
    /// fn count(to: u32) -> impl Stream<Item = Result<u32>> {
    ///     stream::iter((1..=to).map(Ok))
    /// }
    /// let app = App::new("math").router(Router::new().on_stream("math.count", count)).start().await?;
    /// let numbers = app.client().stream::<_, u32>("math.count", &3).await?;
    /// assert_eq!(numbers.map(|number| number.unwrap()).collect::<Vec<_>>().await, [1, 2, 3]);
    /// # app.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Remote` where the handler refuses, `NoRoute` at once where nobody listens and the wire can tell, `Timeout` where it
    /// was not accepted in time, `Unsupported` where the transport has no streaming calls or the subject answers calls.
    ///
    /// # Cancel safety
    /// Dropping the future gives the call up.
    pub fn stream<Q, R>(
        &self,
        target: impl StreamTarget<Q, Many<R>>,
        request: &Q,
    ) -> Open<'_, Replies<R>>
    where
        Q: IntoPayload + ?Sized,
        R: FromPayload,
    {
        Open::with_request(self, target.subject(), request)
    }

    /// Opens a streaming call with many requests and one reply.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// use anywire::{App, Inbound, Result, Router};
    ///
    /// async fn sum(mut numbers: Inbound<u32>) -> Result<u32> {
    ///     let mut sum = 0;
    ///     while let Some(number) = numbers.next().await {
    ///         sum += number?;
    ///     }
    ///     Ok(sum)
    /// }
    /// let app = App::new("math").router(Router::new().on_stream("math.sum", sum)).start().await?;
    /// let mut upload = app.client().upload::<u32, u32>("math.sum").await?;
    /// upload.send(&20).await?;
    /// upload.send(&22).await?;
    /// assert_eq!(upload.finish().await?, 42);
    /// # app.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`stream`](Self::stream). A handler that refuses does so in the reply.
    ///
    /// # Cancel safety
    /// Dropping the future gives the call up.
    pub fn upload<T, R>(
        &self,
        target: impl StreamTarget<Inbound<T>, One<R>>,
    ) -> Open<'_, Requests<T, R>>
    where
        T: IntoPayload + 'static,
        R: FromPayload,
    {
        Open::with_items(self, target.subject())
    }

    /// Opens a streaming call with many requests and many replies, each direction with an end of its own.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// use anywire::{App, Inbound, Result, Router};
    /// use futures::{Stream, StreamExt};
    ///
    /// fn double(numbers: Inbound<u32>) -> impl Stream<Item = Result<u32>> {
    ///     numbers.map(|number| Ok(number? * 2))
    /// }
    /// let app = App::new("math").router(Router::new().on_stream("math.double", double)).start().await?;
    /// let (mut numbers, mut doubles) = app.client().duplex::<u32, u32>("math.double").await?;
    /// numbers.send(&21).await?;
    /// assert_eq!(doubles.next().await.unwrap()?, 42);
    /// numbers.finish().await?;
    /// assert!(doubles.next().await.is_none());
    /// # app.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`stream`](Self::stream). A handler that refuses does so before its first reply.
    ///
    /// # Cancel safety
    /// Dropping the future gives the call up.
    pub fn duplex<T, R>(
        &self,
        target: impl StreamTarget<Inbound<T>, Many<R>>,
    ) -> Open<'_, Both<T, R>>
    where
        T: IntoPayload + 'static,
        R: FromPayload,
    {
        Open::with_items(self, target.subject())
    }

    /// Listens to a pattern: with a group as one of its consumers, without one as a private copy that leaves nothing
    /// behind.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// # let app = anywire::App::new("shop").start().await?;
    /// # let client = app.client();
    /// let mut orders = client.subscribe::<String>("shop.*.placed").group("audit").await?;
    /// client.emit("shop.eu.placed", "tea").await?;
    /// if let Some(delivery) = orders.next().await {
    ///     let delivery = delivery?;
    ///     assert_eq!(delivery.context().subject().as_str(), "shop.eu.placed");
    ///     delivery.ack().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a contract or a literal reads better at the call than a reference to it"
    )]
    pub fn subscribe<P: FromPayload>(&self, pattern: impl EventPattern<P>) -> Subscribe<'_, P> {
        Subscribe::new(self, pattern.pattern())
    }

    /// Sends a dead letter back to the subscription that failed it, and to no other, its attempts reset.
    ///
    /// # Errors
    /// `Config` where the message is no dead letter or came from a broadcast subscription; else as [`emit`](Self::emit).
    pub async fn redrive(&self, dead_letter: &Message) -> Result<(), Error> {
        crate::engine::copies::redrive(&self.core, dead_letter).await
    }

    /// Moves a group, so that its next member begins at `start`: back to handle events again, or forward to pass some by. It
    /// moves the one subscription of the group to `pattern`; what lies beyond either end of what is kept is that end. What waits for a retry
    /// is left alone.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// use anywire::{App, Config, Start};
    ///
    /// let config = Config::from_toml("url = 'memory://'\n[transports.main.memory]\nhistory = 1000")?;
    /// let app = App::new("shop").config(config).start().await?;
    /// let client = app.client();
    /// let mut audit = client.subscribe::<u32>("shop.placed").group("audit").await?;
    /// client.emit("shop.placed", &7).await?;
    /// audit.next().await.unwrap()?.ack().await?;
    /// audit.stop().await?;
    ///
    /// client.reset_group("audit", "shop.placed", Start::Earliest).await?;
    /// let mut audit = client.subscribe::<u32>("shop.placed").group("audit").await?;
    /// assert_eq!(audit.next().await.unwrap()?.take().await?, 7);
    /// # app.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Rejected` while the group has members; `NotFound` where there is no such subscription; `Unsupported` where the wire
    /// keeps nothing.
    ///
    /// # Cancel safety
    /// A dropped future may have moved the group.
    pub async fn reset_group(
        &self,
        group: &str,
        pattern: &str,
        start: impl Into<Start>,
    ) -> Result<(), Error> {
        let reset = async {
            self.core.check_open()?;
            let id = SubscriptionId::new(group, Pattern::parse_any(pattern)?);
            let route = self.core.wires.route_of_pattern(&id.pattern);
            let subscriber = &self.core.wires.wire(route).subscriber;
            subscriber.reset(&id, &start.into()).await
        };
        reset
            .await
            .map_err(|error: Error| error.with_operation("reset_group"))
    }

    /// Flushes and closes the connections of a client made by [`connect`](Self::connect).
    ///
    /// # Errors
    /// Where a transport could not be closed in 5 s.
    pub async fn close(&self) -> Result<(), Error> {
        self.core.closed.store(true, Ordering::Release);
        self.core.wires.close(Duration::from_secs(5)).await
    }

    pub(crate) fn new(core: Arc<ClientCore>) -> Self {
        Self { core, cause: None }
    }

    pub(crate) fn caused(core: &Arc<ClientCore>, cause: Arc<Cause>) -> Self {
        Self {
            core: Arc::clone(core),
            cause: Some(cause),
        }
    }

    pub(crate) fn core(&self) -> &Arc<ClientCore> {
        &self.core
    }

    pub(crate) fn cause(&self) -> Option<&Cause> {
        self.cause.as_deref()
    }

    pub(crate) fn codec(&self) -> Codec {
        self.cause().map_or(self.core.codec, Cause::codec)
    }

    /// The native door of an adapter: the transport that the configuration calls `name`.
    #[must_use]
    pub fn transport(&self, name: &str) -> Option<Arc<dyn crate::transport::Transport>> {
        self.core
            .wires
            .by_name(name)
            .map(|wire| Arc::clone(&wire.transport))
    }
}

impl ClientCore {
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the client is closed"));
        }
        Ok(())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.fmt(f)
    }
}

impl fmt::Debug for ClientCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("app", &self.app)
            .field("wires", &self.wires)
            .finish_non_exhaustive()
    }
}
