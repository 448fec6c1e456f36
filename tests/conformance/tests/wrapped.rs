//! The suite over a transport that holds the memory transport: a wrapper keeps the contract.

mod support;

use std::process::ExitCode;

use support::Wrapped;
use support::broken::Fault;

fn main() -> ExitCode {
    let skips = concat!(env!("CARGO_MANIFEST_DIR"), "/skips/memory.txt");
    anywire_conformance::run(Wrapped::new("wrapped", Fault::None), skips)
}
