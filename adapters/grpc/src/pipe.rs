//! What goes out on a stream: from a handler or a caller, through a bounded window, to the library.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use anywire::pattern::streaming::{Item, ItemSink, WINDOW, WINDOW_BYTES};
use anywire::{Error, ErrorKind, RemoteError};
use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::errors;

/// A pipe: the end that is filled, and the one that the library empties.
pub(crate) fn pipe(limit: usize) -> (Filling, Outgoing) {
    let pipe = Arc::new(Pipe {
        flow: Mutex::default(),
        stopped: CancellationToken::new(),
        limit,
    });
    let filling = Filling {
        pipe: Arc::clone(&pipe),
        abort: None,
    };
    (filling, Outgoing(pipe))
}

pub(crate) struct Pipe {
    flow: Mutex<Flow>,
    /// Fires when nobody empties it any more.
    stopped: CancellationToken,
    /// The largest item.
    limit: usize,
}

#[derive(Default)]
struct Flow {
    items: VecDeque<Bytes>,
    bytes: usize,
    end: Option<Result<(), Status>>,
    is_over: bool,
    filler: Option<Waker>,
    emptier: Option<Waker>,
}

impl Flow {
    fn check(&self) -> Result<(), Error> {
        match self.is_over || self.end.is_some() {
            true => Err(unwanted()),
            false => Ok(()),
        }
    }

    fn finish(&mut self, end: Result<(), Status>) {
        self.end.get_or_insert(end);
        if let Some(emptier) = self.emptier.take() {
            emptier.wake();
        }
    }
}

fn unwanted() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "the reader wants no more of the stream, or is gone",
    )
}

/// What is done where a sender goes before its end.
pub(crate) type Abort = Box<dyn Fn() + Send + Sync>;

/// The end that is filled.
pub(crate) struct Filling {
    pipe: Arc<Pipe>,
    abort: Option<Abort>,
}

impl Filling {
    /// Does `abort` instead of ending with an error: a request has no status.
    pub(crate) fn or_else(mut self, abort: Abort) -> Self {
        self.abort = Some(abort);
        self
    }

    /// What ends it from outside.
    pub(crate) fn cutter(&self) -> Cutter {
        Cutter(Arc::downgrade(&self.pipe))
    }

    pub(crate) fn stopped(&self) -> CancellationToken {
        self.pipe.stopped.clone()
    }
}

/// Ends a pipe whose transport closes.
pub(crate) struct Cutter(Weak<Pipe>);

impl Cutter {
    pub(crate) fn cut(&self) {
        let Some(pipe) = self.0.upgrade() else {
            return;
        };
        let error = RemoteError::new("unavailable", "the service is stopping");
        let status = errors::refusal(&error.with_retryable(true));
        let mut flow = pipe.flow.lock();
        flow.finish(Err(status));
        if let Some(filler) = flow.filler.take() {
            filler.wake();
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl ItemSink for Filling {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut flow = self.pipe.flow.lock();
        flow.check()?;
        if flow.items.len() < WINDOW && flow.bytes < WINDOW_BYTES {
            return Poll::Ready(Ok(()));
        }
        flow.filler = Some(cx.waker().clone());
        Poll::Pending
    }

    fn start_send(&mut self, item: Item) -> Result<(), Error> {
        let Item {
            payload,
            // All items of a stream have the content type that its headers tell.
            content_type: _,
        } = item;
        let (size, limit) = (payload.len(), self.pipe.limit);
        if size > limit {
            let text = format!(
                "an item has {size} bytes, the limit is {limit}; raise max_payload here and at the peer, or send a reference to it"
            );
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        let mut flow = self.pipe.flow.lock();
        flow.check()?;
        flow.bytes += size;
        flow.items.push_back(payload);
        if let Some(emptier) = flow.emptier.take() {
            emptier.wake();
        }
        Ok(())
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // The library takes what it can send.
        Poll::Ready(Ok(()))
    }

    fn poll_close(
        &mut self,
        _cx: &mut Context<'_>,
        end: Option<&RemoteError>,
    ) -> Poll<Result<(), Error>> {
        match (end, &self.abort) {
            (Some(_), Some(abort)) => abort(),
            (Some(error), None) => self.pipe.flow.lock().finish(Err(errors::refusal(error))),
            (None, _) => self.pipe.flow.lock().finish(Ok(())),
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        let has_ended = self.pipe.flow.lock().check().is_err();
        match &self.abort {
            _ if has_ended => {}
            Some(abort) => abort(),
            None => {
                let error = errors::given_up_by_sender();
                self.pipe.flow.lock().finish(Err(errors::refusal(&error)));
            }
        }
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling")
            .field("items", &self.pipe.flow.lock().items.len())
            .finish_non_exhaustive()
    }
}

/// The end that the library empties.
pub(crate) struct Outgoing(Arc<Pipe>);

impl Stream for Outgoing {
    type Item = Result<Bytes, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut flow = self.0.flow.lock();
        if let Some(item) = flow.items.pop_front() {
            flow.bytes -= item.len();
            // Whoever was held back fills half of it at once.
            let has_room = flow.items.len() <= WINDOW / 2 && flow.bytes <= WINDOW_BYTES / 2;
            if let Some(filler) = flow.filler.take_if(|_| has_room) {
                filler.wake();
            }
            return Poll::Ready(Some(Ok(item)));
        }
        match &flow.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(_)) => {
                let end = flow.end.replace(Ok(()));
                Poll::Ready(end.map(|end| end.map(|()| Bytes::new())))
            }
            None => {
                flow.emptier = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let mut flow = self.0.flow.lock();
        flow.is_over = true;
        flow.items.clear();
        flow.bytes = 0;
        let filler = flow.filler.take();
        drop(flow);
        self.0.stopped.cancel();
        if let Some(filler) = filler {
            filler.wake();
        }
    }
}

/// A request's items: an end with an error is none, as the whole call is given up then.
pub(crate) struct Asking(pub(crate) Outgoing);

impl Stream for Asking {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match Pin::new(&mut self.0).poll_next(cx) {
            Poll::Ready(Some(Ok(item))) => Poll::Ready(Some(item)),
            Poll::Ready(Some(Err(_))) | Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
        }
    }
}

/// The status of a stream that nobody could accept.
pub(crate) fn unaccepted() -> Status {
    Status::new(Code::Unavailable, "the service ended before it answered")
}
