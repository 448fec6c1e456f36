//! What the example programs share with their tests.
//!
//! Read [`shop`] first: an order service, the customer who uses it, and the ledger that shows that nothing was lost.

pub mod bridge;
pub mod shop;
