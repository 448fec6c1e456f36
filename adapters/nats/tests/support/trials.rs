//! Tests that need a server: without one they are ignored, with the reason, and never reported as passed.

#![allow(
    unused_macros,
    unused_imports,
    reason = "the suites have a main of their own"
)]

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// A test: its name, and what it does.
pub(crate) type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

/// Makes `main` of a list of async functions.
macro_rules! tests_with_a_server {
    ($($name:ident),* $(,)?) => {
        fn main() -> std::process::ExitCode {
            $crate::support::trials::run(&[$((stringify!($name), || Box::pin($name()))),*])
        }
    };
}

pub(crate) use tests_with_a_server;

/// Runs the tests, a few side by side.
pub(crate) fn run(tests: &'static [Test]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(4);
    let missing = super::missing();
    let trials = tests.iter().map(|(name, test)| match missing {
        Some(reason) => Trial::ignorable_test(*name, move || Ok(Completion::ignored_with(reason))),
        None => Trial::test(*name, move || on_a_runtime(*test)),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn on_a_runtime(test: fn() -> Pin<Box<dyn Future<Output = ()>>>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let done = catch_unwind(AssertUnwindSafe(|| runtime.block_on(test())));
    done.map_err(|panic| Failed::from(text(panic.as_ref())))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it panicked").to_owned()
}
