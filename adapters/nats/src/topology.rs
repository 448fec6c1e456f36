//! Streams and consumers: found, created, widened, checked.
//!
//! An operator's stream that covers a pattern is used as it is. Else there is one stream of ours for each first token,
//! with a list of subjects that grows. The server takes no two subjects that overlap, in one stream or in two, so what
//! overlaps in ours is widened to the least that covers both.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anywire::config::TransportConfig;
use anywire::pattern::publish_subscribe::{
    Order, Provision, Spec, Start, Store, Stored, SubscriptionId, members_running,
};
use anywire::{Error, ErrorKind, Pattern};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PriorityPolicy, pull};
use async_nats::jetstream::stream::{DiscardPolicy, Placement, RetentionPolicy, StorageType};
use async_nats::jetstream::{ErrorCode, consumer, stream};
use futures::future::join_all;
use parking_lot::Mutex;

use crate::api::Api;
use crate::config::{NatsConfig, Storage};
use crate::cover;
use crate::names::{self, DEAD_STREAM, DEAD_SUBJECTS, RETRY_STREAM, RETRY_SUBJECTS};

/// Under which names a consumer keeps its subscription: its own name may be a hash.
const GROUP: &str = "anywire.group";
const PATTERN: &str = "anywire.pattern";
/// The streams that a subscription consumes from, in the metadata of its retry consumer.
const STREAMS: &str = "anywire.streams";
/// The one priority group of a consumer that serves one client at a time.
pub(crate) const PINNED_GROUP: &str = "anywire";
/// How long a client that is silent stays the one that is served.
const PINNED_FOR: Duration = Duration::from_secs(10);
/// How long the server keeps a private consumer that nobody pulls from: longer than an outage.
const PRIVATE_FOR: Duration = Duration::from_secs(5 * 60);
/// How often a change that others interfere with is tried.
const ATTEMPTS: usize = 10;
/// How long the server may take to notice that a member has left.
const FAREWELL: Duration = Duration::from_secs(1);
/// In the year 2262, the last time that the server knows: it counts nanoseconds, and would begin at the front.
const LAST_TIME: Duration = Duration::from_nanos(i64::MAX as u64);
/// How long copies for one subscription are kept: longer than any schedule of retries.
const RETRY_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What looks after the broker's objects.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) api: Api,
    config: NatsConfig,
    transport: Arc<TransportConfig>,
    /// What this client calls and serves: no stream of ours may take it.
    calls: Mutex<Vec<Pattern>>,
}

/// Where the messages of a subscription come from.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) stream: String,
    filters: Vec<String>,
}

/// A consumer that is there.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) stream: String,
    pub(crate) consumer: String,
    /// Whether it serves one client at a time.
    pub(crate) pinned: bool,
}

impl Topology {
    pub(crate) fn new(api: Api, config: NatsConfig, transport: Arc<TransportConfig>) -> Self {
        Self {
            api,
            config,
            transport,
            calls: Mutex::default(),
        }
    }

    /// Makes sure that nothing stores the calls to `pattern`: the stream's confirmation would reach the caller as a reply.
    ///
    /// # Errors
    /// `Config`, naming the stream.
    pub(crate) async fn keep_for_calls(&self, pattern: &Pattern) -> Result<(), Error> {
        if let Some(captor) = self.captor(pattern).await? {
            let text = format!(
                "the stream \"{captor}\" stores what is sent to \"{pattern}\" and would answer the calls; take the subject out of the stream, or give the calls another"
            );
            return Err(Error::config(text).with_context("stream", captor));
        }
        self.calls.lock().push(pattern.clone());
        Ok(())
    }

    /// The stream that stores what is sent to `pattern`, if any.
    pub(crate) async fn captor(&self, pattern: &Pattern) -> Result<Option<String>, Error> {
        if !self.config.jetstream {
            return Ok(None);
        }
        match self.api.streams_meeting(pattern).await {
            Ok(streams) => Ok(streams.into_iter().next().map(|found| found.config.name)),
            // No JetStream, no streams.
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes sure that a store is there.
    pub(crate) async fn ensure_store(&self, store: &Store) -> Result<(), Error> {
        let Store {
            pattern,
            retention,
            provision,
        } = store;
        if *provision == Provision::None {
            return Ok(());
        }
        self.ensure_streams(pattern, *retention, *provision)
            .await
            .map(drop)
    }

    /// Makes sure that the consumers of a subscription are there: those of its streams, and for a group the one that
    /// brings copies for this subscription alone.
    pub(crate) async fn ensure_subscription(
        &self,
        spec: &Spec,
        private_name: &str,
    ) -> Result<Vec<Bound>, Error> {
        let places = self
            .ensure_streams(&spec.subscription.pattern, spec.retention, spec.provision)
            .await?;
        let name = match spec.subscription.group {
            Some(_) => names::subscription(&spec.subscription),
            None => private_name.to_owned(),
        };
        check_place(&spec.start, &places)?;
        let spec = &spec.clone().with_start(self.within(&spec.start).await?);
        let mut bound = Vec::new();
        for place in &places {
            let config = self.consumer(spec, &name, place);
            bound.push(self.ensure_consumer(spec, place, config).await?);
        }
        if spec.subscription.group.is_some() {
            bound.push(self.ensure_retries(spec, &name, &places).await?);
        }
        // Another service may have changed the stream's list at the same time, from an older copy of it.
        self.ensure_streams(&spec.subscription.pattern, spec.retention, spec.provision)
            .await?;
        Ok(bound)
    }

    async fn ensure_retries(
        &self,
        spec: &Spec,
        name: &str,
        places: &[Place],
    ) -> Result<Bound, Error> {
        let retries = Pattern::parse_any(RETRY_SUBJECTS)?;
        if spec.provision != Provision::None {
            self.ensure_streams(&retries, RETRY_RETENTION, spec.provision)
                .await?;
        }
        let place = Place {
            stream: RETRY_STREAM.to_owned(),
            filters: vec![names::retry_subject(name)],
        };
        let mut config = self.consumer(spec, name, &place);
        config.deliver_policy = DeliverPolicy::All;
        // A copy has let go of its key.
        config.priority_policy = PriorityPolicy::None;
        config.priority_groups = Vec::new();
        config.priority_timeout = Duration::ZERO;
        let streams: Vec<_> = places.iter().map(|place| place.stream.as_str()).collect();
        config
            .metadata
            .insert(STREAMS.to_owned(), streams.join(" "));
        self.ensure_consumer(spec, &place, config).await
    }

    /// What the wire holds for a group: each of its subscriptions has a retry consumer, which tells.
    pub(crate) async fn stored(&self, group: &str) -> Result<Vec<Stored>, Error> {
        let consumers = self.api.consumers(RETRY_STREAM).await?;
        let of_group = consumers.into_iter().filter_map(|info| {
            let metadata = &info.config.metadata;
            let pattern = Pattern::parse_any(metadata.get(PATTERN)?).ok()?;
            let ours = metadata.get(GROUP)? == group;
            ours.then(|| (SubscriptionId::new(group, pattern), info))
        });
        let backlogs = of_group.map(async |(subscription, info)| {
            let streams = info.config.metadata.get(STREAMS).map_or("", String::as_str);
            let mut backlog = waiting(&info);
            for stream in streams.split_ascii_whitespace() {
                if let Some(info) = self.api.consumer(stream, &info.name).await? {
                    backlog += waiting(&info);
                }
            }
            Ok(Stored {
                subscription,
                backlog: Some(backlog),
            })
        });
        join_all(backlogs).await.into_iter().collect()
    }

    /// A start that is not beyond the end of its stream: the server would begin at the front.
    async fn within(&self, start: &Start) -> Result<Start, Error> {
        let Start::Position(position) = start else {
            return Ok(start.clone());
        };
        let stream = self.api.stream(position.place()).await?;
        let last = stream.map_or(0, |info| info.state.last_sequence);
        Ok(match position.number() > last {
            true => Start::Latest,
            false => start.clone(),
        })
    }

    /// Where each of these consumers' streams ends now; none where the consumer has nothing to bring.
    pub(crate) async fn ends(&self, bound: &[Bound]) -> Result<Vec<Option<u64>>, Error> {
        let ends = bound.iter().map(async |bound| {
            let stream = self.api.stream(&bound.stream).await?;
            let consumer = self.api.consumer(&bound.stream, &bound.consumer).await?;
            // In this order: what comes between the two is beyond the end, or the last that is brought.
            let last = stream.map(|info| info.state.last_sequence);
            Ok(match consumer {
                Some(info) if info.num_pending == 0 && info.num_ack_pending == 0 => None,
                Some(_) => last,
                None => None,
            })
        });
        join_all(ends).await.into_iter().collect()
    }

    /// Makes a group's consumers anew, to begin at `start`.
    pub(crate) async fn reset(
        &self,
        subscription: &SubscriptionId,
        start: &Start,
    ) -> Result<(), Error> {
        let spec = Spec::new(subscription.clone()).with_start(start.clone());
        let unknown = || {
            let text = "the group has no such subscription; check group and pattern";
            Error::new(ErrorKind::NotFound, text).with_context("subscription", subscription)
        };
        let places = self
            .ensure_streams(&subscription.pattern, spec.retention, Provision::Verify)
            .await?;
        check_place(start, &places)?;
        let spec = spec.with_start(self.within(start).await?);
        let name = names::subscription(subscription);
        let mut configs = Vec::with_capacity(places.len());
        for place in &places {
            let mut info = self.consumer_of(place, &name).await?.ok_or_else(unknown)?;
            // A pull of somebody who has just left stands until the server notices.
            let since = Instant::now();
            while info.num_waiting > 0 {
                if since.elapsed() > FAREWELL {
                    return Err(members_running(subscription));
                }
                info = self.consumer_of(place, &name).await?.ok_or_else(unknown)?;
            }
            let mut config = self.consumer(&spec, &name, place);
            let pinned = info.config.priority_policy == PriorityPolicy::PinnedClient;
            if pinned {
                config = self.consumer(&spec.clone().with_order(Order::KeyInGroup), &name, place);
            }
            configs.push((place.stream.as_str(), config));
        }
        for (stream, config) in configs {
            self.api.delete_consumer(stream, &name).await?;
            self.api.create_consumer(stream, config).await?;
            tracing::info!(stream, consumer = name, %start, "made a consumer anew, to begin elsewhere");
        }
        Ok(())
    }

    async fn consumer_of(
        &self,
        place: &Place,
        name: &str,
    ) -> Result<Option<consumer::Info>, Error> {
        self.api.consumer(&place.stream, name).await
    }

    /// The streams that hold what matches `pattern`.
    async fn ensure_streams(
        &self,
        pattern: &Pattern,
        retention: Duration,
        provision: Provision,
    ) -> Result<Vec<Place>, Error> {
        for _ in 0..ATTEMPTS {
            let meeting = self.api.streams_meeting(pattern).await?;
            if let Some(found) = meeting.iter().find(|info| covers(&info.config, pattern)) {
                return Ok(vec![Place {
                    stream: found.config.name.clone(),
                    filters: vec![pattern.wildcards().to_owned()],
                }]);
            }
            let Some(token) = first_literal(pattern) else {
                return places_of_wildcard(pattern, &meeting);
            };
            if provision != Provision::Create {
                return Err(missing_stream(pattern));
            }
            let name = match token {
                _ if pattern.is_dead_letters() => DEAD_STREAM.to_owned(),
                _ if pattern.wildcards() == RETRY_SUBJECTS => RETRY_STREAM.to_owned(),
                token => names::stream(token),
            };
            if let Some(other) = meeting.iter().find(|info| info.config.name != name) {
                return Err(self.overlap(pattern, &other.config));
            }
            self.create_or_widen(&name, pattern, retention).await?;
        }
        let text = "the list of a stream's subjects is changed by somebody else again and again; start again";
        Err(Error::new(ErrorKind::Unavailable, text).with_context("pattern", pattern))
    }

    /// Asks the server for a stream that covers the pattern. Whether it does is for the caller to see: somebody else may
    /// do the same.
    async fn create_or_widen(
        &self,
        name: &str,
        pattern: &Pattern,
        retention: Duration,
    ) -> Result<(), Error> {
        let Some(info) = self.api.stream(name).await? else {
            let created = self
                .api
                .create_stream(self.stream(name, pattern, retention))
                .await;
            return match created {
                Ok(()) => {
                    tracing::info!(stream = name, subjects = %pattern, "created a stream");
                    Ok(())
                }
                Err(error) if is_a_race(&error) => Ok(()),
                Err(error) => Err(error),
            };
        };
        let mut config = info.config;
        let before = patterns(&config);
        let after = cover::insert(&before, pattern);
        let widened = |list: &Pattern| *list != *pattern && !before.contains(list);
        if let Some(wide) = after.iter().find(|list| widened(list))
            && let Some(call) = self.calls.lock().iter().find(|call| call.overlaps(wide))
        {
            return Err(self.would_take_a_call(pattern, wide, call));
        }
        config.subjects = after
            .iter()
            .map(|list| list.wildcards().to_owned())
            .collect();
        config.max_age = config.max_age.max(retention);
        tracing::info!(stream = name, subjects = ?config.subjects, "widened a stream");
        match self.api.update_stream(config).await {
            Err(error) if is_a_race(&error) => Ok(()),
            updated => updated,
        }
    }

    async fn ensure_consumer(
        &self,
        spec: &Spec,
        place: &Place,
        config: pull::Config,
    ) -> Result<Bound, Error> {
        let name = config.durable_name.clone().or_else(|| config.name.clone());
        let bound = Bound {
            stream: place.stream.clone(),
            consumer: name.unwrap_or_default(),
            pinned: config.priority_policy == PriorityPolicy::PinnedClient,
        };
        if spec.provision == Provision::None {
            return Ok(bound);
        }
        match self.api.consumer(&bound.stream, &bound.consumer).await? {
            Some(found) => match differs(&found.config, &config) {
                None => return Ok(bound),
                Some("filter") if spec.provision == Provision::Create => {}
                Some(what) => return Err(mismatch(&bound, what)),
            },
            None if spec.provision == Provision::Verify => {
                let text = "the consumer does not exist; create it, or set provision = \"create\"";
                return Err(Error::new(ErrorKind::NotFound, text)
                    .with_context("stream", &bound.stream)
                    .with_context("consumer", &bound.consumer));
            }
            None => {}
        }
        self.api.create_consumer(&bound.stream, config).await?;
        tracing::info!(stream = %bound.stream, consumer = %bound.consumer, "created a consumer");
        Ok(bound)
    }

    fn consumer(&self, spec: &Spec, name: &str, place: &Place) -> pull::Config {
        let is_group = spec.subscription.group.is_some();
        let group = spec.subscription.group.as_deref().unwrap_or_default();
        let pattern = spec.subscription.pattern.wildcards();
        let pinned = spec.order == Order::KeyInGroup;
        let (filter_subject, filter_subjects) = match place.filters.as_slice() {
            [one] => (one.clone(), Vec::new()),
            many => (String::new(), many.to_vec()),
        };
        pull::Config {
            name: Some(name.to_owned()),
            durable_name: is_group.then(|| name.to_owned()),
            deliver_policy: begins(&spec.start, &place.stream),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.config.ack_wait,
            // Failures are counted by core; a limit of the server's would strand a message.
            max_deliver: -1,
            // The window is ours, for each instance.
            max_ack_pending: -1,
            filter_subject,
            filter_subjects,
            inactive_threshold: match is_group {
                true => Duration::ZERO,
                false => PRIVATE_FOR,
            },
            metadata: HashMap::from([
                (GROUP.to_owned(), group.to_owned()),
                (PATTERN.to_owned(), pattern.to_owned()),
            ]),
            priority_policy: match pinned {
                true => PriorityPolicy::PinnedClient,
                false => PriorityPolicy::None,
            },
            priority_groups: match pinned {
                true => vec![PINNED_GROUP.to_owned()],
                false => Vec::new(),
            },
            priority_timeout: match pinned {
                true => PINNED_FOR,
                false => Duration::ZERO,
            },
            ..pull::Config::default()
        }
    }

    fn stream(&self, name: &str, pattern: &Pattern, retention: Duration) -> stream::Config {
        let NatsConfig {
            storage,
            max_bytes,
            placement_tags,
            dedup_window,
            ..
        } = &self.config;
        let subjects = match name {
            DEAD_STREAM => DEAD_SUBJECTS,
            _ => pattern.wildcards(),
        };
        stream::Config {
            name: name.to_owned(),
            subjects: vec![subjects.to_owned()],
            retention: match name {
                // A copy that was handled is of no use to anybody.
                RETRY_STREAM => RetentionPolicy::WorkQueue,
                _ => RetentionPolicy::Limits,
            },
            // A full stream refuses; it never forgets what was accepted.
            discard: DiscardPolicy::New,
            max_age: retention,
            max_bytes: max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            max_messages: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            storage: match storage {
                Storage::File => StorageType::File,
                Storage::Memory => StorageType::Memory,
            },
            num_replicas: self.replicas(pattern),
            duplicate_window: (*dedup_window).min(retention),
            placement: (!placement_tags.is_empty()).then(|| Placement {
                cluster: None,
                tags: placement_tags.clone(),
            }),
            description: Some("made by anywire".to_owned()),
            ..stream::Config::default()
        }
    }

    fn replicas(&self, pattern: &Pattern) -> usize {
        let rule = self
            .transport
            .subjects
            .iter()
            .find(|rule| rule.pattern.covers(pattern));
        let of_rule = rule
            .and_then(|rule| rule.replicas)
            .and_then(|count| usize::try_from(count).ok());
        let said = of_rule.or(self.config.replicas);
        said.unwrap_or(match self.api.is_clustered() {
            true => 3,
            false => 1,
        })
    }

    fn overlap(&self, pattern: &Pattern, other: &stream::Config) -> Error {
        let subjects = other.subjects.join(", ");
        let stream = &other.name;
        Error::config(format!(
            "\"{pattern}\" overlaps the stream \"{stream}\" ({subjects}), which does not hold all of it; let the stream cover it, or narrow the handler's pattern ([handlers.NAME] in the configuration tells which)"
        ))
        .with_context("transport", &self.transport.name)
    }

    fn would_take_a_call(&self, pattern: &Pattern, wide: &Pattern, call: &Pattern) -> Error {
        Error::config(format!(
            "to store \"{pattern}\" a stream would have to take all of \"{wide}\", and \"{call}\" is a call; give the events a stream of their own, or another first token, in [[subjects]]"
        ))
        .with_context("transport", &self.transport.name)
    }
}

/// Where a consumer of a stream begins. The server takes what lies beyond either end of the stream for that end.
fn begins(start: &Start, stream: &str) -> DeliverPolicy {
    match start {
        Start::Earliest => DeliverPolicy::All,
        Start::Latest => DeliverPolicy::New,
        Start::At(time) => since(*time),
        Start::Position(position) if position.place() == stream => DeliverPolicy::ByStartSequence {
            start_sequence: position.number().max(1),
        },
        Start::Position(position) => position.time().map_or(DeliverPolicy::All, since),
    }
}

fn since(time: SystemTime) -> DeliverPolicy {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let start_time = (UNIX_EPOCH + since.min(LAST_TIME)).into();
    DeliverPolicy::ByStartTime { start_time }
}

/// A position of something else would begin anywhere.
fn check_place(start: &Start, places: &[Place]) -> Result<(), Error> {
    let Start::Position(position) = start else {
        return Ok(());
    };
    if places.iter().any(|place| place.stream == position.place()) {
        return Ok(());
    }
    Err(Error::config(
        "the position is of another stream or another wire; take one that a delivery of this subscription gave",
    ))
}

/// A wildcard in first position consumes from what is there and creates nothing.
fn places_of_wildcard(pattern: &Pattern, meeting: &[stream::Info]) -> Result<Vec<Place>, Error> {
    let place = |info: &stream::Info| {
        let common = patterns(&info.config);
        let common = common
            .iter()
            .filter_map(|subject| cover::meet(subject, pattern));
        let filters: Vec<_> = common.map(|both| both.wildcards().to_owned()).collect();
        (!filters.is_empty()).then(|| Place {
            stream: info.config.name.clone(),
            filters,
        })
    };
    let places: Vec<_> = meeting.iter().filter_map(place).collect();
    if places.is_empty() {
        return Err(missing_stream(pattern));
    }
    let streams: Vec<_> = places.iter().map(|place| &place.stream).collect();
    tracing::info!(%pattern, ?streams, "consumes from the streams that are there now");
    Ok(places)
}

fn missing_stream(pattern: &Pattern) -> Error {
    let text = "no stream holds what matches the pattern; create one, or begin the pattern with a word and set provision = \"create\"";
    Error::new(ErrorKind::NotFound, text).with_context("pattern", pattern)
}

fn mismatch(bound: &Bound, what: &str) -> Error {
    Error::config(format!(
        "the consumer \"{}\" is there with another {what}; delete it, or give the handler a group of its own",
        bound.consumer
    ))
    .with_context("stream", &bound.stream)
}

/// What keeps a consumer from being the one that we need. The rest is its operator's business.
fn differs(found: &consumer::Config, wanted: &pull::Config) -> Option<&'static str> {
    let filters = |one: &str, many: &[String]| {
        let mut all = many.to_vec();
        all.extend((!one.is_empty()).then(|| one.to_owned()));
        all.sort();
        all
    };
    let there = filters(&found.filter_subject, &found.filter_subjects);
    let subscription = |metadata: &HashMap<String, String>| {
        let get = |key| metadata.get(key).cloned();
        (get(GROUP), get(PATTERN))
    };
    if found.deliver_subject.is_some() {
        Some("way of delivery")
    } else if found.ack_policy != AckPolicy::Explicit {
        Some("ack policy")
    } else if !found.metadata.is_empty()
        && subscription(&found.metadata) != subscription(&wanted.metadata)
    {
        Some("subscription")
    } else if found.priority_policy != wanted.priority_policy {
        Some("order")
    } else if there != filters(&wanted.filter_subject, &wanted.filter_subjects) {
        Some("filter")
    } else {
        None
    }
}

fn is_a_race(error: &Error) -> bool {
    let codes = [
        ErrorCode::STREAM_NAME_EXIST,
        ErrorCode::STREAM_SUBJECT_OVERLAP,
    ];
    crate::api::code(error).is_some_and(|code| codes.contains(&code))
}

fn waiting(info: &consumer::Info) -> u64 {
    info.num_pending + info.num_ack_pending as u64
}

fn covers(config: &stream::Config, pattern: &Pattern) -> bool {
    patterns(config)
        .iter()
        .any(|subject| subject.covers(pattern))
}

/// The subjects of a stream. What is no pattern of ours, such as `$KV.>`, cannot meet one.
pub(crate) fn patterns(config: &stream::Config) -> Vec<Pattern> {
    let subjects = config.subjects.iter();
    subjects
        .filter_map(|text| Pattern::parse_any(text).ok())
        .collect()
}

fn first_literal(pattern: &Pattern) -> Option<&str> {
    let first = pattern.wildcards().split('.').next()?;
    (!matches!(first, "*" | ">")).then_some(first)
}
