//! Where a subscription begins in what a wire keeps, and where it ends.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use crate::{Error, Position};

/// Where a new group begins, or a subscription without one.
///
/// As text it is `earliest`, `latest`, a time such as `2026-11-01T00:00:00Z`, or a position. A time or a position needs a
/// wire that [keeps what it has delivered](crate::Capabilities::replay).
///
/// ```
/// use anywire::Start;
///
/// assert_eq!("latest".parse::<Start>()?, Start::Latest);
/// assert!(matches!("2026-11-01T00:00:00Z".parse()?, Start::At(_)));
/// assert!(matches!("orders.placed/2/4711".parse()?, Start::Position(_)));
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the oldest message that the wire still holds.
    Earliest,
    /// With the next message that is published.
    Latest,
    /// With the first message that was stored at this time or later, by the clock of whoever stamps messages on the wire. A
    /// time before all of them is the earliest, one after all of them the latest.
    At(SystemTime),
    /// With this message, or the next one after it that the wire still holds. Beyond the end it is the latest.
    ///
    /// A position names one part of one place. In the other parts, such as the other partitions of a topic, it begins with what
    /// was stored at the message's time or later.
    Position(Position),
}

impl Start {
    /// Whether it needs a wire that keeps what it has delivered.
    #[must_use]
    pub const fn needs_history(&self) -> bool {
        matches!(self, Self::At(_) | Self::Position(_))
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::At(time) => humantime::format_rfc3339(*time).fmt(f),
            Self::Position(position) => position.fmt(f),
        }
    }
}

impl FromStr for Start {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(match text {
            "earliest" => Self::Earliest,
            "latest" => Self::Latest,
            _ => match humantime::parse_rfc3339(text) {
                Ok(time) => Self::At(time),
                Err(_) => Self::Position(text.parse().map_err(|_| {
                    Error::config(
                        "a start is \"earliest\", \"latest\", a time such as \"2026-11-01T00:00:00Z\", or a position",
                    )
                })?),
            },
        })
    }
}

impl From<Position> for Start {
    fn from(position: Position) -> Self {
        Self::Position(position)
    }
}

impl serde::Serialize for Start {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Start {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a bounded read ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Until {
    /// With the last message that is stored when the subscription is opened.
    Now,
}
