//! What is counted, and what is said and what is not.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write;
use std::sync::Once;
use std::time::Duration;

use anywire::clock::ManualClock;
use anywire::memory::MemoryBroker;
use anywire::testing::TestApp;
use anywire::{App, Client, Config, Failure, Ignore, Result, Route, Router, Unrouted, telemetry};
use common::{app_on, until};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

const SECOND: Duration = Duration::from_secs(1);

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

/// All that was counted, by name and label.
fn counts(snapshotter: &Snapshotter) -> HashMap<(String, String), f64> {
    let counted = snapshotter.snapshot().into_vec().into_iter();
    counted
        .map(|(key, _, _, value)| {
            let label = key
                .key()
                .labels()
                .next()
                .map(|label| label.value().to_owned());
            let value = match value {
                DebugValue::Counter(count) => count as f64,
                DebugValue::Gauge(value) => value.0,
                DebugValue::Histogram(values) => values.len() as f64,
            };
            (
                (key.key().name().to_owned(), label.unwrap_or_default()),
                value,
            )
        })
        .collect()
}

async fn fails(number: u32) -> Result<()> {
    match number {
        0 => Ok(()),
        1 => Err(Failure::transient("no")),
        2 => Err(Failure::permanent("no")),
        _ => Err(Failure::discard("no")),
    }
}

async fn refuses(number: u32) -> Result<u32> {
    if number == 0 {
        Ok(1)
    } else {
        Err(Failure::permanent("no"))
    }
}

#[test]
fn every_outcome_is_counted_once() {
    Log::listen();
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        block_on(async {
            let router = Router::new()
                .route(Route::event("a.b", fails).retry([SECOND, SECOND * 5]))
                .on_call("c.d", refuses);
            let test = TestApp::start(App::new("shop").router(router))
                .await
                .unwrap();
            for number in [0, 0, 0, 1, 2, 2, 3] {
                test.emit("a.b", &number).await.unwrap();
            }
            for number in [0, 0, 1] {
                let _ = test.client().request::<_, u32>("c.d", &number).await;
            }
            test.emit("nobody", &1).await.unwrap();
            test.shutdown().await.unwrap();
            let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
            let client = Client::connect(app_on(&broker, &clock, Router::new()))
                .await
                .unwrap();
            client.emit("nobody", &1).await.unwrap_err();
            client
                .emit("nobody", &1)
                .unrouted(Unrouted::Ignore)
                .await
                .unwrap();
        });
    });
    let counts = counts(&snapshotter);
    let of = |name: &str, label: &str| {
        counts
            .get(&(name.to_owned(), label.to_owned()))
            .copied()
            .unwrap_or(0.0)
    };
    // Seven, and the copy of the one that is retried.
    assert_eq!(of(telemetry::RECEIVED, "fails"), 8.0);
    assert_eq!(of(telemetry::HANDLED, "fails"), 3.0);
    assert_eq!(of(telemetry::RETRIED, "fails"), 2.0);
    assert_eq!(of(telemetry::DEAD_LETTERED, "fails"), 3.0);
    assert_eq!(of(telemetry::DISCARDED, "fails"), 1.0);
    assert_eq!(of(telemetry::UNSETTLED, "fails"), 0.0);
    assert_eq!(of(telemetry::IN_FLIGHT, "fails"), 0.0);
    assert_eq!(of(telemetry::DURATION, "fails"), 8.0);
    assert_eq!(of(telemetry::RECEIVED, "refuses"), 3.0);
    assert_eq!(of(telemetry::HANDLED, "refuses"), 2.0);
    assert_eq!(of(telemetry::REFUSED, "refuses"), 1.0);
    assert_eq!(of(telemetry::IN_FLIGHT, "refuses"), 0.0);
    assert_eq!(of(telemetry::PUBLISHED, "shop"), 7.0);
    assert_eq!(of(telemetry::UNROUTED, "shop"), 2.0);
    assert_eq!(of(telemetry::PUBLISH_FAILED, "shop"), 1.0);
}

thread_local! {
    /// What this thread has logged: one test, whose runtime has no other thread.
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Log;

impl Log {
    /// Everything that the future logs, as text.
    fn of<F: Future>(future: F) -> String {
        Self::listen();
        LOGGED.take();
        block_on(future);
        String::from_utf8(LOGGED.take()).unwrap()
    }

    /// One subscriber for the whole program, in place before anything is logged: `tracing` remembers for each place
    /// in the code whether anyone wants it, and with subscribers that come and go by thread it remembers what the
    /// thread that came first wanted.
    fn listen() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::TRACE)
                .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
                .with_ansi(false)
                .with_writer(|| Self)
                .finish();
            tracing::subscriber::set_global_default(subscriber).unwrap();
        });
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGGED.with_borrow_mut(|logged| logged.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_payload_no_header_value_and_no_secret_is_logged() {
    let log = Log::of(async {
        #[derive(serde::Deserialize)]
        struct Order {
            #[allow(dead_code, reason = "only to be decoded")]
            id: u32,
        }
        let order = |_: Order| async { Ok::<(), Failure>(()) };
        let reply = |_: Order| async { Ok::<u32, Failure>(1) };
        let failing = |_: Ignore| async { Err::<(), _>(Failure::transient("no luck")) };
        let router = Router::new()
            .route(Route::event("a.b", order).name("order"))
            .route(Route::call("c.d", reply).name("reply"))
            .route(Route::event("e.f", failing).retry([SECOND, SECOND * 5]));
        let config = "url = 'nats://user:canary-password@localhost:4222'\n[transports.main]\ntoken = 'canary-token'";
        let app = App::new("shop")
            .config(Config::from_toml(config).unwrap())
            .router(router);
        let test = TestApp::start(app).await.unwrap();
        for payload in ["canary-text", "{\"canary-key\":1}"] {
            let sent = test.emit_with(|client| {
                client
                    .emit("a.b", payload)
                    .header("authorization", "canary-header")
                    .key("canary-of-key")
            });
            sent.await.unwrap();
        }
        test.emit("a.b", &serde_json::json!({ "id": "canary-value" }))
            .await
            .unwrap();
        test.emit("e.f", "canary").await.unwrap();
        let request = test.client().request::<_, u32>("c.d", "canary").await;
        request.unwrap_err();
        assert_eq!(test.dead_letters("shop").len(), 4);
        let whole = test.dead_letters("shop")[2]
            .trail()
            .unwrap()
            .error
            .clone()
            .unwrap();
        assert!(
            whole.contains("invalid type: string"),
            "the dead letter tells it all: {whole}"
        );
        test.shutdown().await.unwrap();
    });
    assert!(
        log.contains("undecodable") && log.contains("no luck"),
        "{log}"
    );
    assert!(!log.contains("canary"), "{log}");
}

#[test]
fn a_subscription_that_no_handler_claims_is_reported_with_its_backlog() {
    let log = Log::of(async {
        let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
        let ignore = |_: Ignore| async { Ok::<(), Failure>(()) };
        let old = Router::new().on_event("old.pattern", ignore).route(
            Route::event("old.other", ignore)
                .name("other")
                .group("audit"),
        );
        app_on(&broker, &clock, old)
            .start()
            .await
            .unwrap()
            .shutdown()
            .await
            .unwrap();
        let client = Client::connect(app_on(&broker, &clock, Router::new()))
            .await
            .unwrap();
        client.emit("old.pattern", &1).await.unwrap();
        // The new version has no handler in the app's own group any more.
        let new = Route::event("new.pattern", ignore).group("audit");
        let app = app_on(&broker, &clock, Router::new().route(new));
        app.start().await.unwrap().shutdown().await.unwrap();
    });
    let unclaimed: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("no handler claims"))
        .collect();
    assert_eq!(unclaimed.len(), 2, "{log}");
    assert!(
        unclaimed
            .iter()
            .any(|line| line.contains("shop/old.pattern") && line.contains("backlog=1")),
        "{log}"
    );
}

#[test]
fn the_span_of_an_attempt_ends_with_it() {
    let log = Log::of(async {
        let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
        let handler = |_: Ignore| async {
            tracing::info!("inside");
            Ok::<(), Failure>(())
        };
        let app = app_on(&broker, &clock, Router::new().on_event("a.b", handler));
        let app = app.start().await.unwrap();
        app.client()
            .emit("a.b", &1)
            .header("traceparent", "00-1-2-01")
            .await
            .unwrap();
        until("the end", || {
            broker.backlog(&anywire::pattern::publish_subscribe::SubscriptionId::new(
                "shop",
                "a.b".parse().unwrap(),
            )) == Some(0)
        })
        .await;
        common::settle().await;
        tracing::info!("afterwards");
        app.shutdown().await.unwrap();
    });
    let at = |what: &str| {
        log.lines()
            .position(|line| line.contains(what))
            .unwrap_or_else(|| panic!("{what}: {log}"))
    };
    assert!(
        log.lines().any(|line| line.contains("inside")
            && line.contains("traceparent")
            && line.contains("handler=a.b")),
        "{log}"
    );
    assert!(
        at("inside") < at("close") && at("close") < at("afterwards"),
        "{log}"
    );
}
