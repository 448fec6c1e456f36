#![allow(unused_variables)]

use std::fmt::Display;

use anywire::{Result, controller};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed<T: Display>(&self, order: T) -> Result<()> {
        Ok(())
    }

    #[event_pattern("shop.moved")]
    async fn moved(&self, order: impl Display) -> Result<()> {
        Ok(())
    }
}

fn main() {}
