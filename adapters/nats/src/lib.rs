#![doc = include_str!("../README.md")]

mod api;
mod calls;
mod config;
mod cover;
mod coverage;
mod errors;
mod fleeting;
mod hostile;
mod inflow;
mod intake;
mod lease;
mod ledger;
mod link;
mod names;
mod post;
mod publisher;
mod settle;
mod source;
mod subscriber;
mod topology;
mod transport;
mod wire;

use std::any::Any;

use anywire::Client;

pub use config::{NatsConfig, Storage};
pub use transport::NatsAdapter;

/// The scheme of the URL, and the name of the configuration section.
pub const SCHEME: &str = "nats";
/// The scheme of a URL whose servers are reached with TLS alone.
pub const TLS_SCHEME: &str = "tls";

/// The adapter for `nats://` and `tls://`.
///
/// ```
/// use anywire::App;
///
/// let app = App::new("shop").adapter(anywire_nats::adapter());
/// ```
#[must_use]
pub fn adapter() -> NatsAdapter {
    NatsAdapter::default()
}

/// The vendor's client behind the transport `main`, for what only NATS has; `None` where that is no NATS.
///
/// What is published through it is not ours to confirm, and what it subscribes to is not ours to settle.
#[must_use]
pub fn native(client: &Client) -> Option<async_nats::Client> {
    native_of(client, "main")
}

/// As [`native`], for the transport that the configuration calls `name`.
#[must_use]
pub fn native_of(client: &Client, name: &str) -> Option<async_nats::Client> {
    let transport = client.transport(name)?;
    let transport: &dyn Any = &*transport;
    transport
        .downcast_ref()
        .map(transport::NatsTransport::client)
}
