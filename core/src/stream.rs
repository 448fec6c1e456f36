//! The two directions of a streaming call, typed: what one side reads and what it sends.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::{FutureExt, Stream};

use crate::clock::{Clock, Sleep, after};
use crate::pattern::streaming::{Item, ItemSink, ItemSource};
use crate::payload::{FromPayload, IntoPayload};
use crate::{Codec, Error, ErrorKind, Message, RemoteError, Subject};

/// The items that the other side of a streaming call sends: a [`Stream`] of `Result<T, Error>`.
///
/// It holds back the sender: at most 256 items, or one over 1 MiB of them, lie between it and a reader who takes none. Items
/// come in order, each once. It ends with `None` after the sender's end, or with one error after all items before it:
/// `Remote` with what the sender failed with, `Disconnected` where the sender or an item was lost (its context `last` is the
/// number of the last item that came), `Timeout`, `Codec` for an item that cannot be read. Dropping it tells the sender to
/// stop, within a second.
///
/// In a handler of a streaming call it is the first argument: what its caller sends.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anywire::Result<()> {
/// use anywire::{App, Result, Router};
/// use futures::{Stream, StreamExt, stream};
///
/// fn count(to: u32) -> impl Stream<Item = Result<u32>> {
///     stream::iter((1..=to).map(Ok))
/// }
/// let app = App::new("math").router(Router::new().on_stream("math.count", count)).start().await?;
/// let mut numbers = app.client().stream::<_, u32>("math.count", &3).await?;
/// assert_eq!(numbers.next().await.unwrap()?, 1);
/// assert_eq!(numbers.count().await, 2);
/// # app.shutdown().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
/// A future of `next` that is dropped loses no item.
#[must_use = "dropping it stops the sender"]
pub struct Inbound<T> {
    source: Option<Box<dyn ItemSource>>,
    subject: Subject,
    limits: Option<Limits>,
    item: PhantomData<fn() -> T>,
}

/// When a reader gives up.
pub(crate) struct Limits {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) until: Option<Instant>,
    pub(crate) idle: Option<Duration>,
    /// What was said last, and its timer.
    timer: Option<Sleep>,
}

impl Limits {
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        until: Option<Instant>,
        idle: Option<Duration>,
    ) -> Option<Self> {
        (until.is_some() || idle.is_some()).then_some(Self {
            clock,
            until,
            idle,
            timer: None,
        })
    }

    /// Waits for the deadline, and for an item for as long as one may take.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| {
            let idle = self.idle.map(|idle| after(self.clock.now(), idle));
            let ends = [self.until, idle].into_iter().flatten().min();
            self.clock.sleep_until(ends.unwrap_or_else(Instant::now))
        });
        timer.poll_unpin(cx)
    }
}

impl<T: FromPayload> Inbound<T> {
    pub(crate) fn new(
        source: Box<dyn ItemSource>,
        subject: Subject,
        limits: Option<Limits>,
    ) -> Self {
        Self {
            source: Some(source),
            subject,
            limits,
            item: PhantomData,
        }
    }

    /// The next item; `None` after the end.
    ///
    /// # Errors
    /// As the type says. After an error it is over.
    ///
    /// # Cancel safety
    /// A future that is dropped loses no item.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        poll_fn(|cx| self.poll_item(cx)).await
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Error>>> {
        let Some(source) = &mut self.source else {
            return Poll::Ready(None);
        };
        let read = match source.poll_next(cx) {
            Poll::Ready(Some(Ok(item))) => self.read(item),
            Poll::Ready(Some(Err(error))) => Err(error),
            Poll::Ready(None) => {
                self.source = None;
                return Poll::Ready(None);
            }
            Poll::Pending => {
                let over = self.limits.as_mut().map(|limits| limits.poll_over(cx));
                match over {
                    Some(Poll::Ready(())) => Err(late()),
                    Some(Poll::Pending) | None => return Poll::Pending,
                }
            }
        };
        match &mut self.limits {
            Some(limits) if limits.idle.is_some() => limits.timer = None,
            _ => {}
        }
        let read = read.map_err(|error| self.over(error));
        Poll::Ready(Some(read))
    }

    fn read(&self, item: Item) -> Result<T, Error> {
        let Item {
            payload,
            content_type,
        } = item;
        let message = Message::new(self.subject.clone(), payload);
        T::from_payload(&message.with_content_type(content_type))
    }

    /// Nothing comes after an error; the sender is told to stop.
    fn over(&mut self, error: Error) -> Error {
        self.source = None;
        error
            .with_operation("stream")
            .with_context("subject", &self.subject)
    }
}

fn late() -> Error {
    let text =
        "the stream did not end, or send an item, in time; allow more, or look at its sender";
    Error::new(ErrorKind::Timeout, text)
}

impl<T: FromPayload> Stream for Inbound<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(cx)
    }
}

impl<T> Unpin for Inbound<T> {}

impl<T> fmt::Debug for Inbound<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound")
            .field("subject", &self.subject)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// What a caller sends in a streaming call.
///
/// Sending waits for the reader where too much lies between the two (256 items, or one over 1 MiB).
///
/// Dropping it before [`finish`](Self::finish) tells the reader that the stream was given up: an error there, and no end.
#[must_use = "dropping it gives the stream up"]
pub struct Outbound<T: ?Sized> {
    sink: Box<dyn ItemSink>,
    subject: Subject,
    codec: Codec,
    item: PhantomData<fn(&T)>,
}

impl<T: IntoPayload + ?Sized> Outbound<T> {
    pub(crate) fn new(sink: Box<dyn ItemSink>, subject: Subject, codec: Codec) -> Self {
        Self {
            sink,
            subject,
            codec,
            item: PhantomData,
        }
    }

    /// Sends an item, as soon as the reader allows it.
    ///
    /// # Errors
    /// `Cancelled` when the reader has stopped, which it does when its handler ends: look at what it answered.
    /// `Disconnected` when it was lost, `TooLarge` and `Codec` for this item alone.
    ///
    /// # Cancel safety
    /// A future that is dropped has sent the item or has not, never a part of it.
    pub async fn send(&mut self, item: &T) -> Result<(), Error> {
        let sent = async {
            let encoded = item.into_payload(self.codec)?;
            poll_fn(|cx| self.sink.poll_ready(cx)).await?;
            self.sink.start_send(Item {
                payload: encoded.bytes,
                content_type: encoded.content_type,
            })?;
            // What the wire did not take at once is waited for: an error belongs to this item.
            poll_fn(|cx| self.sink.poll_flush(cx)).await
        };
        let sent: Result<(), Error> = sent.await;
        sent.map_err(|error| {
            error
                .with_operation("send")
                .with_context("subject", &self.subject)
        })
    }

    /// Ends what we send. What the other side sends goes on.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    ///
    /// # Cancel safety
    /// A future that is dropped may have ended it.
    pub async fn finish(mut self) -> Result<(), Error> {
        let closed = poll_fn(|cx| self.sink.poll_close(cx, None)).await;
        closed.map_err(|error| {
            error
                .with_operation("finish")
                .with_context("subject", &self.subject)
        })
    }
}

impl<T: ?Sized> fmt::Debug for Outbound<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound")
            .field("subject", &self.subject)
            .field("sink", &self.sink)
            .finish_non_exhaustive()
    }
}

/// An upload under way: many items, one reply.
///
/// Dropping it before [`finish`](Self::finish) gives it up: the handler is told, and ends.
#[must_use = "dropping it gives the upload up"]
pub struct Uploading<T: ?Sized, R> {
    items: Outbound<T>,
    reply: Inbound<R>,
    /// What the handler has answered before the end.
    said: Option<Result<R, Error>>,
}

impl<T: IntoPayload + ?Sized, R: FromPayload> Uploading<T, R> {
    pub(crate) fn new(items: Outbound<T>, reply: Inbound<R>) -> Self {
        Self {
            items,
            reply,
            said: None,
        }
    }

    /// Sends an item, as soon as the handler allows it.
    ///
    /// # Errors
    /// `Remote` where the handler has ended with an error meanwhile, which [`finish`](Self::finish) has, too; `Cancelled` where
    /// it has answered: it wants no more, and `finish` has its reply. Else as [`Outbound::send`].
    ///
    /// # Cancel safety
    /// A future that is dropped has sent the item or has not, never a part of it.
    pub async fn send(&mut self, item: &T) -> Result<(), Error> {
        let sent = self.items.send(item).await;
        match sent {
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                // The handler has ended: its own word says more. `finish` says it again.
                if self.said.is_none() {
                    self.said = self.reply.next().await;
                }
                match &self.said {
                    Some(Err(failure)) => Err(same(failure)),
                    _ => Err(error),
                }
            }
            sent => sent,
        }
    }

    /// Ends the upload and waits for the reply.
    ///
    /// # Errors
    /// `Remote` with what the handler failed with, `Disconnected`, `Timeout`, `Codec`.
    ///
    /// # Cancel safety
    /// Dropping the future gives the upload up.
    pub async fn finish(mut self) -> Result<R, Error> {
        match self.items.finish().await {
            // The handler has answered without reading all of it.
            Err(error) if error.kind() != ErrorKind::Cancelled => return Err(error),
            _ => {}
        }
        let said = match self.said {
            Some(said) => Some(said),
            None => self.reply.next().await,
        };
        said.unwrap_or_else(|| Err(Error::remote(no_reply())))
    }
}

fn same(error: &Error) -> Error {
    match error.as_remote() {
        Some(remote) => Error::remote(remote.clone()).with_operation("send"),
        None => Error::new(error.kind(), error.to_string()).with_operation("send"),
    }
}

fn no_reply() -> RemoteError {
    RemoteError::new(RemoteError::INTERNAL, "the handler ended without a reply")
}

impl<T: ?Sized, R> fmt::Debug for Uploading<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Uploading").field(&self.items).finish()
    }
}
