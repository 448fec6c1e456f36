#![allow(unused_variables)]

use anywire::{Ignore, Result, controller};

struct Shop;

#[controller(group = "billing")]
impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&self, _: Ignore) -> Result<()> {
        Ok(())
    }
}

fn main() {}
