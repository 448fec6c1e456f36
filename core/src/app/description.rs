//! What an app is made of, for people, for CI, and for a document generator.

use std::fmt;
use std::sync::Arc;

use super::plan::Plan;
use crate::HandlerInfo;
use crate::pattern::publish_subscribe::{Guarantee, Order, Spec};
use crate::pattern::request_reply::CallSpec;
use crate::transport::BrokerObject;

/// The handlers of an app, their subscriptions, and the broker's objects that they need.
///
/// `Display` is a page for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Description {
    /// The app's name.
    pub app: String,
    /// Its handlers, with their doc comments and types.
    pub handlers: Vec<Arc<HandlerInfo>>,
    /// Its subscriptions.
    pub subscriptions: Vec<DescribedSubscription>,
    /// The broker's objects, each with the name of its transport.
    pub objects: Vec<(String, BrokerObject)>,
    /// The configuration as it takes effect, with where each value came from.
    pub configuration: String,
}

/// A subscription of an app.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DescribedSubscription {
    /// The handler behind it.
    pub handler: String,
    /// Group and pattern, as the broker sees them.
    pub subscription: String,
    /// How sure the delivery is.
    pub guarantee: Guarantee,
    /// The order of the messages of one key.
    pub order: Order,
    /// How many run at once.
    pub concurrency: usize,
}

impl Description {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut objects = Vec::new();
        for (index, wire) in plan.wires.iter().enumerate() {
            let handlers = || {
                plan.handlers
                    .iter()
                    .filter(move |handler| handler.wire == index)
            };
            let specs: Vec<Spec> = handlers().filter_map(|handler| handler.spec()).collect();
            let calls: Vec<CallSpec> = handlers()
                .filter_map(|handler| handler.call_spec())
                .collect();
            let described = wire.adapter.describe(&wire.config, &specs, &calls);
            objects.extend(
                described
                    .into_iter()
                    .map(|object| (wire.config.name.clone(), object)),
            );
        }
        let subscriptions = plan.handlers.iter().filter_map(|handler| {
            let event = handler.event()?;
            Some(DescribedSubscription {
                handler: handler.info.name.clone(),
                subscription: handler.subscription().to_string(),
                guarantee: event.guarantee,
                order: event.order,
                concurrency: event.concurrency,
            })
        });
        Self {
            app: plan.app.clone(),
            handlers: plan
                .handlers
                .iter()
                .map(|handler| Arc::clone(&handler.info))
                .collect(),
            subscriptions: subscriptions.collect(),
            objects,
            configuration: plan.config.effective().to_string(),
        }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "app {}", self.app)?;
        for handler in &self.handlers {
            let HandlerInfo {
                name,
                kind,
                pattern,
                transport,
                payload_type,
                reply_type,
                ..
            } = &**handler;
            writeln!(
                f,
                "  {kind} {name}: {pattern} on {transport}, {payload_type} -> {reply_type}"
            )?;
            for line in handler.doc.lines() {
                writeln!(f, "      {line}")?;
            }
        }
        for subscription in &self.subscriptions {
            let DescribedSubscription {
                handler,
                subscription,
                guarantee,
                order,
                concurrency,
            } = subscription;
            writeln!(
                f,
                "  subscription {subscription}: {handler}, {guarantee:?}, order {order:?}, {concurrency} at once"
            )?;
        }
        for (transport, object) in &self.objects {
            let BrokerObject {
                kind,
                name,
                permissions,
            } = object;
            writeln!(
                f,
                "  {transport}: {kind} {name} ({})",
                permissions.join(", ")
            )?;
        }
        Ok(())
    }
}
