//! What tests against a real broker have in common, beside the suite: a server that can be started and broken, tests that
//! are ignored where there is none, certificates, and books of what was sent and handled.

mod authority;
mod books;
mod broker;
mod outage;
mod program;
mod refusal;
mod remains;
mod seen;
mod storm;
pub mod trials;
mod waiting;

pub use authority::Authority;
pub use books::{Balance, Books, SLACK};
pub use broker::Broker;
pub use outage::Outage;
pub use program::{Program, Signal, free_port};
pub use refusal::refusal;
pub use remains::{leaves_nothing, resident, sockets, threads};
pub use seen::{Seen, dead_letters};
pub use storm::Storm;
pub use waiting::{soon, until, until_async};
