//! A partition that is read, and what its topic carries.

use std::sync::Arc;
use std::time::SystemTime;

use anywire::pattern::publish_subscribe::SubscriptionId;
use anywire::{Pattern, Subject};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::message::{BorrowedMessage, Message as _};

use crate::config::Rule;
use crate::member::Member;
use crate::names;
use crate::shelf::{Fresh, PartitionKey, SubscriptionKey, Targets, addressed};

/// What a topic carries.
#[derive(Debug)]
pub(crate) enum Route {
    /// One subject.
    Subject(Subject),
    /// The subjects of a rule.
    Packed(Pattern, Subject),
    /// Copies for single subscriptions.
    Copies,
    /// Events whose time has not come.
    Delayed,
    /// Calls to a pattern.
    Calls(Pattern, Subject),
    /// Nothing of ours.
    Foreign,
}

impl Route {
    pub(crate) fn of(topic: &str, rules: &[Rule]) -> Self {
        let subject = names::subject(topic);
        if names::is_retry(topic) {
            return Self::Copies;
        }
        if names::is_delay(topic) {
            return Self::Delayed;
        }
        if let Some(pattern) = names::called(topic) {
            // A call to a pattern with wildcards says in a header what it is to; one that does not is to nothing that is served.
            let subject = pattern
                .as_subject()
                .or_else(|| names::subject(names::SERVERS));
            return subject.map_or(Self::Foreign, |subject| Self::Calls(pattern, subject));
        }
        let Some(subject) = subject else {
            return Self::Foreign;
        };
        let packed = rules
            .iter()
            .find(|rule| rule.topic.topic.as_deref() == Some(topic));
        match packed {
            Some(rule) => Self::Packed(rule.pattern.clone(), subject),
            None => Self::Subject(subject),
        }
    }

    pub(crate) fn may_bring(&self, pattern: &Pattern) -> bool {
        match self {
            Self::Subject(subject) => pattern.matches(subject),
            Self::Packed(packed, _) => pattern.overlaps(packed),
            Self::Calls(called, _) => pattern == called,
            Self::Copies | Self::Delayed => true,
            Self::Foreign => false,
        }
    }
}

/// A partition that is read.
pub(crate) struct Lane {
    pub(crate) key: PartitionKey,
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    pub(crate) route: Route,
    /// Those who may get something of it.
    pub(crate) targets: Vec<(SubscriptionKey, SubscriptionId)>,
    pub(crate) keys: Targets,
    pub(crate) queue: Option<PartitionQueue<Member>>,
    /// The record whose time has not come, or whose subscription has no room; nothing is read past it.
    pub(crate) first: Option<First>,
    /// What stands before this was there when the partition became ours.
    pub(crate) end: i64,
    /// Whether a bounded read has read all of it.
    pub(crate) done: bool,
    /// Where those begin who have come later.
    pub(crate) begins: Vec<(SubscriptionKey, i64)>,
}

impl Lane {
    /// Who gets a copy for the subscription to a pattern.
    pub(crate) fn targets_of(&self, to: Option<&str>, strays: Option<SubscriptionKey>) -> Targets {
        let to = to.unwrap_or_default();
        let mut mine = self.targets.iter();
        let mine = mine.find(|(_, id)| id.pattern.wildcards() == to);
        mine.map(|(key, _)| *key).or(strays).into_iter().collect()
    }

    /// Whether a copy is for nobody who is here.
    pub(crate) fn is_stray(&self, copy: &Fresh) -> bool {
        let is_here = |key: &SubscriptionKey| self.keys.contains(key);
        matches!(self.route, Route::Copies) && !copy.targets.iter().any(is_here)
    }

    /// A stray tells for whom it was.
    pub(crate) fn address(&self, fresh: Fresh, to: Option<&str>) -> Fresh {
        match to.filter(|_| self.is_stray(&fresh)) {
            Some(to) => Fresh {
                message: addressed(fresh.message, Pattern::parse_any(to).ok()),
                ..fresh
            },
            None => fresh,
        }
    }

    pub(crate) fn brings(&self, record: &BorrowedMessage<'_>) -> bool {
        self.number == record.partition() && *self.topic == *record.topic()
    }
}

/// A record that nothing is read past.
pub(crate) struct First {
    pub(crate) fresh: Fresh,
    /// The pattern of the subscription that a copy is for.
    pub(crate) to: Option<String>,
    pub(crate) due: Option<SystemTime>,
}
