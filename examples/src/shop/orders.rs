//! What travels between the shop and its customers: the types, and the contracts that name their subjects.
//!
//! A contract is a const. Whoever uses it, to send or to handle, gets the payload's type checked by the compiler.

use std::collections::BTreeMap;

use anywire::{Call, Duplex, Event, HandlerError, Streaming, Upload};
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

/// What became of an order? A streaming call of one request and many replies: the steps that were taken, then each step as
/// it is taken, until the last one. It is refused with a [`ShopError`] where nothing is known of the order.
pub const FOLLOW: Streaming<String, Step, ShopError> = Streaming::new("shop.follow");

/// Takes many orders, and says in the end how many of them were placed. A streaming call of many requests and one reply.
pub const IMPORT: Upload<Order, Imported> = Upload::new("shop.import");

/// Can we agree on a price? A streaming call of many requests and many replies: each offer has an answer.
pub const NEGOTIATE: Duplex<Offer, Answer> = Duplex::new("shop.negotiate");

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
    /// Nothing is known of such an order. It may have been placed a moment ago, so asking again makes sense: `transient`
    /// says that to the caller.
    #[handler_error(transient, message = "nothing is known of an order {order}")]
    UnknownOrder {
        /// What was asked for.
        order: String,
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

/// All that is sent about an order names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct About {
    /// The order's id.
    #[serde(alias = "id")]
    pub order: String,
}

/// What becomes of an order, step by step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The shop has taken it.
    Taken,
    /// It is paid.
    Charged {
        /// How many times it was tried.
        attempts: u32,
    },
    /// It is set aside.
    Reserved,
    /// A part of it is a dead letter.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What became of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Orders placed. They are on the wire: what happens now happens to them as to any other order.
    pub placed: u64,
    /// Orders that the shop does not sell, by the code of its error.
    pub refused: BTreeMap<String, u64>,
}

/// What a customer would pay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// For how many of what.
    pub item: Item,
    /// For all of them.
    pub cents: u64,
}

/// What the shop says to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Offer more. This is what would do.
    Asking {
        /// For all of them.
        cents: u64,
    },
    /// Agreed. Nothing comes after it.
    Deal {
        /// For all of them.
        cents: u64,
    },
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
