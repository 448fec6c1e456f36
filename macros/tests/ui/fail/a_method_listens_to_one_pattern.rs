#![allow(unused_variables)]

use anywire::{Ignore, Result, controller, event_pattern};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    #[event_pattern("shop.moved")]
    async fn placed(&self, _: Ignore) -> Result<()> {
        Ok(())
    }
}

#[event_pattern("user.created")]
#[anywire::message_pattern("user.count")]
async fn welcome(_: Ignore) -> Result<()> {
    Ok(())
}

fn main() {}
