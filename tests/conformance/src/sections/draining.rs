//! I, with handlers: how an app stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anywire::{Client, Context, ErrorKind, Failure, Ignore, Route};
use tokio::sync::Semaphore;

use crate::behaviour::behaviours;
use crate::{Test, number};

behaviours! {
    i01_handlers_finish_and_nothing_new_begins: [],
    i02_a_handler_may_publish_while_the_app_drains: [],
    i03_what_was_not_begun_is_handled_by_the_next_as_if_for_the_first_time: [AtLeastOnce],
    i03_what_waits_for_its_next_attempt_goes_back_and_is_no_dead_letter: [AtLeastOnce],
    i04_a_handler_that_does_not_end_is_abandoned_and_its_message_delivered_again: [AtLeastOnce],
    i09_stopping_an_idle_app_takes_no_time: [],
}

/// Ten are at work when the app is told to stop: all ten finish, no eleventh begins, and it takes no longer than they.
pub async fn i01_handlers_finish_and_nothing_new_begins(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let handler = move |number: u32| {
        let tell = tell.clone();
        async move {
            tell.tell(("begun", number)).await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            tell.tell(("done", number)).await
        }
    };
    let route = Route::event(test.pattern("events"), handler)
        .name("handler")
        .concurrency(10);
    let app = test.start("app", route).await;
    let numbers: Vec<u32> = (0..30).collect();
    app.client()
        .emit_all(test.subject("events"), &numbers)
        .await
        .expect("accepted");
    seen.take(10).await;
    let start = Instant::now();
    app.shutdown().await.expect("all handlers finish");
    // The server may take a second for its own goodbye.
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "it took {:?}",
        start.elapsed()
    );
    let mut finished = seen.take(10).await;
    finished.sort_unstable();
    assert!(
        finished.iter().all(|(what, _)| *what == "done"),
        "{finished:?}"
    );
    seen.stay_quiet().await;
}

/// Its client works until the last handler is done.
pub async fn i02_a_handler_may_publish_while_the_app_drains(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let gate = Arc::new(Semaphore::new(0));
    let (handlers_gate, result) = (Arc::clone(&gate), test.subject("results"));
    let handler = move |number: u32, client: Client| {
        let (tell, gate, result) = (tell.clone(), Arc::clone(&handlers_gate), result.clone());
        async move {
            tell.tell(number).await?;
            let _ = gate.acquire().await;
            client.emit(result, &(number + 1)).await?;
            Ok::<(), Failure>(())
        }
    };
    let mut results = test
        .connect()
        .await
        .subscribe(test.spec("results", "results"))
        .await;
    let app = test
        .start(
            "app",
            Route::event(test.pattern("events"), handler).name("handler"),
        )
        .await;
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    seen.next().await;
    let stopping = app.stopping();
    let shutdown = tokio::spawn(app.shutdown());
    stopping.cancelled().await;
    gate.add_permits(1);
    shutdown
        .await
        .expect("no panic")
        .expect("all handlers finish");
    let result = results.next().await;
    assert_eq!(number(&result.message), 2);
    result.ack().await;
    seen.stay_quiet().await;
}

/// What was prefetched and never begun is nobody's failure.
pub async fn i03_what_was_not_begun_is_handled_by_the_next_as_if_for_the_first_time(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let gate = Arc::new(Semaphore::new(0));
    let handlers_gate = Arc::clone(&gate);
    let handler = move |number: u32, context: Context| {
        let (tell, gate) = (tell.clone(), Arc::clone(&handlers_gate));
        async move {
            tell.tell((number, context.attempt())).await?;
            let _ = gate.acquire().await;
            Ok::<(), Failure>(())
        }
    };
    let route = || {
        Route::event(test.pattern("events"), handler.clone())
            .name("handler")
            .concurrency(2)
    };
    let app = test.start("app", route()).await;
    let numbers: Vec<u32> = (0..20).collect();
    app.client()
        .emit_all(test.subject("events"), &numbers)
        .await
        .expect("accepted");
    let mut begun = seen.take(2).await;
    let (stopping, shutdown) = (app.stopping(), tokio::spawn(app.shutdown()));
    stopping.cancelled().await;
    gate.add_permits(100);
    shutdown.await.expect("no panic").expect("it stops");
    let next = test.start("app", route()).await;
    begun.extend(seen.take(18).await);
    begun.sort_unstable();
    let expected: Vec<_> = numbers.iter().map(|number| (*number, 1)).collect();
    assert_eq!(begun, expected);
    seen.stay_quiet().await;
    next.shutdown().await.expect("it stops");
}

/// A shutdown does not wait for a retry, and does not make a dead letter of it.
pub async fn i03_what_waits_for_its_next_attempt_goes_back_and_is_no_dead_letter(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let handler = move |number: u32| {
        let tell = tell.clone();
        async move {
            tell.tell(number).await?;
            match number {
                1 => Err(Failure::transient("not yet")),
                _ => Ok(()),
            }
        }
    };
    let route = || {
        let route = Route::event(test.pattern("events"), handler.clone()).name("handler");
        route.retry([Duration::from_secs(1); 9])
    };
    let mut app = test.start("app", route()).await;
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    // A server that stands still for a moment does so once. Who waits for the retry does each time.
    let mut waited = Duration::MAX;
    for again in [true, true, false] {
        seen.next().await;
        let start = Instant::now();
        app.shutdown().await.expect("it stops");
        waited = waited.min(start.elapsed());
        if waited < Duration::from_millis(800) || !again {
            break;
        }
        app = test.start("app", route()).await;
    }
    assert!(waited < Duration::from_millis(800), "it waited {waited:?}");
    let mut letters = test
        .connect()
        .await
        .subscribe(test.dead_letters("app"))
        .await;
    let next = test.start("app", route()).await;
    assert_eq!(seen.next().await, 1, "it is delivered again");
    if let Some(letter) = letters.next_within(test.quiet()).await {
        panic!("it became a dead letter: {:?}", letter.message.trail());
    }
    next.shutdown().await.expect("it stops");
}

/// The shutdown ends with its grace and says so; the message is not lost.
pub async fn i04_a_handler_that_does_not_end_is_abandoned_and_its_message_delivered_again(
    test: &Test,
) {
    let (tell, mut seen) = test.sightings();
    let hangs = tell.clone();
    let hanging = move |number: u32| {
        let tell = hangs.clone();
        async move {
            tell.tell(("hangs", number)).await?;
            std::future::pending::<()>().await;
            Ok::<(), Failure>(())
        }
    };
    let route = Route::event(test.pattern("events"), hanging).name("handler");
    let router = anywire::Router::new().route(route);
    let app = test.app("app").force("grace = \"500ms\"").router(router);
    let app = app.start().await.expect("the app starts");
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    assert_eq!(seen.next().await, ("hangs", 1));
    let start = Instant::now();
    let error = app.shutdown().await.expect_err("a handler was abandoned");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let took = start.elapsed();
    assert!((500..2_000).contains(&took.as_millis()), "it took {took:?}");
    let healthy = move |number: u32| {
        let tell = tell.clone();
        async move { tell.tell(("healthy", number)).await }
    };
    let route = Route::event(test.pattern("events"), healthy).name("handler");
    let next = test.start("app", route).await;
    assert_eq!(seen.next().await, ("healthy", 1));
    next.shutdown().await.expect("it stops");
}

/// Nothing to drain, nothing to wait for.
pub async fn i09_stopping_an_idle_app_takes_no_time(test: &Test) {
    let route = Route::event(test.pattern("events"), async |_: Ignore| {
        Ok::<(), Failure>(())
    });
    let app = test.start("app", route.name("handler")).await;
    let start = Instant::now();
    app.shutdown().await.expect("it stops");
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "it took {:?}",
        start.elapsed()
    );
}
