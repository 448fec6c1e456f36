//! S: what can be seen from outside.

use std::time::Duration;

use anywire::telemetry;
use anywire::{Context, Failure, Ignore, Raw, Route, Router};

use crate::behaviour::behaviours;
use crate::{Counters, Test};

behaviours! {
    s01_a_trace_goes_on_through_handlers: [],
    s01_a_redelivered_handler_emits_the_same_ids: [AtLeastOnce],
    s02_counters_are_exact: [AtLeastOnce],
    s02_calls_are_counted: [Calls],
    s03_no_payload_and_no_header_value_is_in_what_is_printed: [AtLeastOnce],
}

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// What a handler emits belongs to the trace of what it handled, over as many hops as there are.
pub async fn s01_a_trace_goes_on_through_handlers(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let second = test.subject("second");
    let hop = move |_: Ignore, context: Context| {
        let second = second.clone();
        async move {
            context.client().emit(second, &2).await?;
            Ok::<(), Failure>(())
        }
    };
    let end = move |_: Ignore, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell(context.headers().get_str("traceparent").map(str::to_owned))
                .await
        }
    };
    let router = Router::new()
        .route(Route::event(test.pattern("first"), hop).name("hop"))
        .route(Route::event(test.pattern("second"), end).name("end"));
    let app = test
        .app("app")
        .router(router)
        .start()
        .await
        .expect("the app starts");
    let client = app.client();
    let emit = client
        .emit(test.subject("first"), &1)
        .header("traceparent", TRACE);
    emit.await.expect("accepted");
    let arrived = seen.next().await.expect("the trace is carried along");
    assert_eq!(trace_id(&arrived), trace_id(TRACE));
    app.shutdown().await.expect("it stops");
}

/// So that whoever drops duplicates by their ids can.
pub async fn s01_a_redelivered_handler_emits_the_same_ids(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let output = test.subject("outputs");
    let twice = move |_: Ignore, context: Context| {
        let output = output.clone();
        async move {
            let client = context.client();
            client.emit(output.clone(), "same").await?;
            client.emit(output, "same").await?;
            match context.attempt() {
                1 => Err(Failure::transient("once more")),
                _ => Ok(()),
            }
        }
    };
    let end = move |_: Ignore, context: Context| {
        let tell = tell.clone();
        async move { tell.tell(context.id().cloned()).await }
    };
    let twice = Route::event(test.pattern("inputs"), twice).retry([Duration::from_millis(20)]);
    let router = Router::new()
        .route(twice.name("twice"))
        .route(Route::event(test.pattern("outputs"), end).name("end"));
    let app = test
        .app("app")
        .router(router)
        .start()
        .await
        .expect("the app starts");
    app.client()
        .emit(test.subject("inputs"), &1)
        .await
        .expect("accepted");
    let mut ids = seen.take(2).await;
    // A wire that drops repeated ids delivers two, another four.
    let rest = if test.capabilities().dedup.is_some() {
        0
    } else {
        2
    };
    ids.extend(seen.take(rest).await);
    seen.stay_quiet().await;
    assert!(ids.iter().all(Option::is_some));
    let different: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(
        different.len(),
        2,
        "two emits, two ids, on each attempt: {ids:?}"
    );
    app.shutdown().await.expect("it stops");
}

/// A scripted run: 4 handled, 2 of them after a retry, 1 discarded, 1 dead-lettered.
pub async fn s02_counters_are_exact(test: &Test) {
    let counters = Counters::default();
    let handler = async |number: u32, context: Context| match (number, context.attempt()) {
        (1 | 2, 1) => Err(Failure::transient("once more")),
        (3, _) => Err(Failure::discard("stale")),
        (4, _) => Err(Failure::permanent("no use")),
        _ => Ok(()),
    };
    let retry = [Duration::from_millis(20)];
    let name = test.group("scripted");
    let route = Route::event(test.pattern("events"), handler)
        .name(&name)
        .retry(retry);
    let app = test.app("app").router(Router::new().route(route)).start();
    let app = counters.record(app).await.expect("the app starts");
    let numbers: Vec<u32> = (1..=6).collect();
    app.client()
        .emit_all(test.subject("events"), &numbers)
        .await
        .expect("accepted");
    let oversized = Raw(vec![0; test.capabilities().limits.max_payload + 1].into());
    let refused = app.client().emit(test.subject("events"), &oversized).await;
    refused.expect_err("too large");
    let settled = || {
        let ends = [
            telemetry::HANDLED,
            telemetry::DISCARDED,
            telemetry::DEAD_LETTERED,
        ];
        ends.iter().map(|end| counters.of(&name, end)).sum::<u64>()
    };
    let all = async {
        while settled() < 6 || counters.gauge_of(&name, telemetry::IN_FLIGHT) != 0.0 {
            tokio::task::yield_now().await;
        }
    };
    let all = tokio::time::timeout(test.gap(), all).await;
    assert!(all.is_ok(), "{counters:?}");
    app.shutdown().await.expect("it stops");
    let expected = [
        (telemetry::RECEIVED, 6),
        (telemetry::HANDLED, 4),
        (telemetry::RETRIED, 2),
        (telemetry::DISCARDED, 1),
        (telemetry::DEAD_LETTERED, 1),
        (telemetry::UNSETTLED, 0),
    ];
    for (metric, count) in expected {
        assert_eq!(counters.of(&name, metric), count, "{metric}");
    }
    assert_eq!(counters.count(telemetry::PUBLISHED), 6);
    assert_eq!(counters.count(telemetry::PUBLISH_FAILED), 1);
    assert_eq!(counters.gauge_of(&name, telemetry::IN_FLIGHT), 0.0);
}

/// Answered well and answered with an error.
pub async fn s02_calls_are_counted(test: &Test) {
    let counters = Counters::default();
    let handler = async |number: u32| match number {
        0 => Err(Failure::permanent("no")),
        _ => Ok(number),
    };
    let name = test.group("answers");
    let route = Route::call(test.pattern("ask"), handler).name(&name);
    let app = test.app("app").router(Router::new().route(route)).start();
    let app = counters.record(app).await.expect("the app starts");
    let client = app.client();
    for number in 0..5_u32 {
        let _ = client
            .request::<u32, u32>(test.subject("ask"), &number)
            .await;
    }
    app.shutdown().await.expect("it stops");
    let expected = [
        (telemetry::RECEIVED, 5),
        (telemetry::HANDLED, 4),
        (telemetry::REFUSED, 1),
    ];
    for (metric, count) in expected {
        assert_eq!(counters.of(&name, metric), count, "{metric}");
    }
    assert_eq!(counters.gauge_of(&name, telemetry::IN_FLIGHT), 0.0);
}

/// Messages, deliveries and errors may be logged as they are.
pub async fn s03_no_payload_and_no_header_value_is_in_what_is_printed(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let secret = test.message("events", "canary").with_key("canary");
    let secret = secret.with_headers(test.headers(&[("token", "canary")]));
    client.send(secret.clone()).await;
    let delivery = subscription.next().await;
    delivery.ack().await;
    let error = delivery
        .settle(anywire::pattern::publish_subscribe::Settlement::Ack)
        .await;
    let error = error.expect_err("it was acked before");
    for text in [
        format!("{delivery:?}"),
        format!("{error:?}"),
        format!("{client:?}"),
    ] {
        assert!(!text.contains("canary"), "{text}");
    }
}

fn trace_id(traceparent: &str) -> Option<&str> {
    traceparent.split('-').nth(1)
}
