//! F, H and J, with handlers: who works at the same time, for how long, and what becomes of those who do not end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anywire::{Context, Failure, Ignore, Key, Route};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::behaviour::behaviours;
use crate::{Test, number};

behaviours! {
    f07_keys_run_side_by_side_and_never_two_of_one: [],
    h12_a_messages_token_fires_when_it_is_settled_and_not_when_the_app_stops: [],
    j02_concurrency_is_a_hard_limit: [],
    j07_a_panic_is_a_failed_attempt_and_no_more: [AtLeastOnce],
    j09_a_handler_that_hangs_is_given_up: [AtLeastOnce],
}

/// How long a handler of these tests works.
const WORK: Duration = Duration::from_millis(20);

/// Counts who works at the same time.
#[derive(Clone, Default)]
struct Desk(
    Arc<Mutex<HashMap<Option<Key>, usize>>>,
    Arc<Mutex<Vec<(usize, usize)>>>,
);

impl Desk {
    /// Works for a while, and notes how many do, in all and for the same key.
    async fn work(&self, key: Option<Key>) {
        {
            let mut busy = self.0.lock();
            *busy.entry(key.clone()).or_default() += 1;
            self.1.lock().push((busy.values().sum(), busy[&key]));
        }
        tokio::time::sleep(WORK).await;
        *self.0.lock().entry(key).or_default() -= 1;
    }

    /// The most that worked at once: in all, and for one key.
    fn peak(&self) -> (usize, usize) {
        let notes = self.1.lock();
        let all = notes.iter().map(|(all, _)| *all).max();
        let same = notes.iter().map(|(_, same)| *same).max();
        (all.unwrap_or_default(), same.unwrap_or_default())
    }
}

/// Different keys in parallel, one of a key at a time, in order.
pub async fn f07_keys_run_side_by_side_and_never_two_of_one(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let desk = Desk::default();
    let at_work = desk.clone();
    let handler = move |number: u32, context: Context| {
        let (tell, desk) = (tell.clone(), at_work.clone());
        async move {
            desk.work(context.key().cloned()).await;
            tell.tell((context.key().cloned(), number)).await
        }
    };
    let route = Route::event(test.pattern("events"), handler)
        .name("handler")
        .concurrency(8);
    let app = test.start("app", route).await;
    let client = app.client();
    for number in 0..40_u32 {
        let key = format!("key-{}", number % 4);
        client
            .emit(test.subject("events"), &number)
            .key(key)
            .await
            .expect("accepted");
    }
    let mut by_key: HashMap<_, Vec<u32>> = HashMap::new();
    for (key, number) in seen.take(40).await {
        by_key.entry(key).or_default().push(number);
    }
    for (key, numbers) in by_key {
        assert!(numbers.is_sorted(), "{key:?} was handled as {numbers:?}");
    }
    let (all, same) = desk.peak();
    assert!(all >= 2, "keys waited for each other");
    assert_eq!(same, 1, "two of one key were handled at once");
    app.shutdown().await.expect("it stops");
}

/// A handler may watch its token: a shutdown that has begun is no reason to give up yet.
pub async fn h12_a_messages_token_fires_when_it_is_settled_and_not_when_the_app_stops(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let gate = Arc::new(Semaphore::new(0));
    let handlers_gate = Arc::clone(&gate);
    let handler = move |_: Ignore, context: Context| {
        let (tell, gate) = (tell.clone(), Arc::clone(&handlers_gate));
        async move {
            tell.tell(context.cancellation()).await?;
            let _ = gate.acquire().await;
            Ok::<(), Failure>(())
        }
    };
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
    let token = seen.next().await;
    let stopping = app.stopping();
    let shutdown = tokio::spawn(app.shutdown());
    stopping.cancelled().await;
    let early = tokio::time::timeout(test.quiet(), token.cancelled()).await;
    assert!(early.is_err(), "it fired when the shutdown began");
    gate.add_permits(1);
    shutdown.await.expect("no panic").expect("it stops");
    assert!(
        token.is_cancelled(),
        "it did not fire when the message was settled"
    );
}

/// Never more at once than asked for, and not one after the other either.
pub async fn j02_concurrency_is_a_hard_limit(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let desk = Desk::default();
    let at_work = desk.clone();
    let handler = move |number: u32| {
        let (tell, desk) = (tell.clone(), at_work.clone());
        async move {
            desk.work(None).await;
            tell.tell(number).await
        }
    };
    let route = Route::event(test.pattern("events"), handler)
        .name("handler")
        .concurrency(3);
    let app = test.start("app", route).await;
    let numbers: Vec<u32> = (0..60).collect();
    app.client()
        .emit_all(test.subject("events"), &numbers)
        .await
        .expect("accepted");
    seen.take(60).await;
    let (all, _) = desk.peak();
    assert!(
        (2..=3).contains(&all),
        "{all} ran at once, 3 were asked for"
    );
    app.shutdown().await.expect("it stops");
}

/// The message of a handler that panics is tried again; the others do not notice.
pub async fn j07_a_panic_is_a_failed_attempt_and_no_more(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let handler = move |number: u32, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell((number, context.attempt())).await?;
            assert!(number != 3 || context.attempt() > 1, "a panic on purpose");
            Ok::<(), Failure>(())
        }
    };
    let route = Route::event(test.pattern("events"), handler)
        .name("handler")
        .retry([WORK]);
    let app = test.start("app", route).await;
    let numbers: Vec<u32> = (0..10).collect();
    app.client()
        .emit_all(test.subject("events"), &numbers)
        .await
        .expect("accepted");
    let mut handled = seen.take(11).await;
    handled.sort_unstable();
    let mut expected: Vec<_> = numbers
        .iter()
        .map(|number| (*number, 1))
        .chain([(3, 2)])
        .collect();
    expected.sort_unstable();
    assert_eq!(handled, expected);
    assert!(app.health().is_ok(), "{:?}", app.health());
    app.client()
        .emit(test.subject("events"), &99)
        .await
        .expect("accepted");
    assert_eq!(seen.next().await, (99, 1));
    app.shutdown().await.expect("it stops");
}

/// An attempt that takes longer than it may is a failed attempt; its slot is free again.
pub async fn j09_a_handler_that_hangs_is_given_up(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let handler = move |number: u32, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell((number, context.attempt())).await?;
            if number == 0 {
                std::future::pending::<()>().await;
            }
            Ok::<(), Failure>(())
        }
    };
    let route = Route::event(test.pattern("events"), handler)
        .name("handler")
        .concurrency(1)
        .timeout(Duration::from_millis(200))
        .retry([WORK]);
    let app = test.start("app", route).await;
    let client = app.client();
    client
        .emit(test.subject("events"), &0)
        .await
        .expect("accepted");
    let mut letters = test
        .connect()
        .await
        .subscribe(test.dead_letters("app"))
        .await;
    let letter = letters.next().await;
    assert_eq!(number(&letter.message), 0);
    assert_eq!(letter.message.trail().map(|trail| trail.attempt), Some(2));
    letter.ack().await;
    client
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    assert_eq!(seen.take(3).await, [(0, 1), (0, 2), (1, 1)]);
    app.shutdown().await.expect("it stops");
}
