#![allow(unused_variables)]

use anywire::{Ignore, Result, event_pattern};

struct Shop;

impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&self, _: Ignore) -> Result<()> {
        Ok(())
    }
}

fn main() {}
