#![allow(unused_variables)]

use anywire::Params;

#[derive(Params)]
struct Place {
    region: String,
    shelf: Vec<u32>,
}

fn main() {}
