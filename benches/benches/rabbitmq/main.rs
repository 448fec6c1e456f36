//! RabbitMQ: events and calls against programs written by hand on lapin, with the same guarantee, on the same broker.
//!
//! Wants a broker: `ANYWIRE_TEST_RABBITMQ_URL`, which `tools/brokers env rabbitmq` prints. Its queues go five minutes after their
//! last use.

mod raw;

use anywire::{App, Config};
use anywire_benches::{Counting, Extent, Table, Wire, peak_memory, rows};
use raw::Rabbitmq;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let url = std::env::var("ANYWIRE_TEST_RABBITMQ_URL")
        .expect("ANYWIRE_TEST_RABBITMQ_URL: start a broker with `tools/brokers start rabbitmq`");
    let raw = Rabbitmq(url.clone());
    let expires = raw::EXPIRES;
    let config = format!(
        "url = {url:?}\n[transports.main.rabbitmq]\narguments = {{ x-expires = {expires} }}"
    );
    let wire = Wire::new(move || {
        let config = Config::from_toml(&config).expect("a configuration");
        let app = App::new("bench").adapter(anywire_rabbitmq::adapter());
        app.config(config)
    });
    let (extent, mut table) = (Extent::from_args(), Table::default());
    Table::heading();
    rows(&mut table, &extent, &wire, &raw, 16 * 1024);
    if let Some(peak) = peak_memory() {
        println!("\npeak memory of the whole run: {peak} MiB");
    }
}
