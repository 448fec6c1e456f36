//! What the attributes accept and what they say when they refuse: one sentence per file in `ui/`.
//!
//! The compiler's own wording moves between releases, so the messages are pinned on one. To write them anew:
//! `TRYBUILD=overwrite cargo test -p anywire-macros --test ui`.

use std::process::Command;

/// The release that wrote the `.stderr` files.
const PINNED: &str = "rustc 1.95.0 ";

#[test]
fn programs_that_are_right_compile() {
    trybuild::TestCases::new().pass("tests/ui/pass/*.rs");
}

#[test]
fn wrong_use_gets_one_error_that_says_what_to_write() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-V").output().unwrap();
    let version = String::from_utf8_lossy(&output.stdout);
    if !version.starts_with(PINNED) {
        println!("skipped: the messages are pinned on {PINNED}and this is {version}");
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/ui/fail/*.rs");
}
