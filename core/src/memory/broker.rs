//! The broker: who gets what.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::backlog::Bound;
use super::config::MemoryConfig;
use super::history::History;
use super::queue::Queue;
use super::store::{Letter, Store};
use super::switchboard::Switchboard;
use crate::clock::Clock;
use crate::pattern::publish_subscribe::{
    Guarantee, Order, Spec, Start, Stored, SubscriptionId, Until, members_running, no_history,
};
use crate::pattern::publish_subscribe::{Provision, Store as Declared};
use crate::{Error, ErrorKind, Message, Pattern, Subject};

/// How many subjects' routes are remembered.
const ROUTES: usize = 1024;

/// Holds the queues, the dead letters and the calls in progress. Clones share them.
///
/// A broker lives as long as a clone of it, a transport on it, or something that a transport made. What is in it then
/// is gone: memory keeps nothing.
///
/// ```
/// use anywire::memory::{self, MemoryBroker, MemoryConfig};
///
/// let broker = MemoryBroker::with_config(MemoryConfig::default().with_queue(100));
/// let (shop, billing) = (memory::adapter_on(&broker), memory::adapter_on(&broker)); // two apps, one wire
/// # drop((shop, billing));
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryBroker(pub(super) Arc<Broker>);

impl MemoryBroker {
    /// An empty broker. The first transport that connects to it decides how much it holds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty broker that holds so much, whatever the transports say.
    #[must_use]
    pub fn with_config(config: MemoryConfig) -> Self {
        let broker = Self::new();
        broker.0.configure(config);
        broker
    }

    /// The dead letters of a group that nobody has dealt with yet, oldest first.
    #[must_use]
    pub fn dead_letters(&self, group: &str) -> Vec<Message> {
        let subject = Subject::dead_letters(group);
        let topology = self.0.topology.read();
        let mut stores = topology.stores.values();
        let store = stores.find(|store| store.pattern.wildcards() == subject.as_str());
        store.map(|store| store.messages()).unwrap_or_default()
    }

    /// How many messages wait in a group's subscription, those for later included and those that are out with a
    /// consumer not. `None` where there is no such subscription.
    #[must_use]
    pub fn backlog(&self, subscription: &SubscriptionId) -> Option<usize> {
        let queue = self.0.find(subscription)?;
        Some(queue.lock().waiting())
    }

    /// What is to be done now.
    pub(crate) fn load(&self, now: Instant) -> Load {
        let mut load = Load {
            ready: 0,
            unsettled: self.0.calls.pending(),
        };
        for queue in self.0.topology.read().queues() {
            let state = queue.lock();
            load.unsettled += state.unsettled();
            if state.is_consumed() {
                load.ready += state.due(now);
            }
        }
        load
    }

    /// Tells of each publish, settlement and return from now on, by `notify_waiters`: make the
    /// [`Notified`](tokio::sync::futures::Notified) first, then look at [`load`](Self::load), then wait.
    pub(crate) fn watch(&self) -> Arc<Notify> {
        self.0.shared.watched.store(true, Ordering::SeqCst);
        Arc::clone(&self.0.shared.changes)
    }
}

/// The work that a broker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Messages that are due, on queues that have a consumer.
    pub(crate) ready: usize,
    /// Messages that are out with a consumer, and calls without an answer.
    pub(crate) unsettled: usize,
}

/// What a broker and its queues share.
pub(super) struct Shared {
    epochs: AtomicU64,
    watched: AtomicBool,
    changes: Arc<Notify>,
}

impl Shared {
    /// Numbers that were never given out before: for the tags of so many deliveries. Never 0.
    pub(super) fn reserve_epochs(&self, count: usize) -> u64 {
        self.epochs.fetch_add(count as u64, Ordering::Relaxed)
    }

    /// Tells those who watch that something was published, settled or returned.
    pub(super) fn changed(&self) {
        if self.watched.load(Ordering::SeqCst) {
            self.changes.notify_waiters();
        }
    }
}

/// The inside of a [`MemoryBroker`].
pub(super) struct Broker {
    config: OnceLock<MemoryConfig>,
    pub(super) shared: Arc<Shared>,
    pub(super) calls: Switchboard,
    pub(super) openings: super::streams::Openings,
    topology: RwLock<Topology>,
    /// Locked last.
    history: Mutex<History>,
}

#[derive(Default)]
struct Topology {
    next_number: u64,
    groups: HashMap<SubscriptionId, Arc<Queue>>,
    broadcasts: Vec<Arc<Queue>>,
    stores: HashMap<Pattern, Arc<Store>>,
    /// Looked up for each publish, and bounded, so the hash is a fast one.
    routes: FxHashMap<Subject, Route>,
}

/// Who takes the messages of one subject.
#[derive(Default)]
pub(super) struct Route {
    /// In the order of their numbers.
    pub(super) queues: Vec<Arc<Queue>>,
    /// The dead-letter store.
    pub(super) letters: Option<Arc<Store>>,
    /// The stores for what no group takes yet; none where a group does.
    pub(super) stores: Vec<Arc<Store>>,
}

impl Route {
    /// The queue, where there is one and nothing else.
    pub(super) fn only_queue(&self) -> Option<&Arc<Queue>> {
        match &self.queues[..] {
            [queue] if self.letters.is_none() && self.stores.is_empty() => Some(queue),
            _ => None,
        }
    }
}

impl Default for Broker {
    fn default() -> Self {
        let shared = Arc::new(Shared {
            epochs: AtomicU64::new(1),
            watched: AtomicBool::new(false),
            changes: Arc::new(Notify::new()),
        });
        Self {
            config: OnceLock::new(),
            calls: Switchboard::new(Arc::clone(&shared)),
            openings: super::streams::Openings::default(),
            shared,
            topology: RwLock::default(),
            history: Mutex::default(),
        }
    }
}

impl Broker {
    /// Sets how much the broker holds, if nobody did before.
    pub(super) fn configure(&self, config: MemoryConfig) {
        self.config.get_or_init(|| config);
    }

    pub(super) fn config(&self) -> &MemoryConfig {
        self.config.get_or_init(MemoryConfig::default)
    }

    /// Looks a subject up and works with those who take it, while nobody can subscribe or leave.
    ///
    /// `work` must neither wake nor drop anything foreign, nor come back here.
    pub(super) fn with_route<R>(&self, subject: &Subject, work: impl FnOnce(&Route) -> R) -> R {
        let topology = self.topology.read();
        if let Some(route) = topology.routes.get(subject) {
            return work(route);
        }
        drop(topology);
        let mut topology = self.topology.write();
        topology.learn(subject);
        let topology = RwLockWriteGuard::downgrade(topology);
        match topology.routes.get(subject) {
            Some(route) => work(route),
            None => work(&Route::default()),
        }
    }

    /// As [`with_route`](Self::with_route), where the route is remembered already.
    pub(super) fn with_known_route<R>(
        &self,
        subject: &Subject,
        work: impl FnOnce(&Route) -> R,
    ) -> Option<R> {
        self.topology.read().routes.get(subject).map(work)
    }

    /// The queue of a group's subscription.
    pub(super) fn find(&self, subscription: &SubscriptionId) -> Option<Arc<Queue>> {
        let topology = self.topology.read();
        topology.groups.get(subscription).map(Arc::clone)
    }

    /// The queue that a spec asks for: the group's own, or a new one.
    pub(super) fn open(&self, spec: &Spec, now: Instant) -> Result<Arc<Queue>, Error> {
        let Spec {
            subscription,
            guarantee,
            order,
            start,
            until,
            window: _,
            provision,
            // What waits is bounded by number and size, not by age.
            retention: _,
        } = spec;
        if (start.needs_history() || until.is_some()) && !self.has_history() {
            return Err(forgetful());
        }
        let mut topology = self.topology.write();
        if let Some(queue) = topology.groups.get(subscription) {
            agree(queue, *guarantee, *order)?;
            return Ok(Arc::clone(queue));
        }
        if subscription.group.is_some() && *provision == Provision::Verify {
            let message =
                "the subscription does not exist; create it, or set `provision = \"create\"`";
            return Err(
                Error::new(ErrorKind::NotFound, message).with_context("subscription", subscription)
            );
        }
        topology.next_number += 1;
        let queue = Arc::new(Queue::new(
            topology.next_number,
            subscription.clone(),
            *guarantee,
            *order,
            self.bound(&subscription.pattern),
            Arc::clone(&self.shared),
        ));
        if *start == Start::Earliest {
            topology.fill(&queue);
        }
        self.replay(&queue, start, now)?;
        match (until, &subscription.group) {
            // It is in nobody's way: nothing more is put into it.
            (Some(Until::Now), _) => {
                queue.lock().finish();
                return Ok(queue);
            }
            (None, Some(_)) => {
                topology
                    .groups
                    .insert(subscription.clone(), Arc::clone(&queue));
            }
            (None, None) => topology.broadcasts.push(Arc::clone(&queue)),
        }
        topology.routes.clear();
        Ok(queue)
    }

    /// Moves a group's subscription to another place in the history.
    pub(super) fn reset(
        &self,
        subscription: &SubscriptionId,
        start: &Start,
        now: Instant,
    ) -> Result<(), Error> {
        if !self.has_history() {
            return Err(forgetful());
        }
        // Nobody publishes or joins meanwhile.
        let topology = self.topology.write();
        let Some(queue) = topology.groups.get(subscription) else {
            let message = "the group has no such subscription; check group and pattern";
            return Err(
                Error::new(ErrorKind::NotFound, message).with_context("subscription", subscription)
            );
        };
        drop(self.history.lock().since(start)?);
        if !queue.empty() {
            return Err(members_running(subscription));
        }
        self.replay(queue, start, now)
    }

    /// Puts what the history holds from `start` on into a queue that nobody publishes to at the moment.
    fn replay(&self, queue: &Queue, start: &Start, now: Instant) -> Result<(), Error> {
        let pattern = &queue.subscription.pattern;
        if !self.has_history() || pattern.is_dead_letters() {
            return Ok(());
        }
        let history = self.history.lock();
        let mut state = queue.lock();
        for event in history.since(start)? {
            if pattern.matches(event.message.subject()) {
                let due = event.due.filter(|due| *due > now);
                state.push(&event.message, due, None, Some(event.number));
            }
        }
        Ok(())
    }

    fn has_history(&self) -> bool {
        self.config().history > 0
    }

    /// Keeps an event for those who want it later; its number in the history, if there is one.
    pub(super) fn keep(
        &self,
        message: &Message,
        due: Option<Instant>,
        clock: &dyn Clock,
    ) -> Option<u64> {
        let config = self.config();
        if config.history == 0 {
            return None;
        }
        let bounds = (config.history, config.queue_bytes);
        let number = self.history.lock().keep(message, due, clock.wall(), bounds);
        Some(number)
    }

    /// Forgets a broadcast subscription and what waits in it.
    pub(super) fn forget(&self, queue: &Arc<Queue>) {
        let mut topology = self.topology.write();
        topology
            .broadcasts
            .retain(|found| !Arc::ptr_eq(found, queue));
        topology.routes.clear();
        drop(topology);
        queue.clear();
    }

    /// Makes sure that a store exists.
    pub(super) fn declare(&self, declared: &Declared) -> Result<(), Error> {
        let Declared {
            pattern,
            retention: _,
            provision,
        } = declared;
        let mut topology = self.topology.write();
        if topology.stores.contains_key(pattern) {
            return Ok(());
        }
        if *provision == Provision::Verify {
            let message = "the store does not exist; create it, or set `provision = \"create\"`";
            return Err(Error::new(ErrorKind::NotFound, message).with_context("store", pattern));
        }
        let store = Store::new(pattern.clone(), self.bound(pattern).messages);
        topology.stores.insert(pattern.clone(), Arc::new(store));
        topology.routes.clear();
        Ok(())
    }

    /// The subscriptions of a group.
    pub(super) fn stored(&self, group: &str) -> Vec<Stored> {
        let topology = self.topology.read();
        let ours = |queue: &&Arc<Queue>| queue.subscription.group.as_deref() == Some(group);
        let stored = |queue: &Arc<Queue>| Stored {
            subscription: queue.subscription.clone(),
            backlog: Some(queue.lock().waiting() as u64),
        };
        topology.groups.values().filter(ours).map(stored).collect()
    }

    /// Dead letters have a bound of their own, wherever they wait.
    fn bound(&self, pattern: &Pattern) -> Bound {
        let config = self.config();
        if pattern.is_dead_letters() {
            Bound {
                messages: config.dead_letters,
                bytes: usize::MAX,
            }
        } else {
            Bound {
                messages: config.queue,
                bytes: config.queue_bytes,
            }
        }
    }
}

impl Topology {
    fn queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.groups.values().chain(&self.broadcasts)
    }

    /// Remembers who takes a subject.
    fn learn(&mut self, subject: &Subject) {
        if self.routes.len() >= ROUTES {
            self.routes.clear();
        }
        let mut route = Route::default();
        for queue in self.queues() {
            if queue.subscription.pattern.matches(subject) {
                route.queues.push(Arc::clone(queue));
            }
        }
        route.queues.sort_unstable_by_key(|queue| queue.number);
        let grouped = |queue: &Arc<Queue>| queue.subscription.group.is_some();
        let taken = route.queues.iter().any(grouped);
        for store in self.stores.values() {
            if !store.pattern.matches(subject) {
                continue;
            }
            if store.is_dead_letters() {
                route.letters = Some(Arc::clone(store));
            } else if !taken {
                route.stores.push(Arc::clone(store));
            }
        }
        self.routes.insert(subject.clone(), route);
    }

    /// Gives a new queue what the stores hold. A private copy of a dead letter is not tied to its original.
    fn fill(&self, queue: &Queue) {
        let Queue { subscription, .. } = queue;
        let mut state = queue.lock();
        for store in self.stores.values() {
            let private = subscription.group.is_none();
            let meets = subscription.pattern.overlaps(&store.pattern);
            if !meets || (private && !store.is_dead_letters()) {
                continue;
            }
            for (message, letter) in store.earliest(&subscription.pattern) {
                state.push(&message, None, letter.filter(|_: &Letter| !private), None);
            }
        }
    }
}

fn forgetful() -> Error {
    no_history(
        "memory keeps no history; set `history` in its section, as in `[transports.main.memory]`, to how many events are kept",
    )
}

/// Whether a consumer may share a queue that exists.
fn agree(queue: &Queue, guarantee: Guarantee, order: Order) -> Result<(), Error> {
    let disagreement = |ours: &dyn fmt::Debug, theirs: &dyn fmt::Debug| {
        let message = format!(
            "the subscription exists with {theirs:?}, this consumer wants {ours:?}; make them agree, or use another group"
        );
        Err(Error::config(message).with_context("subscription", &queue.subscription))
    };
    if queue.guarantee != guarantee {
        return disagreement(&guarantee, &queue.guarantee);
    }
    let in_group = |order| order == Order::KeyInGroup;
    if in_group(queue.order) != in_group(order) {
        return disagreement(&order, &queue.order);
    }
    Ok(())
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Broker")
    }
}
