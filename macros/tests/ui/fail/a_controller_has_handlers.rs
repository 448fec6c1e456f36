#![allow(unused_variables)]

use anywire::controller;

struct Shop;

#[controller]
impl Shop {
    fn helper(&self) {}
}

fn main() {}
