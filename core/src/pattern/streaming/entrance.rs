//! The openings among the calls to a pattern, and the decision over each.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use super::exchange::{Errand, Exchange};
use super::frame::{End, Frame, Side};
use super::line::{Line, first_credit};
use super::{Door, Duplex, IncomingStreams, ReceivedStream};
use crate::client::error_reply;
use crate::clock::after;
use crate::pattern::request_reply::{IncomingCalls, ReceivedCall, Replier, Reply};
use crate::pattern::{Batch, Progress, PullResult, Pulled};
use crate::{Error, ErrorKind, Message, RemoteError};

/// The openings of streams among the calls to one pattern.
pub(super) struct Incoming {
    calls: Box<dyn IncomingCalls>,
    replier: Arc<dyn Replier>,
    exchange: Arc<Exchange>,
    received: Batch<ReceivedCall>,
    /// To those that open nothing.
    answers: FuturesUnordered<BoxFuture<'static, Result<(), Error>>>,
}

impl Incoming {
    pub(super) fn new(
        calls: Box<dyn IncomingCalls>,
        exchange: Arc<Exchange>,
        window: usize,
    ) -> Self {
        Self {
            replier: calls.replier(),
            calls,
            exchange,
            received: Batch::new(window),
            answers: FuturesUnordered::new(),
        }
    }

    /// The stream that a call opens; `None` where it repeats an opening that waits for its answer.
    fn read(&self, call: ReceivedCall) -> Result<Option<ReceivedStream>, Box<Reply>> {
        let ReceivedCall {
            message,
            tag,
            deadline: _,
        } = call;
        let mut reply = Reply {
            tag,
            reply_to: message.reply_to().map(Into::into),
            correlation_id: message.correlation_id().map(Into::into),
            message: Message::new(message.subject().clone(), ""),
        };
        let mut refuse = |error: RemoteError| {
            reply.message = error_reply(message.subject(), &error);
        };
        let Some(frame) = message.frame() else {
            refuse(RemoteError::not_streaming());
            return Err(Box::new(reply));
        };
        let Some(Frame::Open {
            stream,
            sends,
            credit,
            left,
            heartbeat,
            address,
        }) = Frame::read(frame)
        else {
            let text = "the opening of a stream cannot be read";
            refuse(RemoteError::new(RemoteError::INVALID_PAYLOAD, text));
            return Err(Box::new(reply));
        };
        let end = End {
            stream,
            side: Side::Server,
        };
        let subject = message.subject().clone();
        let line = Line::new(&self.exchange, end, subject, (true, sends));
        match self.exchange.remember(&line) {
            Ok(None) => {}
            Ok(Some(open)) => return self.repeat(&open, Box::new(reply)),
            Err(error) => {
                refuse(RemoteError::new("overloaded", error.to_string()).with_retryable(true));
                return Err(Box::new(reply));
            }
        }
        line.meet(crate::random::number(), (address, heartbeat), credit);
        let now = self.exchange.clock.now();
        Ok(Some(ReceivedStream {
            deadline: left.map(|left| after(now, left)),
            sends,
            stopped: line.stopped.clone(),
            door: Box::new(Entrance {
                line: Some(line),
                replier: Arc::clone(&self.replier),
                reply: Some(Box::new(reply)),
            }),
            message,
        }))
    }

    /// An opening that came again: it is answered as the first one, for its caller takes whichever answer is there first.
    fn repeat(
        &self,
        open: &Line,
        mut reply: Box<Reply>,
    ) -> Result<Option<ReceivedStream>, Box<Reply>> {
        match &mut *open.answer.lock() {
            Answer::Given(answer) => {
                reply.message = answer.clone();
                Err(reply)
            }
            Answer::Open(repeated) => {
                repeated.push((Arc::clone(&self.replier), reply));
                Ok(None)
            }
        }
    }

    fn poll_answers(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(sent)) = self.answers.poll_next_unpin(cx) {
            if let Err(error) = sent {
                tracing::debug!(%error, "a reply could not be sent");
            }
        }
    }
}

#[async_trait]
impl IncomingStreams for Incoming {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedStream>,
    ) -> Poll<PullResult> {
        loop {
            self.poll_answers(cx);
            self.received.set_room(batch.room());
            match self.calls.poll_batch(cx, &mut self.received) {
                Poll::Ready(Ok(Pulled::Some)) => {}
                other => return other,
            }
            let calls: VecDeque<ReceivedCall> = self.received.drain().collect();
            for call in calls {
                match self.read(call) {
                    Ok(Some(stream)) => batch.push(stream),
                    Ok(None) => {}
                    Err(reply) => match self.replier.reply(*reply) {
                        Progress::Done(_) => {}
                        Progress::Pending(answer) => self.answers.push(answer),
                    },
                }
            }
            if !batch.is_empty() {
                return Poll::Ready(Ok(Pulled::Some));
            }
        }
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.calls.stop().await
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

/// How an opening was answered.
pub(super) enum Answer {
    /// Not yet. These came after it, and are the same opening.
    Open(Vec<(Arc<dyn Replier>, Box<Reply>)>),
    Given(Message),
}

impl Default for Answer {
    fn default() -> Self {
        Self::Open(Vec::new())
    }
}

/// A stream that waits to be accepted.
struct Entrance {
    line: Option<Arc<Line>>,
    replier: Arc<dyn Replier>,
    reply: Option<Box<Reply>>,
}

impl Entrance {
    fn take(&mut self) -> Option<(Arc<Line>, Box<Reply>)> {
        self.line.take().zip(self.reply.take())
    }
}

/// Every copy of the opening gets the answer, too.
fn answer(line: &Line, answer: &Message) {
    let given = Answer::Given(answer.clone());
    let Answer::Open(repeated) = std::mem::replace(&mut *line.answer.lock(), given) else {
        return;
    };
    for (replier, mut reply) in repeated {
        reply.message = answer.clone();
        line.exchange.run(Errand::Reply(replier, reply));
    }
}

#[async_trait]
impl Door for Entrance {
    async fn accept(mut self: Box<Self>) -> Result<Duplex, Error> {
        let Some((line, mut reply)) = self.take() else {
            return Err(Error::new(
                ErrorKind::Stale,
                "the stream was accepted before",
            ));
        };
        let (Some(peer), Some(address)) = (line.peer.get(), line.exchange.address()) else {
            return Err(Error::new(ErrorKind::Closed, "there is no inbox"));
        };
        let accept = Frame::Accept {
            run: peer.run,
            credit: first_credit(),
            heartbeat: line.exchange.heartbeat,
            address,
        };
        reply.message = reply.message.with_frame(accept.to_string());
        answer(&line, &reply.message);
        // Its halves tell the caller if we are given up here.
        let duplex = line.halves();
        self.replier.reply(*reply).wait().await?;
        line.accepted();
        Ok(duplex)
    }

    async fn refuse(mut self: Box<Self>, error: RemoteError) -> Result<(), Error> {
        let Some((line, mut reply)) = self.take() else {
            return Ok(());
        };
        line.dismiss();
        reply.message = error_reply(reply.message.subject(), &error);
        answer(&line, &reply.message);
        self.replier.reply(*reply).wait().await
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        if let Some((line, mut reply)) = self.take() {
            let error = RemoteError::new("unavailable", "the service is stopping");
            reply.message = error_reply(reply.message.subject(), &error.with_retryable(true));
            line.dismiss();
            answer(&line, &reply.message);
            let replier = Arc::clone(&self.replier);
            line.exchange.run(Errand::Reply(replier, reply));
        }
    }
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entrance").field(&self.line).finish()
    }
}
