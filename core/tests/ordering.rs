//! Order by key, concurrency, and the work that one handler may hold.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anywire::clock::{Clock, ManualClock};
use anywire::memory::{self, MemoryBroker};
use anywire::pattern::publish_subscribe::SubscriptionId;
use anywire::{AfterFailure, App, Config, Failure, Order, Result, Route, Router};
use common::{app_on, settle, until};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

const SECOND: Duration = Duration::from_secs(1);

/// A handler that notes when it begins and ends, and waits in between until it is let go.
#[derive(Clone)]
struct Gate {
    running: Arc<Mutex<Vec<u32>>>,
    most: Arc<AtomicUsize>,
    done: Arc<Mutex<Vec<u32>>>,
    go: Arc<Semaphore>,
}

impl Gate {
    fn new() -> Self {
        Self {
            running: Arc::default(),
            most: Arc::default(),
            done: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
        }
    }

    fn handler(
        &self,
    ) -> impl Fn(u32) -> futures::future::BoxFuture<'static, Result<()>> + Send + Sync + 'static
    {
        let gate = self.clone();
        move |number| {
            let gate = gate.clone();
            Box::pin(async move {
                {
                    let mut running = gate.running.lock();
                    running.push(number);
                    gate.most.fetch_max(running.len(), Ordering::Relaxed);
                }
                gate.go.acquire().await?.forget();
                gate.running.lock().retain(|running| *running != number);
                gate.done.lock().push(number);
                Ok(())
            })
        }
    }
}

#[tokio::test]
async fn one_message_of_a_key_runs_at_a_time_and_other_keys_run_beside_it() {
    let (broker, clock, gate) = (MemoryBroker::new(), ManualClock::new(), Gate::new());
    let route = Route::event("a.b", gate.handler());
    let app = app_on(&broker, &clock, Router::new().route(route))
        .start()
        .await
        .unwrap();
    let client = app.client();
    for (number, key) in [(1, "x"), (2, "x"), (3, "y"), (4, "x")] {
        client.emit("a.b", &number).key(key).await.unwrap();
    }
    client.emit("a.b", &5).await.unwrap();
    client.emit("a.b", &6).await.unwrap();
    until("all that may run", || gate.running.lock().len() == 4).await;
    settle().await;
    assert_eq!(*gate.running.lock(), [1, 3, 5, 6]);
    gate.go.add_permits(100);
    until("the rest", || gate.done.lock().len() == 6).await;
    let of_x: Vec<u32> = gate
        .done
        .lock()
        .iter()
        .copied()
        .filter(|n| [1, 2, 4].contains(n))
        .collect();
    assert_eq!(of_x, [1, 2, 4]);
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn without_order_messages_of_one_key_run_together() {
    let (broker, clock, gate) = (MemoryBroker::new(), ManualClock::new(), Gate::new());
    let route = Route::event("a.b", gate.handler()).order(Order::None);
    let app = app_on(&broker, &clock, Router::new().route(route))
        .start()
        .await
        .unwrap();
    for number in 0..3 {
        app.client().emit("a.b", &number).key("x").await.unwrap();
    }
    until("all of them", || gate.running.lock().len() == 3).await;
    gate.go.add_permits(3);
    app.shutdown().await.unwrap();
}

/// A handler whose message 1 fails so often; it notes all that ran.
fn fails_first(
    times: u32,
    ran: &Arc<Mutex<Vec<u32>>>,
) -> impl Fn(u32) -> std::future::Ready<Result<()>> + Send + Sync + 'static {
    let (ran, left) = (Arc::clone(ran), Mutex::new(times));
    move |number| {
        ran.lock().push(number);
        let mut left = left.lock();
        let fails = number == 1 && *left > 0;
        *left -= u32::from(fails);
        std::future::ready(if fails {
            Err(Failure::transient("no"))
        } else {
            Ok(())
        })
    }
}

#[tokio::test]
async fn a_failed_message_holds_its_key_while_it_waits_here_and_then_lets_it_go() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let ran = Arc::default();
    let route = Route::event("a.b", fails_first(2, &ran)).retry([SECOND, SECOND * 5]);
    let app = app_on(&broker, &clock, Router::new().route(route))
        .start()
        .await
        .unwrap();
    for number in [1, 2] {
        app.client().emit("a.b", &number).key("x").await.unwrap();
    }
    app.client().emit("a.b", &3).key("y").await.unwrap();
    until("the first failure", || ran.lock().len() == 2).await;
    settle().await;
    assert_eq!(*ran.lock(), [1, 3], "the key is held, the other is not");
    clock.advance(SECOND);
    until("the copy", || ran.lock().len() == 4).await;
    assert_eq!(
        *ran.lock(),
        [1, 3, 1, 2],
        "the copy waits in the broker and the key goes on"
    );
    clock.advance(SECOND * 5);
    until("the copy's turn", || ran.lock().len() == 5).await;
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn hold_keeps_the_key_through_the_whole_schedule() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let ran = Arc::default();
    let route = Route::event("a.b", fails_first(2, &ran))
        .retry([SECOND, SECOND * 60])
        .after_failure(AfterFailure::Hold);
    let app = app_on(&broker, &clock, Router::new().route(route))
        .start()
        .await
        .unwrap();
    for number in [1, 2] {
        app.client().emit("a.b", &number).key("x").await.unwrap();
    }
    for _ in 0..2 {
        until("a wait", || clock.next_timer().is_some()).await;
        settle().await;
        assert!(!ran.lock().contains(&2));
        assert!(clock.advance_to_next());
        settle().await;
    }
    until("the end", || ran.lock().len() == 4).await;
    assert_eq!(*ran.lock(), [1, 1, 1, 2]);
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_schedule_that_is_too_long_to_hold_a_key_stops_the_start() {
    let (broker, clock, gate) = (MemoryBroker::new(), ManualClock::new(), Gate::new());
    let route = Route::event("a.b", gate.handler())
        .retry([SECOND * 121])
        .after_failure(AfterFailure::Hold);
    let error = app_on(&broker, &clock, Router::new().route(route))
        .start()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("2 minutes"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn never_more_run_than_may_and_never_more_are_held_than_four_times_as_many() {
    let (broker, clock, gate) = (MemoryBroker::new(), ManualClock::new(), Gate::new());
    let route = Route::event("a.b", gate.handler()).concurrency(5);
    let app = app_on(&broker, &clock, Router::new().route(route))
        .start()
        .await
        .unwrap();
    let numbers: Vec<u32> = (0..100).collect();
    for number in &numbers {
        // Half of them of one key, so that many wait for it.
        let emit = app.client();
        let emit = emit.emit("a.b", number);
        let emit = if number % 2 == 0 {
            emit.key("hot")
        } else {
            emit
        };
        emit.await.unwrap();
    }
    let id = SubscriptionId::new("shop", "a.b".parse().unwrap());
    until("a full house", || gate.running.lock().len() == 5).await;
    settle().await;
    assert!(
        broker.backlog(&id).unwrap() >= 80,
        "{:?}",
        broker.backlog(&id)
    );
    gate.go.add_permits(100);
    until("the end", || gate.done.lock().len() == 100).await;
    assert_eq!(gate.most.load(Ordering::Relaxed), 5);
    let hot: Vec<u32> = gate
        .done
        .lock()
        .iter()
        .copied()
        .filter(|n| n % 2 == 0)
        .collect();
    assert!(hot.is_sorted(), "{hot:?}");
    app.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_keys_messages_stay_in_order_on_many_workers() {
    let last: Arc<Mutex<HashMap<u32, u32>>> = Arc::default();
    let wrong = Arc::new(AtomicUsize::new(0));
    let count = Arc::new(AtomicUsize::new(0));
    let (of, bad, all) = (Arc::clone(&last), Arc::clone(&wrong), Arc::clone(&count));
    let handler = move |(key, number): (u32, u32)| {
        let before = of.lock().insert(key, number);
        if before.is_some_and(|before| before > number) {
            bad.fetch_add(1, Ordering::Relaxed);
        }
        all.fetch_add(1, Ordering::Relaxed);
        // Some wait, so that keys queue up across workers.
        async move {
            if number % 7 == 0 {
                tokio::task::yield_now().await;
            }
            Ok::<(), Failure>(())
        }
    };
    let app = App::new("shop")
        .config(Config::from_toml("url = 'memory://'").unwrap())
        .adapter(memory::adapter())
        .router(Router::new().on_event("a.b", handler))
        .start()
        .await
        .unwrap();
    let client = app.client();
    for number in 0..20_000_u32 {
        let key = number % 8;
        client
            .emit("a.b", &(key, number))
            .key(u64::from(key))
            .await
            .unwrap();
    }
    until("the end", || count.load(Ordering::Relaxed) == 20_000).await;
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn configuration_by_handler_name_makes_it_sequential() {
    let (broker, clock, gate) = (MemoryBroker::new(), ManualClock::new(), Gate::new());
    let route = Route::event("a.b", gate.handler())
        .name("placed")
        .concurrency(8);
    let app = app_on(&broker, &clock, Router::new().route(route))
        .force("[handlers.placed]\nconcurrency = 1")
        .start()
        .await
        .unwrap();
    for number in 0..4 {
        app.client().emit("a.b", &number).await.unwrap();
    }
    until("the first", || gate.running.lock().len() == 1).await;
    settle().await;
    assert_eq!(*gate.running.lock(), [0], "one at a time");
    gate.go.add_permits(4);
    until("the end", || gate.done.lock().len() == 4).await;
    assert_eq!(gate.most.load(Ordering::Relaxed), 1);
    assert_eq!(*gate.done.lock(), [0, 1, 2, 3]);
    assert!(clock.next_timer().is_none(), "no timer is left behind");
    let _ = clock.now();
    app.shutdown().await.unwrap();
}
