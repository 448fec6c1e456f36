//! The last events, kept for those who want them again.

use std::collections::VecDeque;
use std::time::{Instant, SystemTime};

use crate::pattern::publish_subscribe::Start;
use crate::{Error, Message, Position};

/// A log of what was published, the oldest of which makes room.
#[derive(Default)]
pub(super) struct History {
    events: VecDeque<Event>,
    bytes: usize,
    next: u64,
}

pub(super) struct Event {
    pub(super) number: u64,
    pub(super) message: Message,
    pub(super) due: Option<Instant>,
    at: SystemTime,
}

impl History {
    /// Keeps an event; its number.
    pub(super) fn keep(
        &mut self,
        message: &Message,
        due: Option<Instant>,
        at: SystemTime,
        (most, most_bytes): (usize, usize),
    ) -> u64 {
        let number = self.next;
        self.next += 1;
        let mut message = message.clone();
        // What is kept here causes nothing any more.
        message.set_guard(None);
        self.bytes += message.byte_len();
        self.events.push_back(Event {
            number,
            message,
            due,
            at,
        });
        while self.events.len() > most || self.bytes > most_bytes {
            let Some(oldest) = self.events.pop_front() else {
                break;
            };
            self.bytes -= oldest.message.byte_len();
        }
        number
    }

    /// What is kept from `start` on.
    ///
    /// # Errors
    /// `Config` for a position of another wire.
    pub(super) fn since(&self, start: &Start) -> Result<impl Iterator<Item = &Event>, Error> {
        let first = match start {
            Start::Earliest => 0,
            Start::Latest => self.next,
            Start::At(time) => {
                let mut events = self.events.iter();
                let found = events.find(|event| event.at >= *time);
                found.map_or(self.next, |event| event.number)
            }
            Start::Position(position) if position.place() == PLACE => position.number(),
            Start::Position(_) => {
                return Err(Error::config(
                    "the position is of another wire; take one that a delivery on memory gave",
                ));
            }
        };
        let passed = self.events.partition_point(|event| event.number < first);
        Ok(self.events.range(passed..))
    }
}

/// What positions on memory begin with.
const PLACE: &str = "memory";

pub(super) fn position(number: u64) -> Position {
    Position::new(PLACE, 0, number)
}
