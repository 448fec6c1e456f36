#![allow(unused_variables)]

use anywire::{Ignore, Params, event_pattern};

#[derive(Params)]
struct Place(String);

#[derive(Params)]
enum Region {
    Eu,
}

#[event_pattern("shop.{region}.placed")]
async fn placed(_: Ignore, Params(place): Params<Place>) {}

fn main() {}
