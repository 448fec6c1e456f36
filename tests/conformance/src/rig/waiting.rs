//! Waiting for what must come soon.

use std::future::Future;
use std::time::Duration;

/// How long a condition may take to hold.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until the condition holds. It looks again and again: what tests wait for is in other processes, or told to nobody.
///
/// # Panics
/// After half a minute, naming what was waited for.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    until_async(what, async || holds()).await;
}

/// As [`until`], for a condition that has to be asked for.
///
/// # Panics
/// After half a minute, naming what was waited for.
pub async fn until_async(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    soon(what, waiting).await;
}

/// What comes of a future that must not take long.
///
/// # Panics
/// After half a minute, naming what was waited for.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let Ok(output) = tokio::time::timeout(PATIENCE, future).await else {
        panic!("in vain: {what}");
    };
    output
}
