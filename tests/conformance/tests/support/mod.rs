//! The memory transport as a harness: the shortest there is, and the one to copy.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anywire::clock::TokioClock;
use anywire::config::TransportConfig;
use anywire::memory::{self, MemoryBroker};
use anywire::pattern::publish_subscribe::{Entry, PublishBatch, Published, SubscriptionId};
use anywire::transport::{Adapter, Transport};
use anywire::{Capabilities, Error, Message, Subject};
use anywire_conformance::{Foreign, Harness, Raw};
use async_trait::async_trait;

/// One broker for the whole suite: tests run side by side on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    broker: MemoryBroker,
}

fn config() -> TransportConfig {
    TransportConfig::bare("main", "conformance", memory::SCHEME)
}

#[async_trait]
impl Harness for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        memory::adapter_on(&self.broker).capabilities(&config())
    }

    async fn connect(&self) -> Result<Arc<dyn Transport>, Error> {
        let adapter = memory::adapter_on(&self.broker);
        adapter.connect(config(), Arc::new(TokioClock)).await
    }

    fn raw(&self) -> Option<&dyn Raw> {
        Some(self)
    }
}

/// A foreign message on memory is one without our fields, with headers as they come.
#[async_trait]
impl Raw for Memory {
    async fn publish(&self, subject: &Subject, foreign: Foreign) -> io::Result<()> {
        let mut message = Message::new(subject.clone(), foreign.payload);
        for (name, value) in foreign.headers {
            message.headers_mut().append_foreign(&name, value);
        }
        let client = self.connect().await.map_err(io::Error::other)?;
        let batch = PublishBatch::single(Entry::new(message), Duration::from_secs(5));
        let (_, outcomes) = client.publisher().publish(batch).wait().await.into_parts();
        client
            .close(Duration::ZERO)
            .await
            .map_err(io::Error::other)?;
        match outcomes.as_slice() {
            [Published::Accepted(_)] => Ok(()),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    async fn depth(&self, subscription: &SubscriptionId) -> io::Result<Option<u64>> {
        let client = self.connect().await.map_err(io::Error::other)?;
        let group = subscription.group.clone().unwrap_or_default();
        let stored = client
            .subscriber()
            .stored(&group)
            .await
            .map_err(io::Error::other)?;
        let found = stored
            .into_iter()
            .find(|stored| stored.subscription == *subscription);
        Ok(found.and_then(|found| found.backlog))
    }
}
