//! Events: at least once, retried by the schedule, then dead-lettered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, Either, select};
use smol_str::SmolStr;
use tokio_util::sync::CancellationToken;

use super::attempt::{Failed, First, Invoke};
use super::copies;
use super::lanes::Lanes;
use super::retry::{Schedule, Verdict};
use super::worker::{Paused, Started, Work};
use crate::client::Wire;
use crate::clock::after;
use crate::context::Context;
use crate::handler::HandlerFuture;
use crate::pattern::publish_subscribe::{
    Incoming, Received, Settle, SettleBatch, Settlement, SubscriptionId,
};
use crate::pattern::{Batch, Progress, PullResult, Tag};
use crate::telemetry::HandlerMetrics;
use crate::testing::Outcome;
use crate::{Error, ErrorKind, Failure, Order};

/// The waits between tries to store a copy that the broker does not take.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What one subscription is told.
#[derive(Clone, Debug)]
pub(crate) struct EventSettings {
    pub(crate) subscription: SubscriptionId,
    /// Whose dead letters it fills: its group, or the app where it has none.
    pub(crate) dead_group: SmolStr,
    pub(crate) order: Order,
    pub(crate) schedule: Schedule,
}

/// The events of one subscription.
pub(crate) struct EventWork {
    invoke: Invoke,
    settings: EventSettings,
    wire: Arc<Wire>,
    settler: Arc<dyn Settle>,
    metrics: HandlerMetrics,
    lanes: Lanes<EventJob>,
    /// Fires when the app begins to stop: waits in place end then.
    stopping: CancellationToken,
    /// Deliveries that wait for one of our timers. The testing kit moves the clock when nothing else is left.
    pub(crate) waiting: Arc<AtomicUsize>,
    /// Deliveries whose copy cannot be stored: held, and the handler's health is red.
    stuck: AtomicUsize,
}

/// A delivery on its way through its handler.
pub(crate) struct EventJob {
    context: Context,
    tag: Tag,
    deliveries: u32,
    /// Holds its key's lane.
    keyed: bool,
    began: Option<Instant>,
}

pub(crate) struct EventDone {
    job: EventJob,
    settlement: Settlement,
}

/// What a delivery that waited comes to.
type Next = Paused<EventDone, EventJob>;

impl EventWork {
    pub(crate) fn new(
        invoke: Invoke,
        settings: EventSettings,
        wire: Arc<Wire>,
        settler: Arc<dyn Settle>,
        stopping: CancellationToken,
        waiting: Arc<AtomicUsize>,
    ) -> Self {
        let metrics = HandlerMetrics::new(&invoke.scope.info);
        Self {
            invoke,
            settings,
            wire,
            settler,
            metrics,
            lanes: Lanes::new(),
            stopping,
            waiting,
            stuck: AtomicUsize::new(0),
        }
    }

    fn done(job: EventJob, settlement: Settlement) -> EventDone {
        EventDone { job, settlement }
    }

    /// Goes on with a delivery whose handler waits, or has failed, until it can be settled or rests.
    async fn carry_on(self: Arc<Self>, mut job: EventJob, first: First) -> Next {
        let result = match first {
            First::Over(result) => result,
            First::Waiting(future) => {
                let deadline = after(self.invoke.clock().now(), self.invoke.timeout);
                self.invoke.go_on(future, deadline).await
            }
        };
        let failure = match result {
            Ok(_) => {
                self.count_handled(&job);
                return Paused::Done(Self::done(job, Settlement::Ack));
            }
            Err(Failed::Undecodable(error)) => Failure::undecodable(error),
            Err(Failed::By(failure)) => failure,
        };
        job.context.fail(self.invoke.clock().wall());
        let verdict = self.settings.schedule.verdict(job.context.failed, &failure);
        self.report(&job, &failure, verdict);
        match verdict {
            Verdict::InPlace(wait) => Paused::Resting(Box::pin(self.rest(job, wait, false))),
            Verdict::Park(wait) => Paused::Resting(Box::pin(self.rest(job, wait, true))),
            Verdict::Copy(delay) => Paused::Done(self.store_retry(job, delay).await),
            Verdict::DeadLetter => Paused::Done(self.store_dead_letter(job, &failure).await),
            Verdict::Discard => {
                self.metrics.discarded.increment(1);
                Paused::Done(Self::done(job, Settlement::Ack))
            }
        }
    }

    /// Waits for the next attempt in place.
    async fn rest(
        self: Arc<Self>,
        job: EventJob,
        time: Duration,
        stuck: bool,
    ) -> Result<EventJob, EventDone> {
        let _stuck = stuck.then(|| Counted::new(&self.stuck));
        if self.wait(time).await {
            Ok(job)
        } else {
            Err(Self::done(job, Settlement::Return))
        }
    }

    async fn store_retry(self: Arc<Self>, job: EventJob, delay: Duration) -> EventDone {
        let subscription = &self.settings.subscription;
        let publish = || copies::publish_retry(&self.wire, &job.context, subscription, delay);
        if !self.store(&job, "retry copy", publish).await {
            return Self::done(job, Settlement::Return);
        }
        Self::done(job, Settlement::Ack)
    }

    async fn store_dead_letter(self: Arc<Self>, job: EventJob, failure: &Failure) -> EventDone {
        let group = &self.settings.dead_group;
        let detail = failure.detail();
        let publish = || copies::publish_dead_letter(&self.wire, &job.context, group, &detail);
        if !self.store(&job, "dead letter", publish).await {
            return Self::done(job, Settlement::Return);
        }
        self.metrics.dead_lettered.increment(1);
        Self::done(job, Settlement::Ack)
    }

    /// Publishes a copy until the broker has it. `false` says that the app stops first: the original goes back.
    async fn store<F>(&self, job: &EventJob, what: &str, publish: impl Fn() -> F) -> bool
    where
        F: Future<Output = Result<(), Error>>,
    {
        let mut pause = FIRST_PAUSE;
        let mut stuck = Stuck::default();
        loop {
            let Err(error) = publish().await else {
                return true;
            };
            stuck.count(&self.stuck);
            let (handler, subject) = (self.name(), job.context.subject());
            tracing::error!(handler, %subject, %error, "the {what} could not be stored; the message is held");
            if !self.wait(pause).await {
                return false;
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Waits on the clock; `false` says that the app stops.
    async fn wait(&self, time: Duration) -> bool {
        let timer = self
            .invoke
            .clock()
            .sleep_until(after(self.invoke.clock().now(), time));
        let _waiting = Counted::new(&self.waiting);
        let stopping = std::pin::pin!(self.stopping.cancelled());
        matches!(select(stopping, timer).await, Either::Right(_))
    }

    fn count_handled(&self, job: &EventJob) {
        self.metrics.handled.increment(1);
        if let Some(recorder) = &self.invoke.scope.client.recorder {
            recorder.outcome(self.name(), &job.context.message, Outcome::Handled, None);
        }
    }

    fn report(&self, job: &EventJob, failure: &Failure, verdict: Verdict) {
        let (handler, subject, attempt) = (self.name(), job.context.subject(), job.context.failed);
        if let Some(recorder) = &self.invoke.scope.client.recorder {
            let outcome = match verdict {
                Verdict::InPlace(_) | Verdict::Copy(_) | Verdict::Park(_) => Outcome::Retried,
                Verdict::DeadLetter => Outcome::DeadLettered,
                Verdict::Discard => Outcome::Discarded,
            };
            recorder.outcome(
                handler,
                &job.context.message,
                outcome,
                Some(failure.detail()),
            );
        }
        match verdict {
            Verdict::InPlace(wait) | Verdict::Copy(wait) => {
                self.metrics.retried.increment(1);
                tracing::warn!(handler, %subject, attempt, ?wait, error = %failure, "attempt failed; it is retried");
            }
            Verdict::DeadLetter => {
                tracing::error!(handler, %subject, attempt, error = %failure, "attempt failed; dead-lettered");
            }
            Verdict::Discard => {
                tracing::warn!(handler, %subject, attempt, error = %failure, "discarded")
            }
            Verdict::Park(wait) => {
                tracing::error!(handler, %subject, attempt, ?wait, error = %failure, "a dead letter failed; it is parked");
            }
        }
    }

    /// A message that the broker has delivered so often kills its handlers before they can fail.
    fn crash_loop(self: &Arc<Self>, mut job: EventJob) -> BoxFuture<'static, Next> {
        let this = Arc::clone(self);
        job.context.fail(self.invoke.clock().wall());
        let failure = Failure::permanent(format!(
            "delivered {} times without an outcome",
            job.deliveries
        ));
        this.report(&job, &failure, Verdict::DeadLetter);
        Box::pin(async move { Paused::Done(this.store_dead_letter(job, &failure).await) })
    }
}

impl Work for EventWork {
    type Source = Box<dyn Incoming>;
    type Item = Received;
    type Job = EventJob;
    type Done = EventDone;
    type Outbox = SettleBatch;

    fn name(&self) -> &str {
        &self.invoke.scope.info.name
    }

    fn stuck(&self) -> usize {
        self.stuck.load(Ordering::Relaxed)
    }

    fn stop(mut source: Self::Source) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(async move { source.stop().await })
    }

    fn poll_pull(
        source: &mut Self::Source,
        cx: &mut TaskContext<'_>,
        batch: &mut Batch<Received>,
    ) -> Poll<PullResult> {
        source.poll_batch(cx, batch)
    }

    fn admit(&self, received: Received) -> Option<EventJob> {
        let Received {
            message,
            tag,
            deliveries,
            native,
            position,
        } = received;
        let mut context = Context::new(message, Arc::clone(&self.invoke.scope));
        context.native = native;
        context.position = position;
        self.metrics.received.increment(1);
        self.metrics.in_flight.increment(1.0);
        let began = self
            .metrics
            .duration
            .as_ref()
            .map(|_| self.invoke.clock().now());
        let mut job = EventJob {
            context,
            tag,
            deliveries: deliveries.unwrap_or(0),
            keyed: false,
            began,
        };
        if self.settings.order == Order::None {
            return Some(job);
        }
        let Some(key) = job.context.message.key().cloned() else {
            return Some(job);
        };
        job.keyed = true;
        self.lanes.enter(&key, job)
    }

    fn is_ordered(&self, received: &Received) -> bool {
        self.settings.order != Order::None && received.message.key().is_some()
    }

    fn start(
        self: &Arc<Self>,
        job: EventJob,
        slot: &mut HandlerFuture,
        cx: &mut TaskContext<'_>,
    ) -> Started<EventDone, EventJob> {
        if job.deliveries > self.settings.schedule.crash_limit()
            && !self.settings.schedule.dead_letters
        {
            return Started::Parked(self.crash_loop(job));
        }
        match self.invoke.begin(&job.context, slot, cx) {
            First::Over(Ok(_)) => {
                self.count_handled(&job);
                Started::Done(Self::done(job, Settlement::Ack))
            }
            first => Started::Parked(Box::pin(Arc::clone(self).carry_on(job, first))),
        }
    }

    fn finish(&self, done: EventDone, outbox: &mut SettleBatch) -> Option<EventJob> {
        let EventDone { job, settlement } = done;
        outbox.push(job.tag, settlement);
        job.context.settled();
        self.metrics.in_flight.decrement(1.0);
        if let (Some(duration), Some(began)) = (&self.metrics.duration, job.began) {
            duration.record(self.invoke.clock().now().saturating_duration_since(began));
        }
        if !job.keyed {
            return None;
        }
        self.lanes.leave(job.context.message.key()?)
    }

    fn give_back(&self, job: EventJob, outbox: &mut SettleBatch) -> usize {
        let mut count = 0;
        let mut next = Some(job);
        while let Some(job) = next {
            count += 1;
            outbox.push(job.tag, Settlement::Return);
            self.metrics.in_flight.decrement(1.0);
            next = job
                .keyed
                .then(|| self.lanes.leave(job.context.message.key()?))
                .flatten();
        }
        count
    }

    fn flush(self: &Arc<Self>, outbox: &mut SettleBatch) -> Option<BoxFuture<'static, ()>> {
        match self.settler.settle(std::mem::take(outbox)) {
            Progress::Done(mut settled) => {
                self.check_settled(&settled);
                settled.clear();
                *outbox = settled;
                None
            }
            Progress::Pending(settling) => {
                let this = Arc::clone(self);
                Some(Box::pin(async move { this.check_settled(&settling.await) }))
            }
        }
    }

    fn interrupted(&self, error: &Error) {
        let handler = self.name();
        if error.is_retryable() {
            tracing::warn!(handler, %error, "deliveries are interrupted");
        } else {
            tracing::error!(handler, %error, "deliveries have ended");
        }
    }
}

impl EventWork {
    fn check_settled(&self, batch: &SettleBatch) {
        for (_, error) in batch.failed() {
            self.metrics.unsettled.increment(1);
            let handler = self.name();
            if error.kind() == ErrorKind::Stale {
                tracing::debug!(handler, %error, "the delivery was not ours any more; it comes again");
            } else {
                tracing::warn!(handler, %error, "a delivery could not be settled; it comes again");
            }
        }
    }
}

/// Counts while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counts one delivery as stuck from its first failure until it is dropped.
#[derive(Default)]
struct Stuck<'a>(Option<Counted<'a>>);

impl<'a> Stuck<'a> {
    fn count(&mut self, stuck: &'a AtomicUsize) {
        self.0.get_or_insert_with(|| Counted::new(stuck));
    }
}
