//! Subscriptions that a program reads itself.

use std::collections::VecDeque;
use std::fmt;
use std::future::{IntoFuture, poll_fn, ready};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use futures::Stream;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{Client, ClientCore, Delivery, Wire};
use crate::context::{Context, Scope};
use crate::engine::copies;
use crate::extract::StateMap;
use crate::failure::one_line;
use crate::pattern::publish_subscribe::{
    Incoming, Order, Received, Settle, SettleBatch, Settlement, Spec, SubscriptionId, no_history,
};
use crate::pattern::{Batch, Pulled};
use crate::payload::FromPayload;
use crate::router::{HandlerInfo, HandlerKind};
use crate::{Error, ErrorKind, Guarantee, Pattern, Start, Until};

/// The default of [`Subscribe::window`].
const WINDOW: usize = 64;

/// A subscription to be opened; awaiting it opens it.
#[must_use = "a subscription is opened when the builder is awaited"]
pub struct Subscribe<'a, P> {
    client: &'a Client,
    pattern: Result<Pattern, Error>,
    group: Option<String>,
    start: Option<Start>,
    until: Option<Until>,
    order: Order,
    guarantee: Option<Guarantee>,
    window: usize,
    payload: PhantomData<fn() -> P>,
}

impl<'a, P: FromPayload> Subscribe<'a, P> {
    pub(super) fn new(client: &'a Client, pattern: Result<Pattern, Error>) -> Self {
        Self {
            client,
            pattern,
            group: None,
            start: None,
            until: None,
            order: Order::None,
            guarantee: None,
            window: WINDOW,
            payload: PhantomData,
        }
    }

    /// Shares the work with the others of the group. Without one the subscription is a private copy.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Sets where a new group begins, and a private copy. Default: earliest; for a private copy: latest.
    ///
    /// A group that the wire knows goes on where it is: [`Client::reset_group`] moves it.
    pub fn start(mut self, start: impl Into<Start>) -> Self {
        self.start = Some(start.into());
        self
    }

    /// Makes it a bounded read, which ends by itself: with [`Until::Now`] after the last message that is stored when it is
    /// opened, and at once where there is none. Begins at the earliest, unless [`start`](Self::start) says otherwise.
    ///
    /// For private copies, and for rebuilding state. What is given back is delivered again only as long as the read goes on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// use anywire::{App, Config, Unrouted, Until};
    ///
    /// let config = Config::from_toml("url = 'memory://'\n[transports.main.memory]\nhistory = 1000")?;
    /// let app = App::new("shop").config(config).start().await?;
    /// let client = app.client();
    /// let _orders = client.subscribe::<u32>("shop.placed").await?;
    /// client.emit_all("shop.placed", &[3, 4]).await?;
    ///
    /// let mut sum = 0;
    /// let mut past = client.subscribe::<u32>("shop.placed").until(Until::Now).await?;
    /// while let Some(order) = past.next().await {
    ///     sum += order?.take().await?;
    /// }
    /// assert_eq!(sum, 7);
    /// # app.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn until(mut self, until: Until) -> Self {
        self.until = Some(until);
        self
    }

    /// Sets the order across the group. Default: none asked for.
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Sets how sure the delivery is. Default: what the subject's rule says, else at least once.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.guarantee = Some(guarantee);
        self
    }

    /// Sets the most deliveries that may be unsettled at once; at least 1. Default: 64.
    pub fn window(mut self, window: usize) -> Self {
        self.window = window.max(1);
        self
    }

    async fn run(self) -> Result<Subscription<P>, Error> {
        let core = self.client.core();
        core.check_open()?;
        let pattern = self.pattern?;
        let route = core.wires.route_of_pattern(&pattern);
        let wire = core.wires.wire(route);
        let id = SubscriptionId {
            group: self.group.as_deref().map(Into::into),
            pattern: pattern.clone(),
        };
        if let Some(group) = &self.group
            && !pattern.is_dead_letters()
        {
            copies::declare_dead_letters(core, wire, group).await?;
        }
        let mut spec = Spec::new(id)
            .with_guarantee(route.guarantee(self.guarantee)?)
            .with_order(self.order)
            .with_window(self.window)
            .with_retention(route.retention);
        if self.until.is_some() && self.group.is_some() {
            return Err(Error::config(
                "a bounded read is a private copy; drop its group, or read on without an end",
            ));
        }
        match (self.start, &self.until) {
            (Some(start), _) => spec = spec.with_start(start),
            (None, Some(_)) => spec = spec.with_start(Start::Earliest),
            (None, None) => {}
        }
        let spec = spec.with_until(self.until);
        check_history(&spec)?;
        let incoming = open(wire, &spec, "subscribe").await?;
        Ok(Subscription::new(core, wire, incoming, spec))
    }
}

/// What may be lost was not kept.
fn check_history(spec: &Spec) -> Result<(), Error> {
    let goes_back = spec.start.needs_history() || spec.until.is_some();
    if goes_back && spec.guarantee == Guarantee::AtMostOnce {
        let why = "events that may be lost are not kept, so there is nothing to go back to; make the subject at least once";
        return Err(no_history(why).with_context("subscription", &spec.subscription));
    }
    Ok(())
}

async fn open(
    wire: &Wire,
    spec: &Spec,
    operation: &'static str,
) -> Result<Box<dyn Incoming>, Error> {
    let opened = wire.subscriber.subscribe(std::slice::from_ref(spec)).await;
    let missing = || {
        Err(Error::new(
            ErrorKind::Unavailable,
            "the adapter opened no subscription",
        ))
    };
    let opened = opened.into_iter().next().unwrap_or_else(missing);
    opened.map_err(|error| {
        error
            .with_operation(operation)
            .with_context("subscription", &spec.subscription)
    })
}

impl<'a, P: FromPayload> IntoFuture for Subscribe<'a, P> {
    type Output = Result<Subscription<P>, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<P> fmt::Debug for Subscribe<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribe")
            .field("pattern", &self.pattern)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

/// The deliveries of a subscription, as a stream. Dropping it gives back what was not settled.
///
/// An item that cannot be decoded is an `Err`, and its message is in the group's dead letters; a private copy of it is
/// acknowledged. A dead letter that cannot be decoded is never dead-lettered again: it stays unsettled until the
/// subscription ends, so read dead letters as [`Message`](crate::Message). An `Err` that is [retryable](Error::is_retryable) is news of the connection: the stream goes on.
#[must_use = "deliveries come as the subscription is read"]
pub struct Subscription<P> {
    shared: Arc<SubscriptionShared>,
    incoming: Box<dyn Incoming>,
    batch: Batch<Received>,
    waiting: VecDeque<Received>,
    /// The dead-lettering of an undecodable message, before its error is handed out.
    refusing: Option<BoxFuture<'static, Error>>,
    /// Dead letters that cannot be decoded; the window bounds them.
    held: Vec<Delivery<()>>,
    ended: bool,
    payload: PhantomData<fn() -> P>,
}

/// What a subscription and its deliveries share.
pub(super) struct SubscriptionShared {
    pub(super) scope: Arc<Scope>,
    pub(super) wire: Arc<Wire>,
    pub(super) settler: Arc<dyn Settle>,
    pub(super) spec: Spec,
}

impl<P: FromPayload> Subscription<P> {
    fn new(
        core: &Arc<ClientCore>,
        wire: &Arc<Wire>,
        incoming: Box<dyn Incoming>,
        spec: Spec,
    ) -> Self {
        let info = HandlerInfo {
            name: spec.subscription.to_string(),
            kind: HandlerKind::Event,
            pattern: spec.subscription.pattern.clone(),
            group: spec.subscription.group.as_ref().map(ToString::to_string),
            doc: String::new(),
            payload_type: std::any::type_name::<P>(),
            reply_type: "()",
            error_type: "()",
            transport: wire.name.clone(),
        };
        let scope = Scope {
            info: Arc::new(info),
            client: Arc::clone(core),
            states: Arc::new(StateMap::default()),
            codec: core.codec,
            abandoned: CancellationToken::new(),
        };
        let settler = incoming.settler();
        let batch = Batch::new(spec.window);
        let shared = SubscriptionShared {
            scope: Arc::new(scope),
            wire: Arc::clone(wire),
            settler,
            spec,
        };
        Self {
            shared: Arc::new(shared),
            incoming,
            batch,
            waiting: VecDeque::new(),
            refusing: None,
            held: Vec::new(),
            ended: false,
            payload: PhantomData,
        }
    }

    /// The next delivery; `None` when the subscription has ended.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Delivery<P>, Error>> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Goes on from somewhere else in what the wire keeps: back or forward. What lies beyond either end is that end.
    ///
    /// For private copies: a group's place is its members' common business, see [`Client::reset_group`]. What was handed out
    /// before can still be settled; what was not is dropped. A bounded read keeps its kind: it ends with what is stored now.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// use anywire::{App, Config, Start};
    ///
    /// let config = Config::from_toml("url = 'memory://'\n[transports.main.memory]\nhistory = 1000")?;
    /// let app = App::new("shop").config(config).start().await?;
    /// let client = app.client();
    /// let mut orders = client.subscribe::<u32>("shop.placed").await?;
    /// client.emit_all("shop.placed", &[1, 2]).await?;
    /// assert_eq!(orders.next().await.unwrap()?.take().await?, 1);
    /// orders.seek(Start::Earliest).await?;
    /// assert_eq!(orders.next().await.unwrap()?.take().await?, 1);
    /// # app.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Unsupported` for a group, and where the wire keeps nothing; otherwise as [`Client::subscribe`]. The subscription then goes on where it is.
    ///
    /// # Cancel safety
    /// A dropped future leaves the subscription where it was, or where it was to go.
    pub async fn seek(&mut self, start: impl Into<Start>) -> Result<(), Error> {
        let start = start.into();
        let shared = &self.shared;
        if shared.spec.subscription.group.is_some() {
            let why = "a group's place belongs to all of its members; read as a private copy, or stop them and reset the group";
            let error = no_history(why).with_context("subscription", &shared.spec.subscription);
            return Err(error.with_operation("seek"));
        }
        if !shared.wire.capabilities.replay.is_supported() {
            let why = "the transport keeps no history of what it has delivered, so there is nowhere to go";
            let error = no_history(why).with_context("transport", &shared.wire.name);
            return Err(error.with_operation("seek"));
        }
        let spec = shared.spec.clone().with_start(start);
        check_history(&spec).map_err(|error| error.with_operation("seek"))?;
        let incoming = open(&shared.wire, &spec, "seek").await?;
        let moved = SubscriptionShared {
            scope: Arc::clone(&shared.scope),
            wire: Arc::clone(&shared.wire),
            settler: incoming.settler(),
            spec,
        };
        self.shared = Arc::new(moved);
        let mut before = std::mem::replace(&mut self.incoming, incoming);
        self.waiting.clear();
        self.refusing = None;
        self.held.clear();
        self.ended = false;
        // It is a private copy, and of no use to anybody any more.
        if let Err(error) = before.stop().await {
            tracing::debug!(%error, "the place that was left could not be told");
        }
        Ok(())
    }

    /// Stops the subscription and gives back what was not handed out. Deliveries that were can still be settled.
    ///
    /// # Errors
    /// Where the broker could not be told.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.ended = true;
        self.incoming.stop().await
    }

    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Delivery<P>, Error>>> {
        loop {
            if let Some(refusing) = &mut self.refusing {
                let error = std::task::ready!(refusing.as_mut().poll(cx));
                self.refusing = None;
                return Poll::Ready(Some(Err(error)));
            }
            if let Some(received) = self.waiting.pop_front() {
                match self.open(received) {
                    Ok(delivery) => return Poll::Ready(Some(Ok(delivery))),
                    Err(undecodable) => {
                        let (delivery, error) = *undecodable;
                        self.refusing = Some(self.refuse(delivery, error));
                    }
                }
                continue;
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match std::task::ready!(self.incoming.poll_batch(cx, &mut self.batch)) {
                Ok(Pulled::Some) => self.waiting.extend(self.batch.drain()),
                Ok(Pulled::End) => self.ended = true,
                Err(error) => {
                    self.ended = !error.is_retryable();
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn open(&self, received: Received) -> Result<Delivery<P>, Box<(Delivery<()>, Error)>> {
        let Received {
            message,
            tag,
            deliveries: _,
            native,
            position,
        } = received;
        let mut context = Context::new(message, Arc::clone(&self.shared.scope));
        context.native = native;
        context.position = position;
        let shared = Arc::clone(&self.shared);
        match P::from_payload(&context.message) {
            Ok(payload) => Ok(Delivery::new(payload, context, tag, shared)),
            Err(error) => Err(Box::new((Delivery::new((), context, tag, shared), error))),
        }
    }

    /// Deals with a delivery that cannot be decoded, before its error is handed out.
    fn refuse(&mut self, delivery: Delivery<()>, error: Error) -> BoxFuture<'static, Error> {
        if self.shared.spec.subscription.pattern.is_dead_letters() {
            self.held.push(delivery);
            return Box::pin(ready(error));
        }
        let reason = one_line(&error);
        Box::pin(async move {
            match delivery.dead_letter(reason).await {
                Ok(()) => error,
                Err(failed) => failed,
            }
        })
    }
}

impl<P: FromPayload> Stream for Subscription<P> {
    type Item = Result<Delivery<P>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.poll(cx)
    }
}

impl<P> Drop for Subscription<P> {
    fn drop(&mut self) {
        for received in self.waiting.drain(..) {
            self.shared.give_back(received.tag);
        }
    }
}

impl<P> fmt::Debug for Subscription<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("id", &self.shared.spec.subscription)
            .finish_non_exhaustive()
    }
}

impl SubscriptionShared {
    pub(super) async fn settle(
        &self,
        tag: crate::pattern::Tag,
        settlement: Settlement,
    ) -> Result<(), Error> {
        let mut batch = SettleBatch::default();
        batch.push(tag, settlement);
        self.settler
            .settle(batch)
            .wait()
            .await
            .into_single()
            .map_err(|error| error.with_operation("settle"))
    }

    /// Gives a delivery back from where nothing can be awaited.
    pub(super) fn give_back(&self, tag: crate::pattern::Tag) {
        let mut batch = SettleBatch::default();
        batch.push(tag, Settlement::Return);
        if let crate::pattern::Progress::Pending(settling) = self.settler.settle(batch)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(settling);
        }
    }
}
