#![allow(unused_variables)]

use std::sync::Arc;

use anywire::{Ignore, Result, controller};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&mut self, _: Ignore) -> Result<()> {
        Ok(())
    }

    #[event_pattern("shop.moved")]
    async fn moved(self, _: Ignore) -> Result<()> {
        Ok(())
    }

    #[event_pattern("shop.sent")]
    async fn sent(self: Arc<Self>, _: Ignore) -> Result<()> {
        Ok(())
    }
}

fn main() {}
