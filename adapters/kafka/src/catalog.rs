//! The topics of the cluster, as they were when last looked at, and the making of those that are missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anywire::pattern::publish_subscribe::{Provision, no_route};
use anywire::{Error, ErrorKind, Pattern, Subject};
use parking_lot::{Mutex, RwLock};
use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinError;

use crate::config::Rule;
use crate::errors;
use crate::group::{Group, Settings};
use crate::health::{Ear, Health};
use crate::names;
use crate::producer::{self, Producer};
use crate::pulse;

/// How long the brokers may take to list their topics, and how often they are asked. Nothing ends a question early.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);
const QUESTIONS: usize = 2;
/// How long they may take to create a topic, and to know of it.
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many new topics are asked after at a time.
const SIDE_BY_SIDE: usize = 4;
/// How soon a look is taken again at what is not there yet.
const AGAIN: Duration = Duration::from_millis(10);
/// The most topics that one client creates because a wildcard subscription covers their subjects.
const MAX_BORN: usize = 1000;
/// How long calls and replies are kept: nobody waits for them any more.
const CALLS_KEPT: Duration = Duration::from_secs(60 * 60);

/// What is known about the cluster's topics.
pub(crate) struct Catalog {
    settings: Arc<Settings>,
    producer: Arc<Producer>,
    admin: Mutex<Option<Arc<AdminClient<Ear>>>>,
    seen: RwLock<Seen>,
    looking: tokio::sync::Mutex<()>,
    /// How many looks have come to an answer.
    looks: AtomicU64,
    /// How often in a row the producer knew no broker, though others did.
    silent: AtomicU64,
    /// The topics that were created because a wildcard subscription covers their subjects.
    born: Mutex<FxHashSet<String>>,
    warned: AtomicBool,
    groups: Mutex<Vec<std::sync::Weak<Group>>>,
    /// The topics that are to be created with the next request, which takes one of all who wait at a time.
    births: Mutex<Vec<Birth>>,
    midwife: tokio::sync::Mutex<()>,
    /// Each question to a broker takes a thread while it waits.
    questions: Semaphore,
}

/// A topic that is to be created, and who wants to know what became of it.
struct Birth {
    topic: String,
    like: Wanted,
    told: oneshot::Sender<Result<(), KafkaError>>,
}

/// What the brokers told.
#[derive(Debug, Default)]
struct Seen {
    /// Each topic, with how many partitions it has.
    topics: FxHashMap<String, i32>,
    /// The patterns whose subjects may have topics made for them.
    patterns: Vec<Pattern>,
    /// The patterns with wildcards that are answered.
    calls: Vec<Pattern>,
    brokers: usize,
}

/// What a topic is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    partitions: i32,
    /// Whether somebody said so.
    explicit: bool,
    replicas: Option<i32>,
    min_insync: Option<u32>,
    retention: Duration,
}

impl Catalog {
    pub(crate) fn new(settings: &Arc<Settings>, producer: &Arc<Producer>) -> Self {
        Self {
            settings: Arc::clone(settings),
            producer: Arc::clone(producer),
            admin: Mutex::default(),
            seen: RwLock::default(),
            looking: tokio::sync::Mutex::default(),
            looks: AtomicU64::new(0),
            silent: AtomicU64::new(0),
            born: Mutex::default(),
            warned: AtomicBool::new(false),
            groups: Mutex::default(),
            births: Mutex::default(),
            midwife: tokio::sync::Mutex::default(),
            questions: Semaphore::new(SIDE_BY_SIDE),
        }
    }

    /// Tells a consumer of topics from now on.
    pub(crate) fn tell(&self, group: &Arc<Group>) {
        let mut groups = self.groups.lock();
        groups.retain(|group| group.strong_count() > 0);
        groups.push(Arc::downgrade(group));
    }

    /// Whether a topic is known to be there.
    pub(crate) fn has(&self, topic: &str) -> bool {
        self.seen.read().topics.contains_key(topic)
    }

    /// How many partitions a topic has.
    pub(crate) fn partitions(&self, topic: &str) -> Option<i32> {
        self.seen.read().topics.get(topic).copied()
    }

    /// A topic is gone.
    pub(crate) fn forget(&self, topic: &str) {
        self.seen.write().topics.remove(topic);
    }

    /// The topics that a pattern reads, as far as they are known.
    pub(crate) fn matching(&self, pattern: &Pattern, rules: &[Rule]) -> Vec<String> {
        let packs = |topic: &str| {
            let rule = rules
                .iter()
                .find(|rule| rule.topic.topic.as_deref() == Some(topic));
            rule.is_some_and(|rule| rule.pattern.overlaps(pattern))
        };
        let seen = self.seen.read();
        let reads = |topic: &&String| {
            packs(topic) || names::subject(topic).is_some_and(|subject| pattern.matches(&subject))
        };
        seen.topics.keys().filter(reads).cloned().collect()
    }

    /// The topic that carries the calls to a subject.
    pub(crate) fn calls_to(&self, subject: &Subject) -> Option<String> {
        let seen = self.seen.read();
        if let Ok(own) = names::calls_to(subject)
            && seen.topics.contains_key(&own)
        {
            return Some(own);
        }
        let pattern = seen.calls.iter().find(|pattern| pattern.matches(subject))?;
        names::calls(pattern).ok()
    }

    /// Whether any event waits for its time in this cluster.
    pub(crate) fn has_delayed(&self) -> bool {
        let seen = self.seen.read();
        seen.topics.keys().any(|topic| names::is_delay(topic))
    }

    /// Asks the brokers for their topics. Many who ask at once share an answer.
    pub(crate) async fn look(&self) -> Result<(), Error> {
        // A look that was begun before does not count.
        let is_begun = self.looking.try_lock().is_err();
        let enough = self.looks.load(Ordering::Acquire) + 1 + u64::from(is_begun);
        let _one_at_a_time = self.looking.lock().await;
        if self.looks.load(Ordering::Acquire) >= enough {
            return Ok(());
        }
        let mut listed = self.list().await;
        for _ in 1..QUESTIONS {
            if matches!(listed, Ok(Err(_))) && !self.settings.health.is_closed() {
                listed = self.list().await;
            }
        }
        match listed {
            Ok(Ok(seen)) => {
                self.settings.health.answered(true);
                self.note(seen);
                self.looks.fetch_add(1, Ordering::AcqRel);
                Ok(())
            }
            Ok(Err(error)) => {
                self.settings.health.answered(false);
                let why = self.settings.health.why();
                Err(why.with_source(error))
            }
            Err(_) => Err(errors::closed()),
        }
    }

    async fn list(&self) -> Result<KafkaResult<Seen>, JoinError> {
        let producer = self.producer.current();
        // All topics: to ask for one by its name would create it where the brokers do that.
        let listed = tokio::task::spawn_blocking(move || {
            let listed = producer.ask(|client| client.fetch_metadata(None, LIST_TIMEOUT));
            listed.and_then(|metadata| Seen::of(&metadata))
        });
        listed.await
    }

    /// Makes the producer anew where it has lost all brokers, though a client that is made just now finds them, twice in a row: it
    /// may be connecting.
    pub(crate) async fn revive(&self) {
        let settings = Arc::clone(&self.settings);
        let witness = tokio::task::spawn_blocking(move || {
            let client = settings.config.admin(&settings.transport)?;
            let ear = Ear(Arc::new(Health::new(&settings.transport.name)));
            let client = AdminClient::from_config_and_context(&client, ear)
                .map_err(|error| errors::from(&error, "making a client"))?;
            let listed = client.inner().fetch_metadata(None, LIST_TIMEOUT);
            listed
                .map(drop)
                .map_err(|error| errors::from(&error, "looking for the brokers"))
        });
        if !matches!(witness.await, Ok(Ok(()))) {
            return;
        }
        let producer = self.producer.current();
        let lost = Arc::clone(&producer);
        let asked = tokio::task::spawn_blocking(move || {
            lost.ask(|client| client.fetch_metadata(None, LIST_TIMEOUT).map(drop))
        });
        let Ok(Err(error)) = asked.await else {
            self.silent.store(0, Ordering::Release);
            return;
        };
        if pulse::knows_nobody(&error) && self.silent.fetch_add(1, Ordering::AcqRel) > 0 {
            self.silent.store(0, Ordering::Release);
            tracing::warn!(transport = %self.settings.transport.name, "the producer has lost all brokers, though they are there");
            // Where that fails it is tried again after the next look.
            let _ = self.producer.renew(&producer);
        }
    }

    fn note(&self, seen: Seen) {
        let before = std::mem::replace(&mut *self.seen.write(), seen);
        let seen = self.seen.read();
        let new = seen
            .topics
            .keys()
            .filter(|topic| !before.topics.contains_key(*topic));
        let new: Vec<String> = new.cloned().collect();
        drop(seen);
        self.announce(&new);
    }

    fn announce(&self, topics: &[String]) {
        let groups: Vec<_> = self
            .groups
            .lock()
            .iter()
            .filter_map(std::sync::Weak::upgrade)
            .collect();
        for group in groups {
            topics.iter().for_each(|topic| group.notice(topic));
        }
    }

    /// Makes sure that an event to `subject` has a topic to go to.
    ///
    /// # Errors
    /// `NoRoute` where there is none and no wildcard subscription wants one.
    pub(crate) async fn find(&self, subject: &Subject, topic: &str) -> Result<(), Error> {
        if self.has(topic) {
            return Ok(());
        }
        self.look().await?;
        if self.has(topic) {
            return Ok(());
        }
        let wanted = {
            let seen = self.seen.read();
            seen.patterns.iter().any(|pattern| pattern.matches(subject))
        };
        if !wanted {
            return Err(no_route(subject));
        }
        if !self.may_be_born(topic) {
            let text = "this client has created very many topics for the subjects of a wildcard subscription; pack them into one by a [[subjects]] rule with kafka = { topic = \"...\" }";
            return Err(Error::new(ErrorKind::Overloaded, text).with_context("subject", subject));
        }
        let like = self.wanted(Some(subject), None);
        let created = self.create(topic, &like).await;
        if created.is_err() {
            self.born.lock().remove(topic);
        }
        created
    }

    /// Whether there is room for one more of those topics.
    fn may_be_born(&self, topic: &str) -> bool {
        let mut born = self.born.lock();
        let may = born.len() < MAX_BORN || born.contains(topic);
        if may {
            born.insert(topic.to_owned());
        }
        may
    }

    /// What the topic of a subject is to be like, by its rule.
    pub(crate) fn wanted(&self, subject: Option<&Subject>, retention: Option<Duration>) -> Wanted {
        let rules = &self.settings.rules;
        let rule =
            subject.and_then(|subject| rules.iter().find(|rule| rule.pattern.matches(subject)));
        let config = &self.settings.config;
        Wanted {
            partitions: rule
                .and_then(|rule| rule.topic.partitions)
                .unwrap_or(config.partitions),
            explicit: rule.is_some_and(|rule| rule.topic.partitions.is_some()),
            replicas: rule.and_then(|rule| rule.replicas).or(config.replicas),
            min_insync: rule
                .and_then(|rule| rule.topic.min_insync_replicas)
                .or(config.min_insync_replicas),
            retention: rule
                .and_then(|rule| rule.retention)
                .or(retention)
                .unwrap_or(Duration::from_secs(7 * 24 * 60 * 60)),
        }
    }

    /// A topic of the framework's own, which may be read by one at a time.
    pub(crate) fn small(&self, retention: Duration) -> Wanted {
        Wanted {
            partitions: 1,
            retention,
            ..self.wanted(None, None)
        }
    }

    /// A topic for calls or replies.
    pub(crate) fn brief(&self) -> Wanted {
        self.wanted(None, Some(CALLS_KEPT))
    }

    /// Creates a topic, or checks it, or does neither.
    pub(crate) async fn ensure(
        &self,
        topic: &str,
        like: &Wanted,
        provision: Provision,
    ) -> Result<(), Error> {
        match provision {
            Provision::None => Ok(()),
            Provision::Create if self.has(topic) => Ok(()),
            Provision::Create => self.create(topic, like).await,
            Provision::Verify => self.verify(topic, like).await,
        }
    }

    /// Creates a topic unless it is there. What many want at once is created by one request.
    pub(crate) async fn create(&self, topic: &str, like: &Wanted) -> Result<(), Error> {
        let created = loop {
            let (told, mut answer) = oneshot::channel();
            self.births.lock().push(Birth {
                topic: topic.to_owned(),
                like: like.clone(),
                told,
            });
            let _one_at_a_time = self.midwife.lock().await;
            if answer.is_empty() && !answer.is_terminated() {
                self.deliver().await?;
            }
            // Else whoever took it along was dropped before the answer came.
            if let Ok(created) = answer.try_recv() {
                break created;
            }
        };
        created.map_err(|error| self.admin_error(&error, topic))?;
        self.seen
            .write()
            .topics
            .insert(topic.to_owned(), like.partitions);
        self.announce(&[topic.to_owned()]);
        self.await_topic(topic).await?;
        self.await_partitions(topic).await?;
        let brokers = self.seen.read().brokers;
        if brokers > 1 {
            let admin = self.admin()?;
            self.warn_of_weakness(&admin, topic, self.replicas(like))
                .await;
        }
        Ok(())
    }

    fn replicas(&self, like: &Wanted) -> i32 {
        let brokers = self.seen.read().brokers.max(1);
        like.replicas
            .unwrap_or_else(|| i32::try_from(brokers.min(3)).unwrap_or(1))
    }

    /// Creates all that is wanted now.
    async fn deliver(&self) -> Result<(), Error> {
        let admin = self.admin()?;
        let births = std::mem::take(&mut *self.births.lock());
        if births.is_empty() {
            return Ok(());
        }
        let mut wanted: FxHashMap<&str, (&Wanted, [Option<String>; 2])> = FxHashMap::default();
        for Birth { topic, like, .. } in &births {
            let retention = Some(like.retention.as_millis().to_string());
            let min_insync = like.min_insync.map(|count| count.to_string());
            wanted.insert(topic, (like, [retention, min_insync]));
        }
        let new = wanted.iter().map(|(topic, (like, settings))| {
            let replicas = TopicReplication::Fixed(self.replicas(like));
            let new = NewTopic::new(topic, like.partitions, replicas);
            let keys = ["retention.ms", "min.insync.replicas"];
            keys.iter().zip(settings).fold(new, |new, (key, value)| {
                value.iter().fold(new, |new, value| new.set(key, value))
            })
        });
        let new: Vec<NewTopic<'_>> = new.collect();
        let options = AdminOptions::new()
            .request_timeout(Some(CREATE_TIMEOUT))
            .operation_timeout(Some(CREATE_TIMEOUT));
        let results = admin.create_topics(&new, &options).await;
        if results.is_err() {
            // It may have lost all brokers, which it would never find again (see `pulse`); the next one is made anew.
            self.lose_admin(admin);
        }
        let mut failed: FxHashMap<String, KafkaError> = FxHashMap::default();
        let whole = results.map(|results| {
            for result in results {
                match result {
                    Ok(topic) => {
                        let transport = &self.settings.transport.name;
                        tracing::info!(%transport, topic, "created a topic");
                    }
                    Err((_, Code::TopicAlreadyExists)) => {}
                    Err((topic, code)) => {
                        failed.insert(topic, KafkaError::AdminOp(code));
                    }
                }
            }
        });
        for Birth { topic, told, .. } in births {
            let failed = failed.get(&topic).cloned().map_or(Ok(()), Err);
            let _ = told.send(whole.clone().and(failed));
        }
        Ok(())
    }

    /// Waits until the brokers know of a topic that one of them has created.
    async fn await_topic(&self, topic: &str) -> Result<(), Error> {
        let clock = &self.settings.clock;
        let deadline = clock.now() + CREATE_TIMEOUT;
        loop {
            self.look().await?;
            if self.has(topic) {
                return Ok(());
            }
            if clock.now() >= deadline {
                let text = "a topic was created, but its brokers do not know of it yet";
                let error = Error::new(ErrorKind::Unavailable, text);
                return Err(error.with_context("topic", topic));
            }
            clock.sleep_until(clock.now() + AGAIN).await;
        }
    }

    /// Waits until each partition of a new topic takes messages: its broker tells of it a moment before.
    async fn await_partitions(&self, topic: &str) -> Result<(), Error> {
        let clock = &self.settings.clock;
        let deadline = clock.now() + CREATE_TIMEOUT;
        for number in 0..self.partitions(topic).unwrap_or_default() {
            loop {
                let (producer, name) = (self.producer.current(), topic.to_owned());
                let turn = self.questions.acquire().await;
                let asked = tokio::task::spawn_blocking(move || {
                    producer.ask(|client| client.fetch_watermarks(&name, number, LIST_TIMEOUT))
                });
                let asked = asked.await;
                drop(turn);
                match asked.map_err(|_| errors::closed())? {
                    Ok(_) => break,
                    Err(error) if clock.now() >= deadline => {
                        return Err(self.admin_error(&error, topic));
                    }
                    Err(_) => clock.sleep_until(clock.now() + AGAIN).await,
                }
            }
        }
        Ok(())
    }

    /// A message that one broker keeps is lost with it.
    async fn warn_of_weakness(&self, admin: &AdminClient<Ear>, topic: &str, replicas: i32) {
        let transport = &self.settings.transport.name;
        if self.warned.load(Ordering::Relaxed) {
            return;
        }
        if replicas < 2 {
            self.warned.store(true, Ordering::Relaxed);
            tracing::warn!(%transport, topic, "one broker of several keeps this topic and takes it along when it fails; set replicas = 3");
            return;
        }
        let said = self.configured(admin, topic, "min.insync.replicas").await;
        if said.is_some_and(|count| count == "1") {
            self.warned.store(true, Ordering::Relaxed);
            tracing::warn!(%transport, topic, "a message counts as stored when one broker has it (min.insync.replicas = 1); set min_insync_replicas = 2");
        }
    }

    async fn configured(&self, admin: &AdminClient<Ear>, topic: &str, key: &str) -> Option<String> {
        let options = AdminOptions::new().request_timeout(Some(CREATE_TIMEOUT));
        let asked = [ResourceSpecifier::Topic(topic)];
        let answer = admin.describe_configs(asked.iter(), &options).await.ok()?;
        let described = answer.into_iter().filter_map(Result::ok);
        let is_it = |specifier: &OwnedResourceSpecifier| matches!(specifier, OwnedResourceSpecifier::Topic(name) if name == topic);
        let mut described = described.filter(|resource| is_it(&resource.specifier));
        described.next()?.get(key)?.value.clone()
    }

    /// Checks that a topic is there and is what it should be.
    async fn verify(&self, topic: &str, like: &Wanted) -> Result<(), Error> {
        self.look().await?;
        let differs = |what: &str, is: &str, wanted: &str| {
            Err(Error::config(format!(
                "the topic {topic} has {what} = {is}, the configuration wants {wanted}; change one of them"
            )))
        };
        let Some(partitions) = self.partitions(topic) else {
            let text =
                format!("the topic {topic} is missing; create it, or set provision = \"create\"");
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        if like.explicit && partitions != like.partitions {
            return differs(
                "partitions",
                &partitions.to_string(),
                &like.partitions.to_string(),
            );
        }
        let admin = self.admin()?;
        let checked = [
            ("retention.ms", Some(like.retention.as_millis().to_string())),
            (
                "min.insync.replicas",
                like.min_insync.map(|count| count.to_string()),
            ),
        ];
        for (key, wanted) in checked {
            let Some(wanted) = wanted else { continue };
            match self.configured(&admin, topic, key).await {
                Some(is) if is != wanted => return differs(key, &is, &wanted),
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks that there is anything that a pattern with wildcards reads, or that it is told of to those who publish.
    pub(crate) async fn verify_pattern(
        &self,
        pattern: &Pattern,
        rules: &[Rule],
    ) -> Result<(), Error> {
        self.look().await?;
        let marker = names::marker(pattern)?;
        if self.has(&marker) || !self.matching(pattern, rules).is_empty() {
            return Ok(());
        }
        let text = format!(
            "no topic matches the pattern, nor is there the topic {marker}; create one, or set provision = \"create\""
        );
        Err(Error::new(ErrorKind::NotFound, text).with_context("pattern", pattern.wildcards()))
    }

    fn admin(&self) -> Result<Arc<AdminClient<Ear>>, Error> {
        let mut admin = self.admin.lock();
        if let Some(admin) = &*admin {
            return Ok(Arc::clone(admin));
        }
        let config = self.settings.config.admin(&self.settings.transport)?;
        let ear = Ear(Arc::clone(&self.settings.health));
        let made = AdminClient::from_config_and_context(&config, ear);
        let made = Arc::new(made.map_err(|error| errors::from(&error, "making an admin client"))?);
        *admin = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Never asks this client again. Dropping it may block.
    fn lose_admin(&self, lost: Arc<AdminClient<Ear>>) {
        let mut admin = self.admin.lock();
        let kept = admin.take_if(|admin| Arc::ptr_eq(admin, &lost));
        producer::apart(move || drop((kept, lost)));
    }

    /// Lets go of the client that creates topics.
    pub(crate) fn take_admin(&self) -> Option<Arc<AdminClient<Ear>>> {
        self.admin.lock().take()
    }

    fn admin_error(&self, error: &KafkaError, topic: &str) -> Error {
        errors::from(error, "creating a topic").with_context("topic", topic)
    }
}

impl Wanted {
    /// As a rule says.
    pub(crate) fn by(mut self, rule: &Rule) -> Self {
        self.partitions = rule.topic.partitions.unwrap_or(self.partitions);
        self.explicit |= rule.topic.partitions.is_some();
        self.replicas = rule.replicas.or(self.replicas);
        self.min_insync = rule.topic.min_insync_replicas.or(self.min_insync);
        self.retention = rule.retention.unwrap_or(self.retention);
        self
    }
}

impl Seen {
    /// # Errors
    /// Where a broker has listed none, not even itself: it has just started, and does not know what topics there are, either.
    fn of(metadata: &Metadata) -> KafkaResult<Self> {
        if metadata.brokers().is_empty() {
            return Err(KafkaError::MetadataFetch(Code::BrokerNotAvailable));
        }
        let mut seen = Self {
            brokers: metadata.brokers().len(),
            ..Self::default()
        };
        for topic in metadata.topics() {
            let partitions = topic.partitions();
            let leads = partitions.iter().all(|partition| partition.leader() >= 0);
            if topic.error().is_some() || partitions.is_empty() || !leads {
                // One whose leader is being chosen is there; a new one is not ready.
                if partitions.is_empty() {
                    continue;
                }
            }
            let name = topic.name();
            seen.patterns.extend(names::marked(name));
            seen.calls
                .extend(names::called(name).filter(|pattern| !pattern.is_literal()));
            let count = i32::try_from(partitions.len()).unwrap_or(i32::MAX);
            seen.topics.insert(name.to_owned(), count);
        }
        Ok(seen)
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}
