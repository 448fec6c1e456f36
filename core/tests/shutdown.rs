//! The end of an app: what finishes, what goes back, what is abandoned.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anywire::clock::ManualClock;
use anywire::memory::MemoryBroker;
use anywire::pattern::publish_subscribe::SubscriptionId;
use anywire::{Client, Context, ErrorKind, Failure, Ignore, Result, Route, Router};
use common::{Altered, app_on, settle, until};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);

fn queue() -> SubscriptionId {
    SubscriptionId::new("shop", "a.b".parse().unwrap())
}

#[tokio::test]
async fn running_handlers_finish_and_may_publish_and_what_waits_goes_back() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let (go, running) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (gate, count) = (Arc::clone(&go), Arc::clone(&running));
    let handler = move |number: u32, client: Client| {
        let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            gate.acquire().await?.forget();
            client.emit("c.d", &number).await?;
            Ok::<(), Failure>(())
        }
    };
    let router = Router::new().route(Route::event("a.b", handler).concurrency(10));
    let app = app_on(&broker, &clock, router).start().await.unwrap();
    let other = app_on(&broker, &clock, Router::new());
    let other = Client::connect(other).await.unwrap();
    let mut emitted = other.subscribe::<u32>("c.d").group("other").await.unwrap();
    for number in 0..30_u32 {
        other.emit("a.b", &number).await.unwrap();
    }
    until("ten that run", || running.load(Ordering::Relaxed) == 10).await;
    let stopping = app.stopping();
    let shutdown = tokio::spawn(app.shutdown());
    stopping.cancelled().await;
    settle().await;
    assert!(!shutdown.is_finished());
    assert_eq!(
        broker.backlog(&queue()),
        Some(20),
        "what was only pulled goes back at once"
    );
    go.add_permits(10);
    shutdown.await.unwrap().unwrap();
    assert_eq!(
        broker.backlog(&queue()),
        Some(20),
        "the ten are acknowledged"
    );
    assert_eq!(running.load(Ordering::Relaxed), 10);
    for _ in 0..10 {
        emitted.next().await.unwrap().unwrap().ack().await.unwrap();
    }
}

#[tokio::test]
async fn what_outlasts_the_grace_is_abandoned_and_delivered_to_another_app() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let running = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&running);
    let hangs = move |_: Ignore| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<Result<()>>()
    };
    let route = Route::event("a.b", hangs).timeout(SECOND * 1000);
    let app = app_on(&broker, &clock, Router::new().route(route))
        .start()
        .await
        .unwrap();
    app.client().emit("a.b", &7).key("x").await.unwrap();
    app.client().emit("a.b", &8).key("x").await.unwrap();
    until("the handler", || running.load(Ordering::Relaxed) == 1).await;
    let shutdown = tokio::spawn(app.shutdown());
    settle().await;
    assert!(!shutdown.is_finished());
    clock.advance(SECOND * 25);
    let error = shutdown.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(broker.backlog(&queue()), Some(2));
    let seen: Arc<Mutex<Vec<(u32, u32)>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let handler = move |number: u32, context: Context| {
        noted.lock().push((number, context.attempt()));
        std::future::ready(Ok::<(), Failure>(()))
    };
    let app = app_on(&broker, &clock, Router::new().on_event("a.b", handler));
    let app = app.start().await.unwrap();
    until("the redelivery", || seen.lock().len() == 2).await;
    assert_eq!(
        *seen.lock(),
        [(7, 1), (8, 1)],
        "no failure, so no attempt, is counted"
    );
    assert!(broker.dead_letters("shop").is_empty());
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_cancellation_of_a_message_fires_with_its_settlement_and_with_the_grace() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let tokens: Arc<Mutex<Vec<CancellationToken>>> = Arc::default();
    let go = Arc::new(Semaphore::new(0));
    let (noted, gate) = (Arc::clone(&tokens), Arc::clone(&go));
    let handler = move |_: Ignore, context: Context| {
        noted.lock().push(context.cancellation());
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await?.forget();
            Ok::<(), Failure>(())
        }
    };
    let app = app_on(&broker, &clock, Router::new().on_event("a.b", handler));
    let app = app.start().await.unwrap();
    for number in 0..2 {
        app.client().emit("a.b", &number).await.unwrap();
    }
    until("both", || tokens.lock().len() == 2).await;
    go.add_permits(1);
    settle().await;
    let fired = || {
        tokens
            .lock()
            .iter()
            .filter(|token| token.is_cancelled())
            .count()
    };
    assert_eq!(fired(), 1, "the settled one");
    let shutdown = tokio::spawn(app.shutdown());
    settle().await;
    assert_eq!(fired(), 1, "not when a shutdown begins");
    clock.advance(SECOND * 25);
    assert!(shutdown.await.unwrap().is_err());
    assert_eq!(fired(), 2);
}

#[tokio::test]
async fn a_copy_that_an_extractor_made_is_cancelled_with_the_message() {
    struct Own(Context);
    impl anywire::FromDelivery for Own {
        fn from_delivery(parts: &mut anywire::Parts<'_>) -> Result<Self> {
            Ok(Self(parts.context().clone()))
        }
    }
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let (send, receive) = oneshot::channel();
    let send = Mutex::new(Some(send));
    let handler = move |_: Ignore, own: Own| {
        let _ = send.lock().take().unwrap().send(own.0);
        std::future::ready(Ok::<(), Failure>(()))
    };
    let app = app_on(&broker, &clock, Router::new().on_event("a.b", handler));
    let app = app.start().await.unwrap();
    app.client().emit("a.b", &1).await.unwrap();
    receive.await.unwrap().cancellation().cancelled().await;
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_dropped_app_cancels_what_ran_and_gives_its_messages_back() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let (send, receive) = oneshot::channel();
    let send = Mutex::new(Some(send));
    let handler = move |_: Ignore, context: Context| {
        let _ = send.lock().take().unwrap().send(context.cancellation());
        std::future::pending::<Result<()>>()
    };
    let app = app_on(&broker, &clock, Router::new().on_event("a.b", handler));
    let app = app.start().await.unwrap();
    app.client().emit("a.b", &1).await.unwrap();
    let token = receive.await.unwrap();
    drop(app);
    token.cancelled().await;
    until("the return", || broker.backlog(&queue()) == Some(1)).await;
}

#[tokio::test]
async fn a_wait_for_a_retry_ends_with_the_shutdown() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let fails = |_: Ignore| std::future::ready(Err::<(), _>(Failure::transient("no")));
    let app = app_on(&broker, &clock, Router::new().on_event("a.b", fails));
    let app = app.start().await.unwrap();
    app.client().emit("a.b", &1).await.unwrap();
    until("the wait", || clock.next_timer().is_some()).await;
    app.shutdown().await.unwrap();
    assert_eq!(broker.backlog(&queue()), Some(1));
}

#[tokio::test]
async fn calls_in_progress_are_answered_and_those_that_wait_are_told_to_try_again() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let go = Arc::new(Semaphore::new(0));
    let running = Arc::new(AtomicUsize::new(0));
    let (gate, count) = (Arc::clone(&go), Arc::clone(&running));
    let handler = move |number: u32| {
        let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            gate.acquire().await?.forget();
            Ok::<u32, Failure>(number)
        }
    };
    let router = Router::new().route(Route::call("math.same", handler).concurrency(1));
    let app = app_on(&broker, &clock, router).start().await.unwrap();
    let client = Client::connect(app_on(&broker, &clock, Router::new()))
        .await
        .unwrap();
    let calls: Vec<_> = (0..2_u32)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.request::<_, u32>("math.same", &number).await })
        })
        .collect();
    until("the first", || running.load(Ordering::Relaxed) == 1).await;
    settle().await;
    let shutdown = tokio::spawn(app.shutdown());
    settle().await;
    go.add_permits(2);
    let mut results = Vec::new();
    for call in calls {
        results.push(call.await.unwrap());
    }
    assert_eq!(*results[0].as_ref().unwrap(), 0);
    assert!(results[1].as_ref().unwrap_err().is_retryable());
    assert_eq!(running.load(Ordering::Relaxed), 1);
    shutdown.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_start_that_fails_half_way_leaves_nobody_listening() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    // Another app has the second subscription with another guarantee.
    let at_most_once = Route::event("c.d", |_: Ignore| async { Ok::<(), Failure>(()) })
        .guarantee(anywire::Guarantee::AtMostOnce);
    let other = app_on(&broker, &clock, Router::new().route(at_most_once));
    let other = other.start().await.unwrap();
    let handler = |_: Ignore| async { Ok::<(), Failure>(()) };
    let call = |number: u32| async move { Ok::<u32, Failure>(number) };
    let router = Router::new()
        .on_event("a.b", handler)
        .route(Route::event("c.d", handler).name("second"))
        .on_call("math.same", call);
    let error = app_on(&broker, &clock, router).start().await.unwrap_err();
    assert!(error.to_string().contains("second"), "{error}");
    let error = other
        .client()
        .request::<_, u32>("math.same", &1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute, "nobody serves any more");
    other.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_broker_that_does_not_answer_cannot_keep_the_shutdown_beyond_its_grace() {
    use anywire::pattern::publish_subscribe::{
        Incoming, Received, Settle, Spec, Store, Stored, Subscriber,
    };
    use anywire::pattern::{Batch, PullResult};
    use std::task::{Context as TaskContext, Poll};

    #[derive(Debug)]
    struct Hangs(Arc<dyn Subscriber>);
    #[derive(Debug)]
    struct NeverStops(Box<dyn Incoming>);

    #[anywire::async_trait]
    impl Subscriber for Hangs {
        async fn subscribe(
            &self,
            specs: &[Spec],
        ) -> Vec<Result<Box<dyn Incoming>, anywire::Error>> {
            let opened = self.0.subscribe(specs).await.into_iter();
            opened
                .map(|opened| {
                    opened.map(|incoming| Box::new(NeverStops(incoming)) as Box<dyn Incoming>)
                })
                .collect()
        }

        async fn declare(&self, stores: &[Store]) -> Vec<Result<(), anywire::Error>> {
            self.0.declare(stores).await
        }

        async fn stored(&self, group: &str) -> Result<Vec<Stored>, anywire::Error> {
            self.0.stored(group).await
        }

        async fn reset(
            &self,
            subscription: &SubscriptionId,
            start: &anywire::Start,
        ) -> Result<(), anywire::Error> {
            self.0.reset(subscription, start).await
        }
    }

    #[anywire::async_trait]
    impl Incoming for NeverStops {
        fn poll_batch(
            &mut self,
            cx: &mut TaskContext<'_>,
            batch: &mut Batch<Received>,
        ) -> Poll<PullResult> {
            self.0.poll_batch(cx, batch)
        }

        fn settler(&self) -> Arc<dyn Settle> {
            self.0.settler()
        }

        async fn stop(&mut self) -> Result<(), anywire::Error> {
            std::future::pending().await
        }
    }

    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let adapter = Altered {
        subscriber: |subscriber| Arc::new(Hangs(subscriber)),
        ..Altered::new(&broker)
    };
    let handler = |_: Ignore| async { Ok::<(), Failure>(()) };
    let app = anywire::App::new("shop")
        .adapter(adapter)
        .config(anywire::Config::from_toml("url = 'memory://'").unwrap())
        .clock(Arc::new(clock.clone()))
        .router(Router::new().on_event("a.b", handler));
    let shutdown = tokio::spawn(app.start().await.unwrap().shutdown());
    settle().await;
    clock.advance(SECOND * 25);
    assert_eq!(
        shutdown.await.unwrap().unwrap_err().kind(),
        ErrorKind::Timeout
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_thread_cannot_keep_the_shutdown_beyond_its_grace() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let (began, begun) = oneshot::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let state = Mutex::new(Some((began, ended)));
    let blocks = move |_: Ignore| {
        let (began, ended) = state.lock().take().unwrap();
        let _ = began.send(());
        let _ = ended.recv();
        std::future::ready(Ok::<(), Failure>(()))
    };
    let app = app_on(&broker, &clock, Router::new().on_event("a.b", blocks));
    let app = app.start().await.unwrap();
    app.client().emit("a.b", &1).await.unwrap();
    begun.await.unwrap();
    let shutdown = tokio::spawn(app.shutdown());
    until("the grace", || clock.next_timer().is_some()).await;
    clock.advance(SECOND * 25);
    let error = shutdown.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("block"), "{error}");
    end.send(()).unwrap();
}

#[tokio::test]
async fn nothing_can_be_sent_after_the_end() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let app = app_on(&broker, &clock, Router::new())
        .start()
        .await
        .unwrap();
    let client = app.client();
    app.shutdown().await.unwrap();
    let closed = [
        client.emit("a.b", &1).await.unwrap_err().kind(),
        client
            .request::<_, u32>("a.b", &1)
            .await
            .unwrap_err()
            .kind(),
        client.subscribe::<u32>("a.b").await.unwrap_err().kind(),
    ];
    assert_eq!(closed, [ErrorKind::Closed; 3]);
}
