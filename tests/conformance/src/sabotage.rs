//! A transport that refuses what it is told to: how the suite makes things fail that a healthy wire does.

use std::sync::Arc;
use std::time::Duration;

use anywire::clock::Clock;
use anywire::config::TransportConfig;
use anywire::pattern::Progress;
use anywire::pattern::publish_subscribe::{
    Incoming, PublishBatch, Published, Publisher, Spec, Start, Store, Stored, Subscriber,
    SubscriptionId,
};
use anywire::pattern::request_reply::{CallSpec, Requester, Responder};
use anywire::pattern::streaming::Streamer;
use anywire::transport::{Adapter, BrokerObject, Status, Transport};
use anywire::{Capabilities, Error, ErrorKind, OrderScope, Pattern, Subject, Support};
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

/// What is refused. Clones are the same switch; healthy until it is told otherwise.
#[derive(Clone, Debug, Default)]
pub struct Sabotage(Arc<Mutex<Refused>>);

#[derive(Debug, Default)]
struct Refused {
    publishes: Option<Pattern>,
    subscriptions: Option<Pattern>,
    capabilities: bool,
    connected: Vec<watch::Receiver<Status>>,
}

impl Sabotage {
    /// Refuses to publish to what `pattern` matches, as a broker does that is full.
    pub fn refuse_publishes(&self, pattern: Pattern) {
        self.0.lock().publishes = Some(pattern);
    }

    /// Refuses to subscribe to `pattern`, as a broker does that knows no such right.
    pub fn refuse_subscription(&self, pattern: Pattern) {
        self.0.lock().subscriptions = Some(pattern);
    }

    /// Denies every capability that a handler may need.
    pub fn deny_capabilities(&self) {
        self.0.lock().capabilities = true;
    }

    /// Refuses nothing any more.
    pub fn mend(&self) {
        let mut refused = self.0.lock();
        let connected = std::mem::take(&mut refused.connected);
        *refused = Refused {
            connected,
            ..Refused::default()
        };
    }

    /// How many transports were connected through it and are not closed.
    #[must_use]
    pub fn open_transports(&self) -> usize {
        let refused = self.0.lock();
        let open = |status: &&watch::Receiver<Status>| *status.borrow() != Status::Closed;
        refused.connected.iter().filter(open).count()
    }

    fn refuses_publish(&self, subject: &Subject) -> bool {
        let refused = self.0.lock();
        refused
            .publishes
            .as_ref()
            .is_some_and(|pattern| pattern.matches(subject))
    }

    fn refuses_subscription(&self, spec: &Spec) -> bool {
        self.0.lock().subscriptions.as_ref() == Some(&spec.subscription.pattern)
    }

    fn declare(&self, mut capabilities: Capabilities) -> Capabilities {
        if self.0.lock().capabilities {
            capabilities.order = OrderScope::None;
            capabilities.wildcards = Support::Unsupported;
            capabilities.calls = Support::Unsupported;
            capabilities.delay = Support::Unsupported;
        }
        capabilities
    }
}

/// The harness' adapter as something that an app takes, with a switch in it.
#[derive(Clone, Debug)]
pub(crate) struct Switched<T: ?Sized> {
    pub(crate) sabotage: Sabotage,
    pub(crate) inner: Arc<T>,
}

impl<T: ?Sized> Switched<T> {
    fn around<U: ?Sized>(&self, inner: Arc<U>) -> Switched<U> {
        let sabotage = self.sabotage.clone();
        Switched { sabotage, inner }
    }
}

#[async_trait]
impl Adapter for Switched<dyn Adapter> {
    fn schemes(&self) -> &'static [&'static str] {
        self.inner.schemes()
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        self.inner.check(config)
    }

    fn capabilities(&self, config: &TransportConfig) -> Capabilities {
        self.sabotage.declare(self.inner.capabilities(config))
    }

    fn describe(
        &self,
        config: &TransportConfig,
        specs: &[Spec],
        calls: &[CallSpec],
    ) -> Vec<BrokerObject> {
        self.inner.describe(config, specs, calls)
    }

    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error> {
        let inner = self.inner.connect(config, clock).await?;
        self.sabotage.0.lock().connected.push(inner.status());
        Ok(Arc::new(self.around(inner)))
    }
}

#[async_trait]
impl Transport for Switched<dyn Transport> {
    fn capabilities(&self) -> Capabilities {
        self.sabotage.declare(self.inner.capabilities())
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(self.around(self.inner.publisher()))
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::new(self.around(self.inner.subscriber()))
    }

    fn requester(&self) -> Option<Arc<dyn Requester>> {
        self.inner.requester()
    }

    fn responder(&self) -> Option<Arc<dyn Responder>> {
        self.inner.responder()
    }

    fn streamer(&self) -> Option<Arc<dyn Streamer>> {
        self.inner.streamer()
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.inner.status()
    }

    async fn close(&self, grace: Duration) -> Result<(), Error> {
        self.inner.close(grace).await
    }
}

impl Publisher for Switched<dyn Publisher> {
    fn publish(&self, mut batch: PublishBatch) -> Progress<PublishBatch> {
        let refused = |batch: &PublishBatch| {
            let mut entries = batch.entries().iter();
            entries.any(|entry| self.sabotage.refuses_publish(entry.message.subject()))
        };
        if !refused(&batch) {
            return self.inner.publish(batch);
        }
        batch.record_rest(|| {
            Published::Rejected(Error::new(
                ErrorKind::Overloaded,
                "sabotaged: the store is full",
            ))
        });
        Progress::Done(batch)
    }
}

#[async_trait]
impl Subscriber for Switched<dyn Subscriber> {
    async fn subscribe(&self, specs: &[Spec]) -> Vec<Result<Box<dyn Incoming>, Error>> {
        let mut opened = self.inner.subscribe(specs).await;
        for (opened, spec) in opened.iter_mut().zip(specs) {
            if self.sabotage.refuses_subscription(spec) {
                *opened = Err(Error::new(ErrorKind::Denied, "sabotaged: not allowed"));
            }
        }
        opened
    }

    async fn declare(&self, stores: &[Store]) -> Vec<Result<(), Error>> {
        self.inner.declare(stores).await
    }

    async fn stored(&self, group: &str) -> Result<Vec<Stored>, Error> {
        self.inner.stored(group).await
    }

    async fn reset(&self, subscription: &SubscriptionId, start: &Start) -> Result<(), Error> {
        self.inner.reset(subscription, start).await
    }
}
