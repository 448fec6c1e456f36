#![allow(unused_variables)]

use anywire::{Ignore, Result, controller, event_pattern};

struct Db;

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&self, _: Ignore, db: Db) -> Result<()> {
        Ok(())
    }
}

#[event_pattern("user.created")]
async fn welcome(_: Ignore, db: Db) -> Result<()> {
    Ok(())
}

fn main() {}
