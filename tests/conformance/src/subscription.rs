//! The receiving side under test.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anywire::pattern::publish_subscribe::{
    Incoming, Native, Received, Settle, SettleBatch, Settlement,
};
use anywire::pattern::request_reply::{IncomingCalls, ReceivedCall, Replier, Reply};
use anywire::pattern::{Batch, Pulled, Tag, pull, pull_calls};
use anywire::{Error, ErrorKind, Message};
use bytes::Bytes;
use tokio::time::timeout;

use crate::{Ledger, Test};

/// How long a subscription may take to end.
const END: Duration = Duration::from_secs(1);

/// A subscription under test. It pulls what it is asked for and no more.
#[derive(Debug)]
pub struct Subscription {
    test: Test,
    incoming: Box<dyn Incoming>,
    settler: Arc<dyn Settle>,
    batch: Batch<Received>,
    pulled: VecDeque<Received>,
    heard: bool,
}

impl Subscription {
    pub(crate) fn new(test: Test, incoming: Box<dyn Incoming>) -> Self {
        Self {
            test,
            settler: incoming.settler(),
            incoming,
            batch: Batch::new(1),
            pulled: VecDeque::new(),
            heard: false,
        }
    }

    /// The next delivery, within the profile's idle gap.
    ///
    /// # Panics
    /// When none comes.
    pub async fn next(&mut self) -> Delivery {
        let gap = self.test.gap();
        let Some(delivery) = self.next_within(gap).await else {
            panic!("nothing arrived for {gap:?}");
        };
        delivery
    }

    /// The next delivery, if it comes within `wait`.
    pub async fn next_within(&mut self, wait: Duration) -> Option<Delivery> {
        let pulled = timeout(wait, self.pull(1)).await;
        let pulled = pulled.ok()?.expect("the subscription stays open");
        assert_eq!(pulled, Pulled::Some, "the subscription ended");
        self.pop()
    }

    /// The next `count` deliveries, pulled in batches.
    pub async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let gap = self.test.gap();
        let mut deliveries = Vec::with_capacity(count);
        while deliveries.len() < count {
            let pulled = timeout(gap, self.pull(count - deliveries.len())).await;
            let Ok(pulled) = pulled else {
                panic!(
                    "{} of {count} arrived, then nothing for {gap:?}",
                    deliveries.len()
                );
            };
            assert_eq!(pulled.expect("the subscription stays open"), Pulled::Some);
            deliveries.extend(std::iter::from_fn(|| self.pop()));
        }
        deliveries
    }

    /// Receives and acks until every confirmed message of `ledger` has arrived, and then looks for more.
    pub async fn receive_all(&mut self, ledger: &mut Ledger) {
        while ledger.missing() > 0 {
            self.receive_one(ledger).await;
        }
        while let Some(delivery) = self.next_within(self.test.quiet()).await {
            ledger.receive(&delivery.message);
            delivery.ack().await;
        }
    }

    /// Receives and acks one delivery.
    ///
    /// # Panics
    /// When none comes within the profile's idle gap.
    pub async fn receive_one(&mut self, ledger: &mut Ledger) {
        let gap = self.test.gap();
        let Some(delivery) = self.next_within(gap).await else {
            panic!(
                "{} messages are missing, and nothing arrived for {gap:?}",
                ledger.missing()
            );
        };
        ledger.receive(&delivery.message);
        delivery.ack().await;
    }

    /// Asserts that nothing arrives: rule R4.
    ///
    /// # Panics
    /// When something arrives, or when nothing ever has: then silence proves nothing.
    pub async fn stays_quiet(&mut self) {
        assert!(
            self.heard,
            "a negative assertion needs a positive control first"
        );
        if let Some(delivery) = self.next_within(self.test.quiet()).await {
            panic!(
                "nothing was to arrive, but this did: {:?}",
                delivery.message
            );
        }
    }

    /// Asserts that it ends within a second, with nothing more delivered.
    ///
    /// # Panics
    /// When it does not.
    pub async fn ends(&mut self) {
        let start = Instant::now();
        let pulled = timeout(END, self.pull(1)).await;
        let Ok(pulled) = pulled else {
            panic!("the subscription did not end within {:?}", start.elapsed());
        };
        match pulled {
            Ok(Pulled::End) => {}
            Ok(Pulled::Some) => panic!("the subscription delivered instead of ending"),
            Err(error) => assert!(!error.is_retryable(), "an end, not {error:?}"),
        }
    }

    /// Stops it and drops it.
    pub async fn stop(mut self) {
        self.incoming.stop().await.expect("the subscription stops");
    }

    /// Stops it and keeps it.
    pub async fn stop_pulling(&mut self) {
        self.incoming.stop().await.expect("the subscription stops");
    }

    /// What settles its deliveries.
    #[must_use]
    pub fn settler(&self) -> &Arc<dyn Settle> {
        &self.settler
    }

    /// Settles several deliveries in one batch, and gives the indices of those that failed with their kinds.
    pub fn settle_all(
        &self,
        settlements: &[(&Delivery, Settlement)],
    ) -> impl Future<Output = Vec<(usize, ErrorKind)>> + use<> {
        let mut batch = SettleBatch::default();
        for (delivery, settlement) in settlements {
            batch.push(delivery.tag, *settlement);
        }
        let settling = self.settler.settle(batch);
        async move {
            let settled = settling.wait().await;
            let failed = settled.failed().iter();
            failed
                .map(|(index, error)| (*index, error.kind()))
                .collect()
        }
    }

    /// Pulls at most `room` deliveries. News of a lost connection is passed over: the adapter is at it.
    async fn pull(&mut self, room: usize) -> Result<Pulled, Error> {
        if !self.pulled.is_empty() {
            return Ok(Pulled::Some);
        }
        self.batch.set_room(room);
        loop {
            match pull(self.incoming.as_mut(), &mut self.batch).await {
                Err(error) if error.is_retryable() => {}
                Ok(Pulled::Some) => {
                    assert!(
                        !self.batch.is_empty(),
                        "a pull that brought something is not empty"
                    );
                    assert!(self.batch.len() <= room, "no more than was asked for");
                    break;
                }
                ended => return ended,
            }
        }
        self.heard = true;
        for received in self.batch.drain() {
            self.test.note_received(received.message.id());
            self.pulled.push_back(received);
        }
        Ok(Pulled::Some)
    }

    fn pop(&mut self) -> Option<Delivery> {
        let received = self.pulled.pop_front()?;
        Some(Delivery {
            message: received.message,
            tag: received.tag,
            deliveries: received.deliveries,
            native: received.native,
            settler: Arc::clone(&self.settler),
        })
    }
}

/// A message that was delivered and waits to be settled. Nothing happens when it is dropped.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Names it when it is settled.
    pub tag: Tag,
    /// The wire's count of deliveries, where it counts.
    pub deliveries: Option<u32>,
    /// The vendor's own message.
    pub native: Option<Native>,
    settler: Arc<dyn Settle>,
}

impl Delivery {
    /// Settles it.
    ///
    /// # Errors
    /// What the adapter answers.
    pub async fn settle(&self, settlement: Settlement) -> Result<(), Error> {
        let mut batch = SettleBatch::default();
        batch.push(self.tag, settlement);
        self.settler.settle(batch).wait().await.into_single()
    }

    /// Acks it, which must succeed.
    pub async fn ack(&self) {
        self.settle(Settlement::Ack)
            .await
            .expect("the ack is taken");
    }

    /// Gives it back to be delivered again, which must succeed.
    pub async fn give_back(&self) {
        let returned = self.settle(Settlement::Return).await;
        returned.expect("the return is taken");
    }
}

/// A pattern that is served.
#[derive(Debug)]
pub struct Calls {
    incoming: Box<dyn IncomingCalls>,
    replier: Arc<dyn Replier>,
    batch: Batch<ReceivedCall>,
}

impl Calls {
    pub(crate) fn new(incoming: Box<dyn IncomingCalls>) -> Self {
        Self {
            replier: incoming.replier(),
            incoming,
            batch: Batch::new(1),
        }
    }

    /// The next call; `None` when serving has ended.
    pub async fn next(&mut self) -> Option<ReceivedCall> {
        loop {
            match pull_calls(self.incoming.as_mut(), &mut self.batch).await {
                Err(error) if error.is_retryable() => {}
                Ok(Pulled::Some) => return self.batch.drain().next(),
                Ok(Pulled::End) | Err(_) => return None,
            }
        }
    }

    /// Answers a call with `payload`.
    ///
    /// # Errors
    /// What the adapter answers.
    pub fn answer(
        &self,
        call: &ReceivedCall,
        payload: &str,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        let message = Message::new(call.message.subject().clone(), payload);
        self.reply(call, message)
    }

    /// Answers a call.
    ///
    /// # Errors
    /// What the adapter answers.
    pub fn reply(
        &self,
        call: &ReceivedCall,
        message: Message,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        self.replier
            .reply(Reply {
                tag: call.tag,
                reply_to: call.message.reply_to().map(Into::into),
                correlation_id: call.message.correlation_id().map(Into::into),
                message,
            })
            .wait()
    }

    /// Stops serving.
    pub async fn stop(&mut self) {
        self.incoming.stop().await.expect("serving stops");
    }
}
