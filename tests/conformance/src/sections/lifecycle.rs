//! H: close, cancel, drop.

use std::time::{Duration, Instant};

use anywire::ErrorKind;
use anywire::pattern::publish_subscribe::{Entry, Published, Settlement};
use futures::future::join_all;
use tokio::time::timeout;

use crate::behaviour::behaviours;
use crate::{Ledger, PUBLISH_TIMEOUT, Test};

behaviours! {
    h01_close_ends_the_stream_within_a_second: [],
    h02_stopping_one_subscription_leaves_its_siblings: [],
    h03_a_cancelled_subscription_gives_its_messages_back: [AtLeastOnce, Groups],
    h04_stop_returns_while_nobody_reads: [],
    h05_close_may_be_called_again_and_from_everywhere: [],
    h06_everything_after_close_is_a_typed_error: [],
    h08_what_is_cancelled_in_flight_leaks_nothing: [],
    h09_a_publish_to_a_frozen_broker_is_unknown_at_its_deadline: [AtLeastOnce, Broker],
    h10_connecting_to_an_absent_broker_fails_or_waits_and_says_so: [Broker],
    h11_dropping_without_close_leaves_nothing_behind: [AtLeastOnce, Groups],
    h13_a_runtime_may_end_under_a_live_transport: [AtLeastOnce],
}

/// No message is delivered after the close.
pub async fn h01_close_ends_the_stream_within_a_second(test: &Test) {
    let (client, other) = (test.connect().await, test.connect().await);
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send(test.message("events", "before")).await;
    subscription.next().await.ack().await;
    client.close().await;
    let _ = other
        .try_send(Entry::new(test.message("events", "after")))
        .await;
    subscription.ends().await;
}

/// A stopped subscription is one subscription.
pub async fn h02_stopping_one_subscription_leaves_its_siblings(test: &Test) {
    let client = test.connect().await;
    let mut stopped = client.subscribe(test.spec("stopped", "events")).await;
    let mut alive = client.subscribe(test.spec("alive", "events")).await;
    stopped.stop_pulling().await;
    stopped.ends().await;
    let messages = test.messages("events", 10);
    client.send_all(&messages).await;
    let mut ledger = Ledger::of(&messages);
    alive.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// What was delivered or prefetched and not acked goes to the next one.
pub async fn h03_a_cancelled_subscription_gives_its_messages_back(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let messages = test.messages("events", 20);
    client.send_all(&messages).await;
    let held = subscription.take(5).await;
    let mut successor = client.subscribe(test.spec("group", "events")).await;
    drop((held, subscription));
    let mut ledger = Ledger::of(&messages);
    successor.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// A backlog that nobody pulls holds nothing up.
pub async fn h04_stop_returns_while_nobody_reads(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(2))
        .await;
    client.send_all(&test.messages("events", 50)).await;
    let stopped = timeout(Duration::from_secs(1), subscription.stop_pulling()).await;
    stopped.expect("it stops within a second");
    subscription.ends().await;
    let closed = timeout(Duration::from_secs(2), client.close()).await;
    closed.expect("it closes within two seconds");
}

/// Ten tasks close at once, and once more afterwards.
pub async fn h05_close_may_be_called_again_and_from_everywhere(test: &Test) {
    let client = test.connect().await;
    let _subscription = client.subscribe(test.spec("group", "events")).await;
    let closing = (0..10).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.close().await })
    });
    for closed in join_all(closing).await {
        closed.expect("no task panics");
    }
    client.close().await;
}

/// Publish, subscribe, settle and call say that the transport is closed; its status does, too.
pub async fn h06_everything_after_close_is_a_typed_error(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send(test.message("events", "held")).await;
    let held = subscription.next().await;
    client.close().await;
    let sent = client
        .try_send(Entry::new(test.message("events", "late")))
        .await;
    assert_eq!(
        sent.expect_err("publish after close").kind(),
        ErrorKind::Closed
    );
    let opened = client.try_subscribe(test.spec("late", "events")).await;
    assert_eq!(
        opened.expect_err("subscribe after close").kind(),
        ErrorKind::Closed
    );
    let settled = held.settle(Settlement::Ack).await;
    let kind = settled.expect_err("settle after close").kind();
    assert!(
        matches!(kind, ErrorKind::Closed | ErrorKind::Stale),
        "{kind}"
    );
    if client.transport().requester().is_some() {
        let replied = client
            .request(test.message("calls", "late"), PUBLISH_TIMEOUT)
            .await;
        assert_eq!(
            replied.expect_err("request after close").kind(),
            ErrorKind::Closed
        );
    }
    assert!(!client.transport().status().borrow().is_connected());
}

/// A publish, a pull and a request that are dropped in the middle leave a working client.
pub async fn h08_what_is_cancelled_in_flight_leaks_nothing(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let mut ledger = Ledger::new();
    for _ in 0..20 {
        let messages = test.messages("events", 5);
        ledger.enter_unknown(&messages);
        let entries = messages.into_iter().map(Entry::new);
        let publish = client.try_publish(entries, PUBLISH_TIMEOUT);
        let _ = timeout(Duration::ZERO, publish).await;
        let idle = subscription.next_within(Duration::ZERO).await;
        if let Some(delivery) = idle {
            ledger.receive(&delivery.message);
            delivery.ack().await;
        }
        if client.transport().requester().is_some() {
            let call = client.request(test.message("calls", "gone"), PUBLISH_TIMEOUT);
            let _ = timeout(Duration::ZERO, call).await;
        }
    }
    let controls = test.messages("events", 5);
    ledger.confirm(&controls);
    client.send_all(&controls).await;
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// A broker that answers nothing: the publish ends by its deadline and does not pretend to know.
pub async fn h09_a_publish_to_a_frozen_broker_is_unknown_at_its_deadline(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send(test.message("events", "control")).await;
    subscription.next().await.ack().await;
    test.broker().freeze().await.expect("the broker freezes");
    let start = Instant::now();
    let entry = Entry::new(test.message("events", "lost?"));
    let outcomes = client.try_publish([entry], Duration::from_secs(1)).await;
    let took = start.elapsed();
    test.broker().thaw().await.expect("the broker thaws");
    assert!(
        matches!(outcomes.as_slice(), [Published::Unknown(_)]),
        "unknown, not {outcomes:?}"
    );
    let expected = Duration::from_secs(1)..Duration::from_millis(1_500);
    assert!(expected.contains(&took), "it took {took:?}");
}

/// Never a hang: a typed error by which core knows that it may try again.
pub async fn h10_connecting_to_an_absent_broker_fails_or_waits_and_says_so(test: &Test) {
    test.broker().stop().await.expect("the broker stops");
    let connected = timeout(Duration::from_secs(10), test.harness().connect()).await;
    test.broker().start().await.expect("the broker starts");
    let connected = connected.expect("it ends");
    assert_eq!(
        connected.expect_err("nobody is there").kind(),
        ErrorKind::Unavailable
    );
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send(test.message("events", "after")).await;
    subscription.next().await.ack().await;
}

/// The last handle takes everything with it; what was not acked goes back. (The runner looks for tasks that stayed.)
pub async fn h11_dropping_without_close_leaves_nothing_behind(test: &Test) {
    let other = test.connect().await;
    let mut successor = other
        .subscribe(test.spec("group", "events").with_window(1))
        .await;
    let client = test.connect_loose().await;
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(5))
        .await;
    let messages = test.messages("events", 10);
    client.send_all(&messages).await;
    let held = subscription.next_within(test.quiet()).await;
    drop((held, subscription, client));
    let mut ledger = Ledger::of(&messages);
    successor.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// Neither a deadlock nor a panic, and other clients do not notice.
pub async fn h13_a_runtime_may_end_under_a_live_transport(test: &Test) {
    let bystander = test.connect().await;
    let mut subscription = bystander.subscribe(test.spec("bystander", "events")).await;
    let doomed = test.clone();
    let runtime_ends = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.expect("a second runtime");
        let client = runtime.block_on(async {
            let client = doomed.connect_loose().await;
            let subscription = client.subscribe(doomed.spec("doomed", "events")).await;
            client
                .send(doomed.message("events", "from a runtime that ends"))
                .await;
            (client, subscription)
        });
        runtime.shutdown_timeout(Duration::from_secs(2));
        drop(client);
    });
    runtime_ends
        .await
        .expect("the runtime ends without a panic");
    subscription.next().await.ack().await;
    bystander.send(test.message("events", "still here")).await;
    let delivery = subscription.next().await;
    assert_eq!(delivery.message.payload(), "still here");
    delivery.ack().await;
}
