//! What an app does for messages that none of its subscriptions gets: it moves events whose time has come to the topics of
//! their subjects, together with every other app of the cluster, and copies that are for nobody any more to the dead letters.
//!
//! Nothing is acked before the brokers have confirmed the next copy of it.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anywire::pattern::publish_subscribe::{
    Entry, Incoming, Provision, PublishBatch, Published, Publisher, Received, SettleBatch,
    Settlement,
};
use anywire::pattern::{Batch, Pulled, Tag, pull};
use anywire::{ErrorKind, Message, Subject, Trail};
use rustc_hash::FxHashMap;

use crate::intake::Intake;
use crate::names;
use crate::publisher::KafkaPublisher;
use crate::transport::Connection;

/// How many are moved together.
pub(crate) const TOGETHER: usize = 256;
/// How long the brokers may take to store them.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it is waited after some could not be moved.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a topic is looked for that seems to be gone: a broker that has just started may not know of it yet.
const SEARCH: Duration = Duration::from_secs(15);
/// The most subjects whose topics are looked for; when there are more, all searches begin anew.
const MAX_SEARCHED: usize = 1000;
/// How long dead letters are kept, where nobody has said so before.
const DEAD_LETTERS_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Where messages are moved to.
#[derive(Clone, Debug)]
pub(crate) enum Errand {
    /// To the topics of their subjects.
    Home,
    /// To the dead letters of a group.
    DeadLetters(String),
}

impl Errand {
    fn entry(&self, connection: &Connection, message: Message) -> Entry {
        match self {
            Self::Home => match message.trail().and_then(|trail| trail.due) {
                None => Entry::new(message),
                Some(due) => {
                    let clock = &connection.settings.clock;
                    let left = due.duration_since(clock.wall()).unwrap_or_default();
                    // The reader has put the time there; an event that has not failed has no trail.
                    let message = message.with_trail(None);
                    Entry::new(message).with_not_before(Some(clock.now() + left))
                }
            },
            Self::DeadLetters(group) => {
                metrics::counter!("anywire.kafka.stray_copies").increment(1);
                let transport = &connection.settings.transport.name;
                let trail = message.trail();
                let pattern = trail.and_then(|trail| trail.pattern.as_ref());
                let pattern = pattern.map(ToString::to_string);
                let subject = trail.map_or(message.subject(), |trail| &trail.subject);
                tracing::error!(%transport, group, pattern, %subject, "a copy is for a subscription that no handler of this app has any more; it goes to the dead letters");
                let why = "no handler has this subscription any more";
                dead_letter(connection, group, &message, why)
            }
        }
    }
}

/// The subjects whose topics seem to be gone, each with since when.
#[derive(Debug, Default)]
struct Searches(FxHashMap<Subject, Instant>);

impl Searches {
    /// Takes note of what a try has ended with. `true` where the topic was looked for long enough, again and again and with the
    /// same answer: anything else begins the search anew.
    fn note(&mut self, subject: &Subject, outcome: &Published, now: Instant) -> bool {
        let is_gone =
            matches!(outcome, Published::Rejected(error) if error.kind() == ErrorKind::NoRoute);
        if !is_gone {
            self.0.remove(subject);
            return false;
        }
        if self.0.len() >= MAX_SEARCHED && !self.0.contains_key(subject) {
            self.0.clear();
        }
        let since = *self.0.entry(subject.clone()).or_insert(now);
        now.saturating_duration_since(since) >= SEARCH
    }
}

/// Moves until the consumer ends. What is not confirmed stays where it is.
pub(crate) async fn run(connection: Weak<Connection>, mut intake: Intake, errand: Errand) {
    let settler = intake.settler();
    let mut searches = Searches::default();
    let mut batch: Batch<Received> = Batch::new(TOGETHER);
    while let Ok(Pulled::Some) = pull(&mut intake, &mut batch).await {
        let Some(connection) = connection.upgrade() else {
            return;
        };
        if let Errand::DeadLetters(group) = &errand {
            make_room(&connection, group).await;
        }
        let mut tags = Vec::with_capacity(batch.len());
        let moving = batch.drain().map(|received| {
            tags.push(received.tag);
            errand.entry(&connection, received.message)
        });
        let moved = publish(&connection, moving).await;
        let clock = &connection.settings.clock;
        let (mut lost, mut failed) = (Vec::new(), false);
        let mut settled = SettleBatch::default();
        let ends = moved.entries().iter().zip(moved.outcomes());
        for (tag, (entry, outcome)) in tags.into_iter().zip(ends) {
            let subject = entry.message.subject();
            let is_lost =
                matches!(errand, Errand::Home) && searches.note(subject, outcome, clock.now());
            if is_lost {
                lost.push((tag, entry.message.clone()));
                continue;
            }
            failed |= !settle(&mut settled, tag, outcome);
        }
        if !lost.is_empty() {
            failed |= !give_up(&connection, lost, &mut settled).await;
        }
        settler.settle(settled).wait().await;
        if failed {
            clock.sleep_until(clock.now() + PAUSE).await;
        }
    }
}

async fn publish(
    connection: &Arc<Connection>,
    entries: impl Iterator<Item = Entry>,
) -> PublishBatch {
    let mut batch = PublishBatch::new(PATIENCE);
    entries.for_each(|entry| batch.push(entry));
    let publisher = KafkaPublisher::new(Arc::clone(connection));
    publisher.publish(batch).wait().await
}

/// Acks what the brokers have confirmed, and nothing else; `false` where it stays.
fn settle(settled: &mut SettleBatch, tag: Tag, outcome: &Published) -> bool {
    let is_moved = matches!(outcome, Published::Accepted(_));
    let settlement = match is_moved {
        true => Settlement::Ack,
        false => Settlement::Return,
    };
    settled.push(tag, settlement);
    is_moved
}

/// Makes dead letters of events whose topics are gone; `false` where some of them stay.
async fn give_up(
    connection: &Arc<Connection>,
    lost: Vec<(Tag, Message)>,
    settled: &mut SettleBatch,
) -> bool {
    let (transport, group) = (&connection.settings.transport.name, names::MOVERS);
    make_room(connection, group).await;
    let letters = lost.iter().map(|(_, message)| {
        tracing::error!(%transport, group, subject = %message.subject(), "an event's time has come, and its topic is gone; it goes to the dead letters");
        let why = "its time has come, and the topic of its subject is gone";
        dead_letter(connection, group, message, why)
    });
    let buried = publish(connection, letters).await;
    let mut all = true;
    for ((tag, _), outcome) in lost.iter().zip(buried.outcomes()) {
        let is_buried = settle(settled, *tag, outcome);
        metrics::counter!("anywire.kafka.delayed_to_nobody").increment(u64::from(is_buried));
        all &= is_buried;
    }
    all
}

/// A message on its way to the dead letters of a group.
fn dead_letter(connection: &Connection, group: &str, message: &Message, why: &str) -> Entry {
    let now = connection.settings.clock.wall();
    let mut trail = message.trail().cloned();
    let trail = trail.get_or_insert_with(|| Trail::new(message.subject().clone()));
    trail.group = Some(group.to_owned());
    trail.origin = Some(connection.settings.transport.name.clone());
    trail.due = None;
    trail.first_at.get_or_insert(now);
    trail.last_at = Some(now);
    trail.error = Some(why.to_owned());
    let to = Subject::dead_letters(group);
    let message = message.clone().with_subject(to);
    Entry::new(message.with_trail(trail.clone()))
}

/// Makes sure that there is a place for dead letters. Where that fails they are refused, and stay where they are.
async fn make_room(connection: &Connection, group: &str) {
    let subject = Subject::dead_letters(group);
    let made = async {
        let topic = names::topic(&subject)?;
        let catalog = &connection.catalog;
        let like = catalog.wanted(Some(&subject), Some(DEAD_LETTERS_KEPT));
        catalog.ensure(&topic, &like, Provision::Create).await
    };
    if let Err(error) = made.await {
        tracing::warn!(%error, "there is no place for dead letters");
    }
}

#[cfg(test)]
mod tests {
    use anywire::Error;
    use anywire::pattern::publish_subscribe::{Receipt, no_route};

    use super::*;

    fn refused(subject: &Subject) -> Published {
        Published::Rejected(no_route(subject))
    }

    #[test]
    fn a_topic_is_gone_when_it_was_looked_for_long_enough() {
        let (mut searches, start) = (Searches::default(), Instant::now());
        let [gone, other] = ["gone", "other"].map(Subject::dead_letters);
        assert!(!searches.note(&gone, &refused(&gone), start));
        assert!(!searches.note(&gone, &refused(&gone), start + SEARCH / 2));
        assert!(!searches.note(&other, &refused(&other), start + SEARCH / 2));
        assert!(searches.note(&gone, &refused(&gone), start + SEARCH));
        assert!(!searches.note(&other, &refused(&other), start + SEARCH));
    }

    #[test]
    fn whatever_else_comes_of_a_try_begins_the_search_anew() {
        let gone = Subject::dead_letters("gone");
        let silent = || Error::new(ErrorKind::Unavailable, "no broker answers");
        for other in [
            Published::Accepted(Receipt::new()),
            Published::Rejected(silent()),
            Published::Unknown(silent()),
        ] {
            let (mut searches, start) = (Searches::default(), Instant::now());
            assert!(!searches.note(&gone, &refused(&gone), start));
            assert!(!searches.note(&gone, &other, start + SEARCH));
            assert!(!searches.note(&gone, &refused(&gone), start + SEARCH));
        }
    }
}
