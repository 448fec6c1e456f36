//! An app and its emits through restarts of the server, with books: what was accepted is handled, and what came twice is
//! counted.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use anywire::{Client, Context, Failure, Router};
use anywire_conformance::Profile;
use anywire_conformance::rig::{Books, storm, until};
use anywire_conformance::trials;
use support::{Server, app};

trials![
    [support::SERVER, support::CTL] =>
    nothing_accepted_is_lost_through_six_restarts,
    no_retry_and_no_dead_letter_is_lost_through_restarts,
];

/// The most messages that may come again for each restart: what was sent and not confirmed, what a handler holds, and what it has
/// settled and the server has not written down.
const AGAIN: u64 = 800;

/// Sends the first few and waits for them: a queue that appears in the moment of a kill is not the adapter's to save.
async fn settle_in(server: &Server, books: &Books, client: &Client) {
    for _ in 0..35 {
        let timeout = Duration::from_secs(5);
        books.emit(client, "shop.placed", timeout).await;
    }
    until("the first few", || books.balance().lost == 0).await;
    server.tool().write_down_queues();
}

async fn nothing_accepted_is_lost_through_six_restarts() {
    let server = Server::start("").unwrap();
    let books = Books::default();
    let router = Router::new().on_event("shop.placed", books.handler());
    let consumer = app("shop", &server.url())
        .router(router)
        .start()
        .await
        .unwrap();
    let client = Client::connect(app("till", &server.url())).await.unwrap();
    settle_in(&server, &books, &client).await;
    let messages = Profile::from_env()
        .unwrap()
        .pick(20_000, 100_000, 1_000_000);
    storm(&server, &books, &client, messages, 6).await;
    assert!(books.balance().again <= 6 * AGAIN, "{:?}", books.balance());
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
    settle_in(&server, &books, &client).await;
    storm(&server, &books, &client, 5_000, 4).await;
    assert!(books.balance().again <= 4 * AGAIN, "{:?}", books.balance());
    assert_eq!(consumer.health().handlers[0].stuck, 0);
    client.close().await.unwrap();
    consumer.shutdown().await.unwrap();
    undertaker.shutdown().await.unwrap();
}
