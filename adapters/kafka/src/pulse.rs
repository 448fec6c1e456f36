//! Whether a client of the library still knows a broker.
//!
//! A broker that has just started may list no brokers at all, and then the library forgets every one that it knows and never connects
//! again (librdkafka issue 5301, <https://github.com/confluentinc/librdkafka/issues/5301>; seen with 2.12.1 and one Kafka 4.3). So
//! each client is asked from time to time, and one that knows nobody while others do is made anew.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

/// How often a client is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often one that may be lost.
const AGAIN: Duration = Duration::from_secs(1);
/// How often in a row it must know nobody.
const SILENT: u32 = 3;
/// How long it may look for somebody.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// Asks a client whether it knows a broker.
#[derive(Debug)]
pub(crate) struct Pulse {
    next: Instant,
    silent: u32,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self {
            next: Instant::now() + INTERVAL,
            silent: 0,
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
        self.silent = if is_silent { self.silent + 1 } else { 0 };
        self.next = now
            + if is_silent || is_down {
                AGAIN
            } else {
                INTERVAL
            };
        self.silent >= SILENT
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
        let mut pulse = Pulse::new();
        let told: Vec<bool> = (0..SILENT).map(|_| ask(&mut pulse, false, false)).collect();
        assert_eq!(told, [false, false, true]);
    }

    #[test]
    fn who_knows_somebody_in_between_is_not() {
        let mut pulse = Pulse::new();
        for _ in 0..3 {
            assert!(!ask(&mut pulse, false, false));
            assert!(!ask(&mut pulse, false, false));
            assert!(!ask(&mut pulse, false, true));
        }
    }

    #[test]
    fn nobody_is_asked_before_it_is_time_or_where_no_broker_is_there() {
        let mut pulse = Pulse::new();
        let never = || -> KafkaResult<()> { unreachable!("asked") };
        assert!(!pulse.is_lost(false, never));
        assert!(!(0..9).any(|_| ask(&mut pulse, true, false)));
    }
}
