//! F: order, where it is declared.

use std::collections::HashMap;

use anywire::Order;
use anywire::pattern::publish_subscribe::Entry;

use crate::behaviour::behaviours;
use crate::{PUBLISH_TIMEOUT, Test, number};

behaviours! {
    f01_one_consumer_gets_the_sequence_as_it_was_published: [ConsumerOrder],
    f02_the_messages_of_a_key_stay_in_order_across_a_group: [KeyOrderInGroup],
    f03_the_order_of_a_batch_is_the_order_of_its_entries: [ConsumerOrder],
    f05_order_outlives_a_lost_connection: [ConsumerOrder, Durable, Broker],
    f06_a_returned_message_holds_its_key: [KeyOrderInGroup],
}

/// Published one by one, received one by one, in order.
pub async fn f01_one_consumer_gets_the_sequence_as_it_was_published(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let count = test.profile().pick(100, 1_000, 1_000);
    for message in test.messages("events", count) {
        client.send(message).await;
    }
    in_sequence(&mut subscription, count).await;
}

/// Sixteen keys, several consumers on connections of their own: each key's messages come in order.
pub async fn f02_the_messages_of_a_key_stay_in_order_across_a_group(test: &Test) {
    let members = test.profile().pick(4, 10, 10);
    let mut subscriptions = Vec::new();
    for _ in 0..members {
        let spec = test
            .spec("group", "events")
            .with_order(Order::KeyInGroup)
            .with_window(8);
        subscriptions.push(test.connect().await.subscribe(spec).await);
    }
    let mut messages = test.messages("events", test.profile().pick(200, 1_000, 1_000));
    for (at, message) in messages.iter_mut().enumerate() {
        *message = message.clone().with_key(format!("key-{}", at % 16));
    }
    test.connect().await.send_all(&messages).await;
    let handled = parking_lot::Mutex::new(HashMap::<_, Vec<usize>>::new());
    let total = || handled.lock().values().map(Vec::len).sum::<usize>();
    futures::future::join_all(subscriptions.iter_mut().map(async |subscription| {
        while total() < messages.len() {
            let Some(delivery) = subscription.next_within(test.quiet()).await else {
                continue;
            };
            let key = delivery.message.key().cloned();
            // The message counts as handled between delivery and ack: nobody else may have one of its key.
            handled
                .lock()
                .entry(key)
                .or_default()
                .push(number(&delivery.message));
            tokio::task::yield_now().await;
            delivery.ack().await;
        }
    }))
    .await;
    for (key, numbers) in handled.into_inner() {
        assert!(numbers.is_sorted(), "{key:?} came as {numbers:?}");
    }
}

/// A batch is published in the order of its entries.
pub async fn f03_the_order_of_a_batch_is_the_order_of_its_entries(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let count = test.profile().messages().min(1_000);
    client.send_all(&test.messages("events", count)).await;
    in_sequence(&mut subscription, count).await;
}

/// With repeats taken out, the sequence is still sorted after the consumer's connection was killed in the middle.
pub async fn f05_order_outlives_a_lost_connection(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(16))
        .await;
    let messages = test.messages("events", 100);
    client.send_all(&messages).await;
    let mut newest = None;
    while newest != Some(99) {
        let delivery = subscription.next().await;
        let this = number(&delivery.message);
        let next = newest.map_or(0, |newest: usize| newest + 1);
        assert!(this <= next, "{this} came when {next} was due");
        newest = Some(newest.map_or(this, |newest| newest.max(this)));
        // The one whose connection was lost comes again.
        let _ = delivery
            .settle(anywire::pattern::publish_subscribe::Settlement::Ack)
            .await;
        if this == 50 {
            test.broker()
                .kill_connections()
                .await
                .expect("the connections are killed");
        }
    }
}

/// While a message is returned and comes again, no later one of its key overtakes it.
pub async fn f06_a_returned_message_holds_its_key(test: &Test) {
    let client = test.connect().await;
    let spec = test.spec("group", "events").with_order(Order::KeyInGroup);
    let mut subscription = client.subscribe(spec).await;
    let entries = test
        .messages("events", 20)
        .into_iter()
        .map(|message| Entry::new(message.with_key("one")));
    client.try_publish(entries, PUBLISH_TIMEOUT).await;
    let mut seen = Vec::new();
    while seen.len() < 21 {
        let delivery = subscription.next().await;
        let this = number(&delivery.message);
        let first_time = !seen.contains(&this);
        seen.push(this);
        if this == 10 && first_time {
            delivery.give_back().await;
        } else {
            delivery.ack().await;
        }
    }
    let expected: Vec<_> = (0..=10).chain(10..20).collect();
    assert_eq!(seen, expected);
    subscription.stays_quiet().await;
}

async fn in_sequence(subscription: &mut crate::Subscription, count: usize) {
    for expected in 0..count {
        let delivery = subscription.next().await;
        assert_eq!(number(&delivery.message), expected, "out of sequence");
        delivery.ack().await;
    }
    subscription.stays_quiet().await;
}
