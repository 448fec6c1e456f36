#![allow(unused_variables)]

use anywire::HandlerError;
use serde::Serialize;

#[derive(Debug, Serialize, HandlerError)]
enum ShopError {
    Gone,
}

fn main() {}
