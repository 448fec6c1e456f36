//! The role that publishes: a unary call to an instance of each group, which answers when its handlers have settled.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anywire::pattern::Progress;
use anywire::pattern::publish_subscribe::{
    Entry, Guarantee, PublishBatch, Published, Publisher, Receipt, Target, no_route,
};
use anywire::{Error, ErrorKind, Message};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream;

use crate::errors::{self, Verdict};
use crate::switchboard::Destination;
use crate::transport::{Connection, Group};

/// Between two tries at a group that has certainly not begun, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// As far ahead as a deadline is set: beyond, adding it to an instant may panic.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The role that publishes.
#[derive(Debug)]
pub(crate) struct GrpcPublisher {
    connection: Arc<Connection>,
}

impl GrpcPublisher {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Publisher for GrpcPublisher {
    fn publish(&self, mut batch: PublishBatch) -> Progress<PublishBatch> {
        let connection = &self.connection;
        if connection.is_closed() {
            batch.record_rest(|| Published::Rejected(errors::closed()));
            return Progress::Done(batch);
        }
        // Dead letters come one by one, while their event is held.
        if let [entry] = batch.entries()
            && let Some(outcome) = connection.at_once(entry)
        {
            batch.record(outcome);
            return Progress::Done(batch);
        }
        let connection = Arc::clone(connection);
        Progress::pending(async move {
            let deadline = connection.clock.now() + batch.timeout().min(LONGEST);
            let outcomes = publish_all(&connection, batch.entries(), deadline).await;
            outcomes
                .into_iter()
                .for_each(|outcome| batch.record(outcome));
            batch
        })
    }
}

/// Entries of one key go one after the other, as there is no other order on this wire; all else goes side by side.
async fn publish_all(
    connection: &Connection,
    entries: &[Entry],
    deadline: Instant,
) -> Vec<Published> {
    let sending = lanes(entries).into_iter().map(async |lane| {
        let mut ended = Vec::with_capacity(lane.len());
        for index in lane {
            ended.push((
                index,
                publish_one(connection, &entries[index], deadline).await,
            ));
        }
        ended
    });
    let sending = stream::iter(sending).buffer_unordered(connection.config.max_in_flight);
    let mut outcomes: Vec<_> = sending
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .flatten()
        .collect();
    outcomes.sort_unstable_by_key(|(index, _)| *index);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn lanes(entries: &[Entry]) -> Vec<Vec<usize>> {
    let mut keyed = HashMap::new();
    let mut lanes: Vec<Vec<usize>> = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let Some(key) = entry.message.key() else {
            lanes.push(vec![index]);
            continue;
        };
        let lane = *keyed.entry(key).or_insert_with(|| {
            lanes.push(Vec::new());
            lanes.len() - 1
        });
        lanes[lane].push(index);
    }
    lanes
}

async fn publish_one(connection: &Connection, entry: &Entry, deadline: Instant) -> Published {
    if let Some(outcome) = connection.at_once(entry) {
        return outcome;
    }
    let Entry {
        message,
        target: _,
        not_before: _,
        guarantee,
    } = entry;
    // What was sent, and not answered yet, may be handled.
    let sent = AtomicBool::new(false);
    tokio::select! {
        biased;
        outcome = send(connection, message, *guarantee, deadline, &sent) => outcome,
        () = connection.clock.sleep_until(deadline) => match sent.load(Ordering::Acquire) {
            true => errors::unknown(Error::call_timeout(message.subject())),
            false => Published::Rejected(overloaded()),
        },
        () = connection.closed() => match sent.load(Ordering::Acquire) {
            true => errors::unknown(errors::closed()),
            false => Published::Rejected(errors::closed()),
        },
    }
}

/// How one group has taken an event.
enum Taken {
    Yes,
    /// Nobody there listens to it.
    NoRoute,
    No(Error),
    Unknown(Error),
}

async fn send(
    connection: &Connection,
    message: &Message,
    guarantee: Guarantee,
    deadline: Instant,
    sent: &AtomicBool,
) -> Published {
    let groups = match connection.groups() {
        Ok(groups) => groups,
        Err(error) => return Published::Rejected(error),
    };
    let done = connection.progress.done(message);
    let asked = groups.iter().map(async |group| {
        if done.contains(&group.name) {
            return Taken::Yes;
        }
        let taken = tell(connection, group, message, guarantee, deadline, sent).await;
        if matches!(taken, Taken::Yes) && groups.len() > 1 {
            connection.progress.note(message, &group.name);
        }
        taken
    });
    let taken = join_all(asked).await;
    outcome(connection, message, guarantee, taken)
}

/// What all groups have said is one outcome: a receipt only where nobody has failed it.
fn outcome(
    connection: &Connection,
    message: &Message,
    guarantee: Guarantee,
    taken: Vec<Taken>,
) -> Published {
    let mut accepted = 0;
    let (mut rejected, mut unknown) = (None, None);
    for taken in taken {
        match taken {
            Taken::Yes => accepted += 1,
            Taken::NoRoute => {}
            Taken::No(error) => rejected = rejected.or(Some(error)),
            Taken::Unknown(error) => unknown = unknown.or(Some(error)),
        }
    }
    match (rejected, unknown) {
        // Sent again, it goes only to those who have not taken it.
        (_, Some(error)) => errors::unknown(error),
        (Some(error), None) => Published::Rejected(error),
        (None, None) => {
            connection.progress.forget(message);
            match (accepted, guarantee) {
                (0, Guarantee::AtLeastOnce) => Published::Rejected(no_route(message.subject())),
                (0, Guarantee::AtMostOnce) => {
                    Published::Accepted(Receipt::new().with_unrouted(true))
                }
                _ => Published::Accepted(Receipt::new()),
            }
        }
    }
}

/// Tells one group, again where nobody there has begun and it must not be lost.
async fn tell(
    connection: &Connection,
    group: &Group,
    message: &Message,
    guarantee: Guarantee,
    deadline: Instant,
    sent: &AtomicBool,
) -> Taken {
    let mut pause = FIRST_PAUSE;
    // Whether an instance that stopped meanwhile may have begun.
    let mut has_begun = false;
    loop {
        let turn = match connection.turn(message.subject()).await {
            Ok(turn) => turn,
            Err(error) => return Taken::No(error),
        };
        sent.store(true, Ordering::Release);
        let told = connection.ask(group, message, deadline).await;
        drop(turn);
        let named = |error: Error| error.with_context("group", &group.name);
        let error = match told {
            Ok(_) => return Taken::Yes,
            Err(Verdict::Refused(refused)) => {
                let remote = Error::remote(refused);
                let text = remote.to_string();
                return Taken::No(named(
                    Error::new(ErrorKind::Rejected, text).with_source(remote),
                ));
            }
            Err(Verdict::Failed(error)) => {
                return Taken::No(error.with_context("group", &group.name));
            }
            Err(Verdict::Lost(error)) => return Taken::Unknown(named(error)),
            // What a proxy says for itself says nothing of the handler.
            Err(Verdict::Error(error)) if error.kind() == ErrorKind::Denied => {
                return Taken::No(named(error));
            }
            Err(Verdict::Error(error)) => return Taken::Unknown(named(error)),
            Err(Verdict::NotBegun(error)) if error.kind() == ErrorKind::NoRoute && !has_begun => {
                return Taken::NoRoute;
            }
            Err(Verdict::NotBegun(error) | Verdict::NotSent(error)) => named(error),
            Err(Verdict::GivenBack(error)) => {
                has_begun = true;
                named(error)
            }
        };
        let due = connection.clock.now() + pause;
        if guarantee == Guarantee::AtMostOnce || !error.is_retryable() || due >= deadline {
            return match has_begun {
                true => Taken::Unknown(error),
                false => Taken::No(error),
            };
        }
        sent.store(has_begun, Ordering::Release);
        connection.clock.sleep_until(due).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

fn overloaded() -> Error {
    Error::new(
        ErrorKind::Overloaded,
        "too much was in flight until the deadline; publish less at once, or raise max_in_flight",
    )
}

impl Connection {
    /// What needs no peer: what this wire does not do, and a dead letter, which is told to the sender of its event.
    fn at_once(&self, entry: &Entry) -> Option<Published> {
        let Entry {
            message,
            target,
            not_before,
            guarantee,
        } = entry;
        if message.subject().is_dead_letters() {
            return Some(self.bury(message, *guarantee));
        }
        let rejected = |error: Error| {
            Some(Published::Rejected(
                error.with_context("subject", message.subject()),
            ))
        };
        let unsupported = |text: &str| rejected(Error::new(ErrorKind::Unsupported, text));
        if not_before.is_some() {
            return unsupported("gRPC holds nothing for later: send it on a transport that stores");
        }
        if *target != Target::Subject {
            return unsupported("gRPC has no way to one subscription: send the event itself again");
        }
        errors::too_large(message, self.config.max_payload).map(Published::Rejected)
    }

    /// Tells the sender of the event that this is the end of, and whoever in this program listens to dead letters.
    fn bury(&self, letter: &Message, guarantee: Guarantee) -> Published {
        let (mut told, mut heard) = (false, false);
        if let Some(hub) = self.hub() {
            told = letter
                .trail()
                .is_some_and(|trail| hub.board.fail(letter, trail));
            if let Destination::Event(copies) = hub.board.find(letter.subject(), self.clock.now()) {
                for desk in copies {
                    heard |= desk.leave_behind(letter.clone());
                }
            }
        }
        match guarantee {
            _ if told || heard => Published::Accepted(Receipt::new()),
            Guarantee::AtMostOnce => Published::Accepted(Receipt::new().with_unrouted(true)),
            Guarantee::AtLeastOnce => {
                let text =
                    "gRPC keeps no dead letters, and the sender of this one does not wait any more";
                Published::Rejected(Error::new(ErrorKind::NotFound, text))
            }
        }
    }
}
