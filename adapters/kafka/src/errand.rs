//! What an app does for messages that none of its subscriptions gets: it moves events whose time has come to the topics of
//! their subjects, together with every other app of the cluster, and copies that are for nobody any more to the dead letters.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anywire::pattern::publish_subscribe::{
    Entry, Incoming, Provision, PublishBatch, Published, Publisher, Received, SettleBatch,
    Settlement,
};
use anywire::pattern::{Batch, Pulled, pull};
use anywire::{Error, ErrorKind, Message, Subject, Trail};

use crate::intake::Intake;
use crate::publisher::KafkaPublisher;
use crate::transport::Connection;

/// How many are moved together.
pub(crate) const TOGETHER: usize = 256;
/// How long the brokers may take to store them.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it is waited after some could not be moved.
const PAUSE: Duration = Duration::from_secs(1);
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
                let subject = message.subject().clone();
                let mut trail = message.trail().cloned();
                let trail = trail.get_or_insert_with(|| Trail::new(subject));
                let pattern = trail.pattern.as_ref().map(ToString::to_string);
                tracing::error!(%transport, group, pattern, subject = %trail.subject, "a copy is for a subscription that no handler of this app has any more; it goes to the dead letters");
                let now = connection.settings.clock.wall();
                trail.group = Some(group.clone());
                trail.origin = Some(transport.clone());
                trail.due = None;
                trail.first_at.get_or_insert(now);
                trail.last_at = Some(now);
                trail.error = Some("no handler has this subscription any more".to_owned());
                let to = Subject::dead_letters(group);
                Entry::new(message.with_subject(to).with_trail(trail.clone()))
            }
        }
    }

    /// Makes sure that there is a place for them.
    async fn prepare(&self, connection: &Connection) -> Result<(), Error> {
        let Self::DeadLetters(group) = self else {
            return Ok(());
        };
        let catalog = &connection.catalog;
        let subject = Subject::dead_letters(group);
        let topic = crate::names::topic(&subject)?;
        let like = catalog.wanted(Some(&subject), Some(DEAD_LETTERS_KEPT));
        catalog.ensure(&topic, &like, Provision::Create).await
    }

    /// Whether a message that was refused is given up.
    fn gives_up(&self, error: &Error) -> bool {
        matches!(self, Self::Home) && error.kind() == ErrorKind::NoRoute
    }
}

/// Moves until the consumer ends. What is not confirmed stays where it is.
pub(crate) async fn run(connection: Weak<Connection>, mut intake: Intake, errand: Errand) {
    let settler = intake.settler();
    let mut batch: Batch<Received> = Batch::new(TOGETHER);
    while let Ok(Pulled::Some) = pull(&mut intake, &mut batch).await {
        let Some(connection) = connection.upgrade() else {
            return;
        };
        let prepared = errand.prepare(&connection).await;
        if let Err(error) = &prepared {
            tracing::warn!(%error, "there is no place for dead letters");
        }
        let mut moving = PublishBatch::new(PATIENCE);
        let mut tags = Vec::with_capacity(batch.len());
        for received in batch.drain() {
            tags.push(received.tag);
            moving.push(errand.entry(&connection, received.message));
        }
        let moved = KafkaPublisher::new(Arc::clone(&connection)).publish(moving);
        let moved = moved.wait().await;
        let mut settled = SettleBatch::default();
        let mut failed = false;
        for (tag, outcome) in tags.into_iter().zip(moved.outcomes()) {
            let settlement = match outcome {
                Published::Accepted(_) => Settlement::Ack,
                Published::Rejected(error) if errand.gives_up(error) => {
                    metrics::counter!("anywire.kafka.delayed_to_nobody").increment(1);
                    tracing::error!(%error, "an event's time has come, and its topic is gone");
                    Settlement::Ack
                }
                Published::Rejected(_) | Published::Unknown(_) => {
                    failed = true;
                    Settlement::Return
                }
            };
            settled.push(tag, settlement);
        }
        settler.settle(settled).wait().await;
        if failed {
            let clock = &connection.settings.clock;
            clock.sleep_until(clock.now() + PAUSE).await;
        }
    }
}
