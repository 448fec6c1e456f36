//! Publish/subscribe: events that nobody answers.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use smallvec::SmallVec;
use smol_str::SmolStr;

pub use super::start::{Start, Until};
use super::{Batch, Progress, PullResult, Tag};
use crate::{Error, ErrorKind, Message, Pattern, Position, Subject};

/// Hands messages to the wire.
pub trait Publisher: fmt::Debug + Send + Sync {
    /// Publishes a batch and gives it back with an outcome for each entry.
    ///
    /// The adapter
    /// - may be called concurrently, and must keep the order of the entries of one batch that go to one place;
    /// - must pipeline: a batch of many entries costs about one round trip, not one each;
    /// - must answer by the batch's deadline; an entry whose fate is not known by then is [`Published::Unknown`];
    /// - must report *accepted* only when the wire has stored the message (at least once), or taken it (at most once);
    /// - must not retry an entry whose outcome is unknown: core does, with the same id;
    /// - must answer [`ErrorKind::NoRoute`] where it can tell that no store took an at-least-once entry;
    /// - must bound what it holds in flight and wait for room, then answer [`ErrorKind::Overloaded`].
    ///
    /// Dropping the future leaves the entries unknown.
    fn publish(&self, batch: PublishBatch) -> Progress<PublishBatch>;
}

/// Opens subscriptions and looks after the stores behind them.
#[async_trait]
pub trait Subscriber: fmt::Debug + Send + Sync {
    /// Opens subscriptions; all of an app's at start come in one call, more may follow.
    ///
    /// The adapter must return, in the order of `specs`, one result each, and only when the subscription is effective: a
    /// message published from then on is delivered. A spec that fails must leave the others working.
    async fn subscribe(&self, specs: &[Spec]) -> Vec<Result<Box<dyn Incoming>, Error>>;

    /// Makes sure that the stores exist, before anything is delivered that may end in them.
    async fn declare(&self, stores: &[Store]) -> Vec<Result<(), Error>>;

    /// The subscriptions that the wire holds for `group`, with their backlogs; empty where it cannot tell.
    async fn stored(&self, group: &str) -> Result<Vec<Stored>, Error>;

    /// Moves a group's subscription, so that its next member begins at `start`: forward and back, within what the wire keeps.
    ///
    /// The adapter must refuse with [`members_running`] while the group has members, with
    /// [`NotFound`](ErrorKind::NotFound) where there is no such subscription, and with
    /// [`Unsupported`](ErrorKind::Unsupported), naming the reason, where nothing is kept. What waits for a retry is left alone.
    async fn reset(&self, subscription: &SubscriptionId, start: &Start) -> Result<(), Error>;
}

/// The messages of one subscription.
#[async_trait]
pub trait Incoming: fmt::Debug + Send {
    /// Pulls at most [`Batch::room`] deliveries.
    ///
    /// The adapter must never hold more unsettled deliveries than the spec's window, must give no delivery to two pulls,
    /// and must wake the task when a pull that was pending may succeed.
    fn poll_batch(&mut self, cx: &mut Context<'_>, batch: &mut Batch<Received>)
    -> Poll<PullResult>;

    /// Settles what this subscription delivered. Outlives the subscription.
    fn settler(&self) -> Arc<dyn Settle>;

    /// Stops delivering and gives back what was buffered but not pulled, without a penalty where the wire allows.
    ///
    /// What was pulled stays to be settled. Dropping without stopping must come to the same in the end.
    async fn stop(&mut self) -> Result<(), Error>;
}

/// Settles deliveries.
pub trait Settle: fmt::Debug + Send + Sync {
    /// Settles a batch and gives it back with a result for each tag.
    ///
    /// The adapter must answer [`ErrorKind::Stale`] for a tag that is no longer ours (a second settlement, a
    /// reconnect, a rebalance) and must never let it settle another message. The first decision wins.
    fn settle(&self, batch: SettleBatch) -> Progress<SettleBatch>;
}

/// How sure the delivery of a subject's messages is.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// May be lost, never comes twice.
    AtMostOnce,
    /// Never lost, may come twice.
    #[default]
    AtLeastOnce,
}

/// The order in which the messages of one key are handled.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Any.
    None,
    /// One message of a key at a time in this instance.
    #[default]
    Key,
    /// One message of a key at a time across all instances of the group.
    KeyInGroup,
}

/// What an adapter may do to the broker's objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provision {
    /// Create what is missing; what is there and fits is left alone.
    #[default]
    Create,
    /// Create nothing; fail where something is missing or differs.
    Verify,
    /// Touch and check nothing.
    None,
}

/// The identity of a subscription: who shares the work, and on what.
///
/// ```
/// use anywire::Pattern;
/// use anywire::pattern::publish_subscribe::SubscriptionId;
///
/// let one = SubscriptionId::new("shop", Pattern::parse("shop.{region}.placed")?);
/// assert_eq!(one.to_string(), "shop/shop.*.placed");
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionId {
    /// The group that shares the work; `None` for a broadcast subscription, where every instance gets a copy.
    pub group: Option<SmolStr>,
    /// What it listens to. Captures do not count.
    pub pattern: Pattern,
}

impl SubscriptionId {
    /// The subscription of a group.
    pub fn new(group: impl Into<SmolStr>, pattern: Pattern) -> Self {
        Self {
            group: Some(group.into()),
            pattern,
        }
    }

    /// A subscription of this instance alone.
    #[must_use]
    pub fn broadcast(pattern: Pattern) -> Self {
        Self {
            group: None,
            pattern,
        }
    }
}

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(f, "{group}/{}", self.pattern.wildcards()),
            None => write!(f, "broadcast/{}", self.pattern.wildcards()),
        }
    }
}

/// What a subscription needs. An adapter destructures it in full, so that a new field asks it a question.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Group and pattern.
    pub subscription: SubscriptionId,
    /// With [`Guarantee::AtMostOnce`] the adapter settles before it delivers.
    pub guarantee: Guarantee,
    /// [`Order::KeyInGroup`] asks the wire; the others are core's business.
    pub order: Order,
    /// Where a group that is new to the wire begins, or a subscription without one. What lies beyond either end of what is
    /// kept is that end. A start that [needs history](Start::needs_history) must be refused as
    /// [`Unsupported`](ErrorKind::Unsupported), naming the reason, where there is none.
    pub start: Start,
    /// Where it ends by itself, with [`Pulled::End`](super::Pulled::End): also where there is nothing to deliver. For
    /// subscriptions without a group. Must be refused like such a start.
    pub until: Option<Until>,
    /// The most deliveries that may be unsettled at once.
    pub window: usize,
    /// What may be done to the broker's objects.
    pub provision: Provision,
    /// How long the wire keeps what nobody has taken.
    pub retention: Duration,
}

impl Spec {
    /// A spec with the defaults: at least once, order by key, from the earliest, 256 in flight, created, kept 7 days.
    #[must_use]
    pub fn new(subscription: SubscriptionId) -> Self {
        let start = if subscription.group.is_some() {
            Start::Earliest
        } else {
            Start::Latest
        };
        Self {
            subscription,
            guarantee: Guarantee::AtLeastOnce,
            order: Order::Key,
            start,
            until: None,
            window: 256,
            provision: Provision::Create,
            retention: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }

    /// Sets the guarantee.
    #[must_use]
    pub fn with_guarantee(mut self, guarantee: Guarantee) -> Self {
        self.guarantee = guarantee;
        self
    }

    /// Sets the order.
    #[must_use]
    pub fn with_order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Sets where a new group begins.
    #[must_use]
    pub fn with_start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Sets where it ends.
    #[must_use]
    pub fn with_until(mut self, until: Option<Until>) -> Self {
        self.until = until;
        self
    }

    /// Sets the most deliveries that may be unsettled at once; at least 1.
    #[must_use]
    pub fn with_window(mut self, window: usize) -> Self {
        self.window = window.max(1);
        self
    }

    /// Sets what may be done to the broker's objects.
    #[must_use]
    pub fn with_provision(mut self, provision: Provision) -> Self {
        self.provision = provision;
        self
    }

    /// Sets how long the wire keeps what nobody has taken.
    #[must_use]
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }
}

/// A place on the wire that keeps messages before anybody subscribes.
#[derive(Clone, Debug)]
pub struct Store {
    /// What it keeps: a dead-letter subject, or a pattern that a rule declares.
    pub pattern: Pattern,
    /// How long.
    pub retention: Duration,
    /// What may be done to the broker's objects.
    pub provision: Provision,
}

/// A subscription that the wire holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Which.
    pub subscription: SubscriptionId,
    /// How many messages wait in it, where the wire tells.
    pub backlog: Option<u64>,
}

/// A message that was delivered.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub message: Message,
    /// Names it when it is settled.
    pub tag: Tag,
    /// The wire's count of deliveries, this one included, where it counts.
    pub deliveries: Option<u32>,
    /// The vendor's own message, for those who need it.
    pub native: Option<Native>,
    /// Where it stands in what the wire keeps; none for a copy that was sent again.
    pub position: Option<Position>,
}

impl Received {
    /// A delivery that the wire does not count.
    #[must_use]
    pub fn new(message: Message, tag: Tag) -> Self {
        Self {
            message,
            tag,
            deliveries: None,
            native: None,
            position: None,
        }
    }
}

/// A vendor's own message, reached by its type.
#[derive(Clone)]
pub struct Native(Arc<dyn Any + Send + Sync>);

impl Native {
    /// Wraps the vendor's message.
    pub fn new<T: Any + Send + Sync>(native: T) -> Self {
        Self(Arc::new(native))
    }

    /// The vendor's message, where it is a `T`.
    #[must_use]
    pub fn downcast_ref<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Native")
    }
}

/// What to do with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the wire may forget it.
    Ack,
    /// Give it back, to be delivered again at once.
    Return,
    /// Give it back for later. Only where [`return_after`](crate::Capabilities::return_after) is native.
    ReturnAfter(Duration),
}

/// Deliveries to settle, and then their results.
#[derive(Debug, Default)]
pub struct SettleBatch {
    items: SmallVec<[(Tag, Settlement); 4]>,
    /// One for each item that failed: its index and why. An item that is not named here was settled.
    failed: Vec<(usize, Error)>,
}

impl SettleBatch {
    /// Adds a delivery.
    pub fn push(&mut self, tag: Tag, settlement: Settlement) {
        self.items.push((tag, settlement));
    }

    /// The deliveries to settle.
    #[must_use]
    pub fn items(&self) -> &[(Tag, Settlement)] {
        &self.items
    }

    /// Reports that the item at `index` was not settled.
    pub fn fail(&mut self, index: usize, error: Error) {
        self.failed.push((index, error));
    }

    /// What failed: indices into [`items`](Self::items), and why.
    #[must_use]
    pub fn failed(&self) -> &[(usize, Error)] {
        &self.failed
    }

    /// Whether there is nothing to settle.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Empties the batch for its next use.
    pub fn clear(&mut self) {
        self.items.clear();
        self.failed.clear();
    }

    /// The result of a batch of one.
    ///
    /// # Errors
    /// What the adapter reported for it.
    pub fn into_single(mut self) -> Result<(), Error> {
        self.failed.pop().map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// Where an entry goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To all subscriptions that match the message's subject.
    Subject,
    /// To one subscription and no other: a retry copy or a redriven dead letter.
    ///
    /// It is sent again on purpose: the wire's deduplication must not swallow it, though it keeps its id.
    Subscription(SubscriptionId),
}

/// A message on its way out. An adapter destructures it in full.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The message.
    pub message: Message,
    /// Where it goes.
    pub target: Target,
    /// The time before which it must not be delivered; `None` for at once.
    pub not_before: Option<Instant>,
    /// With [`Guarantee::AtMostOnce`] the wire need not store it, and is not asked whether anybody did.
    pub guarantee: Guarantee,
}

impl Entry {
    /// A message for its subject, at once, at least once.
    #[must_use]
    pub fn new(message: Message) -> Self {
        Self {
            message,
            target: Target::Subject,
            not_before: None,
            guarantee: Guarantee::AtLeastOnce,
        }
    }

    /// Sends it elsewhere.
    #[must_use]
    pub fn with_target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// Holds it until then.
    #[must_use]
    pub fn with_not_before(mut self, time: Option<Instant>) -> Self {
        self.not_before = time;
        self
    }

    /// Sets the guarantee.
    #[must_use]
    pub fn with_guarantee(mut self, guarantee: Guarantee) -> Self {
        self.guarantee = guarantee;
        self
    }
}

/// Entries to publish together, and then their outcomes. A single message needs no allocation.
///
/// ```
/// use std::time::Duration;
/// use anywire::pattern::publish_subscribe::{Entry, PublishBatch, Published};
/// use anywire::{Message, Receipt, Subject};
///
/// let message = Message::new(Subject::parse("shop.placed")?, "7");
/// let mut batch = PublishBatch::single(Entry::new(message), Duration::from_secs(1));
/// batch.record(Published::Accepted(Receipt::new())); // what an adapter does
/// let ended = batch.into_single();
/// assert!(matches!(ended, Some((_, Published::Accepted(_)))));
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Debug)]
pub struct PublishBatch {
    entries: SmallVec<[Entry; 1]>,
    outcomes: SmallVec<[Published; 1]>,
    timeout: Duration,
}

impl PublishBatch {
    /// An empty batch whose outcomes must be known `timeout` after it is handed over.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self {
            entries: SmallVec::new(),
            outcomes: SmallVec::new(),
            timeout,
        }
    }

    /// A batch of one.
    #[must_use]
    pub fn single(entry: Entry, timeout: Duration) -> Self {
        let mut batch = Self::new(timeout);
        batch.push(entry);
        batch
    }

    /// Adds an entry.
    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// The entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entries, to be changed before they are handed over.
    pub fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.entries
    }

    /// The outcomes that were recorded, in the order of the entries. For wrappers that look on.
    #[must_use]
    pub fn outcomes(&self) -> &[Published] {
        &self.outcomes
    }

    /// How long the adapter may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Records the next entry's outcome: outcomes are recorded in the order of the entries.
    pub fn record(&mut self, outcome: Published) {
        debug_assert!(
            self.outcomes.len() < self.entries.len(),
            "an adapter recorded more outcomes than entries"
        );
        self.outcomes.push(outcome);
    }

    /// Records the same outcome for all entries that have none yet.
    pub fn record_rest(&mut self, outcome: impl Fn() -> Published) {
        let missing = self.entries.len() - self.outcomes.len().min(self.entries.len());
        self.outcomes.extend((0..missing).map(|_| outcome()));
    }

    /// Takes entries and outcomes apart. An entry without an outcome is unknown.
    #[must_use = "it holds the outcomes"]
    pub fn into_parts(mut self) -> (SmallVec<[Entry; 1]>, SmallVec<[Published; 1]>) {
        self.record_rest(no_outcome);
        (self.entries, self.outcomes)
    }

    /// Takes a batch of one apart; `None` where it is empty. An entry without an outcome is unknown.
    #[must_use = "it holds the outcome"]
    pub fn into_single(mut self) -> Option<(Entry, Published)> {
        let entry = self.entries.pop()?;
        Some((entry, self.outcomes.pop().unwrap_or_else(no_outcome)))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn no_outcome() -> Published {
    Published::Unknown(Error::new(
        ErrorKind::OutcomeUnknown,
        "the adapter reported no outcome",
    ))
}

/// How the publishing of one entry ended.
#[derive(Debug)]
pub enum Published {
    /// The wire has it.
    Accepted(Receipt),
    /// The wire does not have it.
    Rejected(Error),
    /// The wire may have it: the connection broke or the deadline passed after bytes were sent.
    Unknown(Error),
}

/// What the wire said when it accepted a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    duplicate: bool,
    unrouted: bool,
}

impl Receipt {
    /// A plain acceptance.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            duplicate: false,
            unrouted: false,
        }
    }

    /// Accepted before, under the same id.
    #[must_use]
    pub const fn with_duplicate(mut self, duplicate: bool) -> Self {
        self.duplicate = duplicate;
        self
    }

    /// Taken by nobody, which the subject's rule allows.
    #[must_use]
    pub const fn with_unrouted(mut self, unrouted: bool) -> Self {
        self.unrouted = unrouted;
        self
    }

    /// Whether the wire had accepted the same id before and dropped this one.
    #[must_use]
    pub const fn is_duplicate(&self) -> bool {
        self.duplicate
    }

    /// Whether no store took it.
    #[must_use]
    pub const fn is_unrouted(&self) -> bool {
        self.unrouted
    }
}

/// The error for an at-least-once event that no store took. For adapters.
#[must_use]
pub fn no_route(subject: &Subject) -> Error {
    let remedy = "no subscription takes this subject; start its handler first, or set `unrouted = \"warn\"` for the subject";
    Error::new(ErrorKind::NoRoute, remedy).with_context("subject", subject)
}

/// The error for the [reset](Subscriber::reset) of a group that is at work. For adapters.
#[must_use]
pub fn members_running(subscription: &SubscriptionId) -> Error {
    let remedy =
        "the group has members at work, which would go on where they are; stop them, then reset it";
    Error::new(ErrorKind::Rejected, remedy).with_context("subscription", subscription)
}

/// The error for a subscription that would go back on a wire, or in a way, that keeps nothing. For adapters; `why` names the
/// reason and the remedy.
#[must_use]
pub fn no_history(why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, why)
}
