//! What a test leaves behind in its process.

use std::future::Future;
use std::net::SocketAddr;

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

/// How many threads this process has.
#[must_use]
pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// How many connections lead to this address, from any process.
#[must_use]
pub fn sockets(address: SocketAddr) -> usize {
    const ESTABLISHED: &str = "01";
    let port = format!(":{:04X}", address.port());
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let tables = tables.map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let leads_there = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        let remote = fields.next().unwrap_or_default();
        remote.ends_with(&port) && fields.next() == Some(ESTABLISHED)
    };
    let lines = tables.iter().flat_map(|table| table.lines());
    lines.filter(leads_there).count()
}

/// The memory of this process, in bytes; 0 where the system does not tell.
#[must_use]
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kib.unwrap_or(0) * 1024
}
