//! G: groups, and where they begin and go on.

use std::time::Duration;

use anywire::Start;
use futures::future::join_all;
use rand::RngExt;

use crate::behaviour::behaviours;
use crate::{Ledger, Test};

behaviours! {
    g01_a_new_group_begins_where_it_is_told: [Replay],
    g02_a_group_goes_on_where_it_stopped: [Durable, Groups],
    g03_an_absent_group_keeps_its_place: [Durable, Groups],
    g04_a_member_that_joins_in_traffic_takes_its_share: [Groups],
    g05_a_member_that_leaves_in_traffic_loses_nothing: [AtLeastOnce, Groups],
    g05_a_member_that_crashes_in_traffic_loses_nothing: [AtLeastOnce, Groups],
    g07_broadcast_subscriptions_each_get_everything: [],
    g08_members_that_come_and_go_at_once_lose_nothing: [Groups],
    g09_what_the_wire_holds_for_a_group_is_listed: [Groups],
}

/// From the earliest that is held, or from now on.
pub async fn g01_a_new_group_begins_where_it_is_told(test: &Test) {
    let client = test.connect().await;
    let _creates_the_store = client.subscribe(test.spec("first", "events")).await;
    let past = test.messages("events", 10);
    client.send_all(&past).await;
    let latest = test.spec("latest", "events").with_start(Start::Latest);
    let mut latest = client.subscribe(latest).await;
    let earliest = test.spec("earliest", "events").with_start(Start::Earliest);
    let mut earliest = client.subscribe(earliest).await;
    let news = test.messages("events", 10);
    client.send_all(&news).await;
    let mut only_news = Ledger::of(&news);
    latest.receive_all(&mut only_news).await;
    only_news.balance(0);
    let mut all = Ledger::of(past.iter().chain(&news));
    earliest.receive_all(&mut all).await;
    all.balance(0);
}

/// Consumed in many sessions, each opened and closed.
pub async fn g02_a_group_goes_on_where_it_stopped(test: &Test) {
    let publisher = test.connect().await;
    publisher
        .subscribe(test.spec("group", "events"))
        .await
        .stop()
        .await;
    let messages = test.messages("events", test.profile().pick(100, 1_000, 5_000));
    publisher.send_all(&messages).await;
    let mut ledger = Ledger::of(&messages);
    for _ in 0..5 {
        let client = test.connect().await;
        let mut subscription = client
            .subscribe(test.spec("group", "events").with_window(10))
            .await;
        for _ in 0..messages.len() / 5 {
            subscription.receive_one(&mut ledger).await;
        }
        client.close().await;
    }
    ledger.balance(0);
}

/// What is published while no member is there waits for the next; what was acked does not come again.
pub async fn g03_an_absent_group_keeps_its_place(test: &Test) {
    let (publisher, first) = (test.connect().await, test.connect().await);
    let mut subscription = first.subscribe(test.spec("group", "events")).await;
    let before = test.messages("events", 10);
    publisher.send_all(&before).await;
    let mut ledger = Ledger::of(&before);
    subscription.receive_all(&mut ledger).await;
    first.close().await;
    let meanwhile = test.messages("events", 10);
    publisher.send_all(&meanwhile).await;
    let mut successor = test
        .connect()
        .await
        .subscribe(test.spec("group", "events"))
        .await;
    let mut ledger = Ledger::of(&meanwhile);
    successor.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// Both members are busy in the end, and nothing is lost or handled twice beyond what was in flight.
pub async fn g04_a_member_that_joins_in_traffic_takes_its_share(test: &Test) {
    const WINDOW: usize = 4;
    let publisher = test.connect().await;
    let mut ledger = Ledger::new();
    let mut first = publisher
        .subscribe(test.spec("group", "events").with_window(WINDOW))
        .await;
    for message in test.messages("events", 20) {
        ledger.confirm([&message]);
        publisher.send(message).await;
        first.receive_one(&mut ledger).await;
    }
    let client = test.connect().await;
    let mut second = client
        .subscribe(test.spec("group", "events").with_window(WINDOW))
        .await;
    let mut shares = [0, 0];
    while shares.contains(&0) || ledger.missing() > 0 {
        // Traffic until both have had some; a wire that shares by partition may have brought one of them more than the other.
        if shares.contains(&0) {
            let messages = test.messages("events", 2 * WINDOW);
            ledger.confirm(&messages);
            publisher.send_all(&messages).await;
        }
        // What is held fills a member's window and leaves the rest to the other.
        let mut held = Vec::new();
        for (subscription, share) in [&mut first, &mut second].into_iter().zip(&mut shares) {
            while let Some(delivery) = subscription.next_within(Duration::from_millis(50)).await {
                ledger.receive(&delivery.message);
                held.push(delivery);
                *share += 1;
            }
        }
        for delivery in held {
            delivery.ack().await;
        }
    }
    ledger.balance(WINDOW);
}

/// A member that closes in an orderly way hands its unfinished messages over.
pub async fn g05_a_member_that_leaves_in_traffic_loses_nothing(test: &Test) {
    let leaving = test.connect().await;
    let mut subscription = leaving
        .subscribe(test.spec("group", "events").with_window(8))
        .await;
    let (messages, mut survivor, mut ledger) = traffic(test).await;
    subscription.receive_one(&mut ledger).await;
    let unfinished = subscription.take(3).await;
    subscription.stop().await;
    leaving.close().await;
    survivor.receive_all(&mut ledger).await;
    drop(unfinished);
    assert_eq!(ledger.arrived(), messages);
    ledger.balance(0);
}

/// A member that vanishes does, too.
pub async fn g05_a_member_that_crashes_in_traffic_loses_nothing(test: &Test) {
    let doomed = test.connect_loose().await;
    let mut subscription = doomed
        .subscribe(test.spec("group", "events").with_window(8))
        .await;
    let (messages, mut survivor, mut ledger) = traffic(test).await;
    subscription.receive_one(&mut ledger).await;
    let unfinished = subscription.take(3).await;
    drop((unfinished, subscription, doomed));
    survivor.receive_all(&mut ledger).await;
    assert_eq!(ledger.arrived(), messages);
    ledger.balance(0);
}

/// Without a group everybody gets everything, from now on, and nothing is kept for those who left.
pub async fn g07_broadcast_subscriptions_each_get_everything(test: &Test) {
    let (one, two) = (test.connect().await, test.connect().await);
    let mut here = one.subscribe(test.broadcast("events")).await;
    let mut there = two.subscribe(test.broadcast("events")).await;
    let messages = test.messages("events", 20);
    one.send_all(&messages).await;
    for subscription in [&mut here, &mut there] {
        let mut ledger = Ledger::of(&messages);
        subscription.receive_all(&mut ledger).await;
        ledger.balance(0);
    }
    there.stop().await;
    one.send(test.message("events", "while away")).await;
    here.next().await.ack().await;
    let mut back = two.subscribe(test.broadcast("events")).await;
    one.send(test.message("events", "control")).await;
    let delivery = back.next().await;
    assert_eq!(delivery.message.payload(), "control");
    delivery.ack().await;
    back.stays_quiet().await;
}

/// Ten members subscribe and close at the same time, some holding messages; then one consumes all.
pub async fn g08_members_that_come_and_go_at_once_lose_nothing(test: &Test) {
    let publisher = test.connect().await;
    let mut keeper = publisher
        .subscribe(test.spec("group", "events").with_window(1))
        .await;
    let messages = test.messages("events", 50);
    publisher.send_all(&messages).await;
    let mut rng = test.rng();
    let patience: Vec<u64> = (0..10).map(|_| rng.random_range(0..20)).collect();
    let members = patience.into_iter().map(async |millis| {
        let client = test.connect().await;
        let mut subscription = client
            .subscribe(test.spec("group", "events").with_window(5))
            .await;
        // Whatever arrives in a moment is held and never settled.
        let held = subscription
            .next_within(Duration::from_millis(millis))
            .await;
        client.close().await;
        drop(held);
    });
    join_all(members).await;
    let mut ledger = Ledger::of(&messages);
    keeper.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// A subscription is listed with its backlog, where the wire can tell.
pub async fn g09_what_the_wire_holds_for_a_group_is_listed(test: &Test) {
    let client = test.connect().await;
    let spec = test.spec("group", "events.*");
    let _subscription = client.subscribe(spec.clone()).await;
    client.send_all(&test.messages("events.x", 3)).await;
    let subscriber = client.transport().subscriber();
    let stored = subscriber
        .stored(&test.group("group"))
        .await
        .expect("the wire answers");
    for found in &stored {
        assert_eq!(found.subscription, spec.subscription);
        assert!(
            found.backlog.is_none_or(|backlog| backlog == 3),
            "{found:?}"
        );
    }
    let others = subscriber
        .stored(&test.group("nobody"))
        .await
        .expect("the wire answers");
    assert_eq!(others, []);
}

/// Twenty messages and a second member of the group.
async fn traffic(test: &Test) -> (usize, crate::Subscription, Ledger) {
    let client = test.connect().await;
    let messages = test.messages("events", 20);
    client.send_all(&messages).await;
    let survivor = client
        .subscribe(test.spec("group", "events").with_window(1))
        .await;
    (messages.len(), survivor, Ledger::of(&messages))
}
