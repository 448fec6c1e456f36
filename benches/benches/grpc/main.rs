//! gRPC: calls and streams against a program written by hand on tonic, with the same codec work.

mod raw;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anywire::App;
use anywire_benches::{Counting, Extent, Runtime, Table, Wire, alternate, peak_memory};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A wire whose first app listens, and whose client calls it.
fn wire() -> Wire {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let address = port.expect("a port");
    let listens = Arc::new(AtomicBool::new(true));
    Wire::new(move || {
        let app = App::new("bench").adapter(anywire_grpc::adapter());
        match listens.swap(false, Ordering::Relaxed) {
            true => app.url(&format!("grpc://?listen={address}")),
            false => app.url(&format!("grpc://{address}")),
        }
    })
}

fn main() {
    let (extent, mut table) = (Extent::from_args(), Table::default());
    Table::heading();
    for (callers, count) in [(1, 4_000), (100, 40_000)] {
        let (name, count) = (format!("call, {callers} in flight"), count * extent.scale);
        if extent.wants(&name) {
            let (ours, raw) = alternate(
                extent.rounds,
                || Runtime::Two.run(wire().calls(callers, count)),
                || Runtime::Two.run(raw::calls(callers, count)),
            );
            table.row(&name, ">= 0.95", &ours, &raw);
        }
    }
    for (size, count) in [(128, 100_000), (16 * 1024, 10_000)] {
        let (name, count) = (format!("stream, {size} B"), count * extent.scale);
        if extent.wants(&name) {
            let (ours, raw) = alternate(
                extent.rounds,
                || Runtime::Two.run(wire().stream(size, count)),
                || Runtime::Two.run(raw::stream(size, count)),
            );
            table.row(&name, ">= 0.95", &ours, &raw);
        }
    }
    let name = "stream, first item";
    if extent.wants(name) {
        let count = 4_000 * extent.scale;
        let (ours, raw) = alternate(
            extent.rounds,
            || Runtime::Two.run(wire().first_item(count)),
            || Runtime::Two.run(raw::first_item(count)),
        );
        table.row(name, "-", &ours, &raw);
    }
    if let Some(peak) = peak_memory() {
        println!("\npeak memory of the whole run: {peak} MiB");
    }
}
