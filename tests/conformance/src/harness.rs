//! What an adapter supplies to be tested.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anywire::clock::{Clock, TokioClock};
use anywire::config::{Config, TransportConfig};
use anywire::pattern::publish_subscribe::SubscriptionId;
use anywire::transport::{Adapter, Transport};
use anywire::{Capabilities, Error, Subject};
use async_trait::async_trait;
use bytes::Bytes;

/// How often a side of a stream gives a sign of life.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);

/// The adapter under test. One harness serves the whole suite, from many tests at once, on runtimes of their own.
///
/// What it keeps for the whole run (a server, a native connection) it should open before the suite starts: sockets and
/// threads that outlive the tests are taken for leaks.
pub trait Harness: Send + Sync + 'static {
    /// The name that begins each test's name, such as `nats`.
    fn name(&self) -> &str;

    /// The adapter. Called many times; what it connects to is the same each time.
    fn adapter(&self) -> Arc<dyn Adapter>;

    /// The configuration of an app on this wire, as TOML: at least `url = "..."`.
    fn config(&self) -> String;

    /// What the subjects of a test begin with: legal on the wire, and as unique as `test`, which names test and run and
    /// holds only lower-case letters, digits and `-`.
    fn subject(&self, test: &str) -> String {
        test.to_owned()
    }

    /// The way to the broker itself; without it the behaviours that need a fault are skipped.
    fn broker(&self) -> Option<&dyn BrokerControl> {
        None
    }

    /// A native client; without it the behaviours of foreign peers are skipped.
    fn raw(&self) -> Option<&dyn Raw> {
        None
    }

    /// How much longer a test may take, and one that stops the broker: a broker that takes its time to form a group or to start is
    /// not at fault.
    fn patience(&self, _stops_the_broker: bool) -> Duration {
        Duration::ZERO
    }

    /// The clock of transports and apps.
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(TokioClock)
    }
}

impl dyn Harness {
    /// The adapter's declaration for this configuration. It decides which behaviours are tested.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.adapter().capabilities(&self.transport_config())
    }

    /// A new client, independent of all others.
    ///
    /// # Errors
    /// As [`Adapter::connect`].
    pub async fn connect(&self) -> Result<Arc<dyn Transport>, Error> {
        let (adapter, config) = (self.adapter(), self.transport_config());
        adapter.connect(config, self.clock()).await
    }

    /// The harness' configuration, read.
    ///
    /// # Panics
    /// When it is wrong.
    #[must_use]
    pub fn app_config(&self) -> Config {
        Config::from_toml(&self.config()).expect("the harness' configuration is right")
    }

    fn transport_config(&self) -> TransportConfig {
        let schemes = self.adapter().schemes();
        let resolved = self.app_config().resolve("main", "conformance", &[schemes]);
        let mut config =
            resolved.expect("the harness' configuration names a transport of its adapter");
        config.stream_heartbeat = HEARTBEAT;
        config
    }
}

impl fmt::Debug for dyn Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Harness({})", self.name())
    }
}

/// Breaks the broker, and mends it. Each method returns when its effect is there.
///
/// Tests that use it run alone, and mend what they break.
#[async_trait]
pub trait BrokerControl: Send + Sync {
    /// Starts the broker after a stop, and waits until it answers.
    async fn start(&self) -> io::Result<()>;

    /// Stops the broker in an orderly way. What it stored stays.
    async fn stop(&self) -> io::Result<()>;

    /// Kills the broker without warning (SIGKILL). What it confirmed must stay.
    async fn kill(&self) -> io::Result<()>;

    /// Makes the broker accept connections and answer nothing (SIGSTOP).
    async fn freeze(&self) -> io::Result<()>;

    /// Ends a freeze (SIGCONT).
    async fn thaw(&self) -> io::Result<()>;

    /// Cuts the network between all clients and the broker, silently: packets vanish, connections stay.
    async fn cut(&self) -> io::Result<()>;

    /// Ends a cut.
    async fn heal(&self) -> io::Result<()>;

    /// Ends all client connections that are open now.
    async fn kill_connections(&self) -> io::Result<()>;
}

/// A native client of the wire: what a program does that knows nothing of anywire.
#[async_trait]
pub trait Raw: Send + Sync {
    /// Publishes a foreign message to where `subject` is on this wire.
    ///
    /// # Errors
    /// [`Unsupported`](io::ErrorKind::Unsupported) for headers that this wire cannot carry at all.
    async fn publish(&self, subject: &Subject, message: Foreign) -> io::Result<()>;

    /// How many messages wait in a subscription or are under way from it; `None` where the wire cannot tell.
    async fn depth(&self, subscription: &SubscriptionId) -> io::Result<Option<u64>>;
}

/// A message from a program that knows nothing of anywire: no id, no content type, none of our headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// The bytes.
    pub payload: Bytes,
    /// Headers, as native ones.
    pub headers: Vec<(String, Bytes)>,
}

impl Foreign {
    /// A message without headers.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            headers: Vec::new(),
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}
