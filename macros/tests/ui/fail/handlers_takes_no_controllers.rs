#![allow(unused_variables)]

use anywire::{Ignore, Result, controller, handlers};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&self, _: Ignore) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = handlers![Shop];
}
