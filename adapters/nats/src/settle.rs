//! Settling what JetStream delivered: acknowledgements, pipelined, and confirmed together.

use std::sync::Arc;
use std::time::Duration;

use anywire::clock::Sleep;
use anywire::pattern::publish_subscribe::{Settle, SettleBatch, Settlement};
use anywire::pattern::{Progress, Tag};
use anywire::{Error, ErrorKind};
use async_nats::Subject;
use async_nats::message::OutboundMessage;
use bytes::Bytes;

use crate::errors;
use crate::intake::Shared;
use crate::link::{Handed, Link, Lost, Reply};

const ACK: Bytes = Bytes::from_static(b"+ACK");
pub(crate) const NAK: Bytes = Bytes::from_static(b"-NAK");
pub(crate) const IN_PROGRESS: Bytes = Bytes::from_static(b"+WPI");

/// A return that comes again after `delay`.
pub(crate) fn nak_after(delay: Duration) -> Bytes {
    // A delay of nothing would be an immediate return.
    let nanos = delay.as_nanos().max(1);
    format!(r#"-NAK {{"delay":{nanos}}}"#).into()
}

pub(crate) fn message(address: Subject, payload: Bytes) -> OutboundMessage {
    OutboundMessage {
        subject: address,
        reply: None,
        payload,
        headers: None,
    }
}

/// Sends a word about a delivery, if that needs no waiting; else the server's own time limit does its work.
pub(crate) fn send(link: &Link, address: Subject, payload: Bytes) {
    let _ = link.send_now(message(address, payload));
}

impl Settle for Shared {
    fn settle(&self, mut batch: SettleBatch) -> Progress<SettleBatch> {
        let epoch = self.link.epoch();
        let words = self.words(&mut batch);
        if words.is_empty() {
            return Progress::Done(batch);
        }
        // Handed over here and now as far as there is room: what waits for it may be polled late.
        let confirm = self.connection.config.confirm_acks;
        let mut sent = Vec::with_capacity(words.len());
        for (index, mut word) in words {
            let reply = confirm.then(|| self.link.expect_now());
            word.reply = reply.as_ref().map(|reply| reply.address().clone());
            let left = match self.link.send_now(word) {
                Handed::Over(Ok(())) => None,
                Handed::Over(Err(error)) => {
                    batch.fail(index, error);
                    continue;
                }
                Handed::Back(word) => Some(word),
            };
            sent.push(Sent { index, reply, left });
        }
        let clock = Arc::clone(&self.connection.clock);
        // Later the server has given the deliveries to somebody else.
        let deadline = clock.now() + self.connection.config.ack_wait;
        let (link, timer) = (Arc::clone(&self.link), clock.sleep_until(deadline));
        Progress::pending(confirm_all(link, epoch, batch, sent, timer))
    }
}

impl Shared {
    /// What to tell the server about each delivery, with its index in the batch.
    fn words(&self, batch: &mut SettleBatch) -> Vec<(usize, OutboundMessage)> {
        let items: Vec<(Tag, Settlement)> = batch.items().to_vec();
        let mut words = Vec::with_capacity(items.len());
        let mut ledger = self.ledger.lock();
        for (index, (tag, settlement)) in items.into_iter().enumerate() {
            if self.connection.is_closed() && !ledger.holds(tag) {
                batch.fail(index, errors::closed());
                continue;
            }
            if !ledger.holds(tag) {
                batch.fail(index, stale());
                continue;
            }
            if !self.link.is_connected() {
                // It stays ours until there is a connection to give it back on.
                batch.fail(index, Lost::Disconnected.into());
                continue;
            }
            let Some(arrived) = ledger.settle(tag) else {
                continue;
            };
            let payload = match settlement {
                Settlement::Ack => ACK,
                Settlement::Return if self.keeps_order() && !ledger.is_closed() => {
                    // On the server it would wait behind those that were asked for already.
                    ledger.put_back(arrived);
                    continue;
                }
                Settlement::Return => NAK,
                Settlement::ReturnAfter(delay) => nak_after(delay),
            };
            words.push((index, message(arrived.address, payload)));
        }
        let waker = ledger.take_waker();
        drop(ledger);
        if let Some(waker) = waker {
            waker.wake();
        }
        words
    }
}

/// A word about a delivery that is under way.
struct Sent {
    /// Which of the batch it is about.
    index: usize,
    /// What the consumer itself answers, where that is wanted.
    reply: Option<Reply>,
    /// The word, where there was no room for it.
    left: Option<Box<OutboundMessage>>,
}

/// Sends what had no room, and waits until the server has seen it all: each consumer for itself where that is wanted,
/// else by a round trip that many share.
async fn confirm_all(
    link: Arc<Link>,
    epoch: u64,
    mut batch: SettleBatch,
    sent: Vec<Sent>,
    mut timer: Sleep,
) -> SettleBatch {
    let mut unseen = Vec::with_capacity(sent.len());
    for Sent { index, reply, left } in sent {
        let confirming = async {
            if let Some(word) = left {
                link.send(*word).await?;
            }
            match reply {
                Some(reply) => reply.await.map(|_| true).map_err(Error::from),
                None => Ok(false),
            }
        };
        let confirmed = tokio::select! {
            confirmed = confirming => confirmed,
            () = &mut timer => Err(late()),
        };
        match confirmed {
            Ok(true) => {}
            Ok(false) => unseen.push(index),
            Err(error) => batch.fail(index, error),
        }
    }
    if unseen.is_empty() {
        return batch;
    }
    let seen = tokio::select! {
        seen = link.echo_for_all(epoch) => seen,
        () = timer => Err(late()),
    };
    if let Err(error) = seen {
        for index in unseen {
            batch.fail(index, Error::new(error.kind(), error.to_string()));
        }
    }
    batch
}

fn late() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the server did not confirm the settlement in time; the delivery may come again",
    )
}

fn stale() -> Error {
    Error::new(
        ErrorKind::Stale,
        "the delivery is not ours any more: it was settled before, or its connection was lost; it may come again",
    )
}
