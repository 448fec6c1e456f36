//! Restarts of a server under load, with books: what was accepted is handled, and what came twice is counted.

use std::time::{Duration, Instant};

use anywire::Client;
use futures::StreamExt;

use super::{Books, Program, Signal, until};

/// How many emits wait for their confirmation at once.
const IN_FLIGHT: usize = 256;

/// Emits so many messages while the server ends again and again, half of the times without warning, and waits until each
/// that was accepted is in the books. They are printed.
///
/// # Panics
/// When they do not balance, and when one was refused though there was time.
pub async fn storm(
    server: &Program,
    books: &Books,
    client: &Client,
    messages: usize,
    restarts: usize,
) {
    let start = Instant::now();
    let timeout = Duration::from_secs(30);
    let emitting = futures::stream::iter(0..messages)
        .for_each_concurrent(IN_FLIGHT, |_| books.emit(client, "shop.placed", timeout));
    futures::future::join(emitting, restart(server, books, messages, restarts)).await;
    until("all that was accepted", || books.balance().lost == 0).await;
    let seconds = start.elapsed().as_secs_f64();
    let balance = books.balance();
    println!("{restarts} restarts in {seconds:.1} s: {balance:?}");
    books.assert_true();
    assert_eq!(balance.refused, 0, "refused though there was time");
}

/// Ends the server again and again, each time that another share of the messages was handled.
async fn restart(server: &Program, books: &Books, messages: usize, restarts: usize) {
    for n in 1..=restarts {
        let share = messages * n / (restarts + 1);
        until("progress", || books.balance().handled >= share).await;
        let signal = match n % 2 {
            0 => Signal::KILL,
            _ => Signal::TERM,
        };
        server.end(signal).unwrap();
        server.launch().unwrap();
    }
}
