//! One side of an emulated stream: what it has sent, what it has read, and what it may.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use parking_lot::Mutex;
use smol_str::{SmolStr, ToSmolStr};
use tokio_util::sync::CancellationToken;

use super::entrance::Answer;
use super::exchange::Exchange;
use super::frame::{Credit, End, Frame};
use super::halves::{Sink, Source};
use super::{Item, WINDOW, WINDOW_BYTES};
use crate::{Error, ErrorKind, Message, RemoteError, Subject};

/// One side of a stream. It is known to its exchange until both directions have ended.
pub(super) struct Line {
    pub(super) end: End,
    /// What the frames to the other side are marked with.
    other: SmolStr,
    pub(super) subject: Subject,
    pub(super) exchange: Arc<Exchange>,
    pub(super) stopped: CancellationToken,
    /// How its opening was answered.
    pub(super) answer: Mutex<Answer>,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    /// The other side's address; not known before it has accepted.
    pub(super) peer: Option<SmolStr>,
    pub(super) out: Out,
    pub(super) read: Read,
    pub(super) broken: Option<Broken>,
    /// When the other side was heard last, and when it last heard from us.
    pub(super) heard: Instant,
    pub(super) said: Instant,
}

/// What we send.
pub(super) struct Out {
    pub(super) is_open: bool,
    /// The items that were given to us, and those of them that have left.
    pub(super) sent: u64,
    pub(super) handed: u64,
    pub(super) bytes: u64,
    pub(super) credit: Credit,
    pub(super) waker: Option<Waker>,
}

/// What we read.
pub(super) struct Read {
    pub(super) is_open: bool,
    pub(super) seen: u64,
    pub(super) bytes: u64,
    pub(super) granted: Credit,
    pub(super) taken: Credit,
    pub(super) items: VecDeque<Item>,
    /// How the other side ended it.
    pub(super) end: Option<Option<RemoteError>>,
    pub(super) waker: Option<Waker>,
}

/// Why a stream ended that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The other side is not heard of any more, or has forgotten the stream, or our inbox is gone.
    Lost,
    /// Items are missing.
    Missing,
    /// The other side sent more than it was allowed to, or what no frame is.
    Overrun,
    /// We could not send.
    Unsent,
}

impl Broken {
    pub(super) fn error(self, last: u64) -> Error {
        let (kind, text) = match self {
            Self::Lost => (
                ErrorKind::Disconnected,
                "the other side of the stream was lost, or the way to it",
            ),
            Self::Missing => (
                ErrorKind::Disconnected,
                "items of the stream were lost on the way",
            ),
            Self::Overrun => (
                ErrorKind::Rejected,
                "the other side sent more than the window of the stream allows",
            ),
            Self::Unsent => (
                ErrorKind::Disconnected,
                "the stream's items cannot be sent any more",
            ),
        };
        Error::new(kind, text).with_context("last", last)
    }
}

/// The error of who sends to a reader that has stopped.
pub(crate) fn unwanted() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "the reader wants no more of the stream",
    )
}

/// What a reader gets of a stream whose sender has given it up.
pub(crate) fn abandoned() -> RemoteError {
    RemoteError::new("cancelled", "the sender gave the stream up before its end")
}

impl Line {
    /// A side that sends if `sends`, and reads if `reads`.
    pub(super) fn new(
        exchange: &Arc<Exchange>,
        end: End,
        subject: Subject,
        (sends, reads): (bool, bool),
    ) -> Arc<Self> {
        let now = exchange.clock.now();
        let state = State {
            peer: None,
            out: Out {
                is_open: sends,
                sent: 0,
                handed: 0,
                bytes: 0,
                credit: Credit::default(),
                waker: None,
            },
            read: Read {
                is_open: reads,
                seen: 0,
                bytes: 0,
                granted: first_credit(),
                taken: Credit::default(),
                items: VecDeque::new(),
                end: (!reads).then_some(None),
                waker: None,
            },
            broken: None,
            heard: now,
            said: now,
        };
        Arc::new(Self {
            end,
            other: end.other().to_smolstr(),
            subject,
            exchange: Arc::clone(exchange),
            stopped: CancellationToken::new(),
            answer: Mutex::default(),
            state: Mutex::new(state),
        })
    }

    /// The other side is there: its address, and what it allows.
    pub(super) fn meet(&self, peer: SmolStr, credit: Credit) {
        let mut state = self.state.lock();
        state.peer = Some(peer);
        state.heard = self.exchange.clock.now();
        state.out.allow(credit);
    }

    pub(super) fn halves(self: &Arc<Self>) -> super::Duplex {
        super::Duplex {
            sink: Box::new(Sink::new(Arc::clone(self))),
            source: Box::new(Source::new(Arc::clone(self))),
        }
    }

    /// It never began.
    pub(super) fn dismiss(&self) {
        let mut state = self.state.lock();
        state.out.close();
        state.read.is_open = false;
        self.leave_if_over(&state);
    }

    /// A frame that came from the other side.
    pub(super) fn receive(&self, frame: &Frame, message: &Message) {
        let mut state = self.state.lock();
        state.heard = self.exchange.clock.now();
        let is_ok = match frame {
            Frame::Item(number) => state.read.take_in(*number, message),
            Frame::End(items) => state.read.end(*items, message),
            Frame::Credit(credit) => {
                state.out.allow(*credit);
                Ok(())
            }
            Frame::Beat { sent, credit, .. } => {
                state.out.allow(*credit);
                state.read.check(*sent)
            }
            Frame::Stop => {
                state.out.close();
                self.stopped.cancel();
                Ok(())
            }
            Frame::Gone => Err(Broken::Lost),
            Frame::Open { .. } | Frame::Accept { .. } => Err(Broken::Overrun),
        };
        match is_ok {
            Ok(()) => self.leave_if_over(&state),
            Err(broken) => self.break_off(state, broken),
        }
    }

    /// Ends it badly.
    pub(super) fn fail(&self, broken: Broken) {
        self.break_off(self.state.lock(), broken);
    }

    fn break_off(&self, mut state: parking_lot::MutexGuard<'_, State>, broken: Broken) {
        if state.broken.is_some() {
            return;
        }
        let tells = broken != Broken::Lost;
        state.broken = Some(broken);
        state.out.wake();
        state.read.wake();
        self.exchange.forget(self);
        let peer = state.peer.clone();
        drop(state);
        self.stopped.cancel();
        if let Some(peer) = peer
            && tells
        {
            self.exchange.tell(peer, self.frame(&Frame::Gone));
        }
    }

    /// Says that we are there, where nothing else has said so since `quiet`; is told that nobody is, since `silent`.
    pub(super) fn keep(&self, now: Instant, quiet: Instant, silent: Instant) {
        let mut state = self.state.lock();
        let Some(peer) = state.peer.clone() else {
            // Who has opened it waits for an answer by a deadline of its own.
            state.heard = now;
            return;
        };
        if state.heard <= silent {
            return self.break_off(state, Broken::Lost);
        }
        if state.said > quiet {
            return;
        }
        state.said = now;
        let (sent, credit) = (state.out.handed, state.read.granted);
        drop(state);
        if let Some(address) = self.exchange.address() {
            let beat = Frame::Beat {
                sent,
                credit,
                address,
            };
            self.exchange.tell(peer, self.frame(&beat));
        }
    }

    pub(super) fn leave_if_over(&self, state: &State) {
        let has_read = !state.read.is_open || state.read.end.is_some();
        if has_read && !state.out.is_open {
            self.exchange.forget(self);
        }
    }

    pub(super) fn frame(&self, frame: &Frame) -> Message {
        self.message(frame, Message::new(self.subject.clone(), ""))
    }

    pub(super) fn message(&self, frame: &Frame, message: Message) -> Message {
        message
            .with_correlation_id(self.other.clone())
            .with_frame(frame.to_smolstr())
    }
}

/// What a reader allows before anything came.
pub(super) fn first_credit() -> Credit {
    Credit {
        items: WINDOW as u64,
        bytes: WINDOW_BYTES as u64,
    }
}

impl State {
    /// Whether nothing can be sent any more, and why.
    pub(super) fn check_sending(&self) -> Result<(), Error> {
        match self.broken {
            Some(broken) => Err(broken.error(self.read.seen)),
            None if !self.out.is_open => Err(unwanted()),
            None => Ok(()),
        }
    }
}

impl Out {
    fn allow(&mut self, credit: Credit) {
        self.credit.items = self.credit.items.max(credit.items);
        self.credit.bytes = self.credit.bytes.max(credit.bytes);
        self.wake();
    }

    pub(super) fn may_send(&self) -> bool {
        self.sent < self.credit.items && self.bytes < self.credit.bytes
    }

    fn close(&mut self) {
        self.is_open = false;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Read {
    fn take_in(&mut self, number: u64, message: &Message) -> Result<(), Broken> {
        if !self.is_open || number <= self.seen {
            // It was on its way when we stopped, or came twice.
            return Ok(());
        }
        if self.end.is_some() || number > self.granted.items || self.bytes >= self.granted.bytes {
            return Err(Broken::Overrun);
        }
        if number > self.seen + 1 {
            return Err(Broken::Missing);
        }
        self.seen = number;
        self.bytes = self.bytes.saturating_add(message.payload().len() as u64);
        self.items.push_back(Item {
            payload: message.payload().clone(),
            content_type: message.content_type().cloned(),
        });
        self.wake();
        Ok(())
    }

    fn end(&mut self, items: u64, message: &Message) -> Result<(), Broken> {
        if !self.is_open || self.end.is_some() {
            return Ok(());
        }
        self.check(items)?;
        if items < self.seen {
            return Err(Broken::Overrun);
        }
        let error = message.error_code().map(|code| {
            let read = serde_json::from_slice(message.payload());
            read.unwrap_or_else(|_| RemoteError::new(code, "the sender's error could not be read"))
        });
        self.end = Some(error);
        self.wake();
        Ok(())
    }

    /// Whether so many items have come.
    fn check(&self, items: u64) -> Result<(), Broken> {
        match self.is_open && self.end.is_none() && items > self.seen {
            true => Err(Broken::Missing),
            false => Ok(()),
        }
    }

    /// Hands out an item, and says what more is allowed for it, where that is worth a frame.
    pub(super) fn hand_out(&mut self) -> Option<(Item, Option<Credit>)> {
        let item = self.items.pop_front()?;
        self.taken.items += 1;
        self.taken.bytes = self.taken.bytes.saturating_add(item.payload.len() as u64);
        let first = first_credit();
        let next = Credit {
            items: self.taken.items + first.items,
            bytes: self.taken.bytes.saturating_add(first.bytes),
        };
        let is_due = next.items - self.granted.items >= first.items / 2
            || next.bytes.saturating_sub(self.granted.bytes) >= first.bytes / 2;
        if !is_due || self.end.is_some() {
            return Some((item, None));
        }
        self.granted = next;
        Some((item, Some(next)))
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.exchange.forget(self);
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Line").field(&self.end).finish()
    }
}
