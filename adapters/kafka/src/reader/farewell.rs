//! How a consumer leaves its group: with its last positions told, and with a goodbye.

use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer};

use super::{FAREWELL, Reader};
use crate::group::Kind;
use crate::{member, producer};

/// How long the last positions are told again, where the broker does not take them: a group that is being put in order takes none.
const LAST_PATIENCE: Duration = Duration::from_secs(3);
/// How long it may take to say that it has them.
const LAST_ANSWER: Duration = Duration::from_millis(500);
/// How soon they are told again.
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// How long a consumer is kept that nobody wants: who comes back soon need not wait for a new one.
const IDLE: Duration = Duration::from_secs(10);

impl Reader<'_> {
    /// Whether nobody has wanted anything for a moment: it may be the end, and then the members leaves in one go.
    pub(super) fn deserted(&mut self) -> bool {
        let since = *self.deserted.get_or_insert_with(Instant::now);
        since.elapsed() >= FAREWELL
    }

    /// Whether nobody has wanted anything for long enough, and nobody may come any more.
    pub(super) fn retires(&mut self) -> bool {
        if !self.subscribed.is_empty() {
            self.idle = None;
            return false;
        }
        let since = *self.idle.get_or_insert_with(Instant::now);
        let idle = match self.group.kind {
            // Nobody comes to it a second time, but the first one may not have sat down yet.
            Kind::Reader(_) if self.group.shelf.lock().version() > 0 => Duration::ZERO,
            _ => IDLE,
        };
        since.elapsed() >= idle && self.group.shelf.lock().retire()
    }

    /// Tells the last positions, again where the group is just being put in order, and makes sure of them: nobody waits
    /// without a limit for a broker that does not answer.
    pub(super) fn tell_last(&mut self) {
        self.group.shelf.lock().tell_all_again();
        let since = Instant::now();
        while since.elapsed() < LAST_PATIENCE {
            let positions = self.group.shelf.lock().positions();
            member::commit(&self.consumer, &positions, CommitMode::Async);
            let is_told = positions.is_empty()
                || self.group.settings.health.is_down()
                || member::has(&self.consumer, &positions, LAST_ANSWER);
            if is_told {
                return;
            }
            self.group.shelf.lock().tell_all_again();
            self.poll_consumer();
            std::thread::park_timeout(LAST_PAUSE);
        }
    }

    /// Tells the last positions and leaves the group.
    pub(super) fn finish(mut self) {
        if self.failed {
            // Nobody says any more what is lost.
            self.consumer.context().abandon();
        } else if self.tells() {
            self.tell_last();
        }
        if self.group.is_stopping() {
            // Nobody waits for the goodbye.
            self.group.shelf.lock().close();
            self.group.told();
        }
        self.poll_consumer();
        if !self.failed && self.consumer.context().owns_nothing() {
            // A member that has no partitions and is closed does not tell its group, which then waits for it until its
            // session is over. One that wants nothing any more does tell, when the group is in order.
            self.consumer.unsubscribe();
            let since = Instant::now();
            while since.elapsed() < FAREWELL {
                std::thread::park_timeout(FAREWELL / 10);
                self.poll_consumer();
            }
        }
        // The queues hold the consumer, which waits for its group when it is dropped.
        self.lanes.clear();
        if self.failed {
            // One that has lost all brokers may wait for ever, and its successor must not.
            let lost = self.consumer;
            producer::apart(move || drop(lost));
        }
    }
}
