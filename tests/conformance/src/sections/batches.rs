//! K: many at once.

use std::time::Duration;

use anywire::ErrorKind;
use anywire::pattern::publish_subscribe::{
    Entry, PublishBatch, Published, SettleBatch, Settlement,
};

use futures::future::join_all;

use crate::behaviour::behaviours;
use crate::{Ledger, PUBLISH_TIMEOUT, Subscription, Test, number};

behaviours! {
    k01_batches_of_any_size_arrive_whole: [],
    k02_one_bad_entry_fails_alone: [],
    k03_an_empty_batch_does_nothing: [],
    k05_a_batch_is_settled_entry_by_entry: [AtLeastOnce],
    k07_acks_are_flushed_by_close: [],
    k08_a_batch_may_go_to_many_subjects: [],
}

/// One, two, a few hundred, and a number that fits no limit.
pub async fn k01_batches_of_any_size_arrive_whole(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    for size in [1, 2, 256, 1_025] {
        let messages = test.messages("events", size);
        client.send_all(&messages).await;
        let mut ledger = Ledger::of(&messages);
        while ledger.missing() > 0 {
            // No more than the window holds.
            for delivery in subscription.take(ledger.missing().min(200)).await {
                ledger.receive(&delivery.message);
                delivery.ack().await;
            }
        }
        ledger.balance(0);
    }
    subscription.stays_quiet().await;
}

/// An entry that is refused is named by its place; the others go through.
pub async fn k02_one_bad_entry_fails_alone(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let mut messages = test.messages("events", 5);
    let oversized = vec![0; test.capabilities().limits.max_payload + 1];
    messages[2] = test.message("events", oversized);
    let entries: Vec<_> = messages.into_iter().map(Entry::new).collect();
    let outcomes = client.try_publish(entries.clone(), PUBLISH_TIMEOUT).await;
    for (at, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Published::Rejected(error) => assert_eq!((at, error.kind()), (2, ErrorKind::TooLarge)),
            Published::Accepted(_) => assert_ne!(at, 2, "the oversized entry was accepted"),
            Published::Unknown(error) => panic!("entry {at} is unknown: {error}"),
        }
    }
    let mut ledger = Ledger::new();
    ledger.enter(&entries, &outcomes);
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// Nothing to publish, nothing to settle, nothing to subscribe to.
pub async fn k03_an_empty_batch_does_nothing(test: &Test) {
    let client = test.connect().await;
    let publisher = client.transport().publisher();
    let published = publisher
        .publish(PublishBatch::new(PUBLISH_TIMEOUT))
        .wait()
        .await;
    assert!(published.into_parts().1.is_empty());
    assert!(client.subscribe_all(&[]).await.is_empty());
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    assert!(subscription.settle_all(&[]).await.is_empty());
    client.send(test.message("events", "control")).await;
    subscription.next().await.ack().await;
    subscription.stays_quiet().await;
}

/// In a batch of ten, two are returned and eight acked, in one call: the two come again.
pub async fn k05_a_batch_is_settled_entry_by_entry(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send_all(&test.messages("events", 10)).await;
    let deliveries = subscription.take(10).await;
    let verdict = |number| match number {
        3 | 7 => Settlement::Return,
        _ => Settlement::Ack,
    };
    let settlements: Vec<_> = deliveries
        .iter()
        .map(|delivery| (delivery, verdict(number(&delivery.message))))
        .collect();
    assert!(subscription.settle_all(&settlements).await.is_empty());
    let mut again: Vec<_> = Vec::new();
    for _ in 0..2 {
        let delivery = subscription.next().await;
        again.push(number(&delivery.message));
        delivery.ack().await;
    }
    again.sort_unstable();
    assert_eq!(again, [3, 7]);
    subscription.stays_quiet().await;
}

/// Acks that were handed over are acks, even if the client closes right away.
pub async fn k07_acks_are_flushed_by_close(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send_all(&test.messages("events", 20)).await;
    let deliveries = subscription.take(20).await;
    let other = test.connect().await;
    let mut successor = other.subscribe(test.spec("group", "events")).await;
    let mut batch = SettleBatch::default();
    for delivery in &deliveries {
        batch.push(delivery.tag, Settlement::Ack);
    }
    let settled = subscription.settler().settle(batch);
    let (settled, ()) = futures::future::join(settled.wait(), client.close()).await;
    let unsettled = settled.failed().len();
    other.send(test.message("events", "control")).await;
    let mut again = 0;
    while let Some(delivery) = successor
        .next_within(test.quiet().max(Duration::from_secs(1)))
        .await
    {
        if delivery.message.payload() != "control" {
            again += 1;
        }
        delivery.ack().await;
    }
    assert!(
        again <= unsettled,
        "{again} acked messages came again, {unsettled} acks had failed"
    );
}

/// Each entry has its own subject.
pub async fn k08_a_batch_may_go_to_many_subjects(test: &Test) {
    let client = test.connect().await;
    let mut subscriptions = Vec::new();
    let mut batch = Vec::new();
    for at in 0..5 {
        let subject = format!("subject-{at}");
        let messages = test.messages(&subject, 4);
        subscriptions.push((
            client.subscribe(test.spec("group", &subject)).await,
            Ledger::of(&messages),
        ));
        batch.push(messages);
    }
    let interleaved: Vec<_> = (0..4)
        .flat_map(|at| batch.iter().map(move |messages| messages[at].clone()))
        .collect();
    client.send_all(&interleaved).await;
    // One after the other, what waits for its turn would pass for slow and make the quiet after it long.
    join_all(subscriptions.into_iter().map(receive_exactly)).await;
}

async fn receive_exactly((mut subscription, mut ledger): (Subscription, Ledger)) {
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}
