//! What the broker refused a moment ago, and would refuse again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anywire::{Error, ErrorKind};
use parking_lot::Mutex;

/// For how long what was refused once is refused without asking: each asking closes the channel that the others use.
const REMEMBERED: Duration = Duration::from_secs(5);
/// How many refusals are remembered.
const REFUSALS: usize = 64;

/// The last refusals, by route.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<VecDeque<Refusal>>);

/// Something that the broker refused.
#[derive(Debug)]
struct Refusal {
    route: u64,
    why: String,
    at: Instant,
}

impl Refusals {
    /// Why nothing may go where it was refused.
    pub(crate) fn find(&self, route: u64) -> Option<Error> {
        let mut refusals = self.0.lock();
        while let Some(first) = refusals.front()
            && first.at.elapsed() > REMEMBERED
        {
            refusals.pop_front();
        }
        let refusal = refusals.iter().find(|refusal| refusal.route == route)?;
        Some(denied(&refusal.why))
    }

    /// Notes a refusal, and gives it as an error.
    pub(crate) fn remember(&self, route: u64, why: &str) -> Error {
        let mut refusals = self.0.lock();
        if refusals.iter().all(|refusal| refusal.route != route) {
            if refusals.len() == REFUSALS {
                refusals.pop_front();
            }
            refusals.push_back(Refusal {
                route,
                why: why.to_owned(),
                at: Instant::now(),
            });
        }
        denied(why)
    }
}

fn denied(text: &str) -> Error {
    Error::new(
        ErrorKind::Denied,
        format!("RabbitMQ refuses: {text}; give the user the permission"),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_last_refusals_are_remembered_and_no_more() {
        let refusals = Refusals::default();
        let routes = 0..=REFUSALS as u64;
        for route in routes {
            refusals.remember(route, "no");
            refusals.remember(route, "no");
        }
        assert!(refusals.find(0).is_none());
        assert_eq!(refusals.find(1).unwrap().kind(), ErrorKind::Denied);
        assert_eq!(refusals.0.lock().len(), REFUSALS);
    }
}
