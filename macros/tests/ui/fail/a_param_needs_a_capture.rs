#![allow(unused_variables)]

use anywire::{Ignore, Param, Result, Router, controller, event_pattern, handlers};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.{region}.placed")]
    async fn placed(&self, _: Ignore, Param(region): Param<String>, Param(shelf): Param<u32>) -> Result<()> {
        Ok(())
    }
}

#[event_pattern("shop.placed")]
async fn audit(_: Ignore, Param(region): Param<String>) -> Result<()> {
    Ok(())
}

fn main() {
    let _ = Router::new().controller(Shop).merge(handlers![audit]);
}
