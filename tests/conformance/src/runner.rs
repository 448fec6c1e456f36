//! Runs the suite: one test per behaviour, on a runtime of its own.

use std::any::Any;
use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Once, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::{Builder, Runtime};

use crate::leaks::{Census, tasks_end};
use crate::skips::Skips;
use crate::{Behaviour, Harness, Profile, Test, behaviours};

/// How long after its deadline a test that blocks its threads is waited for.
const GRACE: Duration = Duration::from_secs(5);

/// How many tests run at once unless `--test-threads` says otherwise. They wait more than they work.
const SIDE_BY_SIDE: usize = 8;

/// Runs the whole suite against an adapter, as the `main` of a test with `harness = false`.
///
/// Each behaviour is one test, `<harness>::<behaviour>`; the arguments are those of the built-in test harness. A
/// behaviour whose needs are not declared is *ignored* with the reason. The reasons are printed as a table and compared
/// with the file at `skips`: a difference fails, and `ANYWIRE_BLESS=1` writes the file.
///
/// `ANYWIRE_PROFILE` chooses how hard it pushes ([`Profile`]), `ANYWIRE_SEED` repeats the randomness of a run that failed.
/// The crate's own page holds an example.
pub fn run(harness: impl Harness, skips: impl AsRef<Path>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(SIDE_BY_SIDE);
    let profile = match Profile::from_env() {
        Ok(profile) => profile,
        Err(sentence) => {
            eprintln!("{sentence}");
            return ExitCode::FAILURE;
        }
    };
    let harness: Arc<dyn Harness> = Arc::new(harness);
    let patience = harness.patience(false);
    let table = Skips::of(harness.as_ref());
    if !arguments.list {
        println!("{table}seed: ANYWIRE_SEED={}", run_seed());
    }
    let rounds = 0..profile.repeats();
    let mut behaviours: Vec<_> = rounds
        .flat_map(|round| behaviours().map(move |behaviour| (round, behaviour)))
        .collect();
    // A broker that holds little yet is soon back.
    behaviours.sort_by_key(|(_, behaviour)| !behaviour.is_serial());
    let mut trials: Vec<_> = behaviours
        .into_iter()
        .map(|(round, behaviour)| trial(&harness, behaviour, profile, round, &arguments))
        .collect();
    let path = skips.as_ref().to_owned();
    let name = format!("{}::skips_are_as_committed", harness.name());
    trials.push(Trial::test(name, move || {
        table.compare(&path).map_err(Failed::from)
    }));
    let before = Census::take();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Err(leak) = before.returns(patience) {
        eprintln!("the suite leaked sockets or threads: {leak}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// Runs one behaviour, whether its needs are declared or not.
///
/// # Errors
/// What went wrong, and the seed.
pub fn check(
    harness: &Arc<dyn Harness>,
    behaviour: &Behaviour,
    profile: Profile,
) -> Result<(), String> {
    report_panics();
    let seed = seed_of(behaviour);
    let (done, verdict) = mpsc::sync_channel(1);
    let test = Test::new(Arc::clone(harness), behaviour.name, profile, seed);
    let run = behaviour.run;
    let patience = harness.patience(false);
    let deadline = profile.deadline() + harness.patience(behaviour.is_serial());
    let thread = std::thread::Builder::new().name(behaviour.name.to_owned());
    thread
        .spawn(move || done.send(on_a_runtime(test, run, (deadline, patience))))
        .map_err(|error| format!("no thread for the test: {error}"))?;
    let verdict = match verdict.recv_timeout(deadline + patience + GRACE) {
        Ok(verdict) => verdict,
        Err(RecvTimeoutError::Timeout) => {
            Err("it blocks its threads: the deadline could not end it".to_owned())
        }
        Err(RecvTimeoutError::Disconnected) => Err("its thread died".to_owned()),
    };
    verdict.map_err(|fault| format!("{fault}\nseed: ANYWIRE_SEED={}", run_seed()))
}

fn trial(
    harness: &Arc<dyn Harness>,
    behaviour: &'static Behaviour,
    profile: Profile,
    round: usize,
    arguments: &Arguments,
) -> Trial {
    let mut name = format!("{}::{}", harness.name(), behaviour.name);
    if round > 0 {
        name = format!("{name}#{round}");
    }
    if let Some(reason) = behaviour.skipped(harness.as_ref()) {
        return Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason)));
    }
    let harness = Arc::clone(harness);
    let alone = behaviour.is_serial() || arguments.test_threads == Some(1);
    Trial::test(name, move || {
        let checked = if alone {
            check_alone(&harness, behaviour, profile)
        } else {
            let _side_by_side = TURN.read().unwrap_or_else(PoisonError::into_inner);
            check(&harness, behaviour, profile)
        };
        checked.map_err(Failed::from)
    })
}

/// Held for reading by tests that run side by side, for writing by one that runs alone.
static TURN: RwLock<()> = RwLock::new(());

/// A test that runs alone is also answerable for every socket and thread of the process.
fn check_alone(
    harness: &Arc<dyn Harness>,
    behaviour: &Behaviour,
    profile: Profile,
) -> Result<(), String> {
    let _alone = TURN.write().unwrap_or_else(PoisonError::into_inner);
    let before = Census::take();
    check(harness, behaviour, profile)?;
    before
        .returns(harness.patience(false))
        .map_err(|leak| format!("it leaked sockets or threads: {leak}"))
}

fn on_a_runtime(
    test: Test,
    run: for<'a> fn(&'a Test) -> futures::future::BoxFuture<'a, ()>,
    (deadline, patience): (Duration, Duration),
) -> Result<(), String> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(test.name())
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime for the test: {error}"))?;
    let behave = || runtime.block_on(async { tokio::time::timeout(deadline, run(&test)).await });
    let verdict = match catch_unwind(AssertUnwindSafe(behave)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(format!("it was not over after {deadline:?}")),
        Err(panic) => Err(text(panic.as_ref())),
    };
    let verdict = verdict.and_then(|()| leaves_nothing(&runtime, test, patience));
    runtime.shutdown_timeout(GRACE / 2);
    verdict
}

fn leaves_nothing(runtime: &Runtime, test: Test, patience: Duration) -> Result<(), String> {
    runtime.block_on(test.finish());
    drop(test);
    tasks_end(runtime, patience)
}

thread_local! {
    /// Where the last panic of this thread happened.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of tests, and those that handlers make on purpose, are not printed: what matters of them is in the report.
fn report_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            if behaviours().any(|behaviour| thread.name() == Some(behaviour.name)) {
                PLACE.set(panic.location().map(ToString::to_string));
            } else {
                others(panic);
            }
        }));
    });
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("it panicked");
    match PLACE.take() {
        Some(place) => format!("{text}\nat: {place}"),
        None => text.to_owned(),
    }
}

/// The seed of the whole run: `ANYWIRE_SEED`, or a random one.
fn run_seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| match std::env::var("ANYWIRE_SEED") {
        Ok(seed) => seed.parse().expect("ANYWIRE_SEED is a whole number"),
        Err(_) => rand::random(),
    })
}

fn seed_of(behaviour: &Behaviour) -> u64 {
    let mut hasher = DefaultHasher::new();
    (run_seed(), behaviour.name).hash(&mut hasher);
    hasher.finish()
}
