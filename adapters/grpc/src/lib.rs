#![doc = include_str!("../README.md")]

mod body;
mod calls;
mod codec;
mod config;
mod desk;
mod errors;
mod front;
mod names;
mod part;
mod pipe;
mod pool;
mod progress;
mod publisher;
mod server;
mod socket;
mod streams;
mod subscriber;
mod switchboard;
mod transport;
mod wire;

use std::any::Any;

use anywire::Client;

pub use config::GrpcConfig;
pub use transport::GrpcAdapter;

/// The scheme of the URL, and the name of the configuration section.
pub const SCHEME: &str = "grpc";
/// The scheme of a URL whose peers are reached with TLS, and who reach us so.
pub const TLS_SCHEME: &str = "grpcs";

/// The adapter for `grpc://` and `grpcs://`.
///
/// ```
/// use anywire::App;
///
/// let app = App::new("shop").adapter(anywire_grpc::adapter());
/// ```
#[must_use]
pub fn adapter() -> GrpcAdapter {
    GrpcAdapter::default()
}

/// The vendor's channel to the next peer in turn of the transport `main`, for what only gRPC has; `None` where that is no gRPC, or no peer
/// is connected.
///
/// What is sent through it is not ours to bound or to send again, and it ends when its peer goes.
#[must_use]
pub fn native(client: &Client) -> Option<tonic::transport::Channel> {
    native_of(client, "main")
}

/// As [`native`], for the transport that the configuration calls `name`.
#[must_use]
pub fn native_of(client: &Client, name: &str) -> Option<tonic::transport::Channel> {
    let transport = client.transport(name)?;
    let transport: &dyn Any = &*transport;
    transport
        .downcast_ref()
        .and_then(transport::GrpcTransport::channel)
}
