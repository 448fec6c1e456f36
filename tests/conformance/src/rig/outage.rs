//! An app and its load while the broker is away: what was accepted is handled, everything ends by its deadline, and nothing
//! stays behind.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anywire::transport::Status;
use anywire::{App, Client, ErrorKind, Result, Router, RunningApp};
use futures::future::BoxFuture;
use tokio::task::JoinSet;

use super::{Books, Broker, SLACK, leaves_nothing, resident, soon, until};
use crate::BrokerControl;
use crate::proxy::Direction;

const EMITTERS: usize = 16;
const CALLERS: usize = 4;
const EMIT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The most by which the process may grow while nothing goes.
const GROWTH: usize = 32 * 1024 * 1024;

/// Something that is done to a broker.
type Step = for<'a> fn(&'a Broker) -> BoxFuture<'a, io::Result<()>>;

/// Makes an app of a name, with what is added to its configuration.
type Make = dyn Fn(&str, &str) -> App + Send + Sync;

/// Makes `main` of the tests of a broker that is absent, killed, frozen or cut off, as [`trials!`](crate::trials) does: of two async
/// functions that give an [`Outage`], the second one's broker at rest, with the queue of the group `shop` for `shop.placed`.
#[macro_export]
macro_rules! outages {
    ([$($variable:expr),* $(,)?] => $outage:path, $at_rest:path $(,)?) => {
        $crate::trials![
            in turn, [$($variable),*] =>
            a_killed_server_that_comes_back_has_lost_nothing,
            a_frozen_server_holds_nobody_beyond_his_deadline,
            a_silent_network_holds_nobody_beyond_his_deadline,
            connections_that_break_in_the_middle_of_frames_lose_nothing,
            an_emit_without_a_server_says_so_at_its_deadline,
            an_app_that_is_there_first_comes_up_with_its_server,
            an_app_shuts_down_within_its_grace_while_the_server_does_not_answer,
        ];

        async fn a_killed_server_that_comes_back_has_lost_nothing() {
            $at_rest().await.killed().await;
        }

        async fn a_frozen_server_holds_nobody_beyond_his_deadline() {
            $outage().await.frozen().await;
        }

        async fn a_silent_network_holds_nobody_beyond_his_deadline() {
            $outage().await.cut().await;
        }

        async fn connections_that_break_in_the_middle_of_frames_lose_nothing() {
            $outage().await.broken_frames(40).await;
        }

        async fn an_emit_without_a_server_says_so_at_its_deadline() {
            $at_rest().await.emit_without_broker().await;
        }

        async fn an_app_that_is_there_first_comes_up_with_its_server() {
            $outage().await.absent_at_start().await;
        }

        async fn an_app_shuts_down_within_its_grace_while_the_server_does_not_answer() {
            $at_rest().await.shutdown_without_broker().await;
        }
    };
}

/// A broker of its own, which is going to break, and apps on it. Each of its tests has one.
#[derive(Clone)]
pub struct Outage {
    broker: Arc<Broker>,
    app: Arc<Make>,
}

impl Outage {
    /// `app` makes an app of a name that reaches the broker by its proxy, with what is added to its configuration.
    pub fn new(broker: Broker, app: impl Fn(&str, &str) -> App + Send + Sync + 'static) -> Self {
        Self {
            broker: Arc::new(broker),
            app: Arc::new(app),
        }
    }

    /// The broker.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// An app of this name.
    pub fn app(&self, name: &str) -> App {
        (self.app)(name, "")
    }

    /// A killed broker that comes back has lost nothing.
    ///
    /// # Panics
    /// When it has.
    pub async fn killed(self) {
        self.survives(|broker| broker.kill(), |broker| broker.start())
            .await;
    }

    /// A frozen broker holds nobody beyond his deadline.
    ///
    /// # Panics
    /// When it does.
    pub async fn frozen(self) {
        self.survives(|broker| broker.freeze(), |broker| broker.thaw())
            .await;
    }

    /// A silent network holds nobody beyond his deadline.
    ///
    /// # Panics
    /// When it does.
    pub async fn cut(self) {
        self.survives(|broker| broker.cut(), |broker| broker.heal())
            .await;
    }

    /// Connections that break in the middle of frames, `cuts` times, lose nothing.
    ///
    /// # Panics
    /// When they do.
    pub async fn broken_frames(self, cuts: u64) {
        let load = Load::default();
        let (service, client) = self.open(&load).await;
        let running = load.start(&client);
        for n in 0..cuts {
            let accepted = load.books.balance().accepted;
            until("work", || load.books.balance().accepted > accepted + 20).await;
            let proxy = &self.broker.proxy;
            let connections = proxy.counters().accepted;
            let direction = Direction::BOTH[usize::from(n % 2 == 1)];
            proxy.cut_after(direction, 100 + n * 977 % 5_000);
            until("a new connection", || {
                proxy.counters().accepted > connections
            })
            .await;
        }
        load.finish(running).await;
        client.close().await.unwrap();
        service.shutdown().await.unwrap();
    }

    /// An emit without a broker waits until its deadline and says so then; with the broker, the next goes through.
    ///
    /// # Panics
    /// When it does not.
    pub async fn emit_without_broker(self) {
        let books = Books::default();
        let router = Router::new().on_event("shop.placed", books.handler());
        let service = self.app("shop").router(router).start().await.unwrap();
        let client = Client::connect(self.app("till")).await.unwrap();
        // The second of each client knows where its event goes already.
        for client in [&client, &client, &service.client()] {
            self.broker.kill().await.unwrap();
            let start = Instant::now();
            let emit = client.emit("shop.placed", &0).timeout(EMIT_TIMEOUT);
            let error = emit.await.unwrap_err();
            let took = start.elapsed();
            let kinds = [ErrorKind::Unavailable, ErrorKind::OutcomeUnknown];
            assert!(kinds.contains(&error.kind()), "{error:?}");
            assert!(took >= EMIT_TIMEOUT - SLACK, "it gave up early: {error:?}");
            assert!(took < EMIT_TIMEOUT + SLACK, "{took:?}");
            self.broker.start().await.unwrap();
            let emit = client.emit("shop.placed", &0);
            emit.timeout(Duration::from_secs(30)).await.unwrap();
        }
        client.close().await.unwrap();
        service.shutdown().await.unwrap();
    }

    /// An app that is there before its broker comes up with it.
    ///
    /// # Panics
    /// When it does not.
    pub async fn absent_at_start(self) {
        self.broker.kill().await.unwrap();
        let books = Books::default();
        let router = Router::new().on_event("shop.placed", books.handler());
        let starting = tokio::spawn(self.app("shop").router(router).start());
        until("an attempt", || self.broker.proxy.counters().accepted > 0).await;
        assert!(!starting.is_finished());
        self.broker.start().await.unwrap();
        let service = soon("the start", starting).await.unwrap().unwrap();
        let client = service.client();
        books.emit(&client, "shop.placed", EMIT_TIMEOUT).await;
        until("an event", || books.balance().handled == 1).await;
        service.shutdown().await.unwrap();
    }

    /// An app shuts down within its grace while the broker is frozen, cut off or dead.
    ///
    /// # Panics
    /// When it does not.
    pub async fn shutdown_without_broker(self) {
        let faults: [(Step, Step); 3] = [
            (|broker| broker.freeze(), |broker| broker.thaw()),
            (|broker| broker.cut(), |broker| broker.heal()),
            (|broker| broker.kill(), |broker| broker.start()),
        ];
        for (fault, mend) in faults {
            let stage = self.clone();
            leaves_nothing(move || async move {
                let router = Router::new()
                    .on_event("shop.placed", |_: u64| std::future::pending::<Result<()>>());
                let service = (stage.app)("shop", "grace = '2s'").router(router);
                let service = service.start().await.unwrap();
                service.client().emit("shop.placed", &1).await.unwrap();
                fault(&stage.broker).await.unwrap();
                let start = Instant::now();
                // What it could not do it says.
                let _ = service.shutdown().await;
                let took = start.elapsed();
                let most = Duration::from_secs(2) + 2 * SLACK;
                assert!(took < most, "it took {took:?}");
            })
            .await;
            mend(&self.broker).await.unwrap();
            self.leaves_no_connection().await;
        }
    }

    /// Breaks the broker under load for long enough that deadlines pass, mends it, and looks at the books.
    async fn survives(self, fault: Step, mend: Step) {
        let stage = self.clone();
        leaves_nothing(move || async move {
            let load = Load::default();
            let (service, client) = stage.open(&load).await;
            let running = load.start(&client);
            load.progress("work").await;
            let (before, failures) = (resident(), load.failures());

            fault(&stage.broker).await.unwrap();
            load.standstill(failures).await;
            let grown = resident().saturating_sub(before);
            assert!(grown < GROWTH, "{grown} bytes more while nothing went");
            mend(&stage.broker).await.unwrap();

            load.progress("work again").await;
            load.finish(running).await;
            until("good health", || service.health().is_ok()).await;
            client.close().await.unwrap();
            service.shutdown().await.unwrap();
        })
        .await;
        self.leaves_no_connection().await;
    }

    async fn leaves_no_connection(&self) {
        until("no connection", || self.broker.proxy.counters().open == 0).await;
    }

    /// The service, and a client that emits and calls.
    async fn open(&self, load: &Load) -> (RunningApp, Client) {
        let service = self.app("shop").router(load.router()).start().await;
        let client = Client::connect(self.app("till")).await;
        (service.unwrap(), client.unwrap())
    }
}

impl fmt::Debug for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outage")
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
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
}
