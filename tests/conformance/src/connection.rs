//! A client under test: a transport with the helpers that tests need.

use std::sync::Arc;
use std::time::Duration;

use anywire::pattern::publish_subscribe::{Entry, PublishBatch, Published, Receipt, Spec, Store};
use anywire::pattern::request_reply::CallSpec;
use anywire::transport::{Status, Transport};
use anywire::{Error, Message, Pattern, Provision};
use tokio::time::timeout;

use crate::{Calls, Streams, Subscription, Test};

/// How long a publish may take where nothing is broken.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How much later than its deadline an operation may end.
const TARDINESS: Duration = Duration::from_secs(1);
const RETENTION: Duration = Duration::from_secs(60 * 60);

/// A client, made by [`Test::connect`]. Clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    test: Test,
    transport: Arc<dyn Transport>,
}

impl Connection {
    pub(crate) fn new(test: Test, transport: Arc<dyn Transport>) -> Self {
        Self { test, transport }
    }

    /// The transport itself.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Publishes entries and gives their outcomes. None is surer than the harness' own guarantee.
    pub async fn try_publish(
        &self,
        entries: impl IntoIterator<Item = Entry>,
        timeout: Duration,
    ) -> Vec<Published> {
        let mut batch = PublishBatch::new(timeout);
        let guarantee = self.test.guarantee();
        for mut entry in entries {
            self.test.note_published(entry.message.id());
            entry.guarantee = entry.guarantee.min(guarantee);
            batch.push(entry);
        }
        let publishing = self.transport.publisher().publish(batch).wait();
        let published = tokio::time::timeout(timeout + TARDINESS, publishing).await;
        let published = published.expect("a publish ends by its deadline");
        published.into_parts().1.into_vec()
    }

    /// Publishes one entry.
    ///
    /// # Errors
    /// What it was rejected with, or why it is unknown.
    pub async fn try_send(&self, entry: Entry) -> Result<Receipt, Error> {
        let mut outcomes = self.try_publish([entry], PUBLISH_TIMEOUT).await;
        match outcomes.pop().expect("one outcome") {
            Published::Accepted(receipt) => Ok(receipt),
            Published::Rejected(error) | Published::Unknown(error) => Err(error),
        }
    }

    /// Publishes a message, which must be accepted.
    pub async fn send(&self, message: Message) {
        let sent = self.try_send(Entry::new(message)).await;
        sent.expect("the message is accepted");
    }

    /// Publishes messages in one batch; all must be accepted.
    pub async fn send_all(&self, messages: &[Message]) {
        let entries = messages.iter().cloned().map(Entry::new);
        for outcome in self.try_publish(entries, PUBLISH_TIMEOUT).await {
            assert!(
                matches!(outcome, Published::Accepted(_)),
                "the message is accepted, not {outcome:?}"
            );
        }
    }

    /// Opens a subscription.
    pub async fn subscribe(&self, spec: Spec) -> Subscription {
        let opened = self.try_subscribe(spec).await;
        opened.expect("the subscription opens")
    }

    /// Opens a subscription.
    ///
    /// # Errors
    /// What the adapter answers.
    pub async fn try_subscribe(&self, spec: Spec) -> Result<Subscription, Error> {
        let mut opened = self.subscribe_all(&[spec]).await;
        opened.pop().expect("one result")
    }

    /// Opens subscriptions in one call.
    pub async fn subscribe_all(&self, specs: &[Spec]) -> Vec<Result<Subscription, Error>> {
        let opened = self.transport.subscriber().subscribe(specs).await;
        assert_eq!(opened.len(), specs.len(), "one result for each spec");
        let wrap = |incoming: Result<_, _>| {
            incoming.map(|incoming| Subscription::new(self.test.clone(), incoming))
        };
        opened.into_iter().map(wrap).collect()
    }

    /// Makes sure that there is a store.
    pub async fn declare(&self, pattern: &Pattern) {
        let store = Store {
            pattern: pattern.clone(),
            retention: RETENTION,
            provision: Provision::Create,
        };
        let mut declared = self.transport.subscriber().declare(&[store]).await;
        let declared = declared.pop().expect("one result");
        declared.expect("the store is there");
    }

    /// Answers calls.
    pub async fn serve(&self, tail: &str) -> Calls {
        let spec = CallSpec::new(self.test.pattern(tail));
        let responder = self.transport.responder().expect("calls are declared");
        let mut served = responder.serve(&[spec]).await;
        let incoming = served.pop().expect("one result");
        Calls::new(incoming.expect("the pattern is served"))
    }

    /// Makes a call.
    ///
    /// # Errors
    /// What the adapter answers.
    pub async fn request(&self, message: Message, timeout: Duration) -> Result<Message, Error> {
        let requester = self.transport.requester().expect("calls are declared");
        let deadline = self.test.clock().now() + timeout;
        let calling = requester.request(message, deadline).wait();
        let called = tokio::time::timeout(timeout + TARDINESS, calling).await;
        called.expect("a call ends by its deadline")
    }

    /// The role that opens and accepts streaming calls.
    #[must_use]
    pub fn streams(&self) -> Streams {
        let streamer = self.transport.streamer().expect("streams are declared");
        Streams::new(self.test.clone(), streamer)
    }

    /// Waits until the transport tells that its connection is lost; `false` where it does not.
    pub async fn is_lost(&self) -> bool {
        let mut status = self.transport.status();
        let lost = status.wait_for(|status| *status == Status::Reconnecting);
        let lost = timeout(self.test.recovery(), lost).await;
        lost.is_ok_and(|told| told.is_ok())
    }

    /// Closes the client.
    pub async fn close(&self) {
        let closed = self.transport.close(Duration::from_secs(5)).await;
        closed.expect("the transport closes");
    }
}
