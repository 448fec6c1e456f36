//! What the library tells a consumer: which partitions it has won and lost, and what became of its commits. All of it is
//! called on the consumer's own thread, inside of a poll, and waits for nobody but the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anywire::pattern::publish_subscribe::Start;
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::RDKafkaRespErr;

use crate::group::{Group, Kind, Mark};
use crate::placed::{self, Answers};
use crate::reader;
use crate::shelf::{PartitionKey, Position};

/// How long the broker may take to say where a group is.
const PATIENCE: Duration = Duration::from_secs(3);

/// How soon it is asked again, and for how long. A member that does not poll for longer than five minutes loses its partitions.
const AGAIN: Duration = Duration::from_millis(50);
const SIEGE: Duration = Duration::from_secs(30);

/// A consumer's ear.
pub(crate) struct Member {
    group: Arc<Group>,
    heard: Mutex<Heard>,
    /// Counts whatever the library had to say. A poll that only called us brings nothing, as one of an empty queue does.
    calls: AtomicU64,
    astray: AtomicBool,
}

/// What was heard and not attended to yet.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) gained: Vec<Gained>,
    pub(crate) lost: Vec<PartitionKey>,
    /// The partitions that are ours, with their keys.
    ours: Vec<(Arc<str>, i32, PartitionKey)>,
}

/// A partition that is ours.
#[derive(Debug)]
pub(crate) struct Gained {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    pub(crate) key: PartitionKey,
    /// What stands before this was there when the partition became ours.
    pub(crate) end: i64,
    /// Whether there is nothing before that which is still to be read.
    pub(crate) done: bool,
}

impl Member {
    pub(crate) fn new(group: Arc<Group>) -> Self {
        Self {
            group,
            heard: Mutex::default(),
            calls: AtomicU64::new(0),
            astray: AtomicBool::new(false),
        }
    }

    /// How often we were called.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn note_call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn owns_nothing(&self) -> bool {
        self.heard.lock().ours.is_empty()
    }

    /// Nothing is ours any more, though nobody has said so.
    pub(crate) fn abandon(&self) {
        let ours = std::mem::take(&mut self.heard.lock().ours);
        let mut shelf = self.group.shelf.lock();
        for (_, _, key) in ours {
            shelf.lose(key);
        }
    }

    /// Takes what was heard.
    pub(crate) fn take(&self) -> (Vec<Gained>, Vec<PartitionKey>) {
        let mut heard = self.heard.lock();
        (
            std::mem::take(&mut heard.gained),
            std::mem::take(&mut heard.lost),
        )
    }

    /// Whether there are partitions of which nobody knows where they are to be read from.
    pub(crate) fn is_astray(&self) -> bool {
        self.astray.load(Ordering::Relaxed)
    }

    /// Where the group is, as the broker says. It is waited for: the library, left to find out by itself, gives up at the first
    /// request that fails, and then never reads the partition, though it is ours.
    fn committed(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> Option<TopicPartitionList> {
        let since = Instant::now();
        loop {
            let told = consumer.committed_offsets(list.clone(), PATIENCE);
            let told = told.and_then(|told| {
                let mut errors = told.elements().into_iter().map(|place| place.error());
                match errors.find_map(|error| error.err().filter(is_passing)) {
                    Some(error) => Err(error),
                    None => Ok(told),
                }
            });
            let error = match told {
                Ok(told) => return Some(told),
                Err(error) => error,
            };
            let is_over = since.elapsed() >= SIEGE;
            if is_over || !is_passing(&error) || self.group.is_stopping() {
                tracing::warn!(group = ?self.group.kind, %error, "the broker does not say how far a group is");
                self.astray.store(is_over, Ordering::Relaxed);
                return None;
            }
            std::thread::park_timeout(AGAIN);
        }
    }

    /// Says where each partition is to be read from.
    fn place(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) {
        if list.count() == 0 {
            return;
        }
        let committed = match self.group.kind.commits() {
            true => self.committed(consumer, list),
            false => Some(list.clone()),
        };
        let Some(committed) = committed else {
            let _ = list.set_all_offsets(Offset::Stored);
            return;
        };
        let mut begun = TopicPartitionList::new();
        let ends = match committed.elements().iter().any(|place| self.begins(place)) {
            true => ends(consumer, list),
            false => None,
        };
        let starts: Vec<Start> = committed
            .elements()
            .iter()
            .flat_map(|place| self.places(place).unwrap_or_default())
            .collect();
        let answers = match starts.is_empty() {
            true => None,
            false => Answers::ask(consumer, list, &starts, PATIENCE)
                .inspect_err(|error| tracing::warn!(group = ?self.group.kind, %error, "the broker does not say where a time is; all is read"))
                .ok(),
        };
        for place in committed.elements() {
            let (topic, number) = (place.topic(), place.partition());
            let offset = if let Offset::Offset(offset) = place.offset() {
                Offset::Offset(offset)
            } else if place.error().is_err() {
                // That does not say that it was never read.
                Offset::Stored
            } else if let Some(next) = self.goes_on(topic, number) {
                Offset::Offset(next)
            } else if self.skips(topic) {
                match end_of(ends.as_ref(), topic, number) {
                    Some(end) => {
                        let end = Offset::Offset(end);
                        let _ = begun.add_partition_offset(topic, number, end);
                        end
                    }
                    None => Offset::End,
                }
            } else if let (Some(starts), Some(answers)) = (self.places(&place), &answers) {
                let firsts = starts
                    .iter()
                    .map(|start| answers.first(start, topic, number));
                let first = Offset::Offset(firsts.min().unwrap_or_default());
                let _ = begun.add_partition_offset(topic, number, first);
                first
            } else {
                // Not `Beginning`, which the library looks up partition by partition, and the first that it knows is
                // waited for alone. Where the log begins later the library finds that out by itself.
                Offset::Offset(0)
            };
            let _ = list.set_partition_offset(topic, number, offset);
        }
        if begun.count() > 0 && self.group.kind.commits() {
            // Else a member that comes before the first message would begin anew, at another end.
            if let Err(error) = consumer.commit(&begun, CommitMode::Sync) {
                tracing::debug!(%error, "where a group begins could not be written down");
            }
        }
    }

    /// Whether a partition is read from its end on.
    fn begins(&self, place: &TopicPartitionListElem<'_>) -> bool {
        !matches!(place.offset(), Offset::Offset(_))
            && place.error().is_ok()
            && self.skips(place.topic())
    }

    /// Where those begin who are interested in a partition, if it was never read and they say.
    fn places(&self, place: &TopicPartitionListElem<'_>) -> Option<Vec<Start>> {
        if matches!(place.offset(), Offset::Offset(_)) {
            return None;
        }
        let targets = reader::interested(&self.group, place.topic());
        self.group.shelf.lock().places(place.topic(), &targets)
    }

    /// Where a reader goes on with a partition that it had before.
    fn goes_on(&self, topic: &str, number: i32) -> Option<i64> {
        let marks = self.group.marks.lock();
        marks.get(&(Arc::from(topic), number))?.next
    }

    /// Where a bounded read ends in a partition: where it ended when it was seen first.
    fn bounds(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> Option<TopicPartitionList> {
        self.group.shelf.lock().bounded()?;
        let ends = ends(consumer, list)?;
        let mut marks = self.group.marks.lock();
        let mut bounds = list.clone();
        for place in list.elements() {
            let (topic, number) = (place.topic(), place.partition());
            let end = end_of(Some(&ends), topic, number);
            let mark = marks
                .entry((Arc::from(topic), number))
                .or_insert(Mark { next: None, end });
            let end = mark.end.map_or(Offset::Invalid, Offset::Offset);
            let _ = bounds.set_partition_offset(topic, number, end);
        }
        Some(bounds)
    }

    fn skips(&self, topic: &str) -> bool {
        let targets = reader::interested(&self.group, topic);
        self.group.shelf.lock().skips(topic, &targets)
    }

    fn gain(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) {
        self.place(consumer, list);
        let ends = match self.group.kind {
            Kind::Servers => ends(consumer, list),
            Kind::Reader(_) => self.bounds(consumer, list),
            _ => None,
        };
        let begins = match (&self.group.kind, &ends) {
            (Kind::Reader(_), Some(_)) => {
                placed::edges(consumer, list, Offset::Beginning, PATIENCE).ok()
            }
            _ => None,
        };
        let mut heard = self.heard.lock();
        for place in list.elements() {
            let (topic, number) = (Arc::<str>::from(place.topic()), place.partition());
            let unknown = match self.group.kind {
                Kind::Reader(_) => i64::MAX,
                _ => 0,
            };
            let end = end_of(ends.as_ref(), &topic, number).unwrap_or(unknown);
            let first = match place.offset() {
                Offset::Offset(first) => first,
                _ => 0,
            };
            let oldest = end_of(begins.as_ref(), &topic, number).unwrap_or_default();
            let done = first.max(oldest) >= end;
            let key = self.group.shelf.lock().gain(&topic, number);
            heard.ours.push((Arc::clone(&topic), number, key));
            heard.gained.push(Gained {
                topic,
                number,
                key,
                end,
                done,
            });
        }
        drop(heard);
        let assigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(list),
        };
        if let Err(error) = assigned {
            tracing::warn!(group = ?self.group.kind, %error, "an assignment was not taken");
        }
    }

    fn lose(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let is_gone = consumer.assignment_lost();
        let mut last = Vec::new();
        let mut heard = self.heard.lock();
        for place in list.elements() {
            let at = heard.ours.iter().position(|(topic, number, _)| {
                **topic == *place.topic() && *number == place.partition()
            });
            let Some(at) = at else { continue };
            let (_, _, key) = heard.ours.swap_remove(at);
            let lost = self.group.shelf.lock().lose(key);
            if let (Kind::Reader(_), Some(position)) = (&self.group.kind, &lost) {
                let partition = (Arc::clone(&position.topic), position.number);
                let mut marks = self.group.marks.lock();
                let mark = marks.entry(partition).or_insert(Mark {
                    next: None,
                    end: None,
                });
                mark.next = Some(position.offset);
            }
            last.extend(lost);
            heard.gained.retain(|gained| gained.key != key);
            heard.lost.push(key);
        }
        drop(heard);
        // Somebody else has it already and may be further.
        if !is_gone && !self.group.kind.is_early() && self.group.kind.commits() {
            // The library sends it before it lets the partitions go, and nobody waits here.
            commit(consumer, &last, CommitMode::Async);
        }
        let unassigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
        };
        if let Err(error) = unassigned {
            tracing::debug!(group = ?self.group.kind, %error, "a revocation was not taken");
        }
    }
}

/// Whether the broker may say something else a moment later.
fn is_passing(error: &KafkaError) -> bool {
    !matches!(
        error.rdkafka_error_code(),
        Some(
            Code::GroupAuthorizationFailed
                | Code::TopicAuthorizationFailed
                | Code::UnknownTopic
                | Code::UnknownTopicOrPartition
        )
    )
}

/// Where partitions end, as far as the broker says.
fn ends(consumer: &BaseConsumer<Member>, list: &TopicPartitionList) -> Option<TopicPartitionList> {
    if list.count() == 0 {
        return None;
    }
    let mut asked = list.clone();
    let _ = asked.set_all_offsets(Offset::End);
    let ends = consumer.offsets_for_times(asked, PATIENCE);
    ends.inspect_err(|error| tracing::warn!(%error, "the broker does not say where partitions end"))
        .ok()
}

/// Where a partition ends, as far as the broker says.
pub(crate) fn end(consumer: &BaseConsumer<Member>, topic: &str, number: i32) -> Option<i64> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, number);
    end_of(ends(consumer, &asked).as_ref(), topic, number)
}

fn end_of(ends: Option<&TopicPartitionList>, topic: &str, number: i32) -> Option<i64> {
    match ends?.find_partition(topic, number)?.offset() {
        Offset::Offset(end) => Some(end),
        _ => None,
    }
}

/// Tells the broker how far the group is; `false` where it did not take it. What becomes of it is not told in
/// [`CommitMode::Async`]: the library calls nobody back, so what may have been lost is told again after each rebalance and
/// each outage.
pub(crate) fn commit(
    consumer: &BaseConsumer<Member>,
    positions: &[Position],
    mode: CommitMode,
) -> bool {
    if positions.is_empty() {
        return true;
    }
    let committed = consumer.commit(&list(positions), mode);
    if let Err(error) = &committed {
        tracing::debug!(%error, "a position could not be written down; what came after it comes again");
    }
    committed.is_ok()
}

/// Whether the broker has these positions.
pub(crate) fn has(
    consumer: &BaseConsumer<Member>,
    positions: &[Position],
    patience: Duration,
) -> bool {
    let told = consumer.committed_offsets(list(positions), patience);
    told.is_ok_and(|told| {
        positions.iter().all(|position| {
            let place = told.find_partition(&position.topic, position.number);
            place.is_some_and(|place| place.offset() == Offset::Offset(position.offset))
        })
    })
}

fn list(positions: &[Position]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for position in positions {
        let offset = Offset::Offset(position.offset);
        let _ = list.add_partition_offset(&position.topic, position.number, offset);
    }
    list
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.note_call();
        self.group.settings.health.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.note_call();
        self.group.settings.health.hear(&error, reason);
    }
}

impl ConsumerContext for Member {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        self.note_call();
        match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.gain(consumer, list);
                self.group.assigned();
            }
            _ => self.lose(consumer, list),
        }
        self.group.shelf.lock().tell_all_again();
    }
}
