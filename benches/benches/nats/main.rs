//! NATS: events and calls against programs written by hand on async-nats, with the same guarantee, on the same server.
//!
//! Wants a server: `ANYWIRE_TEST_NATS_URL`, which `tools/brokers env nats` prints.

mod raw;

use anywire::App;
use anywire_benches::progress::Sending;
use anywire_benches::{Counting, Extent, Runtime, Table, Wire, alternate, peak_memory, rows};
use raw::Nats;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let url = std::env::var("ANYWIRE_TEST_NATS_URL")
        .expect("ANYWIRE_TEST_NATS_URL: start a server with `tools/brokers start nats`");
    let raw = Nats(url.clone());
    let wire = Wire::new(move || App::new("bench").adapter(anywire_nats::adapter()).url(&url));
    let (extent, mut table) = (Extent::from_args(), Table::default());
    Table::heading();
    for size in [128, 1024] {
        for (sending, how, goal) in [
            (Sending::OneByOne, "emit", ">= 0.90"),
            (Sending::All, "emit_all", ">= 0.95"),
        ] {
            let name = format!("core, publish to subscriber, {size} B, {how}");
            let count = 100 * 1024 * extent.scale;
            if extent.wants(&name) {
                let (ours, raw) = alternate(
                    extent.rounds,
                    || Runtime::Two.run(wire.clone().fleeting(size, count, sending)),
                    || Runtime::Two.run(raw::core(raw.0.clone(), size, count)),
                );
                table.row(&name, goal, &ours, &raw);
            }
        }
    }
    let count = 100 * 1024 * extent.scale;
    let name = "stream, emulated, 128 B";
    if extent.wants(name) {
        let (ours, raw) = alternate(
            extent.rounds,
            || Runtime::Two.run(wire.clone().stream(128, count)),
            || Runtime::Two.run(raw::frames(raw.0.clone(), 128, count)),
        );
        table.row(name, ">= 0.70", &ours, &raw);
    }
    let name = "stream, first item against a call";
    if extent.wants(name) {
        let count = 2000 * extent.scale;
        let (ours, raw) = alternate(
            extent.rounds,
            || Runtime::Two.run(wire.clone().first_item(count)),
            || Runtime::Two.run(raw::calls(raw.0.clone(), 1, count)),
        );
        table.row(name, "-", &ours, &raw);
    }
    rows(&mut table, &extent, &wire, &raw, 64 * 1024);
    if let Some(peak) = peak_memory() {
        println!("\npeak memory of the whole run: {peak} MiB");
    }
}
