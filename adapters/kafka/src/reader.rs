//! The thread of a consumer. It polls, whatever the handlers do, reads what there is room for, and tells positions.
//!
//! Each partition has a queue of its own in the library; back-pressure is not to take from it. The thread sleeps until a
//! queue has something, somebody made room, or something is due.

mod farewell;
mod interest;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anywire::Trail;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::Offset;

use crate::group::{Group, Kind};
use crate::lane::{First, Lane, Route};
use crate::member::{self, Gained, Member};
use crate::names;
use crate::pulse::{self, Pulse};
use crate::shelf::{Fresh, PartitionKey, Position, SubscriptionKey, Targets};
use crate::wire;

pub(crate) use interest::interested;

/// How much is taken from one partition before it is another one's turn.
const TURN: usize = 256;
/// How long the thread sleeps at most: a member that does not poll loses its partitions.
const NAP: Duration = Duration::from_secs(1);
/// How long after a failure the next try is made.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a consumer stays in its group that nobody wants anything of, and how long leaving it may take.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long what comes for a subscription that has left waits for it, where others of its group stay; and how long copies wait
/// for one that has not come yet, after the consumer has begun.
const BURIAL: Duration = Duration::from_secs(10);

/// The life of a consumer.
pub(crate) fn run(group: &Arc<Group>) {
    while !group.is_stopping() {
        let member = Member::new(Arc::clone(group));
        match BaseConsumer::from_config_and_context(&group.client, member) {
            Ok(mut consumer) => {
                let waker = Arc::clone(group);
                consumer.set_nonempty_callback(move || waker.wake());
                if Reader::new(group, Arc::new(consumer)).run().is_err() {
                    // Two of one name would throw each other out without a pause.
                    std::thread::park_timeout(PAUSE);
                }
            }
            Err(error) => {
                let group = &group.kind;
                tracing::error!(?group, error = %crate::errors::from(&error, "making a consumer"), "a consumer cannot be made");
                std::thread::park_timeout(PAUSE);
            }
        }
    }
}

/// A consumer was of no use any more.
struct GivenUp;

struct Reader<'a> {
    group: &'a Arc<Group>,
    consumer: Arc<BaseConsumer<Member>>,
    lanes: Vec<Lane>,
    turn: usize,
    /// What was read and not put on the shelf yet.
    fresh: Vec<Fresh>,
    subscribed: BTreeSet<String>,
    /// The versions of the subscriptions and the noticed topics that `subscribed` is made of.
    versions: Option<(u64, u64)>,
    committed: Instant,
    /// Since when nobody has wanted anything, with topics still subscribed to and without.
    deserted: Option<Instant>,
    idle: Option<Instant>,
    pulse: Pulse,
    failed: bool,
}

impl<'a> Reader<'a> {
    fn new(group: &'a Arc<Group>, consumer: Arc<BaseConsumer<Member>>) -> Self {
        Self {
            group,
            consumer,
            lanes: Vec::new(),
            turn: 0,
            fresh: Vec::new(),
            subscribed: BTreeSet::new(),
            versions: None,
            committed: Instant::now(),
            deserted: None,
            idle: None,
            pulse: Pulse::new(group.settings.config.reconnects_within()),
            failed: false,
        }
    }

    fn run(mut self) -> Result<(), GivenUp> {
        while !self.group.is_stopping() && !self.failed {
            self.follow_subscriptions();
            let mut busy = self.poll_consumer();
            busy |= self.read();
            busy |= self.hand_over();
            self.finish_bounded();
            self.tell_positions();
            self.feel_pulse();
            if self.retires() {
                self.group.stop();
            } else if !busy {
                std::thread::park_timeout(self.nap());
            }
        }
        let failed = self.failed;
        self.finish();
        if failed { Err(GivenUp) } else { Ok(()) }
    }

    /// Serves what the library has to say, until it has no more. What a partition brought before it had a queue of its own
    /// comes this way, and must all be here before that queue is read.
    fn poll_consumer(&mut self) -> bool {
        let consumer = Arc::clone(&self.consumer);
        let mut busy = false;
        self.attend();
        loop {
            let before = consumer.context().calls();
            match consumer.poll(Duration::ZERO) {
                Some(Ok(record)) => {
                    self.attend();
                    self.sort(&record);
                }
                Some(Err(error)) => self.complain(&error),
                None if consumer.context().calls() == before => return busy,
                None => self.attend(),
            }
            busy = true;
        }
    }

    /// Receives a record that did not come by the queue of its own partition: it was on its way before there was that
    /// queue, or the library has undone the split while it began to fetch.
    fn sort(&mut self, record: &BorrowedMessage<'_>) {
        let Some(at) = self.lanes.iter().position(|lane| lane.brings(record)) else {
            return;
        };
        match self.lanes.get(at).is_some_and(|lane| lane.first.is_some()) {
            // It must not be passed, so this one comes again.
            true => self.seek(at, record.offset()),
            false => self.receive(at, record),
        }
        if let Some(lane) = self.lanes.get_mut(at) {
            // Dropped first: it takes the wake-up of its successor along.
            lane.queue = None;
            lane.queue = split(self.group, &self.consumer, &lane.topic, lane.number);
        }
    }

    fn complain(&mut self, error: &KafkaError) {
        if matches!(error, KafkaError::PartitionEOF(_)) {
            return;
        }
        let group = &self.group.kind;
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            tracing::error!(?group, %error, "a consumer is of no use any more and is made anew");
            self.failed = true;
            return;
        }
        match error.rdkafka_error_code() {
            // What is acked while nobody can be told of it may be somebody else's by then.
            Some(Code::AllBrokersDown) => self.group.shelf.lock().interrupt(),
            Some(code @ (Code::GroupAuthorizationFailed | Code::TopicAuthorizationFailed)) => {
                self.group.refused(code);
            }
            _ => {}
        }
        self.group.settings.health.hear_consumer(group, error);
    }

    /// Opens and closes lanes.
    fn attend(&mut self) {
        let (gained, lost) = self.consumer.context().take();
        if !lost.is_empty() {
            self.lanes.retain(|lane| !lost.contains(&lane.key));
            self.fresh.retain(|fresh| !lost.contains(&fresh.partition));
        }
        for gained in gained {
            self.open(gained);
        }
        if self.consumer.context().is_astray() && !self.failed {
            tracing::warn!(group = ?self.group.kind, "a consumer has partitions and does not know where to begin; it is made anew");
            self.failed = true;
        }
    }

    fn open(&mut self, gained: Gained) {
        let Gained {
            topic,
            number,
            key,
            end,
            done,
        } = gained;
        let queue = split(self.group, &self.consumer, &topic, number);
        let mut lane = Lane {
            key,
            route: Route::of(&topic, &self.group.settings.rules),
            topic,
            number,
            targets: Vec::new(),
            keys: Targets::new(),
            queue,
            first: None,
            end,
            done,
            begins: Vec::new(),
        };
        self.aim(&mut lane);
        self.lanes.push(lane);
    }

    /// Takes from each partition what there is room for.
    fn read(&mut self) -> bool {
        // What could not be told of before is in the way.
        if self.group.kind.is_early() && !self.fresh.is_empty() {
            return false;
        }
        let rooms: Vec<usize> = {
            let mut shelf = self.group.shelf.lock();
            let room = |lane: &Lane| shelf.room(lane.key, &lane.keys);
            self.lanes.iter().map(room).collect()
        };
        let count = self.lanes.len();
        self.turn = self.turn.wrapping_add(1);
        let mut busy = false;
        for step in 0..count {
            let at = (self.turn + step) % count;
            if !self.release(at) {
                continue;
            }
            let mut room = rooms.get(at).copied().unwrap_or_default().min(TURN);
            if self.group.kind.is_early() {
                // What was read meanwhile is for the same windows, and would be lost with us.
                room = room.saturating_sub(self.fresh.len());
            }
            let Some(lane) = self.lanes.get_mut(at).filter(|_| room > 0) else {
                continue;
            };
            let Some(queue) = lane.queue.take() else {
                lane.queue = split(self.group, &self.consumer, &lane.topic, lane.number);
                busy |= lane.queue.is_some();
                continue;
            };
            let key = self.lanes.get(at).map(|lane| lane.key);
            while room > 0 && self.lanes.get(at).is_some_and(|lane| lane.first.is_none()) {
                match queue.poll(Duration::ZERO) {
                    Some(Ok(record)) => {
                        busy = true;
                        room -= 1;
                        if self.lanes.get(at).is_some_and(|lane| lane.brings(&record)) {
                            self.receive(at, &record);
                            continue;
                        }
                        // A queue whose split was undone is the consumer's own: it brings anything.
                        self.attend();
                        self.sort(&record);
                        return true;
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => self.reach_end(at),
                    Some(Err(error)) => self.complain(&error),
                    None => break,
                }
            }
            if let Some(lane) = self.lanes.get_mut(at).filter(|lane| Some(lane.key) == key) {
                lane.queue.get_or_insert(queue);
            }
        }
        busy
    }

    /// There is nothing more in the partition of a lane for now.
    fn reach_end(&mut self, at: usize) {
        if let Some(lane) = self.lanes.get_mut(at) {
            lane.done = true;
        }
    }

    /// Ends a bounded read that has read all of its partitions.
    fn finish_bounded(&mut self) {
        if !self.fresh.is_empty() || self.lanes.iter().any(|lane| !lane.done) {
            return;
        }
        let mut shelf = self.group.shelf.lock();
        let is_ours = |topic: &String| self.lanes.iter().any(|lane| *lane.topic == **topic);
        let all = shelf
            .bounded()
            .is_some_and(|topics| topics.iter().all(is_ours));
        if all && !shelf.is_finished() {
            shelf.finish();
        }
    }

    /// Lets the first record of a lane go, if its time has come; `false` where it still waits.
    fn release(&mut self, at: usize) -> bool {
        let Some(lane) = self.lanes.get(at) else {
            return false;
        };
        let Some(first) = &lane.first else {
            return true;
        };
        let is_over = self.left(lane, first).is_none();
        if !is_over || !has_room(self.group, &first.fresh) {
            return false;
        }
        if let Some(lane) = self.lanes.get_mut(at)
            && let Some(First { fresh, to, due: _ }) = lane.first.take()
        {
            let fresh = lane.address(fresh, to.as_deref());
            self.fresh.push(fresh);
        }
        true
    }

    /// How long the first record of a lane still waits for its time, or for a subscription that has not come yet.
    fn left(&self, lane: &Lane, first: &First) -> Option<Duration> {
        let now = self.group.settings.clock.wall();
        let due = first.due.and_then(|due| due.duration_since(now).ok());
        let patience = match lane.is_stray(&first.fresh) {
            true => BURIAL.saturating_sub(self.group.born.elapsed()),
            false => Duration::ZERO,
        };
        let left = due.unwrap_or_default().max(patience);
        (!left.is_zero()).then_some(left)
    }

    fn receive(&mut self, at: usize, record: &BorrowedMessage<'_>) {
        let clock = &*self.group.settings.clock;
        let Some(lane) = self.lanes.get_mut(at) else {
            return;
        };
        if matches!(self.group.kind, Kind::Reader(_)) && self.group.shelf.lock().bounded().is_some()
        {
            let is_late = record.offset() >= lane.end;
            lane.done |= record.offset() + 1 >= lane.end;
            if is_late {
                return;
            }
        }
        let unknown;
        let (subject, carrier) = match &lane.route {
            Route::Subject(subject) => (subject, false),
            Route::Packed(_, subject) | Route::Calls(_, subject) => (subject, true),
            Route::Copies | Route::Delayed => {
                // The header says which; a record without it is not ours.
                unknown = names::subject(&lane.topic);
                match &unknown {
                    Some(subject) => (subject, true),
                    None => return,
                }
            }
            Route::Foreign => return,
        };
        let mut read = wire::read(record, subject, carrier, clock);
        if matches!(lane.route, Route::Delayed)
            && let Some(until) = read.until
            && let Some(due) = read.due.filter(|due| until < *due)
        {
            // Whoever moves it sends it on for the rest.
            let mut trail = Trail::new(read.message.subject().clone());
            trail.due = Some(due);
            read.message = read.message.with_trail(trail);
            read.due = Some(until).filter(|until| *until > clock.wall());
        }
        let targets: Targets = match (&lane.route, &read.to) {
            (Route::Packed(..), _) => {
                let subject = read.message.subject();
                let all = lane.targets.iter();
                let mine = all.filter(|(_, id)| id.pattern.matches(subject));
                mine.map(|(key, _)| *key).collect()
            }
            (Route::Copies, to) => {
                let strays = self.group.shelf.lock().strays();
                lane.targets_of(to.as_deref(), strays)
            }
            (Route::Delayed, _) if names::is_delay(read.message.subject().as_str()) => {
                metrics::counter!("anywire.kafka.delayed_to_nobody").increment(1);
                tracing::error!(topic = %lane.topic, "an event that waits for its time does not say what it is to; it is dropped");
                Targets::new()
            }
            (Route::Calls(called, _), _) if !called.matches(read.message.subject()) => {
                Targets::new()
            }
            (Route::Calls(..), _)
                if record.offset() < lane.end && is_over(&read.message, clock.wall()) =>
            {
                Targets::new()
            }
            _ if lane.begins.is_empty() => lane.keys.clone(),
            _ => {
                let early = |key: &&SubscriptionKey| {
                    let mut begins = lane.begins.iter();
                    begins.any(|(other, end)| other == *key && record.offset() < *end)
                };
                lane.keys
                    .iter()
                    .filter(|key| !early(key))
                    .copied()
                    .collect()
            }
        };
        let fresh = Fresh {
            partition: lane.key,
            offset: record.offset(),
            targets,
            message: read.message,
        };
        let is_young = self.group.born.elapsed() < BURIAL;
        let waits = match lane.route {
            Route::Copies | Route::Delayed => {
                read.due.is_some()
                    || !has_room(self.group, &fresh)
                    || (is_young && lane.is_stray(&fresh))
            }
            _ => false,
        };
        if waits {
            lane.first = Some(First {
                fresh,
                to: read.to,
                due: read.due,
            });
        } else {
            self.fresh.push(lane.address(fresh, read.to.as_deref()));
        }
    }

    /// Puts what was read on the shelf. What is settled before it is delivered is told of first.
    fn hand_over(&mut self) -> bool {
        if self.fresh.is_empty() {
            return false;
        }
        if self.group.kind.is_early()
            && !member::commit(&self.consumer, &self.read_to(), CommitMode::Sync)
        {
            // Tried again, unless the partition is lost meanwhile.
            std::thread::park_timeout(PAUSE / 10);
            return true;
        }
        let rewound = self.group.shelf.lock().take_in(&mut self.fresh);
        for (partition, offset) in rewound {
            self.read_again(partition, offset);
        }
        true
    }

    fn read_again(&mut self, partition: PartitionKey, offset: i64) {
        let at = self.lanes.iter().position(|lane| lane.key == partition);
        let Some(at) = at else {
            return;
        };
        if let Some(lane) = self.lanes.get_mut(at) {
            lane.first = None;
        }
        self.fresh.retain(|fresh| fresh.partition != partition);
        self.seek(at, offset);
    }

    /// Goes on with an offset. The library throws away what it has brought of the partition by then.
    fn seek(&mut self, at: usize, offset: i64) {
        let Some(lane) = self.lanes.get(at) else {
            return;
        };
        let offset = Offset::Offset(offset);
        let seek = (self.consumer).seek(&lane.topic, lane.number, offset, Duration::ZERO);
        if let Err(error) = seek {
            tracing::error!(group = ?self.group.kind, topic = %lane.topic, %error, "a partition cannot be read again; its consumer is made anew");
            self.failed = true;
        }
    }

    /// How far it was read.
    fn read_to(&self) -> Vec<Position> {
        let mut positions: Vec<Position> = Vec::new();
        for fresh in &self.fresh {
            let Some(lane) = self.lanes.iter().find(|lane| lane.key == fresh.partition) else {
                continue;
            };
            let offset = fresh.offset + 1;
            let known = positions
                .iter_mut()
                .find(|position| position.number == lane.number && position.topic == lane.topic);
            match known {
                Some(position) => position.offset = offset,
                None => positions.push(Position {
                    topic: Arc::clone(&lane.topic),
                    number: lane.number,
                    offset,
                }),
            }
        }
        positions
    }

    /// Whether positions are told as messages are done.
    fn tells(&self) -> bool {
        let kind = &self.group.kind;
        kind.commits() && !kind.is_early()
    }

    fn tell_positions(&mut self) {
        let interval = self.group.settings.config.commit_interval;
        if !self.tells() || self.committed.elapsed() < interval {
            return;
        }
        let positions = self.group.shelf.lock().positions();
        if !positions.is_empty() {
            self.committed = Instant::now();
            if !member::commit(&self.consumer, &positions, CommitMode::Async) {
                self.group.shelf.lock().tell_all_again();
            }
        }
    }

    fn feel_pulse(&mut self) {
        let topic = self.lanes.first().map(|lane| Arc::clone(&lane.topic));
        let is_down = self.group.settings.health.is_down();
        let ask = || (self.consumer).fetch_metadata(topic.as_deref(), pulse::PATIENCE);
        if self.pulse.is_lost(is_down, ask) {
            tracing::warn!(group = ?self.group.kind, "a consumer has lost all brokers, though they are there; it is made anew");
            self.failed = true;
        }
    }

    /// How long there is nothing to do, unless somebody wakes us.
    fn nap(&self) -> Duration {
        let mut nap = match self.deserted {
            Some(since) if !self.subscribed.is_empty() => FAREWELL
                .saturating_sub(since.elapsed())
                .max(Duration::from_millis(1)),
            _ => NAP,
        };
        for lane in &self.lanes {
            let Some(first) = &lane.first else { continue };
            let left = self.left(lane, first);
            // Where it is over there is no room, and whoever makes some wakes us; or it was over a moment ago.
            if left.is_some() || has_room(self.group, &first.fresh) {
                nap = nap.min(left.unwrap_or_default().max(Duration::from_millis(1)));
            }
        }
        if self.tells() && self.group.shelf.lock().has_moved() {
            let interval = self.group.settings.config.commit_interval;
            let left = interval.saturating_sub(self.committed.elapsed());
            nap = nap.min(left.max(Duration::from_millis(1)));
        }
        nap
    }
}

/// Gives a partition a queue of its own.
fn split(
    group: &Arc<Group>,
    consumer: &Arc<BaseConsumer<Member>>,
    topic: &str,
    number: i32,
) -> Option<PartitionQueue<Member>> {
    let mut queue = consumer.split_partition_queue(topic, number)?;
    let waker = Arc::clone(group);
    queue.set_nonempty_callback(move || waker.wake());
    Some(queue)
}

/// Whether those who get a single record have room for it.
fn has_room(group: &Group, fresh: &Fresh) -> bool {
    let mut shelf = group.shelf.lock();
    fresh.targets.is_empty() || shelf.room(fresh.partition, &fresh.targets) > 0
}

/// Whether a call that was here before us has nobody who waits for it.
fn is_over(message: &anywire::Message, now: SystemTime) -> bool {
    let (Some(sent), Some(time)) = (message.timestamp(), message.deadline()) else {
        return false;
    };
    sent + time < now
}
