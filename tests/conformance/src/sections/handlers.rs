//! T: what handlers, layers and routers promise.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anywire::{Context, ErrorKind, Failure, Ignore, Layer, Next, Output, Result, Route, Router};
use async_trait::async_trait;

use crate::behaviour::behaviours;
use crate::{Sabotage, Teller, Test, number};

behaviours! {
    t01_each_outcome_is_what_it_says: [AtLeastOnce],
    t02_layers_run_in_order_on_the_way_in_and_back_on_the_way_out: [],
    t03_two_handlers_of_one_name_or_identity_stop_the_start: [],
    t03_a_subject_for_events_and_for_calls_stops_the_start: [Calls],
    t05_a_start_that_fails_leaves_nothing_running: [],
    t06_a_subscription_that_ends_by_itself_is_told: [],
    t07_an_input_is_acked_after_its_output_is_stored: [Unroutable, AtLeastOnce],
}

/// How long a failed attempt waits in these tests.
const WORK: Duration = Duration::from_millis(20);

/// Ok, transient, permanent, discard, panic: five messages, five fates.
pub async fn t01_each_outcome_is_what_it_says(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let handler = move |fate: String, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell((fate.clone(), context.attempt())).await?;
            match (fate.as_str(), context.attempt()) {
                ("transient", 1) => Err(Failure::transient("try again")),
                ("permanent", _) => Err(Failure::permanent("no use")),
                ("discard", _) => Err(Failure::discard("stale")),
                ("panic", 1) => panic!("on purpose"),
                _ => Ok(()),
            }
        }
    };
    let route = Route::event(test.pattern("events"), handler)
        .name("handler")
        .retry([WORK]);
    let app = test.start("app", route).await;
    for fate in ["ok", "transient", "permanent", "discard", "panic"] {
        app.client()
            .emit(test.subject("events"), fate)
            .await
            .expect("accepted");
    }
    let mut seen_all = seen.take(7).await;
    seen_all.sort_unstable();
    let expected = [
        ("discard", 1),
        ("ok", 1),
        ("panic", 1),
        ("panic", 2),
        ("permanent", 1),
        ("transient", 1),
        ("transient", 2),
    ];
    assert_eq!(
        seen_all,
        expected.map(|(fate, attempt)| (fate.to_owned(), attempt))
    );
    let mut letters = test
        .connect()
        .await
        .subscribe(test.dead_letters("app"))
        .await;
    let letter = letters.next().await;
    assert_eq!(letter.message.payload(), "\"permanent\"");
    letter.ack().await;
    seen.stay_quiet().await;
    letters.stays_quiet().await;
    app.shutdown().await.expect("it stops");
}

struct Told(&'static str, Teller<String>);

#[async_trait]
impl Layer for Told {
    async fn call(&self, context: Context, next: Next) -> Result<Output> {
        self.1.tell(format!("into {}", self.0)).await?;
        let result = next.run(context).await;
        self.1.tell(format!("out of {}", self.0)).await?;
        result
    }
}

/// The app's are outside of the router's, those outside of the route's.
pub async fn t02_layers_run_in_order_on_the_way_in_and_back_on_the_way_out(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let told = |name| Told(name, tell.clone());
    let teller = tell.clone();
    let handler = move |_: Ignore| {
        let tell = teller.clone();
        async move { tell.tell("handler".to_owned()).await }
    };
    let route = Route::event(test.pattern("events"), handler)
        .name("handler")
        .layer(told("route"));
    let router = Router::new().route(route).layer(told("router"));
    let app = test
        .app("app")
        .layer(told("app 1"))
        .layer(told("app 2"))
        .router(router);
    let app = app.start().await.expect("the app starts");
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    let order = ["app 1", "app 2", "router", "route"];
    let inwards = order.iter().map(|name| format!("into {name}"));
    let outwards = order.iter().rev().map(|name| format!("out of {name}"));
    let expected: Vec<_> = inwards
        .chain(["handler".to_owned()])
        .chain(outwards)
        .collect();
    assert_eq!(seen.take(9).await, expected);
    app.shutdown().await.expect("it stops");
}

/// Two of one (group, pattern) would steal each other's messages, two of one name could not be configured.
pub async fn t03_two_handlers_of_one_name_or_identity_stop_the_start(test: &Test) {
    let route = |tail: &str, name: &str| {
        Route::event(test.pattern(tail), async |_: Ignore| Ok::<(), Failure>(())).name(name)
    };
    let refused = |one: Route, two: Route| {
        let app = test.app("app").router(Router::new().route(one).route(two));
        let error = app.check().expect_err("the start is refused");
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        error.to_string()
    };
    let same_name = refused(route("one", "twin"), route("two", "twin"));
    assert!(same_name.contains("twin"), "{same_name}");
    let same_identity = refused(route("a.{x}", "left"), route("a.*", "right"));
    assert!(
        same_identity.contains("left") && same_identity.contains("right"),
        "{same_identity}"
    );
    let apart = Router::new()
        .route(route("a.*", "left"))
        .route(route("a.*", "right").group("other"));
    test.app("app")
        .router(apart)
        .check()
        .expect("a group of its own makes it another subscription");
}

/// A subject is for one or the other.
pub async fn t03_a_subject_for_events_and_for_calls_stops_the_start(test: &Test) {
    let event = Route::event(test.pattern("both.*"), async |_: Ignore| {
        Ok::<(), Failure>(())
    });
    let call = Route::call(test.pattern("both.x"), async |_: Ignore| {
        Ok::<u32, Failure>(1)
    });
    let router = Router::new()
        .route(event.name("event"))
        .route(call.name("call"));
    let error = test
        .app("app")
        .router(router)
        .check()
        .expect_err("the start is refused");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

/// What had been opened is closed again, and the error names the handler. (The runner looks for what stayed.)
pub async fn t05_a_start_that_fails_leaves_nothing_running(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let sabotage = Sabotage::default();
    sabotage.refuse_subscription(test.pattern("refused"));
    let router = || {
        let tell = tell.clone();
        let handler = move |number: u32| {
            let tell = tell.clone();
            async move { tell.tell(number).await }
        };
        let refused = async |_: Ignore| Ok::<(), Failure>(());
        Router::new()
            .route(Route::event(test.pattern("events"), handler).name("opened"))
            .route(Route::event(test.pattern("refused"), refused).name("refused"))
    };
    let started = test
        .sabotaged_app("app", &sabotage)
        .router(router())
        .start()
        .await;
    let error = started.expect_err("the start fails");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert_eq!(error.context("handler"), Some("refused"));
    assert_eq!(sabotage.open_transports(), 0, "its connection stayed open");
    let client = test.connect().await;
    // Whether the subscription itself stays on the broker is the wire's affair; nobody consumes from it.
    let _ = client
        .try_send(anywire::pattern::publish_subscribe::Entry::new(
            test.message("events", "1"),
        ))
        .await;
    sabotage.mend();
    assert!(
        seen.next_within(test.quiet()).await.is_none(),
        "a handler of a start that failed has run"
    );
    let app = test
        .sabotaged_app("app", &sabotage)
        .router(router())
        .start()
        .await;
    let app = app.expect("the app starts");
    app.client()
        .emit(test.subject("events"), &2)
        .await
        .expect("accepted");
    while seen.next().await != 2 {}
    app.shutdown().await.expect("it stops");
}

/// Deliveries that have ended though nobody stopped them make the health red.
pub async fn t06_a_subscription_that_ends_by_itself_is_told(test: &Test) {
    let route = Route::event(test.pattern("events"), async |_: Ignore| {
        Ok::<(), Failure>(())
    });
    let app = test.start("app", route.name("handler")).await;
    assert!(app.health().is_ok(), "{:?}", app.health());
    let transport = app
        .client()
        .transport("main")
        .expect("the transport is called main");
    transport
        .close(Duration::from_secs(1))
        .await
        .expect("it closes behind the app's back");
    let red = async {
        while app
            .health()
            .handlers
            .iter()
            .any(|handler| handler.consuming)
        {
            tokio::task::yield_now().await;
        }
    };
    let red = tokio::time::timeout(Duration::from_secs(1), red).await;
    assert!(red.is_ok() && !app.health().is_ok(), "{:?}", app.health());
    let _ = app.shutdown().await;
}

/// An output that nobody takes fails the attempt; the input comes again until it is stored.
pub async fn t07_an_input_is_acked_after_its_output_is_stored(test: &Test) {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let output = test.subject("outputs");
    let handler = move |number: u32, context: Context| {
        counted.fetch_add(1, Ordering::SeqCst);
        let output = output.clone();
        async move {
            context.client().emit(output, &(number * 2)).await?;
            Ok::<(), Failure>(())
        }
    };
    let route = Route::event(test.pattern("inputs"), handler)
        .name("handler")
        .retry([Duration::from_millis(50); 100]);
    let app = test.start("app", route).await;
    app.client()
        .emit(test.subject("inputs"), &21)
        .await
        .expect("accepted");
    let failed_twice = async {
        while attempts.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
    };
    let failed_twice = tokio::time::timeout(test.gap(), failed_twice).await;
    failed_twice.expect("an attempt without a stored output is tried again");
    let mut outputs = test
        .connect()
        .await
        .subscribe(test.spec("outputs", "outputs"))
        .await;
    let stored = outputs.next().await;
    assert_eq!(number(&stored.message), 42);
    stored.ack().await;
    outputs.stays_quiet().await;
    let made = attempts.load(Ordering::SeqCst);
    tokio::time::sleep(test.quiet()).await;
    assert_eq!(
        attempts.load(Ordering::SeqCst),
        made,
        "it was tried again after its success"
    );
    app.shutdown().await.expect("it stops");
}
