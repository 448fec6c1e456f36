//! What a test leaves behind: rule R7.

use std::sync::Once;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

/// How long after its close a transport may take to let go of everything.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until no task is left on a test's runtime.
///
/// # Errors
/// A sentence, when some are left after two seconds.
pub(crate) fn tasks_end(runtime: &Runtime) -> Result<(), String> {
    let alive = || runtime.metrics().num_alive_tasks();
    if eventually(|| alive() == 0) {
        return Ok(());
    }
    Err(format!(
        "{} tasks are still alive {} s after all transports were closed",
        alive(),
        PATIENCE.as_secs()
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
            threads: std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count),
        }
    }

    /// Waits until there are no more than these.
    ///
    /// # Errors
    /// A sentence, when there are more after two seconds.
    pub(crate) fn returns(self) -> Result<(), String> {
        let within = |now: Self| now.sockets <= self.sockets && now.threads <= self.threads;
        if eventually(|| within(Self::take())) {
            return Ok(());
        }
        Err(format!("before: {self:?}, left behind: {:?}", Self::take()))
    }
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

fn eventually(condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
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
        assert_eq!(tasks_end(&runtime), Ok(()));
        runtime.spawn(std::future::pending::<()>());
        assert!(tasks_end(&runtime).unwrap_err().starts_with("1 tasks"));
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
