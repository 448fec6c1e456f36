//! Counters, under fixed names, through the `metrics` facade.
//!
//! Handles are made when an app starts, so install a recorder before that. Without one nothing is measured.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::router::HandlerInfo;

/// Events that a transport accepted.
pub const PUBLISHED: &str = "anywire.published";
/// Events that could not be published.
pub const PUBLISH_FAILED: &str = "anywire.publish_failed";
/// Events that nobody took, where that is allowed.
pub const UNROUTED: &str = "anywire.unrouted";
/// Deliveries and calls that reached a handler; label `handler`.
pub const RECEIVED: &str = "anywire.received";
/// Deliveries and calls that a handler finished well; label `handler`.
pub const HANDLED: &str = "anywire.handled";
/// Attempts that failed and are tried again; label `handler`.
pub const RETRIED: &str = "anywire.retried";
/// Deliveries that became dead letters; label `handler`.
pub const DEAD_LETTERED: &str = "anywire.dead_lettered";
/// Deliveries that were not worth keeping; label `handler`.
pub const DISCARDED: &str = "anywire.discarded";
/// Calls that were answered with an error; label `handler`.
pub const REFUSED: &str = "anywire.refused";
/// Calls that were dropped because their callers had given up; label `handler`.
pub const EXPIRED: &str = "anywire.expired";
/// Settlements that failed: the messages are delivered again; label `handler`.
pub const UNSETTLED: &str = "anywire.unsettled";
/// Handlers that run or wait to be tried again; label `handler`.
pub const IN_FLIGHT: &str = "anywire.in_flight";
/// How long a delivery took, from its first poll to its outcome, in seconds; label `handler`.
pub const DURATION: &str = "anywire.duration";

pub(crate) struct ClientMetrics {
    pub(crate) published: Counter,
    pub(crate) failed: Counter,
    pub(crate) unrouted: Counter,
}

impl ClientMetrics {
    pub(crate) fn new(app: &str) -> Self {
        let app = app.to_owned();
        Self {
            published: counter!(PUBLISHED, "app" => app.clone()),
            failed: counter!(PUBLISH_FAILED, "app" => app.clone()),
            unrouted: counter!(UNROUTED, "app" => app),
        }
    }
}

pub(crate) struct HandlerMetrics {
    pub(crate) received: Counter,
    pub(crate) handled: Counter,
    pub(crate) retried: Counter,
    pub(crate) dead_lettered: Counter,
    pub(crate) discarded: Counter,
    pub(crate) refused: Counter,
    pub(crate) expired: Counter,
    pub(crate) unsettled: Counter,
    pub(crate) in_flight: Gauge,
    /// `None` where nobody records: reading the clock twice a message is not free.
    pub(crate) duration: Option<Histogram>,
}

impl HandlerMetrics {
    pub(crate) fn new(info: &HandlerInfo) -> Self {
        let count = |name: &'static str| counter!(name, "handler" => info.name.clone());
        Self {
            received: count(RECEIVED),
            handled: count(HANDLED),
            retried: count(RETRIED),
            dead_lettered: count(DEAD_LETTERED),
            discarded: count(DISCARDED),
            refused: count(REFUSED),
            expired: count(EXPIRED),
            unsettled: count(UNSETTLED),
            in_flight: gauge!(IN_FLIGHT, "handler" => info.name.clone()),
            duration: is_recorded().then(|| histogram!(DURATION, "handler" => info.name.clone())),
        }
    }
}

/// The facade does not tell whether a recorder is installed, but its own stand-in is a type of no size.
fn is_recorded() -> bool {
    metrics::with_recorder(|recorder| size_of_val(recorder) > 0)
}
