//! Streaming calls: at most once. Each runs until its handler ends or its caller has stopped.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, Either, join_all, select};
use tokio_util::sync::CancellationToken;

use super::attempt::{First, Invoke};
use super::worker::{Paused, Started, Work};
use crate::clock::after;
use crate::context::Context;
use crate::handler::{HandlerFuture, Output, no_future};
use crate::pattern::streaming::{Door, IncomingStreams, ReceivedStream};
use crate::pattern::{Batch, PullResult};
use crate::stream_handler::Ends;
use crate::telemetry::HandlerMetrics;
use crate::{Error, RemoteError};

/// How long an end may take to be sent.
const LAST_WORD: Duration = Duration::from_secs(5);

/// The streaming calls to one pattern.
pub(crate) struct StreamWork {
    invoke: Invoke,
    metrics: HandlerMetrics,
    takes_items: bool,
}

/// A streaming call on its way through its handler.
pub(crate) struct StreamJob {
    context: Context,
    ends: Arc<Ends>,
    sends: bool,
    stopped: CancellationToken,
    began: Option<Instant>,
}

impl StreamWork {
    pub(crate) fn new(invoke: Invoke, takes_items: bool) -> Self {
        let metrics = HandlerMetrics::new(&invoke.scope.info);
        Self {
            invoke,
            metrics,
            takes_items,
        }
    }

    async fn run(self: Arc<Self>, job: StreamJob) -> Paused<StreamJob, StreamJob> {
        let mut running = Box::pin(self.handle(&job));
        let end = match select(&mut running, pin!(job.stopped.cancelled())).await {
            Either::Left((end, _)) => Some(end),
            Either::Right(_) => None,
        };
        // What a handler that is stopped still held may panic as it goes.
        if catch_unwind(AssertUnwindSafe(|| drop(running))).is_err() {
            tracing::error!(
                handler = self.name(),
                "the handler panicked as it was stopped"
            );
        }
        // Whoever has stopped hears nothing any more.
        if let Some(end) = end {
            let clock = self.invoke.clock();
            let limit = clock.sleep_until(after(clock.now(), LAST_WORD));
            let finished = match select(pin!(job.ends.finish(end)), limit).await {
                Either::Left((finished, _)) => finished,
                Either::Right(_) => Err(Error::call_timeout(job.context.subject())),
            };
            if let Err(error) = finished {
                self.metrics.unsettled.increment(1);
                tracing::debug!(handler = self.name(), %error, "the end of a stream could not be sent");
            }
        }
        Paused::Done(job)
    }

    /// Runs the handler. What it ends with is told to the caller.
    async fn handle(&self, job: &StreamJob) -> Option<RemoteError> {
        if job.sends && !self.takes_items {
            let text = "the handler takes one request and no items; use `client.stream`";
            return Some(self.refused(RemoteError::new("no_items", text)));
        }
        // A caller that sends has to know that it may.
        if self.takes_items
            && let Err(error) = job.ends.accept().await
        {
            self.metrics.unsettled.increment(1);
            tracing::debug!(handler = self.name(), %error, "a stream could not be accepted");
            return None;
        }
        let mut slot = no_future();
        let first = poll_fn(|cx| Poll::Ready(self.invoke.begin(&job.context, &mut slot, cx)));
        let result = match first.await {
            First::Over(result) => result,
            First::Waiting(future) => {
                let own = after(self.invoke.clock().now(), self.invoke.timeout);
                let deadline = job.context.deadline;
                let deadline = deadline.map_or(own, |deadline| deadline.min(own));
                self.invoke.go_on(future, deadline).await
            }
        };
        match result {
            Ok(Output(_)) => {
                self.metrics.handled.increment(1);
                None
            }
            Err(failed) => Some(self.refused(self.invoke.refusal(&job.context, failed))),
        }
    }

    fn refused(&self, error: RemoteError) -> RemoteError {
        self.metrics.refused.increment(1);
        error
    }
}

impl Work for StreamWork {
    type Source = Box<dyn IncomingStreams>;
    type Item = ReceivedStream;
    type Job = StreamJob;
    type Done = StreamJob;
    type Outbox = Vec<Box<dyn Door>>;

    fn name(&self) -> &str {
        &self.invoke.scope.info.name
    }

    fn stop(mut source: Self::Source) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(async move { source.stop().await })
    }

    fn poll_pull(
        source: &mut Self::Source,
        cx: &mut TaskContext<'_>,
        batch: &mut Batch<ReceivedStream>,
    ) -> Poll<PullResult> {
        source.poll_batch(cx, batch)
    }

    fn admit(&self, stream: ReceivedStream) -> Option<StreamJob> {
        let ReceivedStream {
            message,
            deadline,
            sends,
            stopped,
            door,
        } = stream;
        let ends = Ends::new(door);
        let mut context = Context::new(message, Arc::clone(&self.invoke.scope));
        context.deadline = deadline;
        context.ends = Some(Arc::clone(&ends));
        self.metrics.received.increment(1);
        self.metrics.in_flight.increment(1.0);
        let began = self.metrics.duration.as_ref();
        Some(StreamJob {
            began: began.map(|_| self.invoke.clock().now()),
            context,
            ends,
            sends,
            stopped,
        })
    }

    fn is_ordered(&self, _: &ReceivedStream) -> bool {
        false
    }

    fn start(
        self: &Arc<Self>,
        job: StreamJob,
        _: &mut HandlerFuture,
        _: &mut TaskContext<'_>,
    ) -> Started<StreamJob, StreamJob> {
        if job.stopped.is_cancelled() {
            self.metrics.expired.increment(1);
            return Started::Done(job);
        }
        Started::Parked(Box::pin(Arc::clone(self).run(job)))
    }

    fn finish(&self, job: StreamJob, _: &mut Self::Outbox) -> Option<StreamJob> {
        job.context.settled();
        self.metrics.in_flight.decrement(1.0);
        if let (Some(duration), Some(began)) = (&self.metrics.duration, job.began) {
            duration.record(self.invoke.clock().now().saturating_duration_since(began));
        }
        None
    }

    fn give_back(&self, job: StreamJob, outbox: &mut Self::Outbox) -> usize {
        outbox.extend(job.ends.take_door());
        self.finish(job, outbox);
        1
    }

    fn flush(self: &Arc<Self>, outbox: &mut Self::Outbox) -> Option<BoxFuture<'static, ()>> {
        if outbox.is_empty() {
            return None;
        }
        let stopping = RemoteError::new("unavailable", "the service is stopping");
        let stopping = stopping.with_retryable(true);
        let refusing: Vec<_> = outbox
            .drain(..)
            .map(|door| door.refuse(stopping.clone()))
            .collect();
        Some(Box::pin(async move {
            // Who cannot be told finds out by itself.
            drop(join_all(refusing).await);
        }))
    }

    fn interrupted(&self, error: &Error) {
        let handler = self.name();
        if error.is_retryable() {
            tracing::warn!(handler, %error, "streaming calls are interrupted");
        } else {
            tracing::error!(handler, %error, "streaming calls have ended");
        }
    }
}
