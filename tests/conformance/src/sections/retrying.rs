//! E, with handlers: what becomes of a message whose handler fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anywire::config::AfterFailure;
use anywire::{Context, Failure, Ignore, Route};
use tokio::sync::Notify;

use crate::behaviour::behaviours;
use crate::{Subscription, Test, number};

behaviours! {
    e05_a_permanent_failure_is_dead_lettered_at_once: [AtLeastOnce],
    e05_a_discarded_message_is_gone: [AtLeastOnce],
    e07_a_failing_handler_keeps_to_its_schedule: [AtLeastOnce],
    e09_attempts_end_though_nobody_reads_the_dead_letters: [AtLeastOnce],
    e10_all_attempts_come_before_the_one_dead_letter: [AtLeastOnce],
    e11_a_dead_lettered_message_stays_settled_across_a_restart: [AtLeastOnce],
    e13_a_failing_message_does_not_hold_the_others: [AtLeastOnce],
    e14_a_failing_message_holds_its_key_where_told_to: [AtLeastOnce],
    e16_a_long_wait_is_spent_in_the_broker_and_outlives_the_app: [Delay],
}

const STEP: Duration = Duration::from_millis(100);

/// One attempt, one dead letter, and then silence.
pub async fn e05_a_permanent_failure_is_dead_lettered_at_once(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let fails = move |_: Ignore, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell(context.attempt()).await?;
            Err::<(), _>(Failure::permanent("no use"))
        }
    };
    let route = Route::event(test.pattern("events"), fails).name("fails");
    let app = test.start("app", route).await;
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    let mut letters = letters(test, "app").await;
    let letter = letters.next().await;
    letter.ack().await;
    assert_eq!(seen.next().await, 1);
    seen.stay_quiet().await;
    letters.stays_quiet().await;
    app.shutdown().await.expect("it stops");
}

/// Neither tried again nor kept.
pub async fn e05_a_discarded_message_is_gone(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let discards = move |number: u32| {
        let tell = tell.clone();
        async move {
            tell.tell(number).await?;
            match number {
                1 => Err(Failure::discard("stale")),
                _ => Err(Failure::permanent("a control for the dead letters")),
            }
        }
    };
    let route = Route::event(test.pattern("events"), discards).name("discards");
    let app = test.start("app", route).await;
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    assert_eq!(seen.next().await, 1);
    app.client()
        .emit(test.subject("events"), &2)
        .await
        .expect("accepted");
    assert_eq!(seen.next().await, 2);
    let mut letters = letters(test, "app").await;
    let control = letters.next().await;
    assert_eq!(number(&control.message), 2);
    control.ack().await;
    letters.stays_quiet().await;
    seen.stay_quiet().await;
    app.shutdown().await.expect("it stops");
}

/// No hot loop: between two attempts lies the step, shortened by a tenth at the most.
pub async fn e07_a_failing_handler_keeps_to_its_schedule(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let fails = move |_: Ignore| {
        let tell = tell.clone();
        async move {
            tell.tell(Instant::now()).await?;
            Err::<(), _>(Failure::transient("not yet"))
        }
    };
    let route = Route::event(test.pattern("events"), fails)
        .name("fails")
        .retry([STEP; 4]);
    let app = test.start("app", route).await;
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    let attempts = seen.take(5).await;
    for pair in attempts.windows(2) {
        let gap = pair[1] - pair[0];
        assert!(
            gap >= STEP.mul_f64(0.85),
            "tried again after {gap:?}, the step is {STEP:?}"
        );
    }
    seen.stay_quiet().await;
    app.shutdown().await.expect("it stops");
}

/// With nobody to read them, dead letters are still where it ends.
pub async fn e09_attempts_end_though_nobody_reads_the_dead_letters(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let fails = move |number: u32, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell((number, context.attempt())).await?;
            Err::<(), _>(Failure::transient("never"))
        }
    };
    let route = Route::event(test.pattern("events"), fails)
        .name("fails")
        .retry([STEP / 10; 2]);
    let app = test.start("app", route).await;
    for number in 0..5 {
        app.client()
            .emit(test.subject("events"), &number)
            .await
            .expect("accepted");
    }
    let mut attempts = seen.take(15).await;
    attempts.sort_unstable();
    let expected: Vec<_> = (0..5)
        .flat_map(|number| [1, 2, 3].map(|attempt| (number, attempt)))
        .collect();
    assert_eq!(attempts, expected);
    seen.stay_quiet().await;
    app.shutdown().await.expect("it stops");
}

/// Every attempt of the schedule is made, then there is exactly one dead letter, which tells how many there were.
pub async fn e10_all_attempts_come_before_the_one_dead_letter(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let fails = move |_: Ignore, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell(context.attempt()).await?;
            Err::<(), _>(Failure::transient("the till is stuck"))
        }
    };
    let route = Route::event(test.pattern("events.{id}"), fails)
        .name("fails")
        .retry([STEP / 10; 3]);
    let app = test.start("app", route).await;
    let client = app.client();
    let sent = client
        .emit(test.subject("events.e1"), "payload")
        .header("tenant", "blue")
        .key("k");
    sent.await.expect("accepted");
    let mut letters = letters(test, "app").await;
    let letter = letters.next().await;
    assert_eq!(seen.take(4).await, [1, 2, 3, 4]);
    let message = &letter.message;
    assert_eq!(message.payload(), "\"payload\"");
    assert_eq!(message.headers().get_str("tenant"), Some("blue"));
    assert_eq!(message.key().map(|key| key.as_bytes()), Some(&b"k"[..]));
    let trail = message.trail().expect("a dead letter tells its past");
    assert_eq!(trail.subject, test.subject("events.e1"));
    assert_eq!(trail.attempt, 4);
    assert_eq!(trail.group.as_deref(), Some(test.group("app").as_str()));
    assert_eq!(trail.handler.as_deref(), Some("fails"));
    let pattern = trail
        .pattern
        .as_ref()
        .map(|pattern| pattern.wildcards().to_owned());
    assert_eq!(
        pattern.as_deref(),
        Some(test.pattern("events.*").wildcards())
    );
    assert!(
        trail
            .error
            .as_deref()
            .is_some_and(|error| error.contains("the till is stuck"))
    );
    assert!(trail.first_at.is_some() && trail.first_at <= trail.last_at);
    letter.ack().await;
    letters.stays_quiet().await;
    app.shutdown().await.expect("it stops");
}

/// The next instance does not find it in its queue.
pub async fn e11_a_dead_lettered_message_stays_settled_across_a_restart(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let fails = move |number: u32| {
        let tell = tell.clone();
        async move {
            tell.tell(number).await?;
            Err::<(), _>(Failure::permanent("no use"))
        }
    };
    let start = async || {
        let route = Route::event(test.pattern("events"), fails.clone()).name("fails");
        test.start("app", route).await
    };
    let app = start().await;
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    letters(test, "app").await.next().await.ack().await;
    assert_eq!(seen.next().await, 1);
    app.shutdown().await.expect("it stops");
    let app = start().await;
    app.client()
        .emit(test.subject("events"), &2)
        .await
        .expect("accepted");
    assert_eq!(seen.next().await, 2);
    seen.stay_quiet().await;
    app.shutdown().await.expect("it stops");
}

/// While one message waits for its next attempt, all the others are handled.
pub async fn e13_a_failing_message_does_not_hold_the_others(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let handler = move |number: u32, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell((number, context.attempt())).await?;
            match number {
                0 => Err(Failure::transient("not yet")),
                _ => Ok(()),
            }
        }
    };
    let route = Route::event(test.pattern("events"), handler)
        .name("handler")
        .concurrency(4);
    let route = route.retry([Duration::from_secs(1); 2]);
    let app = test.start("app", route).await;
    let numbers: Vec<u32> = (0..100).collect();
    app.client()
        .emit_all(test.subject("events"), &numbers)
        .await
        .expect("accepted");
    let handled = seen.take(100).await;
    assert!(
        !handled.contains(&(0, 2)),
        "the others waited for the second attempt of one"
    );
    assert_eq!(seen.next().await, (0, 2));
    app.shutdown().await.expect("it stops");
}

/// With `after_failure = "hold"` no later message of the key is handled first; other keys go on.
pub async fn e14_a_failing_message_holds_its_key_where_told_to(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let other_key = Arc::new(Notify::new());
    let handler = move |number: u32, context: Context| {
        let (tell, other_key) = (tell.clone(), Arc::clone(&other_key));
        async move {
            tell.tell((number, context.attempt())).await?;
            match (number, context.attempt()) {
                (1, 1) => Err(Failure::transient("not yet")),
                // It is held until the other key has gone on.
                (1, 2) => {
                    other_key.notified().await;
                    Err(Failure::transient("not yet"))
                }
                (11, _) => {
                    other_key.notify_one();
                    Ok(())
                }
                _ => Ok(()),
            }
        }
    };
    let route = Route::event(test.pattern("events"), handler)
        .name("handler")
        .after_failure(AfterFailure::Hold)
        .retry([STEP; 3]);
    let app = test.start("app", route).await;
    let client = app.client();
    for (number, key) in [
        (0, "held"),
        (1, "held"),
        (2, "held"),
        (10, "free"),
        (11, "free"),
    ] {
        client
            .emit(test.subject("events"), &number)
            .key(key)
            .await
            .expect("accepted");
    }
    let seen = seen.take(7).await;
    let (held, free): (Vec<_>, Vec<_>) = seen.iter().copied().partition(|(number, _)| *number < 10);
    assert_eq!(held, [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1)]);
    assert_eq!(free, [(10, 1), (11, 1)]);
    app.shutdown().await.expect("it stops");
}

/// The message and the count of its attempts survive the app that failed it.
pub async fn e16_a_long_wait_is_spent_in_the_broker_and_outlives_the_app(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let handler = move |_: Ignore, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell((context.attempt(), Instant::now())).await?;
            match context.attempt() {
                1 => Err(Failure::transient("not yet")),
                _ => Ok(()),
            }
        }
    };
    let wait = Duration::from_millis(1_500);
    let start = async || {
        let route = Route::event(test.pattern("events"), handler.clone())
            .name("handler")
            .retry([wait]);
        test.start("app", route).await
    };
    let app = start().await;
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    let (attempt, failed) = seen.next().await;
    assert_eq!(attempt, 1);
    app.shutdown().await.expect("it stops");
    let app = start().await;
    let (attempt, tried) = seen.next().await;
    assert_eq!(attempt, 2, "the count was lost");
    let waited = tried - failed;
    assert!(
        waited >= wait.mul_f64(0.95),
        "it was tried again after {waited:?}"
    );
    seen.stay_quiet().await;
    app.shutdown().await.expect("it stops");
}

/// The dead letters of an app of this test.
async fn letters(test: &Test, app: &str) -> Subscription {
    test.connect().await.subscribe(test.dead_letters(app)).await
}
