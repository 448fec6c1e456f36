//! What operators do to a broker that runs: alarms, permissions, deleted queues and exchanges.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anywire::transport::Status;
use anywire::{ErrorKind, Router};
use anywire_conformance::rig::{SLACK, Seen, until, until_async};
use anywire_conformance::trials;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use support::{Server, app, configured, foreign, shop};
use tokio::sync::Notify;

trials![
    [support::SERVER, support::CTL] =>
    an_alarm_holds_publishes_back_until_their_deadline_and_nothing_else,
    a_subject_that_may_not_be_published_to_is_denied_and_the_others_go_on,
    a_queue_that_is_deleted_under_its_consumer_is_made_again,
    what_a_store_held_is_there_after_a_crash_in_its_handover,
    what_is_held_for_longer_than_the_broker_allows_comes_again_and_the_others_go_on,
    the_native_connection_is_there_for_what_only_rabbitmq_has,
];

async fn an_alarm_holds_publishes_back_until_their_deadline_and_nothing_else() {
    let server = Server::start("").unwrap();
    let tool = server.tool();
    let seen = Seen::default();
    let service = shop(app("shop", &server.url()), &seen).await;
    let client = service.client();
    client.emit("shop.placed", &0).await.unwrap();
    let mut status = client.transport("main").unwrap().status();
    tool.run(&["set_vm_memory_high_watermark", "absolute", "1"]);
    // The broker tells those who publish, when they do.
    let timeout = Duration::from_secs(1);
    let mut held = None;
    for number in 1..1_000 {
        match client.emit("shop.placed", &number).timeout(timeout).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Overloaded => {
                held = Some(error);
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}"),
        }
    }
    let held = held.expect("a publish is held back");
    assert!(held.to_string().contains("alarm"), "{held}");
    status
        .wait_for(|status| matches!(status, Status::Degraded(_)))
        .await
        .unwrap();
    let start = std::time::Instant::now();
    let error = client.emit("shop.placed", &0).timeout(timeout).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Overloaded);
    assert!(start.elapsed() < timeout + SLACK);
    tool.run(&["set_vm_memory_high_watermark", "absolute", "1GB"]);
    status
        .wait_for(|status| *status == Status::Connected)
        .await
        .unwrap();
    client.emit("shop.placed", &5_000).await.unwrap();
    until("what came after the alarm", || seen.has_all([5_000])).await;
    service.shutdown().await.unwrap();
}

async fn a_subject_that_may_not_be_published_to_is_denied_and_the_others_go_on() {
    let server = Server::start("").unwrap();
    let tool = server.tool();
    tool.run(&["add_user", "shop", "right"]);
    tool.run(&["set_permissions", "shop", ".*", ".*", ".*"]);
    let topics = "^shop\\.placed$|^shop\\.\\*$|^anywire\\..*";
    tool.run(&["set_topic_permissions", "shop", "anywire", topics, ".*"]);
    let seen = Seen::default();
    let url = format!("amqp://shop:right@{}", server.address());
    let router = Router::new().on_event("shop.*", seen.handler());
    let service = app("shop", &url).router(router).start().await.unwrap();
    let client = service.client();
    for number in 0..50 {
        let (denied, allowed) =
            tokio::join!(async { client.emit("shop.secret", &0).await }, async {
                client.emit("shop.placed", &number).await
            },);
        let denied = denied.unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Denied, "{denied:?}");
        assert!(!format!("{denied:?}").contains("right"), "{denied:?}");
        allowed.unwrap();
    }
    until("what is allowed", || seen.has_all(0..50)).await;
    assert!(service.health().is_ok());
    service.shutdown().await.unwrap();
}

async fn a_queue_that_is_deleted_under_its_consumer_is_made_again() {
    let server = Server::start("").unwrap();
    let seen = Seen::default();
    let service = shop(app("shop", &server.url()), &seen).await;
    let client = service.client();
    client.emit("shop.placed", &1).await.unwrap();
    until("the first", || seen.has_all([1])).await;
    let native = foreign(&server.url()).await;
    let channel = native.create_channel().await.unwrap();
    let queue = "anywire/shop/shop.placed";
    channel
        .queue_delete(queue.into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    until_async("the queue", async || {
        client.emit("shop.placed", &2).await.is_ok()
    })
    .await;
    until("the second", || seen.has_all([2])).await;
    assert!(service.health().is_ok());
    service.shutdown().await.unwrap();
}

/// As a group leaves it that died between making its queue and emptying the store.
async fn what_a_store_held_is_there_after_a_crash_in_its_handover() {
    let server = Server::start("").unwrap();
    let seen = Seen::default();
    let service = shop(app("shop", &server.url()), &seen).await;
    service.shutdown().await.unwrap();
    let declared = "[[subjects]]\nmatch = 'shop.placed'\ndeclare = true";
    let config = format!("url = {:?}\n{declared}", server.url());
    let till = configured("till", &config).start().await.unwrap();
    let native = foreign(&server.url()).await;
    let channel = native.create_channel().await.unwrap();
    let unbound = channel.queue_unbind(
        "anywire/shop/shop.placed".into(),
        "anywire".into(),
        "shop.placed".into(),
        FieldTable::default(),
    );
    unbound.await.unwrap();
    let claim = "anywire~claim/anywire/shop/shop.placed";
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let mut classic = FieldTable::default();
    classic.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("classic".into()),
    );
    let claimed = channel.queue_declare(claim.into(), durable, classic);
    claimed.await.unwrap();
    for number in 0..300 {
        till.client().emit("shop.placed", &number).await.unwrap();
    }
    till.shutdown().await.unwrap();

    let service = shop(app("shop", &server.url()), &seen).await;
    until("what the store held", || seen.has_all(0..300)).await;
    for gone in [claim, "anywire~store/shop.placed"] {
        let channel = native.create_channel().await.unwrap();
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let found = channel.queue_declare(gone.into(), passive, FieldTable::default());
        assert!(found.await.is_err(), "{gone} is left");
    }
    service.shutdown().await.unwrap();
}

async fn what_is_held_for_longer_than_the_broker_allows_comes_again_and_the_others_go_on() {
    let server = Server::start("consumer_timeout = 2000").unwrap();
    // How often it looks; else once a minute.
    let look_often = "application:set_env(rabbit, channel_tick_interval, 1000).";
    server.tool().run(&["eval", look_often]);
    let broker = server.behind_a_proxy().await;
    let (seen, others, gate) = (Seen::default(), Seen::default(), Arc::new(Notify::new()));
    let (handler, opened) = (seen.handler(), Arc::clone(&gate));
    let is_first = AtomicBool::new(true);
    let slow_once = move |number: u64| {
        let waits = number == 0 && is_first.swap(false, Ordering::Relaxed);
        let (handled, opened) = (handler(number), Arc::clone(&opened));
        async move {
            if waits {
                opened.notified().await;
            }
            handled.await
        }
    };
    let router = Router::new()
        .on_event("shop.placed", slow_once)
        .on_event("shop.other", others.handler());
    let url = format!("amqp://{}", broker.proxy.address());
    let service = app("shop", &url).router(router).start().await.unwrap();
    let client = service.client();
    client.emit("shop.placed", &0).await.unwrap();
    let connections = broker.proxy.counters().accepted;
    let mut sent = 0;
    // It is there again, and the others went on all the while.
    until_async("the second delivery", async || {
        client.emit("shop.other", &sent).await.unwrap();
        client.emit("shop.placed", &(sent + 1)).await.unwrap();
        sent += 1;
        seen.times(0) == 2
    })
    .await;
    until("the others", || others.has_all(0..sent)).await;
    until("those behind it", || seen.has_all(0..=sent)).await;
    // A delivery may be on its way behind the news that its channel is closed. The library takes that for the end of the
    // connection, which is made again then.
    match broker.proxy.counters().accepted - connections {
        0 => assert_eq!(others.count() as u64, sent, "the others came again"),
        lost => assert_eq!(lost, 1, "the connection was lost more than once"),
    }
    // What the first delivery is settled with is nobody's any more.
    gate.notify_one();
    client.emit("shop.placed", &1_000_000).await.unwrap();
    until("what comes later", || seen.has_all([1_000_000])).await;
    assert!(service.health().is_ok());
    service.shutdown().await.unwrap();
}

async fn the_native_connection_is_there_for_what_only_rabbitmq_has() {
    let server = Server::start("").unwrap();
    let seen = Seen::default();
    let service = shop(
        configured("shop", &format!("url = {:?}", server.url())),
        &seen,
    )
    .await;
    let native = anywire_rabbitmq::native(&service.client()).unwrap();
    let channel = native.create_channel().await.unwrap();
    channel.close(200, "OK".into()).await.unwrap();
    assert!(anywire_rabbitmq::native_of(&service.client(), "other").is_none());
    service.shutdown().await.unwrap();
}
