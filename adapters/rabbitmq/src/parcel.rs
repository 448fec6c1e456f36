//! Messages as they leave us, and what becomes of them.

use std::hash::{Hash, Hasher};
use std::task::{Context, Poll};

use anywire::Error;
use bytes::Bytes;
use futures::task::AtomicWaker;
use lapin::BasicProperties;
use lapin::types::ShortString;
use parking_lot::Mutex;
use rustc_hash::FxHasher;
use smallvec::SmallVec;

/// A message as it leaves us.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) exchange: ShortString,
    pub(crate) key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) payload: Bytes,
    /// Whether the broker gives it back where no queue takes it.
    pub(crate) mandatory: bool,
}

impl Parcel {
    /// Names where it goes.
    pub(crate) fn route(&self) -> u64 {
        route(self.exchange.as_str(), self.key.as_str())
    }
}

/// What became of a message.
#[derive(Debug)]
pub(crate) enum Sent {
    /// Each queue that takes it has it; without confirms: it is on its way.
    Confirmed,
    /// No queue takes it.
    Returned,
    /// The broker does not have it.
    Refused(Error),
    /// The broker may have it.
    Unknown(Error),
}

/// Messages that are sent together, and what became of them.
#[derive(Debug)]
pub(crate) struct Ticket {
    state: Mutex<TicketState>,
    waker: AtomicWaker,
}

#[derive(Debug)]
struct TicketState {
    fates: Fates,
    open: usize,
}

/// What is known about messages, in their order.
pub(crate) type Fates = SmallVec<[Option<Sent>; 1]>;

impl Ticket {
    /// A ticket for so many messages.
    pub(crate) fn new(count: usize) -> Self {
        let fates = std::iter::repeat_with(|| None).take(count).collect();
        Self {
            state: Mutex::new(TicketState { fates, open: 0 }),
            waker: AtomicWaker::new(),
        }
    }

    /// One more was handed over.
    pub(crate) fn open(&self) {
        self.state.lock().open += 1;
    }

    /// The fate of one that was handed over is known.
    pub(crate) fn end(&self, index: usize, sent: Sent) {
        let mut state = self.state.lock();
        state.open -= 1;
        state.note(index, sent);
        let last = state.open == 0;
        drop(state);
        if last {
            self.waker.wake();
        }
    }

    /// One was not handed over, and that is its fate.
    pub(crate) fn note(&self, index: usize, sent: Sent) {
        self.state.lock().note(index, sent);
    }

    /// Whether the fate of all that were handed over is known.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.state.lock().open == 0 {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        match self.state.lock().open {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    /// Waits until the fate of all that were handed over is known.
    pub(crate) async fn settled(&self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    /// What is known by now.
    pub(crate) fn take(&self) -> Fates {
        std::mem::take(&mut self.state.lock().fates)
    }
}

impl TicketState {
    fn note(&mut self, index: usize, sent: Sent) {
        if let Some(fate) = self.fates.get_mut(index) {
            *fate = Some(sent);
        }
    }
}

/// Names an exchange and a key.
pub(crate) fn route(exchange: &str, key: &str) -> u64 {
    let mut hasher = FxHasher::default();
    (exchange, key).hash(&mut hasher);
    hasher.finish()
}

/// What tells two messages of one route apart.
pub(crate) fn identity(properties: &BasicProperties) -> u64 {
    let mut hasher = FxHasher::default();
    (properties.message_id(), properties.correlation_id()).hash(&mut hasher);
    hasher.finish()
}
