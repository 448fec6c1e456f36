//! A Kafka program that knows nothing of anywire takes part, by what `docs/wire.md` says: it sends an order, reads an event and
//! a dead letter, calls a handler and answers calls. It is `foreign/kafka_client.py`, on kafka-python. Kafka's own console
//! tools do what they can do without headers.
#![allow(clippy::unwrap_used, missing_docs)]

mod stage;

use anywire_conformance::trials;
use serde_json::json;
use stage::{PYTHON, Seen, Stage};

const URL: &str = "ANYWIRE_TEST_KAFKA_URL";

trials![[URL, PYTHON] => a_foreign_program_takes_part];

async fn a_foreign_program_takes_part() {
    let adapter = anywire_kafka::adapter();
    let mut stage = Stage::open(adapter, URL, "kafka_client.py").await;
    assert_eq!(stage.tells().await, json!({ "what": "serves" }));
    assert_eq!(stage.tells().await, json!({ "what": "sent" }));
    let order = Seen {
        order: "o-1".into(),
        count: 2,
        region: "eu".into(),
        tenant: Some("blue".into()),
        id: None,
        key: Some(b"c-17".into()),
    };
    assert_eq!(stage.order().await, order);
    stage.reads().await;
    stage.calls().await;
    stage.is_called().await;
    stage.close().await;
}
