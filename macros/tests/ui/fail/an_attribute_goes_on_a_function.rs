#![allow(unused_variables)]

use anywire::event_pattern;

#[event_pattern("shop.placed")]
struct Shop;

#[event_pattern("shop.placed")]
impl Shop {}

fn main() {}
