//! Rounds that alternate between ours and the baseline, so that a busy machine is busy for both.

use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

/// One measurement of one side.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Messages or calls per second.
    pub rate: f64,
    /// Allocations for each message or call.
    pub allocations: f64,
    /// Latencies, where they were taken.
    pub latencies: Latencies,
}

/// The percentiles of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latencies {
    /// Half of them were shorter.
    pub p50: Duration,
    /// 99 in 100 were shorter.
    pub p99: Duration,
    /// 999 in 1,000 were shorter.
    pub p999: Duration,
}

impl Measured {
    /// Measures `count` messages from `start` and the allocations at that time until now.
    #[must_use]
    pub fn since(start: Instant, allocated: u64, count: u64) -> Self {
        let seconds = start.elapsed().as_secs_f64();
        Self {
            rate: count as f64 / seconds,
            allocations: (crate::allocated() - allocated) as f64 / count as f64,
            latencies: Latencies::default(),
        }
    }

    /// Adds latencies.
    #[must_use]
    pub fn with_latencies(mut self, samples: Vec<Duration>) -> Self {
        self.latencies = Latencies::of(samples);
        self
    }
}

impl Latencies {
    fn of(mut samples: Vec<Duration>) -> Self {
        if samples.is_empty() {
            return Self::default();
        }
        samples.sort_unstable();
        let at = |part: f64| samples[((samples.len() - 1) as f64 * part) as usize];
        Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
        }
    }
}

/// The runtime of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// All tasks on one thread.
    One,
    /// Two worker threads.
    Two,
}

impl Runtime {
    /// Runs a future on a fresh runtime, as a task of it: not on a thread that only waits.
    pub fn run<T: Send + 'static>(self, future: impl Future<Output = T> + Send + 'static) -> T {
        let runtime = match self {
            Self::One => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build(),
            Self::Two => tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build(),
        };
        let runtime = runtime.expect("a runtime");
        runtime.block_on(async {
            tokio::spawn(future)
                .await
                .expect("a bench that does not panic")
        })
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "1 thread",
            Self::Two => "2 threads",
        })
    }
}

/// Runs both sides `rounds` times, in turns, after one round that does not count, and takes each side's median.
/// With `--side ours` or `--side baseline` only that one runs, for a profiler.
pub fn alternate(
    rounds: usize,
    mut ours: impl FnMut() -> Measured,
    mut baseline: impl FnMut() -> Measured,
) -> (Measured, Measured) {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--side");
    match arguments.nth(1).as_deref() {
        Some("ours") => return alternate_both(rounds, &mut ours, &mut || Measured::default()),
        Some("baseline") => {
            return alternate_both(rounds, &mut || Measured::default(), &mut baseline);
        }
        _ => {}
    }
    alternate_both(rounds, &mut ours, &mut baseline)
}

fn alternate_both(
    rounds: usize,
    ours: &mut dyn FnMut() -> Measured,
    baseline: &mut dyn FnMut() -> Measured,
) -> (Measured, Measured) {
    let (mut one, mut other) = (Vec::new(), Vec::new());
    ours();
    baseline();
    for _ in 0..rounds {
        one.push(ours());
        other.push(baseline());
    }
    (median(one), median(other))
}

fn median(mut runs: Vec<Measured>) -> Measured {
    runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    runs.swap_remove(runs.len() / 2)
}

/// Makes `count` calls, `callers` of them at once, and takes the latency of one in so many. `ask` is given their numbers.
pub async fn call<F, Fut>(callers: u64, count: u64, one_in: u64, ask: F) -> Measured
where
    F: Fn(u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let each = count / callers;
    let (start, before) = (Instant::now(), crate::allocated());
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let ask = ask.clone();
            tokio::spawn(async move {
                let mut samples = Vec::with_capacity((each / one_in + 1) as usize);
                for number in 0..each {
                    let begun = number.is_multiple_of(one_in).then(Instant::now);
                    ask(number).await;
                    samples.extend(begun.map(|begun| begun.elapsed()));
                }
                samples
            })
        })
        .collect();
    let mut samples: Vec<Duration> = Vec::new();
    for task in tasks {
        samples.extend(task.await.expect("no panic"));
    }
    Measured::since(start, before, each * callers).with_latencies(samples)
}

/// The rows of a run.
#[derive(Debug, Default)]
pub struct Table(Vec<String>);

impl Table {
    /// Adds a row and prints it.
    pub fn row(&mut self, name: &str, goal: &str, ours: &Measured, baseline: &Measured) {
        let row = format!(
            "| {name} | {} | {} | **{:.2}** | {goal} | {:.1} / {:.1} | {} | {} |",
            rate(ours.rate),
            rate(baseline.rate),
            ours.rate / baseline.rate,
            ours.allocations,
            baseline.allocations,
            latencies(ours.latencies),
            latencies(baseline.latencies),
        );
        println!("{row}");
        self.0.push(row);
    }

    /// Prints the heading.
    pub fn heading() {
        println!(
            "| row | ours /s | baseline /s | ratio | goal | allocations | p50 / p99 / p99.9 ours | baseline |"
        );
        println!("|---|---|---|---|---|---|---|---|");
    }
}

fn rate(rate: f64) -> String {
    if rate >= 1e6 {
        format!("{:.2} M", rate / 1e6)
    } else {
        format!("{:.0} k", rate / 1e3)
    }
}

fn latencies(of: Latencies) -> String {
    if of.p999.is_zero() {
        return "-".to_owned();
    }
    format!("{:.1?} / {:.1?} / {:.1?}", of.p50, of.p99, of.p999)
}

/// The most memory that the process has had, in MiB, where the system tells.
#[must_use]
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes / 1024)
}
