//! The conformance suite on Kafka.

mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A member hears soon of others, and is missed as soon as a broker allows, or the tests that wait for it would take long. Keyless
    // messages go to any partition, one by one: the library would send all of some milliseconds to one, and the other members of a
    // small test's group would never see any.
    let config = "[transports.main.kafka]\ndiscovery = \"200ms\"\nsession_timeout = \"6s\"\nproperties = { \"sticky.partitioning.linger.ms\" = 0, \"heartbeat.interval.ms\" = 100, \"fetch.wait.max.ms\" = 50 }";
    support::harness::run("kafka", config)
}
