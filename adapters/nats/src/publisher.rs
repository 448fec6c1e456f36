//! Publishing: into a stream that confirms, or into the air.

use std::sync::Arc;

use anywire::pattern::Progress;
use anywire::pattern::publish_subscribe::{
    Entry, Guarantee, PublishBatch, Published, Publisher, Receipt, Target, no_route,
};
use anywire::{Error, ErrorKind, Message, Subject};
use async_nats::StatusCode;
use async_nats::jetstream;
use async_nats::message::OutboundMessage;
use futures::FutureExt;
use serde::Deserialize;

use crate::errors;
use crate::link::{Handed, Lost, Reply};
use crate::names;
use crate::transport::Connection;
use crate::wire::{self, Sending};

/// The role that publishes.
#[derive(Debug)]
pub(crate) struct NatsPublisher {
    connection: Arc<Connection>,
}

impl NatsPublisher {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Publisher for NatsPublisher {
    fn publish(&self, mut batch: PublishBatch) -> Progress<PublishBatch> {
        let connection = &self.connection;
        if connection.is_closed() {
            batch.record_rest(|| Published::Rejected(errors::closed()));
        }
        while let Some(entry) = batch.entries().get(batch.outcomes().len()) {
            let Some(outcome) = fire_now(connection, entry) else {
                let connection = Arc::clone(connection);
                return Progress::pending(publish(connection, batch));
            };
            batch.record(outcome);
        }
        Progress::Done(batch)
    }
}

/// Sends an entry that nobody confirms, if there is room for it at once.
fn fire_now(connection: &Connection, entry: &Entry) -> Option<Published> {
    if !is_fleeting(entry) {
        return None;
    }
    if let Some(error) = too_large(connection, &entry.message) {
        return Some(Published::Rejected(error));
    }
    let message = outbound(connection, &entry.message, Sending::default());
    match connection.main.send_now(message) {
        Handed::Over(Ok(())) => Some(Published::Accepted(Receipt::new())),
        Handed::Over(Err(error)) => Some(Published::Rejected(error)),
        Handed::Back(_) => None,
    }
}

/// Whether an entry goes into the air: to all who listen now, and to nobody else.
fn is_fleeting(entry: &Entry) -> bool {
    entry.guarantee == Guarantee::AtMostOnce
        && entry.target == Target::Subject
        && entry.not_before.is_none()
}

/// What was done for an entry so far.
enum Step {
    Ended(Published),
    /// A stream will confirm it.
    Stored(Reply),
}

async fn publish(connection: Arc<Connection>, mut batch: PublishBatch) -> PublishBatch {
    let deadline = connection.clock.now() + batch.timeout();
    let mut timer = connection.clock.sleep_until(deadline);
    let mut steps = Vec::with_capacity(batch.len());
    let sending = async {
        for entry in batch.entries().iter().skip(batch.outcomes().len()) {
            let step = send(&connection, entry, steps.last()).await;
            steps.push(step);
        }
    };
    let sent = tokio::select! {
        () = sending => true,
        () = &mut timer => false,
    };
    let mut late = !sent;
    for step in steps {
        let at = batch.outcomes().len();
        let outcome = match step {
            Step::Ended(outcome) => outcome,
            Step::Stored(reply) if late => match reply.now_or_never() {
                Some(answer) => confirmed(&connection, &batch.entries()[at].message, answer),
                None => unconfirmed(&connection),
            },
            Step::Stored(reply) => tokio::select! {
                answer = reply => confirmed(&connection, &batch.entries()[at].message, answer),
                () = &mut timer => {
                    late = true;
                    unconfirmed(&connection)
                }
            },
        };
        batch.record(outcome);
    }
    // What was not sent by the deadline never will be.
    batch.record_rest(|| Published::Rejected(not_sent(&connection)));
    batch
}

/// Sends one entry. `before` is what became of the one before it.
async fn send(connection: &Connection, entry: &Entry, before: Option<&Step>) -> Step {
    let Entry {
        message,
        target,
        not_before,
        guarantee: _,
    } = entry;
    if let Some(error) = too_large(connection, message) {
        return Step::Ended(Published::Rejected(error));
    }
    if is_fleeting(entry) {
        return Step::Ended(fire(connection, message).await);
    }
    if !connection.config.jetstream {
        return Step::Ended(Published::Rejected(nothing_stored(message)));
    }
    let now = connection.clock.now();
    let due = not_before.filter(|due| *due > now);
    let sending = Sending {
        // A copy has the id of its original, and the original's stream, or the last dead letter, knows that already.
        again: message.trail().is_some() || *target != Target::Subject,
        subject: (*target != Target::Subject).then_some(message.subject()),
        due: due.map(|due| connection.clock.wall() + (due - now)),
    };
    let address = match target {
        Target::Subject => match connection
            .coverage
            .check(message.subject(), before_was_no_route(before, message))
            .await
        {
            Ok(()) => connection.main.subject(message.subject().as_str()),
            Err(error) => return Step::Ended(Published::Rejected(error)),
        },
        Target::Subscription(subscription) => {
            if let Err(error) = connection.coverage.check_subscription(subscription).await {
                return Step::Ended(Published::Rejected(error));
            }
            names::retry_subject(&names::subscription(subscription)).into()
        }
    };
    let Ok(permit) = Arc::clone(&connection.in_flight).acquire_owned().await else {
        return Step::Ended(Published::Rejected(errors::closed()));
    };
    let reply = connection.main.expect(Some(address.clone()), Some(permit));
    let outbound = OutboundMessage {
        subject: address,
        reply: Some(reply.address().clone()),
        payload: message.payload().clone(),
        headers: wire::headers(message, sending),
    };
    match connection.main.send(outbound).await {
        Ok(()) => Step::Stored(reply),
        Err(error) => Step::Ended(Published::Rejected(error)),
    }
}

/// Whether the same subject was just found to be stored by nobody: one look-up for a run of them is enough.
fn before_was_no_route(before: Option<&Step>, message: &Message) -> bool {
    let Some(Step::Ended(Published::Rejected(error))) = before else {
        return false;
    };
    error.kind() == ErrorKind::NoRoute
        && error.context("subject") == Some(message.subject().as_str())
}

async fn fire(connection: &Connection, message: &Message) -> Published {
    let outbound = outbound(connection, message, Sending::default());
    match connection.main.send(outbound).await {
        Ok(()) => Published::Accepted(Receipt::new()),
        Err(error) => Published::Rejected(error),
    }
}

fn outbound(connection: &Connection, message: &Message, sending: Sending<'_>) -> OutboundMessage {
    OutboundMessage {
        subject: connection.main.subject(message.subject().as_str()),
        reply: None,
        payload: message.payload().clone(),
        headers: wire::headers(message, sending),
    }
}

/// What a stream says about a message.
#[derive(Deserialize)]
struct Confirmation {
    stream: Option<String>,
    #[serde(default)]
    duplicate: bool,
    error: Option<jetstream::Error>,
}

fn confirmed(
    connection: &Connection,
    message: &Message,
    answer: Result<async_nats::Message, Lost>,
) -> Published {
    let answer = match answer {
        Ok(answer) => answer,
        Err(Lost::Disconnected) => return Published::Unknown(Lost::Disconnected.into()),
        Err(Lost::Closed) => return Published::Unknown(errors::closed()),
        Err(Lost::Denied) => {
            let error = Error::from(Lost::Denied);
            return Published::Rejected(error.with_context("subject", message.subject()));
        }
    };
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        connection.coverage.forget();
        return Published::Rejected(no_route(message.subject()));
    }
    match serde_json::from_slice(&answer.payload) {
        Ok(Confirmation {
            error: Some(error),
            stream,
            ..
        }) => {
            let error = refused(error, message.subject());
            Published::Rejected(match stream {
                Some(stream) => error.with_context("stream", stream),
                None => error,
            })
        }
        Ok(Confirmation {
            stream: Some(_),
            duplicate,
            ..
        }) => Published::Accepted(Receipt::new().with_duplicate(duplicate)),
        // A subscriber that answers events has answered first.
        Ok(_) | Err(_) => {
            let text = "somebody who is no stream answered the publish; events and calls need subjects of their own";
            let error = Error::new(ErrorKind::OutcomeUnknown, text);
            Published::Unknown(error.with_context("subject", message.subject()))
        }
    }
}

fn refused(error: jetstream::Error, subject: &Subject) -> Error {
    let text = error.to_string();
    let (kind, remedy) = match error.error_code() {
        jetstream::ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => {
            (ErrorKind::TooLarge, "raise max_msg_size of the stream")
        }
        jetstream::ErrorCode::INSUFFICIENT_RESOURCES
        | jetstream::ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | jetstream::ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => {
            (ErrorKind::Overloaded, "give JetStream more room")
        }
        // `maximum bytes exceeded`, `maximum messages exceeded`: a stream that discards what is new.
        _ if text.contains("maximum") => (
            ErrorKind::Overloaded,
            "the stream is full: add consumers, shorten the retention, or raise max_bytes",
        ),
        jetstream::ErrorCode::CLUSTER_NOT_AVAILABLE => {
            (ErrorKind::Unavailable, "the cluster elects a leader")
        }
        _ => (ErrorKind::Rejected, "look at the stream's configuration"),
    };
    Error::new(
        kind,
        format!("the stream refused the message: {text}; {remedy}"),
    )
    .with_context("subject", subject)
    .with_source(error)
}

fn unconfirmed(connection: &Connection) -> Published {
    // A stream that is gone does not say so where core subscribers listen.
    connection.coverage.forget();
    let text = "nothing was confirmed by the deadline; the message may be stored";
    Published::Unknown(Error::new(ErrorKind::OutcomeUnknown, text))
}

fn not_sent(connection: &Connection) -> Error {
    match connection.main.is_connected() {
        true => Error::new(
            ErrorKind::Overloaded,
            "too much was in flight until the deadline; publish less at once, or raise max_in_flight",
        ),
        false => Error::new(
            ErrorKind::Unavailable,
            "the NATS server could not be reached by the deadline",
        ),
    }
}

fn nothing_stored(message: &Message) -> Error {
    let text = "core NATS stores nothing: no at-least-once event, none for later, none for one subscription; set delivery = \"at_most_once\", or use JetStream";
    Error::new(ErrorKind::Unsupported, text).with_context("subject", message.subject())
}

pub(crate) fn too_large(connection: &Connection, message: &Message) -> Option<Error> {
    let (size, limit) = (message.payload().len(), connection.max_payload());
    (size > limit).then(|| {
        let text = format!(
            "the payload has {size} bytes, this NATS takes {limit}; raise max_payload here and on the server, or send a reference to it"
        );
        Error::new(ErrorKind::TooLarge, text).with_context("subject", message.subject())
    })
}
