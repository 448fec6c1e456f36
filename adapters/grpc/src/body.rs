//! The bodies of requests, told apart where the library does not: one that was given up has not ended.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

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
