//! Settlements that take long: they are sent off as soon as handlers end, but never more than a few at once.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use anywire::memory::MemoryBroker;
use anywire::pattern::publish_subscribe::{
    Incoming, Received, Settle, SettleBatch, Spec, Start, Store, Stored, Subscriber, SubscriptionId,
};
use anywire::pattern::{Batch, Progress, PullResult};
use anywire::{App, Config, Error, Result, Router, async_trait};
use common::{Altered, settle, until};
use tokio::sync::Semaphore;

/// How many settlements each worker may have under way.
const MOST: usize = 8;

static GATE: Semaphore = Semaphore::const_new(0);
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static BATCHES: AtomicUsize = AtomicUsize::new(0);

#[tokio::test]
async fn settlements_that_take_long_are_bounded_and_the_next_ones_go_together() {
    const MESSAGES: usize = 200;
    let broker = MemoryBroker::new();
    let mut slow = Altered::new(&broker);
    slow.subscriber = |inner| Arc::new(Slow(inner));
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    let handler = move |_: usize| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::ready::<Result<()>>(Ok(()))
    };
    let app = App::new("shop")
        .adapter(slow)
        .config(Config::from_toml("url = 'memory://'").unwrap())
        .router(Router::new().on_event("a.b", handler));
    let app = app.start().await.unwrap();
    for number in 0..MESSAGES {
        app.client().emit("a.b", &number).await.unwrap();
        settle().await;
    }
    let workers = std::thread::available_parallelism().unwrap().get();
    let under_way = UNDER_WAY.load(Ordering::Relaxed);
    assert!(
        (2..=workers * MOST).contains(&under_way),
        "{under_way} settlements at once on {workers} cores"
    );
    GATE.add_permits(MESSAGES);
    until("all to be handled", || {
        handled.load(Ordering::Relaxed) == MESSAGES
    })
    .await;
    let queue = SubscriptionId::new("shop", "a.b".parse().unwrap());
    until("all to be settled", || broker.backlog(&queue) == Some(0)).await;
    let batches = BATCHES.load(Ordering::Relaxed);
    assert!(batches < MESSAGES, "each went alone");
    app.shutdown().await.unwrap();
}

/// A subscriber whose settlements wait at the gate.
#[derive(Debug)]
struct Slow<T>(T);

#[async_trait]
impl Subscriber for Slow<Arc<dyn Subscriber>> {
    async fn subscribe(&self, specs: &[Spec]) -> Vec<Result<Box<dyn Incoming>, Error>> {
        let opened = self.0.subscribe(specs).await.into_iter();
        let slow = |incoming| Box::new(Slow(incoming)) as Box<dyn Incoming>;
        opened.map(|incoming| incoming.map(slow)).collect()
    }

    async fn declare(&self, stores: &[Store]) -> Vec<Result<(), Error>> {
        self.0.declare(stores).await
    }

    async fn stored(&self, group: &str) -> Result<Vec<Stored>, Error> {
        self.0.stored(group).await
    }

    async fn reset(&self, subscription: &SubscriptionId, start: &Start) -> Result<(), Error> {
        self.0.reset(subscription, start).await
    }
}

#[async_trait]
impl Incoming for Slow<Box<dyn Incoming>> {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<Received>,
    ) -> Poll<PullResult> {
        self.0.poll_batch(cx, batch)
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(Slow(self.0.settler()))
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.0.stop().await
    }
}

impl Settle for Slow<Arc<dyn Settle>> {
    fn settle(&self, batch: SettleBatch) -> Progress<SettleBatch> {
        UNDER_WAY.fetch_add(1, Ordering::Relaxed);
        BATCHES.fetch_add(1, Ordering::Relaxed);
        let inner = Arc::clone(&self.0);
        Progress::pending(async move {
            GATE.acquire().await.unwrap().forget();
            UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
            inner.settle(batch).wait().await
        })
    }
}
