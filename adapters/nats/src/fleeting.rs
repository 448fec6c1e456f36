//! An at-most-once subscription: core NATS, where nothing is stored and nothing is settled.

use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use anywire::Error;
use anywire::pattern::publish_subscribe::{Incoming, Received, Settle, SettleBatch, Spec};
use anywire::pattern::{Batch, Progress, PullResult, Pulled, Tag};
use async_trait::async_trait;
use futures::future::BoxFuture;

use crate::errors;
use crate::inflow::Inflow;
use crate::names;
use crate::transport::{Connection, End};
use crate::wire;

/// The messages of one subscription.
#[derive(Debug)]
pub(crate) struct Fleeting {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connection: Arc<Connection>,
    inflow: Inflow,
    tie: usize,
}

impl Fleeting {
    pub(crate) async fn open(connection: &Arc<Connection>, spec: &Spec) -> Result<Self, Error> {
        let subscription = &spec.subscription;
        // The server takes one queue group on two subjects for one: its name must hold the pattern.
        let group = subscription
            .group
            .is_some()
            .then(|| names::subscription(subscription));
        let pattern = &subscription.pattern;
        let bound = connection.config.buffer;
        let inflow = Inflow::open(&connection.main, pattern, group, bound).await?;
        let shared = Arc::new_cyclic(|this: &Weak<Shared>| Shared {
            connection: Arc::clone(connection),
            inflow,
            tie: connection.tie(Weak::clone(this) as Weak<dyn End>),
        });
        // A close that came between the check and the tie ended everybody but us.
        connection.check_open()?;
        Ok(Self { shared })
    }
}

#[async_trait]
impl Incoming for Fleeting {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<Received>,
    ) -> Poll<PullResult> {
        let clock = &*self.shared.connection.clock;
        while batch.is_empty() {
            let Some(some) = ready!(self.shared.inflow.poll_some(cx, batch.room())) else {
                return Poll::Ready(Ok(Pulled::End));
            };
            for native in some {
                let headers = native.headers.as_ref();
                let read = wire::read(&native.subject, native.payload, headers, None, clock);
                if read.due.is_some() {
                    // A copy that a stream holds until its time; a subscriber of the air hears it too early.
                    continue;
                }
                let nothing_to_settle = Tag { slot: 0, epoch: 0 };
                batch.push(Received::new(read.message, nothing_to_settle));
            }
        }
        Poll::Ready(Ok(Pulled::Some))
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::clone(&self.shared) as Arc<dyn Settle>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.shared.inflow.stop().await;
        Ok(())
    }
}

/// Settled before it was delivered.
impl Settle for Shared {
    fn settle(&self, mut batch: SettleBatch) -> Progress<SettleBatch> {
        if self.connection.is_closed() {
            (0..batch.items().len()).for_each(|index| batch.fail(index, errors::closed()));
        }
        Progress::Done(batch)
    }
}

impl End for Shared {
    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(self.inflow.stop().await) })
    }

    fn renew(&self, _before: Instant) {}

    fn reconnected(&self) {}

    fn clear_hostile(&self) -> BoxFuture<'_, ()> {
        // Nothing comes twice here.
        Box::pin(std::future::ready(()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.connection.untie(self.tie);
    }
}
