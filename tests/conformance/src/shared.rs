//! The harness' adapter, as something that an app takes.

use std::sync::Arc;

use anywire::clock::Clock;
use anywire::config::TransportConfig;
use anywire::pattern::publish_subscribe::Spec;
use anywire::pattern::request_reply::CallSpec;
use anywire::transport::{Adapter, BrokerObject, Transport};
use anywire::{Capabilities, Error};
use async_trait::async_trait;

/// Forwards to the adapter that it shares.
#[derive(Debug)]
pub(crate) struct Shared(pub(crate) Arc<dyn Adapter>);

#[async_trait]
impl Adapter for Shared {
    fn schemes(&self) -> &'static [&'static str] {
        self.0.schemes()
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        self.0.check(config)
    }

    fn capabilities(&self, config: &TransportConfig) -> Capabilities {
        self.0.capabilities(config)
    }

    fn describe(
        &self,
        config: &TransportConfig,
        specs: &[Spec],
        calls: &[CallSpec],
    ) -> Vec<BrokerObject> {
        self.0.describe(config, specs, calls)
    }

    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error> {
        self.0.connect(config, clock).await
    }
}
