#![allow(unused_variables)]

use anywire::{Ignore, controller, event_pattern, message_pattern};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("shop.placed")]
    async fn placed(&self, _: Ignore) -> String {
        String::new()
    }

    #[message_pattern("shop.quote")]
    async fn quote(&self, _: Ignore) -> u32 {
        1
    }
}

#[event_pattern("user.created")]
async fn welcome(_: Ignore) -> bool {
    true
}

#[message_pattern("user.count")]
async fn count(_: Ignore) {}

fn main() {}
