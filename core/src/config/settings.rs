//! Settings of handlers and subjects. `None` means "not said here": a lower layer or the default decides.

use std::time::Duration;

use crate::pattern::publish_subscribe::{Guarantee, Order, Provision, Start};
use crate::{Codec, Pattern};

/// What may be set for a handler: in code, in `[defaults]`, in `[handlers.NAME]`.
///
/// ```
/// use anywire::{Config, HandlerSettings, Pattern};
///
/// let config = Config::from_toml("[handlers.placed]\nconcurrency = 8")?;
/// let code = HandlerSettings { concurrency: Some(4), ..HandlerSettings::default() };
/// let handler = config.handler("placed", &Pattern::parse("shop.placed")?, &code, "shop")?;
/// assert_eq!(handler.concurrency, 8); // operations beat code
/// assert_eq!(handler.origin("concurrency").to_string(), "configuration:2");
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HandlerSettings {
    /// The group that shares the work. Default: the app's name.
    pub group: Option<String>,
    /// A copy for every instance. Default: no.
    pub broadcast: Option<bool>,
    /// How many run at once. Default: 64.
    pub concurrency: Option<usize>,
    /// How long one attempt may take. Default: 60 s.
    pub timeout: Option<Duration>,
    /// The waits before the second attempt, the third, and so on. Default: 200 ms, 1 s, 5 s, 30 s, 2 min, 10 min.
    pub retry: Option<Vec<Duration>>,
    /// How sure the delivery is. Default: at least once.
    pub guarantee: Option<Guarantee>,
    /// The order of the messages of one key. Default: one at a time in this instance.
    pub order: Option<Order>,
    /// What a failed message does to its key. Default: it lets it go after its in-place steps.
    pub after_failure: Option<AfterFailure>,
    /// Where a new group begins. Default: earliest; a broadcast subscription: latest.
    pub start: Option<Start>,
    /// The transport, by its name in the configuration.
    pub transport: Option<String>,
    /// What may be done to the broker's objects. Default: create.
    pub provision: Option<Provision>,
    /// How replies, and what the handler's client sends, are encoded. Default: JSON.
    pub codec: Option<Codec>,
}

/// What a failed message does to the messages of its key that come after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterFailure {
    /// It holds them during its in-place steps, up to 1 s each, then lets them pass.
    #[default]
    Pass,
    /// It holds them through its whole schedule, which may be 2 minutes long at the most.
    Hold,
}

/// What an at-least-once event does that no store took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unrouted {
    /// It fails with [`NoRoute`](crate::ErrorKind::NoRoute).
    #[default]
    Refuse,
    /// It counts as accepted and is logged.
    Warn,
    /// It counts as accepted.
    Ignore,
}

/// A `[[subjects]]` rule: what holds for the subjects that it matches. The first match wins.
#[derive(Clone, Debug, PartialEq)]
pub struct SubjectRule {
    /// Which subjects.
    pub pattern: Pattern,
    /// The transport that carries them, by its name in the configuration.
    pub transport: Option<String>,
    /// How sure the delivery is.
    pub guarantee: Option<Guarantee>,
    /// How long the wire keeps what nobody has taken.
    pub retention: Option<Duration>,
    /// How many copies a cluster keeps.
    pub replicas: Option<u32>,
    /// What an event does that reaches nobody.
    pub unrouted: Option<Unrouted>,
    /// Create the store though no handler of this app subscribes.
    pub declare: bool,
    /// What only one wire understands: a table for each scheme.
    pub native: std::collections::BTreeMap<String, toml::Table>,
}
