//! Which groups have taken an event that others have not: it is sent again to the others alone.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use anywire::{Message, MessageId};
use parking_lot::Mutex;
use smallvec::SmallVec;
use smol_str::SmolStr;

/// The most events that are remembered; beyond, the oldest is forgotten, and sent again it comes to everybody.
const MOST: usize = 4096;

/// The groups that have taken an event.
pub(crate) type Done = SmallVec<[SmolStr; 2]>;

/// What is remembered.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    events: Mutex<Events>,
    /// How many there are: mostly none, which is all that is looked at.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Events {
    done: HashMap<MessageId, Done>,
    oldest: VecDeque<MessageId>,
}

impl Progress {
    /// Who has taken the event before.
    pub(crate) fn done(&self, message: &Message) -> Done {
        let Some(id) = message
            .id()
            .filter(|_| self.count.load(Ordering::Acquire) > 0)
        else {
            return Done::new();
        };
        self.events.lock().done.get(id).cloned().unwrap_or_default()
    }

    /// A group has taken the event.
    pub(crate) fn note(&self, message: &Message, group: &SmolStr) {
        let Some(id) = message.id() else { return };
        let mut events = self.events.lock();
        let events = &mut *events;
        let done = events.done.entry(id.clone()).or_insert_with(|| {
            events.oldest.push_back(id.clone());
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
            events.oldest.retain(|id| done.contains_key(id));
        }
        self.count.store(events.done.len(), Ordering::Release);
    }

    /// Everybody has taken the event.
    pub(crate) fn forget(&self, message: &Message) {
        let Some(id) = message
            .id()
            .filter(|_| self.count.load(Ordering::Acquire) > 0)
        else {
            return;
        };
        let mut events = self.events.lock();
        events.done.remove(id);
        self.count.store(events.done.len(), Ordering::Release);
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
    fn what_is_remembered_is_bounded() {
        let progress = Progress::default();
        for id in 0..=MOST {
            progress.note(&message(id), &"billing".into());
        }
        assert!(progress.done(&message(0)).is_empty());
        assert_eq!(progress.events.lock().done.len(), MOST);
    }
}
