//! Tests that need something from outside, which the environment names.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

/// A test: its name, and what it does; it fails by a panic.
pub type Test = (&'static str, fn());

/// Runs the tests if all the variables are set. Else they are ignored, with the reason, and never reported as passed.
///
/// # Panics
/// In CI, where a variable is missing: it must not be green because a broker was not there.
#[must_use]
pub fn run(variables: &[&str], tests: &[Test]) -> ExitCode {
    let is_missing = |name: &&&str| std::env::var_os(name).is_none();
    let missing = variables.iter().find(is_missing).map(|name| {
        let required = std::env::var_os("CI").is_some();
        assert!(!required, "CI runs these tests: set {name}");
        format!("{name} is not set; tools/test sets it")
    });
    let trial = |&(name, test): &Test| match missing.clone() {
        Some(reason) => Trial::ignorable_test(name, || Ok(Completion::ignored_with(reason))),
        None => Trial::test(name, move || {
            test();
            Ok(())
        }),
    };
    let trials = tests.iter().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
