#![deny(warnings)]

use anywire::{Class, HandlerError, Result};
use serde::Serialize;

#[derive(Debug, PartialEq, Serialize, HandlerError)]
#[handler_error(transient)]
enum ShopError {
    #[handler_error(message = "no item {sku} in {type}", permanent)]
    UnknownItem { sku: String, r#type: u8, unused: bool },
    #[handler_error(code = "busy", message = "wait {0:>3} of {1:?}, {{really}}")]
    Overloaded(u32, &'static str),
    #[handler_error(discard)]
    #[handler_error(message = "gone")]
    Gone,
}

#[derive(Debug, Serialize, HandlerError)]
struct HttpError<T: std::fmt::Debug + Serialize + Send + Sync + 'static>(T);

impl<T: std::fmt::Debug + Serialize + Send + Sync + 'static> std::fmt::Display for HttpError<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {:?}", self.0)
    }
}

#[derive(Debug, HandlerError)]
#[handler_error(no_details, message = "hidden", code = "hidden", discard)]
struct Secret;

#[derive(Debug, Serialize, HandlerError)]
enum Never {}

fn told(error: &impl HandlerError) -> (String, String, Class) {
    (error.code().into_owned(), error.message(), error.class())
}

async fn _handler() -> Result<(), Never> {
    Ok(())
}

fn main() {
    let unknown = ShopError::UnknownItem { sku: "a-1".into(), r#type: 7, unused: true };
    assert_eq!(told(&unknown), ("unknown_item".into(), "no item a-1 in 7".into(), Class::Permanent));
    let details = unknown.details().unwrap();
    assert_eq!(details["UnknownItem"]["sku"], "a-1");

    let busy = ShopError::Overloaded(5, "x");
    assert_eq!(told(&busy), ("busy".into(), "wait   5 of \"x\", {really}".into(), Class::Transient));
    assert_eq!(told(&ShopError::Gone), ("gone".into(), "gone".into(), Class::Discard));

    let http = HttpError(404);
    assert_eq!(told(&http), ("http_error".into(), "status 404".into(), Class::Permanent));
    assert_eq!(http.details().unwrap(), 404);
    assert_eq!(told(&Secret), ("hidden".into(), "hidden".into(), Class::Discard));
    assert!(Secret.details().is_none());
}
