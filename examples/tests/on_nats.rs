//! The shop on NATS.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use anywire_conformance::trials;
use support::{Broker, Program};

trials![
    ["ANYWIRE_TEST_NATS_SERVER"] =>
    the_summary_is_the_same,
    what_dies_in_the_middle_loses_no_order,
    core_nats_is_refused,
];

async fn the_summary_is_the_same() {
    support::the_summary_is_the_same("nats");
}

async fn what_dies_in_the_middle_loses_no_order() {
    support::what_dies_in_the_middle_loses_no_order("nats");
}

/// Core NATS keeps nothing, so that an order could get lost. The shop does not start on it.
async fn core_nats_is_refused() {
    let broker = Broker::start("nats");
    let mut shop = Program::command(&broker.url, &["serve"]);
    shop.env("ANYWIRE__TRANSPORTS__MAIN__NATS__JETSTREAM", "false");
    shop.env("ANYWIRE__DEFAULTS__RETRY", "[]");
    let output = shop.output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(
        complaint.contains("core NATS delivers at most once"),
        "{complaint}"
    );
}
