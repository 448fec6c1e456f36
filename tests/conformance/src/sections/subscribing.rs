//! D, through a client: deliveries that are settled by hand.

use std::time::{Duration, Instant};

use anywire::{Client, ErrorKind, Raw, RunningApp, Start, Subscription};

use crate::behaviour::behaviours;
use crate::{Test, number};

behaviours! {
    d13_a_delivery_that_is_dropped_comes_again: [AtLeastOnce],
    d14_a_delivery_may_be_put_off: [Delay],
    d15_a_delivery_may_be_dead_lettered_by_hand_and_sent_back: [AtLeastOnce],
    d16_an_undecodable_item_is_an_error_and_a_dead_letter: [AtLeastOnce],
    d17_a_private_copy_leaves_nothing_behind: [],
}

/// A sender and its subscription to `events`, as one of a group.
async fn subscribed(test: &Test) -> (RunningApp, Client, Subscription<u32>) {
    let app = test.app("app").start().await.expect("the app starts");
    let client = app.client();
    let subscription = client
        .subscribe(test.pattern("events"))
        .group(test.group("group"));
    let subscription = subscription.start(Start::Earliest).await.expect("it opens");
    (app, client, subscription)
}

/// Whoever forgets a delivery has not handled it; whoever acks it has.
pub async fn d13_a_delivery_that_is_dropped_comes_again(test: &Test) {
    let (app, client, mut subscription) = subscribed(test).await;
    client
        .emit(test.subject("events"), &7)
        .await
        .expect("accepted");
    drop(next(test, &mut subscription).await);
    let again = next(test, &mut subscription).await;
    assert_eq!(*again, 7);
    again.retry().await.expect("it goes back");
    next(test, &mut subscription)
        .await
        .ack()
        .await
        .expect("it is acked");
    assert!(
        quiet(test, &mut subscription).await,
        "it came again after its ack"
    );
    app.shutdown().await.expect("it stops");
}

/// Not before its time, its attempts counted where the wire or a copy can tell.
pub async fn d14_a_delivery_may_be_put_off(test: &Test) {
    let (app, client, mut subscription) = subscribed(test).await;
    client
        .emit(test.subject("events"), &7)
        .await
        .expect("accepted");
    let wait = Duration::from_secs(1);
    let delivery = next(test, &mut subscription).await;
    let start = Instant::now();
    delivery.retry_after(wait).await.expect("it is put off");
    let again = next(test, &mut subscription).await;
    assert!(
        start.elapsed() >= wait,
        "it came after {:?}",
        start.elapsed()
    );
    assert_eq!(*again, 7);
    again.ack().await.expect("it is acked");
    app.shutdown().await.expect("it stops");
}

/// With the reason; and redriven it comes back to this subscription.
pub async fn d15_a_delivery_may_be_dead_lettered_by_hand_and_sent_back(test: &Test) {
    let (app, client, mut subscription) = subscribed(test).await;
    client
        .emit(test.subject("events"), &7)
        .await
        .expect("accepted");
    let delivery = next(test, &mut subscription).await;
    delivery
        .dead_letter("a person said so")
        .await
        .expect("it is dead-lettered");
    let mut letters = test
        .connect()
        .await
        .subscribe(test.dead_letters("group"))
        .await;
    let letter = letters.next().await;
    assert_eq!(number(&letter.message), 7);
    let trail = letter
        .message
        .trail()
        .expect("a dead letter tells its past");
    assert_eq!(trail.error.as_deref(), Some("a person said so"));
    client
        .redrive(&letter.message)
        .await
        .expect("it is sent back");
    letter.ack().await;
    let back = next(test, &mut subscription).await;
    assert_eq!((*back, back.context().attempt()), (7, 1));
    back.ack().await.expect("it is acked");
    app.shutdown().await.expect("it stops");
}

/// The stream goes on with the next one.
pub async fn d16_an_undecodable_item_is_an_error_and_a_dead_letter(test: &Test) {
    let (app, client, mut subscription) = subscribed(test).await;
    let garbage = Raw(b"not a number".as_slice().into());
    client
        .emit(test.subject("events"), &garbage)
        .key("one")
        .await
        .expect("accepted");
    client
        .emit(test.subject("events"), &7)
        .key("one")
        .await
        .expect("accepted");
    let item = subscription.next().await.expect("the stream goes on");
    assert_eq!(item.expect_err("it is no number").kind(), ErrorKind::Codec);
    let delivery = next(test, &mut subscription).await;
    assert_eq!(*delivery, 7);
    delivery.ack().await.expect("it is acked");
    let mut letters = test
        .connect()
        .await
        .subscribe(test.dead_letters("group"))
        .await;
    let letter = letters.next().await;
    assert_eq!(letter.message.payload(), "not a number");
    letter.ack().await;
    app.shutdown().await.expect("it stops");
}

/// Without a group: from now on, everything, and gone with its owner.
pub async fn d17_a_private_copy_leaves_nothing_behind(test: &Test) {
    let (app, client, mut grouped) = subscribed(test).await;
    client
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    let mut private = client
        .subscribe(test.pattern("events"))
        .await
        .expect("it opens");
    client
        .emit(test.subject("events"), &2)
        .await
        .expect("accepted");
    let copy = next(test, &mut private).await;
    assert_eq!(*copy, 2, "it began before it was opened");
    copy.ack().await.expect("it is acked");
    private.stop().await.expect("it stops");
    client
        .emit(test.subject("events"), &3)
        .await
        .expect("accepted");
    let mut reopened = client
        .subscribe(test.pattern("events"))
        .await
        .expect("it opens");
    assert!(
        quiet(test, &mut reopened).await,
        "something was kept for a private copy"
    );
    for expected in 1..=3 {
        let delivery = next(test, &mut grouped).await;
        assert_eq!(*delivery, expected);
        delivery.ack().await.expect("it is acked");
    }
    app.shutdown().await.expect("it stops");
}

async fn next(test: &Test, subscription: &mut Subscription<u32>) -> anywire::Delivery<u32> {
    let gap = test.gap();
    let item = tokio::time::timeout(gap, subscription.next()).await;
    let item = item.unwrap_or_else(|_| panic!("nothing arrived for {gap:?}"));
    item.expect("the stream goes on").expect("a delivery")
}

async fn quiet(test: &Test, subscription: &mut Subscription<u32>) -> bool {
    tokio::time::timeout(test.quiet(), subscription.next())
        .await
        .is_err()
}
