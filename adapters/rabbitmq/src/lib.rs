#![doc = include_str!("../README.md")]

mod calls;
mod config;
mod dial;
mod errors;
mod feed;
mod intake;
mod lane;
mod ledger;
mod link;
mod names;
mod outlet;
mod parcel;
mod post;
mod publisher;
mod refusals;
mod server;
mod sieve;
mod socket;
mod subscriber;
mod topology;
mod transport;
mod wire;

use std::any::Any;
use std::sync::Arc;

use anywire::Client;

pub use config::{Auth, QueueType, RabbitmqConfig};
pub use transport::RabbitmqAdapter;

/// The scheme of the URL, and the name of the configuration section.
pub const SCHEME: &str = "rabbitmq";
/// The scheme of a URL as other programs write it.
pub const AMQP_SCHEME: &str = "amqp";
/// The scheme of a URL whose servers are reached with TLS alone.
pub const TLS_SCHEME: &str = "amqps";

/// The adapter for `amqp://`, `amqps://` and `rabbitmq://`.
///
/// ```
/// use anywire::App;
///
/// let app = App::new("shop").adapter(anywire_rabbitmq::adapter());
/// ```
#[must_use]
pub fn adapter() -> RabbitmqAdapter {
    RabbitmqAdapter::default()
}

/// The vendor's connection behind the transport `main`, for what only RabbitMQ has; `None` where that is no RabbitMQ, and
/// while the connection is lost.
///
/// It ends with the connection to the broker; ask again for the next one. Open a channel of your own on it: what is published
/// there is not ours to confirm, and what is consumed there is not ours to settle.
#[must_use]
pub fn native(client: &Client) -> Option<Arc<lapin::Connection>> {
    native_of(client, "main")
}

/// As [`native`], for the transport that the configuration calls `name`.
#[must_use]
pub fn native_of(client: &Client, name: &str) -> Option<Arc<lapin::Connection>> {
    let transport = client.transport(name)?;
    let transport: &dyn Any = &*transport;
    transport
        .downcast_ref::<transport::RabbitmqTransport>()?
        .native()
}
