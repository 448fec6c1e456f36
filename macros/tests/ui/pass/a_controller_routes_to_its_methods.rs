#![deny(warnings)]

use std::sync::atomic::{AtomicU32, Ordering};

use anywire::{Client, Context, Headers, Ignore, Param, Raw, Result, Router, State, controller};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Order {
    amount: u32,
}

#[derive(Serialize)]
struct Quote(u32);

/// A public controller of private types.
pub struct Shop {
    placed: AtomicU32,
}

#[controller]
impl Shop {
    /// Quotes the price of an order.
    #[message_pattern("shop.quote")]
    async fn quote(&self, order: Order) -> Result<Quote> {
        Ok(Quote(self.price(&order)))
    }

    #[anywire::event_pattern("shop.{region}.placed")]
    async fn placed(
        &self,
        mut order: Order,
        Param(region): Param<String>,
        _headers: Headers,
        context: Context,
        State(limit): State<u32>,
        client: Client,
    ) -> Result<()> {
        order.amount = order.amount.min(limit);
        self.placed.fetch_add(self.price(&order), Ordering::Relaxed);
        let _ = (region, context, client);
        Ok(())
    }

    #[event_pattern("shop.>")]
    async fn clone(&self, Raw(bytes): Raw) {
        let _ = bytes;
    }

    #[message_pattern("shop.total")]
    async fn total(_: Ignore) -> Result<impl Serialize> {
        Ok(1)
    }

    #[event_pattern("shop.closed")]
    async fn closed(_: Ignore) {}

    #[event_pattern("shop.left")]
    #[cfg(any())]
    async fn left_out(&self, _: NotThere) {}

    #[event_pattern("shop.moved")]
    async fn r#move(&self, _: Ignore) -> Result<()> {
        Ok(())
    }

    fn price(&self, order: &Order) -> u32 {
        order.amount
    }
}

fn main() {
    let router = Router::new().controller(Shop { placed: AtomicU32::new(0) });
    let shown = format!("{router:?}");
    for name in ["quote", "placed", "clone", "closed", "move"] {
        assert!(shown.contains(&format!("name: \"{name}\"")), "{name}: {shown}");
    }
    assert!(!shown.contains("left_out"));
}
