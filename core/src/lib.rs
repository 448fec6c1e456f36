#![doc = "anywire: write the handler once; run it on any wire."]

mod capability;
pub mod clock;
mod codec;
pub mod config;
mod error;
mod failure;
mod headers;
pub mod memory;
mod message;
pub mod pattern;
mod remote;
mod secret;
mod subject;
pub mod transport;
pub mod wire;

pub use capability::{Capabilities, DeliveryCount, Limits, OrderScope, Support};
pub use codec::{Codec, ContentType};
pub use error::{Error, ErrorKind};
pub use failure::{Class, Classified, Failure, HandlerError, ResultExt};
pub use headers::{
    HeaderValue, Headers, MAX_HEADER_BYTES, MAX_HEADER_NAME, MAX_HEADERS, RESERVED_PREFIX,
};
pub use message::{Key, Message, MessageId, Trail};
pub use pattern::publish_subscribe::{Guarantee, Order, Provision, Receipt, Start};
pub use remote::RemoteError;
pub use secret::Secret;
pub use subject::{Captures, MAX_SUBJECT_LEN, Pattern, Subject};

/// What handlers and services return: any standard error becomes a [`Failure`] through `?`.
pub type Result<T, E = Failure> = std::result::Result<T, E>;
