#![allow(unused_variables)]

use anywire::{Result, controller, event_pattern};

struct Item;

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&self, item: Item) -> Result<()> {
        Ok(())
    }

    #[message_pattern("shop.quote")]
    async fn quote(&self, item: Item) -> Result<u32> {
        Ok(1)
    }
}

#[event_pattern("user.created")]
async fn welcome(item: Item) -> Result<()> {
    Ok(())
}

fn main() {}
