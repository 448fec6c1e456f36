//! The service behind a pattern: the calls that wait, that run, and that are answered.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use parking_lot::Mutex;
use slab::Slab;

use super::backlog::Wakers;
use super::broker::Shared;
use super::room::Room;
use crate::pattern::request_reply::ReceivedCall;
use crate::pattern::{Batch, Tag};
use crate::{Error, ErrorKind, Message, Pattern, Subject};

/// The calls to one pattern, and those who serve it. As with a queue, nothing foreign runs under the lock.
pub(super) struct Service {
    pub(super) room: Room,
    pattern: Pattern,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The calls that nobody has taken yet. One whose caller gave up is skipped.
    queue: VecDeque<Ticket>,
    /// Tells apart the calls that had the same slot, one after the other.
    epoch: u64,
    pending: Slab<Pending>,
    servers: Slab<Server>,
    /// The sum of the windows of those who serve: how many calls may wait.
    bound: usize,
    parked: usize,
    turn: usize,
}

/// Names a call to its caller and, as a tag, to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    slot: usize,
    epoch: u64,
}

struct Pending {
    epoch: u64,
    client: u64,
    deadline: Instant,
    progress: Stage,
    waker: Option<Waker>,
}

enum Stage {
    /// In the queue.
    Asked(Message),
    /// With this server.
    Running(usize),
    /// On its way to the caller.
    Answered(Result<Message, Error>),
}

struct Server {
    waker: Option<Waker>,
    unanswered: usize,
    window: usize,
    ended: bool,
}

/// What a service said to a request.
pub(super) enum Offered {
    /// It waits to be taken.
    Taken(Ticket),
    /// There is no room for it; it comes back.
    Full(Message),
    /// Nobody serves any more.
    Gone,
}

impl Service {
    pub(super) fn new(pattern: Pattern, shared: Arc<Shared>) -> Self {
        Self {
            room: Room::default(),
            pattern,
            shared,
            state: Mutex::default(),
        }
    }

    /// Adds a request, if there is room.
    pub(super) fn offer(&self, message: Message, deadline: Instant, client: u64) -> Offered {
        let mut state = self.state.lock();
        if state.bound == 0 {
            return Offered::Gone;
        }
        if state.queue.len() >= state.bound {
            state.skip_abandoned();
        }
        if state.queue.len() >= state.bound {
            return Offered::Full(message);
        }
        state.epoch += 1;
        let epoch = state.epoch;
        let slot = state.pending.insert(Pending {
            epoch,
            client,
            deadline,
            progress: Stage::Asked(message),
            waker: None,
        });
        let ticket = Ticket { slot, epoch };
        state.queue.push_back(ticket);
        let wakers = state.wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        Offered::Taken(ticket)
    }

    /// The answer, if it is there; else `waker` is woken when it comes.
    pub(super) fn answer(&self, ticket: Ticket, waker: &Waker) -> Option<Result<Message, Error>> {
        let mut state = self.state.lock();
        let pending = state.find(ticket)?;
        if !matches!(pending.progress, Stage::Answered(_)) {
            match &mut pending.waker {
                Some(known) => known.clone_from(waker),
                None => pending.waker = Some(waker.clone()),
            }
            return None;
        }
        let pending = state.pending.remove(ticket.slot);
        drop(state);
        self.shared.changed();
        pending.into_answer()
    }

    /// Forgets a call whose caller has given it up. The answer, should it have come at the last moment.
    pub(super) fn abandon(&self, ticket: Ticket) -> Option<Result<Message, Error>> {
        let mut state = self.state.lock();
        state.find(ticket)?;
        let pending = state.pending.remove(ticket.slot);
        let waker = match pending.progress {
            Stage::Running(server) => state.finish(server),
            Stage::Asked(_) | Stage::Answered(_) => None,
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        if self.room.is_wanted() {
            self.room.offer(1);
        }
        self.shared.changed();
        pending.into_answer()
    }

    /// Hands calls to a server, as far as its window and the batch have room: whether there were any. `None` when it
    /// serves no more.
    pub(super) fn take(
        &self,
        server: usize,
        cx: &Context<'_>,
        batch: &mut Batch<ReceivedCall>,
    ) -> Option<bool> {
        let mut state = self.state.lock();
        let room = state.room_of(server)?.min(batch.room());
        let mut taken = 0;
        while taken < room
            && let Some(call) = state.next(server)
        {
            batch.push(call);
            taken += 1;
        }
        if taken == 0 {
            state.park(server, cx.waker());
        }
        let free = state.bound.saturating_sub(state.queue.len());
        drop(state);
        if self.room.is_wanted() {
            self.room.offer(free);
        }
        Some(taken > 0)
    }

    /// Brings an answer to the caller that waits for it.
    pub(super) fn reply(&self, server: usize, tag: Tag, message: Message) -> Result<(), Error> {
        let mut state = self.state.lock();
        let running = state
            .find(Ticket::from(tag))
            .filter(|pending| matches!(pending.progress, Stage::Running(found) if found == server));
        let Some(pending) = running else {
            drop(state);
            metrics::counter!("anywire.memory.late_replies").increment(1);
            return Err(unexpected(message.subject()));
        };
        pending.progress = Stage::Answered(Ok(message));
        let caller = pending.waker.take();
        let puller = state.finish(server);
        drop(state);
        caller.into_iter().chain(puller).for_each(Waker::wake);
        self.shared.changed();
        Ok(())
    }

    /// Fails the calls that a server has and will not answer.
    pub(super) fn desert(&self, server: usize) {
        let message = "the server went away before it answered; the call may have run";
        self.fail(
            |pending| matches!(pending.progress, Stage::Running(found) if found == server),
            || Error::new(ErrorKind::Disconnected, message).with_context("pattern", &self.pattern),
        );
    }

    /// Removes a server.
    pub(super) fn leave(&self, server: usize) {
        self.desert(server);
        let gone = self.state.lock().servers.try_remove(server);
        drop(gone);
    }

    /// How many calls have no answer yet, or one that was not picked up.
    pub(super) fn pending(&self) -> usize {
        self.state.lock().pending.len()
    }

    /// Adds a server.
    pub(super) fn join(&self, window: usize) -> usize {
        let mut state = self.state.lock();
        let window = window.max(1);
        state.bound += window;
        let server = state.servers.insert(Server {
            waker: None,
            unanswered: 0,
            window,
            ended: false,
        });
        drop(state);
        self.room.offer(window);
        server
    }

    /// Stops handing calls to a server. Whether it was the last.
    pub(super) fn end(&self, server: usize) -> bool {
        let mut state = self.state.lock();
        let Some(found) = state.servers.get_mut(server).filter(|found| !found.ended) else {
            return false;
        };
        found.ended = true;
        let (window, waker) = (found.window, found.waker.take());
        state.bound -= window;
        state.parked -= usize::from(waker.is_some());
        let is_last = state.bound == 0;
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        is_last
    }

    /// Fails the calls that nobody will take any more.
    pub(super) fn turn_away(&self) {
        let message = "the last server stopped before it took the call; start its handler again";
        self.fail(
            |pending| matches!(pending.progress, Stage::Asked(_)),
            || Error::new(ErrorKind::NoRoute, message).with_context("pattern", &self.pattern),
        );
        self.room.dissolve();
    }

    /// Fails the calls of one client.
    pub(super) fn hang_up(&self, client: u64) {
        self.fail(
            |pending| pending.client == client && !matches!(pending.progress, Stage::Answered(_)),
            super::transport::closed,
        );
    }

    /// Answers some calls with an error.
    fn fail(&self, which: impl Fn(&Pending) -> bool, error: impl Fn() -> Error) {
        let mut dropped = Vec::new();
        let mut wakers = Wakers::new();
        let mut deserted = Vec::new();
        let mut state = self.state.lock();
        for (_, pending) in &mut state.pending {
            if which(pending) {
                let answer = Stage::Answered(Err(error()));
                let before = std::mem::replace(&mut pending.progress, answer);
                if let Stage::Running(server) = before {
                    deserted.push(server);
                }
                dropped.push(before);
                wakers.extend(pending.waker.take());
            }
        }
        for server in deserted {
            wakers.extend(state.finish(server));
        }
        drop(state);
        drop(dropped);
        wakers.into_iter().for_each(Waker::wake);
        self.shared.changed();
    }
}

impl State {
    fn find(&mut self, ticket: Ticket) -> Option<&mut Pending> {
        let pending = self.pending.get_mut(ticket.slot)?;
        (pending.epoch == ticket.epoch).then_some(pending)
    }

    fn room_of(&self, server: usize) -> Option<usize> {
        let server = self.servers.get(server).filter(|server| !server.ended)?;
        Some(server.window.saturating_sub(server.unanswered))
    }

    /// The next call that somebody still waits for.
    fn next(&mut self, server: usize) -> Option<ReceivedCall> {
        loop {
            let ticket = self.queue.pop_front()?;
            let Some(pending) = self.find(ticket) else {
                continue;
            };
            let asked = std::mem::replace(&mut pending.progress, Stage::Running(server));
            let Stage::Asked(message) = asked else {
                // It was failed while it waited; the caller has yet to see it.
                pending.progress = asked;
                continue;
            };
            let deadline = Some(pending.deadline);
            if let Some(server) = self.servers.get_mut(server) {
                server.unanswered += 1;
            }
            let tag = Tag {
                slot: ticket.slot as u64,
                epoch: ticket.epoch,
            };
            return Some(ReceivedCall {
                message,
                tag,
                deadline,
            });
        }
    }

    /// Makes room: the longest wait ends first.
    fn skip_abandoned(&mut self) {
        while let Some(ticket) = self.queue.front().copied()
            && self.find(ticket).is_none()
        {
            self.queue.pop_front();
        }
    }

    /// A server has one call less. Its waker, if that is what it waited for.
    fn finish(&mut self, server: usize) -> Option<Waker> {
        let server = self.servers.get_mut(server)?;
        let was_full = server.unanswered >= server.window;
        server.unanswered = server.unanswered.saturating_sub(1);
        let waker = was_full.then(|| server.waker.take()).flatten();
        self.parked -= usize::from(waker.is_some());
        waker
    }

    fn park(&mut self, server: usize, waker: &Waker) {
        if let Some(server) = self.servers.get_mut(server) {
            match &mut server.waker {
                Some(parked) => parked.clone_from(waker),
                None => {
                    server.waker = Some(waker.clone());
                    self.parked += 1;
                }
            }
        }
    }

    /// The wakers of the servers that can take a call, one after the other in front.
    fn wakers(&mut self) -> Wakers {
        let mut wakers = Wakers::new();
        if self.parked == 0 {
            return wakers;
        }
        for (_, server) in &mut self.servers {
            if server.unanswered < server.window
                && let Some(waker) = server.waker.take()
            {
                self.parked -= 1;
                wakers.push(waker);
            }
        }
        if wakers.len() > 1 {
            self.turn = self.turn.wrapping_add(1);
            let front = self.turn % wakers.len();
            wakers.rotate_left(front);
        }
        wakers
    }
}

impl Pending {
    fn into_answer(self) -> Option<Result<Message, Error>> {
        match self.progress {
            Stage::Answered(answer) => Some(answer),
            Stage::Asked(_) | Stage::Running(_) => None,
        }
    }
}

impl From<Tag> for Ticket {
    fn from(tag: Tag) -> Self {
        Self {
            slot: usize::try_from(tag.slot).unwrap_or(usize::MAX),
            epoch: tag.epoch,
        }
    }
}

fn unexpected(subject: &Subject) -> Error {
    let message =
        "nobody waits for this reply; the call was answered before, or its caller gave up";
    Error::new(ErrorKind::Stale, message).with_context("subject", subject)
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service({})", self.pattern)
    }
}
