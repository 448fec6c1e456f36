//! Instances of a group that end without a word, or stop at their work: the others do theirs, and order holds.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anywire::{Context, Order, Result, Route, Router, RunningApp};
use anywire_conformance::rig::{Books, Seen, soon, until};
use anywire_conformance::trials;
use futures::future::join_all;
use parking_lot::Mutex;
use support::{Server, configured, shop};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

trials![
    [support::SERVER, support::CTL] =>
    the_next_in_line_takes_over_in_order_from_one_that_is_dropped,
    the_next_in_line_takes_over_in_order_from_one_that_shuts_down,
    a_subscription_in_order_that_ends_leaves_its_connection_to_the_others,
    a_group_of_which_one_is_killed_and_one_is_paused_handles_all,
];

/// How many messages an instance handles before it ends.
const BEFORE: usize = 100;
/// How many keys there are, and how many messages each has.
const KEYS: u64 = 4;
const PER_KEY: u64 = 100;

/// Keys and numbers, in the order in which they were handled.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(u64, u64)>>>);

impl Log {
    fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// An instance that handles as many messages as it has permits.
    async fn instance(&self, url: &str, permits: usize) -> RunningApp {
        let (log, gate) = (self.clone(), Arc::new(Semaphore::new(permits)));
        let handler = move |number: u64, context: Context| {
            let (log, gate) = (log.clone(), Arc::clone(&gate));
            let key = std::str::from_utf8(context.key().unwrap().as_bytes());
            let key: u64 = key.unwrap().parse().unwrap();
            async move {
                gate.acquire().await?.forget();
                log.0.lock().push((key, number));
                Result::<()>::Ok(())
            }
        };
        let route = Route::event("shop.placed", handler).order(Order::KeyInGroup);
        let app = configured("shop", &format!("url = {url:?}\ngrace = '1s'"));
        let app = app.router(Router::new().route(route));
        app.start().await.unwrap()
    }
}

async fn the_next_in_line_takes_over_in_order_from_one_that_is_dropped() {
    take_over(async |active| drop(active)).await;
}

async fn the_next_in_line_takes_over_in_order_from_one_that_shuts_down() {
    // It says that it had to abandon what it held.
    take_over(async |active| drop(active.shutdown().await)).await;
}

/// The first instance ends while it holds messages, some of them in its handlers.
async fn take_over(end: impl AsyncFnOnce(RunningApp)) {
    let server = Server::start("").unwrap();
    let (first, second) = (Log::default(), Log::default());
    let active = first.instance(&server.url(), BEFORE).await;
    let next = second.instance(&server.url(), Semaphore::MAX_PERMITS).await;
    let client = next.client();
    let of_key = async |key: u64| {
        for number in 0..PER_KEY {
            let emit = client.emit("shop.placed", &number);
            emit.key(key.to_string()).await.unwrap();
        }
    };
    join_all((0..KEYS).map(of_key)).await;
    until("the first ones", || first.len() == BEFORE).await;
    assert_eq!(second.len(), 0, "two at once");
    end(active).await;

    let all = || {
        let mut handled = first.0.lock().clone();
        handled.extend(second.0.lock().iter());
        handled
    };
    let is_last = |(_, number): &(u64, u64)| *number == PER_KEY - 1;
    until("the last of each key", || {
        second.0.lock().iter().filter(|one| is_last(one)).count() as u64 == KEYS
    })
    .await;
    let mut expected: HashMap<u64, u64> = HashMap::new();
    for (key, number) in all() {
        // What was handled and not settled comes again, before all that follows.
        let expected = expected.entry(key).or_default();
        assert!(number <= *expected, "{number} of {key} overtook {expected}");
        *expected = number + 1;
    }
    assert!(
        expected.values().all(|next| *next == PER_KEY),
        "{expected:?}"
    );
    assert_eq!(first.len(), BEFORE, "it went on after its end");
    next.shutdown().await.unwrap();
}

async fn a_subscription_in_order_that_ends_leaves_its_connection_to_the_others() {
    let server = Server::start("").unwrap();
    let broker = server.behind_a_proxy().await;
    let url = format!("url = 'amqp://{}'", broker.proxy.address());
    let seen = Seen::default();
    let service = shop(configured("shop", &url), &seen).await;
    let client = service.client();
    let connections = broker.proxy.counters().accepted;
    for round in 0..10 {
        let subscribe = client.subscribe::<u64>("shop.placed");
        let mut subscription = subscribe.order(Order::KeyInGroup).await.unwrap();
        // More than it takes: some are on their way when it ends.
        let emit = async |number: u64| client.emit("shop.placed", &number).await.unwrap();
        let emitting = join_all((0..200).map(|number| emit(round * 200 + number)));
        let taking = async {
            let taken = soon("a message", subscription.next()).await;
            taken.unwrap().unwrap().ack().await.unwrap();
            drop(subscription);
        };
        tokio::join!(emitting, taking);
    }
    until("all of them", || seen.has_all(0..2_000)).await;
    assert_eq!(broker.proxy.counters().accepted, connections);
    assert_eq!(seen.count(), 2_000, "some came again");
    service.shutdown().await.unwrap();
}

async fn a_group_of_which_one_is_killed_and_one_is_paused_handles_all() {
    let server = Server::start("").unwrap();
    // So that the broker notices soon who is gone.
    let config = format!(
        "url = {:?}\n[transports.main.rabbitmq]\nheartbeat = '2s'",
        server.url()
    );
    let (books, held, gate) = (
        Books::default(),
        Seen::default(),
        Arc::new(Semaphore::new(0)),
    );
    let killed = {
        let (holds, config) = (held.handler(), config.clone());
        let handler = move |number: u64| {
            let held = holds(number);
            async move {
                held.await?;
                std::future::pending::<Result<()>>().await
            }
        };
        let runtime = Runtime::new().unwrap();
        let router = Router::new().on_event("shop.placed", handler);
        let starting = runtime.spawn(configured("shop", &config).router(router).start());
        (starting.await.unwrap().unwrap(), runtime)
    };
    let (handler, opened) = (books.handler(), Arc::clone(&gate));
    let paused = move |number: u64| {
        let (handled, opened) = (handler(number), Arc::clone(&opened));
        async move {
            opened.acquire().await?.forget();
            handled.await
        }
    };
    let start = async |router: Router| configured("shop", &config).router(router).start().await;
    let paused = start(Router::new().on_event("shop.placed", paused)).await;
    let healthy = start(Router::new().on_event("shop.placed", books.handler())).await;
    let (paused, healthy) = (paused.unwrap(), healthy.unwrap());
    let client = healthy.client();
    let emit = async |_| {
        let timeout = Duration::from_secs(5);
        books.emit(&client, "shop.placed", timeout).await;
    };
    join_all((0..1_000).map(emit)).await;
    until("work for the one that is killed", || held.count() > 0).await;
    let (app, runtime) = killed;
    std::mem::forget(app);
    runtime.shutdown_background();

    gate.add_permits(Semaphore::MAX_PERMITS);
    until("all that was accepted", || books.balance().lost == 0).await;
    books.assert_true();
    paused.shutdown().await.unwrap();
    healthy.shutdown().await.unwrap();
}
