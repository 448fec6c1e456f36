//! The shop on Kafka.
#![allow(missing_docs)]

mod support;

use anywire_conformance::trials;

trials![
    ["ANYWIRE_TEST_KAFKA_SERVER"] =>
    the_summary_is_the_same,
    what_dies_in_the_middle_loses_no_order,
];

async fn the_summary_is_the_same() {
    support::the_summary_is_the_same("kafka");
}

async fn what_dies_in_the_middle_loses_no_order() {
    support::what_dies_in_the_middle_loses_no_order("kafka");
}
