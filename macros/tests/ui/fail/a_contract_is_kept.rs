#![allow(unused_variables)]

use anywire::{Call, Event, Failure, Result, controller, event_pattern};

const PLACED: Event<u32> = Event::new("shop.placed");
const QUOTE: Call<u32, u64, Failure> = Call::new("shop.quote");

struct Shop;

#[controller]
impl Shop {
    #[event_pattern(PLACED)]
    async fn placed(&self, order: String) -> Result<()> {
        Ok(())
    }

    #[message_pattern(QUOTE)]
    async fn quote(&self, item: u32) -> Result<String> {
        Ok(String::new())
    }
}

#[event_pattern(PLACED)]
async fn audit(order: String) -> Result<()> {
    Ok(())
}

#[event_pattern(QUOTE)]
async fn quote(item: u32) -> Result<()> {
    Ok(())
}

fn main() {}
