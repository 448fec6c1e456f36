//! An order service and its customer.
//!
//! Read the files in this order: [`orders`] says what is sent and where; [`service`] handles it; [`customer`] sends orders
//! and listens for what becomes of them; [`ledger`] keeps the books and [`summary`] balances them; [`lines`] reads the
//! input. What may carry it all is in [`wires`].

pub mod customer;
pub mod ledger;
pub mod lines;
pub mod orders;
pub mod service;
pub mod summary;
pub mod wires;

pub use service::app;
