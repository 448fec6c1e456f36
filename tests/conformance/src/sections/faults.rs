//! M: the broker breaks and comes back. These run alone.

use std::time::{Duration, Instant};

use anywire::pattern::publish_subscribe::{Entry, Published, Settlement};
use anywire::transport::Status;
use anywire::{ErrorKind, Route, Router};

use crate::behaviour::behaviours;
use crate::{Connection, Ledger, Test};

behaviours! {
    m01_restarts_under_load_lose_nothing: [Broker, Durable],
    m02_a_broker_that_was_away_is_found_again: [Broker, Durable],
    m03_a_cut_network_heals_without_loss: [Broker, Durable],
    m05_a_frozen_broker_thaws_without_loss: [AtLeastOnce, Broker],
    m06_killed_connections_come_back_by_themselves: [Broker, Durable],
    m08_what_vanished_with_the_broker_is_made_again: [Broker, Calls],
    m09_an_app_that_starts_without_a_broker_waits_for_it: [Broker],
    m15_quick_flaps_leave_nothing_behind: [Broker],
    m16_an_ack_of_the_old_connection_is_stale: [Broker, Durable],
    m17_the_state_of_the_connection_is_told: [Broker],
}

/// Two restarts, at a third and at a half of the traffic; the second one without warning.
pub async fn m01_restarts_under_load_lose_nothing(test: &Test) {
    let (publisher, consumer) = (test.connect().await, test.connect().await);
    let mut subscription = consumer
        .subscribe(test.spec("group", "events").with_window(100))
        .await;
    let messages = test.messages("events", test.profile().pick(600, 2_000, 10_000));
    let (third, half) = (messages.len() / 3, messages.len() / 2);
    let mut ledger = Ledger::new();
    publish_unaided(test, &publisher, &messages[..third], &mut ledger).await;
    test.broker().stop().await.expect("the broker stops");
    test.broker().start().await.expect("the broker starts");
    publish_unaided(test, &publisher, &messages[third..half], &mut ledger).await;
    test.broker().kill().await.expect("the broker is killed");
    test.broker().start().await.expect("the broker starts");
    publish_unaided(test, &publisher, &messages[half..], &mut ledger).await;
    receive_unaided(&mut subscription, &mut ledger).await;
    ledger.balance(2 * 100 + ledger.repeated());
}

/// Away for a while, with a message tried every tenth of a second; afterwards all goes on by itself.
pub async fn m02_a_broker_that_was_away_is_found_again(test: &Test) {
    let (publisher, consumer) = (test.connect().await, test.connect().await);
    let mut subscription = consumer.subscribe(test.spec("group", "events")).await;
    let mut ledger = Ledger::new();
    publish_unaided(test, &publisher, &test.messages("events", 10), &mut ledger).await;
    test.broker().stop().await.expect("the broker stops");
    let away = Instant::now() + Duration::from_secs(test.profile().pick(2, 30, 30));
    while Instant::now() < away {
        let entries: Vec<_> = test
            .messages("events", 1)
            .into_iter()
            .map(Entry::new)
            .collect();
        let outcomes = publisher
            .try_publish(entries.clone(), Duration::from_millis(100))
            .await;
        assert!(
            !matches!(outcomes.as_slice(), [Published::Accepted(_)]),
            "accepted by nobody"
        );
        ledger.enter(&entries, &outcomes);
    }
    test.broker().start().await.expect("the broker starts");
    publish_unaided(test, &publisher, &test.messages("events", 10), &mut ledger).await;
    receive_unaided(&mut subscription, &mut ledger).await;
    ledger.balance(256);
}

/// Packets vanish for a few seconds, in both directions, without a word.
pub async fn m03_a_cut_network_heals_without_loss(test: &Test) {
    let (publisher, consumer) = (test.connect().await, test.connect().await);
    let mut subscription = consumer
        .subscribe(test.spec("group", "events").with_window(100))
        .await;
    let messages = test.messages("events", 60);
    let mut ledger = Ledger::new();
    publish_unaided(test, &publisher, &messages[..20], &mut ledger).await;
    test.broker().cut().await.expect("the network is cut");
    let entries: Vec<_> = messages[20..40].iter().cloned().map(Entry::new).collect();
    let outcomes = publisher
        .try_publish(entries.clone(), Duration::from_secs(2))
        .await;
    let accepted = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Published::Accepted(_)))
        .count();
    test.broker().heal().await.expect("the network is healed");
    assert_eq!(accepted, 0, "accepted by nobody");
    ledger.enter(&entries, &outcomes);
    publish_unaided(test, &publisher, &messages[40..], &mut ledger).await;
    receive_unaided(&mut subscription, &mut ledger).await;
    ledger.balance(100 + ledger.repeated());
}

/// The broker stands still: publishes end as unknown, at their deadlines, and afterwards everything goes on.
pub async fn m05_a_frozen_broker_thaws_without_loss(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let mut ledger = Ledger::new();
    publish_unaided(test, &client, &test.messages("events", 10), &mut ledger).await;
    test.broker().freeze().await.expect("the broker freezes");
    let entries: Vec<_> = test
        .messages("events", 10)
        .into_iter()
        .map(Entry::new)
        .collect();
    let start = Instant::now();
    let outcomes = client
        .try_publish(entries.clone(), Duration::from_secs(1))
        .await;
    let took = start.elapsed();
    test.broker().thaw().await.expect("the broker thaws");
    for outcome in &outcomes {
        assert!(
            matches!(outcome, Published::Unknown(_)),
            "unknown, not {outcome:?}"
        );
    }
    assert!(took < Duration::from_millis(1_500), "it took {took:?}");
    ledger.enter(&entries, &outcomes);
    publish_unaided(test, &client, &test.messages("events", 10), &mut ledger).await;
    receive_unaided(&mut subscription, &mut ledger).await;
    ledger.balance(256);
}

/// An administrator ends the connections; nobody calls anything to get them back.
pub async fn m06_killed_connections_come_back_by_themselves(test: &Test) {
    let (publisher, consumer) = (test.connect().await, test.connect().await);
    let mut subscription = consumer
        .subscribe(test.spec("group", "events").with_window(50))
        .await;
    let mut ledger = Ledger::new();
    for _ in 0..3 {
        publish_unaided(test, &publisher, &test.messages("events", 30), &mut ledger).await;
        test.broker()
            .kill_connections()
            .await
            .expect("the connections are killed");
    }
    publish_unaided(test, &publisher, &test.messages("events", 30), &mut ledger).await;
    receive_unaided(&mut subscription, &mut ledger).await;
    ledger.balance(3 * 50 + ledger.repeated());
}

/// Subscriptions that leave nothing behind, and served patterns, are opened again by the adapter.
pub async fn m08_what_vanished_with_the_broker_is_made_again(test: &Test) {
    let client = test.connect().await;
    let mut private = client.subscribe(test.broadcast("events")).await;
    let _stored = client.subscribe(test.spec("group", "events")).await;
    let mut calls = client.serve("ask").await;
    test.broker().kill().await.expect("the broker is killed");
    test.broker().start().await.expect("the broker starts");
    let mut status = client.transport().status();
    let back = tokio::time::timeout(test.recovery(), status.wait_for(Status::is_connected));
    assert!(
        back.await.is_ok_and(|told| told.is_ok()),
        "the connection did not come back"
    );
    let end = Instant::now() + test.recovery();
    while private
        .next_within(Duration::from_millis(200))
        .await
        .is_none()
    {
        assert!(
            Instant::now() < end,
            "the private subscription did not come back"
        );
        let _ = client
            .try_send(Entry::new(test.message("events", "news")))
            .await;
    }
    let question = test.message("ask", "still there?");
    let asked = client.request(question, test.recovery());
    let answering = async {
        let call = calls.next().await.expect("the call arrives");
        calls
            .answer(&call, "yes")
            .await
            .expect("the answer is taken");
    };
    let (answer, ()) = futures::future::join(asked, answering).await;
    assert_eq!(answer.expect("an answer").payload(), "yes");
}

/// With `connect_timeout` unset it waits for as long as it takes, and then works.
pub async fn m09_an_app_that_starts_without_a_broker_waits_for_it(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let handler = move |number: u32| {
        let tell = tell.clone();
        async move { tell.tell(number).await }
    };
    let route = Route::event(test.pattern("events"), handler).name("handler");
    test.broker().stop().await.expect("the broker stops");
    let app = test.app("app").router(Router::new().route(route));
    let mut starting = tokio::spawn(app.start());
    let early = tokio::time::timeout(Duration::from_secs(1), &mut starting).await;
    test.broker().start().await.expect("the broker starts");
    assert!(early.is_err(), "it did not wait: {early:?}");
    let app = tokio::time::timeout(test.recovery(), starting)
        .await
        .expect("it finds the broker");
    let app = app.expect("no panic").expect("the app starts");
    app.client()
        .emit(test.subject("events"), &7)
        .await
        .expect("accepted");
    assert_eq!(seen.next().await, 7);
    app.shutdown().await.expect("it stops");
}

/// Connect, work a moment, be killed, many times. (The runner counts tasks, sockets and threads.)
pub async fn m15_quick_flaps_leave_nothing_behind(test: &Test) {
    for _ in 0..test.profile().pick(10, 50, 50) {
        let client = test.connect_loose().await;
        let _subscription = client.try_subscribe(test.spec("group", "events")).await;
        test.broker()
            .kill_connections()
            .await
            .expect("the connections are killed");
        let _ = client.transport().close(Duration::from_secs(1)).await;
    }
}

/// The tag of a delivery dies with its connection: it settles neither that message nor another.
pub async fn m16_an_ack_of_the_old_connection_is_stale(test: &Test) {
    let (client, bystander) = (test.connect().await, test.connect().await);
    let mut subscription = client
        .subscribe(test.spec("group", "events").with_window(1))
        .await;
    // Of one key: else a wire may have no order of them.
    let messages = test.messages("events", 2).into_iter();
    let messages: Vec<_> = messages.map(|message| message.with_key("one")).collect();
    client.send_all(&messages).await;
    let old = subscription.next().await;
    let mut status = client.transport().status();
    test.broker()
        .kill_connections()
        .await
        .expect("the connections are killed");
    let again = subscription.next().await;
    assert_eq!(
        again.message.id(),
        old.message.id(),
        "what was not acked comes again"
    );
    let back = status.wait_for(Status::is_connected).await;
    back.expect("the connection comes back");
    let error = old
        .settle(Settlement::Ack)
        .await
        .expect_err("its connection is gone");
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    again.give_back().await;
    let third = subscription.next().await;
    assert_eq!(
        third.message.id(),
        old.message.id(),
        "the stale ack settled another delivery"
    );
    third.ack().await;
    subscription.next().await.ack().await;
    drop(bystander);
}

/// Connected, reconnecting, connected, and closed in the end.
pub async fn m17_the_state_of_the_connection_is_told(test: &Test) {
    let client = test.connect().await;
    let mut status = client.transport().status();
    assert!(status.borrow_and_update().is_connected());
    test.broker().stop().await.expect("the broker stops");
    let lost = client.is_lost().await;
    test.broker().start().await.expect("the broker starts");
    assert!(lost, "the loss was not told");
    let back = tokio::time::timeout(test.recovery(), status.wait_for(Status::is_connected));
    assert!(
        back.await.is_ok_and(|told| told.is_ok()),
        "the return was not told"
    );
    client.close().await;
    assert_eq!(*status.borrow(), Status::Closed);
}

/// Publishes as core does: what failed or is unknown is tried again, with the same id, until it is accepted.
async fn publish_unaided(
    test: &Test,
    client: &Connection,
    messages: &[anywire::Message],
    ledger: &mut Ledger,
) {
    let end = Instant::now() + test.recovery();
    let mut left: Vec<_> = messages.iter().cloned().map(Entry::new).collect();
    while !left.is_empty() {
        assert!(
            Instant::now() < end,
            "publishing did not recover in {:?}",
            test.recovery()
        );
        let outcomes = client
            .try_publish(left.clone(), Duration::from_secs(2))
            .await;
        ledger.enter(&left, &outcomes);
        let mut outcomes = outcomes.iter();
        left.retain(|_| !matches!(outcomes.next(), Some(Published::Accepted(_))));
        if !left.is_empty() {
            let back_off = test.clock().now() + Duration::from_millis(100);
            test.clock().sleep_until(back_off).await;
        }
    }
}

/// Receives and acks until nothing is missing; an ack that came too late brings its message again.
async fn receive_unaided(subscription: &mut crate::Subscription, ledger: &mut Ledger) {
    while ledger.missing() > 0 {
        let delivery = subscription.next().await;
        ledger.receive(&delivery.message);
        let _ = delivery.settle(Settlement::Ack).await;
    }
}
