//! The frames of streaming calls: from inbox to inbox, each an exclusive queue of its client.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anywire::clock::Clock;
use anywire::pattern::Progress;
use anywire::pattern::streaming::{Mailbox, Post};
use anywire::{Error, ErrorKind, Message};
use async_trait::async_trait;
use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use parking_lot::Mutex;
use smol_str::SmolStr;
use tokio::task::AbortHandle;

use crate::errors;
use crate::link::Link;
use crate::names::Names;
use crate::parcel::{Parcel, Sent, Ticket};
use crate::publisher::check_size;
use crate::transport::Connection;
use crate::wire::{self, Origin, Sending};

/// Between two attempts to open the inbox again.
const PAUSE: Duration = Duration::from_millis(200);

/// Carries frames.
pub(crate) struct RabbitmqPost {
    connection: Arc<Connection>,
    listening: Mutex<Option<AbortHandle>>,
}

impl RabbitmqPost {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self {
            connection,
            listening: Mutex::default(),
        }
    }

    fn parcel(&self, address: &str, frame: &Message) -> Result<Parcel, Error> {
        let connection = &self.connection;
        connection.check_open()?;
        if !connection.main.is_connected() {
            // Later it would be one that nobody waits for.
            return Err(errors::disconnected());
        }
        if !Names::is_inbox(address) {
            return Err(no_inbox());
        }
        check_size(connection, frame)?;
        Ok(Parcel {
            exchange: ShortString::default(),
            key: wire::short(address, "stream's address")?,
            properties: wire::properties(frame, Sending::default())?,
            payload: frame.payload().clone(),
            mandatory: false,
        })
    }
}

#[async_trait]
impl Post for RabbitmqPost {
    async fn open(&self, mailbox: Weak<dyn Mailbox>) -> Result<SmolStr, Error> {
        let connection = &self.connection;
        connection.check_open()?;
        let queue = connection.topology.names.inbox(rand::random());
        let opened = open(&connection.main, &queue).await?;
        let listening = listen(
            Arc::clone(&connection.main),
            Arc::clone(&connection.clock),
            queue.clone(),
            opened,
            mailbox,
        );
        *self.listening.lock() = Some(tokio::spawn(listening).abort_handle());
        Ok(queue.into())
    }

    fn send(&self, address: &str, frame: Message) -> Progress<Result<(), Error>> {
        // Nobody looks at its ticket: what is lost is missed by its number.
        let ticket = Arc::new(Ticket::new(1));
        let at_once = self
            .parcel(address, &frame)
            .map(|parcel| self.connection.air.try_send(parcel, &ticket, 0));
        match at_once {
            Err(error) => return Progress::Done(Err(error)),
            Ok(Some(sent)) => return Progress::Done(sent.map_err(why)),
            // Something has to be waited for.
            Ok(None) => {}
        }
        match self.parcel(address, &frame) {
            Err(error) => Progress::Done(Err(error)),
            Ok(parcel) => {
                let connection = Arc::clone(&self.connection);
                Progress::pending(async move {
                    let sent = connection.air.send(parcel, &ticket, 0).await;
                    sent.map_err(why)
                })
            }
        }
    }
}

fn why(sent: Sent) -> Error {
    match sent {
        Sent::Refused(error) | Sent::Unknown(error) => error,
        Sent::Returned | Sent::Confirmed => errors::disconnected(),
    }
}

/// The inbox, with a consumer of its own. It goes with its connection, and the next one has another of the same name.
async fn open(link: &Link, queue: &str) -> Result<(Channel, Consumer), Error> {
    link.while_live(async {
        let channel = link.channel().await?;
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default());
        declared.await.map_err(errors::operation)?;
        let options = BasicConsumeOptions {
            no_ack: true,
            exclusive: true,
            ..BasicConsumeOptions::default()
        };
        let consumer =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let consumer = consumer.await.map_err(errors::operation)?;
        Ok((channel, consumer))
    })
    .await
}

/// Hands on what arrives, until the transport is closed or nobody has streams any more.
async fn listen(
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
    queue: String,
    opened: (Channel, Consumer),
    mailbox: Weak<dyn Mailbox>,
) {
    let mut opened = Some(opened);
    loop {
        if let Some((channel, mut frames)) = opened.take() {
            let epoch = link.epoch();
            let over = link.end_of(epoch);
            tokio::pin!(over);
            loop {
                let next = tokio::select! {
                    biased;
                    frame = frames.next() => frame,
                    () = &mut over => None,
                };
                let Some(mailbox) = mailbox.upgrade() else {
                    return;
                };
                match next {
                    Some(Ok(frame)) => mailbox.deliver(read(frame)),
                    Some(Err(_)) | None => {
                        mailbox.lost();
                        break;
                    }
                }
            }
            drop(channel);
        }
        if mailbox.strong_count() == 0 {
            return;
        }
        match open(&link, &queue).await {
            Ok(again) => opened = Some(again),
            Err(error) if error.kind() == ErrorKind::Closed => return,
            Err(error) => {
                tracing::debug!(queue, %error, "the inbox of streams cannot be opened yet");
                clock.sleep_until(clock.now() + PAUSE).await;
            }
        }
    }
}

fn read(frame: Delivery) -> Message {
    let origin = Origin {
        key: frame.routing_key.as_str(),
        direct: true,
        fallback: None,
    };
    wire::read(origin, frame.data.into(), &frame.properties).message
}

fn no_inbox() -> Error {
    Error::new(
        ErrorKind::Denied,
        "the stream names an address that is no inbox; its frames go to inboxes alone",
    )
}

impl Drop for RabbitmqPost {
    fn drop(&mut self) {
        if let Some(listening) = self.listening.lock().take() {
            listening.abort();
        }
    }
}

impl fmt::Debug for RabbitmqPost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitmqPost").finish_non_exhaustive()
    }
}
