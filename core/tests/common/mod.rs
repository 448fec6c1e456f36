//! What the tests of several themes share.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test program uses a part"
)]

pub mod streams;
pub mod wires;

use std::sync::Arc;
use std::time::Duration;

use anywire::clock::{Clock, ManualClock};
use anywire::config::TransportConfig;
use anywire::memory::{self, MemoryBroker};
use anywire::pattern::publish_subscribe::{Publisher, Spec, Subscriber};
use anywire::pattern::request_reply::{CallSpec, Requester, Responder};
use anywire::pattern::streaming::Streamer;
use anywire::transport::{Adapter, BrokerObject, Status, Transport};
use anywire::{App, Capabilities, Config, Error, Router, async_trait};
use tokio::sync::watch;

/// An app on `broker`, on a clock that the test owns, without the process' own configuration.
pub fn app_on(broker: &MemoryBroker, clock: &ManualClock, router: Router) -> App {
    App::new("shop")
        .adapter(memory::adapter_on(broker))
        .config(Config::from_toml("url = 'memory://'").unwrap())
        .clock(Arc::new(clock.clone()))
        .router(router)
}

/// Lets other tasks run until the condition holds; a test that waits in vain is told so.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = tokio::time::timeout(Duration::from_secs(20), async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    });
    assert!(patience.await.is_ok(), "in vain: {what}");
}

/// Waits for what has to come; a test that waits in vain is told so.
pub async fn in_time<T>(what: &str, coming: impl Future<Output = T>) -> T {
    let came = tokio::time::timeout(Duration::from_secs(20), coming).await;
    came.unwrap_or_else(|_| panic!("in vain: {what}"))
}

/// Lets other tasks of a current-thread runtime run as far as they can.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// The memory adapter with something changed.
pub struct Altered {
    pub broker: MemoryBroker,
    pub capabilities: fn(&mut Capabilities),
    pub publisher: fn(Arc<dyn Publisher>) -> Arc<dyn Publisher>,
    pub subscriber: fn(Arc<dyn Subscriber>) -> Arc<dyn Subscriber>,
}

impl Altered {
    pub fn new(broker: &MemoryBroker) -> Self {
        Self {
            broker: broker.clone(),
            capabilities: |_| {},
            publisher: |publisher| publisher,
            subscriber: |subscriber| subscriber,
        }
    }
}

impl std::fmt::Debug for Altered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Altered")
    }
}

#[async_trait]
impl Adapter for Altered {
    fn schemes(&self) -> &'static [&'static str] {
        &["memory"]
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        memory::adapter().check(config)
    }

    fn capabilities(&self, config: &TransportConfig) -> Capabilities {
        let mut capabilities = memory::adapter().capabilities(config);
        (self.capabilities)(&mut capabilities);
        capabilities
    }

    fn describe(&self, _: &TransportConfig, _: &[Spec], _: &[CallSpec]) -> Vec<BrokerObject> {
        Vec::new()
    }

    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error> {
        let inner = memory::adapter_on(&self.broker)
            .connect(config, clock)
            .await?;
        let mut capabilities = inner.capabilities();
        (self.capabilities)(&mut capabilities);
        Ok(Arc::new(AlteredTransport {
            publisher: (self.publisher)(inner.publisher()),
            subscriber: (self.subscriber)(inner.subscriber()),
            capabilities,
            inner,
        }))
    }
}

#[derive(Debug)]
struct AlteredTransport {
    inner: Arc<dyn Transport>,
    capabilities: Capabilities,
    publisher: Arc<dyn Publisher>,
    subscriber: Arc<dyn Subscriber>,
}

#[async_trait]
impl Transport for AlteredTransport {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(&self.publisher)
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        Arc::clone(&self.subscriber)
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
