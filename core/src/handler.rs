//! From plain `async fn`s to one erased form, made once, at registration.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures::FutureExt;
use tokio_util::sync::ReusableBoxFuture;

use crate::context::Context;
use crate::extract::{FromDelivery, Needs, Parts};
use crate::payload::{Encoded, FromPayload, IntoPayload};
use crate::{Codec, Error, Failure, HandlerError};

/// A handler's future. The box is used again for the next one where that is of the same size, so that a handler which
/// does not wait costs no allocation.
pub(crate) type HandlerFuture = ReusableBoxFuture<'static, Result<Output, Failure>>;

/// A box without a future: nothing is allocated for it.
pub(crate) fn no_future() -> HandlerFuture {
    ReusableBoxFuture::new(std::future::pending())
}

/// A handler, whatever its types were: decodes, extracts, and puts its future into the box.
pub(crate) type Erased =
    Arc<dyn Fn(&Context, &mut HandlerFuture) -> Result<(), Rejection> + Send + Sync>;

/// What a handler produced: nothing for an event, the encoded reply for a call.
#[derive(Clone, Debug, Default)]
pub struct Output(pub(crate) Option<Encoded>);

impl Output {
    /// The reply, for a call.
    #[must_use]
    pub fn reply(&self) -> Option<&Encoded> {
        self.0.as_ref()
    }
}

/// Why a handler could not even be called.
#[derive(Debug)]
pub(crate) enum Rejection {
    Undecodable(Error),
    Failed(Failure),
}

/// An `async fn` that can handle events: payload first, then up to eight extractors.
///
/// Implemented for functions and closures; `P` is the payload, `X` the extractors.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot handle events",
    note = "an event handler is an `async fn(payload, extractors...) -> Result<(), E>` whose future is `Send`",
    note = "the payload derives `serde::Deserialize`; `E` is `Failure` or derives `HandlerError`"
)]
pub trait EventHandler<P, X>: Send + Sync + Sized + 'static {
    #[doc(hidden)]
    fn erase(self) -> Handler;
}

/// An `async fn` that can answer calls: request first, then up to eight extractors.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot answer calls",
    note = "a call handler is an `async fn(request, extractors...) -> Result<Reply, E>` whose future is `Send`",
    note = "the request derives `serde::Deserialize`, the reply `serde::Serialize`; `E` is `Failure` or derives `HandlerError`"
)]
pub trait CallHandler<P, X>: Send + Sync + Sized + 'static {
    /// What the handler answers.
    type Reply;
    /// What it fails with.
    type Error;

    #[doc(hidden)]
    fn erase(self) -> Handler;
}

/// An erased handler with what is known of its types.
#[doc(hidden)]
pub struct Handler {
    pub(crate) erased: Erased,
    pub(crate) needs: Needs,
    pub(crate) function: &'static str,
    pub(crate) payload_type: &'static str,
    pub(crate) reply_type: &'static str,
    pub(crate) error_type: &'static str,
    /// Whether it takes the items of its caller.
    pub(crate) takes_items: bool,
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("function", &self.function)
            .finish_non_exhaustive()
    }
}

/// What an event handler may return: `Result<(), E>` for any [`HandlerError`], or nothing.
#[diagnostic::on_unimplemented(
    message = "an event handler cannot return `{Self}`",
    label = "not an outcome",
    note = "return `anywire::Result<()>`, or `Result<(), E>` where `E` derives `HandlerError`"
)]
pub trait IntoOutcome {
    #[doc(hidden)]
    fn into_outcome(self) -> Result<(), Failure>;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Result<(), Failure> {
        Ok(())
    }
}

impl<E: HandlerError> IntoOutcome for Result<(), E> {
    fn into_outcome(self) -> Result<(), Failure> {
        self.map_err(HandlerError::into_failure)
    }
}

/// What a call handler may return: `Result<R, E>` for any payload `R` and any [`HandlerError`] `E`.
#[diagnostic::on_unimplemented(
    message = "a call handler cannot return `{Self}`",
    label = "not a reply",
    note = "return `anywire::Result<Reply>`, or `Result<Reply, E>` where `E` derives `HandlerError`"
)]
pub trait IntoReply {
    /// The reply's type.
    type Reply;
    /// The error's type.
    type Error;

    #[doc(hidden)]
    fn into_reply(self, codec: Codec) -> Result<Encoded, Failure>;
}

impl<R: IntoPayload, E: HandlerError> IntoReply for Result<R, E> {
    type Reply = R;
    type Error = E;

    fn into_reply(self, codec: Codec) -> Result<Encoded, Failure> {
        let reply = self.map_err(HandlerError::into_failure)?;
        Ok(reply.into_payload(codec)?)
    }
}

/// The codec of a reply: the request's own where it names one, so that a foreign caller can read it; else the handler's.
pub(crate) fn reply_codec(context: &Context) -> Codec {
    let named = context.message.content_type();
    let named = named.and_then(|name| Codec::for_content_type(Some(name)).ok());
    named.unwrap_or(context.scope.codec)
}

pub(crate) fn payload<P: FromPayload>(context: &Context) -> Result<P, Rejection> {
    P::from_payload(&context.message).map_err(Rejection::Undecodable)
}

macro_rules! impl_handlers {
    ($($extractor:ident),*) => {
        #[allow(non_snake_case, unused_variables, unused_mut, reason = "one macro for all numbers of extractors")]
        impl<F, Fut, P, $($extractor,)*> EventHandler<P, ($($extractor,)*)> for F
        where
            F: Fn(P, $($extractor),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output: IntoOutcome> + Send + 'static,
            P: FromPayload,
            $($extractor: FromDelivery,)*
        {
            fn erase(self) -> Handler {
                let mut needs = Needs::default();
                $($extractor::needs(&mut needs);)*
                Handler {
                    needs,
                    function: type_name::<F>(),
                    payload_type: type_name::<P>(),
                    reply_type: "()",
                    error_type: type_name::<Fut::Output>(),
                    takes_items: false,
                    erased: Arc::new(move |context, slot| {
                        let payload = payload::<P>(context)?;
                        let mut parts = Parts::new(context);
                        $(let $extractor = $extractor::from_delivery(&mut parts).map_err(Rejection::Failed)?;)*
                        let future = self(payload, $($extractor),*);
                        slot.set(future.map(|outcome| outcome.into_outcome().map(|()| Output(None))));
                        Ok(())
                    }),
                }
            }
        }

        #[allow(non_snake_case, unused_variables, unused_mut, reason = "one macro for all numbers of extractors")]
        impl<F, Fut, P, R, $($extractor,)*> CallHandler<P, ($($extractor,)*)> for F
        where
            F: Fn(P, $($extractor),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = R> + Send + 'static,
            R: IntoReply,
            P: FromPayload,
            $($extractor: FromDelivery,)*
        {
            type Reply = R::Reply;
            type Error = R::Error;

            fn erase(self) -> Handler {
                let mut needs = Needs::default();
                $($extractor::needs(&mut needs);)*
                Handler {
                    needs,
                    function: type_name::<F>(),
                    payload_type: type_name::<P>(),
                    reply_type: type_name::<R::Reply>(),
                    error_type: type_name::<R::Error>(),
                    takes_items: false,
                    erased: Arc::new(move |context, slot| {
                        let payload = payload::<P>(context)?;
                        let mut parts = Parts::new(context);
                        $(let $extractor = $extractor::from_delivery(&mut parts).map_err(Rejection::Failed)?;)*
                        let codec = reply_codec(context);
                        let future = self(payload, $($extractor),*);
                        slot.set(future.map(move |reply| Ok(Output(Some(reply.into_reply(codec)?)))));
                        Ok(())
                    }),
                }
            }
        }
    };
}

impl_handlers!();
impl_handlers!(X1);
impl_handlers!(X1, X2);
impl_handlers!(X1, X2, X3);
impl_handlers!(X1, X2, X3, X4);
impl_handlers!(X1, X2, X3, X4, X5);
impl_handlers!(X1, X2, X3, X4, X5, X6);
impl_handlers!(X1, X2, X3, X4, X5, X6, X7);
impl_handlers!(X1, X2, X3, X4, X5, X6, X7, X8);
