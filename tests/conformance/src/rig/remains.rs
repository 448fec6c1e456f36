//! What a test leaves behind in its process.

use std::future::Future;

use super::until;

/// Runs a future on a runtime of its own, on which no task may be left.
///
/// # Panics
/// As the future does, and where tasks are left.
pub async fn leaves_nothing<F: Future<Output = ()>>(body: impl FnOnce() -> F + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let done = tokio::task::spawn_blocking(move || handle.block_on(body())).await;
    if let Err(panic) = done {
        std::mem::forget(runtime);
        std::panic::resume_unwind(panic.into_panic());
    }
    until("no task", || runtime.metrics().num_alive_tasks() == 0).await;
    runtime.shutdown_background();
}

/// The memory of this process, in bytes; 0 where the system does not tell.
#[must_use]
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kib.unwrap_or(0) * 1024
}
