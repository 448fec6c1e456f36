//! An app and its emits through restarts of the server, with books: what was accepted is handled, and what came twice is
//! counted.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use anywire::{Client, Context, Failure, Router};
use anywire_conformance::Profile;
use anywire_conformance::rig::{Books, storm};
use anywire_conformance::trials;
use support::{Server, app};

trials![
    [support::SERVER] =>
    nothing_accepted_is_lost_through_twenty_restarts,
    no_retry_and_no_dead_letter_is_lost_through_restarts,
];

/// The most messages that may come again for each restart: what a handler holds, and what it has settled and the server
/// has not written down.
const AGAIN: u64 = 1_400;

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
    assert!(books.balance().again <= 20 * AGAIN, "{:?}", books.balance());
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
    assert!(books.balance().again <= 6 * AGAIN, "{:?}", books.balance());
    assert_eq!(consumer.health().handlers[0].stuck, 0);
    client.close().await.unwrap();
    consumer.shutdown().await.unwrap();
    undertaker.shutdown().await.unwrap();
}
