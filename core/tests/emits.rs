//! The sending side: deadlines, unknown outcomes, ids, traces, limits, and what nobody takes.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anywire::clock::{Clock, ManualClock};
use anywire::memory::{MemoryBroker, MemoryConfig};
use anywire::pattern::Progress;
use anywire::pattern::publish_subscribe::{PublishBatch, Published, Publisher, Receipt};
use anywire::testing::TestApp;
use anywire::{
    App, Client, Config, Context, Error, ErrorKind, Failure, Guarantee, Headers, Ignore, Message,
    MessageId, Result, Route, Router, Unrouted,
};
use common::{Altered, app_on, settle, until};
use parking_lot::Mutex;

const SECOND: Duration = Duration::from_secs(1);

async fn ignore(_: Ignore) -> Result<()> {
    Ok(())
}

/// Emits the same thing twice by its own client and once by its context's, and fails at first.
async fn repeats(_: Ignore, client: Client, context: Context) -> Result<()> {
    client.emit("c.d", &1).await?;
    client.emit("c.d", &1).await?;
    context.client().emit("c.d", &1).await?;
    context.client().emit("c.d", &2).await?;
    if context.attempt() == 1 {
        return Err(Failure::transient("no"));
    }
    Ok(())
}

#[tokio::test]
async fn a_redelivered_handler_emits_the_same_ids_and_equal_emits_differ() {
    let ids: Arc<Mutex<Vec<MessageId>>> = Arc::default();
    let noted = Arc::clone(&ids);
    let note = move |message: Message| {
        noted.lock().push(message.id().unwrap().clone());
        std::future::ready(Ok::<(), Failure>(()))
    };
    // The retry leaves the process: what comes back is a copy.
    let router = Router::new()
        .route(Route::event("a.b", repeats).retry([SECOND * 5]))
        .route(Route::event("c.d", note));
    let test = TestApp::start(App::new("shop").router(router))
        .await
        .unwrap();
    test.emit("a.b", &0).await.unwrap();
    let first = ids.lock().clone();
    assert_eq!(first.len(), 8);
    assert_eq!(
        first[..4],
        first[4..],
        "the second attempt repeats the first"
    );
    let mut different = first[..4].to_vec();
    different.sort_by_key(ToString::to_string);
    different.dedup();
    assert_eq!(different.len(), 4, "whichever client emits them");
    test.emit("a.b", &0).await.unwrap();
    assert!(
        !first.contains(&ids.lock()[8]),
        "another message, other ids"
    );
}

#[tokio::test]
async fn a_given_id_wins_and_traces_are_carried_along() {
    let seen: Arc<Mutex<Vec<(MessageId, Headers)>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let note = move |_: Ignore, headers: Headers, context: Context| {
        noted.lock().push((context.id().unwrap().clone(), headers));
        std::future::ready(Ok::<(), Failure>(()))
    };
    let pass = |_: Ignore, client: Client| async move {
        client.emit("c.d", &1).id("mine").header("own", "x").await?;
        Ok::<(), Failure>(())
    };
    let router = Router::new().on_event("a.b", pass).on_event("c.d", note);
    let test = TestApp::start(App::new("shop").router(router))
        .await
        .unwrap();
    let sent = test.emit_with(|client| {
        let emit = client.emit("a.b", &0).header("traceparent", "00-1-2-01");
        emit.header("tracestate", "v=1").header("tenant", "blue")
    });
    sent.await.unwrap();
    let (id, headers) = seen.lock().remove(0);
    assert_eq!(id, MessageId::from("mine"));
    assert_eq!(headers.get_str("traceparent"), Some("00-1-2-01"));
    assert_eq!(headers.get_str("tracestate"), Some("v=1"));
    assert_eq!(
        headers.get_str("tenant"),
        None,
        "only the trace is inherited"
    );
    assert_eq!(headers.get_str("own"), Some("x"));
}

#[tokio::test]
async fn an_emit_that_nobody_takes_is_refused_and_says_how_to_allow_it() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let rules = "[[subjects]]\nmatch = 'quiet.>'\nunrouted = 'ignore'\n[[subjects]]\nmatch = 'loud.>'\nunrouted = 'warn'";
    let app = app_on(&broker, &clock, Router::new())
        .force(rules)
        .start()
        .await
        .unwrap();
    let client = app.client();
    let error = client.emit("a.b", &1).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::NoRoute, true)
    );
    assert!(error.to_string().contains("unrouted = \"warn\""), "{error}");
    for subject in ["quiet.a", "loud.a"] {
        assert!(
            client.emit(subject, &1).await.unwrap().is_unrouted(),
            "{subject}"
        );
    }
    assert!(
        client
            .emit("a.b", &1)
            .unrouted(Unrouted::Ignore)
            .await
            .unwrap()
            .is_unrouted()
    );
    let lossy = client.emit("a.b", &1).guarantee(Guarantee::AtMostOnce);
    lossy.await.unwrap();
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn nobody_to_take_an_emit_is_a_transient_failure_of_its_handler() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let pass = move |_: Ignore, client: Client| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            client.emit("nobody.here", &1).await?;
            Ok::<(), Failure>(())
        }
    };
    let app = app_on(&broker, &clock, Router::new().on_event("a.b", pass));
    let app = app.start().await.unwrap();
    app.client().emit("a.b", &1).await.unwrap();
    until("the wait for the retry", || clock.next_timer().is_some()).await;
    let taken = app_on(
        &broker,
        &clock,
        Router::new().on_event("nobody.here", ignore),
    );
    let taken = taken.start().await.unwrap();
    assert!(clock.advance_to_next());
    until("the second attempt", || tries.load(Ordering::Relaxed) == 2).await;
    settle().await;
    assert!(broker.dead_letters("shop").is_empty());
    taken.shutdown().await.unwrap();
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn emit_all_tells_the_result_of_each() {
    let clock = ManualClock::new();
    let broker = MemoryBroker::with_config(MemoryConfig::default().with_max_payload(10));
    let app = app_on(&broker, &clock, Router::new().on_event("a.b", ignore));
    let app = app.start().await.unwrap();
    let texts = ["short", "much too long for it", "short"].map(String::from);
    let error = app.client().emit_all("a.b", &texts).await.unwrap_err();
    let kinds: Vec<_> = error
        .results()
        .iter()
        .map(|result| result.as_ref().err().map(Error::kind))
        .collect();
    assert_eq!(kinds, [None, Some(ErrorKind::TooLarge), None]);
    assert!(error.to_string().starts_with("1 of 3"), "{error}");
    let receipts = app
        .client()
        .emit_all("a.b", &["a", "b"].map(String::from))
        .await
        .unwrap();
    assert_eq!(receipts.len(), 2);
    app.shutdown().await.unwrap();
}

/// Says of the first so many publishes of an entry that their outcome is unknown, though the wire took them; and takes
/// a third of a second each time. It may refuse those that come later.
#[derive(Debug)]
struct Forgetful {
    inner: Arc<dyn Publisher>,
}

static FORGETS: AtomicUsize = AtomicUsize::new(0);
static REFUSES: AtomicBool = AtomicBool::new(false);
static SENT: Mutex<Vec<MessageId>> = Mutex::new(Vec::new());
/// The tests that share them take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Publisher for Forgetful {
    fn publish(&self, batch: PublishBatch) -> Progress<PublishBatch> {
        let inner = Arc::clone(&self.inner);
        Progress::pending(async move {
            let forgets = FORGETS
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok();
            let ids = batch
                .entries()
                .iter()
                .filter_map(|entry| entry.message.id().cloned());
            SENT.lock().extend(ids);
            let timeout = batch.timeout();
            let (entries, outcomes) = inner.publish(batch).wait().await.into_parts();
            let mut batch = PublishBatch::new(timeout);
            entries.into_iter().for_each(|entry| batch.push(entry));
            for outcome in outcomes {
                batch.record(match forgets {
                    true => Published::Unknown(Error::new(ErrorKind::Disconnected, "cut")),
                    false if REFUSES.load(Ordering::Relaxed) => {
                        Published::Rejected(Error::new(ErrorKind::Unavailable, "down"))
                    }
                    false => outcome,
                });
            }
            batch
        })
    }
}

async fn forgetful(times: usize, clock: &ManualClock) -> anywire::RunningApp {
    FORGETS.store(times, Ordering::Relaxed);
    REFUSES.store(false, Ordering::Relaxed);
    SENT.lock().clear();
    let adapter = Altered {
        publisher: |inner| Arc::new(Forgetful { inner }),
        ..Altered::new(&MemoryBroker::new())
    };
    App::new("shop")
        .adapter(adapter)
        .config(Config::from_toml("url = 'memory://'").unwrap())
        .clock(Arc::new(clock.clone()))
        .router(Router::new().on_event("a.b", ignore))
        .start()
        .await
        .unwrap()
}

/// Moves the clock from timer to timer until the future ends.
async fn drive<F: Future>(clock: &ManualClock, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    loop {
        if let Some(output) = futures::FutureExt::now_or_never(&mut future) {
            return output;
        }
        settle().await;
        let _ = clock.advance_to_next();
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_tried_again_with_the_same_id() {
    let _turn = TURN.lock().await;
    let clock = ManualClock::new();
    let app = forgetful(2, &clock).await;
    let client = app.client();
    let receipt = drive(&clock, client.emit("a.b", &1).into_future()).await;
    assert_eq!(receipt.unwrap(), Receipt::new());
    let sent = SENT.lock().clone();
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|id| *id == sent[0]));
}

#[tokio::test]
async fn what_stays_unknown_ends_with_the_deadline_and_never_as_accepted() {
    let _turn = TURN.lock().await;
    let clock = ManualClock::new();
    let app = forgetful(usize::MAX, &clock).await;
    let (client, start) = (app.client(), clock.now());
    let error = drive(
        &clock,
        client.emit("a.b", &1).timeout(SECOND * 3).into_future(),
    )
    .await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert!(clock.now() - start <= SECOND * 3);
}

#[tokio::test]
async fn what_may_have_been_taken_once_is_never_told_as_refused() {
    let _turn = TURN.lock().await;
    let clock = ManualClock::new();
    let app = forgetful(1, &clock).await;
    REFUSES.store(true, Ordering::Relaxed);
    let client = app.client();
    let one = client.emit("a.b", &1).timeout(SECOND);
    let error = drive(&clock, one.into_future()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    FORGETS.store(1, Ordering::Relaxed);
    let many = client.emit_all("a.b", &[1, 2]).timeout(SECOND);
    let error = drive(&clock, many.into_future()).await.unwrap_err();
    for result in error.results() {
        let error = result.as_ref().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    }
}

#[tokio::test]
async fn many_unknown_outcomes_share_one_deadline() {
    let _turn = TURN.lock().await;
    let clock = ManualClock::new();
    let app = forgetful(usize::MAX, &clock).await;
    let (client, start) = (app.client(), clock.now());
    let numbers: Vec<u32> = (0..50).collect();
    let emit = client.emit_all("a.b", &numbers).timeout(SECOND * 3);
    let error = drive(&clock, emit.into_future()).await.unwrap_err();
    assert_eq!(error.results().len(), 50);
    assert!(
        clock.now() - start <= SECOND * 3,
        "{:?}",
        clock.now() - start
    );
    FORGETS.store(1, Ordering::Relaxed);
    let receipts = drive(&clock, client.emit_all("a.b", &numbers).into_future()).await;
    assert_eq!(receipts.unwrap().len(), 50);
}

#[tokio::test]
async fn no_deadline_is_too_far_away() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let double = |number: u32| async move { Ok::<u32, Failure>(number * 2) };
    let router = Router::new()
        .on_event("a.b", ignore)
        .on_call("math.double", double);
    let app = app_on(&broker, &clock, router).start().await.unwrap();
    let client = app.client();
    client.emit("a.b", &1).timeout(Duration::MAX).await.unwrap();
    let answer: u32 = client
        .request("math.double", &4)
        .timeout(Duration::MAX)
        .await
        .unwrap();
    assert_eq!(answer, 8);
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_test_emits_as_its_builder_says() {
    let route = Route::event("a.b", ignore);
    let test = TestApp::start(App::new("shop").router(Router::new().route(route)))
        .await
        .unwrap();
    let sent = test.emit_with(|client| client.emit("a.b", &1).guarantee(Guarantee::AtMostOnce));
    sent.await.unwrap();
    let outcomes = test.outcomes();
    assert_eq!(
        outcomes[0].message.id(),
        None,
        "an event that may be lost has no id"
    );
}

#[tokio::test]
async fn an_emit_into_a_full_queue_ends_with_its_deadline() {
    let clock = ManualClock::new();
    let broker = MemoryBroker::with_config(MemoryConfig::default().with_queue(1));
    let client = Client::connect(app_on(&broker, &clock, Router::new()))
        .await
        .unwrap();
    let _kept = client.subscribe::<u32>("a.b").group("slow").await.unwrap();
    client.emit("a.b", &1).await.unwrap();
    let error = drive(&clock, client.emit("a.b", &2).into_future())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
}

#[tokio::test]
async fn a_handler_that_emits_into_its_own_full_queue_is_retried_and_blocks_nobody() {
    let clock = ManualClock::new();
    let broker = MemoryBroker::with_config(MemoryConfig::default().with_queue(2));
    let failed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&failed);
    let echo = move |number: u32, client: Client| {
        let count = Arc::clone(&count);
        async move {
            if number == 0 {
                return Ok::<(), Failure>(());
            }
            for _ in 0..20 {
                client.emit("a.b", &0_u32).await.inspect_err(|_| {
                    count.fetch_add(1, Ordering::Relaxed);
                })?;
            }
            Ok(())
        }
    };
    let route = Route::event("a.b", echo).concurrency(1).retry([SECOND]);
    let router = Router::new().route(route).on_event("c.d", ignore);
    let app = app_on(&broker, &clock, router).start().await.unwrap();
    let client = app.client();
    client.emit("a.b", &1_u32).await.unwrap();
    drive(&clock, async {
        while broker.dead_letters("shop").is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(
        failed.load(Ordering::Relaxed),
        2,
        "both attempts end with the emit's deadline"
    );
    client.emit("c.d", &1).await.unwrap();
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn emits_that_never_wait_let_others_run() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let client = Client::connect(app_on(&broker, &clock, Router::new()))
        .await
        .unwrap();
    for all in [false, true] {
        let other = tokio::spawn(async {});
        for number in 0..1000 {
            if all {
                let _ = client.emit_all("a.b", &[number]).await;
            } else {
                let emit = client.emit("a.b", &number).unrouted(Unrouted::Ignore);
                emit.await.unwrap();
            }
        }
        assert!(other.is_finished(), "all at once: {all}");
    }
}

#[tokio::test]
async fn an_event_for_later_is_handled_when_the_tests_clock_is_there() {
    let at = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&at);
    let note = move |order: u32, client: Client| {
        let noted = Arc::clone(&noted);
        async move {
            noted.lock().push(order);
            if order == 1 {
                let hour = Duration::from_secs(60 * 60);
                client.emit("shop.remind", &2).after(hour).await?;
            }
            Ok::<_, Failure>(())
        }
    };
    let router = Router::new().on_event("shop.remind", note);
    let test = TestApp::start(App::new("shop").router(router))
        .await
        .unwrap();
    let (start, day) = (test.now(), Duration::from_secs(24 * 60 * 60));
    test.emit_with(|client| client.emit("shop.remind", &1).after(day))
        .await
        .unwrap();
    assert_eq!(*at.lock(), [1, 2]);
    assert_eq!(test.now() - start, day + Duration::from_secs(60 * 60));
    test.shutdown().await.unwrap();
}

#[tokio::test]
async fn of_two_times_the_last_one_counts() {
    let router = Router::new().on_event("shop.remind", ignore);
    let test = TestApp::start(App::new("shop").router(router))
        .await
        .unwrap();
    let (start, hour) = (test.now(), Duration::from_secs(60 * 60));
    test.emit_with(|client| {
        let emit = client.emit("shop.remind", &1);
        emit.at(std::time::SystemTime::now() + 2 * hour).after(hour)
    })
    .await
    .unwrap();
    assert_eq!(test.now() - start, hour);
    test.shutdown().await.unwrap();
}
