//! Lines of log that must not become a flood.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// Lets a line of log pass once in ten seconds, so that what goes wrong all the time is not said all the time.
///
/// ```
/// use anywire::transport::Seldom;
///
/// let lost = Seldom::default();
/// assert!(lost.is_due());
/// assert!(!lost.is_due());
/// ```
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether to say it again; who is told so is expected to.
    pub fn is_due(&self) -> bool {
        self.is_due_at(Instant::now())
    }

    fn is_due_at(&self, now: Instant) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= PAUSE);
        if due {
            *last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_in_a_while() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let said = (0..25).filter(|second| seldom.is_due_at(start + Duration::from_secs(*second)));
        assert_eq!(said.collect::<Vec<_>>(), [0, 10, 20]);
    }
}
