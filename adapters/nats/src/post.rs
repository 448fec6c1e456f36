//! The frames of streaming calls: from inbox to inbox on core NATS, beside the inbox of replies.

use std::fmt;
use std::sync::{Arc, Weak};

use anywire::pattern::Progress;
use anywire::pattern::streaming::{Mailbox, Post};
use anywire::{Error, ErrorKind, Message};
use async_nats::message::OutboundMessage;
use async_trait::async_trait;
use futures::StreamExt;
use smol_str::SmolStr;
use tokio::task::AbortHandle;

use crate::calls::may_answer;
use crate::errors;
use crate::link::Handed;
use crate::publisher::too_large;
use crate::transport::Connection;
use crate::wire;

/// Carries frames.
pub(crate) struct NatsPost {
    connection: Arc<Connection>,
    listening: parking_lot::Mutex<Option<AbortHandle>>,
}

impl NatsPost {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self {
            connection,
            listening: parking_lot::Mutex::default(),
        }
    }
}

#[async_trait]
impl Post for NatsPost {
    async fn open(&self, mailbox: Weak<dyn Mailbox>) -> Result<SmolStr, Error> {
        let connection = &self.connection;
        connection.check_open()?;
        let client = connection.main.client();
        let inbox = client.new_inbox();
        let subscribed = client.subscribe(format!("{inbox}.*")).await;
        let mut frames = subscribed.map_err(errors::disconnected)?;
        // The server has seen the subscription before anybody is told of it.
        connection.main.echo().await?;
        let (clock, prefix) = (Arc::clone(&connection.clock), inbox.len() + 1);
        let listening = tokio::spawn(async move {
            while let Some(frame) = frames.next().await {
                let Some(mailbox) = mailbox.upgrade() else {
                    return;
                };
                // The stream is the address' last token.
                let stream = frame.subject.get(prefix..).map(SmolStr::new);
                let headers = frame.headers.as_ref();
                let read = wire::read(&frame.subject, frame.payload, headers, None, &*clock);
                mailbox.deliver(read.message.with_correlation_id(stream.unwrap_or_default()));
            }
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.lost();
            }
        });
        *self.listening.lock() = Some(listening.abort_handle());
        Ok(inbox.into())
    }

    fn send(&self, address: &str, frame: Message) -> Progress<Result<(), Error>> {
        let connection = &self.connection;
        if let Err(error) = connection.check_open() {
            return Progress::Done(Err(error));
        }
        if !connection.main.is_connected() {
            // Later it would be one that nobody waits for.
            return Progress::Done(Err(lost()));
        }
        if !may_answer(&connection.config.inbox_prefix, address) {
            return Progress::Done(Err(no_inbox()));
        }
        if let Some(error) = too_large(connection, &frame) {
            return Progress::Done(Err(error));
        }
        let stream = frame.correlation_id().unwrap_or_default();
        let outbound = OutboundMessage {
            subject: format!("{address}.{stream}").into(),
            reply: None,
            payload: frame.payload().clone(),
            headers: wire::frame_headers(&frame),
        };
        match connection.main.send_now(outbound) {
            Handed::Over(sent) => Progress::Done(sent),
            Handed::Back(outbound) => {
                let connection = Arc::clone(connection);
                Progress::pending(async move { connection.main.send(*outbound).await })
            }
        }
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Disconnected, "the connection to NATS is lost")
}

fn no_inbox() -> Error {
    Error::new(
        ErrorKind::Denied,
        "the stream names an address that is no inbox; its frames go to inboxes alone",
    )
}

impl Drop for NatsPost {
    fn drop(&mut self) {
        if let Some(listening) = self.listening.lock().take() {
            listening.abort();
        }
    }
}

impl fmt::Debug for NatsPost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsPost").finish_non_exhaustive()
    }
}
