#![allow(unused_variables)]

use anywire::{Ignore, event_pattern};

#[event_pattern("shop.placed", group = "billing", broadcast)]
async fn placed(_: Ignore) {}

fn main() {}
