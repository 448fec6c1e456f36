//! What a consumer has read and nobody has finished: which partition it is from, who gets it, who holds it.
//!
//! Plain data. The thread that reads puts messages in, a batch under one lock; subscriptions take them out and settle them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

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

    /// Delivers nothing more to a seat. What waits is for the others of the subscription.
    pub(crate) fn close_seat(&mut self, key: SeatKey) {
        self.version += 1;
        if let Some(seat) = self.seat(key) {
            seat.open = false;
        }
        if let Some(subscription) = self.subscriptions.get_mut(&key.subscription) {
            subscription.wake();
        }
    }

    /// Lets nobody come any more, unless somebody is there.
    pub(crate) fn retire(&mut self) -> bool {
        let nobody = self.subscriptions().next().is_none();
        self.retired |= nobody;
        self.retired
    }

    /// Frees a seat: what it holds waits for another one.
    pub(crate) fn leave(&mut self, key: SeatKey) {
        self.version += 1;
        let Some(subscription) = self.subscriptions.get_mut(&key.subscription) else {
            return;
        };
        let Some(seat) = subscription.seats.try_remove(key.seat) else {
            return;
        };
        for (_, held) in seat.held {
            subscription.put_back(held.arrived);
        }
        subscription.wake();
        if subscription.seats.is_empty() {
            subscription.left = Some(Instant::now());
        }
    }

    /// Gives up those who left long ago: what they had of it is for whoever takes the strays.
    ///
    /// Not at once, and not while everybody is about to leave: when a whole app goes, one subscription after the other, what
    /// those had who went first is read again by the next one. Only where there is no position to be kept nobody is waited for.
    pub(crate) fn bury(&mut self, patience: Duration) {
        let is_anybody_open = self.all().any(|(_, subscription)| subscription.is_open());
        let patience = match self.keeps {
            true if !is_anybody_open => return self.forget_when_they_left(),
            true => patience,
            false => Duration::ZERO,
        };
        if !self.keeps {
            self.empty_closed();
        }
        let is_over = |left: &Instant| left.elapsed() >= patience;
        let all = self.all();
        let over = all.filter(|(_, subscription)| subscription.left.as_ref().is_some_and(is_over));
        let over: Vec<SubscriptionKey> = over.map(|(key, _)| key).collect();
        for key in over {
            self.version += 1;
            let Some(Subscription { id, ready, .. }) = self.subscriptions.remove(&key) else {
                continue;
            };
            if self.keeps && !ready.is_empty() {
                tracing::warn!(subscription = %id, messages = ready.len(), "a subscription has left for good with messages that it had not handled; they become dead letters");
            }
            for arrived in ready {
                self.hand_on(arrived, &id);
            }
        }
    }

    /// They are waited for from the moment on when somebody is there to wait for them.
    fn forget_when_they_left(&mut self) {
        let now = Instant::now();
        for subscription in self.subscriptions.values_mut() {
            subscription.left = subscription.left.map(|_| now);
        }
    }

    /// What nobody will take any more holds nobody up.
    fn empty_closed(&mut self) {
        let closed = self.subscriptions.values_mut();
        for subscription in closed.filter(|subscription| !subscription.is_open()) {
            subscription.ready_bytes = 0;
            for arrived in subscription.ready.drain(..) {
                if let Some(partition) = self.partitions.get_mut(&arrived.partition) {
                    self.moved |= partition.watermark.done(arrived.ticket);
                }
            }
        }
    }

    /// Gives what was for a subscription to whoever takes the strays, or counts it as done where nobody does.
    fn hand_on(&mut self, arrived: Arrived, of: &SubscriptionId) {
        let strays = self.strays.filter(|_| self.keeps);
        if let Some(strays) = strays.and_then(|key| self.subscriptions.get_mut(&key)) {
            let message = addressed(arrived.message, Some(of.pattern.clone()));
            strays.put_back(Arrived { message, ..arrived });
            strays.wake();
        } else if let Some(partition) = self.partitions.get_mut(&arrived.partition) {
            self.moved |= partition.watermark.done(arrived.ticket);
        }
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
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::{Pattern, Subject};
    use futures::task::noop_waker;

    const BOUNDS: Bounds = Bounds {
        count: 4,
        bytes: 1000,
    };

    fn id(pattern: &str) -> SubscriptionId {
        SubscriptionId::new("group", Pattern::parse(pattern).unwrap())
    }

    struct Desk {
        shelf: Shelf,
        partition: PartitionKey,
    }

    impl Desk {
        fn new() -> Self {
            let mut shelf = Shelf::new(BOUNDS, false, true);
            let partition = shelf.gain(&"a".into(), 0);
            Self { shelf, partition }
        }

        fn put(&mut self, offset: i64, to: &[SeatKey]) -> Vec<(PartitionKey, i64)> {
            let message = Message::new(Subject::parse("a").unwrap(), offset.to_string());
            let targets = to.iter().map(|seat| seat.subscription).collect();
            let partition = self.partition;
            self.shelf.take_in(&mut vec![Fresh {
                partition,
                offset,
                targets,
                message,
            }])
        }

        fn pull(&mut self, seat: SeatKey) -> Vec<(i64, Tag)> {
            let mut batch = Batch::new(100);
            let waker = noop_waker();
            let cx = Context::from_waker(&waker);
            self.shelf.deliver(seat, &mut batch, &cx).unwrap();
            let read = |received: Received| {
                let text = String::from_utf8(received.message.payload().to_vec()).unwrap();
                (text.parse().unwrap(), received.tag)
            };
            batch.drain().map(read).collect()
        }

        fn position(&mut self) -> Option<i64> {
            let positions = self.shelf.positions();
            positions.first().map(|position| position.offset)
        }
    }

    fn offsets(pulled: &[(i64, Tag)]) -> Vec<i64> {
        pulled.iter().map(|(offset, _)| *offset).collect()
    }

    #[test]
    fn the_position_waits_for_all_who_share_a_message() {
        let mut desk = Desk::new();
        let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
        desk.put(0, &[one, other]);
        let (mine, theirs) = (desk.pull(one), desk.pull(other));
        assert_eq!(desk.position(), Some(0));
        desk.shelf.settle(one, mine[0].1, true).unwrap();
        assert_eq!(desk.position(), None);
        desk.shelf.settle(other, theirs[0].1, true).unwrap();
        assert_eq!(desk.position(), Some(1));
    }

    #[test]
    fn a_window_is_never_exceeded_and_a_tag_settles_once() {
        let mut desk = Desk::new();
        let seat = desk.shelf.sit_down(&id("a"), 2, Begin::default()).unwrap();
        (0..4).for_each(|offset| drop(desk.put(offset, &[seat])));
        let pulled = desk.pull(seat);
        assert_eq!(offsets(&pulled), [0, 1]);
        assert!(desk.pull(seat).is_empty());
        assert!(desk.shelf.settle(seat, pulled[1].1, true).is_some());
        assert!(desk.shelf.settle(seat, pulled[1].1, true).is_none());
        let next = desk.pull(seat);
        assert_eq!(next[0].1.slot, pulled[1].1.slot, "the slot is used again");
        assert!(desk.shelf.settle(seat, pulled[1].1, false).is_none());
    }

    #[test]
    fn what_is_returned_comes_before_what_was_behind_it() {
        let mut desk = Desk::new();
        let seat = desk.shelf.sit_down(&id("a"), 3, Begin::default()).unwrap();
        (0..4).for_each(|offset| drop(desk.put(offset, &[seat])));
        let pulled = desk.pull(seat);
        for at in [1, 0, 2] {
            desk.shelf.settle(seat, pulled[at].1, false).unwrap();
        }
        assert_eq!(offsets(&desk.pull(seat)), [0, 1, 2]);
    }

    #[test]
    fn what_a_lost_partition_brought_is_stale_and_dropped() {
        let mut desk = Desk::new();
        let seat = desk.shelf.sit_down(&id("a"), 2, Begin::default()).unwrap();
        (0..4).for_each(|offset| drop(desk.put(offset, &[seat])));
        let pulled = desk.pull(seat);
        desk.shelf.settle(seat, pulled[0].1, true).unwrap();
        let last = desk.shelf.lose(desk.partition).unwrap();
        assert_eq!(last.offset, 1);
        assert!(desk.shelf.settle(seat, pulled[1].1, true).is_none());
        assert!(desk.pull(seat).is_empty());
        assert!(desk.shelf.positions().is_empty());
        // The partition may come back.
        desk.partition = desk.shelf.gain(&"a".into(), 1);
        desk.put(7, &[seat]);
        let next = desk.pull(seat);
        assert!(desk.shelf.settle(seat, pulled[1].1, true).is_none());
        assert!(desk.shelf.settle(seat, next[0].1, true).is_some());
    }

    #[test]
    fn an_offset_that_was_passed_is_read_again_with_all_behind_it() {
        let mut desk = Desk::new();
        let seat = desk.shelf.sit_down(&id("a"), 2, Begin::default()).unwrap();
        (5..8).for_each(|offset| assert!(desk.put(offset, &[seat]).is_empty()));
        let pulled = desk.pull(seat);
        assert_eq!(desk.put(3, &[seat]), [(desk.partition, 3)]);
        assert!(desk.shelf.settle(seat, pulled[0].1, true).is_none());
        assert!(desk.pull(seat).is_empty(), "it comes again");
        assert_eq!(desk.position(), None);
        (3..6).for_each(|offset| assert!(desk.put(offset, &[seat]).is_empty()));
        assert_eq!(offsets(&desk.pull(seat)), [3, 4]);
        assert_eq!(desk.position(), Some(3));
    }

    #[test]
    fn what_is_not_done_below_an_offset_that_was_passed_is_read_again() {
        let mut desk = Desk::new();
        let seat = desk.shelf.sit_down(&id("a"), 4, Begin::default()).unwrap();
        (5..9).for_each(|offset| assert!(desk.put(offset, &[seat]).is_empty()));
        let pulled = desk.pull(seat);
        desk.shelf.settle(seat, pulled[0].1, true).unwrap();
        assert_eq!(desk.put(8, &[seat]), [(desk.partition, 6)]);
        assert!(desk.shelf.settle(seat, pulled[1].1, true).is_none());
    }

    #[test]
    fn who_leaves_while_others_stay_finds_everything_on_coming_back() {
        let mut desk = Desk::new();
        let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
        desk.put(0, &[one, other]);
        desk.shelf.leave(one);
        assert_eq!(desk.shelf.entitled().count(), 2);
        desk.put(1, &[one, other]);
        for (_, tag) in desk.pull(other) {
            desk.shelf.settle(other, tag, true).unwrap();
        }
        assert_eq!(desk.position(), Some(0), "it is not everybody's");
        let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        assert_eq!(offsets(&desk.pull(one)), [0, 1]);
    }

    #[test]
    fn what_they_had_who_left_for_good_is_for_whoever_takes_the_strays() {
        let mut desk = Desk::new();
        let strays = desk.shelf.sit_for_strays(&id(">"), 9).unwrap();
        let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
        desk.put(0, &[one, other]);
        desk.shelf.leave(one);
        for (_, tag) in desk.pull(other) {
            desk.shelf.settle(other, tag, true).unwrap();
        }
        desk.shelf.bury(Duration::from_secs(60));
        assert!(desk.pull(strays).is_empty());
        desk.shelf.bury(Duration::ZERO);
        assert_eq!(desk.shelf.entitled().count(), 1);
        assert_eq!(desk.position(), Some(0));
        let handed_on = desk.pull(strays);
        assert_eq!(offsets(&handed_on), [0]);
        desk.shelf.settle(strays, handed_on[0].1, true).unwrap();
        assert_eq!(desk.position(), Some(1));
    }

    #[test]
    fn a_stray_tells_for_whom_it_was() {
        let message = Message::new(Subject::parse("a").unwrap(), "");
        let trail = addressed(message, Some(id("*").pattern)).trail().cloned();
        assert_eq!(trail.unwrap().pattern.unwrap().wildcards(), "*");
    }

    #[test]
    fn who_leaves_last_takes_nothing_for_handled() {
        let mut desk = Desk::new();
        let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
        desk.put(0, &[one, other]);
        let theirs = desk.pull(other);
        for seat in [one, other] {
            desk.shelf.close_seat(seat);
        }
        desk.shelf.leave(one);
        desk.shelf.bury(Duration::ZERO);
        desk.shelf.settle(other, theirs[0].1, true).unwrap();
        desk.shelf.leave(other);
        desk.shelf.bury(Duration::ZERO);
        assert_eq!(desk.position(), Some(0));
    }

    #[test]
    fn nobody_is_waited_for_before_somebody_is_there_to_wait() {
        let mut desk = Desk::new();
        let patience = Duration::from_secs(60);
        let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
        desk.put(0, &[one]);
        desk.shelf.leave(one);
        let key = one.subscription;
        desk.shelf.subscriptions.get_mut(&key).unwrap().left = Instant::now().checked_sub(patience);
        desk.shelf.close_seat(other);
        desk.shelf.bury(patience);
        desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
        desk.shelf.bury(patience);
        let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        assert_eq!(offsets(&desk.pull(one)), [0]);
    }

    #[test]
    fn where_no_position_is_kept_who_leaves_holds_nobody_up_at_all() {
        let mut shelf = Shelf::new(BOUNDS, false, false);
        let partition = shelf.gain(&"a".into(), 0);
        let mut desk = Desk { shelf, partition };
        let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
        let targets = [other.subscription];
        for offset in 0..4 {
            desk.put(offset, &[one, other]);
        }
        for (_, tag) in desk.pull(other) {
            desk.shelf.settle(other, tag, true).unwrap();
        }
        assert_eq!(desk.shelf.room(partition, &targets), 0);
        desk.shelf.leave(one);
        desk.shelf.bury(Duration::from_secs(60));
        assert_eq!(desk.shelf.room(partition, &targets), 4);
    }

    #[test]
    fn what_is_settled_early_waits_for_those_alone_who_will_take_it() {
        let mut shelf = Shelf::new(
            Bounds {
                count: 4,
                bytes: 1000,
            },
            true,
            false,
        );
        let partition = shelf.gain(&Arc::from("topic"), 0);
        let seat = shelf.sit_down(&id("a"), 2, Begin::default()).unwrap();
        assert_eq!(shelf.room(partition, &[seat.subscription]), 2);
    }

    #[test]
    fn two_without_a_group_get_a_copy_each() {
        let mut desk = Desk::new();
        let private = SubscriptionId::broadcast(Pattern::parse("a").unwrap());
        let [one, other] =
            [(); 2].map(|()| desk.shelf.sit_down(&private, 9, Begin::default()).unwrap());
        desk.put(0, &[one, other]);
        assert_eq!(offsets(&desk.pull(one)), [0]);
        assert_eq!(offsets(&desk.pull(other)), [0]);
    }

    #[test]
    fn two_of_one_identity_share_and_one_that_leaves_hands_over() {
        let mut desk = Desk::new();
        let one = desk.shelf.sit_down(&id("a"), 1, Begin::default()).unwrap();
        let other = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        assert_eq!(one.subscription, other.subscription);
        (0..3).for_each(|offset| drop(desk.put(offset, &[one])));
        assert_eq!(offsets(&desk.pull(one)), [0]);
        desk.shelf.close_seat(one);
        assert_eq!(offsets(&desk.pull(other)), [1, 2]);
        desk.shelf.leave(one);
        assert_eq!(offsets(&desk.pull(other)), [0]);
    }

    #[test]
    fn without_a_broker_what_is_held_goes_stale_and_comes_again_with_one() {
        let mut desk = Desk::new();
        let seat = desk.shelf.sit_down(&id("a"), 1, Begin::default()).unwrap();
        (0..2).for_each(|offset| drop(desk.put(offset, &[seat])));
        let held = desk.pull(seat);
        desk.shelf.interrupt();
        assert!(desk.shelf.settle(seat, held[0].1, true).is_none());
        assert!(desk.pull(seat).is_empty());
        desk.shelf.resume();
        let again = desk.pull(seat);
        assert_eq!(offsets(&again), [0]);
        assert!(desk.shelf.settle(seat, held[0].1, true).is_none());
        assert!(desk.shelf.settle(seat, again[0].1, true).is_some());
        assert_eq!(offsets(&desk.pull(seat)), [1]);
    }

    #[test]
    fn who_takes_the_strays_is_nobodys_subscription() {
        let mut desk = Desk::new();
        let strays = desk.shelf.sit_for_strays(&id(">"), 9).unwrap();
        assert_eq!(desk.shelf.subscriptions().count(), 0);
        let seat = desk.shelf.sit_down(&id(">"), 9, Begin::default()).unwrap();
        assert_ne!(seat.subscription, strays.subscription);
        desk.put(0, &[strays]);
        assert!(desk.pull(seat).is_empty());
        assert_eq!(offsets(&desk.pull(strays)), [0]);
        desk.shelf.leave(seat);
        assert!(desk.shelf.retire(), "nobody stays because of it");
    }

    #[test]
    fn what_nobody_finished_keeps_the_position_where_it_is() {
        let mut desk = Desk::new();
        let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
        desk.put(0, &[one, other]);
        desk.shelf.leave(one);
        let theirs = desk.pull(other);
        desk.shelf.settle(other, theirs[0].1, true).unwrap();
        assert_eq!(
            desk.position(),
            Some(0),
            "the one who left had not handled it"
        );
        desk.put(1, &[one]);
        assert_eq!(
            desk.position(),
            None,
            "what was read for one who left comes again"
        );
    }

    #[test]
    fn a_slow_subscription_stops_its_siblings_a_window_ahead() {
        let mut desk = Desk::new();
        let slow = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
        let fast = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
        let targets = [slow.subscription, fast.subscription];
        let mut offset = 0;
        while desk.shelf.room(desk.partition, &targets) > 0 {
            desk.put(offset, &[slow, fast]);
            for (_, tag) in desk.pull(fast) {
                desk.shelf.settle(fast, tag, true).unwrap();
            }
            offset += 1;
        }
        assert_eq!(offset, 4);
        let mut told = false;
        for (_, tag) in desk.pull(slow) {
            // The reader has looked, and the position's move is known.
            told |= desk.shelf.room(desk.partition, &targets) > 0;
            told |= desk.shelf.settle(slow, tag, true).unwrap().for_reader;
        }
        assert!(told, "the reader is told of the room");
        assert!(desk.shelf.room(desk.partition, &targets) > 0);
    }
}
