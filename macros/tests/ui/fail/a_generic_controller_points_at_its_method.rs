#![allow(unused_variables)]

use anywire::{Ignore, Result, controller};

struct Item;

struct Shop<T>(T);

#[controller]
impl<T: Send + Sync + 'static> Shop<T> {
    #[event_pattern("shop.placed")]
    async fn placed(&self, item: Item) -> Result<()> {
        Ok(())
    }

    #[event_pattern("shop.moved")]
    async fn moved(&self, _: Ignore) -> u32 {
        1
    }
}

fn main() {}
