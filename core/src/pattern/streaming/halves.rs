//! The two halves of an emulated stream, as its user has them.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;

use super::frame::Frame;
use super::line::{Broken, Line};
use super::{Item, ItemSink, ItemSource};
use crate::client::error_reply;
use crate::pattern::Progress;
use crate::{Error, ErrorKind, Message, RemoteError, Subject};

pub(super) struct Sink {
    line: Arc<Line>,
    /// The frame that the wire has not taken yet; the next one waits for it.
    leaving: Option<BoxFuture<'static, Result<(), Error>>>,
}

impl Sink {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self {
            line,
            leaving: None,
        }
    }

    /// Waits until the last frame has left.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Some(leaving) = &mut self.leaving else {
            return Poll::Ready(Ok(()));
        };
        let Poll::Ready(left) = leaving.as_mut().poll(cx) else {
            return self.poll_given_up(cx);
        };
        self.leaving = None;
        if let Err(error) = left {
            self.line.fail(Broken::Unsent);
            return Poll::Ready(Err(error));
        }
        self.has_left();
        Poll::Ready(Ok(()))
    }

    /// Waits until nobody wants what the wire has not taken.
    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut state = self.line.state.lock();
        let Err(error) = state.check_leaving() else {
            state.out.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        drop(state);
        self.leaving = None;
        Poll::Ready(Err(error))
    }

    /// The wire has taken all that we gave it.
    fn has_left(&self) {
        let mut state = self.line.state.lock();
        state.out.handed = state.out.sent;
        if !state.out.is_open {
            self.line.sent_all(&mut state);
        }
    }

    /// Hands a frame to the wire. The error is one that it told at once.
    fn hand_over(&mut self, frame: &Frame, message: Message) -> Result<(), Error> {
        let line = &self.line;
        let Some(peer) = line.peer.get() else {
            return Err(Broken::Lost.error(0));
        };
        let post = &line.exchange.post;
        match post.send(&peer.address, peer.mark(frame, message)) {
            Progress::Done(sent) => sent,
            Progress::Pending(leaving) => {
                self.leaving = Some(leaving);
                Ok(())
            }
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
            let state = line.state.lock();
            state.check_sending()?;
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
        if let Err(error) = handed {
            line.fail(Broken::Unsent);
            return Poll::Ready(Err(error));
        }
        if self.leaving.is_none() {
            self.has_left();
        }
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
        // It may arrive, or not.
        self.leaving = None;
        let line = &self.line;
        let mut state = line.state.lock();
        if state.out.is_over || state.broken.is_some() {
            return;
        }
        if !state.out.is_open || line.peer.get().is_none() {
            return line.sent_all(&mut state);
        }
        state.out.is_open = false;
        state.owed.end = true;
        line.ask_to_speak(&mut state);
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sink").field(&self.line.end).finish()
    }
}

#[derive(Debug)]
pub(super) struct Source(Arc<Line>);

impl Source {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self(line)
    }
}

impl ItemSource for Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>> {
        let line = &self.0;
        let mut state = line.state.lock();
        if let Some((item, allows_more)) = state.read.hand_out() {
            if allows_more {
                state.owed.beat = true;
                line.ask_to_speak(&mut state);
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
        if was_open {
            state.owed.beat = true;
            line.ask_to_speak(&mut state);
        }
    }
}
