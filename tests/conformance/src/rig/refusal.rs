//! An app that must not come up.

use std::error::Error as _;
use std::time::{Duration, Instant};

use anywire::{App, Error};

use crate::proxy::Proxy;

/// No start may take longer.
const AT_ONCE: Duration = Duration::from_secs(5);
/// One to be told, and one that a client library makes for itself.
const ATTEMPTS: u64 = 2;

/// Why an app does not come up, and all that it and its error say of themselves, for a look for secrets. It reaches its server by the
/// proxy.
///
/// # Panics
/// When it does come up, takes longer than five seconds, or tries more than twice.
pub async fn refusal(app: App, proxy: &Proxy) -> (Error, String) {
    let mut told = format!("{app:?}");
    let start = Instant::now();
    let error = app.start().await.expect_err("it must not come up");
    let took = start.elapsed();
    assert!(took < AT_ONCE, "it took {took:?} to be told {error}");
    let attempts = proxy.counters().accepted;
    assert!(attempts <= ATTEMPTS, "{attempts} attempts for nothing");
    told += &format!("\n{error}\n{error:?}\n{error:#?}");
    let mut cause = error.source();
    while let Some(source) = cause {
        told += &format!("\n{source}\n{source:?}");
        cause = source.source();
    }
    (error, told)
}
