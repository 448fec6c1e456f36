//! Configuration: what carries the messages, and everything operations may change without a build.
//!
//! Layers, the later over the earlier: built-in defaults, `[defaults]`, attributes and builders, `[[subjects]]` and
//! `[handlers.NAME]` of the file, the environment, what the program forces. Operations beat code; but `delivery` and
//! `order` in code are floors that neither file nor environment may weaken.

mod effective;
mod handler;
mod keys;
mod kind;
mod layer;
mod loader;
mod nearest;
mod origin;
mod resolve;
mod secret;
mod settings;
mod subject;
mod transport;
mod tree;
mod url;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

pub use effective::Effective;
pub use handler::{CallHandler, Handler};
pub use loader::Loader;
pub use nearest::unknown_scheme;
pub use origin::Origin;
pub use settings::{AfterFailure, HandlerSettings, SubjectRule, Unrouted};
pub use subject::SubjectSettings;
pub use transport::{Endpoint, Tls, TransportConfig};

use crate::pattern::publish_subscribe::{Guarantee, Provision};
use crate::{Codec, Error};
use layer::{Layer, MAIN};
use origin::Said;

/// Reads a time, as in `"10s"` or `"1m 30s"`: for the section of an adapter, with `#[serde(deserialize_with = ...)]`.
///
/// # Errors
/// Where it is no such text.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Visitor;

    impl serde::de::Visitor<'_> for Visitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a time, as in \"10s\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
            humantime::parse_duration(text)
                .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_str(Visitor)
}

/// A configuration, read and checked. Cheap to clone; `Debug` holds no secret.
///
/// It is `Deserialize`, so that it nests in a user's own settings; unknown keys are errors there, too.
///
/// ```
/// use anywire::Config;
///
/// let config = Config::from_toml("url = 'nats://localhost:4222'\ngrace = '10s'")?;
/// assert_eq!(config.grace().as_secs(), 10);
/// assert!(Config::from_toml("grase = '10s'").is_err());
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone)]
pub struct Config(Arc<Inner>);

struct Inner {
    layer: Layer,
    turn: u32,
    rules: Arc<[SubjectRule]>,
    /// Every transport is the memory transport.
    on_memory: bool,
}

impl Config {
    /// The configuration of this process: the file in `ANYWIRE_CONFIG`, or `anywire.toml` in the working directory if it
    /// exists, and the environment.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming file and line or variable, the key and the remedy.
    pub fn load() -> Result<Self, Error> {
        Loader::of_process()?.load()
    }

    /// A loader without any layer.
    pub fn loader() -> Loader {
        Loader::default()
    }

    /// The configuration in `text`, and nothing else.
    ///
    /// # Errors
    /// As [`load`](Self::load); the file is called `configuration`.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        Self::loader().toml("configuration", text).load()
    }

    /// This configuration with a layer over it that beats all others.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn forced(self, text: &str) -> Result<Self, Error> {
        Self::loader().base(self).force(text).load()
    }

    /// This configuration with every transport mapped to memory, whatever its URL says. For tests.
    #[must_use]
    pub fn on_memory(&self) -> Self {
        Self(Arc::new(Inner {
            layer: self.0.layer.clone(),
            turn: self.0.turn,
            rules: Arc::clone(&self.0.rules),
            on_memory: true,
        }))
    }

    /// How long handlers may go on when the app stops. Default: 25 s.
    #[must_use]
    pub fn grace(&self) -> Duration {
        or(&self.0.layer.top.grace, defaults::GRACE)
    }

    /// How long a start waits for a broker that cannot be reached. Default: for ever.
    #[must_use]
    pub fn connect_timeout(&self) -> Option<Duration> {
        layer::value(&self.0.layer.top.connect_timeout)
    }

    /// The deadline of a call that names none. Default: 10 s.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        or(&self.0.layer.top.request_timeout, defaults::REQUEST_TIMEOUT)
    }

    /// The deadline of an emit that names none. Default: 10 s.
    #[must_use]
    pub fn emit_timeout(&self) -> Duration {
        or(&self.0.layer.top.emit_timeout, defaults::EMIT_TIMEOUT)
    }

    /// How long the wire keeps messages that nobody has taken, where no rule says otherwise. Default: 7 days.
    #[must_use]
    pub fn retention(&self) -> Duration {
        or(&self.0.layer.top.retention, defaults::RETENTION)
    }

    /// How long dead letters are kept. Default: 30 days.
    #[must_use]
    pub fn dead_letter_retention(&self) -> Duration {
        let said = &self.0.layer.top.dead_letter_retention;
        or(said, defaults::DEAD_LETTER_RETENTION)
    }

    /// What may be done to the broker's objects, where no handler says otherwise. Default: create.
    #[must_use]
    pub fn provision(&self) -> Provision {
        or(&self.0.layer.top.provision, Provision::Create)
    }

    /// How a client encodes what it sends. Default: JSON.
    #[must_use]
    pub fn codec(&self) -> Codec {
        or(&self.0.layer.defaults.codec, Codec::Json)
    }

    /// The delivery of events for which nobody says it. Default: at least once.
    #[must_use]
    pub fn guarantee(&self) -> Guarantee {
        or(&self.0.layer.defaults.guarantee, Guarantee::AtLeastOnce)
    }

    /// The name of the transport that carries events. Default: `main`.
    #[must_use]
    pub fn events_transport(&self) -> &str {
        name_or_main(&self.0.layer.top.events)
    }

    /// The name of the transport that carries calls. Default: `main`.
    #[must_use]
    pub fn calls_transport(&self) -> &str {
        name_or_main(&self.0.layer.top.calls)
    }

    /// The `[[subjects]]` rules, in the order in which they are tried.
    #[must_use]
    pub fn rules(&self) -> &[SubjectRule] {
        &self.0.rules
    }

    fn from_layer(layer: Layer, turn: u32) -> Result<Self, Error> {
        let rules = layer.subjects.iter().map(|section| section.rule.clone());
        let config = Self(Arc::new(Inner {
            rules: rules.collect(),
            layer,
            turn,
            on_memory: false,
        }));
        config.check_transports()?;
        Ok(config)
    }

    fn layer(&self) -> &Layer {
        &self.0.layer
    }

    fn turn(&self) -> u32 {
        self.0.turn
    }

    fn is_on_memory(&self) -> bool {
        self.0.on_memory
    }
}

/// What holds when nobody says otherwise.
mod defaults {
    use std::time::Duration;

    const DAY: u64 = 24 * 60 * 60;

    pub(super) const GRACE: Duration = Duration::from_secs(25);
    pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
    pub(super) const EMIT_TIMEOUT: Duration = Duration::from_secs(10);
    pub(super) const RETENTION: Duration = Duration::from_secs(7 * DAY);
    pub(super) const DEAD_LETTER_RETENTION: Duration = Duration::from_secs(30 * DAY);
    pub(super) const CONCURRENCY: usize = 64;
    pub(super) const TIMEOUT: Duration = Duration::from_secs(60);
    pub(super) const STREAM_HEARTBEAT: Duration = Duration::from_secs(5);
    /// As long as it takes.
    pub(super) const STREAM_TIMEOUT: Duration = Duration::from_secs(100 * 366 * DAY);
    pub(super) const RETRY: [Duration; 6] = [
        Duration::from_millis(200),
        Duration::from_secs(1),
        Duration::from_secs(5),
        Duration::from_secs(30),
        Duration::from_secs(2 * 60),
        Duration::from_secs(10 * 60),
    ];
}

fn or<T: Clone>(said: &Option<Said<T>>, default: T) -> T {
    layer::value(said).unwrap_or(default)
}

fn name_or_main(said: &Option<Said<String>>) -> &str {
    said.as_ref().map_or(MAIN, |said| said.value.as_str())
}

impl Default for Config {
    /// No URL, no rules, all defaults.
    fn default() -> Self {
        Self(Arc::new(Inner {
            layer: Layer::default(),
            turn: 0,
            rules: Arc::default(),
            on_memory: false,
        }))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.effective().lines()).finish()
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = toml::Table::deserialize(deserializer)?;
        Loader::load_settings(table).map_err(serde::de::Error::custom)
    }
}
