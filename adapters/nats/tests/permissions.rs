//! What a user may not do is refused to him at once, and the rest goes on.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use anywire::{ErrorKind, Ignore, Result, Router};
use anywire_conformance::rig::{Seen, until};
use anywire_conformance::trials;
use support::{Server, app};

trials![
    [support::SERVER] =>
    a_subject_that_may_not_be_published_to_is_denied_and_the_others_go_on,
    what_may_not_be_served_or_provisioned_stops_the_start_by_its_name,
    an_event_that_may_be_lost_and_may_not_be_sent_harms_nobody,
];

/// A server for the user `shop`, with these permissions, and its URL.
fn server(permissions: &str) -> (Server, String) {
    let users = format!(
        "authorization {{ users: [ {{ user: shop, password: right, permissions: {{ {permissions} }} }} ] }}"
    );
    let server = Server::start(&users).unwrap();
    let url = format!("nats://shop:right@{}", server.address());
    (server, url)
}

async fn double(number: u64) -> Result<u64> {
    Ok(number * 2)
}

async fn a_subject_that_may_not_be_published_to_is_denied_and_the_others_go_on() {
    let (_server, url) = server("publish: { deny: [\"shop.secret\", \"math.secret\"] }");
    let seen = Seen::default();
    let router = Router::new()
        .on_event("shop.*", seen.handler())
        .on_call("math.*", double);
    let app = app("shop", &url).router(router).start().await.unwrap();
    let client = app.client();
    for round in 0..50 {
        let (denied, allowed, unanswered, answered) = tokio::join!(
            async { client.emit("shop.secret", &0).await },
            async { client.emit("shop.placed", &round).await },
            async { client.request::<_, u64>("math.secret", &1).await },
            async { client.request::<_, u64>("math.double", &round).await },
        );
        let denied = denied.unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Denied, "{denied:?}");
        assert_eq!(denied.context("subject"), Some("shop.secret"));
        let unanswered = unanswered.unwrap_err();
        assert_eq!(unanswered.kind(), ErrorKind::Denied, "{unanswered:?}");
        assert_eq!(unanswered.context("subject"), Some("math.secret"));
        allowed.unwrap();
        assert_eq!(answered.unwrap(), round * 2);
    }
    until("what is allowed", || {
        seen.distinct() == (0..50).collect::<Vec<_>>()
    })
    .await;
    assert!(app.health().is_ok());
    app.shutdown().await.unwrap();
}

async fn what_may_not_be_served_or_provisioned_stops_the_start_by_its_name() {
    let events =
        || Router::new().on_event("shop.placed", async |_: Ignore| -> Result<()> { Ok(()) });
    let calls = || Router::new().on_call("math.secret", double);
    let cases = [
        ("subscribe: { deny: \"math.>\" }", calls(), "math.secret"),
        (
            "publish: { deny: \"$JS.API.STREAM.CREATE.>\" }",
            events(),
            "STREAM.CREATE",
        ),
        (
            "publish: { deny: \"$JS.API.CONSUMER.CREATE.>\" }",
            events(),
            "CONSUMER.CREATE",
        ),
    ];
    for (permissions, router, name) in cases {
        let (_server, url) = server(permissions);
        let starting = app("shop", &url).router(router).start();
        let refused = tokio::time::timeout(Duration::from_secs(5), starting).await;
        let refused = refused.expect("at once").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied, "{refused:?}");
        assert!(refused.to_string().contains(name), "{refused}");
        assert!(!format!("{refused:?}").contains("right"), "{refused:?}");
    }
}

async fn an_event_that_may_be_lost_and_may_not_be_sent_harms_nobody() {
    let (_server, url) = server("publish: { deny: \"shop.secret\" }");
    let seen = Seen::default();
    let router = Router::new().on_event("shop.placed", seen.handler());
    let app = app("shop", &url).router(router).start().await.unwrap();
    for number in 0..100 {
        let secret = app.client();
        let secret = secret.emit("shop.secret", &number);
        // Nobody confirms it, so that nobody is told.
        let _ = secret.guarantee(anywire::Guarantee::AtMostOnce).await;
        app.client().emit("shop.placed", &number).await.unwrap();
    }
    until("the others", || seen.has_all(0..100)).await;
    assert!(app.health().is_ok());
    app.shutdown().await.unwrap();
}
