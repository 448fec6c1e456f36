#![allow(unused_variables)]

use anywire::{Ignore, event_pattern, message_pattern};

#[event_pattern(42)]
async fn a(_: Ignore) {}

#[event_pattern]
async fn b(_: Ignore) {}

#[event_pattern(group = "billing")]
async fn c(_: Ignore) {}

#[message_pattern()]
async fn d(_: Ignore) -> anywire::Result<u32> {
    Ok(1)
}

fn main() {}
