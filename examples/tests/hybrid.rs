//! The shop on two wires at once, by configuration alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;

use anywire_conformance::trials;
use support::{Broker, Orders, Program, balanced};

trials![
    ["ANYWIRE_TEST_NATS_SERVER", "ANYWIRE_TEST_KAFKA_SERVER"] =>
    calls_on_nats_and_events_on_kafka,
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
