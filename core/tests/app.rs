//! An app from the outside: what a user's own test would do.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anywire::testing::TestApp;
use anywire::{App, Call, Client, ErrorKind, Event, Failure, Param, Result, Router};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    customer: String,
}

const PLACED: Event<Order> = Event::new("shop.{region}.placed");
const CHARGE: Event<u64> = Event::new("billing.charge");
const DOUBLE: Call<u32, u32> = Call::new("math.double");

fn order(id: u64) -> Order {
    Order {
        id,
        customer: "ada".into(),
    }
}

async fn placed(order: Order, Param(region): Param<String>, client: Client) -> Result<()> {
    assert_eq!(region, "eu.west");
    client.emit(CHARGE, &order.id).await?;
    Ok(())
}

async fn charge(_: u64) -> Result<()> {
    Ok(())
}

async fn double(number: u32) -> Result<u32> {
    if number == 13 {
        return Err(Failure::permanent("unlucky")
            .with_code("unlucky")
            .with_details(13));
    }
    Ok(number * 2)
}

fn app() -> App {
    App::new("shop").router(
        Router::new()
            .on_event(PLACED, placed)
            .on_event(CHARGE, charge)
            .on_call(DOUBLE, double),
    )
}

#[tokio::test]
async fn a_cascade_is_settled_when_its_emit_is_awaited() {
    let test = TestApp::start(app()).await.unwrap();
    test.emit(PLACED.with("region", "eu.west"), &order(1))
        .await
        .unwrap();
    assert_eq!((test.handled("placed"), test.handled("charge")), (1, 1));
    assert_eq!(test.emitted(CHARGE), [1]);
    test.shutdown().await.unwrap();
}

#[tokio::test]
async fn calls_answer_and_carry_typed_errors() {
    let test = TestApp::start(app()).await.unwrap();
    assert_eq!(test.client().request(DOUBLE, &21).await.unwrap(), 42);
    let error = test.client().request(DOUBLE, &13).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert_eq!(error.as_remote().unwrap().code(), "unlucky");
    assert_eq!(error.remote_as::<u32>(), Some(13));
    let error = test
        .client()
        .request::<_, u32>("math.triple", &1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
}

#[tokio::test]
async fn failures_are_retried_by_the_schedule_and_then_dead_lettered() {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let fails = move |_: u64| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Err::<(), _>(Failure::transient("no luck")) }
    };
    let app = App::new("shop").router(Router::new().on_event("a.b", fails));
    let test = TestApp::start(app).await.unwrap();
    let start = test.now();
    test.emit("a.b", &7_u64).await.unwrap();
    assert_eq!(tries.load(Ordering::Relaxed), 7);
    assert!(
        test.now() - start >= Duration::from_secs(12 * 60),
        "{:?}",
        test.now() - start
    );
    let dead = test.dead_letters("shop");
    assert_eq!(dead.len(), 1);
    let trail = dead[0].trail().unwrap();
    assert_eq!(
        (trail.attempt, trail.error.as_deref()),
        (7, Some("no luck"))
    );
    assert_eq!(dead[0].payload().as_ref(), b"7");
}

#[tokio::test]
async fn an_undecodable_payload_is_a_dead_letter_with_its_raw_bytes() {
    let test = TestApp::start(app()).await.unwrap();
    test.emit("billing.charge", "not a number").await.unwrap();
    assert_eq!(test.handled("charge"), 0);
    assert_eq!(
        test.dead_letters("shop")[0].payload().as_ref(),
        b"\"not a number\""
    );
}

#[tokio::test]
async fn a_panic_is_a_failed_attempt() {
    let panics = |number: u64| async move {
        assert!(number == 0, "not zero");
        Ok::<(), Failure>(())
    };
    let app = App::new("shop").router(Router::new().on_event("a.b", panics));
    let test = TestApp::start(app).await.unwrap();
    test.emit("a.b", &1_u64).await.unwrap();
    test.emit("a.b", &0_u64).await.unwrap();
    assert_eq!(test.dead_lettered("a.b"), 1);
    assert_eq!(test.handled("a.b"), 1);
}
