//! Calls: a topic of requests for each pattern, shared by all who answer it, and a topic of replies for each app.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anywire::pattern::Progress;
use anywire::pattern::request_reply::Requester;
use anywire::{Error, ErrorKind, Message, Subject};
use rdkafka::error::RDKafkaErrorCode as Code;

use crate::errors;
use crate::publisher::{record, too_large};
use crate::replies::replies;
use crate::transport::Connection;
use crate::window::{Report, Tally};
use crate::wire::Sending;

/// How soon it is tried again where nothing more may be under way.
const AGAIN: Duration = Duration::from_millis(1);

/// The role that calls.
#[derive(Debug)]
pub(crate) struct KafkaRequester {
    connection: Arc<Connection>,
}

impl KafkaRequester {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Requester for KafkaRequester {
    fn request(&self, message: Message, deadline: Instant) -> Progress<Result<Message, Error>> {
        let connection = Arc::clone(&self.connection);
        if let Err(error) = connection.check_open() {
            return Progress::Done(Err(error));
        }
        if let Some(error) = too_large(&connection, &message) {
            return Progress::Done(Err(error));
        }
        let clock = Arc::clone(&connection.settings.clock);
        let message = match message.deadline() {
            Some(_) => message,
            None => {
                let left = deadline.saturating_duration_since(clock.now());
                message.with_deadline(left)
            }
        };
        Progress::pending(async move {
            tokio::select! {
                answer = call(&connection, &message) => answer,
                () = clock.sleep_until(deadline) => Err(late(&message)),
            }
        })
    }
}

async fn call(connection: &Arc<Connection>, message: &Message) -> Result<Message, Error> {
    let subject = message.subject();
    let topic = match connection.catalog.calls_to(subject) {
        Some(topic) => topic,
        None => {
            connection.catalog.look().await?;
            let topic = connection.catalog.calls_to(subject);
            topic.ok_or_else(|| nobody(subject))?
        }
    };
    let replies = replies(connection).await?;
    if !connection.catalog.has(&replies.topic) {
        // Somebody has deleted it. Nobody answers to where nothing is.
        let catalog = &connection.catalog;
        catalog.create(&replies.topic, &catalog.brief()).await?;
    }
    let mut waiting = replies.expect(subject);
    let sending = Sending {
        subject: Some(subject),
        reply: Some(&waiting.address),
        ..Sending::default()
    };
    let sent = send(connection, &topic, message, sending, None).await?;
    tokio::select! {
        biased;
        answer = &mut waiting.answer => answer.map_err(|_| errors::closed()),
        error = failed(connection, sent, subject) => {
            connection.catalog.forget(&topic);
            Err(error)
        }
    }
}

/// Ends where the brokers do not take a request. For one that they took, or may have taken, the reply or the deadline is waited for.
async fn failed(connection: &Connection, sent: Arc<Tally>, subject: &Subject) -> Error {
    std::future::poll_fn(|cx| sent.poll(cx)).await;
    match sent.report(0) {
        Report::Failed(code) if errors::is_definite(code) => {
            errors::refused(code, subject, connection.settings.config.max_payload)
        }
        Report::Failed(_) | Report::Unsent | Report::Sent | Report::Stored => {
            std::future::pending().await
        }
    }
}

/// Hands one message over that nobody waits for, if there is room for it now.
pub(crate) fn send_by_the_way(
    connection: &Connection,
    topic: &str,
    message: &Message,
    sending: Sending<'_>,
    partition: Option<i32>,
) -> bool {
    let window = &connection.producer.window;
    let Some(number) = window.enter(None, message.byte_len()) else {
        return false;
    };
    let mut record = record(topic, message, sending, number);
    record.partition = partition;
    let sent = connection.producer.current().send(record).is_ok();
    if !sent {
        window.leave(number);
    }
    sent
}

/// Hands one message over, waiting for room.
pub(crate) async fn send(
    connection: &Connection,
    topic: &str,
    message: &Message,
    sending: Sending<'_>,
    partition: Option<i32>,
) -> Result<Arc<Tally>, Error> {
    let clock = &connection.settings.clock;
    let window = &connection.producer.window;
    let tally = Arc::new(Tally::new(1));
    loop {
        connection.check_open()?;
        let who = Some((Arc::clone(&tally), 0));
        let Some(number) = window.enter(who, message.byte_len()) else {
            window.wait(message.byte_len()).await;
            continue;
        };
        tally.begin(0);
        let mut record = record(topic, message, sending, number);
        record.partition = partition;
        let native = connection.producer.current();
        let Err(code) = native.send(record) else {
            return Ok(tally);
        };
        window.leave(number);
        tally.take_back(0);
        match code {
            Code::QueueFull => clock.sleep_until(clock.now() + AGAIN).await,
            Code::Fatal | Code::PurgeQueue => connection.producer.renew(&native)?,
            code => {
                let limit = connection.settings.config.max_payload;
                return Err(errors::refused(code, message.subject(), limit));
            }
        }
    }
}

/// The error for a call that nobody serves.
fn nobody(subject: &Subject) -> Error {
    let message = "nobody answers this subject; start its handler first";
    Error::new(ErrorKind::NoRoute, message).with_context("subject", subject)
}

pub(crate) fn late(message: &Message) -> Error {
    let text = "no reply came by the deadline; allow more time, or look at the handler";
    Error::new(ErrorKind::Timeout, text).with_context("subject", message.subject())
}
