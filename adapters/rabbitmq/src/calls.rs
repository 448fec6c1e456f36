//! Making calls: to the exchange of calls, answered by direct reply-to on the channel that published them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anywire::pattern::Progress;
use anywire::pattern::request_reply::Requester;
use anywire::{Error, ErrorKind, Message, Subject};
use futures::StreamExt;
use futures::future::BoxFuture;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::oneshot;

use crate::errors;
use crate::parcel::{Parcel, Sent, Ticket};
use crate::publisher::check_size;
use crate::transport::Connection;
use crate::wire::{self, CALL, Origin, Sending};

/// The address that stands for the channel itself.
pub(crate) const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The calls that wait for their replies.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<Waiters>);

#[derive(Debug, Default)]
struct Waiters {
    calls: Slab<Waiter>,
    /// Counts the channels that calls were made on.
    channels: u64,
}

#[derive(Debug)]
struct Waiter {
    nonce: u64,
    /// The last channel when the call began.
    channel: u64,
    reply: oneshot::Sender<Delivery>,
}

/// A call that waits. Dropping it gives it up.
struct Call {
    waiting: Arc<Waiting>,
    slot: usize,
    nonce: u64,
    reply: oneshot::Receiver<Delivery>,
}

impl Waiting {
    fn begin(self: &Arc<Self>) -> Call {
        let (sender, reply) = oneshot::channel();
        // Not to be guessed: a reply that is late or forged reaches nobody.
        let nonce = rand::random();
        let mut waiting = self.0.lock();
        let channel = waiting.channels;
        let slot = waiting.calls.insert(Waiter {
            nonce,
            channel,
            reply: sender,
        });
        drop(waiting);
        Call {
            waiting: Arc::clone(self),
            slot,
            nonce,
            reply,
        }
    }

    fn end(&self, delivery: Delivery) {
        let id = delivery.properties.correlation_id();
        let waiter = id.as_ref().and_then(|id| {
            let (slot, nonce) = id.as_str().strip_prefix(CALL)?.split_once('-')?;
            let slot = slot.parse().ok()?;
            let nonce = u64::from_str_radix(nonce, 16).ok()?;
            self.0.lock().take(slot, nonce)
        });
        match waiter {
            // A caller that has given up meanwhile is as good as none.
            Some(waiter) => drop(waiter.reply.send(delivery)),
            None => metrics::counter!("anywire.rabbitmq.stray_replies").increment(1),
        }
    }

    /// No reply will come on a channel that is gone. Those of the next one are waited for.
    fn give_up(&self, channel: u64) {
        let mut waiting = self.0.lock();
        waiting.calls.retain(|_, waiter| waiter.channel > channel);
    }

    /// What is done on each channel that calls are made on: replies come to it.
    pub(crate) async fn listen(self: Arc<Self>, channel: Channel) -> Result<(), Error> {
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let replies =
            channel.basic_consume(REPLY_TO.into(), "".into(), options, FieldTable::default());
        let mut replies = replies.await.map_err(errors::operation)?;
        let number = {
            let mut waiting = self.0.lock();
            waiting.channels += 1;
            waiting.channels
        };
        tokio::spawn(async move {
            while let Some(Ok(reply)) = replies.next().await {
                self.end(reply);
            }
            self.give_up(number);
        });
        Ok(())
    }
}

impl Waiters {
    fn take(&mut self, slot: usize, nonce: u64) -> Option<Waiter> {
        self.calls
            .get(slot)
            .filter(|waiter| waiter.nonce == nonce)?;
        self.calls.try_remove(slot)
    }
}

impl Call {
    fn id(&self) -> String {
        format!("{CALL}{}-{:016x}", self.slot, self.nonce)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let waiter = self.waiting.0.lock().take(self.slot, self.nonce);
        drop(waiter);
    }
}

/// Prepares a channel for calls.
pub(crate) fn prepare(
    waiting: &Arc<Waiting>,
    channel: Channel,
) -> BoxFuture<'static, Result<(), Error>> {
    Box::pin(Arc::clone(waiting).listen(channel))
}

/// The role that calls.
#[derive(Debug)]
pub(crate) struct RabbitmqRequester {
    connection: Arc<Connection>,
}

impl RabbitmqRequester {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Requester for RabbitmqRequester {
    fn request(&self, message: Message, deadline: Instant) -> Progress<Result<Message, Error>> {
        let connection = Arc::clone(&self.connection);
        let checked = connection.check_open();
        if let Err(error) = checked.and_then(|()| check_size(&connection, &message)) {
            return Progress::Done(Err(error));
        }
        let left = deadline.saturating_duration_since(connection.clock.now());
        let message = match message.deadline() {
            Some(_) => message,
            None => message.with_deadline(left),
        };
        Progress::pending(async move {
            tokio::select! {
                answer = call(&connection, &message, left) => answer,
                () = connection.clock.sleep_until(deadline) => Err(late(&message)),
            }
        })
    }
}

async fn call(
    connection: &Connection,
    message: &Message,
    left: Duration,
) -> Result<Message, Error> {
    let mut call = connection.waiting.begin();
    let sending = Sending {
        is_call: true,
        priority: connection.config.priority,
        ..Sending::default()
    };
    // A call that nobody takes in time is of no use to anybody.
    let expiration = left.as_millis().clamp(1, u128::from(u32::MAX));
    let properties = wire::properties(message, sending)?
        .with_correlation_id(call.id().into())
        .with_reply_to(REPLY_TO.into())
        .with_expiration(expiration.to_string().into());
    let parcel = Parcel {
        exchange: connection.topology.names.calls_exchange().into(),
        key: wire::short(message.subject().as_str(), "subject")?,
        properties,
        payload: message.payload().clone(),
        mandatory: true,
    };
    let ticket = Arc::new(Ticket::new(1));
    let sent = connection.calls.send(parcel, &ticket, 0).await;
    sent.map_err(|sent| not_sent(sent, message.subject()))?;
    let reply = tokio::select! {
        biased;
        reply = &mut call.reply => reply,
        () = ticket.settled() => {
            for sent in ticket.take().into_iter().flatten() {
                if !matches!(sent, Sent::Confirmed) {
                    return Err(not_sent(sent, message.subject()));
                }
            }
            (&mut call.reply).await
        }
    };
    let reply =
        reply.map_err(|_| errors::disconnected().with_context("subject", message.subject()))?;
    let origin = Origin {
        key: "",
        direct: true,
        fallback: Some(message.subject()),
    };
    let read = wire::read(origin, reply.data.into(), &reply.properties);
    Ok(read.message.with_subject(message.subject().clone()))
}

/// The error for a call that did not reach anybody.
fn not_sent(sent: Sent, subject: &Subject) -> Error {
    let error = match sent {
        Sent::Returned => {
            let message = "nobody answers this subject; start its handler first";
            Error::new(ErrorKind::NoRoute, message)
        }
        Sent::Refused(error) => error,
        Sent::Unknown(_) | Sent::Confirmed => errors::disconnected(),
    };
    error.with_context("subject", subject)
}

fn late(message: &Message) -> Error {
    let text = "no reply came by the deadline; allow more time, or look at the handler";
    Error::new(ErrorKind::Timeout, text).with_context("subject", message.subject())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use futures::FutureExt;

    #[test]
    fn the_end_of_a_channel_ends_its_calls_and_no_later_ones() {
        let waiting = Arc::new(Waiting::default());
        waiting.0.lock().channels = 1;
        let mut first = waiting.begin();
        waiting.0.lock().channels = 2;
        let mut second = waiting.begin();
        waiting.give_up(1);
        assert!((&mut first.reply).now_or_never().unwrap().is_err());
        assert!((&mut second.reply).now_or_never().is_none());
        drop((first, second));
        assert!(waiting.0.lock().calls.is_empty());
    }
}
