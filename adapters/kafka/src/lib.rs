#![doc = include_str!("../README.md")]

mod calls;
mod catalog;
mod config;
mod errand;
mod errors;
mod group;
mod health;
mod intake;
mod lane;
mod member;
mod names;
mod placed;
mod post;
mod producer;
mod publisher;
mod pulse;
mod reader;
mod replies;
mod reset;
mod server;
mod shelf;
mod subscriber;
mod subscription;
mod transport;
mod watermark;
mod window;
mod wire;

use std::any::Any;

use anywire::Client;

pub use config::{Compression, GroupProtocol, KafkaConfig, Property};
pub use transport::KafkaAdapter;

/// The scheme of the URL, and the name of the configuration section.
pub const SCHEME: &str = "kafka";
/// The scheme of a URL whose brokers are reached with TLS alone.
pub const TLS_SCHEME: &str = "kafkas";

/// The adapter for `kafka://` and `kafkas://`.
///
/// ```
/// use anywire::App;
///
/// let app = App::new("shop").adapter(anywire_kafka::adapter());
/// ```
#[must_use]
pub fn adapter() -> KafkaAdapter {
    KafkaAdapter::default()
}

/// The settings of the transport `main`, for what only Kafka has: a program makes clients of its own from them. `None`
/// where that is no Kafka.
///
/// They hold the credentials. What such a client publishes is not ours to confirm, and what it consumes is not ours to
/// settle.
#[must_use]
pub fn native(client: &Client) -> Option<rdkafka::ClientConfig> {
    native_of(client, "main")
}

/// As [`native`], for the transport that the configuration calls `name`.
#[must_use]
pub fn native_of(client: &Client, name: &str) -> Option<rdkafka::ClientConfig> {
    let transport = client.transport(name)?;
    let transport: &dyn Any = &*transport;
    let transport: &transport::KafkaTransport = transport.downcast_ref()?;
    transport.client_config()
}
