#![doc = include_str!("../README.md")]
#![allow(
    clippy::unwrap_used,
    reason = "a behaviour reports by panicking, as any test does"
)]

mod behaviour;
mod connection;
mod counters;
mod harness;
mod leaks;
mod ledger;
mod profile;
pub mod proxy;
pub mod rig;
mod runner;
mod sabotage;
pub mod sections;
mod sightings;
mod skips;
mod streams;
mod subscription;
mod test;

pub use behaviour::{Behaviour, Need};
pub use connection::{Connection, PUBLISH_TIMEOUT};
pub use counters::Counters;
pub use harness::{BrokerControl, Foreign, Harness, Raw};
pub use ledger::{Ledger, assert_intact};
pub use profile::Profile;
pub use runner::{check, run};
pub use sabotage::Sabotage;
pub use sections::behaviours;
pub use sightings::{Sightings, Teller};
pub use streams::{Accepting, Streams, Talk};
pub use subscription::{Calls, Delivery, Subscription};
pub use test::{TEST_HEADER, Test, number};
