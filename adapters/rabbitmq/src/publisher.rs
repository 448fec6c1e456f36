//! Publishing: to the exchange, to the queue of one subscription, and for later.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anywire::pattern::Progress;
use anywire::pattern::publish_subscribe::{
    Entry, Guarantee, PublishBatch, Published, Publisher, Receipt, Target, no_route,
};
use anywire::{Error, ErrorKind, Message};

use crate::errors;
use crate::outlet::Outlet;
use crate::parcel::{Parcel, Sent, Ticket};
use crate::transport::Connection;
use crate::wire::{self, Sending};

/// The role that publishes.
#[derive(Debug)]
pub(crate) struct RabbitmqPublisher {
    connection: Arc<Connection>,
}

impl RabbitmqPublisher {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Publisher for RabbitmqPublisher {
    fn publish(&self, mut batch: PublishBatch) -> Progress<PublishBatch> {
        if self.connection.is_closed() {
            batch.record_rest(|| Published::Rejected(errors::closed()));
            return Progress::Done(batch);
        }
        if batch.is_empty() {
            return Progress::Done(batch);
        }
        Progress::pending(publish(Arc::clone(&self.connection), batch))
    }
}

async fn publish(connection: Arc<Connection>, mut batch: PublishBatch) -> PublishBatch {
    let deadline = connection.clock.now() + batch.timeout();
    let mut timer = connection.clock.sleep_until(deadline);
    let ticket = Arc::new(Ticket::default());
    // What is known about each entry, in their order.
    let mut known: Vec<Option<Sent>> = Vec::with_capacity(batch.len());
    let sending = async {
        for (index, entry) in batch.entries().iter().enumerate() {
            // An entry that was not handed over has its fate already.
            known.push(hand_over(&connection, entry, &ticket, index).await.err());
        }
        ticket.settled().await;
    };
    tokio::select! {
        () = sending => {}
        () = &mut timer => {}
    }
    for (index, sent) in ticket.take() {
        if let Some(entry) = known.get_mut(index) {
            *entry = Some(sent);
        }
    }
    for (index, sent) in known.into_iter().enumerate() {
        let outcome = outcome(&connection, &batch.entries()[index], sent);
        batch.record(outcome);
    }
    // What was not sent by the deadline never will be.
    batch.record_rest(|| Published::Rejected(connection.outlet.waits_for()));
    batch
}

/// Hands an entry to its channel.
///
/// # Errors
/// What became of one that was not.
async fn hand_over(
    connection: &Connection,
    entry: &Entry,
    ticket: &Arc<Ticket>,
    index: usize,
) -> Result<(), Sent> {
    loop {
        let sent = async {
            let (outlet, parcel) = prepare(connection, entry).await.map_err(Sent::Refused)?;
            outlet.send(parcel, ticket, index).await
        };
        match sent.await {
            // Nothing was sent; the link waits for the next connection.
            Err(Sent::Refused(error)) if error.kind() == ErrorKind::Disconnected => {
                tokio::task::yield_now().await;
            }
            sent => return sent,
        }
    }
}

async fn prepare<'a>(
    connection: &'a Connection,
    entry: &Entry,
) -> Result<(&'a Outlet, Parcel), Error> {
    let Entry {
        message,
        target,
        not_before,
        guarantee,
    } = entry;
    check_size(connection, message)?;
    let now = connection.clock.now();
    let delay = not_before.filter(|due| *due > now).map(|due| due - now);
    let names = &connection.topology.names;
    let topology = &connection.topology;
    let stored =
        *guarantee == Guarantee::AtLeastOnce || *target != Target::Subject || delay.is_some();
    let sending = Sending {
        persistent: stored,
        priority: connection.config.priority,
        subject: (*target != Target::Subject).then_some(message.subject()),
        is_call: false,
    };
    let (exchange, key) = match (target, delay) {
        (Target::Subject, None) => (names.exchange().to_owned(), message.subject().to_string()),
        (Target::Subject, Some(delay)) => {
            let declaring = topology.ensure_delay(&connection.main, delay);
            let exchange = connection.main.while_live(declaring).await?;
            (exchange, message.subject().to_string())
        }
        (Target::Subscription(subscription), None) => {
            (String::new(), names.subscription(subscription))
        }
        (Target::Subscription(subscription), Some(delay)) => {
            let queue = names.subscription(subscription);
            let waiting = topology.ensure_delay_for(&connection.main, &queue, delay);
            (String::new(), connection.main.while_live(waiting).await?)
        }
    };
    let parcel = Parcel {
        exchange: exchange.into(),
        key: wire::short(key, "subject")?,
        properties: wire::properties(message, sending)?,
        payload: message.payload().clone(),
        mandatory: stored,
    };
    let outlet = match stored {
        true => &connection.outlet,
        false => &connection.air,
    };
    Ok((outlet, parcel))
}

fn outcome(connection: &Connection, entry: &Entry, sent: Option<Sent>) -> Published {
    let subject = entry.message.subject();
    match sent {
        Some(Sent::Confirmed) => Published::Accepted(Receipt::new()),
        // Nobody asked whether anybody takes it.
        Some(Sent::Returned) if entry.guarantee == Guarantee::AtMostOnce => {
            Published::Accepted(Receipt::new())
        }
        Some(Sent::Returned) => {
            if entry.not_before.is_some() {
                connection.topology.forget_delays();
            }
            Published::Rejected(no_route(subject))
        }
        Some(Sent::Refused(error)) => Published::Rejected(error.with_context("subject", subject)),
        Some(Sent::Unknown(error)) => Published::Unknown(error.with_context("subject", subject)),
        None => Published::Unknown(Error::new(
            ErrorKind::OutcomeUnknown,
            "nothing was confirmed by the deadline; the message may be stored",
        )),
    }
}

/// # Errors
/// `TooLarge`: the broker would close the channel, and with it the publishes of others.
pub(crate) fn check_size(connection: &Connection, message: &Message) -> Result<(), Error> {
    let most = connection.max_size.load(Ordering::Relaxed);
    match message.payload().len() {
        size if size > most => {
            Err(errors::too_large(size, most).with_context("subject", message.subject()))
        }
        _ => Ok(()),
    }
}
