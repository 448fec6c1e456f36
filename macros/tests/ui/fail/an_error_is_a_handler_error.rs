#![allow(unused_variables)]

use anywire::{Ignore, controller, event_pattern};

struct Shop;

struct Broken;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&self, _: Ignore) -> Result<(), Broken> {
        Ok(())
    }
}

#[event_pattern("user.created")]
async fn welcome(_: Ignore) -> Result<(), std::io::Error> {
    Ok(())
}

fn main() {}
