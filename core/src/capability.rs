//! What a transport can do, declared once, as data.

use std::fmt;
use std::time::Duration;

/// How a transport comes by an ability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// The wire has it.
    Native,
    /// The adapter or core builds it from what the wire has.
    Emulated,
    /// Not to be had. A handler that needs it does not start.
    Unsupported,
}

impl Support {
    /// Whether it is to be had, either way.
    #[must_use]
    pub const fn is_supported(self) -> bool {
        matches!(self, Self::Native | Self::Emulated)
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Emulated => "emulated",
            Self::Unsupported => "no",
        })
    }
}

/// How far a transport keeps the order of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OrderScope {
    /// No order at all.
    None,
    /// As published, to a single consumer.
    Consumer,
    /// Per key, across all consumers of a group: what `order = "key-in-group"` needs.
    KeyInGroup,
    /// The same, but what has no key has no order: a log in several partitions.
    KeyAloneInGroup,
}

impl fmt::Display for OrderScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Consumer => "per consumer",
            Self::KeyInGroup => "per key in group",
            Self::KeyAloneInGroup => "per key in group, none without",
        })
    }
}

/// What the wire's own count of deliveries is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryCount {
    /// Each delivery is counted.
    Exact,
    /// At least so many.
    LowerBound,
    /// The wire does not count.
    None,
}

impl fmt::Display for DeliveryCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::LowerBound => "lower bound",
            Self::None => "no",
        })
    }
}

/// The sizes that a transport takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload, in bytes.
    pub max_payload: usize,
    /// The longest subject, in bytes.
    pub max_subject: usize,
    /// Whether header values may be any bytes; else the adapter escapes them.
    pub binary_headers: bool,
}

/// What a transport can do. Used to select conformance tests, to check handlers at start-up and to write the table in
/// the README; a declaration that is not true fails the conformance suite.
///
/// ```
/// use anywire::Support;
/// use anywire::config::TransportConfig;
/// use anywire::transport::Adapter;
///
/// let adapter = anywire::memory::adapter();
/// let capabilities = adapter.capabilities(&TransportConfig::bare("main", "shop", "memory"));
/// assert_eq!(capabilities.calls, Support::Native);
/// assert!(capabilities.rows().contains(&("durable", "no".to_owned())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Messages survive when no consumer is attached and when the broker restarts.
    pub durable: Support,
    /// Competing consumers inside a group, a full copy for each group.
    pub groups: Support,
    /// How far order is kept.
    pub order: OrderScope,
    /// A new group can read what was published before it existed.
    pub replay: Support,
    /// A delivery can be given back for later.
    pub return_after: Support,
    /// What the wire's count of deliveries is worth.
    pub delivery_count: DeliveryCount,
    /// A completed publish means that the wire has stored the message.
    pub confirm: Support,
    /// A publish that reaches no store is told.
    pub unroutable: Support,
    /// For how long a repeated id is dropped.
    pub dedup: Option<Duration>,
    /// `*` and `>` in patterns.
    pub wildcards: Support,
    /// Calls, with one reply each.
    pub calls: Support,
    /// A call that nobody answers fails at once instead of at its deadline.
    pub no_responder: Support,
    /// Streaming calls.
    pub streams: Support,
    /// A message can be published for later.
    pub delay: Support,
    /// Sizes.
    pub limits: Limits,
}

impl Capabilities {
    /// The declaration as rows of (name, value), for tables. `limits` is left out.
    #[must_use]
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let Self {
            durable,
            groups,
            order,
            replay,
            return_after,
            delivery_count,
            confirm,
            unroutable,
            dedup,
            wildcards,
            calls,
            no_responder,
            streams,
            delay,
            limits: _,
        } = self;
        let window = |window: &Duration| humantime::format_duration(*window).to_string();
        vec![
            ("durable", durable.to_string()),
            ("groups", groups.to_string()),
            ("order", order.to_string()),
            ("replay", replay.to_string()),
            ("return_after", return_after.to_string()),
            ("delivery_count", delivery_count.to_string()),
            ("confirm", confirm.to_string()),
            ("unroutable", unroutable.to_string()),
            (
                "dedup",
                dedup.as_ref().map_or_else(|| "no".to_owned(), window),
            ),
            ("wildcards", wildcards.to_string()),
            ("calls", calls.to_string()),
            ("no_responder", no_responder.to_string()),
            ("streams", streams.to_string()),
            ("delay", delay.to_string()),
        ]
    }
}
