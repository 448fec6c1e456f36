//! Which stream holds what, and what is refused because none can; and whom we are connected to.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use anywire::clock::TokioClock;
use anywire::config::Config;
use anywire::pattern::publish_subscribe::{
    Entry, Incoming, PublishBatch, Published, Received, Settle, SettleBatch, Settlement, Spec,
    SubscriptionId,
};
use anywire::pattern::request_reply::CallSpec;
use anywire::pattern::{Batch, pull};
use anywire::transport::{Adapter, Transport};
use anywire::{App, Error, ErrorKind, Message, MessageId, Pattern, Subject};
use anywire_conformance::trials;
use async_nats::jetstream;
use async_nats::jetstream::stream;
use support::Server;

trials![
    [support::SERVER] =>
    overlapping_patterns_of_two_services_find_one_stream_in_either_order,
    what_an_operators_stream_holds_in_part_is_refused_with_its_name,
    widening_never_takes_a_call_that_is_known,
    the_native_client_is_reached_and_the_first_server_may_be_absent,
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

async fn the_native_client_is_reached_and_the_first_server_may_be_absent() {
    let (gone, server) = (server(""), server(""));
    let absent = gone.address();
    drop(gone);
    let config = Config::from_toml(&format!("url = \"nats://{absent},{}\"", server.address()));
    let app = App::new("shop").adapter(anywire_nats::adapter());
    let app = app.config(config.unwrap()).start().await.unwrap();
    let native = anywire_nats::native(&app.client()).unwrap();
    assert_eq!(native.server_info().port, server.address().port());
    assert!(anywire_nats::native_of(&app.client(), "other").is_none());
    app.shutdown().await.unwrap();
    let alone = try_connect(&format!("url = \"nats://{absent}\"")).await;
    assert_eq!(alone.unwrap_err().kind(), ErrorKind::Unavailable);
}
