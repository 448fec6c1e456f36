//! The behaviours, a module for each section. Their ids are those of the specification; gaps are behaviours that no wire
//! so far can show.

pub mod addressing;
pub mod answering;
pub mod backpressure;
pub mod basic;
pub mod batches;
pub mod configuration;
pub mod dead_letters;
pub mod delay;
pub mod draining;
pub mod faults;
pub mod fidelity;
pub mod groups;
pub mod handlers;
pub mod lifecycle;
pub mod observability;
pub mod ordering;
pub mod publishing;
pub mod redelivery;
pub mod replay;
pub mod request_reply;
pub mod retrying;
pub mod settlement;
pub mod shutdown;
pub mod streaming;
pub mod subscribing;
pub mod working;

use crate::Behaviour;

/// All behaviours, in order.
pub fn behaviours() -> impl Iterator<Item = &'static Behaviour> {
    SECTIONS.iter().flat_map(|section| section.iter())
}

const SECTIONS: &[&[Behaviour]] = &[
    basic::ALL,
    fidelity::ALL,
    addressing::ALL,
    settlement::ALL,
    subscribing::ALL,
    redelivery::ALL,
    retrying::ALL,
    ordering::ALL,
    groups::ALL,
    replay::ALL,
    lifecycle::ALL,
    shutdown::ALL,
    draining::ALL,
    backpressure::ALL,
    batches::ALL,
    publishing::ALL,
    delay::ALL,
    faults::ALL,
    dead_letters::ALL,
    request_reply::ALL,
    answering::ALL,
    streaming::ALL,
    working::ALL,
    handlers::ALL,
    configuration::ALL,
    observability::ALL,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    use crate::Need;

    #[test]
    fn every_behaviour_that_is_written_is_listed_once() {
        let sources = [
            include_str!("addressing.rs"),
            include_str!("answering.rs"),
            include_str!("backpressure.rs"),
            include_str!("basic.rs"),
            include_str!("batches.rs"),
            include_str!("configuration.rs"),
            include_str!("dead_letters.rs"),
            include_str!("delay.rs"),
            include_str!("draining.rs"),
            include_str!("faults.rs"),
            include_str!("fidelity.rs"),
            include_str!("groups.rs"),
            include_str!("handlers.rs"),
            include_str!("lifecycle.rs"),
            include_str!("observability.rs"),
            include_str!("ordering.rs"),
            include_str!("publishing.rs"),
            include_str!("redelivery.rs"),
            include_str!("replay.rs"),
            include_str!("request_reply.rs"),
            include_str!("retrying.rs"),
            include_str!("settlement.rs"),
            include_str!("shutdown.rs"),
            include_str!("streaming.rs"),
            include_str!("subscribing.rs"),
            include_str!("working.rs"),
        ];
        let written = sources
            .iter()
            .flat_map(|source| source.split("pub async fn ").skip(1))
            .filter_map(|rest| rest.split('(').next());
        let listed: Vec<_> = behaviours().map(|behaviour| behaviour.name).collect();
        let unique: HashSet<_> = listed.iter().copied().collect();
        assert_eq!(unique.len(), listed.len(), "a behaviour is listed twice");
        assert_eq!(written.collect::<HashSet<_>>(), unique);
        assert_eq!(sources.len(), SECTIONS.len());
    }

    #[test]
    fn every_capability_that_can_be_declared_is_exercised() {
        let exercised: Vec<_> = behaviours().flat_map(|behaviour| behaviour.needs).collect();
        for need in Need::ALL {
            assert!(exercised.contains(&&need), "nothing exercises {need:?}");
        }
    }
}
