//! Calls: at most once. Never retried, dead-lettered or redelivered by the serving side.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use futures::future::{BoxFuture, join_all};

use super::attempt::{Failed, First, Invoke};
use super::worker::{Paused, Started, Work};
use crate::client::error_reply;
use crate::clock::after;
use crate::context::Context;
use crate::handler::{HandlerFuture, Output};
use crate::pattern::request_reply::{IncomingCalls, ReceivedCall, Replier, Reply};
use crate::pattern::{Batch, Progress, PullResult, Tag};
use crate::telemetry::HandlerMetrics;
use crate::{Error, Message, RemoteError};

/// The calls to one pattern.
pub(crate) struct CallWork {
    invoke: Invoke,
    replier: Arc<dyn Replier>,
    metrics: HandlerMetrics,
    /// The largest payload that the wire takes.
    max_reply: usize,
}

/// A call on its way through its handler.
pub(crate) struct CallJob {
    context: Context,
    tag: Tag,
    began: Option<Instant>,
}

pub(crate) struct CallDone {
    job: CallJob,
    reply: Message,
}

impl CallWork {
    pub(crate) fn new(invoke: Invoke, replier: Arc<dyn Replier>, max_reply: usize) -> Self {
        let metrics = HandlerMetrics::new(&invoke.scope.info);
        Self {
            invoke,
            replier,
            metrics,
            max_reply,
        }
    }

    async fn carry_on(self: Arc<Self>, job: CallJob, first: First) -> Paused<CallDone, CallJob> {
        let result = match first {
            First::Over(result) => result,
            First::Waiting(future) => {
                let own = after(self.invoke.clock().now(), self.invoke.timeout);
                let deadline = job
                    .context
                    .deadline
                    .map_or(own, |deadline| deadline.min(own));
                self.invoke.go_on(future, deadline).await
            }
        };
        Paused::Done(self.answer(job, result))
    }

    fn answer(&self, job: CallJob, result: Result<Output, Failed>) -> CallDone {
        let reply = result.map(|output| self.reply(&job.context, output));
        let reply = match reply {
            Ok(Ok(reply)) => {
                self.metrics.handled.increment(1);
                reply
            }
            Ok(Err(error)) => self.refuse(&job.context, &error),
            Err(failed) => self.refuse(&job.context, &self.invoke.refusal(&job.context, failed)),
        };
        CallDone { job, reply }
    }

    fn refuse(&self, context: &Context, error: &RemoteError) -> Message {
        self.metrics.refused.increment(1);
        let reply = error_reply(context.subject(), error);
        match self.too_large(&reply) {
            None => reply,
            // Its details do not fit.
            Some(_) => error_reply(context.subject(), &error.clone().with_details(None)),
        }
    }

    /// A reply that the wire would refuse would leave its caller waiting.
    fn too_large(&self, reply: &Message) -> Option<RemoteError> {
        let (size, max) = (reply.payload().len(), self.max_reply);
        (size > max).then(|| {
            let (handler, subject) = (self.name(), reply.subject());
            tracing::error!(handler, %subject, size, max, "the reply is larger than the transport takes");
            let text = format!("the reply has {size} bytes, the transport takes {max}");
            RemoteError::new(RemoteError::TOO_LARGE, text)
        })
    }

    fn reply(&self, context: &Context, output: Output) -> Result<Message, RemoteError> {
        let Some(encoded) = output.0 else {
            // A layer answered in the handler's place, with nothing.
            return Err(RemoteError::new(RemoteError::INTERNAL, "no reply was made"));
        };
        let reply = Message::new(context.subject().clone(), encoded.bytes)
            .with_content_type(encoded.content_type);
        self.too_large(&reply).map_or(Ok(reply), Err)
    }
}

impl Work for CallWork {
    type Source = Box<dyn IncomingCalls>;
    type Item = ReceivedCall;
    type Job = CallJob;
    type Done = CallDone;
    type Outbox = Vec<Reply>;

    fn name(&self) -> &str {
        &self.invoke.scope.info.name
    }

    fn stop(mut source: Self::Source) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(async move { source.stop().await })
    }

    fn poll_pull(
        source: &mut Self::Source,
        cx: &mut TaskContext<'_>,
        batch: &mut Batch<ReceivedCall>,
    ) -> Poll<PullResult> {
        source.poll_batch(cx, batch)
    }

    fn admit(&self, call: ReceivedCall) -> Option<CallJob> {
        let ReceivedCall {
            message,
            tag,
            deadline,
        } = call;
        let mut context = Context::new(message, Arc::clone(&self.invoke.scope));
        context.deadline = deadline;
        self.metrics.received.increment(1);
        self.metrics.in_flight.increment(1.0);
        let began = self
            .metrics
            .duration
            .as_ref()
            .map(|_| self.invoke.clock().now());
        Some(CallJob {
            context,
            tag,
            began,
        })
    }

    fn is_ordered(&self, _: &ReceivedCall) -> bool {
        false
    }

    fn start(
        self: &Arc<Self>,
        job: CallJob,
        slot: &mut HandlerFuture,
        cx: &mut TaskContext<'_>,
    ) -> Started<CallDone, CallJob> {
        if job
            .context
            .deadline
            .is_some_and(|deadline| deadline <= self.invoke.clock().now())
        {
            self.metrics.expired.increment(1);
            // Answered all the same: a call that is not holds a place of the window.
            let expired =
                RemoteError::new(RemoteError::EXPIRED, "the deadline of the call had passed");
            let reply = error_reply(job.context.subject(), &expired);
            return Started::Done(CallDone { job, reply });
        }
        match self.invoke.begin(&job.context, slot, cx) {
            First::Over(result) => Started::Done(self.answer(job, result)),
            first @ First::Waiting(_) => {
                Started::Parked(Box::pin(Arc::clone(self).carry_on(job, first)))
            }
        }
    }

    fn finish(&self, done: CallDone, outbox: &mut Vec<Reply>) -> Option<CallJob> {
        let CallDone { job, reply } = done;
        job.context.settled();
        self.metrics.in_flight.decrement(1.0);
        if let (Some(duration), Some(began)) = (&self.metrics.duration, job.began) {
            duration.record(self.invoke.clock().now().saturating_duration_since(began));
        }
        let request = &job.context.message;
        outbox.push(Reply {
            tag: job.tag,
            reply_to: request.reply_to().map(Into::into),
            correlation_id: request.correlation_id().map(Into::into),
            message: reply,
        });
        None
    }

    fn give_back(&self, job: CallJob, outbox: &mut Vec<Reply>) -> usize {
        let stopping =
            RemoteError::new("unavailable", "the service is stopping").with_retryable(true);
        let reply = error_reply(job.context.subject(), &stopping);
        self.finish(CallDone { job, reply }, outbox);
        1
    }

    fn flush(self: &Arc<Self>, outbox: &mut Vec<Reply>) -> Option<BoxFuture<'static, ()>> {
        let mut sending = Vec::new();
        for reply in outbox.drain(..) {
            match self.replier.reply(reply) {
                Progress::Done(result) => self.check_sent(result),
                Progress::Pending(future) => sending.push(future),
            }
        }
        if sending.is_empty() {
            return None;
        }
        let this = Arc::clone(self);
        Some(Box::pin(async move {
            join_all(sending)
                .await
                .into_iter()
                .for_each(|result| this.check_sent(result));
        }))
    }

    fn interrupted(&self, error: &Error) {
        let handler = self.name();
        if error.is_retryable() {
            tracing::warn!(handler, %error, "calls are interrupted");
        } else {
            tracing::error!(handler, %error, "calls have ended");
        }
    }
}

impl CallWork {
    /// A reply that could not be sent is the caller's timeout.
    fn check_sent(&self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.metrics.unsettled.increment(1);
            tracing::debug!(handler = self.name(), %error, "a reply could not be sent");
        }
    }
}
