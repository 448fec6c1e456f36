//! What runs handlers: pulls deliveries, calls handlers, and turns what they return into settlements.

mod attempt;
mod calls;
pub(crate) mod copies;
mod events;
mod lanes;
mod retry;
mod streams;
mod worker;

pub(crate) use attempt::Invoke;
pub(crate) use calls::CallWork;
pub(crate) use events::{EventSettings, EventWork};
pub(crate) use retry::{LONGEST, Schedule};
pub(crate) use streams::StreamWork;
pub(crate) use worker::{Crew, Work};
