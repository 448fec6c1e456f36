#![allow(unused_variables)]

use anywire::HandlerError;
use serde::Serialize;

#[derive(Debug, Serialize, HandlerError)]
enum Unknown {
    #[handler_error(cod = "gone", message = "gone")]
    Gone,
}

#[derive(Debug, Serialize, HandlerError)]
enum TwoClasses {
    #[handler_error(transient, discard, message = "gone")]
    Gone,
}

#[derive(Debug, Serialize, HandlerError)]
enum NotText {
    #[handler_error(code = 7, message = "gone")]
    Gone,
}

#[derive(Debug, Serialize, HandlerError)]
#[handler_error(code = "gone")]
enum OnTheEnum {
    #[handler_error(message = "gone")]
    Gone,
}

#[derive(Debug, Serialize, HandlerError)]
enum OnTheVariant {
    #[handler_error(message = "gone", no_details)]
    Gone,
}

#[derive(Debug, Serialize, HandlerError)]
#[handler_error(message = "gone", message = "lost")]
struct Twice;

fn main() {}
