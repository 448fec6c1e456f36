//! One attempt of a handler: its layers, its deadline, its panics.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt;
use tracing::Instrument;

use crate::clock::{Clock, Sleep};
use crate::context::{Context, Scope};
use crate::failure::one_line;
use crate::handler::{Erased, HandlerFuture, Output, Rejection, no_future};
use crate::layer::{Layer, Next};
use crate::router::HandlerKind;
use crate::{Failure, MessageId, RemoteError};

/// Calls one handler.
pub(crate) struct Invoke {
    pub(crate) scope: Arc<Scope>,
    handler: Erased,
    layers: Arc<[Arc<dyn Layer>]>,
    pub(crate) timeout: Duration,
}

/// How far the first poll of an attempt came.
pub(super) enum First {
    Over(Result<Output, Failed>),
    Waiting(HandlerFuture),
}

/// Why an attempt failed.
pub(super) enum Failed {
    /// The handler was never called: its payload cannot be read.
    Undecodable(crate::Error),
    By(Failure),
}

impl Invoke {
    pub(crate) fn new(
        scope: Arc<Scope>,
        handler: Erased,
        layers: Vec<Arc<dyn Layer>>,
        timeout: Duration,
    ) -> Self {
        Self {
            scope,
            handler,
            layers: layers.into(),
            timeout,
        }
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.scope.client.clock
    }

    /// Begins an attempt in `slot` and polls it once: a handler that does not wait ends here, without a timer.
    pub(super) fn begin(
        &self,
        context: &Context,
        slot: &mut HandlerFuture,
        cx: &mut TaskContext<'_>,
    ) -> First {
        let begun = catch_unwind(AssertUnwindSafe(|| {
            let in_span = match self.call(context, slot) {
                Ok(in_span) => in_span,
                Err(Rejection::Undecodable(error)) => {
                    return First::Over(Err(Failed::Undecodable(error)));
                }
                Err(Rejection::Failed(failure)) => {
                    return First::Over(Err(Failed::By(failure)));
                }
            };
            match slot.poll(cx) {
                Poll::Ready(result) => {
                    if in_span {
                        // The span ends now, not when the box is used again.
                        *slot = no_future();
                    }
                    First::Over(result.map_err(Failed::By))
                }
                Poll::Pending => First::Waiting(std::mem::replace(slot, no_future())),
            }
        }));
        begun.unwrap_or_else(|panic| First::Over(Err(Failed::By(panicked(&*panic)))))
    }

    /// Goes on with an attempt until its deadline.
    pub(super) async fn go_on(
        &self,
        mut future: HandlerFuture,
        deadline: Instant,
    ) -> Result<Output, Failed> {
        let mut timer: Option<Sleep> = None;
        let result = poll_fn(|cx| {
            match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(result)) => return Poll::Ready(result.map_err(Failed::By)),
                Err(panic) => return Poll::Ready(Err(Failed::By(panicked(&*panic)))),
            }
            let timer = timer.get_or_insert_with(|| self.clock().sleep_until(deadline));
            timer
                .poll_unpin(cx)
                .map(|()| Err(Failed::By(self.timed_out())))
        })
        .await;
        // What the handler still held may panic as it goes.
        match catch_unwind(AssertUnwindSafe(|| drop(future))) {
            Ok(()) => result,
            Err(panic) => Err(Failed::By(panicked(&*panic))),
        }
    }

    /// Puts the handler's future into the box; `true` says that it holds a span.
    fn call(&self, context: &Context, slot: &mut HandlerFuture) -> Result<bool, Rejection> {
        let span = self.span(context);
        if self.layers.is_empty() && span.is_disabled() {
            return (self.handler)(context, slot).map(|()| false);
        }
        if self.layers.is_empty() {
            let _entered = span.enter();
            (self.handler)(context, slot)?;
        } else {
            let next = Next::new(Arc::clone(&self.layers), Arc::clone(&self.handler));
            slot.set(next.run(context.clone()));
        }
        let in_span = !span.is_disabled();
        if in_span {
            let future = std::mem::replace(slot, no_future());
            *slot = HandlerFuture::new(future.instrument(span));
        }
        Ok(in_span)
    }

    fn span(&self, context: &Context) -> tracing::Span {
        let info = &self.scope.info;
        tracing::info_span!(
            "process",
            otel.kind = if info.kind == HandlerKind::Event { "consumer" } else { "server" },
            messaging.operation.name = "process",
            messaging.destination.name = %context.subject(),
            messaging.destination.template = %info.pattern,
            messaging.consumer.group.name = info.group.as_deref(),
            handler = %info.name,
            attempt = context.attempt(),
            traceparent = context.headers().get_str("traceparent"),
        )
    }

    fn timed_out(&self) -> Failure {
        Failure::transient(format!("the attempt took longer than {:?}", self.timeout))
    }

    /// What the caller is told of a call that failed.
    pub(super) fn refusal(&self, context: &Context, failed: Failed) -> RemoteError {
        match failed {
            Failed::Undecodable(error) => {
                RemoteError::new(RemoteError::INVALID_PAYLOAD, one_line(&error))
            }
            Failed::By(failure) => failure.to_remote(|| {
                let error_id = MessageId::random().to_string();
                let (handler, subject) = (&self.scope.info.name, context.subject());
                tracing::error!(%handler, %subject, error_id, error = %failure, "the call failed");
                error_id
            }),
        }
    }
}

/// A panic is a failed attempt, not a dead process.
fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Failure::transient(format!(
        "the handler panicked: {}",
        text.unwrap_or("no message")
    ))
}
