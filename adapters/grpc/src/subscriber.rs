//! The role that subscribes: at our server, to what peers send.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anywire::pattern::publish_subscribe::{
    Incoming, Received, Settle, SettleBatch, Settlement, Spec, Store, Stored, Subscriber,
    SubscriptionId, no_history,
};
use anywire::pattern::{Batch, Progress, PullResult, Pulled};
use anywire::{Error, ErrorKind, Start};
use async_trait::async_trait;

use crate::desk::{Answer, Purpose};
use crate::errors;
use crate::part::Part;
use crate::transport::Connection;

/// The role that subscribes.
#[derive(Debug)]
pub(crate) struct GrpcSubscriber {
    connection: Arc<Connection>,
}

impl GrpcSubscriber {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

/// What a specification asks for, and its window.
fn wanted(spec: &Spec) -> (Purpose, usize) {
    let Spec {
        subscription,
        guarantee,
        // Core keeps keys apart, and refuses what is more.
        order: _,
        // Nothing is held, so that everything begins with what comes next.
        start: _,
        until: _,
        window,
        // There is nothing to create, and nothing that keeps.
        provision: _,
        retention: _,
    } = spec;
    let purpose = Purpose::Events(subscription.clone(), *guarantee);
    (purpose, *window)
}

#[async_trait]
impl Subscriber for GrpcSubscriber {
    async fn subscribe(&self, specs: &[Spec]) -> Vec<Result<Box<dyn Incoming>, Error>> {
        let looks_back = |spec: &Spec| spec.start.needs_history() || spec.until.is_some();
        let wanted = specs.iter().filter(|spec| !looks_back(spec)).map(wanted);
        let mut parts = Part::open(&self.connection, wanted).await.into_iter();
        let opened = specs.iter().map(|spec| {
            let part = match looks_back(spec) {
                true => Err(forgetful()),
                false => parts.next().unwrap_or_else(|| Err(errors::closed())),
            };
            match part {
                Ok(part) => Ok(Box::new(GrpcIncoming { part }) as Box<dyn Incoming>),
                Err(error) => Err(error
                    .with_operation("subscribe")
                    .with_context("subscription", &spec.subscription)),
            }
        });
        opened.collect()
    }

    async fn declare(&self, stores: &[Store]) -> Vec<Result<(), Error>> {
        // The store is the sender: he is told at once of what nobody takes, and of what was handled in vain.
        stores
            .iter()
            .map(|_| self.connection.check_open())
            .collect()
    }

    async fn stored(&self, _group: &str) -> Result<Vec<Stored>, Error> {
        self.connection.check_open()?;
        Ok(Vec::new())
    }

    async fn reset(&self, subscription: &SubscriptionId, _start: &Start) -> Result<(), Error> {
        self.connection.check_open()?;
        Err(forgetful().with_context("subscription", subscription))
    }
}

fn forgetful() -> Error {
    no_history(
        "gRPC holds no events: what was handled is gone; keep the subject on a wire that replays, such as Kafka or NATS with JetStream",
    )
}

/// The events of one subscription.
#[derive(Debug)]
struct GrpcIncoming {
    part: Arc<Part>,
}

#[async_trait]
impl Incoming for GrpcIncoming {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<Received>,
    ) -> Poll<PullResult> {
        let Some(taken) = ready!(self.part.poll_take(cx, batch.room())) else {
            return Poll::Ready(Ok(Pulled::End));
        };
        for event in taken {
            batch.push(Received::new(event.message, event.tag));
        }
        Poll::Ready(Ok(Pulled::Some))
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::clone(&self.part) as Arc<dyn Settle>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.part.stop();
        Ok(())
    }
}

impl Drop for GrpcIncoming {
    fn drop(&mut self) {
        self.part.stop();
    }
}

impl Settle for Part {
    fn settle(&self, mut batch: SettleBatch) -> Progress<SettleBatch> {
        for index in 0..batch.items().len() {
            let (tag, settlement) = batch.items()[index];
            let settled = match settlement {
                _ if self.is_closed() => Err(errors::closed()),
                // At most once, it was settled before it was delivered.
                _ if self.desk().is_fleeting() => Ok(()),
                Settlement::Ack => self.answer(tag, Answer::Done),
                Settlement::Return => self.give_back(tag),
                Settlement::ReturnAfter(_) => Err(Error::new(
                    ErrorKind::Unsupported,
                    "gRPC holds nothing back for later",
                )),
            };
            if let Err(error) = settled {
                batch.fail(index, error);
            }
        }
        Progress::Done(batch)
    }
}
