//! E: what is given back comes again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anywire::OrderScope;
use anywire::pattern::publish_subscribe::Settlement;
use futures::future::join_all;
use rand::RngExt;

use crate::behaviour::behaviours;
use crate::{Ledger, Test, assert_intact};

behaviours! {
    e01_returned_messages_come_again: [AtLeastOnce],
    e01_a_returned_message_comes_again_to_its_own_subscription: [AtLeastOnce, Groups],
    e02_repeated_failure_loses_nothing: [AtLeastOnce, Groups],
    e03_a_tenth_returned_at_random_still_ends_with_all_acked: [AtLeastOnce, Groups],
    e04_a_consumer_that_restarts_among_returns_loses_nothing: [AtLeastOnce, Groups],
    e06_a_delayed_return_comes_in_time_and_not_before: [ReturnAfter],
    e06_a_delayed_return_is_refused_where_there_is_none: [AtLeastOnce, NoReturnAfter],
    e08_the_wires_count_of_deliveries_is_right: [DeliveryCount],
    e12_a_member_that_joins_does_not_lose_what_is_returned: [AtLeastOnce, Groups],
}

/// All are received first, then all returned: each comes exactly once more, unchanged.
pub async fn e01_returned_messages_come_again(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(2_000))
        .await;
    let messages = test.messages("events", test.profile().pick(20, 100, 1_000));
    client.send_all(&messages).await;
    let mut first = Ledger::of(&messages);
    for delivery in subscription.take(messages.len()).await {
        first.receive(&delivery.message);
        delivery.give_back().await;
    }
    first.balance(0);
    let mut second = Ledger::of(&messages);
    subscription.receive_all(&mut second).await;
    second.balance(0);
}

/// What one group returns is no business of the other.
pub async fn e01_a_returned_message_comes_again_to_its_own_subscription(test: &Test) {
    let client = test.connect().await;
    let mut failing = client.subscribe(test.spec("failing", "events")).await;
    let mut healthy = client.subscribe(test.spec("healthy", "events")).await;
    let messages = test.messages("events", 10);
    client.send_all(&messages).await;
    for delivery in failing.take(10).await {
        delivery.give_back().await;
    }
    let (mut again, mut once) = (Ledger::of(&messages), Ledger::of(&messages));
    healthy.receive_all(&mut once).await;
    once.balance(0);
    failing.receive_all(&mut again).await;
    again.balance(0);
}

/// Three consumers fail one after the other; a healthy one still gets everything.
pub async fn e02_repeated_failure_loses_nothing(test: &Test) {
    let publisher = test.connect().await;
    // A member that pulls nothing yet keeps the subscription on wires that hold it only while somebody is there.
    let mut healthy = publisher
        .subscribe(test.spec("group", "events").with_window(1))
        .await;
    let messages = test.messages("events", 50);
    publisher.send_all(&messages).await;
    for _ in 0..3 {
        let client = test.connect().await;
        let mut failing = client
            .subscribe(test.spec("group", "events").with_window(8))
            .await;
        for _ in 0..test.profile().pick(5, 30, 100) {
            failing.next().await.give_back().await;
        }
        client.close().await;
    }
    let mut ledger = Ledger::of(&messages);
    healthy.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// Several consumers, each returning one in ten, end with every message acked.
pub async fn e03_a_tenth_returned_at_random_still_ends_with_all_acked(test: &Test) {
    let messages = test.messages("events", test.profile().pick(200, 1_000, 1_000));
    let acked = AtomicUsize::new(0);
    let publisher = test.connect().await;
    let mut consumers = Vec::new();
    for _ in 0..4 {
        consumers.push(
            test.connect()
                .await
                .subscribe(test.spec("group", "events"))
                .await,
        );
    }
    publisher.send_all(&messages).await;
    let consume = consumers.iter_mut().map(async |subscription| {
        let (mut rng, mut done) = (test.rng(), Vec::new());
        loop {
            match subscription.next_within(test.quiet()).await {
                Some(delivery) if rng.random_bool(0.1) => delivery.give_back().await,
                Some(delivery) => {
                    delivery.ack().await;
                    done.push(delivery.message);
                    acked.fetch_add(1, Ordering::Relaxed);
                }
                None if acked.load(Ordering::Relaxed) >= messages.len() => break done,
                None => {}
            }
        }
    });
    let mut ledger = Ledger::of(&messages);
    join_all(consume)
        .await
        .iter()
        .for_each(|done| ledger.merge(done));
    ledger.balance(0);
}

/// The same with one consumer that closes and comes back in the middle.
pub async fn e04_a_consumer_that_restarts_among_returns_loses_nothing(test: &Test) {
    let publisher = test.connect().await;
    let mut keeper = publisher
        .subscribe(test.spec("group", "events").with_window(1))
        .await;
    let messages = test.messages("events", test.profile().pick(100, 1_000, 1_000));
    publisher.send_all(&messages).await;
    let mut ledger = Ledger::of(&messages);
    let mut rng = test.rng();
    let by_partition = test.capabilities().order == OrderScope::KeyAloneInGroup;
    for _ in 0..3 {
        let client = test.connect().await;
        let mut subscription = client
            .subscribe(test.spec("group", "events").with_window(16))
            .await;
        for _ in 0..messages.len() / 4 {
            let delivery = match by_partition {
                // Its share may be what the one before has left of it.
                true => subscription.next_within(test.quiet()).await,
                false => Some(subscription.next().await),
            };
            let Some(delivery) = delivery else { break };
            if rng.random_bool(0.1) {
                delivery.give_back().await;
            } else {
                delivery.ack().await;
                ledger.receive(&delivery.message);
            }
        }
        client.close().await;
    }
    keeper.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// Not before the delay, and not long after it; others pass meanwhile.
pub async fn e06_a_delayed_return_comes_in_time_and_not_before(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let delay = Duration::from_secs(1);
    client.send(test.message("events", "late")).await;
    let returned = Instant::now();
    let delivery = subscription.next().await;
    let settled = delivery.settle(Settlement::ReturnAfter(delay)).await;
    settled.expect("the delayed return is taken");
    client.send(test.message("events", "other")).await;
    let other = subscription.next().await;
    assert_eq!(other.message.payload(), "other");
    other.ack().await;
    let late = subscription.next().await;
    let waited = returned.elapsed();
    assert_intact(&delivery.message, &late.message);
    assert!(
        waited >= delay && waited < delay + Duration::from_secs(2),
        "it came after {waited:?}"
    );
    late.ack().await;
    subscription.stays_quiet().await;
}

/// A delay that the wire does not have is not turned into an immediate return.
pub async fn e06_a_delayed_return_is_refused_where_there_is_none(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send(test.message("events", "body")).await;
    let delivery = subscription.next().await;
    let refused = delivery
        .settle(Settlement::ReturnAfter(Duration::from_secs(1)))
        .await;
    let error = refused.expect_err("the wire has no delayed return");
    assert_eq!(error.kind(), anywire::ErrorKind::Unsupported, "{error}");
    delivery.ack().await;
    subscription.stays_quiet().await;
}

/// Each delivery counts, also when another consumer makes it.
pub async fn e08_the_wires_count_of_deliveries_is_right(test: &Test) {
    let first = test.connect().await;
    let mut subscription = first.subscribe(test.spec("group", "events")).await;
    first.send(test.message("events", "body")).await;
    for expected in 1..=3 {
        let delivery = subscription.next().await;
        assert_eq!(delivery.deliveries, Some(expected));
        delivery.give_back().await;
    }
    let second = test.connect().await;
    let mut successor = second.subscribe(test.spec("group", "events")).await;
    subscription.stop().await;
    let delivery = successor.next().await;
    assert_eq!(delivery.deliveries, Some(4));
    delivery.ack().await;
}

/// A rebalance in the middle of a retry skips nothing.
pub async fn e12_a_member_that_joins_does_not_lose_what_is_returned(test: &Test) {
    let client = test.connect().await;
    let mut first = client.subscribe(test.spec("group", "events")).await;
    let messages = test.messages("events", 20);
    client.send_all(&messages).await;
    let held = first.take(10).await;
    let mut second = test
        .connect()
        .await
        .subscribe(test.spec("group", "events"))
        .await;
    for delivery in &held {
        // A wire that rebalances may have taken it away by now; then it comes again by itself.
        let _ = delivery.settle(Settlement::Return).await;
    }
    let mut ledger = Ledger::of(&messages);
    while ledger.missing() > 0 {
        for subscription in [&mut first, &mut second] {
            while let Some(delivery) = subscription.next_within(Duration::from_millis(100)).await {
                delivery.ack().await;
                ledger.receive(&delivery.message);
            }
        }
    }
    ledger.balance(held.len());
}
