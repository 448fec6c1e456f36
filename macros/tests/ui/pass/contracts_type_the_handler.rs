#![deny(warnings)]

use anywire::{Call, Event, HandlerError, Param, Result, Router, controller, handlers};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Order;

#[derive(Debug, Serialize, Deserialize, HandlerError)]
enum ShopError {
    #[handler_error(message = "gone")]
    Gone,
}

mod contracts {
    use super::{Call, Event, Order, ShopError};

    pub(crate) const PLACED: Event<Order> = Event::new("shop.{region}.placed");
    pub(crate) const QUOTE: Call<Order, u32, ShopError> = Call::new("shop.quote");
}

struct Shop;

#[controller]
impl Shop {
    #[event_pattern(contracts::PLACED, concurrency = 2)]
    async fn placed(&self, _: Order, Param(region): Param<String>) -> Result<()> {
        drop(region);
        Ok(())
    }

    #[message_pattern(contracts::QUOTE)]
    async fn quote(&self, _: Order) -> Result<u32, ShopError> {
        Err(ShopError::Gone)
    }
}

#[anywire::event_pattern(contracts::PLACED)]
async fn audit(_: Order) -> Result<()> {
    Ok(())
}

#[anywire::event_pattern(format!("{}.shut", "shop").as_str())]
async fn shut(_: Order) -> Result<()> {
    Ok(())
}

fn main() {
    let _ = Router::new().controller(Shop).merge(handlers![audit, shut]);
}
