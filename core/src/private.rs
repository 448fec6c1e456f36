//! What the macros' expansion uses and nobody else should.

use serde::Serialize;
pub use serde_json::Value;

pub use crate::handler::Handler;

use crate::Route;

/// An annotated function, as `handlers![]` finds it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an annotated handler",
    label = "has no pattern",
    note = "put `#[event_pattern(\"...\")]` or `#[message_pattern(\"...\")]` on the function",
    note = "a controller is mounted with `.controller(..)`"
)]
pub trait Annotated {
    /// Its route.
    fn route() -> Route;
}

/// A typed error as the details that its caller can decode.
pub fn details<T: Serialize + ?Sized>(error: &T) -> Option<Value> {
    serde_json::to_value(error).ok()
}

pub use crate::stream_handler::{Collecting, Driving, Flowing, Refusing};
