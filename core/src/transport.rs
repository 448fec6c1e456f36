//! A transport and the adapter that makes it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::config::TransportConfig;
use crate::pattern::publish_subscribe::{Publisher, Spec, Subscriber};
use crate::pattern::request_reply::{CallSpec, Requester, Responder};
use crate::pattern::streaming::Streamer;
pub use crate::seldom::Seldom;
use crate::{Capabilities, Error};

/// What `.adapter(..)` takes: knows the schemes of a wire and connects to it.
#[async_trait]
pub trait Adapter: fmt::Debug + Send + Sync + 'static {
    /// The URL schemes that it answers to, such as `nats`. The first is the name of its configuration section.
    fn schemes(&self) -> &'static [&'static str];

    /// Checks a configuration without connecting: the URL and the adapter's own section.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming the key and the remedy, and never a secret.
    fn check(&self, config: &TransportConfig) -> Result<(), Error>;

    /// What a transport of this configuration can do.
    fn capabilities(&self, config: &TransportConfig) -> Capabilities;

    /// The broker's objects that these subscriptions and calls need, for people and for CI.
    fn describe(
        &self,
        config: &TransportConfig,
        specs: &[Spec],
        calls: &[CallSpec],
    ) -> Vec<BrokerObject>;

    /// Connects, once.
    ///
    /// # Errors
    /// `Denied` and `Config` stop the start; `Unavailable` makes core try again, for as long as it is configured to.
    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error>;
}

/// A connection to a wire, in its roles. A wrapper is a transport that holds a transport.
///
/// Once connected, it must reconnect by itself, for ever, with jittered back-off, and tell by [`status`](Self::status).
#[async_trait]
pub trait Transport: Any + fmt::Debug + Send + Sync {
    /// What this connection can do.
    fn capabilities(&self) -> Capabilities;

    /// The role that publishes.
    fn publisher(&self) -> Arc<dyn Publisher>;

    /// The role that subscribes.
    fn subscriber(&self) -> Arc<dyn Subscriber>;

    /// The role that calls; `None` where the wire has no calls.
    fn requester(&self) -> Option<Arc<dyn Requester>>;

    /// The role that answers calls; `None` where the wire has no calls.
    fn responder(&self) -> Option<Arc<dyn Responder>>;

    /// The role that opens and accepts streaming calls; `None` where the wire has none. A client asks for it once.
    fn streamer(&self) -> Option<Arc<dyn Streamer>>;

    /// The state of the connection, and its changes.
    fn status(&self) -> watch::Receiver<Status>;

    /// Flushes and closes. Afterwards every operation is an error of kind [`Closed`](crate::ErrorKind::Closed).
    ///
    /// Must return within `grace`, may be called again and concurrently, and closes reply addresses last.
    async fn close(&self, grace: Duration) -> Result<(), Error>;
}

/// The state of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// All is well.
    Connected,
    /// Works, with a restriction that says what to look at.
    Degraded(String),
    /// The connection was lost; the adapter is trying to get it back.
    Reconnecting,
    /// Closed for good.
    Closed,
}

impl Status {
    /// Whether messages flow.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected | Self::Degraded(_))
    }
}

/// An object on the broker: what it is, its name, and what the app's user must be allowed to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerObject {
    /// Such as `queue`, `stream`, `topic`.
    pub kind: &'static str,
    /// Its name on the broker.
    pub name: String,
    /// Such as `read`, `write`, `create`.
    pub permissions: Vec<&'static str>,
}
