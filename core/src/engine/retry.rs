//! The retry schedule: what becomes of a failed attempt.

use std::time::Duration;

use crate::config::AfterFailure;
use crate::{Class, Failure, Guarantee};

/// Steps up to this long are waited for in place; longer ones in the broker.
const IN_PLACE: Duration = Duration::from_secs(1);
/// The longest wait that can be asked for: the top rung of the wires' delay ladder, about four years.
pub(crate) const LONGEST: Duration = Duration::from_secs(1 << 27);
/// Waits in place are shortened at random by at most one part in so many, so that failures do not return in step.
const JITTER: u32 = 10;

/// How one subscription retries.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Schedule {
    pub(crate) steps: Vec<Duration>,
    pub(crate) after_failure: AfterFailure,
    pub(crate) guarantee: Guarantee,
    /// The subscription cannot be addressed: copies would reach others, or nobody.
    pub(crate) broadcast: bool,
    /// It handles dead letters: they are never dead-lettered again.
    pub(crate) dead_letters: bool,
    /// The wire can deliver a copy later; else every wait is in place.
    pub(crate) delays: bool,
}

/// What becomes of a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Wait here, holding the message and its key, then try again.
    InPlace(Duration),
    /// Publish a copy for this subscription, due then, and acknowledge.
    Copy(Duration),
    /// Publish a dead letter and acknowledge.
    DeadLetter,
    /// Acknowledge and count.
    Discard,
    /// The schedule of a dead letter has ended: it is kept, said so, and tried again now and then.
    Park(Duration),
}

impl Schedule {
    /// The verdict on the attempt that made it `failed` failures, from 1.
    pub(crate) fn verdict(&self, failed: u32, failure: &Failure) -> Verdict {
        match failure.class() {
            Class::Discard => return Verdict::Discard,
            _ if self.guarantee == Guarantee::AtMostOnce => return Verdict::Discard,
            Class::Permanent => return self.end(),
            Class::Transient => {}
        }
        let index = usize::try_from(failed.saturating_sub(1)).unwrap_or(usize::MAX);
        let Some(&step) = self.steps.get(index) else {
            return self.end();
        };
        let wait = failure.delay().unwrap_or(step).min(LONGEST);
        let held = self.after_failure == AfterFailure::Hold || self.dead_letters || !self.delays;
        if wait <= IN_PLACE || held {
            Verdict::InPlace(jittered(wait))
        } else if self.broadcast {
            Verdict::DeadLetter
        } else {
            Verdict::Copy(wait)
        }
    }

    /// The broker's own count of deliveries beyond which a message is taken for one that kills its handlers.
    pub(crate) fn crash_limit(&self) -> u32 {
        u32::try_from(self.steps.len())
            .unwrap_or(u32::MAX)
            .saturating_add(21)
    }

    fn end(&self) -> Verdict {
        if self.dead_letters {
            let rest = self.steps.last().copied().unwrap_or(IN_PLACE);
            return Verdict::Park(rest.max(IN_PLACE));
        }
        Verdict::DeadLetter
    }
}

/// Shortened, never lengthened: a step is the most that is waited.
fn jittered(wait: Duration) -> Duration {
    wait - wait.mul_f64(crate::random::fraction() / f64::from(JITTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(steps: &[u64]) -> Schedule {
        Schedule {
            steps: steps
                .iter()
                .map(|&millis| Duration::from_millis(millis))
                .collect(),
            after_failure: AfterFailure::Pass,
            guarantee: Guarantee::AtLeastOnce,
            broadcast: false,
            dead_letters: false,
            delays: true,
        }
    }

    #[test]
    fn short_steps_are_in_place_and_long_ones_in_the_broker() {
        let schedule = schedule(&[200, 1_000, 5_000]);
        let transient = Failure::transient("x");
        let in_place = |verdict, most| matches!(verdict, Verdict::InPlace(wait) if wait <= Duration::from_millis(most));
        assert!(in_place(schedule.verdict(1, &transient), 200));
        assert!(in_place(schedule.verdict(2, &transient), 1_000));
        assert_eq!(
            schedule.verdict(3, &transient),
            Verdict::Copy(Duration::from_secs(5))
        );
        assert_eq!(schedule.verdict(4, &transient), Verdict::DeadLetter);
        assert_eq!(
            schedule.verdict(1, &Failure::permanent("x")),
            Verdict::DeadLetter
        );
        assert_eq!(
            schedule.verdict(1, &Failure::discard("x")),
            Verdict::Discard
        );
    }

    #[test]
    fn an_explicit_delay_takes_the_place_of_the_step_but_not_of_its_end() {
        let later = || Failure::transient("x").retry_after(Duration::from_secs(7));
        assert_eq!(
            schedule(&[200]).verdict(1, &later()),
            Verdict::Copy(Duration::from_secs(7))
        );
        assert_eq!(schedule(&[200]).verdict(2, &later()), Verdict::DeadLetter);
    }

    #[test]
    fn special_subscriptions_have_their_own_ends() {
        let transient = Failure::transient("x");
        let broadcast = Schedule {
            broadcast: true,
            ..schedule(&[5_000])
        };
        assert_eq!(broadcast.verdict(1, &transient), Verdict::DeadLetter);
        let lossy = Schedule {
            guarantee: Guarantee::AtMostOnce,
            ..schedule(&[200])
        };
        assert_eq!(lossy.verdict(1, &transient), Verdict::Discard);
        let dead = Schedule {
            dead_letters: true,
            ..schedule(&[5_000])
        };
        assert!(matches!(dead.verdict(1, &transient), Verdict::InPlace(_)));
        assert_eq!(
            dead.verdict(2, &transient),
            Verdict::Park(Duration::from_secs(5))
        );
        assert_eq!(
            dead.verdict(1, &Failure::permanent("x")),
            Verdict::Park(Duration::from_secs(5))
        );
        let hold = Schedule {
            after_failure: AfterFailure::Hold,
            ..schedule(&[5_000])
        };
        assert!(matches!(hold.verdict(1, &transient), Verdict::InPlace(_)));
        let undelayed = Schedule {
            delays: false,
            ..schedule(&[200])
        };
        let later = transient.retry_after(Duration::from_secs(7));
        assert!(matches!(undelayed.verdict(1, &later), Verdict::InPlace(_)));
    }

    proptest! {
        #[test]
        fn every_schedule_ends_and_no_wait_is_longer_than_its_step(steps in prop::collection::vec(0_u64..100_000, 0..8)) {
            let schedule = schedule(&steps);
            let transient = Failure::transient("x");
            for (index, &step) in steps.iter().enumerate() {
                let failed = u32::try_from(index + 1).unwrap();
                match schedule.verdict(failed, &transient) {
                    Verdict::InPlace(wait) => {
                        prop_assert!(wait <= Duration::from_millis(step));
                        prop_assert!(wait >= Duration::from_millis(step).mul_f64(0.89));
                        prop_assert!(step <= 1_000);
                    }
                    Verdict::Copy(wait) => prop_assert_eq!(wait, Duration::from_millis(step)),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let beyond = u32::try_from(steps.len() + 1).unwrap();
            prop_assert_eq!(schedule.verdict(beyond, &transient), Verdict::DeadLetter);
            prop_assert_eq!(schedule.verdict(u32::MAX, &transient), Verdict::DeadLetter);
        }
    }
}
