//! Write the handler once; run it on any wire: a messaging framework for Rust services.
//!
//! ```
//! use anywire::{App, Client, Param, Result, controller};
//!
//! struct Shop {
//!     price: u32,
//! }
//!
//! #[controller]
//! impl Shop {
//!     #[message_pattern("shop.quote")]
//!     async fn quote(&self, count: u32) -> Result<u32> {
//!         Ok(count * self.price)
//!     }
//!
//!     #[event_pattern("shop.{region}.placed", concurrency = 32)]
//!     async fn placed(&self, count: u32, Param(region): Param<String>, client: Client) -> Result<()> {
//!         let cents: u32 = client.request("shop.quote", &count).await?;
//!         println!("{region}: {cents}");
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! let app = App::new("shop").controller(Shop { price: 250 }).start().await?; // or `run()`: until SIGTERM
//! app.client().emit("shop.eu.placed", &2).await?;
//! app.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Swap the wire
//!
//! `main` names the adapters that may be used (`.adapter(..)`), the configuration says which one is: `ANYWIRE_URL=memory://`, or `url` in
//! `anywire.toml`. Handlers, patterns, retries, dead letters and typed errors mean the same on every wire, which the conformance
//! suite `anywire-conformance` shows; what a wire cannot do stops the start. With no other adapter and no URL it is memory.
//!
//! | Wire | Scheme | Adapter |
//! | --- | --- | --- |
//! | memory, inside one process | `memory://` | [`memory`], always there |
//!
//! # Where to look
//!
//! | For | See |
//! | --- | --- |
//! | a service: handlers, adapters, its start and its end | [`App`], [`RunningApp`] |
//! | handlers | [`controller`](macro@controller), [`event_pattern`](macro@event_pattern), [`message_pattern`](macro@message_pattern); without macros [`Router`], [`Route`] |
//! | what a handler takes | [`FromPayload`], [`FromDelivery`], [`Param`], [`Params`](struct@Params), [`State`], [`Context`] |
//! | sending and listening | [`Client`], [`Subscription`], [`Delivery`] |
//! | streaming calls | [`stream_pattern`](macro@stream_pattern), [`Inbound`], [`Outbound`], [`Client::stream`], [`Client::upload`], [`Client::duplex`] |
//! | typed subjects | [`Event`], [`Call`], [`Streaming`], [`Upload`], [`Duplex`] |
//! | failing | [`Failure`], [`HandlerError`](trait@HandlerError), [`Error`], [`RemoteError`] |
//! | middleware | [`Layer`] |
//! | settings | [`config`] |
//! | tests | [`testing::TestApp`] |
//! | counters and spans | [`telemetry`] |
//! | writing an adapter | [`transport`], [`pattern`], [`wire`] |
//!
//! # Features
//!
//! | Feature | Default | What it adds |
//! | --- | --- | --- |
//! | `macros` | yes | the attributes and derives |
//! | `signals` | yes | `App::run`, which ends on SIGTERM and Ctrl-C |
//! | `msgpack` | no | MessagePack payloads |
//! | `cbor` | no | CBOR payloads |
//! | `protobuf` | no | `Proto<T>` payloads, by `prost` |
//! | `tower` | no | `TowerLayer`, which lets a `tower` layer wrap handlers |
//!
//! # Guide
//!
//! [Getting started][1], [handlers and extractors][2], [patterns and subjects][3], [failures, retries and dead letters][4],
//! [synchronous, asynchronous or both?][10], [streaming calls][11], [configuration][5], [testing][6], [beside axum][7],
//! [writing an adapter][8], [coming from NestJS][9].
//!
//! [1]: https://github.com/anywire/anywire/blob/main/docs/getting-started.md
//! [2]: https://github.com/anywire/anywire/blob/main/docs/handlers-and-extractors.md
//! [3]: https://github.com/anywire/anywire/blob/main/docs/patterns-and-subjects.md
//! [4]: https://github.com/anywire/anywire/blob/main/docs/failures-retries-and-dead-letters.md
//! [5]: https://github.com/anywire/anywire/blob/main/docs/configuration.md
//! [6]: https://github.com/anywire/anywire/blob/main/docs/testing.md
//! [7]: https://github.com/anywire/anywire/blob/main/docs/beside-axum.md
//! [8]: https://github.com/anywire/anywire/blob/main/docs/writing-an-adapter.md
//! [9]: https://github.com/anywire/anywire/blob/main/docs/coming-from-nestjs.md
//! [10]: https://github.com/anywire/anywire/blob/main/docs/choosing-a-pattern.md
//! [11]: https://github.com/anywire/anywire/blob/main/docs/streaming.md

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
mod position;
mod random;
mod remote;
mod router;
mod secret;
mod seldom;
mod stream;
mod stream_handler;
mod subject;
pub mod telemetry;
pub mod testing;
pub mod transport;
pub mod wire;

#[cfg(feature = "macros")]
pub use anywire_macros::{
    HandlerError, Params, controller, event_pattern, handlers, message_pattern, stream_pattern,
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
    Both, Client, Delivery, Emit, EmitAll, EmitAllError, EmitFuture, Open, Replies, Request,
    RequestFuture, Requests, Subscribe, Subscription,
};
pub use codec::{Codec, ContentType};
pub use config::{AfterFailure, Config, HandlerSettings, Unrouted};
pub use context::Context;
pub use contract::{
    Call, CallPattern, CallTarget, Duplex, Event, EventPattern, EventTarget, Filled, Many, One,
    StreamPattern, StreamTarget, Streaming, Upload,
};
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
pub use pattern::publish_subscribe::{Guarantee, Order, Provision, Receipt, Start, Until};
#[cfg(feature = "protobuf")]
pub use payload::Proto;
pub use payload::{Encoded, FromPayload, Ignore, IntoPayload, Raw};
pub use position::Position;
pub use remote::RemoteError;
pub use router::{Controller, HandlerInfo, HandlerKind, Route, Router};
pub use secret::Secret;
pub use stream::{Inbound, Outbound, Uploading};
pub use stream_handler::{Driven, IntoReplies, StreamArgument, StreamHandler, StreamReply};
pub use subject::{Captures, MAX_SUBJECT_LEN, Pattern, Subject};

/// What handlers and services return: any standard error becomes a [`Failure`] through `?`.
pub type Result<T, E = Failure> = std::result::Result<T, E>;
