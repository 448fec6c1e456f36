#![deny(warnings)]

use anywire::{FromParams, Ignore, Params, Result, handlers};

#[derive(Params)]
struct Place {
    region: String,
    r#type: u8,
}

#[derive(Params)]
struct Typed<T: std::str::FromStr<Err: std::fmt::Display>> {
    id: T,
}

#[anywire::event_pattern("shop.{region}.{type}.{id}")]
async fn placed(_: Ignore, Params(place): Params<Place>, Params(typed): Params<Typed<u32>>) -> Result<()> {
    println!("{} {} {}", place.region, place.r#type, typed.id);
    Ok(())
}

fn main() {
    assert_eq!(Place::NAMES, ["region", "type"]);
    let _ = handlers![placed];
}
