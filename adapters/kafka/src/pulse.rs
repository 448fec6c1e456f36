//! Whether a client of the library still knows a broker.
//!
//! A broker that has just started may list no brokers at all, and then the library forgets every one that it knows and never connects
//! again (librdkafka issue 5301, <https://github.com/confluentinc/librdkafka/issues/5301>; seen with 2.12.1 and one Kafka 4.3). So
//! each consumer is asked from time to time, and one that knows nobody while others do is made anew; so is the producer
//! ([`Catalog::revive`](crate::catalog::Catalog::revive)).

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

/// How often a client is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often one that may be lost.
const AGAIN: Duration = Duration::from_secs(1);
/// How often in a row it must know nobody, at least.
const SILENT: u32 = 3;
/// How long it may look for somebody.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// Asks a client whether it knows a broker.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// How long one that is well may know nobody.
    patience: Duration,
    next: Instant,
    silent: u32,
    since: Instant,
}

impl Pulse {
    pub(crate) fn new(patience: Duration) -> Self {
        let now = Instant::now();
        Self {
            patience,
            next: now + INTERVAL,
            silent: 0,
            since: now,
        }
    }

    /// Asks, where it is time to. `true` where the client is lost. `is_down`: no other client reaches a broker, either.
    pub(crate) fn is_lost<T>(
        &mut self,
        is_down: bool,
        ask: impl FnOnce() -> KafkaResult<T>,
    ) -> bool {
        let now = Instant::now();
        if now < self.next {
            return false;
        }
        let is_silent = !is_down && ask().is_err_and(|error| knows_nobody(&error));
        if self.silent == 0 {
            self.since = now;
        }
        self.silent = if is_silent { self.silent + 1 } else { 0 };
        let again = match is_silent || is_down {
            true => AGAIN,
            false => INTERVAL,
        };
        self.next = now + again;
        self.silent >= SILENT && self.since.elapsed() >= self.patience
    }
}

/// Whether a client found no broker that it could have asked.
pub(crate) fn knows_nobody(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(Code::BrokerTransportFailure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(pulse: &mut Pulse, is_down: bool, knows: bool) -> bool {
        pulse.next = Instant::now();
        let nobody = KafkaError::MetadataFetch(Code::BrokerTransportFailure);
        pulse.is_lost(is_down, || if knows { Ok(()) } else { Err(nobody) })
    }

    #[test]
    fn who_knows_nobody_again_and_again_is_lost() {
        let mut pulse = Pulse::new(Duration::ZERO);
        let told: Vec<bool> = (0..SILENT).map(|_| ask(&mut pulse, false, false)).collect();
        assert_eq!(told, [false, false, true]);
    }

    #[test]
    fn who_may_still_be_connecting_is_not() {
        let mut pulse = Pulse::new(Duration::from_secs(60));
        assert!(!(0..9).any(|_| ask(&mut pulse, false, false)));
    }

    #[test]
    fn who_knows_somebody_in_between_is_not() {
        let mut pulse = Pulse::new(Duration::ZERO);
        for _ in 0..3 {
            assert!(!ask(&mut pulse, false, false));
            assert!(!ask(&mut pulse, false, false));
            assert!(!ask(&mut pulse, false, true));
        }
    }

    #[test]
    fn nobody_is_asked_before_it_is_time_or_where_no_broker_is_there() {
        let mut pulse = Pulse::new(Duration::ZERO);
        let never = || -> KafkaResult<()> { unreachable!("asked") };
        assert!(!pulse.is_lost(false, never));
        assert!(!(0..9).any(|_| ask(&mut pulse, true, false)));
    }
}
