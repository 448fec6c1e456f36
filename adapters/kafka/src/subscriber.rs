//! The role that subscribes.

use std::sync::Arc;
use std::time::Duration;

use anywire::pattern::publish_subscribe::{
    Guarantee, Incoming, Provision, Spec, Start, Store, Stored, Subscriber, SubscriptionId, Until,
};
use anywire::{Error, ErrorKind, Pattern, Subject};
use async_trait::async_trait;
use futures::future::join_all;

use crate::errors;
use crate::group::{Group, Kind};
use crate::intake::Intake;
use crate::names;
use crate::reset;
use crate::subscription::Begin;
use crate::transport::Connection;

/// How long a consumer may take to get its partitions.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);

/// The role that subscribes.
#[derive(Debug)]
pub(crate) struct KafkaSubscriber {
    connection: Arc<Connection>,
}

impl KafkaSubscriber {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    /// Sits down. All of an app do in one go, before the first record is read, or one would miss what another gets.
    fn open(&self, spec: &Spec) -> Result<Opened, Error> {
        // The order of a key is the partition's, whatever is asked for.
        let Spec {
            subscription,
            guarantee,
            order: _,
            start,
            until,
            window,
            provision: _,
            retention: _,
        } = spec;
        let connection = &self.connection;
        connection.check_open()?;
        let kind = match (&subscription.group, guarantee) {
            (None, _) if *start != Start::Latest || until.is_some() => Kind::Reader(rand::random()),
            (None, _) => Kind::Private,
            (Some(group), Guarantee::AtLeastOnce) => Kind::Group(group.to_string()),
            (Some(group), Guarantee::AtMostOnce) => Kind::Fleeting(group.to_string()),
        };
        let rules = &connection.settings.rules;
        let topics = connection.catalog.matching(&subscription.pattern, rules);
        check_place(start, &topics)?;
        let bounded = match until {
            None => None,
            Some(Until::Now) => Some(topics.clone()),
            Some(_) => {
                let text = "this adapter does not know how to end a read there";
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
        };
        let begin = Begin {
            skips: (*start == Start::Latest).then(|| topics.iter().cloned().collect()),
            place: start.needs_history().then(|| start.clone()),
            bounded,
        };
        let (group, seat) = connection.sit_down(&kind, subscription, *window, begin)?;
        if until.is_some() && topics.is_empty() {
            group.shelf.lock().finish();
        }
        Ok(Opened {
            intake: Intake::new(Arc::clone(&group), seat),
            group,
            topics,
        })
    }

    /// Makes sure that what is published has somewhere to go.
    async fn provide(
        &self,
        pattern: &Pattern,
        retention: Duration,
        provision: Provision,
    ) -> Result<(), Error> {
        self.connection.check_open()?;
        let catalog = &self.connection.catalog;
        let rules = &self.connection.settings.rules;
        for rule in rules.iter().filter(|rule| rule.pattern.overlaps(pattern)) {
            if let Some(topic) = &rule.topic.topic {
                let like = catalog.wanted(Subject::parse(topic).ok().as_ref(), Some(retention));
                let like = like.by(rule);
                catalog.ensure(topic, &like, provision).await?;
                if rule.pattern.covers(pattern) {
                    return Ok(());
                }
            }
        }
        match pattern.as_subject() {
            Some(subject) => {
                let topic = names::topic(&subject)?;
                let like = catalog.wanted(Some(&subject), Some(retention));
                catalog.ensure(&topic, &like, provision).await
            }
            None if provision == Provision::Create => {
                let marker = names::marker(pattern)?;
                let like = catalog.small(retention);
                catalog.ensure(&marker, &like, provision).await
            }
            None if provision == Provision::Verify => catalog.verify_pattern(pattern, rules).await,
            // What is there is read; nothing is missing that somebody would have to create.
            None => Ok(()),
        }
    }
}

/// A position of something else would begin anywhere.
fn check_place(start: &Start, topics: &[String]) -> Result<(), Error> {
    match start {
        Start::Position(position) if !topics.iter().any(|topic| topic == position.place()) => {
            Err(Error::config(
                "the position is of another topic or another wire; take one that a delivery of this subscription gave",
            ))
        }
        _ => Ok(()),
    }
}

struct Opened {
    intake: Intake,
    group: Arc<Group>,
    /// What it reads, as far as that is known.
    topics: Vec<String>,
}

impl Opened {
    /// Waits until it has its share: who begins with what is new would miss what is published before, and who publishes at
    /// once would see its messages taken from the members that were there before.
    async fn effective(self) -> Result<Box<dyn Incoming>, Error> {
        if !self.topics.is_empty() {
            self.group.joined(&self.topics, JOIN_PATIENCE).await?;
        }
        Ok(Box::new(self.intake))
    }
}

#[async_trait]
impl Subscriber for KafkaSubscriber {
    async fn subscribe(&self, specs: &[Spec]) -> Vec<Result<Box<dyn Incoming>, Error>> {
        // Side by side, so that one request creates all topics; and all sit down before the first record is read.
        let provided = join_all(specs.iter().map(|spec| {
            let pattern = &spec.subscription.pattern;
            self.provide(pattern, spec.retention, spec.provision)
        }));
        let provided = provided.await;
        // Who begins with what is new must know what is there.
        let looks = |spec: &Spec| spec.start != Start::Earliest || spec.until.is_some();
        let looked = match specs.iter().any(looks) {
            true => self.connection.catalog.look().await,
            false => Ok(()),
        };
        let is_known = looked.is_ok();
        let why = || self.connection.settings.health.why();
        let each = specs.iter().zip(provided);
        let opened: Vec<_> = each
            .map(|(spec, provided)| match provided {
                Ok(()) if looks(spec) && !is_known => Err(why()),
                Ok(()) => self.open(spec),
                Err(error) => Err(error),
            })
            .collect();
        let effective = opened.into_iter().zip(specs).map(async |(opened, spec)| {
            let effective = match opened {
                Ok(opened) => opened.effective().await,
                Err(error) => Err(error),
            };
            effective.map_err(|error| {
                error
                    .with_operation("subscribe")
                    .with_context("subscription", &spec.subscription)
            })
        });
        join_all(effective).await
    }

    async fn declare(&self, stores: &[Store]) -> Vec<Result<(), Error>> {
        let declared = stores.iter().map(async |store| {
            let Store {
                pattern,
                retention,
                provision,
            } = store;
            let declared = self.provide(pattern, *retention, *provision).await;
            declared.map_err(|error| {
                error
                    .with_operation("declare")
                    .with_context("store", pattern.wildcards())
            })
        });
        join_all(declared).await
    }

    async fn stored(&self, _group: &str) -> Result<Vec<Stored>, Error> {
        self.connection.check_open()?;
        // A group has positions in topics; which patterns brought it there is not written anywhere.
        Ok(Vec::new())
    }

    async fn reset(&self, subscription: &SubscriptionId, start: &Start) -> Result<(), Error> {
        self.connection.check_open()?;
        self.connection.catalog.look().await?;
        let rules = &self.connection.settings.rules;
        let catalog = &self.connection.catalog;
        let topics = catalog.matching(&subscription.pattern, rules);
        check_place(start, &topics)?;
        let settings = Arc::clone(&self.connection.settings);
        let (id, start) = (subscription.clone(), start.clone());
        let moving =
            tokio::task::spawn_blocking(move || reset::run(&settings, &id, &topics, &start));
        let moved = moving.await;
        moved.unwrap_or_else(|_| Err(errors::closed()))
    }
}
