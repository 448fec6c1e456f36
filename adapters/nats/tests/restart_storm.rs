//! An app and its emits through restarts of the server, with books: what was accepted is handled, and what came twice is
//! counted.
#![allow(clippy::unwrap_used)]

#[path = "support/books.rs"]
mod books;
#[path = "support/service.rs"]
mod service;
mod support;

use std::time::{Duration, Instant};

use anywire::{Client, Router};
use anywire_conformance::Profile;
use books::Books;
use futures::StreamExt;
use rustix::process::Signal;
use service::{app, until};
use support::Server;

const RESTARTS: usize = 20;
/// How many emits wait for their confirmation at once.
const IN_FLIGHT: usize = 256;
/// The most messages that may come again for each restart: what a handler holds, and what it has settled and the server
/// has not written down.
const AGAIN: u64 = 1_400;

fn messages() -> usize {
    Profile::from_env()
        .unwrap()
        .pick(20_000, 100_000, 1_000_000)
}

/// Ends the server again and again, each time that another share of the messages was handled.
async fn restart(server: &Server, books: &Books) {
    for n in 1..=RESTARTS {
        let share = messages() * n / (RESTARTS + 1);
        until("progress", || books.balance().handled >= share).await;
        let signal = if n % 2 == 0 {
            Signal::KILL
        } else {
            Signal::TERM
        };
        server.end(signal).unwrap();
        server.launch().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_through_twenty_restarts() {
    let Some(program) = support::binary() else {
        return;
    };
    let server = Server::start(program, "").unwrap();
    let books = Books::default();
    let router = Router::new().on_event("shop.placed", books.handler());
    let consumer = app("shop", &server.url())
        .router(router)
        .start()
        .await
        .unwrap();
    let client = Client::connect(app("till", &server.url())).await.unwrap();

    let start = Instant::now();
    let timeout = Duration::from_secs(30);
    let emitting = futures::stream::iter(0..messages())
        .for_each_concurrent(IN_FLIGHT, |_| books.emit(&client, "shop.placed", timeout));
    futures::future::join(emitting, restart(&server, &books)).await;
    until("all that was accepted", || books.balance().lost == 0).await;
    let seconds = start.elapsed().as_secs_f64();
    client.close().await.unwrap();
    consumer.shutdown().await.unwrap();

    let balance = books.balance();
    println!("{RESTARTS} restarts in {seconds:.1} s: {balance:?}");
    books.assert_true();
    assert_eq!(balance.refused, 0, "refused though there was time");
    assert!(balance.again <= RESTARTS as u64 * AGAIN, "{balance:?}");
}
