#![allow(unused_variables)]

use anywire::controller;

#[controller]
struct Shop;

#[controller]
fn shop() {}

fn main() {
    let _ = Shop;
}
