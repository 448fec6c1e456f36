//! An app and its emits through restarts of the server, with books: what was accepted is handled, and what came twice is
//! counted.
#![allow(clippy::unwrap_used)]

#[path = "support/books.rs"]
mod books;
#[path = "support/service.rs"]
mod service;
mod support;

use std::time::{Duration, Instant};

use anywire::{Client, Context, Failure, Router};
use anywire_conformance::Profile;
use books::Books;
use futures::StreamExt;
use rustix::process::Signal;
use service::{app, until};
use support::Server;
use support::trials::tests_with_a_server;

tests_with_a_server![
    nothing_accepted_is_lost_through_twenty_restarts,
    no_retry_and_no_dead_letter_is_lost_through_restarts,
];

/// How many emits wait for their confirmation at once.
const IN_FLIGHT: usize = 256;
/// The most messages that may come again for each restart: what a handler holds, and what it has settled and the server
/// has not written down.
const AGAIN: u64 = 1_400;

/// Ends the server again and again, each time that another share of the messages was handled.
async fn restart(server: &Server, books: &Books, messages: usize, restarts: usize) {
    for n in 1..=restarts {
        let share = messages * n / (restarts + 1);
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

/// Emits all messages while the server ends again and again, and waits until each that was accepted is in the books.
async fn storm(server: &Server, books: &Books, client: &Client, messages: usize, restarts: usize) {
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
    assert!(balance.again <= restarts as u64 * AGAIN, "{balance:?}");
}

async fn nothing_accepted_is_lost_through_twenty_restarts() {
    let server = Server::start("").unwrap();
    let books = Books::default();
    let router = Router::new().on_event("shop.placed", books.handler());
    let consumer = app("shop", &server.url())
        .router(router)
        .start()
        .await
        .unwrap();
    let client = Client::connect(app("till", &server.url())).await.unwrap();
    let messages = Profile::from_env()
        .unwrap()
        .pick(20_000, 100_000, 1_000_000);
    storm(&server, &books, &client, messages, 20).await;
    client.close().await.unwrap();
    consumer.shutdown().await.unwrap();
}

async fn no_retry_and_no_dead_letter_is_lost_through_restarts() {
    let server = Server::start("").unwrap();
    let books = Books::default();
    let handler = books.handler();
    // Every fifth fails once and comes again by way of the server, every seventh dies.
    let failing = move |number: u64, context: Context| {
        let failure = match number {
            number if number % 7 == 0 => Some(Failure::permanent("it dies")),
            number if number % 5 == 0 && context.attempt() == 1 => {
                Some(Failure::transient("not yet").retry_after(Duration::from_secs(2)))
            }
            _ => None,
        };
        let handled = failure.map_or_else(|| Ok(handler(number)), Err);
        async move { handled?.await }
    };
    let router = Router::new().on_event("shop.placed", failing);
    let consumer = app("shop", &server.url())
        .router(router)
        .start()
        .await
        .unwrap();
    let router = Router::new().on_event("anywire.dead.shop", books.handler());
    let undertaker = app("undertaker", &server.url())
        .router(router)
        .start()
        .await
        .unwrap();
    let client = Client::connect(app("till", &server.url())).await.unwrap();
    storm(&server, &books, &client, 5_000, 6).await;
    assert_eq!(consumer.health().handlers[0].stuck, 0);
    client.close().await.unwrap();
    consumer.shutdown().await.unwrap();
    undertaker.shutdown().await.unwrap();
}
