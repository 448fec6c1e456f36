#![allow(unused_variables)]

use anywire::{HandlerError, Ignore, event_pattern};
use serde::Serialize;

#[derive(Debug, Serialize, HandlerError)]
enum ShopError {
    #[handler_error(message = "no item {skuu}")]
    Unknown { sku: String },
}

#[derive(Debug, Serialize, HandlerError)]
#[handler_error(message = "no item {1}")]
struct NoItem(String);

#[derive(Debug, Serialize, HandlerError)]
#[handler_error(message = "no item {}")]
struct Nameless(String);

#[derive(Debug, Serialize, HandlerError)]
#[handler_error(message = "no item {sku}")]
struct Nothing;

#[event_pattern("shop.placed")]
async fn placed(_: Ignore) -> Result<(), ShopError> {
    Err(ShopError::Unknown { sku: String::new() })
}

fn main() {}
