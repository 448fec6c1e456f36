//! The service: four controllers, and the app that mounts them. The fourth is in [`board`](super::board).
//!
//! A handler is an `async fn`. Its first argument is the payload; the others are what it wants to know about the
//! delivery. What it returns decides what becomes of the message:
//!
//! - `Ok`: done.
//! - any standard error, by `?`: tried again, by the handler's retry schedule, then put among the dead letters;
//! - a *permanent* failure: put among the dead letters at once;
//! - a payload that does not decode never reaches its handler: it is a dead letter, too, with its bytes as they came.
//!
//! A handler of calls returns the reply. One of streaming calls takes a stream (`import`), returns one
//! (`Board::follow`), or both (`negotiate`). Calls of both kinds are made at most once: who gets no answer asks again.
//!
//! No message is lost on the way, but one may come twice (a process that dies before it has acknowledged gets the message
//! again). So a handler that must not do a thing twice remembers what it did.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use anywire::{
    App, Classified, Client, Context, Error, Failure, HandlerError, Inbound, Param, Result,
    Unrouted, controller,
};
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;

use super::board::Board;
use super::orders::{
    Answer, CHARGE, CHARGED, Charge, Charged, IMPORT, Imported, Item, NEGOTIATE, Offer, Order,
    PLACED, QUOTE, Quote, RESERVE, RESERVED, Reserve, Reserved, ShopError,
};
use super::wires::on_all_wires;

/// The most that the shop sells at once.
const MOST: i64 = 1_000;
/// The most that a warehouse holds.
const WAREHOUSE: i64 = 500;
/// How many orders of an import are placed at once.
const PLACING: usize = 64;
/// How often the shop comes down with its price, two percent each time.
const ROUNDS: u64 = 5;

/// The app: what the program runs is what the tests test.
///
/// Its name is the group of its handlers. All instances of it share the work.
///
/// # Errors
/// None yet: a shop with a database would fail here where it cannot be opened.
pub fn app() -> Result<App> {
    Ok(on_all_wires(App::new("shop"))
        .controller(Shop::new())
        .controller(Billing::default())
        .controller(Stock)
        .controller(Board::default()))
}

/// Sells things.
#[derive(Debug)]
pub struct Shop {
    prices: BTreeMap<&'static str, u64>,
}

#[controller]
impl Shop {
    /// Quotes the price of an item.
    ///
    /// A call is answered by what its handler returns; the caller gets a `ShopError` back as a `ShopError`.
    #[message_pattern(QUOTE)]
    async fn quote(&self, item: Item) -> Result<Quote, ShopError> {
        self.price(&item)
    }

    /// Takes an order, and tells billing and the warehouse.
    ///
    /// The key keeps one customer's messages in order, while those of others are handled at the same time. Should one of
    /// the emits fail, the whole order is tried again. What was emitted before is then emitted with the id that it had,
    /// so that a broker can drop it; where it does not, billing knows the order already.
    #[event_pattern(PLACED, concurrency = 32)]
    async fn placed(
        &self,
        order: Order,
        Param(region): Param<String>,
        client: Client,
    ) -> Result<()> {
        let quote = self.price(&order.item()).classified()?;
        let charge = Charge {
            order: order.id.clone(),
            customer: order.customer.clone(),
            cents: quote.cents,
        };
        let reserve = Reserve {
            order: order.id,
            region,
            item: order.item,
            quantity: order.quantity,
        };
        client
            .emit(CHARGE, &charge)
            .key(order.customer.clone())
            .await?;
        client.emit(RESERVE, &reserve).key(order.customer).await?;
        Ok(())
    }

    /// Imports orders.
    ///
    /// `Inbound` is what the caller sends, item by item. It sends no more than we take: where placing them is slow, its
    /// next `send` waits. The reply comes when all are placed, and it is the only one: an import that breaks off in the
    /// middle has none, and the customer imports the same orders again. That is safe, as placing one twice is.
    #[stream_pattern(IMPORT)]
    async fn import(&self, orders: Inbound<Order>, client: Client) -> Result<Imported> {
        let mut placing = orders
            .map(|order| self.import_one(order, &client))
            .buffered(PLACING);
        let mut imported = Imported::default();
        while let Some(placed) = placing.next().await {
            match placed? {
                Ok(()) => imported.placed += 1,
                Err(refusal) => {
                    let code = refusal.code().into_owned();
                    *imported.refused.entry(code).or_default() += 1;
                }
            }
        }
        Ok(imported)
    }

    /// Haggles over a price: each offer has an answer, until there is a deal or the customer offers no more.
    ///
    /// The stream that it returns borrows from the shop. With the deal it lets go of the offers, and a customer who goes on
    /// offering is told that nobody listens.
    #[stream_pattern(NEGOTIATE)]
    fn negotiate(&self, offers: Inbound<Offer>) -> impl Stream<Item = Result<Answer>> {
        stream::try_unfold(Some((offers, 0)), move |haggling| async move {
            let Some((mut offers, round)) = haggling else {
                return Ok(None);
            };
            let Some(offer) = offers.next().await.transpose()? else {
                return Ok(None);
            };
            let answer = self.answer(&offer, round).classified()?;
            let goes_on = matches!(answer, Answer::Asking { .. });
            Ok(Some((answer, goes_on.then_some((offers, round + 1)))))
        })
    }

    /// Places an order, or says why the shop does not sell it. The error around it is what ends an import.
    async fn import_one(
        &self,
        order: Result<Order, Error>,
        client: &Client,
    ) -> Result<Result<(), ShopError>> {
        let order = order?;
        if let Err(refusal) = self.price(&order.item()) {
            return Ok(Err(refusal));
        }
        client
            .emit(PLACED.with("region", &order.region), &order)
            .key(order.customer.clone())
            .await?;
        Ok(Ok(()))
    }

    fn answer(&self, offer: &Offer, round: u64) -> Result<Answer, ShopError> {
        let price = self.price(&offer.item)?.cents;
        let asking = price - price * 2 * round.min(ROUNDS) / 100;
        Ok(match offer.cents >= asking {
            true => Answer::Deal { cents: offer.cents },
            false => Answer::Asking { cents: asking },
        })
    }

    fn price(&self, item: &Item) -> Result<Quote, ShopError> {
        let unknown = || ShopError::UnknownItem {
            item: item.item.clone(),
        };
        let bad = || ShopError::BadQuantity {
            quantity: item.quantity,
            most: MOST,
        };
        let price = self.prices.get(item.item.as_str()).ok_or_else(unknown)?;
        if !(1..=MOST).contains(&item.quantity) {
            return Err(bad());
        }
        Ok(Quote {
            cents: price * item.quantity.unsigned_abs(),
        })
    }

    fn new() -> Self {
        Self {
            prices: BTreeMap::from([
                ("bell", 450),
                ("candle", 220),
                ("chair", 7_900),
                ("clock", 3_450),
                ("kettle", 2_990),
                ("lamp", 4_200),
                ("mug", 890),
                ("rug", 12_500),
                ("spoon", 150),
                ("teapot", 3_900),
            ]),
        }
    }
}

/// Charges cards.
#[derive(Debug, Default)]
pub struct Billing {
    /// The orders that are paid. A real shop asks its database.
    paid: Mutex<HashSet<String>>,
}

#[controller]
impl Billing {
    /// Charges an order.
    ///
    /// The card network fails now and then. Its error goes through the `?`, and the message is tried again after 20 ms,
    /// then after 100 ms; if the third attempt fails, too, it is a dead letter. Configuration can change the schedule
    /// without a build (`[handlers.charge] retry = [..]`).
    #[event_pattern(CHARGE, retry = ["20ms", "100ms"])]
    async fn charge(&self, charge: Charge, context: Context, client: Client) -> Result<()> {
        let attempts = context.attempt();
        if !self.paid.lock().contains(&charge.order) {
            charge_card(&charge, attempts)?;
            self.paid.lock().insert(charge.order.clone());
        }
        let charged = Charged {
            order: charge.order,
            attempts,
        };
        // By default an event that nobody listens to is an error. Here it is none: customers come and go.
        client
            .emit(CHARGED, &charged)
            .unrouted(Unrouted::Ignore)
            .await?;
        Ok(())
    }
}

/// Sets things aside in the warehouse.
#[derive(Debug)]
pub struct Stock;

#[controller]
impl Stock {
    /// Reserves what was ordered. Trying again makes no warehouse larger, so that failure is permanent.
    #[event_pattern(RESERVE)]
    async fn reserve(&self, reserve: Reserve, client: Client) -> Result<()> {
        if reserve.quantity > WAREHOUSE {
            return Err(Failure::permanent("more than the warehouse holds"));
        }
        let reserved = Reserved {
            order: reserve.order,
        };
        client
            .emit(RESERVED, &reserved)
            .unrouted(Unrouted::Ignore)
            .await?;
        Ok(())
    }
}

/// The card network, which is not ours: it says no to one attempt in six. The same ones in every run, so that the
/// example's figures can be compared.
fn charge_card(charge: &Charge, attempt: u32) -> Result<(), Declined> {
    let seed = charge.order.bytes().chain(attempt.to_le_bytes());
    let hash = seed.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3) // FNV-1a
    });
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    if (mixed >> 33) % 6 == 0 {
        return Err(Declined);
    }
    Ok(())
}

/// An ordinary error: the framework asks nothing of it.
#[derive(Debug)]
struct Declined;

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the card was declined")
    }
}

impl std::error::Error for Declined {}
