//! Which path leads to whom. The one place that decides what a request is.

use std::collections::HashMap;
use std::sync::Arc;

use anywire::{Error, Message, Subject, Trail};
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use crate::desk::{Desk, Purpose};
use crate::streams::Openings;

type Desks = Vec<Arc<Desk>>;

/// What a request to a subject is, by who has opened it.
#[derive(Debug)]
pub(crate) enum Destination {
    /// Nobody listens.
    Nobody,
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
}

#[derive(Debug, Default)]
struct Routes {
    literal: HashMap<Subject, Desks>,
    wild: Desks,
}

impl Switchboard {
    /// Where a request to `subject` goes.
    pub(crate) fn find(&self, subject: &Subject) -> Destination {
        let routes = Arc::clone(&*self.routes.read());
        let literal = routes.literal.get(subject).into_iter().flatten();
        let wild = routes.wild.iter();
        let wild = wild.filter(|desk| desk.purpose.pattern().matches(subject));
        let mut copies = SmallVec::new();
        for desk in literal.chain(wild) {
            match desk.purpose {
                // A subject is either for events or for calls, and overlapping calls stop the start of an app.
                Purpose::Calls(_) => return Destination::Call(Arc::clone(desk)),
                Purpose::Streams(_, items) => return Destination::Stream(Arc::clone(desk), items),
                Purpose::Events(..) => copies.push(Arc::clone(desk)),
            }
        }
        match copies.is_empty() {
            true => Destination::Nobody,
            false => Destination::Event(copies),
        }
    }

    /// Joins the desk for this purpose, which is made where there is none.
    ///
    /// # Errors
    /// `Config` where it is there with another guarantee.
    pub(crate) fn open(&self, purpose: Purpose, bound: usize) -> Result<(Arc<Desk>, usize), Error> {
        let mut desks = self.desks.lock();
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

    /// Takes a member out of the work. Where it was the last, nothing leads to the desk any more.
    pub(crate) fn stop(&self, desk: &Desk, number: usize) {
        let desks = self.desks.lock();
        if desk.stop(number) {
            self.publish(&desks);
        }
    }

    /// Forgets a member, and the desk with the last one.
    pub(crate) fn leave(&self, desk: &Arc<Desk>, number: usize) {
        let mut desks = self.desks.lock();
        if desk.leave(number) {
            desks.retain(|other| !Arc::ptr_eq(other, desk));
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
        for desk in desks.iter().filter(|desk| desk.is_open()) {
            match desk.purpose.pattern().as_subject() {
                Some(subject) => routes
                    .literal
                    .entry(subject)
                    .or_default()
                    .push(Arc::clone(desk)),
                None => routes.wild.push(Arc::clone(desk)),
            }
        }
        *self.routes.write() = Arc::new(routes);
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
