//! The conformance suite on JetStream.

mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A delivery that was lost with its connection comes again after the wait for its acknowledgement: not for longer than
    // the suite is patient.
    let config = "[transports.main.nats]\nack_wait = \"2s\"";
    support::harness::run("jetstream", config)
}
