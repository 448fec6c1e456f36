//! An order service and its customer.
//!
//! Read the files in this order: [`orders`] says what is sent and where; [`service`] handles it, and [`board`] knows how
//! far each order is; [`customer`] sends orders and listens for what becomes of them; [`visit`] makes streaming calls;
//! [`ledger`] keeps the books and [`summary`] balances them; [`lines`] reads the input. What may carry it all is in
//! [`wires`].

pub mod board;
pub mod customer;
pub mod ledger;
pub mod lines;
pub mod orders;
pub mod service;
pub mod summary;
pub mod visit;
pub mod wires;

pub use service::app;
