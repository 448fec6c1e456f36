//! Two wires at once, by configuration alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::time::Duration;

use anywire::{App, Client, Config, ContentType, Message};
use anywire_conformance::trials;
use support::{Broker, Orders, Program, balanced};

trials![
    ["ANYWIRE_TEST_NATS_SERVER", "ANYWIRE_TEST_KAFKA_SERVER"] =>
    calls_on_nats_and_events_on_kafka,
    a_bridge_moves_a_subject_with_all_that_it_carries,
];

async fn calls_on_nats_and_events_on_kafka() {
    let (nats, kafka) = (Broker::start("nats"), Broker::start("kafka"));
    let file = nats.home.path().join("anywire.toml");
    let config = format!(
        "calls = 'main'\nevents = 'log'\n\
         [transports.main]\nurl = '{}'\n[transports.log]\nurl = '{}'\n",
        nats.url, kafka.url
    );
    fs::write(&file, config).unwrap();
    let orders = Orders::short();
    let mut shop = Program::without_url(&["--orders", orders.path()]);
    let output = shop.env("ANYWIRE_CONFIG", &file).output().unwrap();
    assert_eq!(balanced(output), orders.on_memory());
}

async fn a_bridge_moves_a_subject_with_all_that_it_carries() {
    let (nats, kafka) = (Broker::start("nats"), Broker::start("kafka"));
    let config = format!(
        "events = 'far'\ncalls = 'near'\n\
         [transports.near]\nurl = '{}'\n[transports.far]\nurl = '{}'\n",
        nats.url, kafka.url
    );
    let config = Config::from_toml(&config).unwrap();
    let bridge = anywire_examples::bridge::app().config(config);
    let bridge = bridge.start().await.unwrap();
    let near = App::new("near").adapter(anywire_nats::adapter());
    let near = Client::connect(near.url(&nats.url)).await.unwrap();
    let far = App::new("far").adapter(anywire_kafka::adapter());
    let far = Client::connect(far.url(&kafka.url)).await.unwrap();
    let mut arriving = far.subscribe::<Message>("shop.>").await.unwrap();
    let emit = near.emit("shop.placed", "an order");
    let emit = emit.id("order-7").key("ann").header("tenant", "blue");
    emit.content_type(ContentType::new("text/plain"))
        .await
        .unwrap();
    let arrived = tokio::time::timeout(Duration::from_secs(60), arriving.next());
    let arrived = arrived.await.unwrap().unwrap().unwrap();
    let message = arrived.message();
    assert_eq!(message.subject().as_str(), "shop.placed");
    assert_eq!(message.id().unwrap().to_string(), "order-7");
    assert_eq!(message.key().unwrap().as_bytes(), b"ann");
    assert_eq!(message.headers().get("tenant").unwrap(), "blue");
    assert_eq!(message.content_type().unwrap().as_str(), "text/plain");
    assert_eq!(message.payload(), r#""an order""#);
    arrived.ack().await.unwrap();
    bridge.shutdown().await.unwrap();
}
