//! What a test leaves behind: rule R7.

use std::collections::BTreeMap;
use std::sync::Once;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

/// How long after its close a transport may take to let go of everything.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until no task is left on a test's runtime: two seconds, and what the wire takes more.
///
/// # Errors
/// A sentence, when some are left then.
pub(crate) fn tasks_end(runtime: &Runtime, more: Duration) -> Result<(), String> {
    let alive = || runtime.metrics().num_alive_tasks();
    let patience = PATIENCE + more;
    if eventually(patience, || alive() == 0) {
        return Ok(());
    }
    Err(format!(
        "{} tasks are still alive {} s after all transports were closed",
        alive(),
        patience.as_secs()
    ))
}

/// The sockets and threads of this process, where the system tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    sockets: usize,
    threads: usize,
}

impl Census {
    /// Counts them.
    pub(crate) fn take() -> Self {
        // With its `signal` feature on, which any crate of the build may have done, tokio's first runtime opens a pair
        // of sockets that the process keeps. They must be there before the first count.
        static FIRST_RUNTIME: Once = Once::new();
        FIRST_RUNTIME.call_once(|| drop(Builder::new_current_thread().enable_all().build()));
        Self {
            sockets: sockets(),
            threads: thread_names().values().sum(),
        }
    }

    /// Waits until there are no more than these.
    ///
    /// # Errors
    /// A sentence, when there are more after two seconds, and as many more as the wire asks for.
    pub(crate) fn returns(self, more: Duration) -> Result<(), String> {
        let within = |now: Self| now.sockets <= self.sockets && now.threads <= self.threads;
        if eventually(PATIENCE + more, || within(Self::take())) {
            return Ok(());
        }
        Err(format!(
            "before: {self:?}, left behind: {:?}, threads: {:?}",
            Self::take(),
            thread_names()
        ))
    }
}

/// The names of the threads of this process, and how many have each. Those that run the tests have the name of the process; there
/// may be more of them in a moment.
fn thread_names() -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    let own = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return names;
    };
    for task in tasks.flatten() {
        let name = std::fs::read_to_string(task.path().join("comm"));
        let name = name.unwrap_or_default();
        if name != own {
            *names.entry(name.trim_end().to_owned()).or_default() += 1;
        }
    }
    names
}

fn sockets() -> usize {
    let Ok(files) = std::fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

/// Looks again and again: nobody tells when a task ends elsewhere, or when the system has taken a socket or a thread off its list.
fn eventually(patience: Duration, condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_task_that_stays_is_a_leak() {
        let runtime = Runtime::new().unwrap();
        assert_eq!(tasks_end(&runtime, Duration::ZERO), Ok(()));
        runtime.spawn(std::future::pending::<()>());
        assert!(
            tasks_end(&runtime, Duration::ZERO)
                .unwrap_err()
                .starts_with("1 tasks")
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn threads_are_seen() {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("left behind".to_owned());
        let thread = thread.spawn(move || wait.recv()).unwrap();
        let mut times = std::iter::repeat_with(|| thread_names().get("left behind").copied());
        assert!(times.by_ref().take(10_000).any(|count| count == Some(1)));
        drop(end);
        let _ = thread.join();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn sockets_are_seen() {
        let before = sockets();
        let sockets_of_ours: Vec<_> = (0..50)
            .map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        assert!(sockets() >= before + sockets_of_ours.len() / 2);
    }
}
