//! N: what a message that failed carries with it, and where it goes.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime};

use anywire::pattern::publish_subscribe::{Entry, Spec, SubscriptionId, Target};
use anywire::{Context, Failure, Ignore, MessageId, Pattern, Raw, Route, Router, Subject, Trail};
use bytes::Bytes;

use crate::behaviour::behaviours;
use crate::{Ledger, Sabotage, Test};

behaviours! {
    n01_an_undecodable_message_is_dead_lettered_with_its_bytes: [AtLeastOnce],
    n02_a_dead_letter_carries_its_past: [AtLeastOnce],
    n02_dead_letters_wait_for_somebody_to_look: [AtLeastOnce],
    n03_an_original_is_kept_while_its_dead_letter_cannot_be_stored: [AtLeastOnce],
    n05_a_redriven_dead_letter_reaches_the_subscription_that_failed_it: [AtLeastOnce, Groups],
    n05_a_copy_for_one_subscription_reaches_no_other: [AtLeastOnce, Groups],
    n06_a_retry_copy_carries_its_past: [AtLeastOnce],
    n07_a_handler_of_dead_letters_makes_no_more_of_them: [AtLeastOnce],
}

/// No attempt is made, its bytes are kept as they came, and the next message is handled.
pub async fn n01_an_undecodable_message_is_dead_lettered_with_its_bytes(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let handler = move |number: u32| {
        let tell = tell.clone();
        async move { tell.tell(number).await }
    };
    let route = Route::event(test.pattern("events"), handler).name("handler");
    let app = test.start("app", route).await;
    let garbage = Bytes::from_static(b"{\"not\": a number\xFF");
    let client = app.client();
    let emitted = client
        .emit(test.subject("events"), &Raw(garbage.clone()))
        .header("tenant", "blue");
    emitted.await.expect("accepted");
    client
        .emit(test.subject("events"), &7)
        .await
        .expect("accepted");
    assert_eq!(seen.next().await, 7);
    let mut letters = test
        .connect()
        .await
        .subscribe(test.dead_letters("app"))
        .await;
    let letter = letters.next().await;
    assert_eq!(letter.message.payload(), &garbage);
    assert_eq!(letter.message.headers().get_str("tenant"), Some("blue"));
    let error = letter.message.trail().and_then(|trail| trail.error.clone());
    assert!(
        error.is_some_and(|error| error.contains("decod")),
        "the dead letter says why"
    );
    letter.ack().await;
    seen.stay_quiet().await;
    letters.stays_quiet().await;
    app.shutdown().await.expect("it stops");
}

/// Not acked, not lost, and the app's health is red until the store takes it.
pub async fn n03_an_original_is_kept_while_its_dead_letter_cannot_be_stored(test: &Test) {
    let sabotage = Sabotage::default();
    let full = Subject::dead_letters(&test.group("app"));
    sabotage.refuse_publishes(Pattern::parse_any(full.as_str()).expect("a legal pattern"));
    let fails = async |_: Ignore| Err::<(), _>(Failure::permanent("no use"));
    let route = Route::event(test.pattern("events"), fails).name("fails");
    let app = test
        .sabotaged_app("app", &sabotage)
        .router(Router::new().route(route));
    let app = app.start().await.expect("the app starts");
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    let red = async {
        while app.health().is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let red = tokio::time::timeout(test.gap(), red).await;
    red.expect("the health is red while a message is stuck");
    sabotage.mend();
    let mut letters = test
        .connect()
        .await
        .subscribe(test.dead_letters("app"))
        .await;
    let letter = letters.next().await;
    assert_eq!(letter.message.payload(), "1");
    letter.ack().await;
    letters.stays_quiet().await;
    assert!(app.health().is_ok(), "{:?}", app.health());
    app.shutdown().await.expect("it stops");
}

/// To that one and no other, with its id, as if it came for the first time.
pub async fn n05_a_redriven_dead_letter_reaches_the_subscription_that_failed_it(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let app_that = async |name: &'static str, mends: usize| {
        let tell = tell.clone();
        let failures = Arc::new(AtomicUsize::new(mends));
        let handler = move |_: Ignore, context: Context| {
            let (tell, failures) = (tell.clone(), Arc::clone(&failures));
            async move {
                tell.tell((name, context.attempt(), context.id().cloned()))
                    .await?;
                match failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
                    Ok(_) => Err(Failure::permanent("broken")),
                    Err(_) => Ok(()),
                }
            }
        };
        test.start(
            name,
            Route::event(test.pattern("events.*"), handler).name("handler"),
        )
        .await
    };
    let (failing, healthy) = (app_that("failing", 1).await, app_that("healthy", 0).await);
    let client = failing.client();
    client
        .emit(test.subject("events.x"), &1)
        .id("the-id")
        .await
        .expect("accepted");
    let mut letters = test
        .connect()
        .await
        .subscribe(test.dead_letters("failing"))
        .await;
    let letter = letters.next().await;
    let mut both = seen.take(2).await;
    both.sort_unstable_by_key(|(name, ..)| *name);
    let id = Some(MessageId::from("the-id"));
    assert_eq!(
        both,
        [("failing", 1, id.clone()), ("healthy", 1, id.clone())]
    );
    client
        .redrive(&letter.message)
        .await
        .expect("it is sent back");
    letter.ack().await;
    assert_eq!(seen.next().await, ("failing", 1, id));
    seen.stay_quiet().await;
    letters.stays_quiet().await;
    failing.shutdown().await.expect("it stops");
    healthy.shutdown().await.expect("it stops");
}

/// It retries, then parks the letter and says so; the letter stays.
pub async fn n07_a_handler_of_dead_letters_makes_no_more_of_them(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let fails = async |_: Ignore| Err::<(), _>(Failure::permanent("no use"));
    let app = test
        .start(
            "app",
            Route::event(test.pattern("events"), fails).name("fails"),
        )
        .await;
    let clerk = move |_: Ignore, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell(context.attempt()).await?;
            Err::<(), _>(Failure::permanent("the clerk fails, too"))
        }
    };
    let letters = Subject::dead_letters(&test.group("app"));
    let route = Route::event(letters.as_str(), clerk)
        .name("clerk")
        .retry([Duration::from_millis(20)]);
    let clerks = test.start("clerks", route).await;
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    seen.next().await;
    let parked = async {
        while clerks.health().is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let parked = tokio::time::timeout(test.gap(), parked).await;
    parked.expect("the health is red while a dead letter is parked");
    let client = test.connect().await;
    let mut more = client.subscribe(test.dead_letters("clerks")).await;
    assert!(
        more.next_within(test.quiet()).await.is_none(),
        "a dead letter of a dead letter"
    );
    clerks.shutdown().await.expect("it stops");
    app.shutdown().await.expect("it stops");
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
