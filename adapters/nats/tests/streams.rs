//! Streams and consumers that others make, fill and delete.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use anywire::{Client, ErrorKind, Result, Router};
use anywire_conformance::rig::{Seen, soon, until, until_async};
use anywire_conformance::trials;
use async_nats::jetstream::{self, stream};
use futures::TryStreamExt;
use support::{Server, app, configured, foreign, shop};

trials![
    [support::SERVER] =>
    a_stream_that_is_deleted_is_made_again_and_its_consumer_goes_on,
    a_consumer_that_is_deleted_is_made_again_and_misses_nothing,
    a_full_stream_refuses_by_its_name_and_takes_more_when_there_is_room,
    a_stream_of_ours_that_is_full_refuses_too,
    a_stream_that_captures_a_calls_subject_stops_the_start,
    the_confirmation_of_a_stream_is_never_taken_for_a_reply,
    services_with_overlapping_patterns_start_in_either_order,
    services_with_overlapping_patterns_may_start_at_once,
    renaming_a_capture_keeps_the_consumer_and_its_messages,
];

fn server() -> Server {
    Server::start("").unwrap()
}

/// Emits until it is taken: what nobody stores at the moment is refused.
async fn emit(client: &Client, subject: &str, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        until_async("an emit that is taken", async || {
            let emitted = client.emit(subject, &number).await;
            emitted
                .inspect_err(|error| assert!(error.is_retryable(), "{error:?}"))
                .is_ok()
        })
        .await;
    }
}

async fn consumers(streams: &jetstream::Context, stream: &str) -> Vec<String> {
    let stream = streams.get_stream(stream).await.unwrap();
    stream.consumer_names().try_collect().await.unwrap()
}

async fn a_stream_that_is_deleted_is_made_again_and_its_consumer_goes_on() {
    let server = server();
    let seen = Seen::default();
    let app = shop(app("shop", &server.url()), &seen).await;
    emit(&app.client(), "shop.placed", 0..10).await;
    until("work", || seen.has_all(0..10)).await;
    foreign(&server.url())
        .await
        .delete_stream("anywire-shop")
        .await
        .unwrap();
    emit(&app.client(), "shop.placed", 10..20).await;
    until("work again", || seen.has_all(10..20)).await;
    assert!(app.health().is_ok());
    app.shutdown().await.unwrap();
}

async fn a_consumer_that_is_deleted_is_made_again_and_misses_nothing() {
    let server = server();
    let seen = Seen::default();
    let app = shop(app("shop", &server.url()), &seen).await;
    let streams = foreign(&server.url()).await;
    for stream in ["anywire-shop", "anywire_retry"] {
        let before = seen.distinct().len() as u64;
        let names = consumers(&streams, stream).await;
        let [name] = &names[..] else {
            panic!("{names:?}")
        };
        streams
            .get_stream(stream)
            .await
            .unwrap()
            .delete_consumer(name)
            .await
            .unwrap();
        emit(&app.client(), "shop.placed", before..before + 10).await;
        until("work again", || seen.has_all(before..before + 10)).await;
        until_async("the consumer", async || {
            consumers(&streams, stream).await == names
        })
        .await;
    }
    app.shutdown().await.unwrap();
}

async fn a_full_stream_refuses_by_its_name_and_takes_more_when_there_is_room() {
    let server = server();
    let streams = foreign(&server.url()).await;
    let config = stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["shop.>".to_owned()],
        max_messages: 10,
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    };
    let stream = streams.create_stream(config).await.unwrap();
    let seen = Seen::default();
    let app = shop(app("shop", &server.url()), &seen).await;
    let client = app.client();
    emit(&client, "shop.placed", 0..10).await;
    let refused = client
        .emit("shop.placed", &10)
        .timeout(Duration::from_secs(1))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
    assert_eq!(refused.context("stream"), Some("ORDERS"), "{refused:?}");
    assert!(refused.to_string().contains("full"), "{refused}");
    stream.purge().await.unwrap();
    emit(&client, "shop.placed", 10..20).await;
    until("everything", || seen.has_all(0..20)).await;
    app.shutdown().await.unwrap();
}

async fn a_stream_of_ours_that_is_full_refuses_too() {
    let server = server();
    let config = format!(
        "url = '{}'\n[transports.main.nats]\nmax_bytes = 4096",
        server.url()
    );
    let router = Router::new().on_event("shop.placed", Seen::default().handler());
    let app = configured("shop", &config)
        .router(router)
        .start()
        .await
        .unwrap();
    let client = app.client();
    let refused = soon("a full stream", async {
        loop {
            let emit = client.emit("shop.placed", &vec![7; 100]);
            if let Err(error) = emit.timeout(Duration::from_secs(1)).await {
                break error;
            }
        }
    })
    .await;
    assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
    app.shutdown().await.unwrap();
}

async fn quote(item: u64) -> Result<u64> {
    Ok(item * 3)
}

fn captor(name: &str) -> stream::Config {
    stream::Config {
        name: name.to_owned(),
        subjects: vec!["shop.>".to_owned()],
        ..stream::Config::default()
    }
}

async fn a_stream_that_captures_a_calls_subject_stops_the_start() {
    let server = server();
    let streams = foreign(&server.url()).await;
    streams.create_stream(captor("EVERYTHING")).await.unwrap();
    let router = Router::new().on_call("shop.quote", quote);
    let refused = app("shop", &server.url())
        .router(router)
        .start()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config, "{refused}");
    let text = refused.to_string();
    assert!(
        text.contains("\"EVERYTHING\"") && text.contains("\"shop.quote\""),
        "{text}"
    );
}

async fn the_confirmation_of_a_stream_is_never_taken_for_a_reply() {
    let server = server();
    let router = Router::new().on_call("shop.quote", quote);
    let app = app("shop", &server.url())
        .router(router)
        .start()
        .await
        .unwrap();
    let streams = foreign(&server.url()).await;
    streams.create_stream(captor("LATER")).await.unwrap();
    for item in 0..50 {
        let answer: u64 = app.client().request("shop.quote", &item).await.unwrap();
        assert_eq!(answer, item * 3);
    }
    // Where nobody answers but the stream, nobody answers.
    let call = app.client();
    let call = call.request::<_, serde_json::Value>("shop.nobody", &1);
    let unanswered = call.timeout(Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(unanswered.kind(), ErrorKind::Timeout, "{unanswered}");
    app.shutdown().await.unwrap();
}

/// Two services whose patterns meet, started in this order while events flow, miss nothing of theirs.
async fn both_get_theirs(order: [&'static str; 2]) {
    let server = server();
    let mut running = Vec::new();
    let mut flowing = Vec::new();
    for (n, pattern) in order.into_iter().enumerate() {
        let seen = Seen::default();
        let router = Router::new().on_event(pattern, seen.handler());
        let service = app(&format!("service-{n}"), &server.url()).router(router);
        // What is on its way while the stream is widened must arrive, too.
        running.push((service.start().await.unwrap(), seen));
        let client = running[0].0.client();
        flowing.push(tokio::spawn(async move {
            let subjects = ["shop.eu.placed", "shop.eu.placed", "shop.eu.placed"];
            for (subject, number) in subjects.iter().cycle().zip(n as u64 * 100..) {
                if number == (n as u64 + 1) * 100 {
                    break;
                }
                client.emit(*subject, &number).await.unwrap();
            }
        }));
    }
    for flow in flowing {
        flow.await.unwrap();
    }
    for (service, seen) in running {
        until("every event", || seen.has_all(0..200)).await;
        assert_eq!(seen.count(), 200, "some came twice");
        service.shutdown().await.unwrap();
    }
}

async fn services_with_overlapping_patterns_start_in_either_order() {
    let pairs = [
        ["shop.*.placed", "shop.eu.*"],
        ["shop.eu.placed", "shop.>"],
        ["shop.*.placed", "shop.*.placed"],
    ];
    for [one, other] in pairs {
        both_get_theirs([one, other]).await;
        both_get_theirs([other, one]).await;
    }
}

async fn services_with_overlapping_patterns_may_start_at_once() {
    let server = server();
    let patterns = [
        "shop.*.placed",
        "shop.eu.*",
        "shop.>",
        "shop.us.placed",
        "shop.*.*",
    ];
    let seen = patterns.map(|_| Seen::default());
    let starting = patterns.iter().zip(&seen).map(|(pattern, seen)| {
        let router = Router::new().on_event(*pattern, seen.handler());
        app(&format!("service-{pattern}"), &server.url())
            .router(router)
            .start()
    });
    let services = futures::future::try_join_all(starting).await.unwrap();
    emit(&services[0].client(), "shop.eu.placed", 0..50).await;
    emit(&services[0].client(), "shop.us.placed", 50..100).await;
    until("every event", || {
        seen[0].has_all(0..100)
            && seen[1].has_all(0..50)
            && seen[2].has_all(0..100)
            && seen[3].has_all(50..100)
            && seen[4].has_all(0..100)
    })
    .await;
    for service in services {
        service.shutdown().await.unwrap();
    }
}

async fn renaming_a_capture_keeps_the_consumer_and_its_messages() {
    let server = server();
    let streams = foreign(&server.url()).await;
    let seen = Seen::default();
    let mut names = Vec::new();
    for (n, pattern) in (0..).zip([
        "shop.{region}.placed",
        "shop.{country}.placed",
        "shop.*.placed",
    ]) {
        let router = Router::new().on_event(pattern, seen.handler());
        let service = app("shop", &server.url())
            .router(router)
            .start()
            .await
            .unwrap();
        until("what came in between", || seen.has_all(0..n * 10)).await;
        names.push(consumers(&streams, "anywire-shop").await);
        service.shutdown().await.unwrap();
        let client = Client::connect(app("till", &server.url())).await.unwrap();
        emit(&client, "shop.eu.placed", n * 10..n * 10 + 10).await;
        client.close().await.unwrap();
    }
    assert_eq!(names[0].len(), 1);
    assert!(names.iter().all(|other| *other == names[0]), "{names:?}");
    assert_eq!(seen.count(), 20, "some came twice");
}
