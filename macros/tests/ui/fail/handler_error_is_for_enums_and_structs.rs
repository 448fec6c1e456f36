#![allow(unused_variables)]

use anywire::HandlerError;

#[derive(HandlerError)]
union ShopError {
    code: u32,
}

fn main() {}
