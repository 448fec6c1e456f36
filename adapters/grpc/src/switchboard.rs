//! Which path leads to whom. The one place that decides what a request is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anywire::{Error, Message, Subject, Trail};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::sync::watch;

use crate::desk::{Desk, Purpose};
use crate::streams::Openings;

type Desks = Vec<Arc<Desk>>;

/// What a request to a subject is, by who has opened it.
#[derive(Debug)]
pub(crate) enum Destination {
    /// Nobody listens.
    Nobody,
    /// Who listened is about to go.
    Stopping,
    /// A call.
    Call(Arc<Desk>),
    /// A streaming call, and whether its caller sends items.
    Stream(Arc<Desk>, bool),
    /// An event: a copy for each subscription.
    Event(SmallVec<[Arc<Desk>; 2]>),
}

/// All desks of a server.
#[derive(Debug, Default)]
pub(crate) struct Switchboard {
    /// What the reader looks at; replaced as a whole.
    routes: RwLock<Arc<Routes>>,
    desks: Mutex<Desks>,
    /// The streams that nobody has accepted yet.
    pub(crate) openings: Openings,
    /// Whether anybody takes requests.
    open: watch::Sender<bool>,
    /// Whether all who have opened anything are on their way out.
    is_closing: AtomicBool,
}

#[derive(Debug, Default)]
struct Routes {
    literal: HashMap<Subject, Vec<Door>>,
    wild: Vec<Door>,
}

/// A desk, and whether anybody takes requests there.
#[derive(Debug)]
struct Door {
    desk: Arc<Desk>,
    is_open: bool,
}

impl Switchboard {
    /// Where a request to `subject` goes.
    pub(crate) fn find(&self, subject: &Subject, now: Instant) -> Destination {
        let routes = Arc::clone(&*self.routes.read());
        let literal = routes.literal.get(subject).into_iter().flatten();
        let wild = routes.wild.iter();
        let wild = wild.filter(|door| door.desk.purpose.pattern().matches(subject));
        let mut copies = SmallVec::new();
        for Door { desk, is_open } in literal.chain(wild) {
            if !is_open {
                match desk.is_stopping(now) {
                    true => return Destination::Stopping,
                    false => continue,
                }
            }
            match desk.purpose {
                // A subject is either for events or for calls, and overlapping calls stop the start of an app.
                Purpose::Calls(_) => return Destination::Call(Arc::clone(desk)),
                Purpose::Streams(_, items) => return Destination::Stream(Arc::clone(desk), items),
                Purpose::Events(..) => copies.push(Arc::clone(desk)),
            }
        }
        match copies.is_empty() {
            true if self.is_closing.load(Ordering::Acquire) => Destination::Stopping,
            true => Destination::Nobody,
            false => Destination::Event(copies),
        }
    }

    /// Whether anybody takes requests, and what becomes of that.
    pub(crate) fn open_news(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Whether all who have opened anything are on their way out: then nobody is told that nobody listens.
    pub(crate) fn set_closing(&self, is_closing: bool) {
        self.is_closing.store(is_closing, Ordering::Release);
    }

    /// Joins the desk for this purpose, which is made where there is none.
    ///
    /// # Errors
    /// `Config` where it is there with another guarantee.
    pub(crate) fn open(
        &self,
        purpose: Purpose,
        bound: usize,
        now: Instant,
    ) -> Result<(Arc<Desk>, usize), Error> {
        let mut desks = self.desks.lock();
        desks.retain(|desk| !desk.is_left() || !is_same(&desk.purpose, &purpose));
        desks.retain(|desk| !desk.is_over(now));
        let is_private =
            matches!(&purpose, Purpose::Events(subscription, _) if subscription.group.is_none());
        let found = desks
            .iter()
            .find(|desk| !is_private && is_same(&desk.purpose, &purpose));
        if let Some(desk) = found {
            if desk.is_fleeting() != purpose.is_fleeting() {
                return Err(Error::config(
                    "two handlers of one subscription differ in their delivery; give them the same",
                ));
            }
            let desk = Arc::clone(desk);
            let number = desk.join();
            // It may have been deserted.
            self.publish(&desks);
            return Ok((desk, number));
        }
        let desk = Arc::new(Desk::new(purpose, bound));
        let number = desk.join();
        desks.push(Arc::clone(&desk));
        self.publish(&desks);
        Ok((desk, number))
    }

    /// Takes a member out of the work. Where it was the last, no request gets to the desk any more.
    pub(crate) fn stop(&self, desk: &Desk, number: usize) {
        let desks = self.desks.lock();
        if desk.stop(number) {
            self.publish(&desks);
        }
    }

    /// Forgets a member, and the desk some time after the last one.
    pub(crate) fn leave(&self, desk: &Desk, number: usize, now: Instant) {
        let mut desks = self.desks.lock();
        desk.leave(number, now);
        if desk.is_left() {
            desks.retain(|desk| !desk.is_over(now));
            self.publish(&desks);
        }
    }

    /// Tells the sender of a failed event, whose dead letter this is. `false` says that no such event is being handled.
    pub(crate) fn fail(&self, letter: &Message, trail: &Trail) -> bool {
        let desks = self.desks.lock();
        desks.iter().any(|desk| match &desk.purpose {
            Purpose::Calls(_) | Purpose::Streams(..) => false,
            Purpose::Events(subscription, _) => {
                subscription.group.as_deref() == trail.group.as_deref()
                    && trail.pattern.as_ref().is_some_and(|pattern| {
                        pattern.wildcards() == subscription.pattern.wildcards()
                    })
                    && desk.fail(letter, trail)
            }
        })
    }

    fn publish(&self, desks: &Desks) {
        let mut routes = Routes::default();
        let mut is_any_open = false;
        for desk in desks {
            let door = Door {
                desk: Arc::clone(desk),
                is_open: desk.is_open(),
            };
            is_any_open |= door.is_open;
            match desk.purpose.pattern().as_subject() {
                Some(subject) => routes.literal.entry(subject).or_default().push(door),
                None => routes.wild.push(door),
            }
        }
        *self.routes.write() = Arc::new(routes);
        self.open
            .send_if_modified(|open| std::mem::replace(open, is_any_open) != is_any_open);
    }
}

/// Whether both are for one and the same: captures do not count.
fn is_same(one: &Purpose, other: &Purpose) -> bool {
    one.pattern().wildcards() == other.pattern().wildcards()
        && match (one, other) {
            (Purpose::Calls(_), Purpose::Calls(_)) => true,
            (Purpose::Streams(_, one), Purpose::Streams(_, other)) => one == other,
            (Purpose::Events(one, _), Purpose::Events(other, _)) => one.group == other.group,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::Pattern;
    use anywire::pattern::publish_subscribe::{Guarantee, SubscriptionId};
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(60);

    fn events(subject: &str) -> Purpose {
        let subscription = SubscriptionId::new("stock", Pattern::parse(subject).unwrap());
        Purpose::Events(subscription, Guarantee::AtLeastOnce)
    }

    fn find(board: &Switchboard, subject: &str, now: Instant) -> Destination {
        board.find(&Subject::parse(subject).unwrap(), now)
    }

    #[test]
    fn a_subscription_that_stops_is_not_nobody() {
        let (board, now) = (Switchboard::default(), Instant::now());
        let (desk, number) = board.open(events("a.b"), 8, now).unwrap();
        let (_other, _) = board.open(events("a.c"), 8, now).unwrap();
        assert!(matches!(find(&board, "a.b", now), Destination::Event(_)));
        board.stop(&desk, number);
        let later = now + LONG;
        assert!(matches!(find(&board, "a.b", later), Destination::Stopping));
        board.leave(&desk, number, later);
        assert!(matches!(find(&board, "a.b", later), Destination::Stopping));
        assert!(*board.open_news().borrow(), "another goes on");
        // It ended, and its program goes on without it.
        let later = later + LONG;
        assert!(matches!(find(&board, "a.b", later), Destination::Nobody));
        // It comes again, as something else.
        let Purpose::Events(subscription, _) = events("a.b") else {
            unreachable!()
        };
        let other = Purpose::Events(subscription, Guarantee::AtMostOnce);
        board.open(other, 8, now).unwrap();
        assert!(matches!(find(&board, "a.b", now), Destination::Event(_)));
    }

    #[test]
    fn who_closes_is_not_nobody() {
        let (board, now) = (Switchboard::default(), Instant::now());
        assert!(matches!(find(&board, "a.b", now), Destination::Nobody));
        board.set_closing(true);
        assert!(matches!(find(&board, "a.b", now), Destination::Stopping));
    }

    #[test]
    fn calls_that_are_under_way_keep_their_pattern_from_being_nobody() {
        let (board, now) = (Switchboard::default(), Instant::now());
        let purpose = Purpose::Calls(Pattern::parse("a.b").unwrap());
        let (desk, number) = board.open(purpose, 8, now).unwrap();
        let message = Message::new(Subject::parse("a.b").unwrap(), "x");
        let _waiting = desk.put(message, None).unwrap();
        let waker = futures::task::noop_waker();
        let taken = desk.poll_take(number, &std::task::Context::from_waker(&waker), 1, 1);
        let std::task::Poll::Ready(Some(taken)) = taken else {
            panic!("nothing to take");
        };
        board.stop(&desk, number);
        assert!(!*board.open_news().borrow());
        assert!(matches!(find(&board, "a.b", now), Destination::Stopping));
        desk.answer(number, taken[0].tag, crate::desk::Answer::Abandoned)
            .unwrap();
        assert!(matches!(find(&board, "a.b", now), Destination::Nobody));
    }
}
