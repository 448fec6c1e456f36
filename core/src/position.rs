//! Where a message stands in what a wire keeps.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Error;

/// Where a delivered message stands in what its wire keeps: something to write down, and to
/// [start](crate::Start::Position) from again on the same wire.
///
/// It is opaque: its parts mean something to its adapter alone, and its text is only for storing it. Two positions of one
/// place can be told apart, but not compared.
///
/// ```
/// use anywire::Position;
///
/// let text = "orders.placed/2/4711@1700000000000"; // what an adapter wrote
/// let position: Position = text.parse()?;
/// assert_eq!(position.to_string(), text);
/// assert!("somewhere".parse::<Position>().is_err());
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    place: Arc<str>,
    part: u32,
    number: u64,
    /// In milliseconds since 1970; negative for none.
    time: i64,
}

impl Position {
    /// A position, for adapters: the place that keeps the message, such as a stream or a topic, a part of it, and the
    /// message's number there.
    pub fn new(place: impl Into<Arc<str>>, part: u32, number: u64) -> Self {
        Self {
            place: place.into(),
            part,
            number,
            time: -1,
        }
    }

    /// Adds when the message was stored, to the millisecond, for wires whose parts have no order among each other.
    #[must_use]
    pub fn with_time(mut self, time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).ok();
        let millis = since.and_then(|since| i64::try_from(since.as_millis()).ok());
        self.time = millis.unwrap_or(-1);
        self
    }

    /// The place.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The part of the place.
    #[must_use]
    pub fn part(&self) -> u32 {
        self.part
    }

    /// The number in the part.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When the message was stored, where the position tells.
    #[must_use]
    pub fn time(&self) -> Option<SystemTime> {
        let millis = u64::try_from(self.time).ok()?;
        UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.place, self.part, self.number)?;
        match self.time {
            time if time < 0 => Ok(()),
            time => write!(f, "@{time}"),
        }
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = || {
            let mut parts = text.rsplitn(3, '/');
            let (last, part, place) = (parts.next()?, parts.next()?, parts.next()?);
            let (number, time) = match last.split_once('@') {
                Some((number, time)) => (number, time.parse().ok().filter(|time| *time >= 0)?),
                None => (last, -1),
            };
            Some(Self {
                place: place.into(),
                part: part.parse().ok()?,
                number: number.parse().ok()?,
                time,
            })
        };
        parts().ok_or_else(|| {
            Error::config("the text is no position; take one that `delivery.position()` gave")
        })
    }
}

impl serde::Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_text_that_no_adapter_wrote_is_refused() {
        for text in [
            "",
            "a",
            "a/1",
            "a/1/",
            "a/x/1",
            "a/1/2@",
            "a/1/2@-3",
            "a/1/-2",
            "a/1/99999999999999999999",
        ] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_down_is_read_again(place in "\\PC{0,20}", part: u32, number: u64, millis in 0..=i64::MAX as u64 / 2, timed: bool) {
            let mut position = Position::new(place, part, number);
            if timed {
                position = position.with_time(UNIX_EPOCH + Duration::from_millis(millis));
                assert_eq!(position.time().unwrap(), UNIX_EPOCH + Duration::from_millis(millis));
            }
            assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
            let json = serde_json::to_string(&position).unwrap();
            assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position);
        }
    }
}
