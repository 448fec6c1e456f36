//! D: what acks and returns do.

use anywire::pattern::publish_subscribe::Settlement::{Ack, Return};
use anywire::{ErrorKind, Guarantee};

use crate::behaviour::behaviours;
use crate::{Ledger, Test, number};

behaviours! {
    d01_an_acked_message_is_gone: [],
    d02_dropping_a_delivery_does_not_ack_it: [AtLeastOnce, Groups],
    d03_the_first_settlement_wins_and_later_ones_are_stale: [AtLeastOnce],
    d03_a_stale_tag_settles_nothing_else: [AtLeastOnce, ConsumerOrder],
    d04_a_batch_that_holds_stale_tags_settles_the_rest: [AtLeastOnce],
    d05_an_ack_on_a_lost_connection_is_an_error_and_the_message_returns: [Broker, Durable],
    d06_out_of_order_acks_are_safe: [AtLeastOnce],
    d08_at_most_once_is_settled_before_it_is_delivered: [Groups],
    d09_a_window_of_one_stops_and_waits: [AtLeastOnce],
    d11_what_a_crashed_consumer_held_goes_to_another: [AtLeastOnce, Groups],
}

/// What was acked does not come again, not even to the next consumer of the group.
pub async fn d01_an_acked_message_is_gone(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send_all(&test.messages("events", 20)).await;
    for delivery in subscription.take(20).await {
        delivery.ack().await;
    }
    client.close().await;
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send(test.message("events", "control")).await;
    let delivery = subscription.next().await;
    assert_eq!(delivery.message.payload(), "control");
    delivery.ack().await;
    subscription.stays_quiet().await;
}

/// Only an ack acks: what a handler forgot to settle goes to another consumer once its own is closed.
pub async fn d02_dropping_a_delivery_does_not_ack_it(test: &Test) {
    let (first, second) = (test.connect().await, test.connect().await);
    let mut forgetful = first.subscribe(test.spec("group", "events")).await;
    let messages = test.messages("events", 5);
    first.send_all(&messages).await;
    drop(forgetful.take(5).await);
    let mut careful = second.subscribe(test.spec("group", "events")).await;
    drop(forgetful);
    first.close().await;
    let mut ledger = Ledger::of(&messages);
    careful.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// A second settlement is told that it is too late, whatever it says, and changes nothing.
pub async fn d03_the_first_settlement_wins_and_later_ones_are_stale(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send(test.message("events", "acked")).await;
    let acked = subscription.next().await;
    acked.ack().await;
    for late in [Ack, Return] {
        let error = acked.settle(late).await.expect_err("it was acked before");
        assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    }
    client.send(test.message("events", "returned")).await;
    let returned = subscription.next().await;
    assert_eq!(
        returned.message.payload(),
        "returned",
        "the late return brought the acked one back"
    );
    returned.give_back().await;
    let error = returned
        .settle(Ack)
        .await
        .expect_err("it was returned before");
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    let again = subscription.next().await;
    assert_eq!(again.message.payload(), "returned", "the late ack won");
    again.ack().await;
    subscription.stays_quiet().await;
}

/// A tag that was used never settles the message that came after it, even if the wire reuses its number.
pub async fn d03_a_stale_tag_settles_nothing_else(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(1))
        .await;
    let messages = test.messages("events", 10);
    client.send_all(&messages).await;
    let mut stale = Vec::new();
    for message in &messages {
        let delivery = subscription.next().await;
        assert_eq!(
            delivery.message.id(),
            message.id(),
            "a stale tag settled a message that was not handled"
        );
        for old in &stale {
            let old: &crate::Delivery = old;
            let error = old.settle(Ack).await.expect_err("it was acked before");
            assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
        }
        // Had a stale ack settled it, the return would be too late and it would not come again.
        delivery.give_back().await;
        let again = subscription.next().await;
        assert_eq!(again.message.id(), message.id());
        again.ack().await;
        stale.extend([delivery, again]);
    }
    subscription.stays_quiet().await;
}

/// One stale tag spoils its own result and no other.
pub async fn d04_a_batch_that_holds_stale_tags_settles_the_rest(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send_all(&test.messages("events", 4)).await;
    let deliveries = subscription.take(4).await;
    let [a, b, c, d] = deliveries.as_slice() else {
        panic!("four deliveries");
    };
    assert!(
        subscription
            .settle_all(&[(a, Ack), (b, Ack)])
            .await
            .is_empty()
    );
    let failed = subscription
        .settle_all(&[(a, Ack), (c, Ack), (b, Return), (d, Return)])
        .await;
    assert_eq!(failed, [(0, ErrorKind::Stale), (2, ErrorKind::Stale)]);
    let again = subscription.next().await;
    assert_eq!(number(&again.message), number(&d.message));
    again.ack().await;
    subscription.stays_quiet().await;
}

/// When the connection went down between delivery and ack, the ack does not pretend.
pub async fn d05_an_ack_on_a_lost_connection_is_an_error_and_the_message_returns(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send(test.message("events", "held")).await;
    let delivery = subscription.next().await;
    test.broker().stop().await.expect("the broker stops");
    // Until the client knows, an ack may be under way, and arrive on the next connection: that is an error, too, but what
    // it acked does not return.
    let lost = client.is_lost().await;
    let acked = delivery.settle(Ack).await;
    test.broker().start().await.expect("the broker starts");
    assert!(lost, "the loss was not told");
    assert!(acked.is_err(), "the ack was taken by nobody");
    let again = subscription.next().await;
    assert_eq!(again.message.payload(), "held");
    again.ack().await;
    subscription.stays_quiet().await;
}

/// Acks may come in any order: what was not acked comes again, what was acked does not.
///
/// A wire that commits by position may repeat an acked message that lies behind an unacked one, and no other.
pub async fn d06_out_of_order_acks_are_safe(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send_all(&test.messages("events", 5)).await;
    let mut deliveries = subscription.take(5).await;
    deliveries.sort_by_key(|delivery| number(&delivery.message));
    for at in [3, 0, 1] {
        deliveries[at].ack().await;
    }
    for at in [4, 2] {
        deliveries[at].give_back().await;
    }
    let mut again = Vec::new();
    for delivery in subscription.take(2).await {
        again.push(number(&delivery.message));
        delivery.ack().await;
    }
    again.sort_unstable();
    assert_eq!(
        again,
        [2, 4],
        "what was given back, and only that, comes again"
    );
    subscription.stays_quiet().await;
}

/// At most once: a consumer that dies with a message takes it with it, and there is nothing to settle.
pub async fn d08_at_most_once_is_settled_before_it_is_delivered(test: &Test) {
    let (first, second) = (test.connect().await, test.connect().await);
    let spec = || {
        test.spec("group", "events")
            .with_guarantee(Guarantee::AtMostOnce)
    };
    let mut subscription = first.subscribe(spec()).await;
    let fire_and_forget = |message| {
        anywire::pattern::publish_subscribe::Entry::new(message)
            .with_guarantee(Guarantee::AtMostOnce)
    };
    let sent = first
        .try_send(fire_and_forget(test.message("events", "lost")))
        .await;
    sent.expect("the message is taken");
    drop(subscription.next().await);
    let mut successor = second.subscribe(spec()).await;
    drop(subscription);
    first.close().await;
    let sent = second
        .try_send(fire_and_forget(test.message("events", "control")))
        .await;
    sent.expect("the message is taken");
    assert_eq!(successor.next().await.message.payload(), "control");
    successor.stays_quiet().await;
}

/// With a window of one, the second message waits for the ack of the first.
pub async fn d09_a_window_of_one_stops_and_waits(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(1))
        .await;
    client.send_all(&test.messages("events", 3)).await;
    let first = subscription.next().await;
    subscription.stays_quiet().await;
    first.ack().await;
    let second = subscription.next().await;
    assert_ne!(number(&second.message), number(&first.message));
    second.give_back().await;
    for _ in 0..2 {
        subscription.next().await.ack().await;
    }
    subscription.stays_quiet().await;
}

/// A consumer that vanishes with unacked messages, without a word, leaves them to the others.
pub async fn d11_what_a_crashed_consumer_held_goes_to_another(test: &Test) {
    let publisher = test.connect().await;
    let doomed = test.connect_loose().await;
    let mut held = doomed.subscribe(test.spec("group", "events")).await;
    let messages = test.messages("events", 10);
    publisher.send_all(&messages).await;
    let deliveries = held.take(10).await;
    let mut survivor = publisher.subscribe(test.spec("group", "events")).await;
    drop((deliveries, held, doomed));
    let mut ledger = Ledger::of(&messages);
    survivor.receive_all(&mut ledger).await;
    ledger.balance(0);
}
