#![allow(unused_variables)]

use anywire::{Result, controller, event_pattern};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&self) -> Result<()> {
        Ok(())
    }
}

#[event_pattern("shop.placed")]
async fn audit() -> Result<()> {
    Ok(())
}

fn main() {}
