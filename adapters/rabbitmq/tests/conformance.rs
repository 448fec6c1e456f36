//! The conformance suite on RabbitMQ.

mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    support::harness::run()
}
