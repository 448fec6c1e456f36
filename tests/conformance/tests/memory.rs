//! The suite over the memory transport.

mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    let skips = concat!(env!("CARGO_MANIFEST_DIR"), "/skips/memory.txt");
    anywire_conformance::run(support::Memory::default(), skips)
}
