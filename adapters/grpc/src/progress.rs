//! Which groups have taken an event that others have not: it is sent again to the others alone.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use anywire::{Message, MessageId, Subject};
use parking_lot::Mutex;
use smallvec::SmallVec;
use smol_str::SmolStr;

/// The most events that are remembered; beyond, the oldest is forgotten, and sent again it comes to everybody.
const MOST: usize = 4096;

/// The groups that have taken an event.
pub(crate) type Done = SmallVec<[SmolStr; 2]>;

/// An event: the id that a sender gives is its own, and may come again under another subject.
type Event = (Subject, MessageId);

fn event(message: &Message) -> Option<Event> {
    Some((message.subject().clone(), message.id()?.clone()))
}

/// What is remembered.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    events: Mutex<Events>,
    /// How many there are: mostly none, which is all that is looked at.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Events {
    done: HashMap<Event, Done>,
    oldest: VecDeque<Event>,
}

impl Progress {
    /// Who has taken the event before.
    pub(crate) fn done(&self, message: &Message) -> Done {
        let Some(event) = self.if_any(message) else {
            return Done::new();
        };
        let events = self.events.lock();
        events.done.get(&event).cloned().unwrap_or_default()
    }

    /// A group has taken the event.
    pub(crate) fn note(&self, message: &Message, group: &SmolStr) {
        let Some(event) = event(message) else { return };
        let mut events = self.events.lock();
        let events = &mut *events;
        let done = events.done.entry(event.clone()).or_insert_with(|| {
            events.oldest.push_back(event);
            Done::new()
        });
        if !done.contains(group) {
            done.push(group.clone());
        }
        while events.done.len() > MOST
            && let Some(oldest) = events.oldest.pop_front()
        {
            events.done.remove(&oldest);
        }
        // Those that were forgotten are still in the queue.
        if events.oldest.len() > 2 * MOST {
            let done = &events.done;
            events.oldest.retain(|event| done.contains_key(event));
        }
        self.count.store(events.done.len(), Ordering::Release);
    }

    /// Everybody has taken the event.
    pub(crate) fn forget(&self, message: &Message) {
        let Some(event) = self.if_any(message) else {
            return;
        };
        let mut events = self.events.lock();
        events.done.remove(&event);
        self.count.store(events.done.len(), Ordering::Release);
    }

    fn if_any(&self, message: &Message) -> Option<Event> {
        let is_any = self.count.load(Ordering::Acquire) > 0;
        is_any.then(|| event(message)).flatten()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::Subject;

    fn message(id: usize) -> Message {
        Message::new(Subject::parse("a.b").unwrap(), "x").with_id(format!("event-{id}"))
    }

    #[test]
    fn an_event_is_remembered_until_all_have_it() {
        let progress = Progress::default();
        progress.note(&message(1), &"billing".into());
        assert_eq!(progress.done(&message(1)).as_slice(), ["billing"]);
        assert!(progress.done(&message(2)).is_empty());
        progress.forget(&message(1));
        assert!(progress.done(&message(1)).is_empty());
    }

    #[test]
    fn an_id_may_come_again_under_another_subject() {
        let progress = Progress::default();
        progress.note(&message(1), &"billing".into());
        let other = Message::new(Subject::parse("a.c").unwrap(), "x").with_id("event-1");
        assert!(progress.done(&other).is_empty());
        progress.forget(&other);
        assert_eq!(progress.done(&message(1)).as_slice(), ["billing"]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let progress = Progress::default();
        for id in 0..=MOST {
            progress.note(&message(id), &"billing".into());
        }
        assert!(progress.done(&message(0)).is_empty());
        assert_eq!(progress.events.lock().done.len(), MOST);
    }
}
