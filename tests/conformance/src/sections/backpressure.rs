//! J: nobody gets more than was asked for.

use std::time::Duration;

use crate::behaviour::behaviours;
use crate::{Ledger, Test};

behaviours! {
    j01_unacked_deliveries_hold_the_rest_back: [AtLeastOnce],
    j02_the_window_is_a_hard_limit: [AtLeastOnce],
    j02_a_pull_brings_no_more_than_was_asked_for: [],
    j04_a_slow_subscriber_does_not_stall_another: [Groups],
    j08_a_returned_delivery_makes_room_in_the_window: [AtLeastOnce],
}

/// With its window full of unacked deliveries a consumer gets no more; after the acks the rest follows.
pub async fn j01_unacked_deliveries_hold_the_rest_back(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(20))
        .await;
    let messages = test.messages("events", 40);
    client.send_all(&messages).await;
    let held = subscription.take(20).await;
    subscription.stays_quiet().await;
    let mut ledger = Ledger::of(&messages);
    for delivery in held {
        ledger.receive(&delivery.message);
        delivery.ack().await;
    }
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// Whatever the order of pulls and acks, what is unsettled never exceeds the window.
pub async fn j02_the_window_is_a_hard_limit(test: &Test) {
    const WINDOW: usize = 10;
    let client = test.connect().await;
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(WINDOW))
        .await;
    let messages = test.messages("events", 100);
    client.send_all(&messages).await;
    let mut ledger = Ledger::of(&messages);
    let mut held = Vec::new();
    while ledger.missing() > 0 {
        if held.is_empty() {
            held.push(subscription.next().await);
        }
        while let Some(delivery) = subscription.next_within(Duration::from_millis(50)).await {
            held.push(delivery);
            assert!(
                held.len() <= WINDOW,
                "{} are unsettled, the window is {WINDOW}",
                held.len()
            );
        }
        for delivery in held.drain(..held.len().div_ceil(2)) {
            ledger.receive(&delivery.message);
            delivery.ack().await;
        }
    }
    ledger.balance(0);
}

/// The room of a batch is a limit, too. (The subscription of the kit asserts it on each pull.)
pub async fn j02_a_pull_brings_no_more_than_was_asked_for(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let messages = test.messages("events", 60);
    client.send_all(&messages).await;
    let mut ledger = Ledger::of(&messages);
    for room in [1, 2, 7, 50] {
        for delivery in subscription.take(room).await {
            ledger.receive(&delivery.message);
            delivery.ack().await;
        }
    }
    ledger.balance(0);
}

/// One that holds its window and reads no more costs its sibling nothing.
pub async fn j04_a_slow_subscriber_does_not_stall_another(test: &Test) {
    let client = test.connect().await;
    let mut slow = client
        .subscribe(test.spec("slow", "events").with_window(2))
        .await;
    let mut quick = client.subscribe(test.spec("quick", "events")).await;
    let messages = test.messages("events", test.profile().messages().min(1_000));
    client.send_all(&messages).await;
    let held = slow.take(2).await;
    let mut ledger = Ledger::of(&messages);
    quick.receive_all(&mut ledger).await;
    ledger.balance(0);
    drop(held);
}

/// A delivery that was given back is not in flight any more.
pub async fn j08_a_returned_delivery_makes_room_in_the_window(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(2))
        .await;
    let messages = test.messages("events", 10);
    client.send_all(&messages).await;
    for _ in 0..5 {
        for delivery in subscription.take(2).await {
            delivery.give_back().await;
        }
    }
    let mut ledger = Ledger::of(&messages);
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}
