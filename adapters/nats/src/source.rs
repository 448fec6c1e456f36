//! The messages of one consumer: how many are asked for, and what the server says besides.
//!
//! A pull asks for so many messages and stands until they have come or its time is over. The server confirms with
//! heartbeats that it stands; without them it is taken for lost and asked for again.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anywire::Error;
use async_nats::message::OutboundMessage;
use async_nats::{StatusCode, Subject};
use futures::{FutureExt, StreamExt};

use crate::errors;
use crate::link::{Handed, Link};
use crate::topology::{Bound, PINNED_GROUP};

/// How long a pull stands.
const EXPIRES: Duration = Duration::from_secs(30);
/// How often the server says that it does.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// A pull that was silent for so long is lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(7);
/// How long the last messages of a source that ends may take.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The status of a pull that the server could not read.
const BAD_REQUEST: u16 = 400;

#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) bound: Bound,
    link: Arc<Link>,
    pull: Subject,
    inbox: Subject,
    messages: async_nats::Subscriber,
    /// How many messages were asked for and have not come.
    outstanding: usize,
    heard: Instant,
    /// What makes us the one client that a pinned consumer serves.
    pin: Option<String>,
}

/// What a source brings.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all are messages, and a box for each would be an allocation for each"
)]
pub(crate) enum Brought {
    Message(async_nats::Message),
    /// There is no such consumer, or no stream, or no JetStream.
    Gone(String),
    /// Nothing comes any more: the client was closed.
    End,
}

impl Source {
    /// Opens the inbox of a consumer. Nothing comes before it is [asked for](Self::ask).
    pub(crate) async fn open(
        link: &Arc<Link>,
        bound: Bound,
        pull: String,
        now: Instant,
    ) -> Result<Self, Error> {
        let inbox = link.client().new_inbox();
        let messages = link.client().subscribe(inbox.clone()).await;
        Ok(Self {
            bound,
            link: Arc::clone(link),
            pull: pull.into(),
            inbox: inbox.into(),
            messages: messages.map_err(errors::disconnected)?,
            outstanding: 0,
            heard: now,
            pin: None,
        })
    }

    /// How many messages may come without being asked for again.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Asks for more. `false` means that the client has no room for the request now.
    pub(crate) fn ask(&mut self, count: usize, now: Instant) -> bool {
        let (expires, heartbeat) = (EXPIRES.as_nanos(), HEARTBEAT.as_nanos());
        let pinned = match (&self.pin, self.bound.pinned) {
            (Some(pin), true) => format!(r#","group":"{PINNED_GROUP}","id":"{pin}""#),
            (None, true) => format!(r#","group":"{PINNED_GROUP}""#),
            (_, false) => String::new(),
        };
        let ask = format!(
            r#"{{"batch":{count},"expires":{expires},"idle_heartbeat":{heartbeat}{pinned}}}"#
        );
        let message = OutboundMessage {
            subject: self.pull.clone(),
            reply: Some(self.inbox.clone()),
            payload: ask.into(),
            headers: None,
        };
        if !matches!(self.link.send_now(message), Handed::Over(Ok(()))) {
            return false;
        }
        if self.outstanding == 0 {
            self.heard = now;
        }
        self.outstanding += count;
        true
    }

    /// The next message. `Pending` also after news that concern nobody else.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Brought> {
        loop {
            let Poll::Ready(next) = self.messages.poll_next_unpin(cx) else {
                return Poll::Pending;
            };
            let Some(message) = next else {
                return Poll::Ready(Brought::End);
            };
            self.heard = now;
            // A status may be stored, too; what can be settled is a message.
            let Some(status) = message.status.filter(|_| address(&message).is_none()) else {
                self.outstanding = self.outstanding.saturating_sub(1);
                if self.bound.pinned
                    && let Some(pin) = header(&message, "Nats-Pin-Id")
                {
                    self.pin = Some(pin.to_owned());
                }
                return Poll::Ready(Brought::Message(message));
            };
            if let Some(why) = self.note(status, &message) {
                return Poll::Ready(Brought::Gone(why));
            }
        }
    }

    /// Notes what the server says about a pull; tells why, where the consumer is gone.
    fn note(&mut self, status: StatusCode, message: &async_nats::Message) -> Option<String> {
        if status == StatusCode::IDLE_HEARTBEAT {
            return None;
        }
        // A pull has ended. What it did not bring, where the server says so, is not outstanding any more.
        let left = header(message, "Nats-Pending-Messages").and_then(|left| left.parse().ok());
        self.outstanding = left.map_or(0, |left: usize| self.outstanding.saturating_sub(left));
        let description = message.description.as_deref().unwrap_or_default();
        let gone = match status {
            StatusCode::PIN_ID_MISMATCH => {
                self.pin = None;
                false
            }
            StatusCode::NO_RESPONDERS => true,
            StatusCode::REQUEST_TERMINATED => {
                // Text is all that tells: `Consumer Deleted`, `Consumer is push based`.
                let description = description.to_ascii_lowercase();
                description.contains("deleted") || description.contains("push based")
            }
            status => status.as_u16() == BAD_REQUEST,
        };
        gone.then(|| format!("{status} {description}"))
    }

    /// Whether what was asked for seems to be forgotten.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.outstanding > 0 && now.saturating_duration_since(self.heard) > SILENCE
    }

    /// Starts anew: nothing is asked for.
    pub(crate) fn reset(&mut self, now: Instant) {
        self.outstanding = 0;
        self.heard = now;
        self.pin = None;
    }

    /// Whether the server serves us alone.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pin.is_some()
    }

    /// Takes no more, and gives the addresses at which what came last is settled.
    pub(crate) async fn drain(mut self) -> Vec<Subject> {
        let mut left = Vec::new();
        if self.link.is_connected() && self.messages.drain().await.is_ok() {
            let last = async {
                while let Some(message) = self.messages.next().await {
                    left.extend(address(&message));
                }
            };
            let _ = tokio::time::timeout(LAST_WORDS, last).await;
        }
        while let Some(Some(message)) = self.messages.next().now_or_never() {
            left.extend(address(&message));
        }
        left
    }
}

/// Where a message is settled. What the server says about a pull cannot be.
fn address(message: &async_nats::Message) -> Option<Subject> {
    let reply = message.reply.as_ref();
    reply.filter(|reply| reply.starts_with("$JS.ACK.")).cloned()
}

fn header<'a>(message: &'a async_nats::Message, name: &str) -> Option<&'a str> {
    let headers = message.headers.as_ref()?;
    headers.get(name).map(async_nats::HeaderValue::as_str)
}
