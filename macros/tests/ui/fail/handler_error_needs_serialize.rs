#![allow(unused_variables)]

use anywire::HandlerError;

#[derive(Debug, HandlerError)]
enum ShopError {
    #[handler_error(message = "gone")]
    Gone,
}

fn main() {}
