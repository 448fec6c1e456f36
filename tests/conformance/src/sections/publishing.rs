//! L: what a publish says is true.

use std::time::Instant;

use anywire::pattern::publish_subscribe::{Entry, Published};
use anywire::{ErrorKind, Guarantee};

use crate::behaviour::behaviours;
use crate::{Ledger, PUBLISH_TIMEOUT, Test};

behaviours! {
    l01_what_was_confirmed_outlives_a_killed_broker: [Confirm, Durable, Broker],
    l03_a_message_that_no_store_took_is_an_error_of_its_own: [Unroutable, AtLeastOnce],
    l03_at_most_once_does_not_ask_who_listens: [],
    l05_errors_say_what_they_are_and_whether_to_try_again: [],
    l07_a_repeated_id_is_accepted_and_delivered_once: [Dedup],
    l08_what_was_confirmed_before_close_is_there_after_it: [],
    l09_a_publisher_survives_its_failures: [],
}

/// Confirmed means stored: SIGKILL right after the last confirm, and all of it is there.
pub async fn l01_what_was_confirmed_outlives_a_killed_broker(test: &Test) {
    let client = test.connect().await;
    client
        .subscribe(test.spec("group", "events"))
        .await
        .stop()
        .await;
    let messages = test.messages("events", test.profile().messages().min(1_000));
    client.send_all(&messages).await;
    test.broker().kill().await.expect("the broker is killed");
    test.broker().start().await.expect("the broker starts");
    let mut subscription = test
        .connect()
        .await
        .subscribe(test.spec("group", "events"))
        .await;
    let mut ledger = Ledger::of(&messages);
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// Only the entry that reached nobody fails, at once, and trying again may help.
pub async fn l03_a_message_that_no_store_took_is_an_error_of_its_own(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let start = Instant::now();
    let entries = [
        Entry::new(test.message("events", "first")),
        Entry::new(test.message("nowhere", "lost")),
        Entry::new(test.message("events", "second")),
    ];
    let outcomes = client.try_publish(entries.clone(), PUBLISH_TIMEOUT).await;
    assert!(
        start.elapsed() < PUBLISH_TIMEOUT / 2,
        "it waited for its deadline"
    );
    let [
        Published::Accepted(_),
        Published::Rejected(error),
        Published::Accepted(_),
    ] = outcomes.as_slice()
    else {
        panic!("the second alone is rejected, not {outcomes:?}");
    };
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error}");
    assert!(error.is_retryable());
    let mut ledger = Ledger::new();
    ledger.enter(&entries, &outcomes);
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// Fire and forget never complains that nobody is there.
pub async fn l03_at_most_once_does_not_ask_who_listens(test: &Test) {
    let client = test.connect().await;
    let entry = Entry::new(test.message("nowhere", "lost")).with_guarantee(Guarantee::AtMostOnce);
    client.try_send(entry).await.expect("nobody is asked");
}

/// What a program may branch on: too large is for good, and everything that can be provoked has its kind.
pub async fn l05_errors_say_what_they_are_and_whether_to_try_again(test: &Test) {
    let client = test.connect().await;
    let _subscription = client.subscribe(test.spec("group", "events")).await;
    let oversized = vec![0; test.capabilities().limits.max_payload + 1];
    let refused = client
        .try_send(Entry::new(test.message("events", oversized)))
        .await;
    let error = refused.expect_err("too large");
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::TooLarge, false)
    );
    let text = error.to_string();
    assert!(
        !text.is_empty() && !text.contains('\n'),
        "one line, not {text:?}"
    );
    client.close().await;
    let refused = client
        .try_send(Entry::new(test.message("events", "late")))
        .await;
    let error = refused.expect_err("closed");
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::Closed, false)
    );
}

/// Inside the window, the second is told to be a duplicate and is not delivered.
pub async fn l07_a_repeated_id_is_accepted_and_delivered_once(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let message = test.message("events", "once");
    let mut duplicates = Vec::new();
    for _ in 0..3 {
        let receipt = client.try_send(Entry::new(message.clone())).await;
        duplicates.push(receipt.expect("accepted").is_duplicate());
    }
    assert_eq!(duplicates, [false, true, true]);
    subscription.next().await.ack().await;
    subscription.stays_quiet().await;
}

/// A publish that is under way when the client closes is stored or is told to have failed.
pub async fn l08_what_was_confirmed_before_close_is_there_after_it(test: &Test) {
    let (publisher, consumer) = (test.connect().await, test.connect().await);
    let mut subscription = consumer.subscribe(test.spec("group", "events")).await;
    let entries: Vec<_> = test
        .messages("events", 50)
        .into_iter()
        .map(Entry::new)
        .collect();
    let publish = publisher.try_publish(entries.clone(), PUBLISH_TIMEOUT);
    let (outcomes, ()) = futures::future::join(publish, publisher.close()).await;
    let mut ledger = Ledger::new();
    ledger.enter(&entries, &outcomes);
    let control = test.message("events", "control");
    ledger.confirm([&control]);
    consumer.send(control).await;
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// After a refused publish the same handle works.
pub async fn l09_a_publisher_survives_its_failures(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    for message in test.messages("events", 5) {
        let oversized = vec![0; test.capabilities().limits.max_payload + 1];
        let refused = client
            .try_send(Entry::new(test.message("events", oversized)))
            .await;
        refused.expect_err("too large");
        let _ = client
            .try_send(Entry::new(test.message("nowhere", "lost")))
            .await;
        client.send(message.clone()).await;
        let delivery = subscription.next().await;
        assert_eq!(delivery.message.id(), message.id());
        delivery.ack().await;
    }
}
