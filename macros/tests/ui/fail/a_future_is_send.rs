#![allow(unused_variables)]

use std::rc::Rc;

use anywire::{Ignore, Result, controller, event_pattern};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&self, _: Ignore) -> Result<()> {
        let count = Rc::new(1);
        std::future::ready(()).await;
        drop(count);
        Ok(())
    }
}

#[event_pattern("user.created")]
async fn welcome(_: Ignore) -> Result<()> {
    let count = Rc::new(1);
    std::future::ready(()).await;
    drop(count);
    Ok(())
}

fn main() {}
