//! Which topics a consumer reads, and for whom.

use std::collections::BTreeSet;
use std::time::Duration;

use anywire::Pattern;
use rdkafka::consumer::Consumer;

use super::{BURIAL, PAUSE, Reader};
use crate::config::Rule;
use crate::group::{Group, Kind};
use crate::lane::{First, Lane, Route};
use crate::shelf::{Fresh, SubscriptionKey, Targets};
use crate::{member, names};

/// How long the brokers may take to list their topics.
const LIST_PATIENCE: Duration = Duration::from_secs(1);

/// Those who are interested in a topic.
pub(crate) fn interested(group: &Group, topic: &str) -> Targets {
    let route = Route::of(topic, &group.settings.rules);
    let shelf = group.shelf.lock();
    let all = shelf.subscriptions();
    let mine = all.filter(|(_, id)| route.may_bring(&id.pattern));
    mine.map(|(key, _)| key).collect()
}

impl Reader<'_> {
    /// Subscribes to what the subscriptions want.
    pub(super) fn follow_subscriptions(&mut self) {
        self.group.shelf.lock().bury(BURIAL);
        let versions = (
            self.group.shelf.lock().version(),
            self.group.known_version(),
        );
        if self.versions == Some(versions) {
            return;
        }
        self.versions = Some(versions);
        let wanted = self.wanted();
        if !wanted.is_empty() {
            self.deserted = None;
        }
        let joins = wanted != self.subscribed && !wanted.is_empty();
        self.group.joins(joins);
        let stays = wanted.is_empty() && !self.subscribed.is_empty() && self.group.kind.commits();
        if stays && !self.deserted() {
            self.versions = None;
        } else if wanted != self.subscribed {
            let list: Vec<&str> = wanted.iter().map(String::as_str).collect();
            let subscribed = match list.is_empty() {
                true => {
                    if self.tells() {
                        self.tell_last();
                    }
                    self.consumer.unsubscribe();
                    Ok(())
                }
                false => {
                    // Else the library takes the topics for those that it knew last, and looks again when it is time.
                    let _ = self.consumer.fetch_metadata(None, LIST_PATIENCE);
                    self.consumer.subscribe(&list)
                }
            };
            match subscribed {
                Ok(()) => self.subscribed = wanted,
                Err(error) => {
                    tracing::warn!(group = ?self.group.kind, %error, "topics cannot be subscribed to");
                    self.versions = None;
                    std::thread::park_timeout(PAUSE);
                }
            }
        }
        let mut lanes = std::mem::take(&mut self.lanes);
        for lane in &mut lanes {
            let before = lane.keys.clone();
            self.aim(lane);
            self.begin(lane, &before);
        }
        self.lanes = lanes;
        self.group.follows(versions.0);
    }

    /// Finds out where those begin who have come to a partition that is read already, and want only what is new. The
    /// others of a group begin where it is.
    fn begin(&self, lane: &mut Lane, before: &Targets) {
        let keys = lane.keys.clone();
        lane.begins.retain(|(key, _)| keys.contains(key));
        if !self.group.kind.is_private() {
            return;
        }
        let new = keys.iter().filter(|key| !before.contains(*key));
        let skips = |key: &&SubscriptionKey| {
            let shelf = self.group.shelf.lock();
            shelf.skips(&lane.topic, &[**key])
        };
        let new: Vec<SubscriptionKey> = new.filter(skips).copied().collect();
        if !new.is_empty() {
            let end = member::end(&self.consumer, &lane.topic, lane.number).unwrap_or_default();
            lane.begins.extend(new.into_iter().map(|key| (key, end)));
        }
    }

    /// The topics and expressions of all subscriptions.
    fn wanted(&self) -> BTreeSet<String> {
        let mut wanted = BTreeSet::new();
        let shelf = self.group.shelf.lock();
        let all = shelf.subscriptions();
        for (_, id) in all {
            wanted.extend(topics(
                &self.group.kind,
                &id.pattern,
                &self.group.settings.rules,
            ));
        }
        drop(shelf);
        if wanted.is_empty() {
            return wanted;
        }
        if let Kind::Group(group) = &self.group.kind {
            wanted.insert(names::retries(group));
        }
        wanted.extend(self.group.known().1);
        wanted
    }

    /// Finds out who may get something of a lane.
    pub(super) fn aim(&self, lane: &mut Lane) {
        let shelf = self.group.shelf.lock();
        let all = shelf.entitled();
        let mine = all.filter(|(_, id)| lane.route.may_bring(&id.pattern));
        lane.targets = mine.map(|(key, id)| (key, id.clone())).collect();
        lane.keys = lane.targets.iter().map(|(key, _)| *key).collect();
        let strays = shelf.strays();
        let Some(first) = lane.first.take() else {
            return;
        };
        // Whoever it was for may have left meanwhile, or have come.
        let targets = match lane.route {
            Route::Copies => lane.targets_of(first.to.as_deref(), strays),
            _ => lane.keys.clone(),
        };
        let fresh = Fresh {
            targets,
            ..first.fresh
        };
        lane.first = Some(First { fresh, ..first });
    }
}

/// The topics and expressions of a pattern.
fn topics(kind: &Kind, pattern: &Pattern, rules: &[Rule]) -> Vec<String> {
    match kind {
        Kind::Servers => return names::calls(pattern).into_iter().collect(),
        Kind::Movers => return vec![names::delays()],
        Kind::Group(_) | Kind::Fleeting(_) | Kind::Private | Kind::Reader(_) => {}
    }
    let mut wanted = Vec::new();
    for rule in rules {
        if let Some(topic) = &rule.topic.topic
            && rule.pattern.overlaps(pattern)
        {
            wanted.push(topic.clone());
            if rule.pattern.covers(pattern) {
                return wanted;
            }
        }
    }
    wanted.extend(names::subscription(pattern));
    wanted
}
