//! What only NATS can do to us: streams, consumers, credentials and headers that are not as we need them.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anywire::clock::{Clock, TokioClock};
use anywire::config::Config;
use anywire::pattern::publish_subscribe::{
    Entry, Guarantee, Incoming, PublishBatch, Published, Received, Settle, SettleBatch, Settlement,
    Spec, SubscriptionId,
};
use anywire::pattern::request_reply::{CallSpec, Reply};
use anywire::pattern::{Batch, pull, pull_calls};
use anywire::transport::{Adapter, Transport};
use anywire::{Error, ErrorKind, Message, MessageId, Pattern, Subject};
use async_nats::jetstream;
use async_nats::jetstream::stream;
use support::Server;
use support::trials::tests_with_a_server;

tests_with_a_server![
    a_stored_message_that_ends_the_connection_becomes_a_dead_letter,
    a_stream_that_stores_calls_stops_their_handler,
    a_caller_does_not_take_a_streams_confirmation_for_the_reply,
    overlapping_patterns_of_two_services_find_one_stream_in_either_order,
    what_an_operators_stream_holds_in_part_is_refused_with_its_name,
    widening_never_takes_a_call_that_is_known,
    a_renamed_capture_goes_on_where_the_old_one_stopped,
    a_deleted_consumer_and_a_deleted_stream_are_made_again,
    a_full_stream_is_told_and_takes_again_once_there_is_room,
    a_payload_over_the_servers_limit_never_reaches_the_socket,
    a_permission_that_is_missing_for_one_subject_leaves_the_others,
    a_subscriber_of_the_air_that_is_too_slow_loses_messages_and_no_more,
];

/// How long what must happen may take.
const PATIENCE: Duration = Duration::from_secs(15);

fn server(config: &str) -> Server {
    Server::start(config).unwrap()
}

async fn try_connect(config: &str) -> Result<Arc<dyn Transport>, Error> {
    let adapter = anywire_nats::adapter();
    let config = Config::from_toml(config)?;
    let config = config.resolve("main", "shop", &[adapter.schemes()])?;
    adapter.check(&config)?;
    adapter.connect(config, Arc::new(TokioClock)).await
}

async fn connect(server: &Server) -> Arc<dyn Transport> {
    let config = format!(
        "url = \"{}\"\n[transports.main.nats]\nack_wait = \"1s\"",
        server.url()
    );
    try_connect(&config).await.unwrap()
}

fn pattern(text: &str) -> Pattern {
    Pattern::parse_any(text).unwrap()
}

fn spec(group: &str, text: &str) -> Spec {
    Spec::new(SubscriptionId::new(group, pattern(text)))
}

async fn try_subscribe(client: &Arc<dyn Transport>, spec: Spec) -> Result<Subscription, Error> {
    let mut opened = client.subscriber().subscribe(&[spec]).await;
    let incoming = opened.pop().unwrap()?;
    Ok(Subscription {
        settler: incoming.settler(),
        incoming,
    })
}

async fn subscribe(client: &Arc<dyn Transport>, group: &str, text: &str) -> Subscription {
    try_subscribe(client, spec(group, text)).await.unwrap()
}

struct Subscription {
    incoming: Box<dyn Incoming>,
    settler: Arc<dyn Settle>,
}

impl Subscription {
    async fn next(&mut self) -> Received {
        let mut batch = Batch::new(1);
        let pulled = tokio::time::timeout(PATIENCE, pull(&mut *self.incoming, &mut batch)).await;
        pulled.expect("something arrives in time").unwrap();
        batch.drain().next().unwrap()
    }

    /// Receives a delivery, acks it, and gives its payload.
    async fn take(&mut self) -> String {
        let received = self.next().await;
        let mut batch = SettleBatch::default();
        batch.push(received.tag, Settlement::Ack);
        let settled = self.settler.settle(batch).wait().await;
        assert!(settled.failed().is_empty(), "{settled:?}");
        String::from_utf8_lossy(received.message.payload()).into_owned()
    }
}

fn message(subject: &str, payload: &str) -> Message {
    let subject = Subject::parse_any(subject).unwrap();
    Message::new(subject, payload.to_owned()).with_id(MessageId::random())
}

async fn publish(client: &Arc<dyn Transport>, message: Message) -> Result<(), Error> {
    let batch = PublishBatch::single(Entry::new(message), Duration::from_secs(5));
    let (_, outcome) = client
        .publisher()
        .publish(batch)
        .wait()
        .await
        .into_single()
        .unwrap();
    match outcome {
        Published::Accepted(_) => Ok(()),
        Published::Rejected(error) | Published::Unknown(error) => Err(error),
    }
}

async fn send(client: &Arc<dyn Transport>, subject: &str, payload: &str) {
    publish(client, message(subject, payload)).await.unwrap();
}

async fn native(server: &Server) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

async fn create_stream(server: &Server, name: &str, subjects: &[&str]) {
    let config = stream::Config {
        name: name.to_owned(),
        subjects: subjects.iter().map(ToString::to_string).collect(),
        ..stream::Config::default()
    };
    native(server).await.create_stream(config).await.unwrap();
}

async fn close(client: Arc<dyn Transport>) {
    client.close(Duration::from_secs(5)).await.unwrap();
}

/// Publishes what no client library would: headers that are no text.
fn store_hostile_header(server: &Server, subject: &str) {
    let headers = b"NATS/1.0\r\nname: \xff\xfe\r\n\r\n";
    let payload = b"hostile";
    let mut socket = TcpStream::connect(server.address()).unwrap();
    let total = headers.len() + payload.len();
    let hello = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n";
    write!(
        socket,
        "{hello}HPUB {subject} {} {total}\r\n",
        headers.len()
    )
    .unwrap();
    socket.write_all(headers).unwrap();
    socket.write_all(payload).unwrap();
    socket.write_all(b"\r\nPING\r\n").unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"PONG\r\n") {
        socket.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
}

async fn a_stored_message_that_ends_the_connection_becomes_a_dead_letter() {
    let server = server("");
    let client = connect(&server).await;
    let mut events = subscribe(&client, "shop", "shop.placed").await;
    send(&client, "shop.placed", "before").await;
    assert_eq!(events.take().await, "before");
    store_hostile_header(&server, "shop.placed");
    send(&client, "shop.placed", "after").await;
    // What shared the connection's end with it comes again.
    assert_eq!(events.take().await, "after");
    let mut letters = subscribe(&client, "reader", "anywire.dead.shop").await;
    let letter = letters.next().await.message;
    assert_eq!(letter.payload(), "hostile");
    assert_eq!(letter.trail().unwrap().subject.as_str(), "shop.placed");
    let raw = letter.headers().get("raw-headers").unwrap();
    assert!(raw.ends_with(b"name: \xff\xfe\r\n\r\n"));
    send(&client, "shop.placed", "still here").await;
    assert_eq!(events.take().await, "still here");
    close(client).await;
}

async fn a_stream_that_stores_calls_stops_their_handler() {
    let server = server("");
    create_stream(&server, "greedy", &["shop.>"]).await;
    let client = connect(&server).await;
    let responder = client.responder().unwrap();
    let mut served = responder
        .serve(&[CallSpec::new(pattern("shop.quote"))])
        .await;
    let error = served.pop().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("greedy"), "{error}");
    close(client).await;
}

async fn a_caller_does_not_take_a_streams_confirmation_for_the_reply() {
    let server = server("");
    let client = connect(&server).await;
    let responder = client.responder().unwrap();
    let mut served = responder
        .serve(&[CallSpec::new(pattern("shop.quote"))])
        .await;
    let mut calls = served.pop().unwrap().unwrap();
    create_stream(&server, "greedy", &["shop.>"]).await;
    let answering = tokio::spawn(async move {
        let mut batch = Batch::new(1);
        pull_calls(&mut *calls, &mut batch).await.unwrap();
        let call = batch.drain().next().unwrap();
        // The stream is quicker.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let reply = Reply {
            tag: call.tag,
            reply_to: call.message.reply_to().map(Into::into),
            correlation_id: None,
            message: message("shop.quote", "20"),
        };
        calls.replier().reply(reply).wait().await.unwrap();
    });
    let deadline = TokioClock.now() + PATIENCE;
    let requester = client.requester().unwrap();
    let answer = requester
        .request(message("shop.quote", "?"), deadline)
        .wait()
        .await;
    assert_eq!(answer.unwrap().payload(), "20");
    answering.await.unwrap();
    close(client).await;
}

async fn overlapping_patterns_of_two_services_find_one_stream_in_either_order() {
    let server = server("");
    let patterns = ["a.*.placed", "a.eu.*"];
    for (round, order) in [[0, 1], [1, 0]].into_iter().enumerate() {
        let subject = |text: &str| format!("round{round}.{text}");
        let (one, two) = (connect(&server).await, connect(&server).await);
        let mut first = subscribe(&one, "first", &subject(patterns[order[0]])).await;
        let mut second = subscribe(&two, "second", &subject(patterns[order[1]])).await;
        send(&one, &subject("a.eu.placed"), "both").await;
        assert_eq!(first.take().await, "both");
        assert_eq!(second.take().await, "both");
        let info = native(&server)
            .await
            .get_stream(format!("anywire-round{round}"))
            .await;
        let info = info.unwrap();
        assert_eq!(info.cached_info().config.subjects, [subject("a.*.*")]);
        close(one).await;
        close(two).await;
    }
}

async fn what_an_operators_stream_holds_in_part_is_refused_with_its_name() {
    let server = server("");
    create_stream(&server, "orders", &["shop.eu.placed"]).await;
    let client = connect(&server).await;
    let error = try_subscribe(&client, spec("shop", "shop.*.placed")).await;
    let error = error.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("\"orders\""), "{error}");
    // One that covers all of it is used.
    let mut covered = subscribe(&client, "shop", "shop.eu.placed").await;
    send(&client, "shop.eu.placed", "stored").await;
    assert_eq!(covered.take().await, "stored");
    close(client).await;
}

async fn widening_never_takes_a_call_that_is_known() {
    let server = server("");
    let client = connect(&server).await;
    let responder = client.responder().unwrap();
    let served = responder
        .serve(&[CallSpec::new(pattern("shop.eu.quote"))])
        .await;
    let _events = subscribe(&client, "shop", "shop.*.placed").await;
    // Together they would need `shop.*.*`.
    let error = try_subscribe(&client, spec("shop", "shop.eu.>"))
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("shop.eu.quote"), "{error}");
    drop(served);
    close(client).await;
}

async fn a_renamed_capture_goes_on_where_the_old_one_stopped() {
    let server = server("");
    let client = connect(&server).await;
    let mut old = subscribe(&client, "shop", "shop.{region}.placed").await;
    send(&client, "shop.eu.placed", "one").await;
    assert_eq!(old.take().await, "one");
    old.incoming.stop().await.unwrap();
    send(&client, "shop.eu.placed", "two").await;
    let mut new = subscribe(&client, "shop", "shop.{country}.placed").await;
    assert_eq!(new.take().await, "two");
    close(client).await;
}

async fn a_deleted_consumer_and_a_deleted_stream_are_made_again() {
    let server = server("");
    let client = connect(&server).await;
    let mut events = subscribe(&client, "shop", "shop.placed").await;
    send(&client, "shop.placed", "before").await;
    assert_eq!(events.take().await, "before");
    let context = native(&server).await;
    let streams = ["consumer", "stream"];
    for what in streams {
        // A pull is under way when it happens.
        let next = tokio::spawn(async move {
            let payload = events.take().await;
            (events, payload)
        });
        let stream = context.get_stream("anywire-shop").await.unwrap();
        match what {
            "consumer" => {
                stream.delete_consumer("shop==shop~placed").await.unwrap();
            }
            _ => {
                context.delete_stream("anywire-shop").await.unwrap();
            }
        }
        let start = Instant::now();
        let mut seen = None;
        let mut next = next;
        while seen.is_none() {
            assert!(start.elapsed() < PATIENCE, "the {what} was not made again");
            let _ = publish(&client, message("shop.placed", what)).await;
            let wait = tokio::time::timeout(Duration::from_millis(200), &mut next);
            seen = wait.await.ok();
        }
        let (back, payload) = seen.unwrap().unwrap();
        events = back;
        // A consumer that is made again begins anew.
        assert!([what, "before"].contains(&payload.as_str()), "{payload}");
        // What was published while it was tried comes, too.
        while tokio::time::timeout(Duration::from_millis(500), events.take())
            .await
            .is_ok()
        {}
    }
    close(client).await;
}

async fn a_full_stream_is_told_and_takes_again_once_there_is_room() {
    let server = server("");
    let config = format!(
        "url = \"{}\"\n[transports.main.nats]\nmax_bytes = 20000",
        server.url()
    );
    let client = try_connect(&config).await.unwrap();
    let _events = subscribe(&client, "shop", "shop.placed").await;
    let body = "x".repeat(4000);
    let mut refused = None;
    for _ in 0..10 {
        if let Err(error) = publish(&client, message("shop.placed", &body)).await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("20,000 bytes hold no 40,000");
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(
        error.is_retryable() && error.to_string().contains("full"),
        "{error}"
    );
    let stream = native(&server)
        .await
        .get_stream("anywire-shop")
        .await
        .unwrap();
    stream.purge().await.unwrap();
    send(&client, "shop.placed", &body).await;
    close(client).await;
}

async fn a_payload_over_the_servers_limit_never_reaches_the_socket() {
    let server = server("max_payload: 1000");
    let client = connect(&server).await;
    let mut events = subscribe(&client, "shop", "shop.placed").await;
    assert_eq!(client.capabilities().limits.max_payload, 500);
    let mut status = client.status();
    status.mark_unchanged();
    let error = publish(&client, message("shop.placed", &"x".repeat(2000)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    send(&client, "shop.placed", "small").await;
    assert_eq!(events.take().await, "small");
    assert!(
        !status.has_changed().unwrap(),
        "the server ended the connection"
    );
    close(client).await;
}

async fn a_permission_that_is_missing_for_one_subject_leaves_the_others() {
    let config = "authorization { users: [ { user: shop, password: right, permissions: {
        publish: { deny: \"shop.secret\" }, subscribe: { deny: \"calls.secret\" } } } ] }";
    let server = server(config);
    let url = format!("url = \"nats://shop:right@{}\"", server.address());
    let client = try_connect(&url).await.unwrap();
    let mut events = subscribe(&client, "shop", "shop.*").await;
    let start = Instant::now();
    let denied = publish(&client, message("shop.secret", "x")).await;
    assert_eq!(denied.unwrap_err().kind(), ErrorKind::Denied);
    let responder = client.responder().unwrap();
    let patterns = ["calls.secret", "calls.open"];
    let specs = patterns.map(|text| CallSpec::new(pattern(text)));
    let served = responder.serve(&specs).await;
    assert_eq!(served[0].as_ref().unwrap_err().kind(), ErrorKind::Denied);
    assert!(served[1].is_ok());
    assert!(start.elapsed() < Duration::from_secs(1), "it was told late");
    send(&client, "shop.placed", "allowed").await;
    assert_eq!(events.take().await, "allowed");
    close(client).await;
}

async fn a_subscriber_of_the_air_that_is_too_slow_loses_messages_and_no_more() {
    let server = server("");
    let config = format!(
        "url = \"{}\"\n[transports.main.nats]\nbuffer = 10",
        server.url()
    );
    let client = try_connect(&config).await.unwrap();
    let lossy = spec("shop", "shop.tick").with_guarantee(Guarantee::AtMostOnce);
    let mut ticks = try_subscribe(&client, lossy).await.unwrap();
    let mut batch = PublishBatch::new(Duration::from_secs(5));
    for number in 0..1000 {
        let entry = Entry::new(message("shop.tick", &number.to_string()));
        batch.push(entry.with_guarantee(Guarantee::AtMostOnce));
    }
    client.publisher().publish(batch).wait().await;
    // The answer comes behind all of them.
    let deadline = TokioClock.now() + PATIENCE;
    let requester = client.requester().unwrap();
    let nobody = requester
        .request(message("nobody", "?"), deadline)
        .wait()
        .await;
    assert_eq!(nobody.unwrap_err().kind(), ErrorKind::NoRoute);
    let mut received = 0;
    loop {
        let next = tokio::time::timeout(Duration::from_millis(300), ticks.next()).await;
        match next {
            Ok(_) => received += 1,
            Err(_) => break,
        }
    }
    // Some may have been on their way from the library's buffer into the full queue.
    assert!((1..100).contains(&received), "{received} of 1000 arrived");
    close(client).await;
}
