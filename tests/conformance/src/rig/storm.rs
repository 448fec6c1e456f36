//! Restarts of a server under load, with books: what was accepted is handled, and what came twice is counted.

use std::fmt;
use std::time::{Duration, Instant};

use anywire::{App, Client, Context, Failure, Router};
use futures::StreamExt;

use super::{Books, Program, Signal, until};
use crate::Profile;

/// How many emits wait for their confirmation at once.
const IN_FLIGHT: usize = 256;
/// How many are sent before the first restart: some of each kind.
const FIRST: usize = 35;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Apps and their emits through restarts of a server of their own, half of them without warning.
pub struct Storm<'a> {
    server: &'a Program,
    app: Box<dyn Fn(&str) -> App + 'a>,
    at_rest: Box<dyn Fn() + 'a>,
    again: u64,
}

impl<'a> Storm<'a> {
    /// `app` makes an app of a name; `again` is how many messages may come again for each restart: what was sent and not confirmed,
    /// what a handler holds, and what it has settled and the server has not written down.
    pub fn new(server: &'a Program, again: u64, app: impl Fn(&str) -> App + 'a) -> Self {
        Self {
            server,
            app: Box::new(app),
            at_rest: Box::new(|| {}),
            again,
        }
    }

    /// Lets the server come to rest once there is all that it was asked for, and before it ends for the first time.
    #[must_use]
    pub fn with_rest(mut self, at_rest: impl Fn() + 'a) -> Self {
        self.at_rest = Box::new(at_rest);
        self
    }

    /// Nothing that was accepted is lost.
    ///
    /// # Panics
    /// When something is, or too much came again.
    pub async fn events(&self, restarts: usize) {
        let books = Books::default();
        let router = Router::new().on_event("shop.placed", books.handler());
        let consumer = (self.app)("shop").router(router).start().await.unwrap();
        let messages = Profile::from_env()
            .unwrap()
            .pick(20_000, 100_000, 1_000_000);
        self.rage(&books, messages, restarts).await;
        consumer.shutdown().await.unwrap();
    }

    /// No retry and no dead letter is lost: every fifth fails once and comes again by way of the server, every seventh dies.
    ///
    /// # Panics
    /// When one is, or too much came again.
    pub async fn failures(&self, restarts: usize) {
        let books = Books::default();
        let handler = books.handler();
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
        let start =
            async |name: &str, router: Router| (self.app)(name).router(router).start().await;
        let failing = Router::new().on_event("shop.placed", failing);
        let consumer = start("shop", failing).await.unwrap();
        let burying = Router::new().on_event("anywire.dead.shop", books.handler());
        let undertaker = start("undertaker", burying).await.unwrap();
        self.rage(&books, 5_000, restarts).await;
        assert_eq!(consumer.health().handlers[0].stuck, 0);
        consumer.shutdown().await.unwrap();
        undertaker.shutdown().await.unwrap();
    }

    /// Emits so many messages while the server ends again and again, and waits until each that was accepted is in the books. They
    /// are printed.
    async fn rage(&self, books: &Books, messages: usize, restarts: usize) {
        let client = Client::connect((self.app)("till")).await.unwrap();
        for _ in 0..FIRST {
            books.emit(&client, "shop.placed", TIMEOUT).await;
        }
        until("the first", || books.balance().lost == 0).await;
        (self.at_rest)();

        let start = Instant::now();
        let emitting = futures::stream::iter(0..messages)
            .for_each_concurrent(IN_FLIGHT, |_| books.emit(&client, "shop.placed", TIMEOUT));
        futures::future::join(emitting, self.restart(books, messages, restarts)).await;
        until("all that was accepted", || books.balance().lost == 0).await;
        let seconds = start.elapsed().as_secs_f64();
        let balance = books.balance();
        println!("{restarts} restarts in {seconds:.1} s: {balance:?}");
        books.assert_true();
        assert_eq!(balance.refused, 0, "refused though there was time");
        assert!(balance.again <= restarts as u64 * self.again, "{balance:?}");
        client.close().await.unwrap();
    }

    /// Ends the server again and again, each time that another share of the messages was handled.
    async fn restart(&self, books: &Books, messages: usize, restarts: usize) {
        for n in 1..=restarts {
            let share = messages * n / (restarts + 1);
            until("progress", || books.balance().handled >= share).await;
            let signal = match n % 2 {
                0 => Signal::KILL,
                _ => Signal::TERM,
            };
            self.server.end(signal).unwrap();
            self.server.launch().unwrap();
        }
    }
}

impl fmt::Debug for Storm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storm")
            .field("again", &self.again)
            .finish_non_exhaustive()
    }
}
