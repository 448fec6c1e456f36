//! Contracts: consts that type both sides of a subject, and the targets and patterns that handlers and clients take.

use std::fmt;
use std::marker::PhantomData;

use crate::subject::check_const;
use crate::{Error, Inbound, Pattern, Subject};

/// An event's contract: its pattern and its payload, shared by those who emit it and those who handle it.
///
/// ```
/// use anywire::Event;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Order;
///
/// pub const PLACED: Event<Order> = Event::new("shop.{region}.placed");
/// let target = PLACED.with("region", "eu"); // what `client.emit` takes
/// # let _ = target;
/// ```
///
/// A bad pattern does not compile:
///
/// ```compile_fail
/// # use anywire::Event;
/// const BAD: Event<u32> = Event::new("shop..placed");
/// # let _ = BAD;
/// ```
pub struct Event<T: ?Sized>(&'static str, PhantomData<fn() -> Box<T>>);

/// A call's contract: its pattern, its request, its reply and its error.
///
/// ```
/// use anywire::Call;
/// # struct Item; struct Quote; struct ShopError;
///
/// pub const QUOTE: Call<Item, Quote, ShopError> = Call::new("shop.quote");
/// # let _ = QUOTE;
/// ```
pub struct Call<Q: ?Sized, R, E = crate::Failure>(&'static str, PhantomData<CallTypes<Q, R, E>>);

type CallTypes<Q, R, E> = fn() -> (Box<Q>, R, E);

impl<T: ?Sized> Event<T> {
    /// A contract for `pattern`.
    ///
    /// # Panics
    /// On a bad pattern; in a `const` that is a compile error.
    #[must_use]
    pub const fn new(pattern: &'static str) -> Self {
        check_const(pattern);
        Self(pattern, PhantomData)
    }

    /// Fills the capture `name`; the value is escaped, so that it can never steer the message elsewhere.
    pub fn with(self, name: &str, value: impl fmt::Display) -> Filled<Self> {
        Filled {
            contract: self,
            template: fill(Ok(self.0.to_owned()), name, &value),
        }
    }

    /// The pattern, as it was written.
    #[must_use]
    pub const fn pattern(self) -> &'static str {
        self.0
    }
}

impl<Q: ?Sized, R, E> Call<Q, R, E> {
    /// A contract for `pattern`.
    ///
    /// # Panics
    /// On a bad pattern; in a `const` that is a compile error.
    #[must_use]
    pub const fn new(pattern: &'static str) -> Self {
        check_const(pattern);
        Self(pattern, PhantomData)
    }

    /// Fills the capture `name`; the value is escaped, so that it can never steer the message elsewhere.
    pub fn with(self, name: &str, value: impl fmt::Display) -> Filled<Self> {
        Filled {
            contract: self,
            template: fill(Ok(self.0.to_owned()), name, &value),
        }
    }

    /// The pattern, as it was written.
    #[must_use]
    pub const fn pattern(self) -> &'static str {
        self.0
    }
}

/// Many of these, one after the other: what a streaming call answers.
#[derive(Debug)]
pub struct Many<T>(PhantomData<fn() -> T>);

/// One of these: what an upload answers.
#[derive(Debug)]
pub struct One<T>(PhantomData<fn() -> T>);

macro_rules! stream_contracts {
    ($($(#[$doc:meta])* $name:ident<$asks:ident $(: ?$sized:ident)?, $reply:ident>: $argument:ty => $answer:ty;)*) => {
        $(
            $(#[$doc])*
            pub struct $name<$asks $(: ?$sized)?, $reply, E = crate::Failure>(
                &'static str,
                PhantomData<CallTypes<$asks, $reply, E>>,
            );

            impl<$asks $(: ?$sized)?, $reply, E> $name<$asks, $reply, E> {
                /// A contract for `pattern`.
                ///
                /// # Panics
                /// On a bad pattern; in a `const` that is a compile error.
                #[must_use]
                pub const fn new(pattern: &'static str) -> Self {
                    check_const(pattern);
                    Self(pattern, PhantomData)
                }

                /// Fills the capture `name`; the value is escaped, so that it can never steer the message elsewhere.
                pub fn with(self, name: &str, value: impl fmt::Display) -> Filled<Self> {
                    Filled {
                        contract: self,
                        template: fill(Ok(self.0.to_owned()), name, &value),
                    }
                }

                /// The pattern, as it was written.
                #[must_use]
                pub const fn pattern(self) -> &'static str {
                    self.0
                }
            }

            impl<$asks $(: ?$sized)?, $reply, E> StreamTarget<$argument, $answer> for $name<$asks, $reply, E> {
                fn subject(self) -> Result<Subject, Error> {
                    Subject::parse(self.0)
                }
            }

            impl<$asks $(: ?$sized)?, $reply, E> StreamTarget<$argument, $answer> for Filled<$name<$asks, $reply, E>> {
                fn subject(self) -> Result<Subject, Error> {
                    let _ = self.contract;
                    Subject::parse(&self.template?)
                }
            }

            impl<$asks $(: ?$sized)?, $reply, E> StreamPattern<$argument, $answer, E> for $name<$asks, $reply, E> {
                fn pattern(&self) -> Result<Pattern, Error> {
                    Pattern::parse(self.0)
                }
            }

            impl<$asks $(: ?$sized)?, $reply, E> Clone for $name<$asks, $reply, E> {
                fn clone(&self) -> Self {
                    *self
                }
            }

            impl<$asks $(: ?$sized)?, $reply, E> Copy for $name<$asks, $reply, E> {}

            impl<$asks $(: ?$sized)?, $reply, E> fmt::Debug for $name<$asks, $reply, E> {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.debug_tuple(stringify!($name)).field(&self.0).finish()
                }
            }
        )*
    };
}

stream_contracts! {
    /// The contract of a streaming call with one request and many replies: its pattern, its request, its replies and its
    /// error.
    ///
    /// ```
    /// use anywire::Streaming;
    /// # struct OrderId; struct Progress; struct ShopError;
    ///
    /// pub const FOLLOW: Streaming<OrderId, Progress, ShopError> = Streaming::new("shop.follow");
    /// # let _ = FOLLOW;
    /// ```
    Streaming<Q: ?Sized, I>: Q => Many<I>;

    /// The contract of a streaming call with many requests and one reply.
    ///
    /// ```
    /// use anywire::Upload;
    /// # struct Order; struct Summary;
    ///
    /// pub const IMPORT: Upload<Order, Summary> = Upload::new("shop.import");
    /// # let _ = IMPORT;
    /// ```
    Upload<I, R>: Inbound<I> => One<R>;

    /// The contract of a streaming call with many requests and many replies.
    ///
    /// ```
    /// use anywire::Duplex;
    /// # struct Offer; struct Answer;
    ///
    /// pub const NEGOTIATE: Duplex<Offer, Answer> = Duplex::new("shop.negotiate");
    /// # let _ = NEGOTIATE;
    /// ```
    Duplex<I, O>: Inbound<I> => Many<O>;
}

/// Where a streaming call can be opened, whose handler takes `A` and answers `R`.
#[diagnostic::on_unimplemented(
    message = "a streaming call of `{A}`, answered with `{R}`, cannot be opened at `{Self}`",
    note = "a target is a subject such as \"shop.follow\" or a contract of those types: `Streaming`, `Upload` or `Duplex`"
)]
pub trait StreamTarget<A: ?Sized, R> {
    /// The subject.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) where it is not a subject or a capture is open.
    fn subject(self) -> Result<Subject, Error>;
}

impl<A: ?Sized, R> StreamTarget<A, R> for &str {
    fn subject(self) -> Result<Subject, Error> {
        Subject::parse(self)
    }
}

impl<A: ?Sized, R> StreamTarget<A, R> for &String {
    fn subject(self) -> Result<Subject, Error> {
        Subject::parse(self)
    }
}

impl<A: ?Sized, R> StreamTarget<A, R> for Subject {
    fn subject(self) -> Result<Subject, Error> {
        if self.is_reserved() {
            Self::parse(self.as_str())
        } else {
            Ok(self)
        }
    }
}

/// What a handler that takes `A` and answers with `R`, or fails with `E`, can answer the streaming calls of.
#[diagnostic::on_unimplemented(
    message = "a handler from `{A}` to `{R}`, failing with `{E}`, cannot answer the streaming calls of `{Self}`",
    note = "request, replies and error of the handler must be those of the contract"
)]
pub trait StreamPattern<A: ?Sized, R, E> {
    /// The pattern.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) where it is not a pattern.
    fn pattern(&self) -> Result<Pattern, Error>;
}

impl<A: ?Sized, R, E> StreamPattern<A, R, E> for &str {
    fn pattern(&self) -> Result<Pattern, Error> {
        Pattern::parse(self)
    }
}

impl<A: ?Sized, R, E> StreamPattern<A, R, E> for &String {
    fn pattern(&self) -> Result<Pattern, Error> {
        Pattern::parse(self)
    }
}

impl<A: ?Sized, R, E> StreamPattern<A, R, E> for Pattern {
    fn pattern(&self) -> Result<Pattern, Error> {
        Self::parse(self.as_str())
    }
}

/// A contract with some of its captures filled.
///
/// A capture that the contract does not have, that is filled twice or that is left open is an error of the emit or the
/// request.
#[derive(Debug)]
#[must_use = "it is a target for `client.emit` or `client.request`"]
pub struct Filled<C> {
    contract: C,
    template: Result<String, Error>,
}

impl<C> Filled<C> {
    /// Fills the capture `name`.
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.template = fill(self.template, name, &value);
        self
    }
}

fn fill(
    template: Result<String, Error>,
    name: &str,
    value: &dyn fmt::Display,
) -> Result<String, Error> {
    let template = template?;
    let capture = format!("{{{name}}}");
    let mut tokens: Vec<&str> = template.split('.').collect();
    let Some(slot) = tokens.iter_mut().find(|token| **token == capture) else {
        let open: Vec<&str> = template
            .split('.')
            .filter(|token| token.starts_with('{'))
            .collect();
        let open = if open.is_empty() {
            "none".to_owned()
        } else {
            open.join(", ")
        };
        return Err(Error::config(format!(
            "`{template}` has no open capture {capture}; open: {open}"
        )));
    };
    let token = Subject::escape(&value.to_string());
    *slot = &token;
    Ok(tokens.join("."))
}

/// Where an event with the payload `P` can be emitted to: a subject as text, or a contract of that payload.
#[diagnostic::on_unimplemented(
    message = "an event with the payload `{P}` cannot be emitted to `{Self}`",
    note = "a target is a subject such as \"shop.eu.placed\" or an `Event<{P}>` contract, its captures filled by `.with(name, value)`"
)]
pub trait EventTarget<P: ?Sized> {
    /// The subject.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) where it is not a subject or a capture is open.
    fn subject(self) -> Result<Subject, Error>;
}

impl<P: ?Sized> EventTarget<P> for &str {
    fn subject(self) -> Result<Subject, Error> {
        Subject::parse(self)
    }
}

impl<P: ?Sized> EventTarget<P> for &String {
    fn subject(self) -> Result<Subject, Error> {
        Subject::parse(self)
    }
}

impl<P: ?Sized> EventTarget<P> for Subject {
    fn subject(self) -> Result<Subject, Error> {
        if self.is_reserved() {
            Self::parse(self.as_str())
        } else {
            Ok(self)
        }
    }
}

impl<P: ?Sized> EventTarget<P> for Event<P> {
    fn subject(self) -> Result<Subject, Error> {
        Subject::parse(self.0)
    }
}

/// A contract of a `String` takes any text.
impl EventTarget<str> for Event<String> {
    fn subject(self) -> Result<Subject, Error> {
        Subject::parse(self.0)
    }
}

impl<P: ?Sized> EventTarget<P> for Filled<Event<P>> {
    fn subject(self) -> Result<Subject, Error> {
        let _ = self.contract;
        Subject::parse(&self.template?)
    }
}

/// Where a call with the request `Q` and the reply `R` can be made.
#[diagnostic::on_unimplemented(
    message = "a call with the request `{Q}` and the reply `{R}` cannot be made to `{Self}`",
    note = "a target is a subject such as \"shop.quote\" or a `Call<{Q}, {R}, _>` contract"
)]
pub trait CallTarget<Q: ?Sized, R> {
    /// The subject.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) where it is not a subject or a capture is open.
    fn subject(self) -> Result<Subject, Error>;
}

impl<Q: ?Sized, R> CallTarget<Q, R> for &str {
    fn subject(self) -> Result<Subject, Error> {
        Subject::parse(self)
    }
}

impl<Q: ?Sized, R> CallTarget<Q, R> for &String {
    fn subject(self) -> Result<Subject, Error> {
        Subject::parse(self)
    }
}

impl<Q: ?Sized, R> CallTarget<Q, R> for Subject {
    fn subject(self) -> Result<Subject, Error> {
        if self.is_reserved() {
            Self::parse(self.as_str())
        } else {
            Ok(self)
        }
    }
}

impl<Q: ?Sized, R, E> CallTarget<Q, R> for Call<Q, R, E> {
    fn subject(self) -> Result<Subject, Error> {
        Subject::parse(self.0)
    }
}

/// A contract of a `String` takes any text.
impl<R, E> CallTarget<str, R> for Call<String, R, E> {
    fn subject(self) -> Result<Subject, Error> {
        Subject::parse(self.0)
    }
}

impl<Q: ?Sized, R, E> CallTarget<Q, R> for Filled<Call<Q, R, E>> {
    fn subject(self) -> Result<Subject, Error> {
        let _ = self.contract;
        Subject::parse(&self.template?)
    }
}

/// What an event handler with the payload `P` can listen to: a pattern as text, or a contract of that payload.
#[diagnostic::on_unimplemented(
    message = "a handler that takes `{P}` cannot listen to `{Self}`",
    note = "the handler's first argument must have the payload type of the contract"
)]
pub trait EventPattern<P: ?Sized> {
    /// The pattern.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) where it is not a pattern.
    fn pattern(&self) -> Result<Pattern, Error>;
}

impl<P: ?Sized> EventPattern<P> for &str {
    fn pattern(&self) -> Result<Pattern, Error> {
        Pattern::parse(self)
    }
}

impl<P: ?Sized> EventPattern<P> for &String {
    fn pattern(&self) -> Result<Pattern, Error> {
        Pattern::parse(self)
    }
}

impl<P: ?Sized> EventPattern<P> for Pattern {
    fn pattern(&self) -> Result<Pattern, Error> {
        Self::parse(self.as_str())
    }
}

impl<P: ?Sized> EventPattern<P> for Event<P> {
    fn pattern(&self) -> Result<Pattern, Error> {
        Pattern::parse(self.0)
    }
}

/// What a call handler from `Q` to `Result<R, E>` can answer: a pattern as text, or a contract of those types.
#[diagnostic::on_unimplemented(
    message = "a handler from `{Q}` to `Result<{R}, {E}>` cannot answer `{Self}`",
    note = "request, reply and error of the handler must be those of the contract"
)]
pub trait CallPattern<Q: ?Sized, R, E> {
    /// The pattern.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) where it is not a pattern.
    fn pattern(&self) -> Result<Pattern, Error>;
}

impl<Q: ?Sized, R, E> CallPattern<Q, R, E> for &str {
    fn pattern(&self) -> Result<Pattern, Error> {
        Pattern::parse(self)
    }
}

impl<Q: ?Sized, R, E> CallPattern<Q, R, E> for &String {
    fn pattern(&self) -> Result<Pattern, Error> {
        Pattern::parse(self)
    }
}

impl<Q: ?Sized, R, E> CallPattern<Q, R, E> for Pattern {
    fn pattern(&self) -> Result<Pattern, Error> {
        Self::parse(self.as_str())
    }
}

impl<Q: ?Sized, R, E> CallPattern<Q, R, E> for Call<Q, R, E> {
    fn pattern(&self) -> Result<Pattern, Error> {
        Pattern::parse(self.0)
    }
}

impl<T: ?Sized> Clone for Event<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Event<T> {}

impl<T: ?Sized> fmt::Debug for Event<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Event").field(&self.0).finish()
    }
}

impl<Q: ?Sized, R, E> Clone for Call<Q, R, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Q: ?Sized, R, E> Copy for Call<Q, R, E> {}

impl<Q: ?Sized, R, E> fmt::Debug for Call<Q, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Call").field(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACED: Event<u32> = Event::new("shop.{region}.placed.{by}");

    #[test]
    fn a_value_can_never_steer_a_message() {
        let subject = PLACED
            .with("region", "eu.west.*")
            .with("by", ">")
            .subject()
            .unwrap();
        assert_eq!(subject.as_str(), "shop.eu=2Ewest=2E=2A.placed.=3E");
        let tricky = PLACED
            .with("region", "{by}")
            .with("by", "x")
            .subject()
            .unwrap();
        assert_eq!(tricky.as_str(), "shop.=7Bby=7D.placed.x");
    }

    #[test]
    fn open_unknown_and_repeated_captures_are_errors_of_the_emit() {
        assert!(
            PLACED
                .with("region", "eu")
                .subject()
                .unwrap_err()
                .to_string()
                .contains("capture")
        );
        assert!(
            PLACED
                .with("regoin", "eu")
                .subject()
                .unwrap_err()
                .to_string()
                .contains("{region}, {by}")
        );
        assert!(
            PLACED
                .with("region", 1)
                .with("region", 2)
                .subject()
                .is_err()
        );
    }
}
