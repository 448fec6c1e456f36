//! Messages from outside that are broken or too large: each harms itself and nothing else.
#![allow(clippy::unwrap_used)]

#[path = "support/raw_publisher.rs"]
mod raw_publisher;
mod support;

use std::time::Duration;

use anywire::{Context, ErrorKind, Failure, Message, Raw, Result, Router, Subscription};
use anywire_conformance::proxy::Proxy;
use anywire_conformance::rig::{Seen, dead_letters, soon, until, until_async};
use anywire_conformance::trials;
use raw_publisher::RawPublisher;
use support::{Server, app, configured};

trials![
    [support::SERVER] =>
    messages_with_hostile_headers_become_dead_letters_and_the_others_are_handled,
    a_backlog_full_of_hostile_messages_is_worked_off_by_two_instances,
    a_hostile_message_among_the_retries_holds_none_of_them_back,
    hostile_calls_and_replies_end_a_connection_and_not_the_service,
    a_payload_over_the_servers_limit_is_refused_before_the_socket_and_the_next_goes_through,
];

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

/// Stores hostile messages among good ones, and gives the bodies of the hostile.
fn store(server: &Server, subject: &str, rounds: usize) -> Vec<String> {
    let mut foreign = RawPublisher::connect(server.address());
    let mut bodies = Vec::new();
    for round in 0..rounds {
        for (kind, hostile) in HOSTILE.iter().enumerate() {
            let body = format!("hostile {round} {kind}");
            foreign.publish(subject, hostile, body.as_bytes());
            bodies.push(body);
        }
        foreign.publish(subject, b"NATS/1.0\r\n\r\n", round.to_string().as_bytes());
    }
    bodies.sort_unstable();
    bodies
}

/// Takes dead letters until there is one with each of these bodies.
async fn find(letters: &mut Subscription<Message>, bodies: &[String]) {
    let mut found = Vec::new();
    while found != bodies {
        let letter = soon("a dead letter for each", letters.next()).await;
        let letter = letter.unwrap().unwrap();
        let trail = letter.message().trail().unwrap();
        assert_eq!(trail.group.as_deref(), Some("shop"));
        let body = String::from_utf8_lossy(letter.message().payload()).into_owned();
        assert!(bodies.contains(&body), "{body}");
        // One that is read while the connection breaks comes again.
        let _ = letter.ack().await;
        if let Err(at) = found.binary_search(&body) {
            found.insert(at, body);
        }
    }
}

async fn messages_with_hostile_headers_become_dead_letters_and_the_others_are_handled() {
    let server = Server::start("").unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let seen = Seen::default();
    let router = Router::new().on_event("shop.placed", seen.handler());
    let app = app("shop", &format!("nats://{}", proxy.address()));
    let app = app.router(router).start().await.unwrap();
    let mut letters = dead_letters(&app.client(), "shop").await.unwrap();
    let bodies = store(&server, "shop.placed", 1);
    find(&mut letters, &bodies).await;
    until("the good one", || seen.has_all([0])).await;

    let connections = proxy.counters().accepted;
    for n in 1..200 {
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

async fn a_backlog_full_of_hostile_messages_is_worked_off_by_two_instances() {
    let server = Server::start("").unwrap();
    let seen = Seen::default();
    let config = format!(
        "url = {:?}\n[transports.main.nats]\nack_wait = '1s'",
        server.url()
    );
    let start = || {
        let router = Router::new().on_event("shop.placed", seen.handler());
        configured("shop", &config).router(router).start()
    };
    start().await.unwrap().shutdown().await.unwrap();
    let bodies = store(&server, "shop.placed", 30);
    let (one, other) = futures::future::try_join(start(), start()).await.unwrap();
    let mut letters = dead_letters(&one.client(), "shop").await.unwrap();
    find(&mut letters, &bodies).await;
    until("the good ones", || seen.has_all(0..30)).await;
    one.shutdown().await.unwrap();
    other.shutdown().await.unwrap();
}

async fn a_hostile_message_among_the_retries_holds_none_of_them_back() {
    let server = Server::start("").unwrap();
    let seen = Seen::default();
    let handler = seen.handler();
    let second_time = move |number: u64, context: Context| {
        let handled = (context.attempt() > 1).then(|| handler(number));
        async move {
            let later = Failure::transient("not yet").retry_after(Duration::from_secs(2));
            handled.ok_or(later)?.await
        }
    };
    let config = format!(
        "url = {:?}\n[transports.main.nats]\nack_wait = '1s'",
        server.url()
    );
    let router = Router::new().on_event("shop.placed", second_time);
    let app = configured("shop", &config)
        .router(router)
        .start()
        .await
        .unwrap();
    let mut letters = dead_letters(&app.client(), "shop").await.unwrap();
    for n in 0..20 {
        app.client().emit("shop.placed", &n).await.unwrap();
    }
    let mut foreign = RawPublisher::connect(server.address());
    foreign.publish("anywire.retry.shop==shop~placed", HOSTILE[0], b"hostile");
    find(&mut letters, &["hostile".to_owned()]).await;
    until("the second attempts", || seen.has_all(0..20)).await;
    app.shutdown().await.unwrap();
}

async fn hostile_calls_and_replies_end_a_connection_and_not_the_service() {
    let server = Server::start("").unwrap();
    let seen = Seen::default();
    let router = Router::new()
        .on_event("shop.placed", seen.handler())
        .on_call("shop.size", size);
    let app = app("shop", &server.url())
        .router(router)
        .start()
        .await
        .unwrap();
    let mut foreign = RawPublisher::connect(server.address());
    for round in 0..10 {
        foreign.publish("shop.size", HOSTILE[round % 5], b"hostile");
        app.client()
            .emit("shop.placed", &(round as u64))
            .await
            .unwrap();
    }
    until("the events", || seen.has_all(0..10)).await;
    let answered = async || {
        let client = app.client();
        let call = client.request::<_, usize>("shop.size", &Raw("four".into()));
        call.timeout(Duration::from_secs(1))
            .await
            .is_ok_and(|size| size == 4)
    };
    until_async("an answer", answered).await;
    app.shutdown().await.unwrap();
}

async fn size(Raw(bytes): Raw) -> Result<usize> {
    Ok(bytes.len())
}

async fn padding(size: usize) -> Result<Raw> {
    Ok(Raw(vec![b'x'; size].into()))
}

async fn a_payload_over_the_servers_limit_is_refused_before_the_socket_and_the_next_goes_through() {
    let server = Server::start("max_payload: 65536").unwrap();
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
