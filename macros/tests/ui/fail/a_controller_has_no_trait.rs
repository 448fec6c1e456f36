#![allow(unused_variables)]

use anywire::{Ignore, Result, controller};

trait Placed {
    async fn placed(&self, _: Ignore) -> Result<()>;
}

struct Shop;

#[controller]
impl Placed for Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&self, _: Ignore) -> Result<()> {
        Ok(())
    }
}

fn main() {}
