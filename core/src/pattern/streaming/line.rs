//! One side of an emulated stream: what it has sent, what it has read, and what it may.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use smol_str::{SmolStr, ToSmolStr};
use tokio_util::sync::CancellationToken;

use super::emulation::Exchange;
use super::frame::{Credit, End, Frame};
use super::{Item, ItemSink, ItemSource, WINDOW, WINDOW_BYTES};
use crate::client::error_reply;
use crate::pattern::Progress;
use crate::{Error, ErrorKind, Message, RemoteError, Subject};

/// One side of a stream. It is known to its exchange until both directions have ended.
pub(super) struct Line {
    end: End,
    /// What the frames to the other side are marked with.
    other: SmolStr,
    subject: Subject,
    exchange: Arc<Exchange>,
    pub(super) stopped: CancellationToken,
    state: Mutex<State>,
}

struct State {
    /// The other side's address; not known before it has accepted.
    peer: Option<SmolStr>,
    out: Out,
    read: Read,
    broken: Option<Broken>,
    /// When the other side was heard last, and when it last heard from us.
    heard: Instant,
    said: Instant,
}

/// What we send.
struct Out {
    is_open: bool,
    /// The items that were given to us, and those of them that have left.
    sent: u64,
    handed: u64,
    bytes: u64,
    credit: Credit,
    waker: Option<Waker>,
}

/// What we read.
struct Read {
    is_open: bool,
    seen: u64,
    bytes: u64,
    granted: Credit,
    taken: Credit,
    items: VecDeque<Item>,
    /// How the other side ended it.
    end: Option<Option<RemoteError>>,
    waker: Option<Waker>,
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
    fn error(self, last: u64) -> Error {
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
            sink: Box::new(Sink {
                line: Arc::clone(self),
                leaving: None,
            }),
            source: Box::new(Source(Arc::clone(self))),
        }
    }

    pub(super) fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
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
        self.exchange.forget(self.end);
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

    fn leave_if_over(&self, state: &State) {
        let has_read = !state.read.is_open || state.read.end.is_some();
        if has_read && !state.out.is_open {
            self.exchange.forget(self.end);
        }
    }

    fn frame(&self, frame: &Frame) -> Message {
        self.message(frame, Message::new(self.subject.clone(), ""))
    }

    fn message(&self, frame: &Frame, message: Message) -> Message {
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

impl Out {
    fn allow(&mut self, credit: Credit) {
        self.credit.items = self.credit.items.max(credit.items);
        self.credit.bytes = self.credit.bytes.max(credit.bytes);
        self.wake();
    }

    fn may_send(&self) -> bool {
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
    fn hand_out(&mut self) -> Option<(Item, Option<Credit>)> {
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

struct Sink {
    line: Arc<Line>,
    /// The frame that the wire has not taken yet; the next one waits for it.
    leaving: Option<BoxFuture<'static, Result<(), Error>>>,
}

impl Sink {
    /// Waits until the last frame has left.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Some(leaving) = &mut self.leaving else {
            return Poll::Ready(Ok(()));
        };
        let left = ready!(leaving.as_mut().poll(cx));
        self.leaving = None;
        let mut state = self.line.state.lock();
        state.out.handed = state.out.sent;
        drop(state);
        if let Err(error) = left {
            self.line.fail(Broken::Unsent);
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }

    /// Hands a frame to the wire. The error is one that it told at once.
    fn hand_over(&mut self, frame: &Frame, message: Message) -> Result<(), Error> {
        let line = &self.line;
        let Some(peer) = line.state.lock().peer.clone() else {
            return Err(Broken::Lost.error(0));
        };
        match line.exchange.post.send(&peer, line.message(frame, message)) {
            Progress::Done(sent) => sent,
            Progress::Pending(leaving) => {
                self.leaving = Some(leaving);
                Ok(())
            }
        }
    }
}

impl State {
    /// Whether nothing can be sent any more, and why.
    fn check_sending(&self) -> Result<(), Error> {
        match self.broken {
            Some(broken) => Err(broken.error(self.read.seen)),
            None if !self.out.is_open => Err(unwanted()),
            None => Ok(()),
        }
    }
}

impl ItemSink for Sink {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_left(cx))?;
        let mut state = self.line.state.lock();
        state.check_sending()?;
        if state.out.may_send() {
            return Poll::Ready(Ok(()));
        }
        state.out.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn start_send(&mut self, item: Item) -> Result<(), Error> {
        let Item {
            payload,
            content_type,
        } = item;
        let (line, bytes) = (Arc::clone(&self.line), payload.len() as u64);
        let number = {
            let mut state = line.state.lock();
            state.check_sending()?;
            state.said = line.exchange.clock.now();
            state.out.sent + 1
        };
        let message = Message::new(line.subject.clone(), payload).with_content_type(content_type);
        match self.hand_over(&Frame::Item(number), message) {
            Ok(()) => {
                let mut state = line.state.lock();
                state.out.sent = number;
                state.out.bytes = state.out.bytes.saturating_add(bytes);
                if self.leaving.is_none() {
                    state.out.handed = number;
                }
                Ok(())
            }
            // It has not left, and the next one has its number.
            Err(error) if error.kind() == ErrorKind::TooLarge => Err(error),
            Err(error) => {
                line.fail(Broken::Unsent);
                Err(error)
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_left(cx)
    }

    fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        end: Option<&RemoteError>,
    ) -> Poll<Result<(), Error>> {
        ready!(self.poll_left(cx))?;
        let line = Arc::clone(&self.line);
        let sent = {
            let mut state = line.state.lock();
            if !state.out.is_open || state.broken.is_some() {
                return Poll::Ready(Ok(()));
            }
            state.out.is_open = false;
            line.leave_if_over(&state);
            state.out.sent
        };
        let mut message = ending(&line.subject, end);
        let mut handed = self.hand_over(&Frame::End(sent), message);
        if let (Err(error), Some(end)) = (&handed, end)
            && error.kind() == ErrorKind::TooLarge
        {
            // Its details do not fit.
            message = ending(&line.subject, Some(&end.clone().with_details(None)));
            handed = self.hand_over(&Frame::End(sent), message);
        }
        handed?;
        self.poll_left(cx)
    }
}

fn ending(subject: &Subject, end: Option<&RemoteError>) -> Message {
    match end {
        Some(error) => error_reply(subject, error),
        None => Message::new(subject.clone(), ""),
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let line = &self.line;
        let mut state = line.state.lock();
        if !state.out.is_open || state.broken.is_some() {
            return;
        }
        state.out.is_open = false;
        line.leave_if_over(&state);
        let (peer, sent) = (state.peer.clone(), state.out.sent);
        drop(state);
        if let Some(peer) = peer {
            let message = ending(&line.subject, Some(&abandoned()));
            let message = line.message(&Frame::End(sent), message);
            line.exchange.tell(peer, message);
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sink").field(&self.line.end).finish()
    }
}

#[derive(Debug)]
struct Source(Arc<Line>);

impl ItemSource for Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>> {
        let line = &self.0;
        let mut state = line.state.lock();
        if let Some((item, more)) = state.read.hand_out() {
            let peer = state.peer.clone();
            if let (Some(credit), Some(peer)) = (more, peer) {
                state.said = line.exchange.clock.now();
                drop(state);
                line.exchange.tell(peer, line.frame(&Frame::Credit(credit)));
            }
            return Poll::Ready(Some(Ok(item)));
        }
        match &mut state.read.end {
            Some(Some(_)) => {
                // After its error it is over.
                let error = state.read.end.replace(None).flatten();
                return Poll::Ready(error.map(|error| Err(Error::remote(error))));
            }
            Some(None) => return Poll::Ready(None),
            None => {}
        }
        if let Some(broken) = state.broken {
            state.read.end = Some(None);
            return Poll::Ready(Some(Err(broken.error(state.read.seen))));
        }
        state.read.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let line = &self.0;
        let mut state = line.state.lock();
        state.read.items.clear();
        let was_open = state.read.is_open && state.read.end.is_none() && state.broken.is_none();
        state.read.is_open = false;
        line.leave_if_over(&state);
        let peer = state.peer.clone();
        drop(state);
        if let Some(peer) = peer
            && was_open
        {
            line.exchange.tell(peer, line.frame(&Frame::Stop));
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.exchange.forget(self.end);
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Line").field(&self.end).finish()
    }
}
