#![allow(unused_variables)]

use anywire::{Ignore, Result, controller, message_pattern};

struct Quote;

struct Shop;

#[controller]
impl Shop {
    #[message_pattern("shop.quote")]
    async fn quote(&self, _: Ignore) -> Result<Quote> {
        Ok(Quote)
    }
}

#[message_pattern("shop.quote")]
async fn quote(_: Ignore) -> Result<Quote> {
    Ok(Quote)
}

fn main() {}
