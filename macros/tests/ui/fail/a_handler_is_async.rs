#![allow(unused_variables)]

use anywire::{Result, controller};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    fn placed(&self, order: u32) -> Result<()> {
        Ok(())
    }
}

fn main() {
    let _ = anywire::Router::new().controller(Shop);
}
