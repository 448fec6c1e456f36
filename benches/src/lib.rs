//! What the benches share: alternating rounds, medians, percentiles, an allocation counter, and a table.

mod allocations;
mod rounds;

pub use allocations::{Counting, allocated};
pub use rounds::{Latencies, Measured, Runtime, Table, alternate, call, peak_memory};
