//! A subscription: a seat at the consumer of its group.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use anywire::pattern::publish_subscribe::{Incoming, Received, Settle, SettleBatch, Settlement};
use anywire::pattern::{Batch, Progress, PullResult, Pulled};
use anywire::{Error, ErrorKind};
use async_trait::async_trait;

use crate::errors;
use crate::group::Group;
use crate::shelf::SeatKey;

/// The messages of one subscription.
#[derive(Debug)]
pub(crate) struct Intake {
    chair: Arc<Chair>,
}

/// A seat, for as long as somebody pulls or settles.
#[derive(Debug)]
pub(crate) struct Chair {
    group: Arc<Group>,
    key: SeatKey,
    left: AtomicBool,
}

impl Intake {
    pub(crate) fn new(group: Arc<Group>, key: SeatKey) -> Self {
        Self {
            chair: Arc::new(Chair {
                group,
                key,
                left: AtomicBool::new(false),
            }),
        }
    }

    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<Received>,
    ) -> Poll<PullResult> {
        let group = &self.chair.group;
        let delivered = group.shelf.lock().deliver(self.chair.key, batch, cx);
        let Some(news) = delivered else {
            return Poll::Ready(Ok(Pulled::End));
        };
        group.tell(news);
        match batch.is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(Ok(Pulled::Some)),
        }
    }

    /// Takes no more. What was taken stays to be settled.
    pub(crate) fn close(&self) {
        self.chair.group.shelf.lock().close_seat(self.chair.key);
        if Arc::strong_count(&self.chair) == 1 {
            // Nobody is left who could settle anything.
            self.chair.leave();
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.close();
    }
}

#[async_trait]
impl Incoming for Intake {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<Received>,
    ) -> Poll<PullResult> {
        self.poll(cx, batch)
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::clone(&self.chair) as Arc<dyn Settle>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.close();
        Ok(())
    }
}

impl Settle for Chair {
    fn settle(&self, mut batch: SettleBatch) -> Progress<SettleBatch> {
        let mut shelf = self.group.shelf.lock();
        let (mut wake, closed) = (false, shelf.is_closed());
        for index in 0..batch.items().len() {
            let Some((tag, settlement)) = batch.items().get(index).copied() else {
                break;
            };
            if self.group.kind.is_early() && !closed {
                // Settled before it was delivered.
                continue;
            }
            let done = match settlement {
                Settlement::Ack => true,
                Settlement::Return => false,
                Settlement::ReturnAfter(_) => {
                    batch.fail(index, not_for_later());
                    continue;
                }
            };
            match shelf.settle(self.key, tag, done) {
                Some(news) => wake |= news.for_reader,
                None if closed => batch.fail(index, errors::closed()),
                None => batch.fail(index, errors::stale()),
            }
        }
        drop(shelf);
        if wake {
            self.group.wake();
        }
        Progress::Done(batch)
    }
}

impl Chair {
    /// Gives back what is held.
    fn leave(&self) {
        if self.left.swap(true, Ordering::AcqRel) {
            return;
        }
        self.group.shelf.lock().leave(self.key);
        self.group.wake();
    }
}

impl Drop for Chair {
    fn drop(&mut self) {
        self.leave();
    }
}

fn not_for_later() -> Error {
    let text = "Kafka gives nothing back for later; publish a delayed copy and ack the original";
    Error::new(ErrorKind::Unsupported, text)
}
