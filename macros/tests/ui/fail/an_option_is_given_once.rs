#![allow(unused_variables)]

use anywire::{Ignore, event_pattern};

#[event_pattern("shop.placed", concurrency = 8, group = "billing", concurrency = 16)]
async fn placed(_: Ignore) {}

fn main() {}
