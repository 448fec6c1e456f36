//! The frames of streaming calls: from inbox to inbox, each the partition that its client gets replies on.

use std::fmt;
use std::sync::{Arc, Weak};

use anywire::pattern::Progress;
use anywire::pattern::streaming::{Mailbox, Post};
use anywire::{Error, ErrorKind, Message};
use async_trait::async_trait;
use smol_str::{SmolStr, ToSmolStr};

use crate::calls::{self, send_by_the_way};
use crate::publisher::too_large;
use crate::replies::replies;
use crate::server::address;
use crate::transport::Connection;
use crate::wire::{Address, Sending};

/// Carries frames.
pub(crate) struct KafkaPost {
    connection: Arc<Connection>,
}

impl KafkaPost {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

#[async_trait]
impl Post for KafkaPost {
    async fn open(&self, mailbox: Weak<dyn Mailbox>) -> Result<SmolStr, Error> {
        self.connection.check_open()?;
        let replies = replies(&self.connection).await?;
        Ok(replies.take_frames(mailbox).to_smolstr())
    }

    fn send(&self, to: &str, frame: Message) -> Progress<Result<(), Error>> {
        let connection = &self.connection;
        if let Err(error) = connection.check_open() {
            return Progress::Done(Err(error));
        }
        let Some(mut address) = address(Some(to)) else {
            return Progress::Done(Err(no_inbox()));
        };
        if let Some(error) = too_large(connection, &frame) {
            return Progress::Done(Err(error));
        }
        let stream = frame.correlation_id().unwrap_or_default();
        address.token = format!("{}.{stream}", address.token);
        if !connection.catalog.has(&address.topic) {
            let connection = Arc::clone(connection);
            return Progress::pending(async move {
                connection.catalog.look().await?;
                match connection.catalog.has(&address.topic) {
                    true => send(&connection, address, frame).wait().await,
                    false => Err(no_inbox()),
                }
            });
        }
        send(connection, address, frame)
    }
}

fn send(
    connection: &Arc<Connection>,
    address: Address,
    frame: Message,
) -> Progress<Result<(), Error>> {
    let partition = Some(address.partition);
    if send_by_the_way(connection, &address.topic, &frame, to(&address), partition) {
        return Progress::Done(Ok(()));
    }
    let connection = Arc::clone(connection);
    Progress::pending(async move {
        let sent = calls::send(&connection, &address.topic, &frame, to(&address), partition);
        sent.await.map(drop)
    })
}

fn to(address: &Address) -> Sending<'_> {
    Sending {
        token: Some(&address.token),
        ..Sending::default()
    }
}

fn no_inbox() -> Error {
    Error::new(
        ErrorKind::Denied,
        "the stream names an address that is no inbox; its frames go to topics of replies alone",
    )
}

impl fmt::Debug for KafkaPost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaPost").finish_non_exhaustive()
    }
}
