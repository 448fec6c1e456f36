//! What the benches have in common: counting, alternating, tables, and our side on any wire.

mod allocations;
pub mod progress;
mod raw;
mod rounds;
mod wire;

pub use allocations::{Counting, allocated};
pub use raw::{Extent, Raw, rows};
pub use rounds::{Latencies, Measured, Runtime, Table, alternate, call, peak_memory};
pub use wire::Wire;
