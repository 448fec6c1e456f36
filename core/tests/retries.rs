//! What becomes of a failure: retries, dead letters, redrive.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anywire::clock::{Clock, ManualClock};
use anywire::memory::{MemoryBroker, MemoryConfig};
use anywire::testing::TestApp;
use anywire::{
    App, Client, Context, ErrorKind, Failure, Guarantee, Ignore, Message, MessageId, Order, Raw,
    Result, Route, Router,
};
use common::{app_on, until};
use parking_lot::Mutex;

type Seen<T> = Arc<Mutex<Vec<T>>>;

const SECOND: Duration = Duration::from_secs(1);

fn started(route: Route) -> App {
    App::new("shop").router(Router::new().route(route))
}

/// A handler that always fails in the given way and notes the attempt.
fn failing(
    seen: &Seen<u32>,
    failure: fn() -> Failure,
) -> impl Fn(Ignore, Context) -> std::future::Ready<Result<()>> + Send + Sync + 'static {
    let seen = Arc::clone(seen);
    move |_, context| {
        seen.lock().push(context.attempt());
        std::future::ready(Err(failure()))
    }
}

#[tokio::test]
async fn attempts_are_counted_across_short_waits_and_copies() {
    let seen = Seen::default();
    let route = Route::event("a.b", failing(&seen, || Failure::transient("no"))).retry([
        SECOND / 5,
        SECOND * 5,
        SECOND / 5,
        SECOND * 30,
    ]);
    let test = TestApp::start(started(route)).await.unwrap();
    test.emit("a.b", &1).await.unwrap();
    assert_eq!(*seen.lock(), [1, 2, 3, 4, 5]);
    assert_eq!(test.retried("a.b"), 4);
    assert_eq!(test.dead_letters("shop")[0].trail().unwrap().attempt, 5);
}

#[tokio::test]
async fn a_short_wait_is_in_this_process_and_a_long_one_in_the_broker() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let seen = Seen::default();
    let route = Route::event("a.b", failing(&seen, || Failure::transient("no")))
        .retry([SECOND, SECOND * 30]);
    let app = app_on(&broker, &clock, Router::new().route(route));
    let app = app.start().await.unwrap();
    let id =
        anywire::pattern::publish_subscribe::SubscriptionId::new("shop", "a.b".parse().unwrap());
    app.client().emit("a.b", &1).await.unwrap();
    until("the first attempt", || clock.next_timer().is_some()).await;
    assert_eq!(broker.backlog(&id), Some(0), "held here");
    clock.advance(SECOND);
    until("the copy", || {
        seen.lock().len() == 2 && broker.backlog(&id) == Some(1)
    })
    .await;
    clock.advance(SECOND * 29);
    common::settle().await;
    assert_eq!(*seen.lock(), [1, 2], "not before it is due");
    clock.advance(SECOND);
    until("the third attempt", || seen.lock().len() == 3).await;
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_copy_outlives_the_app_with_its_count() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let seen = Seen::default();
    let route =
        || Route::event("a.b", failing(&seen, || Failure::transient("no"))).retry([SECOND * 5; 2]);
    let id =
        anywire::pattern::publish_subscribe::SubscriptionId::new("shop", "a.b".parse().unwrap());
    let app = app_on(&broker, &clock, Router::new().route(route()));
    let app = app.start().await.unwrap();
    app.client().emit("a.b", &1).await.unwrap();
    until("the copy", || {
        seen.lock().len() == 1 && broker.backlog(&id) == Some(1)
    })
    .await;
    app.shutdown().await.unwrap();
    let app = app_on(&broker, &clock, Router::new().route(route()));
    let app = app.start().await.unwrap();
    clock.advance(SECOND * 5);
    until("the second attempt", || seen.lock().len() == 2).await;
    assert_eq!(*seen.lock(), [1, 2]);
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_asked_for_delay_takes_the_place_of_a_step() {
    let seen = Seen::default();
    let route = Route::event(
        "a.b",
        failing(&seen, || Failure::transient("no").retry_after(SECOND * 100)),
    )
    .retry([SECOND / 5]);
    let test = TestApp::start(started(route)).await.unwrap();
    let start = test.now();
    test.emit("a.b", &1).await.unwrap();
    assert_eq!(*seen.lock(), [1, 2]);
    assert_eq!(test.now() - start, SECOND * 100);
}

#[tokio::test]
async fn no_delay_is_too_long_to_be_asked_for() {
    let seen = Seen::default();
    let route = Route::event(
        "a.b",
        failing(&seen, || {
            Failure::transient("no").retry_after(Duration::MAX)
        }),
    )
    .retry([SECOND]);
    let test = TestApp::start(started(route)).await.unwrap();
    test.emit("a.b", &1).await.unwrap();
    assert_eq!(*seen.lock(), [1, 2]);
    assert!(test.app().health().is_ok());
}

#[tokio::test]
async fn a_permanent_failure_is_dead_lettered_at_once_and_a_discarded_one_is_gone() {
    let seen = Seen::default();
    let router = Router::new()
        .on_event("a.b", failing(&seen, || Failure::permanent("never")))
        .on_event("c.d", failing(&seen, || Failure::discard("stale")));
    let test = TestApp::start(App::new("shop").router(router))
        .await
        .unwrap();
    test.emit("a.b", &1).await.unwrap();
    test.emit("c.d", &2).await.unwrap();
    assert_eq!(*seen.lock(), [1, 1]);
    assert_eq!((test.dead_lettered("a.b"), test.discarded("c.d")), (1, 1));
    assert_eq!(test.dead_letters("shop").len(), 1);
}

#[tokio::test]
async fn a_dead_letter_tells_its_whole_story() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let seen = Seen::default();
    let route = Route::event("a.{b}.c", failing(&seen, || Failure::transient("no luck")))
        .name("picky")
        .group("billing")
        .retry([SECOND, SECOND * 9]);
    let app = app_on(&broker, &clock, Router::new().route(route));
    let app = app.start().await.unwrap();
    let first = clock.wall();
    let client = app.client();
    let sent = client.emit("a.x.c", &1).id("order-17").key("ada");
    sent.header("tenant", "blue").await.unwrap();
    until("the first failure", || clock.next_timer().is_some()).await;
    clock.advance(SECOND);
    until("the second failure", || seen.lock().len() == 2).await;
    common::settle().await;
    clock.advance(SECOND * 9);
    until("the dead letter", || {
        !broker.dead_letters("billing").is_empty()
    })
    .await;
    let dead = broker.dead_letters("billing").remove(0);
    let trail = dead.trail().unwrap();
    assert_eq!(dead.subject().as_str(), "anywire.dead.billing");
    assert_eq!(trail.subject.as_str(), "a.x.c");
    assert_eq!(trail.group.as_deref(), Some("billing"));
    assert_eq!(trail.pattern.as_ref().unwrap().wildcards(), "a.*.c");
    assert_eq!(trail.handler.as_deref(), Some("picky"));
    assert_eq!(trail.origin.as_deref(), Some("main"));
    assert_eq!(trail.attempt, 3);
    assert_eq!(trail.error.as_deref(), Some("no luck"));
    let passed = |at: Option<SystemTime>| at.unwrap().duration_since(first).unwrap();
    assert_eq!(passed(trail.first_at), Duration::ZERO, "the first failure");
    assert!(passed(trail.last_at) >= SECOND * 10);
    assert_eq!(dead.id(), Some(&MessageId::from("order-17")));
    assert_eq!(dead.key().unwrap().as_bytes(), b"ada");
    assert_eq!(dead.headers().get_str("tenant"), Some("blue"));
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_redriven_dead_letter_goes_to_the_subscription_that_failed_it_and_starts_anew() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let (failed, other) = (Seen::default(), Seen::<u32>::default());
    let ids = Seen::default();
    let noted = Arc::clone(&ids);
    let works = Arc::new(AtomicUsize::new(0));
    let repaired = Arc::clone(&works);
    let attempts = Arc::clone(&failed);
    let picky = move |_: Ignore, context: Context| {
        attempts.lock().push(context.attempt());
        noted.lock().push(context.id().unwrap().clone());
        let works = repaired.load(Ordering::Relaxed) > 0;
        std::future::ready(if works {
            Ok(())
        } else {
            Err(Failure::permanent("no"))
        })
    };
    let count = Arc::clone(&other);
    let easy = move |_: Ignore| {
        count.lock().push(1);
        std::future::ready(Ok::<(), Failure>(()))
    };
    let router = Router::new()
        .route(Route::event("a.b", picky).name("picky"))
        .route(Route::event("a.b", easy).name("easy").group("other"));
    let app = app_on(&broker, &clock, router).start().await.unwrap();
    app.client().emit("a.b", &7).await.unwrap();
    until("the dead letter", || {
        !broker.dead_letters("shop").is_empty()
    })
    .await;
    works.store(1, Ordering::Relaxed);
    let client = app.client();
    let dead = client.subscribe::<Message>("anywire.dead.shop");
    let mut dead = dead.group("ops").await.unwrap();
    dead.next().await.unwrap().unwrap().redrive().await.unwrap();
    until("the second delivery", || failed.lock().len() == 2).await;
    common::settle().await;
    assert_eq!(*failed.lock(), [1, 1], "the attempts start anew");
    assert_eq!(other.lock().len(), 1, "the other subscription gets nothing");
    let ids = ids.lock().clone();
    assert_eq!(ids[0], ids[1]);
    assert!(broker.dead_letters("shop").is_empty(), "it was dealt with");
    drop(dead);
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failed_broadcast_is_among_the_apps_dead_letters() {
    let seen = Seen::default();
    let route = Route::event("a.b", failing(&seen, || Failure::transient("no")))
        .broadcast()
        .retry([SECOND, SECOND * 30]);
    let test = TestApp::start(started(route)).await.unwrap();
    test.emit("a.b", &1).await.unwrap();
    assert_eq!(
        *seen.lock(),
        [1, 2],
        "in place only: it cannot be addressed"
    );
    let dead = test.dead_letters("shop");
    assert_eq!(dead.len(), 1);
    let refused = test.client().redrive(&dead[0]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
}

#[tokio::test]
async fn what_may_be_lost_is_neither_retried_nor_dead_lettered() {
    let seen = Seen::default();
    let route = Route::event("a.b", failing(&seen, || Failure::transient("no")))
        .guarantee(Guarantee::AtMostOnce);
    let test = TestApp::start(started(route)).await.unwrap();
    test.emit("a.b", &1).await.unwrap();
    assert_eq!(*seen.lock(), [1]);
    assert_eq!(test.discarded("a.b"), 1);
    assert!(test.dead_letters("shop").is_empty());
}

#[tokio::test]
async fn a_handler_of_dead_letters_parks_what_it_cannot_handle() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let (seen, parked) = (Seen::default(), Seen::default());
    let router = Router::new()
        .route(Route::event(
            "a.b",
            failing(&seen, || Failure::permanent("no")),
        ))
        .route(
            Route::event(
                "anywire.dead.shop",
                failing(&parked, || Failure::permanent("no either")),
            )
            .group("ops")
            .name("ops"),
        );
    let app = app_on(&broker, &clock, router).start().await.unwrap();
    app.client().emit("a.b", &1).await.unwrap();
    until("the parking", || clock.next_timer().is_some()).await;
    assert!(!app.health().is_ok(), "it says so");
    assert!(clock.advance_to_next());
    until("another try", || parked.lock().len() == 2).await;
    assert!(broker.dead_letters("ops").is_empty());
    assert_eq!(broker.dead_letters("shop").len(), 1, "it is kept");
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_full_dead_letter_store_holds_the_original_in_red_health_until_there_is_room() {
    let clock = ManualClock::new();
    let broker = MemoryBroker::with_config(MemoryConfig::default().with_dead_letters(1));
    let seen = Seen::default();
    let route = Route::event("a.b", failing(&seen, || Failure::permanent("no")));
    let app = app_on(&broker, &clock, Router::new().route(route));
    let app = app.start().await.unwrap();
    app.client().emit("a.b", &1).await.unwrap();
    app.client().emit("a.b", &2).await.unwrap();
    until("red health", || !app.health().is_ok()).await;
    assert_eq!(app.health().handlers[0].stuck, 1);
    let mut dead = app
        .client()
        .subscribe::<Message>("anywire.dead.shop")
        .group("ops")
        .await
        .unwrap();
    dead.next().await.unwrap().unwrap().ack().await.unwrap();
    assert!(clock.advance_to_next());
    until("green health", || app.health().is_ok()).await;
    let second = dead.next().await.unwrap().unwrap();
    assert_eq!(second.message().payload().as_ref(), b"2");
    second.ack().await.unwrap();
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_message_that_kills_its_handlers_is_dead_lettered_before_it_runs_again() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let route = |seen: &Seen<u32>| {
        Route::event("a.b", failing(seen, || Failure::transient("no"))).retry([])
    };
    let killed = Seen::default();
    let app = app_on(&broker, &clock, Router::new().route(route(&killed)));
    // What a process does that dies each time: takes the message and never settles it.
    let client = Client::connect(app).await.unwrap();
    let mut victim = client
        .subscribe::<u32>("a.b")
        .group("shop")
        .order(Order::Key)
        .await
        .unwrap();
    client.emit("a.b", &1).await.unwrap();
    for _ in 0..21 {
        drop(victim.next().await.unwrap().unwrap());
    }
    victim.stop().await.unwrap();
    let seen = Seen::default();
    let app = app_on(&broker, &clock, Router::new().route(route(&seen)));
    let app = app.start().await.unwrap();
    until("the dead letter", || {
        !broker.dead_letters("shop").is_empty()
    })
    .await;
    assert!(seen.lock().is_empty(), "it was not run");
    let dead = broker.dead_letters("shop");
    let error = dead[0].trail().unwrap().error.clone().unwrap();
    assert!(error.contains("22 times"), "{error}");
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_forwarded_dead_letter_sheds_its_past() {
    let seen = Seen::default();
    let router = Router::new()
        .route(Route::event(
            "a.b",
            failing(&seen, || Failure::permanent("no")),
        ))
        .route(Route::event("c.d", failing(&seen, || Failure::transient("no"))).retry([SECOND]));
    let test = TestApp::start(App::new("shop").router(router))
        .await
        .unwrap();
    test.emit("a.b", &1).await.unwrap();
    let dead = test.dead_letters("shop").remove(0);
    let forwarded = dead.with_subject("c.d".parse().unwrap());
    test.emit_with(|client| client.forward(forwarded))
        .await
        .unwrap();
    assert_eq!(*seen.lock(), [1, 1, 2]);
}

#[tokio::test]
async fn a_dead_letter_that_cannot_be_read_stays_a_dead_letter() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let seen = Seen::default();
    let route = Route::event("a.b", failing(&seen, || Failure::permanent("no")));
    let app = app_on(&broker, &clock, Router::new().route(route));
    let app = app.start().await.unwrap();
    app.client()
        .emit("a.b", &Raw("no json".into()))
        .await
        .unwrap();
    app.client().emit("a.b", &7).await.unwrap();
    until("the dead letters", || {
        broker.dead_letters("shop").len() == 2
    })
    .await;
    let mut dead = app
        .client()
        .subscribe::<u32>("anywire.dead.shop")
        .group("ops")
        .await
        .unwrap();
    assert_eq!(
        dead.next().await.unwrap().unwrap_err().kind(),
        ErrorKind::Codec
    );
    assert_eq!(dead.next().await.unwrap().unwrap().take().await.unwrap(), 7);
    assert_eq!(
        broker.dead_letters("shop").len(),
        1,
        "the other one is still there"
    );
    drop(dead);
    let mut dead = app
        .client()
        .subscribe::<Raw>("anywire.dead.shop")
        .group("ops")
        .await
        .unwrap();
    assert_eq!(
        dead.next()
            .await
            .unwrap()
            .unwrap()
            .take()
            .await
            .unwrap()
            .0
            .as_ref(),
        b"no json"
    );
    drop(dead);
    app.shutdown().await.unwrap();
}

/// A handler of one at a time that notes what succeeds; 0 fails.
fn fragile(seen: &Seen<u32>) -> Route {
    let seen = Arc::clone(seen);
    let handler = move |number: u32| {
        let seen = Arc::clone(&seen);
        async move {
            if number == 0 {
                return Err(Failure::transient("no"));
            }
            seen.lock().push(number);
            Ok(())
        }
    };
    Route::event("a.b", handler).concurrency(1).retry([SECOND])
}

#[tokio::test]
async fn a_message_that_waits_for_its_next_attempt_leaves_its_place_to_others() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let seen = Seen::default();
    let app = app_on(&broker, &clock, Router::new().route(fragile(&seen)));
    let app = app.start().await.unwrap();
    for number in [0_u32, 1, 2] {
        app.client().emit("a.b", &number).await.unwrap();
    }
    until("the others, while the first waits", || {
        *seen.lock() == [1, 2]
    })
    .await;
    assert!(clock.next_timer().is_some(), "it still waits");
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn those_that_wait_for_their_next_attempt_take_half_of_the_window_at_most() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let seen = Seen::default();
    let app = app_on(&broker, &clock, Router::new().route(fragile(&seen)));
    let app = app.start().await.unwrap();
    let id =
        anywire::pattern::publish_subscribe::SubscriptionId::new("shop", "a.b".parse().unwrap());
    // One may run, so four may be held; with two that wait, nothing new is pulled.
    for number in [0_u32, 0] {
        app.client().emit("a.b", &number).await.unwrap();
    }
    until("both to wait", || broker.backlog(&id) == Some(0)).await;
    common::settle().await;
    app.client().emit("a.b", &1_u32).await.unwrap();
    common::settle().await;
    assert_eq!(broker.backlog(&id), Some(1), "new work stays there");
    assert!(seen.lock().is_empty());
    until("all", || {
        let _ = clock.advance_to_next();
        *seen.lock() == [1] && broker.dead_letters("shop").len() == 2
    })
    .await;
    app.shutdown().await.unwrap();
}
