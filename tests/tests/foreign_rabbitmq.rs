//! An AMQP program that knows nothing of anywire takes part, by what `docs/wire.md` says: it sends an order, reads an event and
//! a dead letter, calls a handler and answers calls. It is `foreign/rabbitmq_client.py`, on pika.
#![allow(clippy::unwrap_used, missing_docs)]

mod stage;

use anywire_conformance::trials;
use serde_json::json;
use stage::{PYTHON, Seen, Stage};

const URL: &str = "ANYWIRE_TEST_RABBITMQ_URL";

trials![[URL, PYTHON] => a_foreign_program_takes_part];

async fn a_foreign_program_takes_part() {
    let adapter = anywire_rabbitmq::adapter();
    let mut stage = Stage::open(adapter, URL, "rabbitmq_client.py").await;
    assert_eq!(stage.tells().await, json!({ "what": "serves" }));
    assert_eq!(stage.tells().await, json!({ "what": "sent" }));
    assert_eq!(stage.order().await, Seen::sample());
    stage.reads().await;
    stage.calls().await;
    assert_eq!(stage.tells().await, json!({ "what": "nobody" }));
    stage.is_called().await;
    stage.close().await;
}
