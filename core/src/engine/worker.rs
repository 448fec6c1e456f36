//! The workers of one handler. They pull in turns, run handlers inline as long as those do not wait, and park the others.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use crate::Error;
use crate::handler::{HandlerFuture, no_future};
use crate::pattern::{Batch, PullResult, Pulled};

/// How many deliveries are pulled at once.
const PULL: usize = 128;
/// How many jobs a worker runs before other tasks of its thread get a turn: what tokio gives a task, so that handlers
/// that emit once each seldom meet its end.
const BUDGET: usize = 128;
/// How many flushes may be under way. What ends meanwhile is flushed together when one of them is over, so that a wire
/// whose answers take long gets larger batches, not more of them.
const MAX_FLUSHES: usize = 8;
/// Handlers that keep a worker longer than this each are spread over all workers.
const SLOW: Duration = Duration::from_micros(20);
/// One pull in so many is timed.
const SAMPLE: u32 = 16;

/// What a crew works on: events or calls.
pub(crate) trait Work: Send + Sync + Sized + 'static {
    /// Where deliveries come from.
    type Source: Send;
    /// What is pulled.
    type Item: Send;
    /// What is run.
    type Job: Send;
    /// What a run ended with.
    type Done: Send + 'static;
    /// Ends that wait to be flushed together.
    type Outbox: Default + Send;

    /// The name of the handler.
    fn name(&self) -> &str;

    /// How many deliveries are held that cannot go on.
    fn stuck(&self) -> usize {
        0
    }

    /// Lets the source bring no more.
    fn stop(source: Self::Source) -> BoxFuture<'static, Result<(), Error>>;

    fn poll_pull(
        source: &mut Self::Source,
        cx: &mut Context<'_>,
        batch: &mut Batch<Self::Item>,
    ) -> Poll<PullResult>;

    /// Makes a job of what was pulled; `None` where it has to wait for another one, which will hand it out.
    fn admit(&self, item: Self::Item) -> Option<Self::Job>;

    /// Whether the item has to be admitted in the order in which it was pulled.
    fn is_ordered(&self, item: &Self::Item) -> bool;

    /// Runs a job in `slot` as far as it goes without waiting.
    fn start(
        self: &Arc<Self>,
        job: Self::Job,
        slot: &mut HandlerFuture,
        cx: &mut Context<'_>,
    ) -> Started<Self::Done, Self::Job>;

    /// Books an end, and hands out the job that waited for it.
    fn finish(&self, done: Self::Done, outbox: &mut Self::Outbox) -> Option<Self::Job>;

    /// Books a job that will not be run any more; the number says how many that were.
    fn give_back(&self, job: Self::Job, outbox: &mut Self::Outbox) -> usize;

    /// Sends off what was booked; the future is what is left to wait for.
    fn flush(self: &Arc<Self>, outbox: &mut Self::Outbox) -> Option<BoxFuture<'static, ()>>;

    /// The source has news or has ended.
    fn interrupted(&self, error: &Error);
}

/// Tells on a worker that ends without having been told to: what it held is delivered again, and health must not be green.
struct Supervised<W: Work>(Arc<Crew<W>>);

impl<W: Work> Drop for Supervised<W> {
    fn drop(&mut self) {
        if !self.0.stopping.load(Ordering::Acquire) {
            self.0.ended.store(true, Ordering::Release);
        }
    }
}

/// How far a job went.
pub(crate) enum Started<T, J> {
    Done(T),
    /// Its handler waits for something; it counts as running.
    Parked(BoxFuture<'static, Paused<T, J>>),
}

/// What a parked job comes to.
pub(crate) enum Paused<T, J> {
    Done(T),
    /// It rests until its next attempt, and leaves its place to others: it is held, but it does not run. The future is
    /// the job when it may run again, or its end where the app stops first.
    Resting(BoxFuture<'static, Result<J, T>>),
}

/// The workers of one handler, and what they share.
pub(crate) struct Crew<W: Work> {
    work: Arc<W>,
    pull: Mutex<Turn<W::Source>>,
    wakers: Vec<AtomicWaker>,
    concurrency: usize,
    /// The most deliveries that may be held, running or waiting.
    window: usize,
    held: AtomicUsize,
    stopping: AtomicBool,
    ended: AtomicBool,
}

/// Whose turn it is to pull.
struct Turn<S> {
    source: Option<S>,
    leader: Option<usize>,
    waiting: Vec<(usize, Waker)>,
}

enum Pull {
    Some,
    Wait,
    End,
}

impl<W: Work> Crew<W> {
    pub(crate) fn new(
        work: Arc<W>,
        source: W::Source,
        concurrency: usize,
        window: usize,
        workers: usize,
    ) -> Arc<Self> {
        let workers = workers.clamp(1, concurrency.max(1));
        Arc::new(Self {
            work,
            pull: Mutex::new(Turn {
                source: Some(source),
                leader: None,
                waiting: Vec::new(),
            }),
            wakers: (0..workers).map(|_| AtomicWaker::new()).collect(),
            concurrency,
            window,
            held: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }

    /// The workers, each a future that ends when the crew was stopped and its jobs are done.
    pub(crate) fn workers(self: &Arc<Self>) -> Vec<BoxFuture<'static, ()>> {
        let count = self.wakers.len();
        let share =
            |index| self.concurrency / count + usize::from(index < self.concurrency % count);
        let workers = (0..count).map(|index| {
            let mut worker = Worker::new(Arc::clone(self), index, share(index));
            let supervised = Supervised(Arc::clone(self));
            Box::pin(poll_fn(move |cx| {
                let _ = &supervised;
                worker.poll(cx)
            })) as BoxFuture<'static, ()>
        });
        workers.collect()
    }

    /// Stops pulling. Hands out the source, to be stopped by the caller.
    pub(crate) fn stop(&self) -> Option<W::Source> {
        self.stopping.store(true, Ordering::Release);
        let source = self.pull.lock().source.take();
        self.wakers.iter().for_each(AtomicWaker::wake);
        source
    }

    /// Whether deliveries still come.
    pub(crate) fn is_running(&self) -> bool {
        !self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn work(&self) -> &Arc<W> {
        &self.work
    }

    fn poll_pull(&self, worker: usize, cx: &mut Context<'_>, batch: &mut Batch<W::Item>) -> Pull {
        let mut turn = self.pull.lock();
        if turn.leader.is_some_and(|leader| leader != worker) {
            turn.wait(worker, cx);
            return Pull::Wait;
        }
        turn.leader = Some(worker);
        let Some(source) = &mut turn.source else {
            return Pull::End;
        };
        loop {
            return match W::poll_pull(source, cx, batch) {
                Poll::Pending => Pull::Wait,
                Poll::Ready(Ok(Pulled::Some)) => Pull::Some,
                Poll::Ready(Err(error)) if error.is_retryable() => {
                    self.work.interrupted(&error);
                    continue;
                }
                Poll::Ready(end) => {
                    if let Err(error) = end {
                        self.work.interrupted(&error);
                    }
                    self.ended.store(true, Ordering::Release);
                    turn.source = None;
                    Pull::End
                }
            };
        }
    }

    /// Lets another worker pull.
    fn pass_on(&self, worker: usize) {
        let next = {
            let mut turn = self.pull.lock();
            if turn.leader == Some(worker) {
                turn.leader = None;
            }
            turn.waiting.pop()
        };
        if let Some((_, waker)) = next {
            waker.wake();
        }
    }

    /// As [`pass_on`](Self::pass_on), and asks to be woken when there may be room again.
    fn wait_for_room(&self, worker: usize, cx: &Context<'_>) {
        let next = {
            let mut turn = self.pull.lock();
            if turn.leader == Some(worker) {
                turn.leader = None;
            }
            let next = turn
                .waiting
                .iter()
                .position(|(waiting, _)| *waiting != worker);
            let next = next.map(|at| turn.waiting.swap_remove(at));
            turn.wait(worker, cx);
            next
        };
        if let Some((_, waker)) = next {
            waker.wake();
        }
    }

    fn release(&self, count: usize) {
        let before = self.held.fetch_sub(count, Ordering::AcqRel);
        if before >= self.window {
            let waiting = std::mem::take(&mut self.pull.lock().waiting);
            waiting.into_iter().for_each(|(_, waker)| waker.wake());
        }
    }
}

impl<S> Turn<S> {
    fn wait(&mut self, worker: usize, cx: &Context<'_>) {
        match self
            .waiting
            .iter_mut()
            .find(|(waiting, _)| *waiting == worker)
        {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => self.waiting.push((worker, cx.waker().clone())),
        }
    }
}

struct Worker<W: Work> {
    crew: Arc<Crew<W>>,
    index: usize,
    /// How many of this worker's jobs may run at once.
    share: usize,
    batch: Batch<W::Item>,
    backlog: VecDeque<W::Job>,
    /// Where a handler's future is until it has to wait: the same box for one after the other.
    slot: HandlerFuture,
    parked: FuturesUnordered<BoxFuture<'static, Paused<W::Done, W::Job>>>,
    resting: FuturesUnordered<BoxFuture<'static, Result<W::Job, W::Done>>>,
    outbox: W::Outbox,
    flushes: FuturesUnordered<BoxFuture<'static, ()>>,
    finished: usize,
    /// Whom a stop wakes.
    listening: Option<Waker>,
    pulls: u32,
    slow: bool,
    /// Nothing of the last batch had to wait: a worker may take more than may run at once, as it runs one after the other.
    inline: bool,
}

impl<W: Work> Worker<W> {
    fn new(crew: Arc<Crew<W>>, index: usize, share: usize) -> Self {
        Self {
            crew,
            index,
            share,
            batch: Batch::new(PULL),
            backlog: VecDeque::new(),
            slot: no_future(),
            parked: FuturesUnordered::new(),
            resting: FuturesUnordered::new(),
            outbox: W::Outbox::default(),
            flushes: FuturesUnordered::new(),
            finished: 0,
            listening: None,
            pulls: 0,
            slow: false,
            inline: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.listen(cx);
        let mut budget = BUDGET;
        loop {
            let stopping = self.crew.stopping.load(Ordering::Acquire);
            self.poll_parked(cx);
            self.poll_resting(cx);
            let more = if stopping {
                self.give_back();
                false
            } else {
                self.run_backlog(cx, &mut budget)
            };
            self.poll_flushes(cx);
            if more {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if stopping {
                if self.is_idle() {
                    return Poll::Ready(());
                }
                return Poll::Pending;
            }
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.pull(cx, &mut budget) {
                return Poll::Pending;
            }
        }
    }

    /// Has a stop wake this worker, by the waker that it was last polled with.
    fn listen(&mut self, cx: &Context<'_>) {
        let waker = cx.waker();
        if !self
            .listening
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            self.crew.wakers[self.index].register(waker);
            self.listening = Some(waker.clone());
        }
    }

    fn poll_parked(&mut self, cx: &mut Context<'_>) {
        while !self.parked.is_empty() {
            match self.parked.poll_next_unpin(cx) {
                Poll::Ready(Some(Paused::Done(done))) => self.finish(done),
                Poll::Ready(Some(Paused::Resting(rest))) => {
                    self.resting.push(rest);
                    self.poll_resting(cx);
                }
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
    }

    fn poll_resting(&mut self, cx: &mut Context<'_>) {
        while !self.resting.is_empty() {
            match self.resting.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(job))) => self.backlog.push_back(job),
                Poll::Ready(Some(Err(done))) => self.finish(done),
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
    }

    /// Whether nothing is left to do.
    fn is_idle(&self) -> bool {
        self.parked.is_empty()
            && self.resting.is_empty()
            && self.backlog.is_empty()
            && self.flushes.is_empty()
            && self.finished == 0
    }

    /// Sees to what is being sent off, and sends off what has ended since.
    fn poll_flushes(&mut self, cx: &mut Context<'_>) {
        loop {
            while !self.flushes.is_empty() {
                let Poll::Ready(Some(())) = self.flushes.poll_next_unpin(cx) else {
                    break;
                };
            }
            if !self.flush() {
                return;
            }
        }
    }

    /// Runs what waits. `true` says that the budget ended before the backlog did.
    fn run_backlog(&mut self, cx: &mut Context<'_>, budget: &mut usize) -> bool {
        while self.parked.len() < self.share
            && let Some(job) = self.backlog.pop_front()
        {
            self.run(job, cx);
            *budget = budget.saturating_sub(1);
            if *budget == 0 {
                return true;
            }
        }
        false
    }

    fn run(&mut self, job: W::Job, cx: &mut Context<'_>) {
        match self.crew.work.start(job, &mut self.slot, cx) {
            Started::Done(done) => self.finish(done),
            Started::Parked(future) => {
                self.inline = false;
                self.parked.push(future);
                self.poll_parked(cx);
            }
        }
    }

    fn finish(&mut self, done: W::Done) {
        self.finished += 1;
        if let Some(next) = self.crew.work.finish(done, &mut self.outbox) {
            self.backlog.push_front(next);
        }
    }

    /// Sends off what has ended. `false` says that there is nothing, or that enough is under way.
    fn flush(&mut self) -> bool {
        if self.finished == 0 || self.flushes.len() >= MAX_FLUSHES {
            return false;
        }
        self.flushes.extend(self.crew.work.flush(&mut self.outbox));
        self.crew.release(std::mem::take(&mut self.finished));
        true
    }

    fn give_back(&mut self) {
        while let Some(job) = self.backlog.pop_front() {
            self.finished += self.crew.work.give_back(job, &mut self.outbox);
        }
    }

    /// Pulls the next batch and runs it. `false` says that there is nothing to do but wait.
    fn pull(&mut self, cx: &mut Context<'_>, budget: &mut usize) -> bool {
        let room = self.room();
        if room == 0 {
            self.crew.wait_for_room(self.index, cx);
            // Somebody may have made room before we were on the list.
            return self.room() > 0;
        }
        self.batch.set_room(room);
        match self.crew.poll_pull(self.index, cx, &mut self.batch) {
            Pull::Wait | Pull::End => return false,
            Pull::Some => {}
        }
        let count = self.batch.len();
        self.crew.held.fetch_add(count, Ordering::AcqRel);
        self.inline = self.parked.is_empty();
        self.pulls = self.pulls.wrapping_add(1);
        let timed = (self.pulls.is_multiple_of(SAMPLE) || self.slow).then(Instant::now);
        // A full batch means that there is more, and slow handlers must not wait for each other on one worker.
        let passes_on = self.crew.wakers.len() > 1 && (count == room || self.slow);
        let mut batch = std::mem::replace(&mut self.batch, Batch::empty());
        if passes_on {
            // Whoever pulls next must find the keys of this batch taken.
            if batch.iter().any(|item| self.crew.work.is_ordered(item)) {
                let admitted = batch.drain().filter_map(|item| self.crew.work.admit(item));
                self.backlog.extend(admitted);
            }
            self.crew.pass_on(self.index);
        }
        for item in batch.drain() {
            let Some(job) = self.crew.work.admit(item) else {
                continue;
            };
            // What is in the backlog came first.
            if self.backlog.is_empty() && self.parked.len() < self.share {
                self.run(job, cx);
            } else {
                self.backlog.push_back(job);
            }
        }
        self.batch = batch;
        self.run_backlog(cx, budget);
        *budget = budget.saturating_sub(count);
        if let Some(start) = timed {
            self.slow = start.elapsed() > SLOW * u32::try_from(count).unwrap_or(u32::MAX);
        }
        true
    }

    fn room(&self) -> usize {
        // Those that rest may take half of the window, and the others go on; with more of them the handler as a whole
        // is in trouble, and new work would only join them.
        let most = (self.crew.window / 2 / self.crew.wakers.len()).max(1);
        if self.resting.len() >= most {
            return 0;
        }
        let free = self
            .crew
            .window
            .saturating_sub(self.crew.held.load(Ordering::Acquire));
        let workers = self.crew.wakers.len();
        let share = if workers == 1 {
            free
        } else if self.inline {
            self.crew.window / workers
        } else {
            self.share.saturating_sub(self.parked.len())
        };
        let pull = if self.slow { 1 } else { PULL };
        free.min(share).min(pull)
    }
}
