//! I: what a shutdown owes to those who are at work.

use std::time::{Duration, Instant};

use anywire::pattern::publish_subscribe::Settlement;

use crate::behaviour::behaviours;
use crate::{Ledger, Test};

behaviours! {
    i02_what_was_stopped_may_still_be_settled: [],
    i03_what_was_buffered_goes_back_without_a_penalty: [AtLeastOnce, Groups],
    i05_close_returns_within_its_grace_while_the_broker_is_down: [Broker],
    i06_close_during_a_reconnect_ends_it: [Broker],
    i08_a_rolling_restart_loses_nothing: [AtLeastOnce, Groups],
}

/// A handler that finishes during the drain acks its message and publishes what it made of it.
pub async fn i02_what_was_stopped_may_still_be_settled(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let mut results = client.subscribe(test.spec("results", "results")).await;
    client.send_all(&test.messages("events", 10)).await;
    let running = subscription.take(10).await;
    let mut successor = client.subscribe(test.spec("group", "events")).await;
    subscription.stop_pulling().await;
    for delivery in &running {
        client
            .send(test.message("results", delivery.message.payload().clone()))
            .await;
        delivery.ack().await;
    }
    for delivery in results.take(10).await {
        delivery.ack().await;
    }
    drop(subscription);
    client.send(test.message("events", "control")).await;
    let delivery = successor.next().await;
    assert_eq!(delivery.message.payload(), "control");
    delivery.ack().await;
    successor.stays_quiet().await;
}

/// What was prefetched and never seen by a handler was not delivered, and does not count as if it were.
pub async fn i03_what_was_buffered_goes_back_without_a_penalty(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(10))
        .await;
    let messages = test.messages("events", 10);
    client.send_all(&messages).await;
    let seen = subscription.next().await;
    seen.ack().await;
    let mut successor = client.subscribe(test.spec("group", "events")).await;
    subscription.stop().await;
    let mut ledger = Ledger::of(&messages);
    ledger.receive(&seen.message);
    while ledger.missing() > 0 {
        let delivery = successor.next().await;
        assert!(
            delivery.deliveries.is_none_or(|count| count <= 1),
            "it counts as delivered before"
        );
        ledger.receive(&delivery.message);
        delivery.ack().await;
    }
    successor.stays_quiet().await;
    ledger.balance(0);
}

/// A broker that is gone cannot hold the shutdown up.
pub async fn i05_close_returns_within_its_grace_while_the_broker_is_down(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send(test.message("events", "held")).await;
    let held = subscription.next().await;
    test.broker().stop().await.expect("the broker stops");
    let _ = held.settle(Settlement::Ack).await;
    let start = Instant::now();
    let _ = client.transport().close(Duration::from_secs(2)).await;
    let took = start.elapsed();
    test.broker().start().await.expect("the broker starts");
    assert!(took < Duration::from_millis(2_500), "it took {took:?}");
    subscription.ends().await;
}

/// No reconnect happens after the close.
pub async fn i06_close_during_a_reconnect_ends_it(test: &Test) {
    let client = test.connect().await;
    let mut status = client.transport().status();
    test.broker().stop().await.expect("the broker stops");
    let lost = status.wait_for(|status| !status.is_connected()).await;
    lost.expect("the loss is told");
    let start = Instant::now();
    let _ = client.transport().close(Duration::from_secs(5)).await;
    let took = start.elapsed();
    test.broker().start().await.expect("the broker starts");
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    let back = status.wait_for(anywire::transport::Status::is_connected);
    let back = tokio::time::timeout(Duration::from_secs(2), back).await;
    assert!(!matches!(back, Ok(Ok(_))), "it reconnected after the close");
}

/// Members are replaced one after the other under traffic, each handing over what it holds.
pub async fn i08_a_rolling_restart_loses_nothing(test: &Test) {
    let publisher = test.connect().await;
    let mut members = Vec::new();
    for _ in 0..3 {
        let client = test.connect().await;
        let subscription = client
            .subscribe(test.spec("group", "events").with_window(4))
            .await;
        members.push((client, subscription));
    }
    let mut ledger = Ledger::new();
    for round in 0..6 {
        let messages = test.messages("events", 30);
        ledger.confirm(&messages);
        publisher.send_all(&messages).await;
        let client = test.connect().await;
        let subscription = client
            .subscribe(test.spec("group", "events").with_window(4))
            .await;
        let replaced = std::mem::replace(&mut members[round % 3], (client, subscription));
        let (client, mut subscription) = replaced;
        if let Some(delivery) = subscription.next_within(Duration::from_millis(50)).await {
            delivery.ack().await;
            ledger.receive(&delivery.message);
        }
        subscription.stop().await;
        client.close().await;
    }
    while ledger.missing() > 0 {
        for (_, subscription) in &mut members {
            while let Some(delivery) = subscription.next_within(Duration::from_millis(50)).await {
                delivery.ack().await;
                ledger.receive(&delivery.message);
            }
        }
    }
    for (_, subscription) in &mut members {
        assert!(
            subscription
                .next_within(Duration::from_millis(50))
                .await
                .is_none()
        );
    }
    ledger.balance(0);
}
