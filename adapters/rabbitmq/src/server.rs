//! Answering calls.

use std::fmt;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use anywire::pattern::request_reply::{
    CallSpec, IncomingCalls, ReceivedCall, Replier, Reply, Responder, Unanswered,
};
use anywire::pattern::{Batch, Progress, PullResult, Pulled};
use anywire::{Error, ErrorKind, Pattern};
use async_trait::async_trait;
use futures::future::BoxFuture;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};

use crate::calls::REPLY_TO;
use crate::errors;
use crate::feed::{self, Active, Fed, Feed, Seat};
use crate::link::Link;
use crate::parcel::{Parcel, Sent, Ticket};
use crate::publisher::check_size;
use crate::transport::{Connection, End};
use crate::wire::{self, Origin, Sending};

/// The role that answers calls.
#[derive(Debug)]
pub(crate) struct RabbitmqResponder {
    connection: Arc<Connection>,
}

impl RabbitmqResponder {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    async fn open(&self, spec: &CallSpec) -> Result<Box<dyn IncomingCalls>, Error> {
        let CallSpec {
            pattern,
            window,
            // An opening tells whether there will be some.
            items: _,
        } = spec;
        let connection = &self.connection;
        connection.check_open()?;
        let link = connection.consuming().await?;
        let opening = {
            let (connection, pattern, window) =
                (Arc::downgrade(connection), pattern.clone(), *window);
            move || -> BoxFuture<'static, Result<Active, Error>> {
                let (connection, link, pattern) =
                    (Weak::clone(&connection), Arc::clone(&link), pattern.clone());
                Box::pin(async move {
                    let connection = connection.upgrade().ok_or_else(errors::closed)?;
                    connection.check_open()?;
                    let opening = consume(&connection, &link, &pattern, window);
                    link.while_live(opening).await
                })
            }
        };
        let feed = Feed::open(Box::new(opening), false, Arc::clone(&connection.clock)).await?;
        let server = Arc::new_cyclic(|this: &Weak<Server>| Server {
            connection: Arc::clone(connection),
            seat: Arc::clone(feed.seat()),
            pattern: pattern.clone(),
            unanswered: Unanswered::new(*window),
            tie: connection.tie(Weak::clone(this) as Weak<dyn End>),
        });
        // A close that came between the check and the tie ended everybody but us.
        connection.check_open()?;
        Ok(Box::new(RabbitmqCalls { server, feed }))
    }
}

#[async_trait]
impl Responder for RabbitmqResponder {
    async fn serve(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingCalls>, Error>> {
        let mut opened = Vec::with_capacity(specs.len());
        for spec in specs {
            let served = self.open(spec).await;
            opened.push(served.map_err(|error| {
                error
                    .with_operation("serve")
                    .with_context("pattern", &spec.pattern)
            }));
        }
        opened
    }
}

async fn consume(
    connection: &Connection,
    link: &Link,
    pattern: &Pattern,
    window: usize,
) -> Result<Active, Error> {
    let channel = link.channel().await?;
    let queue = connection
        .topology
        .ensure_calls(link, &channel, pattern)
        .await?;
    let prefetch = u16::try_from(window).unwrap_or(u16::MAX).max(1);
    let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
    qos.await.map_err(errors::operation)?;
    let consumer = channel.basic_consume(
        queue.as_str().into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let consumer = feed::in_time(consumer).await?;
    Ok(Active {
        channel: Arc::new(channel),
        consumer,
    })
}

/// The calls to one pattern.
#[derive(Debug)]
struct RabbitmqCalls {
    server: Arc<Server>,
    feed: Feed,
}

#[async_trait]
impl IncomingCalls for RabbitmqCalls {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedCall>,
    ) -> Poll<PullResult> {
        loop {
            if self.server.unanswered.room(cx).min(batch.room()) == 0 {
                return match batch.is_empty() {
                    true => Poll::Pending,
                    false => Poll::Ready(Ok(Pulled::Some)),
                };
            }
            let fed = match self.feed.poll(cx) {
                Poll::Pending if !batch.is_empty() => return Poll::Ready(Ok(Pulled::Some)),
                fed => ready!(fed),
            };
            match fed {
                Fed::Delivery(delivery) => self.server.take_in(*delivery, batch),
                // What runs goes on: it was acknowledged when it was pulled.
                Fed::Lost => {}
                Fed::Failed(_) | Fed::Over if !batch.is_empty() => {
                    return Poll::Ready(Ok(Pulled::Some));
                }
                Fed::Failed(error) if error.kind() != ErrorKind::Closed => {
                    return Poll::Ready(Err(error));
                }
                Fed::Failed(_) | Fed::Over => return Poll::Ready(Ok(Pulled::End)),
            }
        }
    }

    fn replier(&self) -> Arc<dyn Replier> {
        Arc::clone(&self.server) as Arc<dyn Replier>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.server.seat.stop().await;
        Ok(())
    }
}

impl Drop for RabbitmqCalls {
    fn drop(&mut self) {
        self.server.seat.abandon();
    }
}

/// What pulling and answering share.
struct Server {
    connection: Arc<Connection>,
    seat: Arc<Seat>,
    pattern: Pattern,
    /// With what tells the caller which of its calls it was.
    unanswered: Unanswered<Option<ShortString>>,
    tie: usize,
}

impl Server {
    fn take_in(&self, delivery: Delivery, batch: &mut Batch<ReceivedCall>) {
        // Before it runs: nobody else shall run it as well.
        if let Some(channel) = self.seat.channel() {
            feed::send(channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()));
        }
        let properties = &delivery.properties;
        let address = properties.reply_to().as_ref().map(ShortString::as_str);
        let Some(address) = address.filter(|address| may_answer(address)) else {
            metrics::counter!("anywire.rabbitmq.unanswerable_calls").increment(1);
            tracing::debug!(subject = %delivery.routing_key, "a call without an address that may be answered is dropped");
            return;
        };
        let address = smol_str::SmolStr::new(address);
        let origin = Origin {
            key: delivery.routing_key.as_str(),
            direct: delivery.exchange.as_str().is_empty(),
            fallback: None,
        };
        let read = wire::read(origin, delivery.data.into(), properties);
        if !self.pattern.matches(read.message.subject()) {
            return;
        }
        let clock = &*self.connection.clock;
        let left = read.message.deadline();
        batch.push(ReceivedCall {
            message: read.message.with_reply_to(address),
            tag: self.unanswered.begin(properties.correlation_id().clone()),
            deadline: left.map(|left| clock.now() + left),
        });
    }
}

/// A caller chooses where we publish: only the address of a channel is one that may be answered.
fn may_answer(address: &str) -> bool {
    let rest = address.strip_prefix(REPLY_TO);
    rest.is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
}

impl Replier for Server {
    fn reply(&self, reply: Reply) -> Progress<Result<(), Error>> {
        let Reply {
            tag,
            reply_to,
            correlation_id: _,
            message,
        } = reply;
        let Some(address) = reply_to.filter(|address| may_answer(address)) else {
            return Progress::Done(Err(unanswerable()));
        };
        let correlation = match self.unanswered.end(tag) {
            Ok(correlation) => correlation,
            Err(stale) => return Progress::Done(Err(stale)),
        };
        let sending = Sending {
            is_call: true,
            ..Sending::default()
        };
        let parcel = check_size(&self.connection, &message).and_then(|()| {
            let properties = wire::properties(&message, sending)?;
            Ok(Parcel {
                exchange: ShortString::default(),
                key: wire::short(address.as_str(), "reply address")?,
                properties: match correlation {
                    Some(id) => properties.with_correlation_id(id),
                    None => properties,
                },
                payload: message.payload().clone(),
                mandatory: false,
            })
        });
        let parcel = match parcel {
            Ok(parcel) => parcel,
            Err(error) => return Progress::Done(Err(error)),
        };
        let connection = Arc::clone(&self.connection);
        Progress::pending(async move {
            let ticket = Arc::new(Ticket::new(1));
            let failed = match connection.air.send(parcel, &ticket, 0).await {
                Err(sent) => Some(sent),
                Ok(()) => {
                    ticket.settled().await;
                    ticket.take().pop().flatten()
                }
            };
            match failed {
                Some(Sent::Refused(error) | Sent::Unknown(error)) => Err(error),
                Some(Sent::Confirmed | Sent::Returned) | None => Ok(()),
            }
        })
    }
}

impl End for Server {
    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.seat.stop())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.connection.untie(self.tie);
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("pattern", &self.pattern)
            .field("unanswered", &self.unanswered)
            .finish_non_exhaustive()
    }
}

fn unanswerable() -> Error {
    Error::new(
        ErrorKind::Denied,
        "the call names an address that no reply may go to; replies go by direct reply-to alone",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_address_of_a_channel_is_answered() {
        assert!(may_answer("amq.rabbitmq.reply-to.g1h2AA5yZXBseUAx.x=="));
        for address in [
            "amq.rabbitmq.reply-to",
            "amq.rabbitmq.reply-to.",
            "shop",
            "",
        ] {
            assert!(!may_answer(address), "{address}");
        }
    }
}
