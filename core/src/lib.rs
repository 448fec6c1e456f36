#![doc = "anywire: write the handler once; run it on any wire."]

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;
mod app;
mod capability;
mod client;
pub mod clock;
mod codec;
pub mod config;
mod context;
mod contract;
mod engine;
mod error;
mod extract;
mod failure;
mod handler;
mod headers;
mod layer;
pub mod memory;
mod message;
pub mod pattern;
mod payload;
mod remote;
mod router;
mod secret;
mod subject;
pub mod telemetry;
pub mod testing;
pub mod transport;
pub mod wire;

#[cfg(feature = "macros")]
pub use anywire_macros::{
    HandlerError, Params, controller, event_pattern, handlers, message_pattern,
};
pub use app::{
    App, DescribedSubscription, Description, HandlerHealth, Health, RunningApp, TransportHealth,
};
#[doc(no_inline)]
pub use async_trait::async_trait;
#[doc(no_inline)]
pub use bytes::Bytes;
pub use capability::{Capabilities, DeliveryCount, Limits, OrderScope, Support};
pub use client::{
    Client, Delivery, Emit, EmitAll, EmitAllError, EmitFuture, Request, Subscribe, Subscription,
};
pub use codec::{Codec, ContentType};
pub use config::{AfterFailure, Config, HandlerSettings, Unrouted};
pub use context::Context;
pub use contract::{Call, CallPattern, CallTarget, Event, EventPattern, EventTarget, Filled};
pub use error::{Error, ErrorKind};
pub use extract::{FromDelivery, FromParams, Needs, Param, ParamMap, Params, Parts, State};
pub use failure::{Class, Classified, Failure, HandlerError, ResultExt};
pub use handler::{CallHandler, EventHandler, IntoOutcome, IntoReply, Output};
pub use headers::{
    HeaderValue, Headers, MAX_HEADER_BYTES, MAX_HEADER_NAME, MAX_HEADERS, RESERVED_PREFIX,
};
#[cfg(feature = "tower")]
pub use layer::{Dispatch, DispatchError, Dispatcher, TowerLayer};
pub use layer::{Layer, Next};
pub use message::{Key, Message, MessageId, Trail};
pub use pattern::publish_subscribe::{Guarantee, Order, Provision, Receipt, Start};
#[cfg(feature = "protobuf")]
pub use payload::Proto;
pub use payload::{Encoded, FromPayload, Ignore, IntoPayload, Raw};
pub use remote::RemoteError;
pub use router::{Controller, HandlerInfo, HandlerKind, Route, Router};
pub use secret::Secret;
pub use subject::{Captures, MAX_SUBJECT_LEN, Pattern, Subject};

/// What handlers and services return: any standard error becomes a [`Failure`] through `?`.
pub type Result<T, E = Failure> = std::result::Result<T, E>;
