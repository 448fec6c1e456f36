//! A NATS program that knows nothing of anywire takes part, by what `docs/wire.md` says: it sends an order, reads an event and
//! a dead letter, calls a handler, makes streaming calls and answers calls. It is `foreign/nats_client.py`, on the client library of NATS for Python.
#![allow(clippy::unwrap_used, missing_docs)]

mod stage;

use anywire_conformance::trials;
use serde_json::json;
use stage::{PYTHON, Seen, Stage};

const URL: &str = "ANYWIRE_TEST_NATS_URL";

trials![[URL, PYTHON] => a_foreign_program_takes_part];

async fn a_foreign_program_takes_part() {
    let mut stage = Stage::open(anywire_nats::adapter(), URL, "nats_client.py").await;
    assert_eq!(stage.tells().await, json!({ "what": "serves" }));
    // The same message sent twice is stored once.
    let stream = format!("anywire-{}", stage.token);
    let sent = json!({ "what": "sent", "stream": stream, "repeated": true });
    assert_eq!(stage.tells().await, sent);
    assert_eq!(stage.order().await, Seen::sample());
    stage.reads().await;
    stage.calls().await;
    assert_eq!(stage.tells().await, json!({ "what": "nobody" }));
    stage.streams().await;
    stage.is_called().await;
    stage.close().await;
}
