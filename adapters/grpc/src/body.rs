//! The bodies of requests, as the library does not read them: one that was given up has not ended, and none is waited for for ever.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anywire::clock::{Clock, Sleep};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::errors;

/// The items of a streaming call. The library takes a stream that was reset for one that has ended.
pub(crate) struct Upload(pub(crate) Body);

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(match frame {
            None if !self.0.is_end_stream() => Some(Err(errors::given_up())),
            Some(Err(status)) if status.code() == Code::Cancelled => Some(Err(errors::given_up())),
            frame => frame,
        })
    }
}

/// The one message of a request. It holds a place among the requests before it is there.
pub(crate) struct Whole {
    body: Body,
    clock: Arc<dyn Clock>,
    within: Duration,
    /// From when it is waited for.
    late: Option<Sleep>,
}

impl Whole {
    pub(crate) fn new(body: Body, clock: &Arc<dyn Clock>, within: Duration) -> Self {
        Self {
            body,
            clock: Arc::clone(clock),
            within,
            late: None,
        }
    }
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if frame.is_ready() {
            return frame;
        }
        let (clock, within) = (&this.clock, this.within);
        let late = this
            .late
            .get_or_insert_with(|| clock.sleep_until(clock.now() + within));
        ready!(Pin::new(late).poll(cx));
        let why = Status::deadline_exceeded("the request has not come in time");
        Poll::Ready(Some(Err(why)))
    }
}
