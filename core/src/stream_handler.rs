//! From functions that answer streaming calls to the one erased form of handlers.

use std::any::type_name;
use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use futures::Stream;
use parking_lot::Mutex;

use crate::context::Context;
use crate::contract::{Many, One};
use crate::extract::{FromDelivery, Needs, Parts};
use crate::handler::{Handler, Output, Rejection, payload, reply_codec};
use crate::pattern::streaming::{Door, Duplex, Item, ItemSink, ItemSource};
use crate::payload::{FromPayload, IntoPayload};
use crate::{Codec, Error, ErrorKind, Failure, HandlerError, Inbound, RemoteError};

/// A function that can answer streaming calls: request or [`Inbound`] first, then up to eight extractors.
///
/// `A` is the first argument, `X` the extractors, `M` how it answers: with a stream, with a future of one, or with a future
/// of one reply.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot answer streaming calls",
    note = "such a handler is a `fn(request, extractors...) -> impl Stream<Item = Result<Reply, E>> + Send`, an `async fn` that returns a `Result` of such a stream, or an `async fn(Inbound<Item>, extractors...) -> Result<Reply, E>`",
    note = "the request derives `serde::Deserialize`, replies `serde::Serialize`; `E` is `Failure` or derives `HandlerError`"
)]
pub trait StreamHandler<A, X, M>: Send + Sync + Sized + 'static {
    /// What it answers: [`Many`] or [`One`].
    type Reply;
    /// What it fails with.
    type Error;

    #[doc(hidden)]
    fn erase(self) -> Handler;
}

/// What a handler of streaming calls takes first: the request, or [`Inbound`], the items of its caller.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no first argument of a handler of streaming calls",
    note = "it is the request, which derives `serde::Deserialize`, or `Inbound<Item>`"
)]
pub trait StreamArgument: Sized + Send + 'static {
    #[doc(hidden)]
    const TAKES_ITEMS: bool;

    #[doc(hidden)]
    fn take(context: &Context) -> Result<Self, Error>;
}

#[diagnostic::do_not_recommend]
impl<P: FromPayload> StreamArgument for P {
    const TAKES_ITEMS: bool = false;

    fn take(context: &Context) -> Result<Self, Error> {
        match payload::<P>(context) {
            Ok(payload) => Ok(payload),
            Err(Rejection::Undecodable(error)) => Err(error),
            Err(Rejection::Failed(failure)) => {
                Err(Error::new(ErrorKind::Codec, failure.to_string()))
            }
        }
    }
}

impl<T: FromPayload> StreamArgument for Inbound<T> {
    const TAKES_ITEMS: bool = true;

    fn take(context: &Context) -> Result<Self, Error> {
        let source = context.ends.as_ref().and_then(|ends| ends.take_source());
        let source = source.ok_or_else(no_stream)?;
        Ok(Self::new(source, context.subject().clone(), None))
    }
}

fn no_stream() -> Error {
    let text = "this handler answers streaming calls, and the delivery is none";
    Error::new(ErrorKind::Unsupported, text)
}

/// What a handler of streaming calls may return; `M` says which of them it is.
#[diagnostic::on_unimplemented(
    message = "a handler of streaming calls cannot return `{Self}`",
    label = "not replies",
    note = "return `impl Stream<Item = anywire::Result<Reply>> + Send`; from an `async fn`, a `Result` of one, or of one reply",
    note = "an item may be `Result<Reply, E>` where `E` derives `HandlerError`"
)]
pub trait IntoReplies<M>: Send {
    /// What it answers: [`Many`] or [`One`].
    type Reply;
    /// What it fails with.
    type Error;

    #[doc(hidden)]
    fn drive(self, reply: StreamReply) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// How a handler answers: with a stream.
#[derive(Debug)]
pub struct Flowing(());

/// How a handler answers: with a future of a stream, or of a refusal.
#[derive(Debug)]
pub struct Refusing(());

/// How a handler answers: with a future of one reply.
#[derive(Debug)]
pub struct Collecting(());

/// How a handler answers: by itself, through [`StreamReply`].
#[derive(Debug)]
pub struct Driving(());

impl<S, I, E> IntoReplies<Flowing> for S
where
    S: Stream<Item = Result<I, E>> + Send,
    I: IntoPayload + Send,
    E: HandlerError + Send,
{
    type Reply = Many<I>;
    type Error = E;

    async fn drive(self, reply: StreamReply) -> Result<(), Failure> {
        reply.forward(self).await
    }
}

impl<F, S, I, E> IntoReplies<Refusing> for F
where
    F: Future<Output = Result<S, E>> + Send,
    S: Stream<Item = Result<I, E>> + Send,
    I: IntoPayload + Send,
    E: HandlerError + Send,
{
    type Reply = Many<I>;
    type Error = E;

    async fn drive(self, reply: StreamReply) -> Result<(), Failure> {
        let stream = self.await.map_err(HandlerError::into_failure)?;
        reply.forward(stream).await
    }
}

impl<F, R, E> IntoReplies<Collecting> for F
where
    F: Future<Output = Result<R, E>> + Send,
    R: IntoPayload + Send,
    E: HandlerError + Send,
{
    type Reply = One<R>;
    type Error = E;

    async fn drive(self, reply: StreamReply) -> Result<(), Failure> {
        let one = self.await.map_err(HandlerError::into_failure)?;
        reply
            .forward(futures::stream::iter([Ok::<R, E>(one)]))
            .await
    }
}

impl<F, R, E> IntoReplies<Driving> for F
where
    F: Future<Output = Driven<R, E>> + Send,
{
    type Reply = R;
    type Error = E;

    async fn drive(self, _: StreamReply) -> Result<(), Failure> {
        self.await.0
    }
}

/// What [`StreamReply::drive`] ends with. A handler returns it.
#[must_use = "the handler returns it"]
pub struct Driven<R, E>(Result<(), Failure>, PhantomData<fn() -> (R, E)>);

impl<R, E> fmt::Debug for Driven<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Driven").field(&self.0).finish()
    }
}

/// The way back of a streaming call, for handlers whose stream borrows from something that has to live as long.
///
/// It is an extractor. A handler that takes it sends its replies through [`drive`](Self::drive), and returns what that ends
/// with. `#[stream_pattern]` on a method with `&self` writes just that.
///
/// ```
/// use std::sync::Arc;
/// use anywire::{Many, Result, Router, StreamReply};
/// use futures::{Stream, stream};
///
/// struct Shop { steps: Vec<String> }
///
/// impl Shop {
///     fn follow(&self, order: u32) -> impl Stream<Item = Result<String>> {
///         stream::iter(self.steps.iter().map(move |step| Ok(format!("{order}: {step}"))))
///     }
/// }
/// let shop = Arc::new(Shop { steps: vec!["packed".into(), "sent".into()] });
/// let router = Router::new().on_stream("shop.follow", move |order: u32, reply: StreamReply| {
///     let shop = Arc::clone(&shop);
///     async move { reply.drive(shop.follow(order)).await }
/// });
/// # let _ = router;
/// ```
#[derive(Clone, Debug)]
pub struct StreamReply {
    ends: Arc<Ends>,
    codec: Codec,
}

impl StreamReply {
    fn of(context: &Context) -> Result<Self, Failure> {
        let ends = context.ends.clone().ok_or_else(no_stream);
        Ok(Self {
            ends: ends.map_err(|error| Failure::permanent(error.to_string()))?,
            codec: reply_codec(context),
        })
    }

    /// Accepts the call once the replies are there, and sends them.
    pub async fn drive<M, R: IntoReplies<M>>(self, replies: R) -> Driven<R::Reply, R::Error> {
        Driven(replies.drive(self).await, PhantomData)
    }

    async fn forward<S, I, E>(self, stream: S) -> Result<(), Failure>
    where
        S: Stream<Item = Result<I, E>> + Send,
        I: IntoPayload + Send,
        E: HandlerError + Send,
    {
        self.ends.accept().await?;
        let mut lent = self.ends.lend().ok_or_else(|| {
            Failure::permanent("the replies of a streaming call are sent by one stream")
        })?;
        let mut stream = pin!(stream);
        poll_fn(|cx| {
            let Some(sink) = &mut lent.sink else {
                return Poll::Ready(Ok(()));
            };
            loop {
                ready!(sink.poll_ready(cx))?;
                match stream.as_mut().poll_next(cx) {
                    Poll::Ready(Some(Ok(item))) => {
                        let encoded = item.into_payload(self.codec)?;
                        let item = Item {
                            payload: encoded.bytes,
                            content_type: encoded.content_type,
                        };
                        sink.start_send(item).map_err(unsent)?;
                    }
                    Poll::Ready(Some(Err(error))) => {
                        return Poll::Ready(Err(error.into_failure()));
                    }
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => {
                        // What was sent last goes on leaving meanwhile.
                        if let Poll::Ready(Err(error)) = sink.poll_flush(cx) {
                            return Poll::Ready(Err(error.into()));
                        }
                        return Poll::Pending;
                    }
                }
            }
        })
        .await
    }
}

/// A reply that the wire would not take is told to the caller by its name.
fn unsent(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::TooLarge => {
            Failure::permanent(error.to_string()).with_code(RemoteError::TOO_LARGE)
        }
        _ => error.into(),
    }
}

impl FromDelivery for StreamReply {
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self, Failure> {
        Self::of(parts.context())
    }
}

/// The two directions of a streaming call, while its handler runs.
pub(crate) struct Ends {
    door: Mutex<Option<Box<dyn Door>>>,
    sink: Mutex<Option<Box<dyn ItemSink>>>,
    source: Mutex<Option<Box<dyn ItemSource>>>,
}

impl Ends {
    pub(crate) fn new(door: Box<dyn Door>) -> Arc<Self> {
        Arc::new(Self {
            door: Mutex::new(Some(door)),
            sink: Mutex::new(None),
            source: Mutex::new(None),
        })
    }

    /// Accepts the call, if that was not done before.
    pub(crate) async fn accept(&self) -> Result<(), Error> {
        let Some(door) = self.take_door() else {
            return Ok(());
        };
        let Duplex { sink, source } = door.accept().await?;
        *self.sink.lock() = Some(sink);
        *self.source.lock() = Some(source);
        Ok(())
    }

    pub(crate) fn take_door(&self) -> Option<Box<dyn Door>> {
        self.door.lock().take()
    }

    fn take_source(&self) -> Option<Box<dyn ItemSource>> {
        self.source.lock().take()
    }

    fn lend(self: &Arc<Self>) -> Option<Lent> {
        Some(Lent {
            sink: Some(self.sink.lock().take()?),
            ends: Arc::clone(self),
        })
    }

    /// Ends what we send; refuses where that was not accepted.
    pub(crate) async fn finish(&self, end: Option<RemoteError>) -> Result<(), Error> {
        match (self.take_door(), &end) {
            (Some(door), Some(error)) => return door.refuse(error.clone()).await,
            (Some(door), None) => {
                let duplex = door.accept().await?;
                *self.sink.lock() = Some(duplex.sink);
            }
            (None, _) => {}
        }
        let Some(mut sink) = self.sink.lock().take() else {
            return Ok(());
        };
        poll_fn(|cx| sink.poll_close(cx, end.as_ref())).await
    }
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ends").finish_non_exhaustive()
    }
}

/// The sink while a handler has it. It goes back, to be closed with the handler's end.
struct Lent {
    sink: Option<Box<dyn ItemSink>>,
    ends: Arc<Ends>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.ends.sink.lock() = self.sink.take();
    }
}

macro_rules! impl_stream_handlers {
    ($($extractor:ident),*) => {
        #[allow(non_snake_case, unused_variables, unused_mut, reason = "one macro for all numbers of extractors")]
        impl<F, R, M, A, $($extractor,)*> StreamHandler<A, ($($extractor,)*), M> for F
        where
            F: Fn(A, $($extractor),*) -> R + Send + Sync + 'static,
            R: IntoReplies<M> + 'static,
            A: StreamArgument,
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
                    payload_type: type_name::<A>(),
                    reply_type: type_name::<R::Reply>(),
                    error_type: type_name::<R::Error>(),
                    takes_items: A::TAKES_ITEMS,
                    erased: Arc::new(move |context, slot| {
                        let argument = A::take(context).map_err(Rejection::Undecodable)?;
                        let mut parts = Parts::new(context);
                        $(let $extractor = $extractor::from_delivery(&mut parts).map_err(Rejection::Failed)?;)*
                        let reply = StreamReply::of(context).map_err(Rejection::Failed)?;
                        let replies = self(argument, $($extractor),*);
                        slot.set(async move { replies.drive(reply).await.map(|()| Output(None)) });
                        Ok(())
                    }),
                }
            }
        }
    };
}

impl_stream_handlers!();
impl_stream_handlers!(X1);
impl_stream_handlers!(X1, X2);
impl_stream_handlers!(X1, X2, X3);
impl_stream_handlers!(X1, X2, X3, X4);
impl_stream_handlers!(X1, X2, X3, X4, X5);
impl_stream_handlers!(X1, X2, X3, X4, X5, X6);
impl_stream_handlers!(X1, X2, X3, X4, X5, X6, X7);
impl_stream_handlers!(X1, X2, X3, X4, X5, X6, X7, X8);
