//! What travels between the shop and its customers: the types, and the contracts that name their subjects.
//!
//! A contract is a const. Whoever uses it, to send or to handle, gets the payload's type checked by the compiler.

use anywire::{Call, Event, HandlerError};
use serde::{Deserialize, Serialize};

/// What does an item cost? A call: it has one reply, or a [`ShopError`].
pub const QUOTE: Call<Item, Quote, ShopError> = Call::new("shop.quote");

/// An order was placed. An event: nobody answers it. The region is a capture, which the handler gets as a `Param`.
pub const PLACED: Event<Order> = Event::new("shop.{region}.placed");

/// Billing shall charge an order.
pub const CHARGE: Event<Charge> = Event::new("billing.charge");

/// Billing has charged an order.
pub const CHARGED: Event<Charged> = Event::new("billing.charged");

/// The warehouse shall reserve what was ordered.
pub const RESERVE: Event<Reserve> = Event::new("stock.reserve");

/// The warehouse has reserved it.
pub const RESERVED: Event<Reserved> = Event::new("stock.reserved");

/// One line of the input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The customer's number for it, unique.
    pub id: String,
    /// Who ordered.
    pub customer: String,
    /// Where it is delivered.
    pub region: String,
    /// What was ordered.
    pub item: String,
    /// How many. Signed, because people send us negative numbers, and deserve a better answer than "undecodable".
    pub quantity: i64,
}

/// How many of what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What.
    pub item: String,
    /// How many.
    pub quantity: i64,
}

/// What it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// For all of them, in cents.
    pub cents: u64,
}

/// Why the shop does not sell something. The derive makes it an error that handlers return and callers get back, typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, HandlerError)]
pub enum ShopError {
    /// We do not have it.
    #[handler_error(message = "there is no item {item}")]
    UnknownItem {
        /// What was asked for.
        item: String,
    },
    /// Nobody can buy so many.
    #[handler_error(message = "{quantity} is not a quantity; order 1 to {most}")]
    BadQuantity {
        /// What was asked for.
        quantity: i64,
        /// The most that we sell at once.
        most: i64,
    },
}

/// How much to charge to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// The order's id.
    pub order: String,
    /// Who pays.
    pub customer: String,
    /// How much.
    pub cents: u64,
}

/// An order is paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charged {
    /// The order's id.
    pub order: String,
    /// How many times it was tried.
    pub attempts: u32,
}

/// What to set aside, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// The order's id.
    pub order: String,
    /// Which warehouse.
    pub region: String,
    /// What.
    pub item: String,
    /// How many.
    pub quantity: i64,
}

/// It is set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// The order's id.
    pub order: String,
}

impl Order {
    /// What was ordered.
    #[must_use]
    pub fn item(&self) -> Item {
        Item {
            item: self.item.clone(),
            quantity: self.quantity,
        }
    }
}
