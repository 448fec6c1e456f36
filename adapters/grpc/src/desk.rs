//! Where requests wait for a handler of this process, are held by it, and get their answers.
//!
//! One for each pattern that is served, and one for each subscription. All who have opened the same one share its work.

use std::collections::VecDeque;
use std::fmt;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anywire::pattern::Tag;
use anywire::pattern::publish_subscribe::{Guarantee, SubscriptionId};
use anywire::transport::Seldom;
use anywire::{Error, ErrorKind, Message, Pattern, Trail};
use parking_lot::Mutex;
use slab::Slab;
use smallvec::SmallVec;
use tokio::sync::oneshot;

/// How long a subscription whose last member has left counts as stopping: a program that ends shuts its door well before.
const LINGER: Duration = Duration::from_secs(1);
/// The most bytes that wait at one desk, however few the requests are.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// What a desk is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Calls to a pattern.
    Calls(Pattern),
    /// Streaming calls to a pattern, and whether their callers send items.
    Streams(Pattern, bool),
    /// The events of a subscription.
    Events(SubscriptionId, Guarantee),
}

impl Purpose {
    /// Whether nobody waits for what becomes of a request: at most once.
    pub(crate) fn is_fleeting(&self) -> bool {
        matches!(self, Self::Events(_, Guarantee::AtMostOnce))
    }

    pub(crate) fn pattern(&self) -> &Pattern {
        match self {
            Self::Calls(pattern) | Self::Streams(pattern, _) => pattern,
            Self::Events(subscription, _) => &subscription.pattern,
        }
    }
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The handler's reply.
    Reply(Message),
    /// The event was handled.
    Done,
    /// The event was handled in vain; all that is known of its end.
    Failed(Box<Trail>),
    /// Whoever held the call left without an answer. It may have run, and is not run again.
    Abandoned,
    /// Whoever held the event gave it back, and nobody is left to take it. A handler may have begun with it.
    GivenBack,
}

/// A request that waits for its answer. An error says that nobody is left who could give it, and that nobody has had it.
pub(crate) type Waiting = oneshot::Receiver<Answer>;

/// The desk.
pub(crate) struct Desk {
    pub(crate) purpose: Purpose,
    /// The most requests that wait.
    bound: usize,
    state: Mutex<State>,
    dropping: Seldom,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Item>,
    bytes: usize,
    members: Slab<Member>,
    held: Slab<Held>,
    serial: u64,
    /// Whose turn it is to get an event at most once.
    turn: usize,
    /// How many of those wait.
    fleeting: usize,
    /// When the last member has left.
    left: Option<Instant>,
}

struct Item {
    message: Message,
    deadline: Option<Instant>,
    /// `None` where nobody waits for an answer: at most once.
    answer: Option<oneshot::Sender<Answer>>,
    /// Whether a member has had it.
    was_held: bool,
}

impl Item {
    /// Tells its sender that nobody is left.
    fn hand_back(self) {
        if let Some(answer) = self.answer
            && self.was_held
        {
            // He may have given up.
            let _ = answer.send(Answer::GivenBack);
        }
    }
}

#[derive(Default)]
struct Member {
    /// Its share of what comes at most once: nothing fills a window there that would leave the rest to others.
    share: VecDeque<Item>,
    waker: Option<Waker>,
    held: usize,
    is_stopped: bool,
}

struct Held {
    serial: u64,
    member: usize,
    item: Item,
    /// Its end in vain, told before it is settled.
    failed: Option<Box<Trail>>,
}

/// A request that was taken from a desk.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) message: Message,
    pub(crate) deadline: Option<Instant>,
    pub(crate) tag: Tag,
}

impl Desk {
    pub(crate) fn new(purpose: Purpose, bound: usize) -> Self {
        Self {
            purpose,
            bound,
            state: Mutex::default(),
            dropping: Seldom::default(),
        }
    }

    /// As [`Purpose::is_fleeting`].
    pub(crate) fn is_fleeting(&self) -> bool {
        self.purpose.is_fleeting()
    }

    /// Whether somebody takes requests.
    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().is_open()
    }

    /// Whether those who took requests are about to go. What comes now is for another instance, or for later: a sender who is told
    /// that nobody listens takes an event for delivered.
    pub(crate) fn is_stopping(&self, now: Instant) -> bool {
        let state = self.state.lock();
        if state.is_open() {
            return false;
        }
        match &self.purpose {
            Purpose::Events(subscription, Guarantee::AtLeastOnce) => {
                let is_kept = subscription.group.is_some();
                is_kept && state.left.is_none_or(|left| now < left + LINGER)
            }
            // Nobody misses these.
            Purpose::Events(_, Guarantee::AtMostOnce) => false,
            // A call is lost nowhere: its caller is told.
            Purpose::Calls(_) | Purpose::Streams(..) => !state.held.is_empty(),
        }
    }

    /// Whether all members have left.
    pub(crate) fn is_left(&self) -> bool {
        self.state.lock().members.is_empty()
    }

    /// Whether there is nothing more to know of it.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.is_left() && !self.is_stopping(now)
    }

    /// Whether another request may wait.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.state.lock();
        self.is_fleeting() || state.waiting.len() < self.bound && state.bytes < MOST_BYTES
    }

    /// Puts a request down. At most once, what does not fit is dropped and counted.
    pub(crate) fn put(&self, message: Message, deadline: Option<Instant>) -> Option<Waiting> {
        if self.is_fleeting() {
            self.leave_behind(message);
            return None;
        }
        let (answer, waiting) = oneshot::channel();
        let item = Item {
            message,
            deadline,
            answer: Some(answer),
            was_held: false,
        };
        // Where the last who was here left a moment ago, the answer goes with the item.
        self.state
            .lock()
            .push(item)
            .into_iter()
            .for_each(Waker::wake);
        Some(waiting)
    }

    /// Puts an event down whose sender does not wait. `false` says that it is dropped, for want of room or of anybody to take it.
    pub(crate) fn leave_behind(&self, message: Message) -> bool {
        let item = Item {
            message,
            deadline: None,
            answer: None,
            was_held: false,
        };
        let mut state = self.state.lock();
        if !state.is_open() {
            return false;
        }
        let waiting = state.waiting.len() + state.fleeting;
        if waiting < self.bound && state.bytes < MOST_BYTES {
            let wakers = match self.is_fleeting() {
                true => state.share_out(item).into_iter().collect(),
                false => state.push(item),
            };
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
            return true;
        }
        drop(state);
        metrics::counter!("anywire.grpc.dropped").increment(1);
        if self.dropping.is_due() {
            let pattern = self.purpose.pattern();
            tracing::warn!(%pattern, "events come faster than they are handled and are dropped, as at most once allows");
        }
        false
    }

    /// A new member, by its number.
    pub(crate) fn join(&self) -> usize {
        self.state.lock().members.insert(Member::default())
    }

    /// Takes at most `room` requests, and no more than the member may hold; `None` once it was stopped.
    pub(crate) fn poll_take(
        &self,
        number: usize,
        cx: &Context<'_>,
        room: usize,
        window: usize,
    ) -> Poll<Option<Vec<Taken>>> {
        let is_fleeting = self.is_fleeting();
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(member) = state.members.get_mut(number) else {
            return Poll::Ready(None);
        };
        if member.is_stopped {
            return Poll::Ready(None);
        }
        let room = match is_fleeting {
            true => room,
            false => room.min(window.saturating_sub(member.held)),
        };
        let mut taken = Vec::new();
        while taken.len() < room {
            let next = match is_fleeting {
                true => member.share.pop_front().inspect(|_| state.fleeting -= 1),
                false => state.waiting.pop_front(),
            };
            let Some(item) = next else { break };
            state.bytes -= item.message.byte_len();
            // Whoever asked has given up.
            if item.answer.as_ref().is_some_and(oneshot::Sender::is_closed) {
                continue;
            }
            let (message, deadline) = (item.message.clone(), item.deadline);
            let tag = match is_fleeting {
                true => Tag { slot: 0, epoch: 0 },
                false => {
                    state.serial += 1;
                    member.held += 1;
                    let serial = state.serial;
                    let held = Held {
                        serial,
                        member: number,
                        item: Item {
                            was_held: true,
                            ..item
                        },
                        failed: None,
                    };
                    Tag {
                        slot: state.held.insert(held) as u64,
                        epoch: serial,
                    }
                }
            };
            taken.push(Taken {
                message,
                deadline,
                tag,
            });
        }
        if !taken.is_empty() {
            return Poll::Ready(Some(taken));
        }
        if !member
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            member.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Answers a request.
    ///
    /// # Errors
    /// `Stale` where it was answered before, or is held by another.
    pub(crate) fn answer(&self, number: usize, tag: Tag, answer: Answer) -> Result<(), Error> {
        let (held, waker) = self.state.lock().release(number, tag).ok_or_else(stale)?;
        if let Some(sender) = held.item.answer {
            let answer = match (answer, held.failed) {
                (Answer::Done, Some(trail)) => Answer::Failed(trail),
                (answer, _) => answer,
            };
            // Whoever asked may have given up.
            let _ = sender.send(answer);
        }
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Gives an event back: to whoever is here, or to its sender where nobody is.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub(crate) fn give_back(&self, number: usize, tag: Tag) -> Result<(), Error> {
        let mut state = self.state.lock();
        let (held, waker) = state.release(number, tag).ok_or_else(stale)?;
        state.put_back(held.item);
        let wakers = state.wakers();
        drop(state);
        waker.into_iter().chain(wakers).for_each(Waker::wake);
        Ok(())
    }

    /// Writes down that an event which is being handled has failed for good, as its dead letter tells. `false` says that no such
    /// event is held here.
    pub(crate) fn fail(&self, letter: &Message, trail: &Trail) -> bool {
        let mut state = self.state.lock();
        let same = |held: &Held| {
            let message = &held.item.message;
            held.failed.is_none()
                && message.id() == letter.id()
                && *message.subject() == trail.subject
        };
        // A sender that is impatient has sent the same again: the copies are told apart by where their bytes are.
        let place = |message: &Message| message.payload().as_ptr();
        let mut found = None;
        for (slot, held) in state.held.iter().filter(|(_, held)| same(held)) {
            if place(&held.item.message) == place(letter) {
                found = Some(slot);
                break;
            }
            found.get_or_insert(slot);
        }
        let held = found.and_then(|slot| state.held.get_mut(slot));
        match held {
            Some(held) => {
                held.failed = Some(Box::new(trail.clone()));
                true
            }
            None => false,
        }
    }

    /// Takes a member out of the work. What it holds stays its own, until [`leave`](Self::leave). `true` says that nobody is
    /// left to take requests.
    pub(crate) fn stop(&self, number: usize) -> bool {
        let mut state = self.state.lock();
        let mut share = VecDeque::new();
        let waker = state.members.get_mut(number).and_then(|member| {
            member.is_stopped = true;
            share = std::mem::take(&mut member.share);
            member.waker.take()
        });
        state.fleeting -= share.len();
        state.bytes -= share
            .iter()
            .map(|item| item.message.byte_len())
            .sum::<usize>();
        let mut wakers: Vec<_> = waker.into_iter().collect();
        wakers.extend(share.into_iter().flat_map(|item| state.share_out(item)));
        let is_deserted = !state.is_open();
        let orphans = match is_deserted {
            true => {
                state.bytes = 0;
                std::mem::take(&mut state.waiting)
            }
            false => VecDeque::new(),
        };
        drop(state);
        orphans.into_iter().for_each(Item::hand_back);
        wakers.into_iter().for_each(Waker::wake);
        is_deserted
    }

    /// Forgets a member; what it holds goes back.
    pub(crate) fn leave(&self, number: usize, now: Instant) {
        let mut state = self.state.lock();
        let held: Vec<_> = state
            .held
            .iter()
            .filter(|(_, held)| held.member == number)
            .map(|(slot, _)| slot)
            .collect();
        state.members.try_remove(number);
        for slot in held.into_iter().rev() {
            let held = state.held.remove(slot);
            match (&self.purpose, held.item.answer) {
                (Purpose::Calls(_) | Purpose::Streams(..), Some(sender)) => {
                    drop(sender.send(Answer::Abandoned))
                }
                (_, answer) => state.put_back(Item {
                    answer,
                    ..held.item
                }),
            }
        }
        if state.members.is_empty() {
            state.left = Some(now);
        }
        let wakers = state.wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn is_open(&self) -> bool {
        self.members.iter().any(|(_, member)| !member.is_stopped)
    }

    /// To the end of the line, where anybody takes from it.
    fn push(&mut self, item: Item) -> Vec<Waker> {
        if !self.is_open() {
            return Vec::new();
        }
        self.bytes += item.message.byte_len();
        self.waiting.push_back(item);
        self.wakers()
    }

    /// To the next member in turn.
    fn share_out(&mut self, item: Item) -> Option<Waker> {
        let open = self.members.iter().filter(|(_, member)| !member.is_stopped);
        let open: SmallVec<[usize; 8]> = open.map(|(number, _)| number).collect();
        if open.is_empty() {
            return None;
        }
        self.turn = self.turn.wrapping_add(1);
        let member = self.members.get_mut(open[self.turn % open.len()])?;
        self.fleeting += 1;
        self.bytes += item.message.byte_len();
        member.share.push_back(item);
        member.waker.take()
    }

    fn release(&mut self, number: usize, tag: Tag) -> Option<(Held, Option<Waker>)> {
        let slot = usize::try_from(tag.slot).ok()?;
        let held = self.held.get(slot)?;
        if held.serial != tag.epoch || held.member != number {
            return None;
        }
        let held = self.held.remove(slot);
        let waker = self.members.get_mut(number).and_then(|member| {
            member.held -= 1;
            member.waker.take()
        });
        Some((held, waker))
    }

    /// To the front, where it was.
    fn put_back(&mut self, item: Item) {
        if self.is_open() {
            self.bytes += item.message.byte_len();
            self.waiting.push_front(item);
        } else {
            item.hand_back();
        }
    }

    fn wakers(&mut self) -> Vec<Waker> {
        let members = self.members.iter_mut();
        members
            .filter_map(|(_, member)| member.waker.take())
            .collect()
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Desk")
            .field("purpose", &self.purpose)
            .field("waiting", &state.waiting.len())
            .field("held", &state.held.len())
            .finish_non_exhaustive()
    }
}

fn stale() -> Error {
    Error::new(
        ErrorKind::Stale,
        "the request is not ours to settle any more; one answer wins",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use anywire::Subject;
    use futures::task::noop_waker;

    fn desk() -> Desk {
        let subscription = SubscriptionId::new("shop", Pattern::parse("a.b").unwrap());
        Desk::new(Purpose::Events(subscription, Guarantee::AtLeastOnce), 2)
    }

    fn message() -> Message {
        Message::new(Subject::parse("a.b").unwrap(), "x").with_id("one")
    }

    fn take(desk: &Desk, number: usize, room: usize) -> Option<Vec<Taken>> {
        let waker = noop_waker();
        match desk.poll_take(number, &Context::from_waker(&waker), room, 8) {
            Poll::Ready(taken) => taken,
            Poll::Pending => Some(Vec::new()),
        }
    }

    #[test]
    fn what_is_given_back_comes_again_and_its_old_tag_is_stale() {
        let desk = desk();
        let number = desk.join();
        let mut waiting = desk.put(message(), None).unwrap();
        let first = take(&desk, number, 1).unwrap().remove(0).tag;
        desk.give_back(number, first).unwrap();
        let again = take(&desk, number, 1).unwrap().remove(0).tag;
        let stale = desk.answer(number, first, Answer::Done).unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::Stale);
        desk.answer(number, again, Answer::Done).unwrap();
        assert!(matches!(waiting.try_recv(), Ok(Answer::Done)));
    }

    #[test]
    fn who_gives_back_is_woken_to_take_again() {
        #[derive(Default)]
        struct Count(AtomicUsize);

        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }

        let desk = desk();
        let number = desk.join();
        let _waiting = desk.put(message(), None).unwrap();
        let tag = take(&desk, number, 1).unwrap().remove(0).tag;
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let next = desk.poll_take(number, &Context::from_waker(&waker), 1, 8);
        assert!(next.is_pending());
        desk.give_back(number, tag).unwrap();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_dead_letter_becomes_the_answer() {
        let desk = desk();
        let number = desk.join();
        let mut waiting = desk.put(message(), None).unwrap();
        let tag = take(&desk, number, 1).unwrap().remove(0).tag;
        let trail = Trail::new(Subject::parse("a.b").unwrap());
        assert!(desk.fail(&message(), &trail));
        assert!(!desk.fail(&message(), &trail), "it was told before");
        desk.answer(number, tag, Answer::Done).unwrap();
        assert!(matches!(waiting.try_recv(), Ok(Answer::Failed(_))));
    }

    #[test]
    fn who_leaves_gives_back_and_the_last_one_leaves_nobody_waiting() {
        let desk = desk();
        let (one, other) = (desk.join(), desk.join());
        let mut waiting = desk.put(message(), None).unwrap();
        let mut unseen = desk.put(message(), None).unwrap();
        assert_eq!(take(&desk, one, 1).unwrap().len(), 1);
        assert!(!desk.stop(one));
        desk.leave(one, Instant::now());
        assert!(waiting.try_recv().is_err());
        assert_eq!(take(&desk, other, 1).unwrap().len(), 1);
        assert!(desk.stop(other));
        assert_eq!(
            unseen.try_recv().unwrap_err(),
            oneshot::error::TryRecvError::Closed
        );
        assert!(take(&desk, other, 1).is_none());
        desk.leave(other, Instant::now());
        assert!(matches!(waiting.try_recv(), Ok(Answer::GivenBack)));
    }

    #[test]
    fn who_has_given_up_is_not_served() {
        let desk = desk();
        let number = desk.join();
        drop(desk.put(message(), None));
        let waiting = desk.put(message(), None);
        assert!(!desk.has_room());
        assert_eq!(take(&desk, number, 8).unwrap().len(), 1);
        assert!(desk.has_room());
        drop(waiting);
    }
}
