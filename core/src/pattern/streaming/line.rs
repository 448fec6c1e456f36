//! One side of an emulated stream: what it has sent, what it has read, and what it may.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use smol_str::{SmolStr, ToSmolStr};
use tokio_util::sync::CancellationToken;

use super::entrance::Answer;
use super::exchange::{Errand, Exchange};
use super::frame::{Credit, End, Frame, Mark, Side};
use super::halves::{Sink, Source};
use super::{Item, WINDOW, WINDOW_BYTES};
use crate::client::error_reply;
use crate::{Error, ErrorKind, Message, RemoteError, Subject};

/// The most frames that are kept for a caller that is not accepted yet: the windows of two, and their ends.
const MAX_EARLY: usize = 2 * (WINDOW + 1);

/// One side of a stream. It is known to its exchange until both directions have ended.
pub(super) struct Line {
    pub(super) end: End,
    pub(super) subject: Subject,
    pub(super) exchange: Arc<Exchange>,
    pub(super) stopped: CancellationToken,
    /// Known to a caller once it is accepted.
    pub(super) peer: OnceLock<Peer>,
    /// How its opening was answered.
    pub(super) answer: Mutex<Answer>,
    pub(super) state: Mutex<State>,
}

/// The other side of a stream.
pub(super) struct Peer {
    pub(super) run: u64,
    pub(super) address: SmolStr,
    /// What the frames to it are marked with.
    mark: SmolStr,
    /// How long it may be silent, or a side that is as slow as we are.
    silence: Duration,
}

pub(super) struct State {
    is_accepted: bool,
    early: Early,
    pub(super) out: Out,
    pub(super) read: Read,
    pub(super) broken: Option<Broken>,
    /// When the other side was heard last, and when we gave it a sign of life.
    heard: Instant,
    said: Instant,
    pub(super) owed: Owed,
    /// Whether it has a place among those that wait for their turn to speak.
    is_waiting: bool,
}

/// What the other side has to be told, by the way.
#[derive(Default)]
pub(super) struct Owed {
    /// That we gave up what we were sending.
    pub(super) end: bool,
    pub(super) beat: bool,
    /// That we know the stream no more.
    gone: bool,
}

/// Frames of all who have accepted, while the caller does not know whom it talks to.
#[derive(Default)]
struct Early {
    frames: Vec<(u64, Frame, Message)>,
    bytes: usize,
}

/// What we send.
pub(super) struct Out {
    pub(super) is_open: bool,
    /// Nothing leaves any more: the end has left, or nobody wants it.
    pub(super) is_over: bool,
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
    /// Items are missing, or the end.
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
                "items of the stream, or its end, were lost on the way",
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
            is_accepted: false,
            early: Early::default(),
            out: Out {
                is_open: sends,
                is_over: !sends,
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
            owed: Owed::default(),
            is_waiting: false,
        };
        Arc::new(Self {
            end,
            subject,
            exchange: Arc::clone(exchange),
            stopped: CancellationToken::new(),
            peer: OnceLock::new(),
            answer: Mutex::default(),
            state: Mutex::new(state),
        })
    }

    /// The other side is there: its run, its address and its heartbeat, and what it allows.
    pub(super) fn meet(
        self: &Arc<Self>,
        run: u64,
        (address, heartbeat): (SmolStr, Duration),
        credit: Credit,
    ) {
        let mark = Mark { end: self.end, run };
        let peer = Peer {
            run,
            address,
            mark: mark.other().to_smolstr(),
            silence: heartbeat.max(self.exchange.heartbeat).saturating_mul(7) / 4,
        };
        let mut state = self.state.lock();
        if self.peer.set(peer).is_err() {
            return;
        }
        state.heard = self.exchange.clock.now();
        state.is_accepted = self.end.side == Side::Caller;
        state.out.allow(credit);
        for (early, frame, message) in std::mem::take(&mut state.early).frames {
            if early != run {
                continue;
            }
            if let Err(broken) = self.take_in(&mut state, &frame, &message) {
                return self.break_off(state, broken);
            }
        }
        self.leave_if_over(&state);
    }

    pub(super) fn halves(self: &Arc<Self>) -> super::Duplex {
        super::Duplex {
            sink: Box::new(Sink::new(Arc::clone(self))),
            source: Box::new(Source::new(Arc::clone(self))),
        }
    }

    /// We have accepted it. A caller that is gone says so at once.
    pub(super) fn accepted(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.is_accepted = true;
        state.heard = self.exchange.clock.now();
        state.owed.beat = true;
        self.ask_to_speak(&mut state);
    }

    /// It never began.
    pub(super) fn dismiss(&self) {
        let mut state = self.state.lock();
        state.out.close();
        state.read.is_open = false;
        self.leave_if_over(&state);
    }

    /// A frame that came to this side; `false` where somebody sent it whose run this is not.
    pub(super) fn receive(self: &Arc<Self>, run: u64, frame: &Frame, message: &Message) -> bool {
        let mut state = self.state.lock();
        let Some(peer) = self.peer.get() else {
            state.early.keep(run, frame, message);
            return true;
        };
        if peer.run != run {
            return false;
        }
        state.heard = self.exchange.clock.now();
        match self.take_in(&mut state, frame, message) {
            Ok(()) => self.leave_if_over(&state),
            Err(broken) => self.break_off(state, broken),
        }
        true
    }

    fn take_in(&self, state: &mut State, frame: &Frame, message: &Message) -> Result<(), Broken> {
        match frame {
            Frame::Item(number) => state.read.take_in(*number, message),
            Frame::End(items) => state.read.end(*items, message),
            Frame::Beat {
                sent,
                sends,
                credit,
                reads,
                ..
            } => {
                state.out.allow(*credit);
                if !reads {
                    state.out.close();
                    self.stopped.cancel();
                }
                state.read.check(*sent, *sends)
            }
            Frame::Gone => Err(Broken::Lost),
            Frame::Open { .. } | Frame::Accept { .. } => Err(Broken::Overrun),
        }
    }

    /// Ends it badly.
    pub(super) fn fail(self: &Arc<Self>, broken: Broken) {
        self.break_off(self.state.lock(), broken);
    }

    fn break_off(self: &Arc<Self>, mut state: MutexGuard<'_, State>, broken: Broken) {
        if state.broken.is_some() {
            return;
        }
        state.broken = Some(broken);
        state.out.wake();
        state.read.wake();
        self.exchange.forget(self);
        if broken != Broken::Lost {
            state.owed.gone = true;
            self.ask_to_speak(&mut state);
        }
        drop(state);
        self.stopped.cancel();
    }

    /// Gives a sign of life where one is due; breaks where none came for too long.
    pub(super) fn keep(self: &Arc<Self>, now: Instant) {
        let Some(peer) = self.peer.get() else {
            // Who has opened it waits for an answer by a deadline of its own.
            return;
        };
        let mut state = self.state.lock();
        if !state.is_accepted {
            // A caller says nothing before.
            state.heard = now;
        }
        if now.saturating_duration_since(state.heard) >= peer.silence {
            return self.break_off(state, Broken::Lost);
        }
        if now.saturating_duration_since(state.said) >= self.exchange.heartbeat / 2 {
            state.owed.beat = true;
        }
        if state.owed.beat || state.owed.end {
            self.ask_to_speak(&mut state);
        }
    }

    /// Asks for a turn to [`speak`](Self::speak). Where there is none, the next look asks again.
    pub(super) fn ask_to_speak(self: &Arc<Self>, state: &mut State) {
        if !state.is_waiting && self.peer.get().is_some() {
            state.is_waiting = self.exchange.run(Errand::Speak(Arc::clone(self)));
        }
    }

    /// Tells the other side all that is owed to it.
    pub(super) async fn speak(self: Arc<Self>) -> Result<(), Error> {
        let Some(peer) = self.peer.get() else {
            return Ok(());
        };
        while let Some((frame, message)) = self.word() {
            let is_end = matches!(frame, Frame::End(_));
            let exchange = &self.exchange;
            let sending = exchange
                .post
                .send(&peer.address, peer.mark(&frame, message));
            let sent = exchange.taken(sending).await;
            if is_end {
                self.sent_all(&mut self.state.lock());
            }
            sent?;
        }
        Ok(())
    }

    fn word(&self) -> Option<(Frame, Message)> {
        let mut state = self.state.lock();
        state.is_waiting = false;
        let message = Message::new(self.subject.clone(), "");
        if state.broken.is_some() {
            let is_owed = std::mem::take(&mut state.owed).gone;
            return is_owed.then_some((Frame::Gone, message));
        }
        if std::mem::take(&mut state.owed.end) {
            let message = error_reply(&self.subject, &abandoned());
            return Some((Frame::End(state.out.sent), message));
        }
        // Who has sent its end and has read the other one has no more to say.
        let is_done = state.out.is_over && state.read.end.is_some();
        if !std::mem::take(&mut state.owed.beat) || is_done {
            return None;
        }
        state.said = self.exchange.clock.now();
        let beat = Frame::Beat {
            sent: state.out.handed,
            sends: !state.out.is_over,
            credit: state.read.granted,
            reads: state.read.is_open,
            address: self.exchange.address()?,
        };
        Some((beat, message))
    }

    /// Nothing leaves any more.
    pub(super) fn sent_all(&self, state: &mut State) {
        state.out.is_over = true;
        self.leave_if_over(state);
    }

    pub(super) fn leave_if_over(&self, state: &State) {
        let has_read = !state.read.is_open || state.read.end.is_some();
        if has_read && state.out.is_over {
            self.exchange.forget(self);
        }
    }
}

impl Peer {
    /// Makes a frame to it of a message.
    pub(super) fn mark(&self, frame: &Frame, message: Message) -> Message {
        message
            .with_correlation_id(self.mark.clone())
            .with_frame(frame.to_smolstr())
    }
}

impl Early {
    fn keep(&mut self, run: u64, frame: &Frame, message: &Message) {
        let has_room = self.frames.len() < MAX_EARLY && self.bytes < 2 * WINDOW_BYTES;
        // A sign of life comes again.
        if has_room && !matches!(frame, Frame::Beat { .. }) {
            self.bytes += message.payload().len();
            self.frames.push((run, frame.clone(), message.clone()));
        }
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
    /// Whether nothing new can be sent any more, and why.
    pub(super) fn check_sending(&self) -> Result<(), Error> {
        self.check_leaving()?;
        match self.out.is_open {
            true => Ok(()),
            false => Err(unwanted()),
        }
    }

    /// Whether what is on its way to the wire need not leave any more, and why.
    pub(super) fn check_leaving(&self) -> Result<(), Error> {
        match self.broken {
            Some(broken) => Err(broken.error(self.read.seen)),
            None if self.out.is_over => Err(unwanted()),
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
        self.is_over = true;
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
        self.check(items, true)?;
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

    /// Whether so many items have come, and an end where no more can.
    fn check(&self, items: u64, sends: bool) -> Result<(), Broken> {
        let waits = self.is_open && self.end.is_none();
        match waits && (items > self.seen || !sends) {
            true => Err(Broken::Missing),
            false => Ok(()),
        }
    }

    /// Hands out an item. The other side has to be told where it is allowed more.
    pub(super) fn hand_out(&mut self) -> Option<(Item, bool)> {
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
        let is_told = is_due && self.end.is_none();
        if is_told {
            self.granted = next;
        }
        Some((item, is_told))
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
