//! N: what a message that failed carries with it, and where it goes.

use std::time::{Duration, SystemTime};

use anywire::pattern::publish_subscribe::{Entry, Spec, SubscriptionId, Target};
use anywire::{Pattern, Subject, Trail};

use crate::behaviour::behaviours;
use crate::{Ledger, Test};

behaviours! {
    n02_a_dead_letter_carries_its_past: [],
    n02_dead_letters_wait_for_somebody_to_look: [],
    n05_a_copy_for_one_subscription_reaches_no_other: [Groups],
    n06_a_retry_copy_carries_its_past: [],
}

/// Origin, group, pattern, handler, attempts, error and times survive; payload, headers and id are the original's.
pub async fn n02_a_dead_letter_carries_its_past(test: &Test) {
    let client = test.connect().await;
    let (subject, spec) = dead_letters(test);
    client.declare(&spec.subscription.pattern).await;
    let mut subscription = client.subscribe(spec).await;
    let original = test.message("events.placed", "poison").with_key("customer");
    let letter = original
        .clone()
        .with_subject(subject)
        .with_trail(trail(test, &original));
    client.send(letter.clone()).await;
    let delivery = subscription.next().await;
    crate::assert_intact(&letter, &delivery.message);
    assert_same_past(&letter, &delivery.message);
    delivery.ack().await;
    subscription.stays_quiet().await;
}

/// The store is there before the first dead letter, and keeps it until somebody subscribes.
pub async fn n02_dead_letters_wait_for_somebody_to_look(test: &Test) {
    let client = test.connect().await;
    let (subject, spec) = dead_letters(test);
    client.declare(&spec.subscription.pattern).await;
    let letters: Vec<_> = test
        .messages("events", 5)
        .into_iter()
        .map(|message| message.with_subject(subject.clone()))
        .collect();
    client.send_all(&letters).await;
    let mut subscription = client.subscribe(spec).await;
    let mut ledger = Ledger::of(&letters);
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// A retry copy or a redriven dead letter goes to the subscription that failed it, with its id, though the wire has
/// seen that id before.
pub async fn n05_a_copy_for_one_subscription_reaches_no_other(test: &Test) {
    let client = test.connect().await;
    let mut failed = client.subscribe(test.spec("failed", "events.*")).await;
    let mut other = client.subscribe(test.spec("other", "events.*")).await;
    let mut sibling = client.subscribe(test.spec("failed", "events.>")).await;
    let message = test.message("events.placed", "body");
    client.send(message.clone()).await;
    for subscription in [&mut failed, &mut other, &mut sibling] {
        subscription.next().await.ack().await;
    }
    let id = SubscriptionId::new(test.group("failed"), test.pattern("events.*"));
    let entry = Entry::new(message.clone()).with_target(Target::Subscription(id));
    let receipt = client.try_send(entry).await.expect("the copy is accepted");
    assert!(
        !receipt.is_duplicate(),
        "the copy was swallowed as a duplicate"
    );
    let copy = failed.next().await;
    assert_eq!(copy.message.id(), message.id());
    assert_eq!(copy.message.payload(), message.payload());
    assert_eq!(copy.message.subject(), message.subject());
    copy.ack().await;
    for subscription in [&mut failed, &mut other, &mut sibling] {
        subscription.stays_quiet().await;
    }
}

/// The count of attempts travels with the copy, so that a crash loses neither message nor count.
pub async fn n06_a_retry_copy_carries_its_past(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events.*")).await;
    let original = test.message("events.placed", "tried").with_key("customer");
    let copy = original.clone().with_trail(trail(test, &original));
    let id = SubscriptionId::new(test.group("group"), test.pattern("events.*"));
    let entry = Entry::new(copy.clone()).with_target(Target::Subscription(id));
    client.try_send(entry).await.expect("the copy is accepted");
    let delivery = subscription.next().await;
    crate::assert_intact(&original, &delivery.message);
    assert_same_past(&copy, &delivery.message);
    delivery.ack().await;
    subscription.stays_quiet().await;
}

fn dead_letters(test: &Test) -> (Subject, Spec) {
    let subject = Subject::dead_letters(&test.group("group"));
    let pattern = Pattern::parse_any(subject.as_str()).expect("a legal pattern");
    let reader = SubscriptionId::new(test.group("reader"), pattern);
    (subject, Spec::new(reader))
}

fn trail(test: &Test, original: &anywire::Message) -> Trail {
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    Trail {
        pattern: Some(test.pattern("events.*")),
        group: Some(test.group("group")),
        handler: Some("placed".to_owned()),
        attempt: 7,
        origin: Some("main".to_owned()),
        error: Some("line one\r\nline two: \u{e9}".to_owned()),
        first_at: Some(now),
        last_at: Some(now + Duration::from_secs(90)),
        ..Trail::new(original.subject().clone())
    }
}

fn assert_same_past(sent: &anywire::Message, arrived: &anywire::Message) {
    let (sent, arrived) = (sent.trail(), arrived.trail());
    let past = |trail: &Trail| Trail {
        due: None,
        ..trail.clone()
    };
    assert_eq!(arrived.map(past), sent.map(past));
}
