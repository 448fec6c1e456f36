//! Routes: which handler answers which pattern, with which settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{AfterFailure, HandlerSettings};
use crate::contract::{CallPattern, EventPattern, StreamPattern};
use crate::extract::Needs;
use crate::handler::{CallHandler, Erased, EventHandler, Handler};
use crate::layer::Layer;
use crate::pattern::publish_subscribe::Provision;
use crate::stream_handler::StreamHandler;
use crate::{Error, Guarantee, Order, Pattern, Start};

/// A set of routes, to be mounted on an [`App`](crate::App).
///
/// ```
/// use anywire::{Result, Router};
///
/// async fn welcome(name: String) -> Result<()> {
///     println!("welcome, {name}");
///     Ok(())
/// }
/// async fn double(number: u32) -> Result<u32> {
///     Ok(number * 2)
/// }
/// let router = Router::new().on_event("user.created", welcome).on_call("math.double", double);
/// # let _ = router;
/// ```
#[derive(Debug, Default)]
#[must_use = "a router does nothing until it is mounted on an app"]
pub struct Router {
    pub(crate) routes: Vec<Route>,
}

impl Router {
    /// A router without routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Handles the events of a pattern.
    pub fn on_event<P, X, H: EventHandler<P, X>>(
        self,
        pattern: impl EventPattern<P>,
        handler: H,
    ) -> Self {
        self.route(Route::event(pattern, handler))
    }

    /// Answers the calls of a pattern.
    pub fn on_call<P, X, H: CallHandler<P, X>>(
        self,
        pattern: impl CallPattern<P, H::Reply, H::Error>,
        handler: H,
    ) -> Self {
        self.route(Route::call(pattern, handler))
    }

    /// Answers the streaming calls of a pattern.
    pub fn on_stream<A, X, M, H: StreamHandler<A, X, M>>(
        self,
        pattern: impl StreamPattern<A, H::Reply, H::Error>,
        handler: H,
    ) -> Self {
        self.route(Route::stream(pattern, handler))
    }

    /// Adds a route with settings of its own.
    pub fn route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// Adds the handlers of a controller.
    pub fn controller(self, controller: impl Controller) -> Self {
        self.merge(Arc::new(controller).routes())
    }

    /// Adds the routes of another router.
    pub fn merge(mut self, other: Self) -> Self {
        self.routes.extend(other.routes);
        self
    }

    /// Wraps the routes that are here now in a layer, outside of the layers that they have.
    pub fn layer(mut self, layer: impl Layer) -> Self {
        let layer: Arc<dyn Layer> = Arc::new(layer);
        for route in &mut self.routes {
            route.layers.insert(0, Arc::clone(&layer));
        }
        self
    }
}

/// A set of handlers that share a `self`; `#[controller]` on an `impl` block writes it.
pub trait Controller: Send + Sync + 'static {
    /// The handlers, each with its own share of `self`.
    fn routes(self: Arc<Self>) -> Router;
}

/// Whether a handler answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandlerKind {
    /// It handles events.
    Event,
    /// It answers calls.
    Call,
    /// It answers streaming calls.
    Stream,
}

impl fmt::Display for HandlerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Event => "event",
            Self::Call => "call",
            Self::Stream => "streaming call",
        })
    }
}

/// One handler and its settings. What is not set here comes from the configuration, or is the default.
///
/// ```
/// use std::time::Duration;
/// use anywire::{Result, Route, Router};
///
/// async fn charge(amount: u64) -> Result<()> {
///     println!("{amount}");
///     Ok(())
/// }
/// let route = Route::event("billing.charge", charge).concurrency(8).timeout(Duration::from_secs(5));
/// let router = Router::new().route(route);
/// # let _ = router;
/// ```
#[must_use = "a route does nothing until it is in a router"]
pub struct Route {
    pub(crate) kind: HandlerKind,
    pub(crate) pattern: Result<Pattern, Error>,
    pub(crate) name: String,
    pub(crate) doc: String,
    pub(crate) settings: HandlerSettings,
    pub(crate) layers: Vec<Arc<dyn Layer>>,
    pub(crate) erased: Erased,
    pub(crate) needs: Needs,
    pub(crate) payload_type: &'static str,
    pub(crate) reply_type: &'static str,
    pub(crate) error_type: &'static str,
    pub(crate) takes_items: bool,
}

impl Route {
    /// A handler of the events of a pattern.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a contract or a literal reads better at the call than a reference to it"
    )]
    pub fn event<P, X, H: EventHandler<P, X>>(pattern: impl EventPattern<P>, handler: H) -> Self {
        Self::new(HandlerKind::Event, pattern.pattern(), handler.erase())
    }

    /// A handler that answers the calls of a pattern.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a contract or a literal reads better at the call than a reference to it"
    )]
    pub fn call<P, X, H: CallHandler<P, X>>(
        pattern: impl CallPattern<P, H::Reply, H::Error>,
        handler: H,
    ) -> Self {
        Self::new(HandlerKind::Call, pattern.pattern(), handler.erase())
    }

    /// A handler that answers the streaming calls of a pattern.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a contract or a literal reads better at the call than a reference to it"
    )]
    pub fn stream<A, X, M, H: StreamHandler<A, X, M>>(
        pattern: impl StreamPattern<A, H::Reply, H::Error>,
        handler: H,
    ) -> Self {
        Self::new(HandlerKind::Stream, pattern.pattern(), handler.erase())
    }

    fn new(kind: HandlerKind, pattern: Result<Pattern, Error>, handler: Handler) -> Self {
        let Handler {
            erased,
            needs,
            function,
            payload_type,
            reply_type,
            error_type,
            takes_items,
        } = handler;
        let name = match (function_name(function), &pattern) {
            (Some(name), _) => name.to_owned(),
            (None, Ok(pattern)) => pattern.as_str().to_owned(),
            (None, Err(_)) => function.to_owned(),
        };
        Self {
            kind,
            pattern,
            name,
            doc: String::new(),
            settings: HandlerSettings::default(),
            layers: Vec::new(),
            erased,
            needs,
            payload_type,
            reply_type,
            error_type,
            takes_items,
        }
    }

    /// Names the handler, for configuration, logs and metrics. Default: the function's name; a closure's pattern.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Describes the handler, for documents.
    pub fn doc(mut self, doc: impl Into<String>) -> Self {
        self.doc = doc.into();
        self
    }

    /// Sets the group that shares the work. Default: the app's name.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.settings.group = Some(group.into());
        self
    }

    /// Gives every instance a copy.
    pub fn broadcast(mut self) -> Self {
        self.settings.broadcast = Some(true);
        self
    }

    /// Sets how many run at once. Default: 64.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.settings.concurrency = Some(concurrency);
        self
    }

    /// Sets how long one attempt may take. Default: 60 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = Some(timeout);
        self
    }

    /// Sets the waits before the second attempt, the third, and so on; none means a single attempt.
    pub fn retry(mut self, steps: impl IntoIterator<Item = Duration>) -> Self {
        self.settings.retry = Some(steps.into_iter().collect());
        self
    }

    /// Sets how sure the delivery is. A floor: configuration may raise it, not lower it.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.settings.guarantee = Some(guarantee);
        self
    }

    /// Sets the order of the messages of one key. A floor: configuration may raise it, not lower it.
    pub fn order(mut self, order: Order) -> Self {
        self.settings.order = Some(order);
        self
    }

    /// Sets what a failed message does to the messages of its key.
    pub fn after_failure(mut self, after_failure: AfterFailure) -> Self {
        self.settings.after_failure = Some(after_failure);
        self
    }

    /// Sets where a new group begins.
    pub fn start(mut self, start: Start) -> Self {
        self.settings.start = Some(start);
        self
    }

    /// Sets what may be done to the broker's objects.
    pub fn provision(mut self, provision: Provision) -> Self {
        self.settings.provision = Some(provision);
        self
    }

    /// Sets the transport, by its name in the configuration.
    pub fn transport(mut self, transport: impl Into<String>) -> Self {
        self.settings.transport = Some(transport.into());
        self
    }

    /// Wraps this handler in a layer, inside of those of its router.
    pub fn layer(mut self, layer: impl Layer) -> Self {
        self.layers.push(Arc::new(layer));
        self
    }
}

/// The function's own name, without its path and its generic arguments; `None` for a closure.
fn function_name(type_name: &str) -> Option<&str> {
    let mut depth = 0_usize;
    let mut end = type_name.len();
    for (at, byte) in type_name.bytes().enumerate().rev() {
        match byte {
            b'>' if at == 0 || type_name.as_bytes()[at - 1] != b'-' => depth += 1,
            b'<' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && type_name[at..end].ends_with('>') {
                    end = at;
                }
            }
            b':' if depth == 0 => {
                let name = &type_name[at + 1..end];
                return (!name.contains('{')).then_some(name);
            }
            _ => {}
        }
    }
    None
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}

/// A mounted handler, as layers, descriptions and documents see it.
#[derive(Clone, Debug)]
pub struct HandlerInfo {
    /// Its name.
    pub name: String,
    /// Whether it answers.
    pub kind: HandlerKind,
    /// What it listens to.
    pub pattern: Pattern,
    /// The group that shares the work; `None` for calls of all kinds and for broadcast subscriptions.
    pub group: Option<String>,
    /// Its doc comment.
    pub doc: String,
    /// The Rust type of its payload.
    pub payload_type: &'static str,
    /// The Rust type of its reply; `()` for events.
    pub reply_type: &'static str,
    /// The Rust type of its error.
    pub error_type: &'static str,
    /// The transport that carries it.
    pub transport: String,
}

#[cfg(test)]
mod tests {
    use super::function_name;

    #[test]
    fn a_function_is_called_by_its_own_name() {
        for (type_name, name) in [
            ("shop::placed", Some("placed")),
            ("shop::placed<alloc::string::String>", Some("placed")),
            ("shop::placed<fn() -> alloc::vec::Vec<u8>>", Some("placed")),
            ("shop::Shop<alloc::string::String>::placed", Some("placed")),
            ("shop::app::{{closure}}", None),
            ("shop::app<alloc::string::String>::{{closure}}", None),
        ] {
            assert_eq!(function_name(type_name), name, "{type_name}");
        }
    }
}
