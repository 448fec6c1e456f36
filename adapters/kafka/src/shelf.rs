//! What a consumer has read and nobody has finished: which partition it is from, who gets it, who holds it.
//!
//! Plain data. The thread that reads puts messages in, a batch under one lock; subscriptions take them out and settle them.

mod leaving;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Context;

use anywire::pattern::publish_subscribe::{Received, Start, SubscriptionId};
use anywire::pattern::{Batch, Tag};
use anywire::{Message, Pattern, Trail};
use rustc_hash::FxHashMap;
use slab::Slab;
use smallvec::SmallVec;

use crate::names;
use crate::subscription::{Arrived, Begin, Bounds, Held, Seat, Subscription};
use crate::watermark::{Ticket, Watermark};

/// The partitions of a consumer, and the subscriptions that share it.
#[derive(Debug)]
pub(crate) struct Shelf {
    partitions: FxHashMap<PartitionKey, Partition>,
    subscriptions: FxHashMap<SubscriptionKey, Subscription>,
    bounds: Bounds,
    /// Whether messages are settled before they are delivered.
    early: bool,
    /// Whether there is a position that must not pass what somebody has left undone.
    keeps: bool,
    /// Numbers subscriptions and deliveries, so that a used slot is another.
    serial: u64,
    /// Changes with the set of subscriptions.
    version: u64,
    /// Whether a position may have moved since it was looked at.
    moved: bool,
    /// Whether the reader left something unread for lack of room.
    starved: bool,
    closed: bool,
    /// Whether everybody has left, so that nobody may come any more.
    retired: bool,
    /// Whether no broker can be reached, so that nothing is delivered that could not be settled.
    interrupted: bool,
    /// Who gets the copies for those who are not here.
    strays: Option<SubscriptionKey>,
    /// Whether nothing more is read: a bounded read has come to its end.
    finished: bool,
}

/// Names a subscription of a shelf, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SubscriptionKey(u64);

/// Names a partition for as long as it is ours; the next time it has another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PartitionKey(u64);

/// Those who get a message.
pub(crate) type Targets = SmallVec<[SubscriptionKey; 2]>;

#[derive(Debug)]
struct Partition {
    topic: Arc<str>,
    number: i32,
    watermark: Watermark,
}

impl Partition {
    /// Where a record stands; a copy that was sent again stands nowhere.
    fn position_of(&self, arrived: &Arrived) -> Option<anywire::Position> {
        if names::is_retry(&self.topic) {
            return None;
        }
        let (part, number) = (
            u32::try_from(self.number).ok()?,
            u64::try_from(arrived.offset).ok()?,
        );
        let position = anywire::Position::new(Arc::clone(&self.topic), part, number);
        Some(match arrived.message.timestamp() {
            Some(time) => position.with_time(time),
            None => position,
        })
    }
}

/// A record that was read.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) partition: PartitionKey,
    pub(crate) offset: i64,
    pub(crate) targets: Targets,
    pub(crate) message: Message,
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Untaken {
    /// Its partition is not ours any more.
    Lost,
    /// It, or what stands behind it, was taken before; the partition is read again from here on.
    Passed(i64),
}

/// Who sits where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeatKey {
    pub(crate) subscription: SubscriptionKey,
    seat: usize,
}

/// How far a partition may be said to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    pub(crate) offset: i64,
}

/// What a settlement brought about, for those who have to be told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct News {
    /// The reader has something to do.
    pub(crate) for_reader: bool,
}

impl Shelf {
    /// With `early` messages are settled before they are delivered; with `keeps` there is a position that must not pass what
    /// somebody has left undone.
    pub(crate) fn new(bounds: Bounds, early: bool, keeps: bool) -> Self {
        Self {
            partitions: FxHashMap::default(),
            subscriptions: FxHashMap::default(),
            bounds,
            early,
            keeps,
            serial: 0,
            version: 0,
            moved: false,
            starved: false,
            closed: false,
            retired: false,
            interrupted: false,
            strays: None,
            finished: false,
        }
    }

    // The subscriptions.

    /// Gives somebody a seat at a subscription; `None` where the consumer is at its end.
    pub(crate) fn sit_down(
        &mut self,
        id: &SubscriptionId,
        window: usize,
        begin: Begin,
    ) -> Option<SeatKey> {
        if self.retired || self.closed {
            return None;
        }
        let mut all = self.all();
        // What has no group is not shared: each of them gets everything.
        let known = all.find(|(_, other)| id.group.is_some() && other.id == *id);
        let known = known.map(|(key, _)| key);
        drop(all);
        let key = known.unwrap_or_else(|| self.enlist(id, begin));
        self.seat_at(key, window)
    }

    /// Gives a seat to whoever takes the copies for those who are not here; nobody else notices that one.
    pub(crate) fn sit_for_strays(&mut self, id: &SubscriptionId, window: usize) -> Option<SeatKey> {
        let key = self.enlist(id, Begin::default());
        self.strays = Some(key);
        self.seat_at(key, window)
    }

    fn enlist(&mut self, id: &SubscriptionId, begin: Begin) -> SubscriptionKey {
        self.serial += 1;
        let key = SubscriptionKey(self.serial);
        let subscription = Subscription {
            id: id.clone(),
            begin,
            ready: VecDeque::new(),
            ready_bytes: 0,
            left: None,
            seats: Slab::new(),
        };
        self.subscriptions.insert(key, subscription);
        key
    }

    fn seat_at(&mut self, key: SubscriptionKey, window: usize) -> Option<SeatKey> {
        self.version += 1;
        let seat = Seat {
            window,
            held: Slab::new(),
            waker: None,
            open: true,
        };
        let subscription = self.subscriptions.get_mut(&key)?;
        subscription.left = None;
        let seat = subscription.seats.insert(seat);
        Some(SeatKey {
            subscription: key,
            seat,
        })
    }

    fn all(&self) -> impl Iterator<Item = (SubscriptionKey, &Subscription)> {
        let all = self.subscriptions.iter();
        let all = all.filter(|(key, _)| self.strays != Some(**key));
        all.map(|(key, subscription)| (*key, subscription))
    }

    /// Who gets messages: who has subscribed, and who has left a moment ago.
    pub(crate) fn entitled(&self) -> impl Iterator<Item = (SubscriptionKey, &SubscriptionId)> {
        let all = self.all();
        let entitled = all.filter(|(_, subscription)| self.keeps || subscription.is_open());
        entitled.map(|(key, subscription)| (key, &subscription.id))
    }

    /// Who has subscribed.
    pub(crate) fn subscriptions(&self) -> impl Iterator<Item = (SubscriptionKey, &SubscriptionId)> {
        let here = self
            .all()
            .filter(|(_, subscription)| subscription.left.is_none());
        here.map(|(key, subscription)| (key, &subscription.id))
    }

    pub(crate) fn strays(&self) -> Option<SubscriptionKey> {
        self.strays
    }

    /// Changes with the set of subscriptions.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether a topic that the group has never read is read from its end: all who are interested in it say so, and it
    /// was there when they began.
    pub(crate) fn skips(&self, topic: &str, targets: &[SubscriptionKey]) -> bool {
        let skips = |key: &SubscriptionKey| {
            let subscription = self.subscriptions.get(key);
            let skips = subscription.and_then(|subscription| subscription.begin.skips.as_ref());
            skips.is_some_and(|known| known.contains(topic))
        };
        !targets.is_empty() && targets.iter().all(skips)
    }

    /// Where those begin who are interested in a topic that the group has never read; `None` where one of them wants all of it.
    pub(crate) fn places(&self, topic: &str, targets: &[SubscriptionKey]) -> Option<Vec<Start>> {
        let mut places = Vec::new();
        for key in targets {
            let begin = &self.subscriptions.get(key)?.begin;
            let skips = begin.skips.as_ref();
            match &begin.place {
                Some(place) => places.push(place.clone()),
                None if skips.is_some_and(|known| known.contains(topic)) => {}
                None => return None,
            }
        }
        (!places.is_empty()).then_some(places)
    }

    /// The topics of a bounded read.
    pub(crate) fn bounded(&self) -> Option<&[String]> {
        let mut all = self.subscriptions.values();
        all.find_map(|subscription| subscription.begin.bounded.as_deref())
    }

    /// Nothing more is read: who has taken everything has come to the end.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
        self.subscriptions.values_mut().for_each(Subscription::wake);
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    // The reader.

    /// A partition is ours.
    pub(crate) fn gain(&mut self, topic: &Arc<str>, number: i32) -> PartitionKey {
        self.serial += 1;
        let key = PartitionKey(self.serial);
        let partition = Partition {
            topic: Arc::clone(topic),
            number,
            watermark: Watermark::default(),
        };
        self.partitions.insert(key, partition);
        key
    }

    /// Whether a partition of the topic is ours.
    pub(crate) fn owns(&self, topic: &str) -> bool {
        self.partitions
            .values()
            .any(|partition| *partition.topic == *topic)
    }

    /// A partition is ours no more: its deliveries are stale, and what waits is dropped. Gives its last position, where the
    /// broker has not got it.
    pub(crate) fn lose(&mut self, key: PartitionKey) -> Option<Position> {
        let partition = self.partitions.remove(&key)?;
        // What was settled before it is delivered stays ours.
        if !self.early {
            let all = self.subscriptions.values_mut();
            all.for_each(|subscription| subscription.forget(key));
        }
        let offset = partition.watermark.unsent()?;
        Some(Position {
            topic: partition.topic,
            number: partition.number,
            offset,
        })
    }

    /// How many messages there is room for at all who get them; for none where nobody does. Then whoever makes room tells the
    /// reader.
    pub(crate) fn room(&mut self, partition: PartitionKey, targets: &[SubscriptionKey]) -> usize {
        let (bounds, early) = (self.bounds, self.early);
        let span = self
            .partitions
            .get(&partition)
            .map_or(bounds.count, |partition| partition.watermark.span());
        let theirs = targets.iter().filter_map(|key| self.subscriptions.get(key));
        let rooms = theirs.map(|subscription| subscription.room(bounds, early));
        let room = rooms.min().unwrap_or_default();
        let room = room.min(bounds.count.saturating_sub(span));
        self.starved |= room == 0;
        room
    }

    /// Puts records in; those of before are over. Gives the partitions that must be read again from an offset on.
    pub(crate) fn take_in(&mut self, fresh: &mut Vec<Fresh>) -> Vec<(PartitionKey, i64)> {
        let mut rewound: Vec<(PartitionKey, i64)> = Vec::new();
        let mut woken: SmallVec<[SubscriptionKey; 8]> = SmallVec::new();
        for record in fresh.drain(..) {
            let Fresh {
                partition: at,
                offset,
                targets,
                message,
            } = record;
            if rewound.iter().any(|(partition, _)| *partition == at) {
                continue;
            }
            let ticket = match self.early {
                true => Ticket::NONE,
                false => match self.take(at, offset, &targets) {
                    Ok(ticket) => ticket,
                    Err(Untaken::Lost) => continue,
                    Err(Untaken::Passed(from)) => {
                        rewound.push((at, from));
                        continue;
                    }
                },
            };
            for key in &targets {
                let Some(subscription) = self.subscriptions.get_mut(key) else {
                    continue;
                };
                subscription.ready_bytes += message.byte_len();
                subscription.ready.push_back(Arrived {
                    message: message.clone(),
                    partition: at,
                    offset,
                    ticket,
                });
                if woken.last() != Some(key) {
                    woken.push(*key);
                }
            }
        }
        for key in woken {
            if let Some(subscription) = self.subscriptions.get_mut(&key) {
                subscription.wake();
            }
        }
        rewound
    }

    fn take(
        &mut self,
        at: PartitionKey,
        offset: i64,
        targets: &Targets,
    ) -> Result<Ticket, Untaken> {
        let here = |key: &&SubscriptionKey| self.subscriptions.contains_key(*key);
        let shares = targets.iter().filter(here).count();
        // Where all have left meanwhile it is done by nobody, and comes again.
        let shares = shares.max(usize::from(!targets.is_empty())) as u32;
        let Some(partition) = self.partitions.get_mut(&at) else {
            return Err(Untaken::Lost);
        };
        self.moved = true;
        if let Some(ticket) = partition.watermark.take(offset, shares) {
            return Ok(ticket);
        }
        // The log was cut, or the library was not in order while it began. What is not done below it comes again as well.
        tracing::warn!(topic = %partition.topic, partition = partition.number, offset, "an offset came that was passed; its partition is read again");
        let from = partition.watermark.position();
        self.rewind(at);
        Err(Untaken::Passed(
            from.map_or(offset, |from| from.min(offset)),
        ))
    }

    /// Takes nothing of a partition for taken.
    fn rewind(&mut self, at: PartitionKey) {
        if let Some(partition) = self.partitions.get_mut(&at) {
            partition.watermark = Watermark::default();
        }
        let all = self.subscriptions.values_mut();
        all.for_each(|subscription| subscription.forget(at));
    }

    /// The positions that the broker has not been told of. They count as told.
    pub(crate) fn positions(&mut self) -> Vec<Position> {
        let mut positions = Vec::new();
        if !std::mem::take(&mut self.moved) {
            return positions;
        }
        for partition in self.partitions.values_mut() {
            if let Some(offset) = partition.watermark.unsent() {
                partition.watermark.note_sent(offset);
                positions.push(Position {
                    topic: Arc::clone(&partition.topic),
                    number: partition.number,
                    offset,
                });
            }
        }
        positions
    }

    /// The broker may not have taken what it was told last.
    pub(crate) fn tell_all_again(&mut self) {
        self.moved |= !self.partitions.is_empty();
        for partition in self.partitions.values_mut() {
            partition.watermark.forget_sent();
        }
    }

    pub(crate) fn has_moved(&self) -> bool {
        self.moved
    }

    /// No broker can be reached: what is held is not ours to settle any more, and is delivered again when one can.
    pub(crate) fn interrupt(&mut self) {
        if self.early {
            return;
        }
        self.interrupted = true;
        for subscription in self.subscriptions.values_mut() {
            subscription.take_back();
        }
    }

    /// A broker can be reached.
    pub(crate) fn resume(&mut self) {
        if std::mem::take(&mut self.interrupted) {
            self.tell_all_again();
            self.subscriptions.values_mut().for_each(Subscription::wake);
        }
    }

    /// Ends all: what waits is dropped, and everybody is told.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        for subscription in self.subscriptions.values_mut() {
            subscription.ready.clear();
            subscription.ready_bytes = 0;
            for (_, seat) in &mut subscription.seats {
                seat.held.clear();
            }
            subscription.wake();
        }
        self.partitions.clear();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    // Those who pull.

    /// Delivers what is ready, as far as batch and window allow. `None` at the end.
    pub(crate) fn deliver(
        &mut self,
        key: SeatKey,
        batch: &mut Batch<Received>,
        cx: &Context<'_>,
    ) -> Option<News> {
        let half = self.bounds.count / 2;
        let closed = self.closed;
        let serial = &mut self.serial;
        let subscription = self.subscriptions.get_mut(&key.subscription)?;
        let seat = subscription.seats.get_mut(key.seat)?;
        if closed || !seat.open {
            return None;
        }
        while !self.interrupted
            && batch.room() > 0
            && seat.held.len() < seat.window
            && let Some(arrived) = subscription.ready.pop_front()
        {
            subscription.ready_bytes -= arrived.message.byte_len();
            let position = self
                .partitions
                .get(&arrived.partition)
                .and_then(|partition| partition.position_of(&arrived));
            if self.early {
                let nothing_to_settle = Tag { slot: 0, epoch: 0 };
                let mut received = Received::new(arrived.message, nothing_to_settle);
                received.position = position;
                batch.push(received);
                continue;
            }
            *serial += 1;
            let (message, serial) = (arrived.message.clone(), *serial);
            let slot = seat.held.insert(Held { serial, arrived }) as u64;
            let epoch = serial;
            let mut received = Received::new(message, Tag { slot, epoch });
            received.position = position;
            batch.push(received);
        }
        if self.finished && batch.is_empty() && subscription.ready.is_empty() {
            return None;
        }
        if batch.is_empty()
            && !seat
                .waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            seat.waker = Some(cx.waker().clone());
        }
        let wanted = self.starved && subscription.ready.len() <= half;
        self.starved &= !wanted;
        Some(News { for_reader: wanted })
    }

    /// Settles a delivery. `None` where the tag names none.
    pub(crate) fn settle(&mut self, key: SeatKey, tag: Tag, done: bool) -> Option<News> {
        let subscription = self.subscriptions.get_mut(&key.subscription)?;
        let seat = subscription.seats.get_mut(key.seat)?;
        let slot = usize::try_from(tag.slot).ok()?;
        seat.held
            .get(slot)
            .filter(|held| held.serial == tag.epoch)?;
        let arrived = seat.held.try_remove(slot)?.arrived;
        if let Some(waker) = seat.waker.take() {
            waker.wake();
        }
        if !done {
            subscription.put_back(arrived);
            subscription.wake();
            return Some(News::default());
        }
        let partition = self.partitions.get_mut(&arrived.partition)?;
        partition.watermark.done(arrived.ticket);
        // The reader was starved by how far it is ahead, or has a position to tell.
        let wanted = self.starved && partition.watermark.span() <= self.bounds.count / 2;
        self.starved &= !wanted;
        let news = wanted || !self.moved;
        self.moved = true;
        Some(News { for_reader: news })
    }

    fn seat(&mut self, key: SeatKey) -> Option<&mut Seat> {
        let subscription = self.subscriptions.get_mut(&key.subscription)?;
        subscription.seats.get_mut(key.seat)
    }
}

/// A message that tells which subscription it is for.
pub(crate) fn addressed(message: Message, to: Option<Pattern>) -> Message {
    let mut trail = message.trail().cloned();
    let trail = trail.get_or_insert_with(|| Trail::new(message.subject().clone()));
    trail.pattern = trail.pattern.take().or(to);
    let trail = trail.clone();
    message.with_trail(trail)
}

#[cfg(test)]
mod tests;
