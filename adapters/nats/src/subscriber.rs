//! The role that subscribes: to streams, or to the air.

use std::sync::Arc;

use anywire::Error;
use anywire::pattern::publish_subscribe::{
    Guarantee, Incoming, Spec, Start, Store, Stored, Subscriber, SubscriptionId, no_history,
};
use async_trait::async_trait;
use futures::future::join_all;

use crate::fleeting::Fleeting;
use crate::intake::Intake;
use crate::transport::Connection;

/// How many subscriptions are opened side by side.
const SIDE_BY_SIDE: usize = 16;

/// The role that subscribes.
#[derive(Debug)]
pub(crate) struct NatsSubscriber {
    connection: Arc<Connection>,
}

impl NatsSubscriber {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    async fn open(&self, spec: &Spec) -> Result<Box<dyn Incoming>, Error> {
        let connection = &self.connection;
        connection.check_open()?;
        let opened: Result<Box<dyn Incoming>, Error> = match spec.guarantee {
            Guarantee::AtMostOnce if spec.start.needs_history() || spec.until.is_some() => {
                Err(forgetful())
            }
            Guarantee::AtMostOnce => {
                let fleeting = Fleeting::open(connection, spec).await;
                fleeting.map(|fleeting| Box::new(fleeting) as Box<dyn Incoming>)
            }
            Guarantee::AtLeastOnce => {
                connection.require_jetstream()?;
                let intake = Intake::open(connection, spec).await;
                intake.map(|intake| Box::new(intake) as Box<dyn Incoming>)
            }
        };
        opened.map_err(|error| {
            error
                .with_operation("subscribe")
                .with_context("subscription", &spec.subscription)
        })
    }
}

fn forgetful() -> Error {
    no_history(
        "core NATS keeps nothing that it has delivered; take JetStream and delivery = \"at_least_once\"",
    )
}

#[async_trait]
impl Subscriber for NatsSubscriber {
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

    async fn stored(&self, group: &str) -> Result<Vec<Stored>, Error> {
        self.connection.check_open()?;
        if !self.connection.config.jetstream {
            return Ok(Vec::new());
        }
        self.connection.topology.stored(group).await
    }

    async fn reset(&self, subscription: &SubscriptionId, start: &Start) -> Result<(), Error> {
        self.connection.check_open()?;
        if !self.connection.config.jetstream {
            return Err(forgetful().with_context("subscription", subscription));
        }
        self.connection.topology.reset(subscription, start).await
    }
}

impl NatsSubscriber {
    async fn declare_one(&self, store: &Store) -> Result<(), Error> {
        self.connection.check_open()?;
        if !self.connection.config.jetstream {
            // Nothing fails that was to be kept: at most once, a failure is the end.
            return Ok(());
        }
        self.connection.topology.ensure_store(store).await
    }
}
