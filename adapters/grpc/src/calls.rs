//! Calls: unary calls of gRPC.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use anywire::pattern::request_reply::{
    CallSpec, IncomingCalls, ReceivedCall, Replier, Reply, Requester, Responder,
};
use anywire::pattern::{Batch, Progress, PullResult, Pulled};
use anywire::{Error, ErrorKind, Message, RemoteError};
use async_trait::async_trait;

use crate::desk::{Answer, Purpose};
use crate::errors::{self, Verdict};
use crate::part::Part;
use crate::transport::Connection;

/// The role that calls.
#[derive(Debug)]
pub(crate) struct GrpcRequester {
    connection: Arc<Connection>,
}

impl GrpcRequester {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Requester for GrpcRequester {
    fn request(&self, message: Message, deadline: Instant) -> Progress<Result<Message, Error>> {
        let connection = Arc::clone(&self.connection);
        if let Err(error) = connection.check_open() {
            return Progress::Done(Err(error));
        }
        if let Some(error) = errors::too_large(&message, connection.config.max_payload) {
            return Progress::Done(Err(error));
        }
        Progress::pending(async move {
            tokio::select! {
                // What comes with the deadline is still an answer.
                biased;
                answer = call(&connection, &message, deadline) => answer,
                () = connection.clock.sleep_until(deadline) => Err(Error::call_timeout(message.subject())),
                () = connection.closed() => Err(errors::closed()),
            }
        })
    }
}

async fn call(
    connection: &Connection,
    message: &Message,
    deadline: Instant,
) -> Result<Message, Error> {
    let _turn = connection.turn(message.subject()).await?;
    let service = connection.peers(message.subject())?;
    match connection.ask(service, message, deadline).await {
        Ok(reply) => Ok(reply),
        Err(Verdict::Refused(error)) => Ok(refusal(message, &error)),
        Err(
            Verdict::NotBegun(error)
            | Verdict::NotSent(error)
            | Verdict::GivenBack(error)
            | Verdict::Failed(error)
            | Verdict::Lost(error)
            | Verdict::Error(error),
        ) => Err(error),
    }
}

/// An error of the handler is a reply.
fn refusal(request: &Message, error: &RemoteError) -> Message {
    let payload = serde_json::to_vec(error).unwrap_or_default();
    Message::new(request.subject().clone(), payload).with_error_code(error.code())
}

/// The role that answers calls.
#[derive(Debug)]
pub(crate) struct GrpcResponder {
    connection: Arc<Connection>,
}

impl GrpcResponder {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

/// What a specification asks for, and its window.
fn wanted(spec: &CallSpec) -> (Purpose, usize) {
    let CallSpec {
        pattern,
        window,
        // Of streaming calls alone.
        items: _,
    } = spec;
    (Purpose::Calls(pattern.clone()), *window)
}

#[async_trait]
impl Responder for GrpcResponder {
    async fn serve(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingCalls>, Error>> {
        let parts = Part::open(&self.connection, specs.iter().map(wanted)).await;
        let opened = parts.into_iter().zip(specs).map(|(part, spec)| match part {
            Ok(part) => {
                let replies = Arc::new(Replies { part });
                Ok(Box::new(GrpcCalls { replies }) as Box<dyn IncomingCalls>)
            }
            Err(error) => Err(error
                .with_operation("serve")
                .with_context("pattern", &spec.pattern)),
        });
        opened.collect()
    }
}

/// The calls to one pattern.
#[derive(Debug)]
struct GrpcCalls {
    replies: Arc<Replies>,
}

#[async_trait]
impl IncomingCalls for GrpcCalls {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedCall>,
    ) -> Poll<PullResult> {
        let Some(taken) = ready!(self.replies.part.poll_take(cx, batch.room())) else {
            return Poll::Ready(Ok(Pulled::End));
        };
        for call in taken {
            batch.push(ReceivedCall {
                message: call.message,
                tag: call.tag,
                deadline: call.deadline,
            });
        }
        Poll::Ready(Ok(Pulled::Some))
    }

    fn replier(&self) -> Arc<dyn Replier> {
        Arc::clone(&self.replies) as Arc<dyn Replier>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.replies.part.stop();
        Ok(())
    }
}

impl Drop for GrpcCalls {
    fn drop(&mut self) {
        self.replies.part.stop();
    }
}

/// The way back: the call's own stream, and nowhere else.
#[derive(Debug)]
struct Replies {
    part: Arc<Part>,
}

impl Replier for Replies {
    fn reply(&self, reply: Reply) -> Progress<Result<(), Error>> {
        let Reply {
            tag,
            // A reply goes where its call came from.
            reply_to: _,
            correlation_id: _,
            message,
        } = reply;
        let limit = self.part.max_payload();
        if self.part.is_closed() {
            return Progress::Done(Err(errors::closed()));
        }
        if let Some(error) = errors::too_large(&message, limit) {
            let text = format!(
                "the reply has {} bytes, the limit is {limit}",
                message.payload().len()
            );
            let told = refusal(&message, &RemoteError::new(RemoteError::TOO_LARGE, text));
            let answered = self.part.answer(tag, Answer::Reply(told));
            return Progress::Done(answered.and(Err(error)));
        }
        Progress::Done(self.part.answer(tag, Answer::Reply(message)))
    }
}

/// The error of a transport that has nobody to call.
pub(crate) fn nobody_to_call() -> Error {
    Error::new(
        ErrorKind::Config,
        "the URL names no peer to call; write it as grpc://host:port",
    )
}
