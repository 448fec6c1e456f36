//! The attributes of anywire, which re-exports them: depend on that, not on this.
//!
//! Each expands to what a careful person would have typed against the public API, so removing one is a mechanical
//! edit. With `ANYWIRE_MACROS_DEBUG=1` in the environment of the build, each expansion is printed.

use proc_macro::TokenStream;
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{DeriveInput, Item, Path, Token, parse_macro_input};

use attr::Kind;

mod ast;
mod attr;
mod expand;
mod fallback;
mod handler_error;
mod message;
mod option;
mod params;
mod pattern;
mod valid;

/// Makes a controller of an `impl` block: its handlers share a `&self`.
///
/// The handlers are the methods with [`#[event_pattern]`](macro@event_pattern),
/// [`#[message_pattern]`](macro@message_pattern) or [`#[stream_pattern]`](macro@stream_pattern); the others stay what they
/// are. These three are read by `#[controller]` itself, so they need no `use`. A type has one controller block.
///
/// ```
/// use anywire::{Client, Param, Result, controller};
/// # #[derive(serde::Deserialize)] struct Order;
/// # #[derive(serde::Deserialize)] struct Item;
/// # #[derive(serde::Serialize)] struct Quote;
///
/// struct Shop;
///
/// #[controller]
/// impl Shop {
///     /// Quotes the price of an item.
///     #[message_pattern("shop.quote", timeout = "2s")]
///     async fn quote(&self, item: Item) -> Result<Quote> {
///         Ok(self.price(&item))
///     }
///
///     /// Tells billing.
///     #[event_pattern("shop.{region}.placed", concurrency = 32)]
///     async fn placed(&self, order: Order, Param(region): Param<String>, client: Client) -> Result<()> {
///         # let _ = (order, region, client);
///         Ok(())
///     }
///
///     fn price(&self, item: &Item) -> Quote {
///         # let _ = item;
///         Quote
///     }
/// }
/// ```
///
/// It expands to the block and an implementation of `anywire::Controller`, whose `routes` holds a `Route::call(..)`,
/// `Route::event(..)` or `Route::stream(..)` for each handler, with its name, its doc comment and its options.
#[proc_macro_attribute]
pub fn controller(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as Item);
    let expansion = expand_controller(&arguments.into(), item);
    printed("#[controller]", expansion)
}

/// Marks a handler of events. The first argument is what it listens to: a pattern such as `"shop.{region}.placed"`, or
/// a contract const.
///
/// The handler is an `async fn`; its first argument is the payload (`_: Ignore` where none is wanted), the others are
/// extractors. In a [`#[controller]`](macro@controller) it may take `&self`. A function of its own is mounted by
/// [`handlers!`].
///
/// ```
/// use anywire::{App, Result, event_pattern, handlers};
/// # #[derive(serde::Deserialize)] struct User { name: String }
///
/// /// Sends the first mail.
/// #[event_pattern("user.created", group = "mail", retry = ["1s", "1m"])]
/// async fn welcome(user: User) -> Result<()> {
///     println!("welcome, {}", user.name);
///     Ok(())
/// }
///
/// let app = App::new("mailer").handlers(handlers![welcome]);
/// # let _ = app;
/// ```
///
/// | Option | Value | Meaning |
/// | --- | --- | --- |
/// | `name` | string | the handler's name in configuration, logs and metrics; default: the function's |
/// | `group` | string | the consumers that share the work; default: the app's name |
/// | `broadcast` | nothing or a boolean | every instance gets a copy |
/// | `concurrency` | number from 1 | how many run at once; default 64 |
/// | `timeout` | duration | how long one attempt may take; default 60 s |
/// | `retry` | list of durations | the waits between attempts; an empty list: one attempt |
/// | `delivery` | `"at_least_once"`, `"at_most_once"` | the guarantee; default at least once |
/// | `order` | `"none"`, `"key"`, `"key-in-group"` | of the messages of one key; default `"key"` |
/// | `after_failure` | `"pass"`, `"hold"` | what a failed message does to those of its key; default `"pass"` |
/// | `start` | `"earliest"`, `"latest"`, a time such as `"2026-11-01T00:00:00Z"` | where a new group begins |
/// | `transport` | string | the wire, by its name in the configuration |
///
/// A duration is a number and a unit (`"200ms"`, `"5s"`, `"2m"`). Strings, numbers, durations and lists may be consts.
#[proc_macro_attribute]
pub fn event_pattern(arguments: TokenStream, item: TokenStream) -> TokenStream {
    free_function(Kind::Event, arguments, item)
}

/// Marks a handler that answers calls. The first argument is what it answers: a pattern such as `"shop.quote"`, or a
/// contract const.
///
/// It is written like an [`#[event_pattern]`](macro@event_pattern) and returns the reply. Of its options it has `name`,
/// `concurrency`, `timeout` and `transport`: calls have no group, are not stored and are never retried.
///
/// ```
/// use anywire::{Result, message_pattern};
///
/// #[message_pattern("math.double", concurrency = 8)]
/// async fn double(number: u32) -> Result<u32> {
///     Ok(number * 2)
/// }
/// ```
#[proc_macro_attribute]
pub fn message_pattern(arguments: TokenStream, item: TokenStream) -> TokenStream {
    free_function(Kind::Call, arguments, item)
}

/// Marks a handler that answers streaming calls. The first argument is what it answers: a pattern such as `"shop.follow"`,
/// or a contract const (`Streaming`, `Upload`, `Duplex`).
///
/// It takes the request, or `Inbound<Item>`, what its caller sends; then extractors. It returns one of these, where the
/// error may be any `HandlerError`:
///
/// - `impl Stream<Item = Result<Reply>> + Send` from a plain `fn`: many replies. In a [`#[controller]`](macro@controller)
///   the stream may borrow from `&self` (edition 2024);
/// - `Result<impl Stream<Item = Result<Reply>> + Send>` from an `async fn`, which may refuse before its first item;
/// - `Result<Reply>` from an `async fn`: one reply.
///
/// Of the options it has `name`, `concurrency`, `timeout` (of the whole; default: as long as it takes) and `transport`.
///
/// ```
/// use anywire::{Inbound, Result, controller};
/// use futures::{Stream, StreamExt, stream};
///
/// struct Shop { steps: Vec<String> }
///
/// #[controller]
/// impl Shop {
///     /// Follows an order until it is delivered.
///     #[stream_pattern("shop.follow")]
///     fn follow(&self, order: u32) -> impl Stream<Item = Result<String>> {
///         stream::iter(self.steps.iter().map(move |step| Ok(format!("{order}: {step}"))))
///     }
///
///     /// Imports orders.
///     #[stream_pattern("shop.import")]
///     async fn import(&self, mut orders: Inbound<u32>) -> Result<u32> {
///         let mut count = 0;
///         while let Some(order) = orders.next().await {
///             order?;
///             count += 1;
///         }
///         Ok(count)
///     }
/// }
/// ```
#[proc_macro_attribute]
pub fn stream_pattern(arguments: TokenStream, item: TokenStream) -> TokenStream {
    free_function(Kind::Stream, arguments, item)
}

/// The router of annotated functions: `handlers![welcome, users::created]`.
///
/// A function without an attribute has no pattern to be mounted with: the compiler says that it "expected type, found
/// function". Put `#[event_pattern(..)]`, `#[message_pattern(..)]` or `#[stream_pattern(..)]` on it.
#[proc_macro]
pub fn handlers(input: TokenStream) -> TokenStream {
    let parser = Punctuated::<Path, Token![,]>::parse_terminated;
    match parser.parse(input) {
        Ok(paths) => printed("handlers![]", expand::handlers(paths.iter())),
        Err(error) => error.into_compile_error().into(),
    }
}

/// Implements `HandlerError` for an enum or a struct.
///
/// ```
/// use anywire::HandlerError;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize, HandlerError)]
/// enum ShopError {
///     #[handler_error(message = "no item {sku}")]
///     UnknownItem { sku: String },
///     #[handler_error(transient, code = "busy", message = "try again in {0} s")]
///     Overloaded(u32),
/// }
///
/// let error = ShopError::UnknownItem { sku: "a-1".into() };
/// assert_eq!((error.code().as_ref(), error.message().as_str()), ("unknown_item", "no item a-1"));
/// ```
///
/// - `code = ".."`: what callers branch on; default: the name in snake case.
/// - `message = ".."`: a sentence for people, with the fields by name or number; default: what `Display` says. It leaves
///   the process, so it holds no internals.
/// - `permanent` (default), `transient` or `discard`: what becomes of the message; on an enum, for all its variants.
/// - `no_details`, on the type: the error itself stays here. Else it goes to the caller, who gets it back as it was;
///   that takes `serde::Serialize`.
#[proc_macro_derive(HandlerError, attributes(handler_error))]
pub fn handler_error(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    let expansion = handler_error::derive(&input)
        .unwrap_or_else(|error| fallback::handler_error(&input, &error));
    printed("#[derive(HandlerError)]", expansion)
}

/// Reads the captures of a pattern by name, for `Params<Place>`: each field is the capture of its name, by `FromStr`.
///
/// ```
/// use anywire::{Ignore, Params, Result, event_pattern};
///
/// #[derive(Params)]
/// struct Place {
///     region: String,
///     shelf: u32,
/// }
///
/// #[event_pattern("stock.{region}.{shelf}.moved")]
/// async fn moved(_: Ignore, Params(place): Params<Place>) -> Result<()> {
///     println!("{} {}", place.region, place.shelf);
///     Ok(())
/// }
/// ```
#[proc_macro_derive(Params)]
pub fn params(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    let expansion = params::derive(&input).unwrap_or_else(|error| fallback::params(&input, &error));
    printed("#[derive(Params)]", expansion)
}

fn expand_controller(arguments: &proc_macro2::TokenStream, item: Item) -> proc_macro2::TokenStream {
    let Item::Impl(mut block) = item else {
        return fallback::item(&item, &valid::not_a_block(&item));
    };
    let handlers = ast::handlers(&mut block);
    match valid::no_arguments(arguments).and(handlers) {
        Ok(handlers) => expand::controller(&block, &handlers),
        Err(error) => fallback::controller(&block, &error),
    }
}

fn free_function(kind: Kind, arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as Item);
    let expansion = expand_free_function(kind, arguments.into(), item);
    printed(&format!("#[{}]", kind.attribute()), expansion)
}

fn expand_free_function(
    kind: Kind,
    arguments: proc_macro2::TokenStream,
    item: Item,
) -> proc_macro2::TokenStream {
    let Item::Fn(mut function) = item else {
        return fallback::item(&item, &valid::not_a_function(kind, &item));
    };
    match ast::free_function(kind, arguments, &mut function) {
        Ok(handler) => expand::free_function(&function, &handler),
        Err(error) => fallback::free_function(&function, &error),
    }
}

/// The expansion, shown on the way where that is asked for.
fn printed(what: &str, expansion: proc_macro2::TokenStream) -> TokenStream {
    if std::env::var_os("ANYWIRE_MACROS_DEBUG").is_some_and(|it| !it.is_empty() && it != "0") {
        eprintln!("// {what}\n{expansion}");
    }
    expansion.into()
}
