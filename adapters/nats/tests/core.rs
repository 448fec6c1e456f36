//! The conformance suite on core NATS, where everything is at most once.

mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    let config =
        "[defaults]\ndelivery = \"at_most_once\"\n[transports.main.nats]\njetstream = false";
    support::harness::run("core", config)
}
