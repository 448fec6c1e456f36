//! A consumer of a group, as those see it who are not its thread: one per app and group, whatever it has of handlers.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use anywire::Error;
use anywire::clock::Clock;
use anywire::config::TransportConfig;
use anywire::pattern::publish_subscribe::SubscriptionId;
use parking_lot::Mutex;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rustc_hash::FxHashMap;
use tokio::sync::watch;

use crate::config::{KafkaConfig, Rule};
use crate::errors;
use crate::health::Health;
use crate::names;
use crate::reader;
use crate::shelf::{News, SeatKey, Shelf};
use crate::subscription::{Begin, Bounds};

/// Which consumer it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Events of a group, at least once, with its copies.
    Group(String),
    /// Events of a group, at most once.
    Fleeting(String),
    /// Events of this instance alone.
    Private,
    /// Events of one subscription alone, which begins somewhere in what is kept.
    Reader(u128),
    /// Calls.
    Servers,
    /// Events that wait for their time.
    Movers,
}

impl Kind {
    /// Whether the position is told before messages are delivered.
    pub(crate) fn is_early(&self) -> bool {
        matches!(self, Self::Fleeting(_) | Self::Servers)
    }

    /// Whether there is a position to tell at all.
    pub(crate) fn commits(&self) -> bool {
        !self.is_private()
    }

    /// Whether it is thrown away with us.
    pub(crate) fn is_private(&self) -> bool {
        matches!(self, Self::Private | Self::Reader(_))
    }

    /// The group on the broker.
    fn id(&self) -> String {
        match self {
            Self::Group(group) => group.clone(),
            // The same group would have its partitions divided among members that do not want the same.
            Self::Fleeting(group) => format!("{}fleeting.{group}", names::RESERVED),
            Self::Private | Self::Reader(_) => {
                format!("{}private.{:032x}", names::RESERVED, rand::random::<u128>())
            }
            Self::Servers => names::SERVERS.to_owned(),
            Self::Movers => names::MOVERS.to_owned(),
        }
    }

    /// Whether the member keeps its name when it starts again. The others of an instance would need names of their own.
    fn is_static(&self) -> bool {
        matches!(self, Self::Group(_))
    }
}

/// What the threads of all consumers need.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) config: KafkaConfig,
    pub(crate) transport: Arc<TransportConfig>,
    pub(crate) rules: Arc<[Rule]>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) health: Arc<Health>,
}

/// A consumer and what it has read.
pub(crate) struct Group {
    pub(crate) kind: Kind,
    pub(crate) settings: Arc<Settings>,
    pub(crate) client: ClientConfig,
    pub(crate) shelf: Mutex<Shelf>,
    /// When it began.
    pub(crate) born: Instant,
    /// Topics that are known to match one of our expressions, before the library has looked.
    known: Mutex<BTreeSet<String>>,
    known_version: AtomicU64,
    /// How far a reader is with partitions that it had, and where they ended at first.
    pub(crate) marks: Mutex<FxHashMap<(Arc<str>, i32), Mark>>,
    thread: OnceLock<Thread>,
    stopping: AtomicBool,
    progress: watch::Sender<Progress>,
}

/// What is known of a partition that a reader has, or had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// Where it goes on, where it has begun.
    pub(crate) next: Option<i64>,
    /// Where it ended when it was seen first.
    pub(crate) end: Option<i64>,
}

/// How far the thread is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// The version of the subscriptions that it follows.
    followed: u64,
    /// Whether its group has not answered to them.
    joining: bool,
    /// What the broker does not let it do, as far as it has said so since the group answered last.
    refused: Option<Code>,
    /// Whether its last positions are told, and only the goodbye to its group is left.
    told: bool,
    ended: bool,
}

/// How long a member waits for partitions that others have to give away first, before it may be that it gets none.
const SECOND_ROUND: Duration = Duration::from_secs(1);

impl Group {
    /// Starts the consumer's thread.
    ///
    /// # Errors
    /// `Config` where the library refuses the configuration.
    pub(crate) fn start(kind: Kind, settings: &Arc<Settings>) -> Result<Arc<Self>, Error> {
        let config = &settings.config;
        let id = kind.id();
        let mut client = config.member(&settings.transport, &id, kind.is_static())?;
        if matches!(kind, Kind::Reader(_)) {
            client.set("enable.partition.eof", "true");
        }
        let bounds = Bounds {
            count: config.partition_window,
            bytes: config.fetch_bytes,
        };
        let keeps = kind.commits() && !kind.is_early();
        let shelf = Shelf::new(bounds, kind.is_early(), keeps);
        let group = Arc::new(Self {
            kind,
            settings: Arc::clone(settings),
            client,
            shelf: Mutex::new(shelf),
            born: Instant::now(),
            known: Mutex::default(),
            known_version: AtomicU64::new(0),
            marks: Mutex::default(),
            thread: OnceLock::new(),
            stopping: AtomicBool::new(false),
            progress: watch::Sender::default(),
        });
        let this = Arc::clone(&group);
        let thread = std::thread::Builder::new().name(format!("kafka {id}"));
        let started = thread.spawn(move || {
            reader::run(&this);
            this.shelf.lock().close();
            this.progress.send_modify(|progress| progress.ended = true);
        });
        let handle = started.map_err(|error| {
            Error::new(anywire::ErrorKind::Unavailable, "no thread can be started")
                .with_source(error)
        })?;
        let _ = group.thread.set(handle.thread().clone());
        Ok(group)
    }

    /// Gives somebody a seat; `None` where the consumer is at its end. `begin` is where in a topic that the group has never read.
    pub(crate) fn sit_down(
        &self,
        subscription: &SubscriptionId,
        window: usize,
        begin: Begin,
    ) -> Option<SeatKey> {
        let seat = self.shelf.lock().sit_down(subscription, window, begin);
        self.wake();
        seat
    }

    /// Gives a seat to whoever takes copies for subscriptions that are not here.
    pub(crate) fn sit_for_strays(&self, id: &SubscriptionId, window: usize) -> Option<SeatKey> {
        self.shelf.lock().sit_for_strays(id, window)
    }

    /// Waits until the thread follows the subscriptions as they are now, and the topics are ours or somebody else's.
    ///
    /// # Errors
    /// `Denied` where the broker does not let us have them.
    pub(crate) async fn joined(&self, topics: &[String], patience: Duration) -> Result<(), Error> {
        let clock = &self.settings.clock;
        let version = self.shelf.lock().version();
        let mut watched = self.progress.subscribe();
        let joined = |progress: &Progress| {
            let has_joined = progress.followed >= version && !progress.joining;
            progress.ended || has_joined || progress.refused.is_some()
        };
        let ours = || {
            let shelf = self.shelf.lock();
            topics.iter().all(|topic| shelf.owns(topic))
        };
        tokio::select! {
            _ = watched.wait_for(joined) => {}
            () = clock.sleep_until(clock.now() + patience) => return Ok(()),
        }
        let settled = |progress: &Progress| progress.ended || progress.refused.is_some() || ours();
        tokio::select! {
            _ = watched.wait_for(settled) => {}
            () = clock.sleep_until(clock.now() + SECOND_ROUND) => {}
        }
        let refused = watched.borrow().refused;
        match refused.filter(|_| !ours()) {
            Some(code) => Err(errors::from(&KafkaError::Global(code), "joining the group")),
            None => Ok(()),
        }
    }

    /// The broker does not let the consumer do something.
    pub(crate) fn refused(&self, code: Code) {
        self.progress
            .send_modify(|progress| progress.refused = Some(code));
    }

    /// Tells of a topic that somebody created.
    pub(crate) fn notice(&self, topic: &str) {
        let wanted = match &self.kind {
            Kind::Group(group) if names::is_retry(topic) => names::is_retry_of(topic, group),
            Kind::Movers => names::is_delay(topic),
            Kind::Servers => false,
            Kind::Group(_) | Kind::Fleeting(_) | Kind::Private | Kind::Reader(_) => {
                let Some(subject) = names::subject(topic) else {
                    return;
                };
                let shelf = self.shelf.lock();
                let mut all = shelf.subscriptions();
                all.any(|(_, id)| !id.pattern.is_literal() && id.pattern.matches(&subject))
            }
        };
        if wanted && self.known.lock().insert(topic.to_owned()) {
            self.known_version.fetch_add(1, Ordering::AcqRel);
            self.wake();
        }
    }

    /// The topics that were noticed, and a number that changes with them.
    pub(crate) fn known(&self) -> (u64, BTreeSet<String>) {
        let version = self.known_version();
        (version, self.known.lock().clone())
    }

    pub(crate) fn known_version(&self) -> u64 {
        self.known_version.load(Ordering::Acquire)
    }

    /// The thread is about to want something else, to which its group has to answer.
    pub(crate) fn joins(&self, joins: bool) {
        self.progress
            .send_modify(|progress| progress.joining |= joins);
    }

    /// The thread follows the subscriptions of a version.
    pub(crate) fn follows(&self, version: u64) {
        self.progress
            .send_modify(|progress| progress.followed = version);
    }

    /// The group has answered.
    pub(crate) fn assigned(&self) {
        self.progress.send_modify(|progress| {
            progress.joining = false;
            progress.refused = None;
        });
    }

    pub(crate) fn tell(&self, news: News) {
        if news.for_reader {
            self.wake();
        }
    }

    /// Wakes the thread of the consumer.
    pub(crate) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Makes the thread tell its positions, leave the group and end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        if self.kind.is_early() || !self.kind.commits() {
            // There is nothing left to tell, and the thread may be waiting for the broker.
            self.shelf.lock().close();
            self.told();
        }
        self.wake();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// There is nothing left to tell.
    pub(crate) fn told(&self) {
        self.progress.send_modify(|progress| progress.told = true);
    }

    /// Waits until the thread has told its last positions.
    pub(crate) async fn has_told(&self) {
        let mut progress = self.progress.subscribe();
        let told = progress.wait_for(|progress| progress.told || progress.ended);
        let _ = told.await;
    }

    /// Waits until the thread has ended.
    pub(crate) async fn ended(&self) {
        let mut progress = self.progress.subscribe();
        let _ = progress.wait_for(|progress| progress.ended).await;
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's configuration may hold a password.
        f.debug_struct("Group")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
