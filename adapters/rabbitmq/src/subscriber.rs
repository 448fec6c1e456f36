//! The role that subscribes.

use std::sync::Arc;

use anywire::Error;
use anywire::pattern::publish_subscribe::{
    Incoming, Spec, Start, Store, Stored, Subscriber, SubscriptionId, no_history,
};
use async_trait::async_trait;
use futures::future::join_all;

use crate::intake::Intake;
use crate::transport::Connection;

/// How many subscriptions are opened side by side.
const SIDE_BY_SIDE: usize = 16;

/// The role that subscribes.
#[derive(Debug)]
pub(crate) struct RabbitmqSubscriber {
    connection: Arc<Connection>,
}

impl RabbitmqSubscriber {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    async fn open(&self, spec: &Spec) -> Result<Box<dyn Incoming>, Error> {
        self.connection.check_open()?;
        if spec.start.needs_history() || spec.until.is_some() {
            return Err(forgetful().with_context("subscription", &spec.subscription));
        }
        let opened = Intake::open(&self.connection, spec).await;
        let opened = opened.map(|intake| Box::new(intake) as Box<dyn Incoming>);
        opened.map_err(|error| {
            error
                .with_operation("subscribe")
                .with_context("subscription", &spec.subscription)
        })
    }

    async fn declare_one(&self, store: &Store) -> Result<(), Error> {
        self.connection.check_open()?;
        let link = self.connection.consuming().await?;
        let declaring = self.connection.topology.ensure_store(&link, store);
        link.while_live(declaring).await
    }
}

#[async_trait]
impl Subscriber for RabbitmqSubscriber {
    async fn subscribe(&self, specs: &[Spec]) -> Vec<Result<Box<dyn Incoming>, Error>> {
        let mut opened = Vec::with_capacity(specs.len());
        for some in specs.chunks(SIDE_BY_SIDE) {
            opened.extend(join_all(some.iter().map(|spec| self.open(spec))).await);
        }
        opened
    }

    async fn declare(&self, stores: &[Store]) -> Vec<Result<(), Error>> {
        let mut declared = Vec::with_capacity(stores.len());
        for store in stores {
            declared.push(self.declare_one(store).await);
        }
        declared
    }

    async fn stored(&self, _group: &str) -> Result<Vec<Stored>, Error> {
        // AMQP cannot ask which queues there are.
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
        "RabbitMQ's queues hold no history: what was acknowledged is gone; keep the subject on a wire that replays, such as Kafka or NATS with JetStream",
    )
}
