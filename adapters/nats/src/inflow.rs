//! A subscription of core NATS, with a bound of our own.
//!
//! The client library drops what does not fit into a subscription's buffer, too, but tells each message as an event and
//! writes a line of log for it: an overload would drown in its own reports. So a task moves what comes into a queue that
//! drops and counts.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anywire::transport::Seldom;
use anywire::{Error, ErrorKind, Pattern, Subject};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::errors;
use crate::link::Link;

/// The most bytes that wait, however few the messages are.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// How many messages are moved under one lock.
const AT_ONCE: usize = 64;

/// What comes in on a pattern.
pub(crate) struct Inflow {
    link: Arc<Link>,
    queue: Arc<Mutex<Queue>>,
    stop: Arc<Notify>,
    mover: JoinHandle<()>,
}

struct Queue {
    messages: VecDeque<async_nats::Message>,
    bound: usize,
    bytes: usize,
    waker: Option<Waker>,
    ended: bool,
    dropped: u64,
    reported: Seldom,
}

impl Inflow {
    /// Subscribes, alone or as one of a queue group; returns when the server knows.
    pub(crate) async fn open(
        link: &Arc<Link>,
        pattern: &Pattern,
        queue_group: Option<String>,
        bound: usize,
    ) -> Result<Self, Error> {
        let (client, subject) = (link.client(), pattern.wildcards().to_owned());
        let subscribed = match queue_group {
            Some(group) => client.queue_subscribe(subject, group).await,
            None => client.subscribe(subject).await,
        };
        let mut subscriber = subscribed.map_err(errors::disconnected)?;
        let queue = Arc::new(Mutex::new(Queue {
            messages: VecDeque::new(),
            bound,
            bytes: 0,
            waker: None,
            ended: false,
            dropped: 0,
            reported: Seldom::default(),
        }));
        let stop = Arc::new(Notify::new());
        let (filling, stopping) = (Arc::clone(&queue), Arc::clone(&stop));
        let listening = pattern.clone();
        let mover = tokio::spawn(async move {
            let end = End(filling);
            loop {
                tokio::select! {
                    message = subscriber.next() => match message {
                        Some(message) => end.0.lock().take_in(message, &mut subscriber, &listening),
                        None => return,
                    },
                    () = stopping.notified() => {
                        let _ = subscriber.unsubscribe().await;
                        return;
                    }
                }
            }
        });
        let inflow = Self {
            link: Arc::clone(link),
            queue,
            stop,
            mover,
        };
        if inflow.link.was_refused(pattern.wildcards()).await? {
            let text = "the NATS user may not subscribe to this; see its permissions";
            return Err(Error::new(ErrorKind::Denied, text).with_context("pattern", pattern));
        }
        Ok(inflow)
    }

    /// At most `room` of the messages that have come; `None` once it was stopped or its connection closed.
    pub(crate) fn poll_some(
        &self,
        cx: &Context<'_>,
        room: usize,
    ) -> Poll<Option<Vec<async_nats::Message>>> {
        let mut queue = self.queue.lock();
        let count = room.min(queue.messages.len());
        if count > 0 {
            let some: Vec<_> = queue.messages.drain(..count).collect();
            queue.bytes -= some.iter().map(|message| message.length).sum::<usize>();
            return Poll::Ready(Some(some));
        }
        if queue.ended {
            return Poll::Ready(None);
        }
        if !queue
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            queue.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Unsubscribes, and gives what had come.
    pub(crate) async fn stop(&self) -> VecDeque<async_nats::Message> {
        self.stop.notify_one();
        if self.link.is_connected() {
            // What was on its way arrives before the echo, or goes elsewhere.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.link.echo()).await;
        }
        self.queue.lock().end()
    }
}

impl Drop for Inflow {
    fn drop(&mut self) {
        self.mover.abort();
    }
}

impl fmt::Debug for Inflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.queue.lock().messages.len();
        f.debug_struct("Inflow")
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}

/// Whether the subject is one that a wildcard in first position does not meet: the framework's, and the server's own.
fn is_hidden(pattern: &Pattern, subject: &str) -> bool {
    pattern.wildcards().starts_with(['*', '>'])
        && (subject.starts_with('$')
            || Subject::parse_any(subject).is_ok_and(|subject| subject.is_reserved()))
}

/// Ends the queue with its task, however that ends.
struct End(Arc<Mutex<Queue>>);

impl Drop for End {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.ended = true;
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }
}

impl Queue {
    /// Takes a message, and those that came with it: who waits is woken once for all of them.
    fn take_in(
        &mut self,
        first: async_nats::Message,
        subscriber: &mut async_nats::Subscriber,
        pattern: &Pattern,
    ) {
        self.push(first, pattern);
        for _ in 1..AT_ONCE {
            let Some(Some(message)) = subscriber.next().now_or_never() else {
                break;
            };
            self.push(message, pattern);
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn push(&mut self, message: async_nats::Message, pattern: &Pattern) {
        if is_hidden(pattern, &message.subject) {
            return;
        }
        if self.messages.len() < self.bound && self.bytes < MOST_BYTES {
            self.bytes += message.length;
            self.messages.push_back(message);
        } else {
            self.dropped += 1;
            metrics::counter!("anywire.nats.dropped").increment(1);
            self.report(pattern);
        }
    }

    fn report(&mut self, pattern: &Pattern) {
        if self.reported.is_due() {
            let dropped = self.dropped;
            tracing::warn!(
                %pattern,
                dropped,
                "messages come faster than they are handled and are dropped, as at most once allows"
            );
        }
    }

    fn end(&mut self) -> VecDeque<async_nats::Message> {
        self.ended = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        self.bytes = 0;
        std::mem::take(&mut self.messages)
    }
}
