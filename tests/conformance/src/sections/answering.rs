//! O, with handlers: what a caller sees of the one who answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anywire::{Class, Context, ErrorKind, Failure, Ignore, Raw, RemoteError, Route, Router};
use futures::future::join_all;

use crate::behaviour::behaviours;
use crate::{PUBLISH_TIMEOUT, Test};

behaviours! {
    o01_handlers_answer_many_callers_at_once: [Calls],
    o05_a_classified_failure_reaches_the_caller_with_code_and_details: [Calls],
    o05_the_text_of_an_unclassified_failure_stays_at_home: [Calls],
    o12_the_handler_knows_its_deadline: [Calls],
    o12_calls_that_nobody_waits_for_any_more_leave_room_for_others: [Calls],
    o14_a_request_that_cannot_be_decoded_is_answered_so: [Calls],
    o15_a_handler_that_panics_answers_and_lives_on: [Calls],
    o16_a_failed_call_is_not_tried_again: [Calls],
}

/// How long a call may take that nobody answers.
const BRIEF: Duration = Duration::from_millis(300);

/// Through the whole framework: each caller gets its own answer.
pub async fn o01_handlers_answer_many_callers_at_once(test: &Test) {
    let double = async |number: u64| Ok::<u64, Failure>(number * 2);
    let app = test
        .start(
            "app",
            Route::call(test.pattern("double"), double).name("double"),
        )
        .await;
    let client = app.client();
    let calls = (0..200_u64).map(async |number| {
        let answer: u64 = client
            .request(test.subject("double"), &number)
            .await
            .expect("an answer");
        assert_eq!(answer, number * 2);
    });
    join_all(calls).await;
    app.shutdown().await.expect("it stops");
}

/// What the handler classified is the caller's business.
pub async fn o05_a_classified_failure_reaches_the_caller_with_code_and_details(test: &Test) {
    let sells = async |item: u32| match item {
        0 => Err(Failure::permanent("no such item")
            .with_code("unknown_item")
            .with_details([7, 8])),
        1 => Err(Failure::transient("the till is closed").with_code("closed")),
        _ => Ok(item),
    };
    let app = test
        .start("app", Route::call(test.pattern("buy"), sells).name("buy"))
        .await;
    let client = app.client();
    let buy = async |item: u32| client.request::<u32, u32>(test.subject("buy"), &item).await;
    assert_eq!(buy(5).await.expect("sold"), 5);
    let unknown = buy(0).await.expect_err("no such item");
    assert_eq!(
        (unknown.kind(), unknown.is_retryable()),
        (ErrorKind::Remote, false)
    );
    assert_eq!(
        unknown.as_remote().map(RemoteError::code),
        Some("unknown_item")
    );
    assert_eq!(
        unknown.as_remote().map(RemoteError::message),
        Some("no such item")
    );
    assert_eq!(unknown.remote_as::<Vec<u32>>(), Some(vec![7, 8]));
    let closed = buy(1).await.expect_err("closed");
    assert_eq!(closed.as_remote().map(RemoteError::code), Some("closed"));
    assert!(closed.is_retryable());
    app.shutdown().await.expect("it stops");
}

/// `internal` and an error id; the secret is in the log of the serving side alone.
pub async fn o05_the_text_of_an_unclassified_failure_stays_at_home(test: &Test) {
    let leaks =
        async |_: Ignore| Err::<u32, _>(Failure::new(Class::Permanent, "password is canary"));
    let app = test
        .start("app", Route::call(test.pattern("ask"), leaks).name("ask"))
        .await;
    let client = app.client();
    let answer = client.request::<u32, u32>(test.subject("ask"), &1).await;
    let error = answer.expect_err("it failed");
    assert_eq!(
        error.as_remote().map(RemoteError::code),
        Some(RemoteError::INTERNAL)
    );
    assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    app.shutdown().await.expect("it stops");
}

/// More of them than a handler has places for, all over before it gets to them.
pub async fn o12_calls_that_nobody_waits_for_any_more_leave_room_for_others(test: &Test) {
    let answer = async |number: u32| Ok::<u32, Failure>(number);
    let route = Route::call(test.pattern("ask"), answer);
    let app = test.start("app", route.name("ask").concurrency(1)).await;
    let caller = test.connect().await;
    let asked = (0..40).map(async |number: u32| {
        let over = test.message("ask", number.to_string());
        let over = over.with_deadline(Duration::ZERO);
        // Whether it is told so, and in time, is the wire's to say.
        let _ = caller.request(over, BRIEF).await;
    });
    join_all(asked).await;
    let client = app.client();
    let answer: u32 = client
        .request(test.subject("ask"), &41)
        .await
        .expect("there is room");
    assert_eq!(answer, 41);
    app.shutdown().await.expect("it stops");
}

/// As far as its caller said.
pub async fn o12_the_handler_knows_its_deadline(test: &Test) {
    let clock = test.clock();
    let left = move |_: Ignore, context: Context| {
        let now = clock.now();
        async move {
            let deadline = context
                .deadline()
                .ok_or_else(|| Failure::permanent("no deadline"))?;
            Ok::<u64, Failure>(deadline.saturating_duration_since(now).as_millis() as u64)
        }
    };
    let app = test
        .start("app", Route::call(test.pattern("left"), left).name("left"))
        .await;
    let client = app.client();
    let call = client
        .request(test.subject("left"), &1)
        .timeout(Duration::from_secs(4));
    let left: u64 = call.await.expect("an answer");
    assert!((2_000..=4_100).contains(&left), "{left} ms are left of 4 s");
    app.shutdown().await.expect("it stops");
}

/// The caller is told that it was its request, and the next one is answered.
pub async fn o14_a_request_that_cannot_be_decoded_is_answered_so(test: &Test) {
    let double = async |number: u64| Ok::<u64, Failure>(number * 2);
    let app = test
        .start(
            "app",
            Route::call(test.pattern("double"), double).name("double"),
        )
        .await;
    let client = app.client();
    let garbage = Raw(b"{not a number".as_slice().into());
    let answer = client
        .request::<Raw, u64>(test.subject("double"), &garbage)
        .await;
    let error = answer.expect_err("it cannot be decoded");
    assert_eq!(
        error.as_remote().map(RemoteError::code),
        Some(RemoteError::INVALID_PAYLOAD)
    );
    assert!(!error.is_retryable());
    let answer: u64 = client
        .request(test.subject("double"), &4_u64)
        .await
        .expect("an answer");
    assert_eq!(answer, 8);
    app.shutdown().await.expect("it stops");
}

/// A panic is `internal`, at once and not at the deadline.
pub async fn o15_a_handler_that_panics_answers_and_lives_on(test: &Test) {
    let handler = async |number: u64| {
        assert_ne!(number, 13, "a panic on purpose");
        Ok::<u64, Failure>(number)
    };
    let app = test
        .start("app", Route::call(test.pattern("ask"), handler).name("ask"))
        .await;
    let client = app.client();
    let ask = async |number: u64| {
        client
            .request::<u64, u64>(test.subject("ask"), &number)
            .await
    };
    let error = ask(13).await.expect_err("it panicked");
    assert_eq!(
        error.as_remote().map(RemoteError::code),
        Some(RemoteError::INTERNAL)
    );
    assert_eq!(ask(14).await.expect("an answer"), 14);
    app.shutdown().await.expect("it stops");
}

/// At most once: whatever its class, a failure is an answer; nothing is retried, redelivered or dead-lettered.
pub async fn o16_a_failed_call_is_not_tried_again(test: &Test) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let fails = move |_: Ignore| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err::<u32, _>(Failure::transient("not now")) }
    };
    let idle = async |_: Ignore| Ok::<(), Failure>(());
    let router = Router::new()
        .route(Route::call(test.pattern("ask"), fails).name("ask"))
        .route(
            Route::event(test.pattern("events"), idle)
                .name("gives the app a place for dead letters"),
        );
    let app = test
        .app("app")
        .router(router)
        .start()
        .await
        .expect("the app starts");
    let client = app.client();
    let answer = client
        .request::<u32, u32>(test.subject("ask"), &1)
        .timeout(PUBLISH_TIMEOUT)
        .await;
    assert_eq!(answer.expect_err("it failed").kind(), ErrorKind::Remote);
    let mut letters = test
        .connect()
        .await
        .subscribe(test.dead_letters("app"))
        .await;
    assert!(
        letters.next_within(test.quiet()).await.is_none(),
        "a call became a dead letter"
    );
    assert_eq!(runs.load(Ordering::SeqCst), 1, "the call was run again");
    app.shutdown().await.expect("it stops");
}
