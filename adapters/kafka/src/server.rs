//! Answering calls: all servers of a cluster are one group, and each reply goes to where its call says.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anywire::pattern::publish_subscribe::{Received, SubscriptionId};
use anywire::pattern::request_reply::{
    CallSpec, IncomingCalls, ReceivedCall, Replier, Reply, Responder, Unanswered,
};
use anywire::pattern::{Batch, Progress, PullResult, Pulled};
use anywire::{Error, ErrorKind, Message};
use async_trait::async_trait;
use rdkafka::error::RDKafkaErrorCode as Code;

use crate::calls::{late, send};
use crate::errors;
use crate::group::Kind;
use crate::intake::Intake;
use crate::names;
use crate::publisher::too_large;
use crate::subscription::Begin;
use crate::transport::Connection;
use crate::window::Report;
use crate::wire::{Address, Sending};

/// How long a server may take to get its first partitions.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

/// The role that answers calls.
#[derive(Debug)]
pub(crate) struct KafkaResponder {
    connection: Arc<Connection>,
}

impl KafkaResponder {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    async fn open(&self, spec: &CallSpec) -> Result<KafkaCalls, Error> {
        let CallSpec {
            pattern,
            window,
            // An opening tells whether there will be some.
            items: _,
        } = spec;
        let connection = &self.connection;
        connection.check_open()?;
        let topic = names::calls(pattern)?;
        let catalog = &connection.catalog;
        if !catalog.has(&topic) {
            catalog.create(&topic, &catalog.brief()).await?;
        }
        let id = SubscriptionId::new(names::SERVERS, pattern.clone());
        let (group, seat) = connection.sit_down(&Kind::Servers, &id, *window, Begin::default())?;
        let intake = Intake::new(Arc::clone(&group), seat);
        let server = Arc::new(Server {
            connection: Arc::clone(connection),
            unanswered: Unanswered::new(*window),
        });
        group.joined(&[topic], JOIN_PATIENCE).await?;
        Ok(KafkaCalls {
            server,
            intake,
            received: Batch::new(*window),
        })
    }
}

#[async_trait]
impl Responder for KafkaResponder {
    async fn serve(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingCalls>, Error>> {
        let served = specs.iter().map(async |spec| {
            let served = self.open(spec).await;
            let served = served.map(|calls| Box::new(calls) as Box<dyn IncomingCalls>);
            served.map_err(|error| {
                error
                    .with_operation("serve")
                    .with_context("pattern", &spec.pattern)
            })
        });
        futures::future::join_all(served).await
    }
}

/// The calls to one pattern.
#[derive(Debug)]
struct KafkaCalls {
    server: Arc<Server>,
    intake: Intake,
    received: Batch<Received>,
}

#[async_trait]
impl IncomingCalls for KafkaCalls {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedCall>,
    ) -> Poll<PullResult> {
        while batch.is_empty() {
            let room = self.server.unanswered.room(cx).min(batch.room());
            if room == 0 {
                return Poll::Pending;
            }
            self.received.set_room(room);
            match self.intake.poll(cx, &mut self.received) {
                Poll::Ready(Ok(Pulled::Some)) => {}
                other => return other,
            }
            for received in self.received.drain() {
                batch_call(&self.server, received.message, batch);
            }
        }
        Poll::Ready(Ok(Pulled::Some))
    }

    fn replier(&self) -> Arc<dyn Replier> {
        Arc::clone(&self.server) as Arc<dyn Replier>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.intake.close();
        Ok(())
    }
}

fn batch_call(server: &Server, message: Message, batch: &mut Batch<ReceivedCall>) {
    if address(message.reply_to()).is_none() {
        metrics::counter!("anywire.kafka.unanswerable_calls").increment(1);
        tracing::debug!(subject = %message.subject(), "a call without an address that may be answered is dropped");
        return;
    }
    let left = message.deadline();
    let clock = &server.connection.settings.clock;
    batch.push(ReceivedCall {
        message,
        tag: server.unanswered.begin(()),
        deadline: left.map(|left| clock.now() + left),
    });
}

/// A caller chooses where we publish: only a topic of replies is one that may be answered.
pub(crate) fn address(reply_to: Option<&str>) -> Option<Address> {
    let address = Address::read(reply_to?)?;
    names::takes_replies(&address.topic).then_some(address)
}

/// What pulling and answering share.
#[derive(Debug)]
struct Server {
    connection: Arc<Connection>,
    unanswered: Unanswered,
}

impl Replier for Server {
    fn reply(&self, reply: Reply) -> Progress<Result<(), Error>> {
        let Reply {
            tag,
            reply_to,
            correlation_id: _,
            message,
        } = reply;
        let connection = Arc::clone(&self.connection);
        let Some(address) = address(reply_to.as_deref()) else {
            return Progress::Done(Err(unanswerable()));
        };
        if let Err(stale) = self.unanswered.end(tag) {
            return Progress::Done(Err(stale));
        }
        if let Some(error) = too_large(&connection, &message) {
            return Progress::Done(Err(error));
        }
        Progress::pending(async move {
            let clock = &connection.settings.clock;
            let patience = connection.settings.config.delivery_timeout;
            let timer = clock.sleep_until(clock.now() + patience);
            let limit = connection.settings.config.max_payload;
            let answer = async {
                // A topic that is not there would be created by asking for it, where the brokers do that.
                if !connection.catalog.has(&address.topic) {
                    connection.catalog.look().await?;
                }
                if !connection.catalog.has(&address.topic) {
                    return Err(unanswerable());
                }
                let sending = Sending {
                    token: Some(&address.token),
                    ..Sending::default()
                };
                let partition = Some(address.partition);
                loop {
                    let sent =
                        send(&connection, &address.topic, &message, sending, partition).await?;
                    std::future::poll_fn(|cx| sent.poll(cx)).await;
                    match sent.report(0) {
                        // Its producer was given up. A second reply finds nobody who waits.
                        Report::Failed(Code::PurgeQueue | Code::PurgeInflight) => {
                            connection.check_open()?;
                        }
                        Report::Failed(code) => {
                            return Err(errors::refused(code, message.subject(), limit));
                        }
                        Report::Unsent | Report::Sent | Report::Stored => return Ok(()),
                    }
                }
            };
            tokio::select! {
                answered = answer => answered,
                () = timer => Err(late(&message)),
            }
        })
    }
}

fn unanswerable() -> Error {
    Error::new(
        ErrorKind::Denied,
        "the call names an address that no reply may go to; replies go to topics of replies alone",
    )
}
