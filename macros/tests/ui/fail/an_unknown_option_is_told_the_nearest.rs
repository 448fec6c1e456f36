#![allow(unused_variables)]

use anywire::{Ignore, Result, event_pattern, message_pattern};

#[event_pattern("shop.placed", concurency = 32)]
async fn placed(_: Ignore) -> Result<()> {
    Ok(())
}

#[event_pattern("shop.placed", colour = "red")]
async fn painted(_: Ignore) -> Result<()> {
    Ok(())
}

#[message_pattern("shop.quote", colour = "red")]
async fn quote(_: Ignore) -> Result<u32> {
    Ok(1)
}

fn main() {}
