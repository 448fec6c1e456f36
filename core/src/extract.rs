//! Extractors: what a handler takes after its payload.

use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use crate::context::Context;
use crate::{Client, Failure, Headers, Pattern, Subject};

/// Can be taken from a delivery: a handler's second and later arguments. Implement it for your own.
///
/// ```
/// use anywire::{Failure, FromDelivery, Parts, Result};
///
/// struct Tenant(String);
///
/// impl FromDelivery for Tenant {
///     fn from_delivery(parts: &mut Parts<'_>) -> Result<Self> {
///         let tenant = parts.context().headers().get_str("tenant");
///         tenant.map(|tenant| Self(tenant.to_owned())).ok_or_else(|| Failure::permanent("no tenant header"))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be taken from a delivery",
    label = "not an extractor",
    note = "after the payload a handler takes extractors: `Param<T>`, `Params<T>`, `Headers`, `State<T>`, `Context`, `Client`, or your own `FromDelivery`",
    note = "a payload comes first, and there is only one"
)]
pub trait FromDelivery: Sized {
    /// Takes the value. A failure is the handler's failure.
    ///
    /// # Errors
    /// What the message should fail with; a missing capture or header is permanent.
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self, Failure>;

    /// Says what must be there for it, which is checked when the app starts.
    fn needs(needs: &mut Needs) {
        let _ = needs;
    }
}

/// A delivery while its arguments are taken.
#[derive(Debug)]
pub struct Parts<'a> {
    context: &'a Context,
    next_capture: usize,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(context: &'a Context) -> Self {
        Self {
            context,
            next_capture: 0,
        }
    }

    /// The delivery.
    #[must_use]
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// The next capture by position, its escapes read back.
    pub fn next_capture(&mut self) -> Option<String> {
        let index = self.next_capture;
        self.next_capture += 1;
        self.context.capture_at(index).map(Subject::unescape)
    }
}

/// What a handler's extractors need from its mount: summed, then checked at start-up.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    positional: usize,
    names: Vec<&'static str>,
    states: Vec<(TypeId, &'static str)>,
}

impl Needs {
    /// One more capture, by position.
    pub fn capture(&mut self) {
        self.positional += 1;
    }

    /// A capture of this name.
    pub fn named_capture(&mut self, name: &'static str) {
        self.names.push(name);
    }

    /// A state of type `T`, given to [`App::state`](crate::App::state).
    pub fn state<T: Any>(&mut self) {
        self.states.push((TypeId::of::<T>(), type_name::<T>()));
    }

    /// What `pattern` lacks, in words.
    pub(crate) fn missing_captures(&self, pattern: &Pattern) -> Option<String> {
        let has: Vec<&str> = pattern.capture_names().collect();
        if self.positional > has.len() {
            let takes = self.positional;
            return Some(format!(
                "takes {takes} `Param`, but `{pattern}` has {} captures; write them as {{name}}",
                has.len()
            ));
        }
        let missing = self.names.iter().find(|name| !has.contains(name))?;
        Some(format!(
            "takes the capture `{missing}`, but `{pattern}` has no {{{missing}}}"
        ))
    }

    /// The type of a state that is missing.
    pub(crate) fn missing_state(&self, states: &StateMap) -> Option<&'static str> {
        let missing = self
            .states
            .iter()
            .find(|(id, _)| !states.0.contains_key(id));
        missing.map(|(_, name)| *name)
    }
}

/// A capture by position: the k-th `Param` of a handler is the k-th capture of its pattern, read by [`FromStr`].
///
/// ```
/// use anywire::{App, Param, Result, Router};
///
/// async fn placed(order: u32, Param(region): Param<String>) -> Result<()> {
///     println!("order {order} in {region}");
///     Ok(())
/// }
/// let router = Router::new().on_event("shop.{region}.placed", placed);
/// # let _ = router;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<T>(pub T);

impl<T: FromStr<Err: fmt::Display>> FromDelivery for Param<T> {
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self, Failure> {
        let text = parts
            .next_capture()
            .ok_or_else(|| Failure::permanent("the subject has too few captures"))?;
        parse(&text).map(Self)
    }

    fn needs(needs: &mut Needs) {
        needs.capture();
    }
}

/// All captures by name, into a struct that derives `Params`.
///
/// ```
/// # #[cfg(feature = "macros")] {
/// use anywire::{Ignore, Params, Result, Router};
///
/// #[derive(Params)]
/// struct Place { region: String, shelf: u32 }
///
/// async fn moved(_: Ignore, Params(place): Params<Place>) -> Result<()> {
///     println!("{} {}", place.region, place.shelf);
///     Ok(())
/// }
/// let router = Router::new().on_event("stock.{region}.{shelf}.moved", moved);
/// # let _ = router;
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params<T>(pub T);

impl<T: FromParams> FromDelivery for Params<T> {
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self, Failure> {
        T::from_params(&ParamMap {
            context: parts.context,
        })
        .map(Self)
    }

    fn needs(needs: &mut Needs) {
        T::NAMES.iter().for_each(|name| needs.named_capture(name));
    }
}

/// Can be read from named captures; `#[derive(Params)]` writes it.
pub trait FromParams: Sized {
    /// The captures that must be there.
    const NAMES: &'static [&'static str];

    /// Reads the captures.
    ///
    /// # Errors
    /// A permanent failure where a capture does not read as its field's type.
    fn from_params(params: &ParamMap<'_>) -> Result<Self, Failure>;
}

/// The captures of a delivery, by name.
#[derive(Debug)]
pub struct ParamMap<'a> {
    context: &'a Context,
}

impl ParamMap<'_> {
    /// Reads the capture `name`.
    ///
    /// # Errors
    /// A permanent failure where it is missing or does not read as a `T`.
    pub fn get<T: FromStr<Err: fmt::Display>>(&self, name: &str) -> Result<T, Failure> {
        let missing = || Failure::permanent(format!("the subject has no capture `{name}`"));
        parse(&self.context.param(name).ok_or_else(missing)?)
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error| {
        let text: String = text.chars().take(80).collect();
        Failure::permanent(format!(
            "the capture {text:?} is not a {}: {error}",
            type_name::<T>()
        ))
    })
}

/// A value that the app holds for its handlers, cloned for each delivery: a pool, a cache, an `Arc`.
///
/// A handler whose state the app does not have stops the start.
///
/// ```
/// use std::sync::Arc;
/// use anywire::{App, Result, Router, State};
///
/// async fn quote(sku: String, State(prices): State<Arc<Vec<String>>>) -> Result<bool> {
///     Ok(prices.contains(&sku))
/// }
/// let app = App::new("shop").router(Router::new().on_call("shop.has", quote)).state(Arc::new(vec!["tea".to_owned()]));
/// assert!(app.check().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State<T>(pub T);

impl<T: Clone + Send + Sync + 'static> FromDelivery for State<T> {
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self, Failure> {
        let missing =
            || Failure::permanent(format!("the app has no state of type {}", type_name::<T>()));
        parts
            .context
            .state::<T>()
            .cloned()
            .map(Self)
            .ok_or_else(missing)
    }

    fn needs(needs: &mut Needs) {
        needs.state::<T>();
    }
}

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl FromDelivery for Headers {
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self, Failure> {
        Ok(parts.context.headers().clone())
    }
}

impl FromDelivery for Subject {
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self, Failure> {
        Ok(parts.context.subject().clone())
    }
}

impl FromDelivery for Context {
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self, Failure> {
        Ok(parts.context.clone())
    }
}

impl FromDelivery for Client {
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self, Failure> {
        Ok(parts.context.client())
    }
}

impl<T: FromDelivery> FromDelivery for Option<T> {
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self, Failure> {
        Ok(T::from_delivery(parts).ok())
    }
}

/// The app's values, by type.
#[derive(Default)]
pub(crate) struct StateMap(HashMap<TypeId, Box<dyn Any + Send + Sync>>);

impl StateMap {
    pub(crate) fn insert<T: Any + Send + Sync>(&mut self, value: T) {
        self.0.insert(TypeId::of::<T>(), Box::new(value));
    }

    pub(crate) fn get<T: Any>(&self) -> Option<&T> {
        self.0
            .get(&TypeId::of::<T>())
            .and_then(|value| value.downcast_ref())
    }
}

impl fmt::Debug for StateMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateMap({})", self.0.len())
    }
}
