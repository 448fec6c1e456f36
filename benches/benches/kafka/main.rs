//! Kafka: events and calls against programs written by hand on rdkafka, with the same guarantee, on the same broker.
//!
//! Wants a broker: `ANYWIRE_TEST_KAFKA_URL`, which `tools/brokers env kafka` prints.

mod raw;

use anywire::App;
use anywire_benches::{Counting, Extent, Table, Wire, peak_memory, rows};
use raw::Kafka;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let url = std::env::var("ANYWIRE_TEST_KAFKA_URL")
        .expect("ANYWIRE_TEST_KAFKA_URL: start a broker with `tools/brokers start kafka`");
    let servers = url.strip_prefix("kafka://").expect("kafka://host:port");
    let raw = Kafka(servers.to_owned());
    let wire = Wire::new(move || {
        App::new("bench")
            .adapter(anywire_kafka::adapter())
            .url(&url)
    });
    let (extent, mut table) = (Extent::from_args(), Table::default());
    Table::heading();
    rows(&mut table, &extent, &wire, &raw, 64 * 1024);
    if let Some(peak) = peak_memory() {
        println!("\npeak memory of the whole run: {peak} MiB");
    }
}
