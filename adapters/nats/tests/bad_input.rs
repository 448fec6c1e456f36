//! Messages from outside that are broken or too large: each harms itself and nothing else.
#![allow(clippy::unwrap_used)]

#[path = "support/service.rs"]
mod service;
mod support;

use anywire::{ErrorKind, Message, Raw, Result, Router};
use anywire_conformance::proxy::Proxy;
use service::{RawPublisher, Seen, app, dead_letters, soon, until};
use support::Server;

/// Header blocks that a server stores and a client library cannot, or must not, read.
const HOSTILE: [&[u8]; 6] = [
    b"NATS/1.0\r\nname: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\na name: value\r\n\r\n",
    b"NATS/1.0\r\n\xc3\x28: value\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0 what\r\n\r\n",
    // It passes for news of the server's own.
    b"NATS/1.0 503 No Responders\r\n\r\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn messages_with_hostile_headers_become_dead_letters_and_the_others_are_handled() {
    let Some(program) = support::binary() else {
        return;
    };
    let server = Server::start(program, "").unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let seen = Seen::default();
    let router = Router::new().on_event("shop.placed", seen.handler());
    let app = app("shop", &format!("nats://{}", proxy.address()));
    let app = app.router(router).start().await.unwrap();
    let mut dead = dead_letters(&app.client(), "shop").await;
    let mut foreign = RawPublisher::connect(server.address());
    for (n, hostile) in (0..).zip(HOSTILE) {
        foreign.publish("shop.placed", hostile, format!("hostile {n}").as_bytes());
        app.client().emit("shop.placed", &n).await.unwrap();
    }
    let mut bodies = Vec::new();
    for n in 0..HOSTILE.len() {
        let letter = soon("a dead letter for each", dead.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            letter.context().message().trail().unwrap().group.as_deref(),
            Some("shop"),
            "{n}"
        );
        bodies.push(letter.message().payload().clone());
        letter.ack().await.unwrap();
    }
    bodies.sort_unstable();
    let sent: Vec<_> = (0..HOSTILE.len()).map(|n| format!("hostile {n}")).collect();
    assert_eq!(bodies, sent);
    until("all others", || seen.has_all(0..6)).await;

    let connections = proxy.counters().accepted;
    for n in 6..200 {
        app.client().emit("shop.placed", &n).await.unwrap();
    }
    until("what comes later", || seen.has_all(0..200)).await;
    assert_eq!(
        proxy.counters().accepted,
        connections,
        "connected again though all is past"
    );
    app.shutdown().await.unwrap();
}

async fn size(Raw(bytes): Raw) -> Result<usize> {
    Ok(bytes.len())
}

async fn padding(size: usize) -> Result<Raw> {
    Ok(Raw(vec![b'x'; size].into()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_over_the_servers_limit_is_refused_before_the_socket_and_the_next_goes_through() {
    let Some(program) = support::binary() else {
        return;
    };
    let server = Server::start(program, "max_payload: 65536").unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let seen = Seen::default();
    let router = Router::new()
        .on_event("shop.placed", seen.handler())
        .on_call("shop.size", size)
        .on_call("shop.padding", padding);
    let app = app("shop", &format!("nats://{}", proxy.address()));
    let app = app.router(router).start().await.unwrap();
    let client = app.client();
    let before = proxy.counters();

    let large = Raw(vec![b'1'; 70_000].into());
    let emitted = client.emit("shop.placed", &large).await.unwrap_err();
    assert_eq!(emitted.kind(), ErrorKind::TooLarge, "{emitted}");
    let asked = client
        .request::<_, usize>("shop.size", &large)
        .await
        .unwrap_err();
    assert_eq!(asked.kind(), ErrorKind::TooLarge, "{asked}");
    // The reply is the other side's, which says why there is none.
    let answered = client
        .request::<_, Message>("shop.padding", &70_000)
        .await
        .unwrap_err();
    assert!(answered.as_remote().is_some(), "{answered:?}");

    client.emit("shop.placed", &1).await.unwrap();
    until("the next event", || seen.has_all([1])).await;
    let size: usize = client
        .request("shop.size", &Raw("four".into()))
        .await
        .unwrap();
    assert_eq!(size, 4);
    let after = proxy.counters();
    assert_eq!(after.accepted, before.accepted, "the connection was lost");
    assert!(
        after.to_server - before.to_server < 70_000,
        "the large ones were sent"
    );
    app.shutdown().await.unwrap();
}
