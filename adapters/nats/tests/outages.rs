//! A server that is absent, killed, frozen or cut off: what was accepted is handled, everything ends by its deadline, and
//! nothing stays behind.
#![allow(clippy::unwrap_used)]

#[path = "support/books.rs"]
mod books;
#[path = "support/service.rs"]
mod service;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anywire::transport::Status;
use anywire::{Client, ErrorKind, Result, Router, RunningApp};
use anywire_conformance::BrokerControl;
use anywire_conformance::proxy::{Direction, Proxy};
use books::{Books, SLACK};
use futures::future::BoxFuture;
use service::{app, configured, leaves_nothing, resident, soon, until};
use support::trials::tests_with_a_server;
use support::{Broker, Server};
use tokio::task::JoinSet;

tests_with_a_server![
    a_killed_server_that_comes_back_has_lost_nothing,
    a_frozen_server_holds_nobody_beyond_his_deadline,
    a_silent_network_holds_nobody_beyond_his_deadline,
    connections_that_break_in_the_middle_of_frames_lose_nothing,
    an_emit_without_a_server_says_so_at_its_deadline,
    an_app_that_is_there_first_comes_up_with_its_server,
    an_app_shuts_down_within_its_grace_while_the_server_does_not_answer,
];

const EMITTERS: usize = 16;
const CALLERS: usize = 4;
const EMIT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The most by which the process may grow in a test.
const GROWTH: usize = 64 * 1024 * 1024;

async fn broker() -> Arc<Broker> {
    let server = Server::start("").unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    Arc::new(Broker { server, proxy })
}

async fn double(number: u64) -> Result<u64> {
    Ok(number * 2)
}

/// Emits and calls that go on until they are told to stop.
#[derive(Clone, Default)]
struct Load {
    books: Books,
    answered: Arc<AtomicUsize>,
    unanswered: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Load {
    fn router(&self) -> Router {
        Router::new()
            .on_event("shop.placed", self.books.handler())
            .on_call("math.double", double)
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Starts to emit and to call.
    fn start(&self, client: &Client) -> JoinSet<()> {
        let mut running = JoinSet::new();
        for _ in 0..EMITTERS {
            let (load, client) = (self.clone(), client.clone());
            running.spawn(async move {
                while load.goes_on() {
                    load.books.emit(&client, "shop.placed", EMIT_TIMEOUT).await;
                }
            });
        }
        for _ in 0..CALLERS {
            let (load, client) = (self.clone(), client.clone());
            running.spawn(async move {
                while load.goes_on() {
                    load.call(&client).await;
                }
            });
        }
        running
    }

    /// Ends what was started, and waits until all that was accepted is handled.
    async fn finish(&self, running: JoinSet<()>) {
        self.over.store(true, Ordering::Relaxed);
        soon("the last emits and calls", running.join_all()).await;
        until("all that was accepted", || self.books.balance().lost == 0).await;
        self.books.assert_true();
    }

    async fn call(&self, client: &Client) {
        let start = Instant::now();
        let call = client.request::<_, u64>("math.double", &21);
        let answer = call.timeout(CALL_TIMEOUT).await;
        let took = start.elapsed();
        assert!(took < CALL_TIMEOUT + SLACK, "a call took {took:?}");
        match answer {
            Ok(42) => self.answered.fetch_add(1, Ordering::Relaxed),
            Ok(other) => panic!("the answer to another question: {other}"),
            Err(_) => {
                let before = self.unanswered.fetch_add(1, Ordering::Relaxed);
                // Without a connection the next would fail at once.
                let mut status = client.transport("main").unwrap().status();
                status.wait_for(Status::is_connected).await.unwrap();
                before
            }
        };
    }

    async fn progress(&self, what: &str) {
        let (accepted, answered) = (self.books.balance().accepted, self.answered());
        until(what, || {
            self.books.balance().accepted >= accepted + 200 && self.answered() >= answered + 50
        })
        .await;
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// How many emits and how many calls have ended without success.
    fn failures(&self) -> (usize, usize) {
        let balance = self.books.balance();
        let unanswered = self.unanswered.load(Ordering::Relaxed);
        (balance.unknown + balance.refused, unanswered)
    }

    /// Waits until the fault is felt: since `before`, emits have ended without success, and so have calls.
    async fn standstill(&self, before: (usize, usize)) {
        until("a standstill", || {
            let (emits, calls) = self.failures();
            emits >= before.0 + EMITTERS && calls >= before.1 + CALLERS
        })
        .await;
    }

    /// The service, and a client that emits and calls.
    async fn open(&self, broker: &Broker) -> (RunningApp, Client) {
        let url = format!("nats://{}", broker.proxy.address());
        let service = app("shop", &url).router(self.router()).start().await;
        let client = Client::connect(app("till", &url)).await;
        (service.unwrap(), client.unwrap())
    }
}

type Step = for<'a> fn(&'a Broker) -> BoxFuture<'a, std::io::Result<()>>;

/// Breaks the broker under load for long enough that deadlines pass, mends it, and looks at the books.
async fn survives(fault: Step, mend: Step) {
    let broker = broker().await;
    let standing = Arc::clone(&broker);
    leaves_nothing(move || async move {
        let load = Load::default();
        let (service, client) = load.open(&standing).await;
        let running = load.start(&client);
        load.progress("work").await;
        let (before, failures) = (resident(), load.failures());

        fault(&standing).await.unwrap();
        load.standstill(failures).await;
        let grown = resident().saturating_sub(before);
        assert!(grown < GROWTH, "{grown} bytes more while nothing went");
        mend(&standing).await.unwrap();

        load.progress("work again").await;
        load.finish(running).await;
        until("good health", || service.health().is_ok()).await;
        client.close().await.unwrap();
        service.shutdown().await.unwrap();
    })
    .await;
    until("no connection", || broker.proxy.counters().open == 0).await;
}

async fn a_killed_server_that_comes_back_has_lost_nothing() {
    survives(|broker| broker.kill(), |broker| broker.start()).await;
}

async fn a_frozen_server_holds_nobody_beyond_his_deadline() {
    survives(|broker| broker.freeze(), |broker| broker.thaw()).await;
}

async fn a_silent_network_holds_nobody_beyond_his_deadline() {
    survives(|broker| broker.cut(), |broker| broker.heal()).await;
}

async fn connections_that_break_in_the_middle_of_frames_lose_nothing() {
    const CUTS: u64 = 40;
    let broker = broker().await;
    let load = Load::default();
    let (service, client) = load.open(&broker).await;
    let running = load.start(&client);
    for n in 0..CUTS {
        let accepted = load.books.balance().accepted;
        until("work", || load.books.balance().accepted > accepted + 20).await;
        let connections = broker.proxy.counters().accepted;
        let direction = Direction::BOTH[n as usize % 2];
        broker.proxy.cut_after(direction, 100 + n * 977 % 5_000);
        until("a new connection", || {
            broker.proxy.counters().accepted > connections
        })
        .await;
    }
    load.finish(running).await;
    client.close().await.unwrap();
    service.shutdown().await.unwrap();
}

async fn an_emit_without_a_server_says_so_at_its_deadline() {
    let broker = broker().await;
    let url = format!("nats://{}", broker.proxy.address());
    let books = Books::default();
    let router = Router::new().on_event("shop.placed", books.handler());
    let service = app("shop", &url).router(router).start().await.unwrap();
    let client = Client::connect(app("till", &url)).await.unwrap();
    // The second of each client knows the stream already.
    for client in [&client, &client, &service.client()] {
        broker.kill().await.unwrap();
        let start = Instant::now();
        let error = client
            .emit("shop.placed", &0)
            .timeout(EMIT_TIMEOUT)
            .await
            .unwrap_err();
        let kinds = [ErrorKind::Unavailable, ErrorKind::OutcomeUnknown];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        assert!(
            start.elapsed() >= EMIT_TIMEOUT - SLACK,
            "it gave up early: {error:?}"
        );
        assert!(
            start.elapsed() < EMIT_TIMEOUT + SLACK,
            "{:?}",
            start.elapsed()
        );
        broker.start().await.unwrap();
        client.emit("shop.placed", &0).await.unwrap();
    }
    client.close().await.unwrap();
    service.shutdown().await.unwrap();
}

async fn an_app_that_is_there_first_comes_up_with_its_server() {
    let broker = broker().await;
    broker.kill().await.unwrap();
    let books = Books::default();
    let router = Router::new().on_event("shop.placed", books.handler());
    let starting = app("shop", &format!("nats://{}", broker.proxy.address())).router(router);
    let starting = tokio::spawn(starting.start());
    until("an attempt", || broker.proxy.counters().accepted > 0).await;
    assert!(!starting.is_finished());
    broker.start().await.unwrap();
    let service = soon("the start", starting).await.unwrap().unwrap();
    books
        .emit(&service.client(), "shop.placed", EMIT_TIMEOUT)
        .await;
    until("an event", || books.balance().handled == 1).await;
    service.shutdown().await.unwrap();
}

async fn an_app_shuts_down_within_its_grace_while_the_server_does_not_answer() {
    let faults: [(Step, Step); 3] = [
        (|broker| broker.freeze(), |broker| broker.thaw()),
        (|broker| broker.cut(), |broker| broker.heal()),
        (|broker| broker.kill(), |broker| broker.start()),
    ];
    for (fault, mend) in faults {
        let broker = broker().await;
        let standing = Arc::clone(&broker);
        leaves_nothing(move || async move {
            let url = format!("nats://{}", standing.proxy.address());
            let router = Router::new()
                .on_event("shop.placed", |_: u64| std::future::pending::<Result<()>>());
            let service = configured("shop", &format!("url = '{url}'\ngrace = '2s'"));
            let service = service.router(router).start().await.unwrap();
            service.client().emit("shop.placed", &1).await.unwrap();
            fault(&standing).await.unwrap();
            let start = Instant::now();
            // What it could not do it says.
            let _ = service.shutdown().await;
            let took = start.elapsed();
            assert!(
                took < Duration::from_secs(2) + 2 * SLACK,
                "it took {took:?}"
            );
        })
        .await;
        mend(&broker).await.unwrap();
        until("no connection", || broker.proxy.counters().open == 0).await;
    }
}
