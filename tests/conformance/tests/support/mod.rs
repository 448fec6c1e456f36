//! The memory transport as a harness, whole, wrapped, or broken.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod broken;
mod broken_streams;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anywire::memory::{self, MemoryBroker};
use anywire::pattern::publish_subscribe::{Entry, PublishBatch, Published, SubscriptionId};
use anywire::transport::{Adapter, Transport};
use anywire::{Message, Subject};
use anywire_conformance::{BrokerControl, Foreign, Harness, Raw};
use async_trait::async_trait;

use self::broken::{BrokenAdapter, Fault};

/// One broker for the whole suite: tests run side by side on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    broker: MemoryBroker,
}

impl Memory {
    async fn client(&self) -> io::Result<Arc<dyn Transport>> {
        let harness: &dyn Harness = self;
        harness.connect().await.map_err(io::Error::other)
    }
}

impl Harness for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::new(memory::adapter_on(&self.broker))
    }

    fn config(&self) -> String {
        "url = 'memory://'\n[transports.main.memory]\nhistory = 100000".to_owned()
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
        let client = self.client().await?;
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
        let client = self.client().await?;
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

/// Memory behind a transport that forwards everything, or misbehaves in one way.
#[derive(Debug)]
pub(crate) struct Wrapped {
    memory: Memory,
    name: &'static str,
    fault: Fault,
    frozen: Arc<AtomicBool>,
}

impl Wrapped {
    pub(crate) fn new(name: &'static str, fault: Fault) -> Self {
        Self {
            memory: Memory::default(),
            name,
            fault,
            frozen: Arc::default(),
        }
    }
}

impl Harness for Wrapped {
    fn name(&self) -> &str {
        self.name
    }

    fn adapter(&self) -> Arc<dyn Adapter> {
        let inner = self.memory.adapter();
        Arc::new(BrokenAdapter::new(
            inner,
            self.fault,
            Arc::clone(&self.frozen),
        ))
    }

    fn config(&self) -> String {
        self.memory.config()
    }

    fn raw(&self) -> Option<&dyn Raw> {
        self.memory.raw()
    }
}

/// As [`Wrapped`], with a broker that can stand still: all that it takes to see what becomes of a publish whose fate
/// nobody knows.
#[derive(Debug)]
pub(crate) struct Frozen(pub(crate) Wrapped);

impl Harness for Frozen {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn adapter(&self) -> Arc<dyn Adapter> {
        self.0.adapter()
    }

    fn config(&self) -> String {
        self.0.config()
    }

    fn broker(&self) -> Option<&dyn BrokerControl> {
        Some(self)
    }
}

#[async_trait]
impl BrokerControl for Frozen {
    async fn start(&self) -> io::Result<()> {
        Err(only_freezes())
    }

    async fn stop(&self) -> io::Result<()> {
        Err(only_freezes())
    }

    async fn kill(&self) -> io::Result<()> {
        Err(only_freezes())
    }

    async fn freeze(&self) -> io::Result<()> {
        self.0.frozen.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn thaw(&self) -> io::Result<()> {
        self.0.frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn cut(&self) -> io::Result<()> {
        Err(only_freezes())
    }

    async fn heal(&self) -> io::Result<()> {
        Err(only_freezes())
    }

    async fn kill_connections(&self) -> io::Result<()> {
        Err(only_freezes())
    }
}

fn only_freezes() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "memory has no broker to break")
}
