//! Tests that need something from outside, which the environment names. Without it they are ignored, with the reason, and
//! never reported as passed.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// How long a test may take before it counts as failed, so that one that awaits in vain does not stop all others.
const LIMIT: Duration = Duration::from_secs(300);
/// How long what it has left behind may take to end.
const LEAVE: Duration = Duration::from_secs(10);
/// How many tests run at a time where none looks at the whole process.
pub const SIDE_BY_SIDE: usize = 4;

/// A test: its name, and what it does; it fails by a panic.
pub type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

/// Makes `main` of the variables that the tests need and of a list of async functions, in a `[[test]]` with
/// `harness = false`. A few run side by side; after `in turn,` one at a time, as what looks at the whole process (its memory,
/// threads or sockets) must.
///
/// ```
/// mod tests {
///     anywire_conformance::trials![["ANYWIRE_TEST_SOME_SERVER"] => it_answers];
///
///     async fn it_answers() {
///         assert_eq!(6 * 7, 42);
///     }
/// }
/// ```
#[macro_export]
macro_rules! trials {
    ([$($variable:expr),* $(,)?] => $($name:ident),* $(,)?) => {
        $crate::trials![$crate::rig::trials::SIDE_BY_SIDE, [$($variable),*] => $($name),*];
    };
    (in turn, [$($variable:expr),* $(,)?] => $($name:ident),* $(,)?) => {
        $crate::trials![1, [$($variable),*] => $($name),*];
    };
    ($at_once:expr, [$($variable:expr),*] => $($name:ident),*) => {
        fn main() -> ::std::process::ExitCode {
            $crate::rig::trials::run(
                $at_once,
                &[$($variable),*],
                &[$((stringify!($name), || ::std::boxed::Box::pin($name()))),*],
            )
        }
    };
}

/// Why the tests cannot run: the first of these variables that is not set.
///
/// # Panics
/// In CI, where one is missing: it must not be green because a broker was not there.
#[must_use]
pub fn missing(variables: &[&str]) -> Option<String> {
    let is_missing = |name: &&&str| std::env::var_os(name).is_none();
    let name = variables.iter().find(is_missing)?;
    let required = std::env::var_os("CI").is_some();
    assert!(!required, "CI runs these tests: set {name}");
    Some(format!("{name} is not set; tools/test sets it"))
}

/// Runs the tests, so many at a time, each on a runtime of its own.
#[must_use]
pub fn run(at_once: usize, variables: &[&str], tests: &'static [Test]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(at_once);
    let missing = missing(variables);
    let trials = tests.iter().map(|(name, test)| match missing.clone() {
        Some(reason) => Trial::ignorable_test(*name, || Ok(Completion::ignored_with(reason))),
        None => Trial::test(*name, move || on_a_runtime(*test)),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn on_a_runtime(test: fn() -> Pin<Box<dyn Future<Output = ()>>>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let limited = || runtime.block_on(async { tokio::time::timeout(LIMIT, test()).await });
    let ended = catch_unwind(AssertUnwindSafe(limited));
    // What still blocks a thread of it must not stop the others.
    runtime.shutdown_timeout(LEAVE);
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Failed::from(format!("it has not ended after {LIMIT:?}"))),
        Err(panic) => Err(Failed::from(text(panic.as_ref()))),
    }
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it panicked").to_owned()
}
