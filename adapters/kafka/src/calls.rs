//! Calls: a topic of requests for each pattern, shared by all who answer it, and a topic of replies for each app.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anywire::pattern::publish_subscribe::{Received, SubscriptionId};
use anywire::pattern::request_reply::{
    CallSpec, IncomingCalls, ReceivedCall, Replier, Reply, Requester, Responder, Unanswered,
};
use anywire::pattern::streaming::Mailbox;
use anywire::pattern::{Batch, Progress, PullResult, Pulled};
use anywire::transport::Status;
use anywire::{Error, ErrorKind, Message, Subject};
use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use slab::Slab;
use tokio::sync::oneshot;

use crate::errors;
use crate::group::{Kind, Settings};
use crate::health::Health;
use crate::intake::Intake;
use crate::names;
use crate::publisher::{record, too_large};
use crate::pulse::{self, Pulse};
use crate::subscription::Begin;
use crate::transport::Connection;
use crate::window::{Report, Tally};
use crate::wire::{self, Address, Sending};

/// How long the brokers may take to tell where our replies begin.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a single question may take.
const QUESTION: Duration = Duration::from_millis(500);
/// How long the thread that hears replies waits for one, before it looks whether it should end.
const NAP: Duration = Duration::from_millis(250);
/// How soon a partition without a leader is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How soon it is tried again where nothing more may be under way.
const AGAIN: Duration = Duration::from_millis(1);
/// How long a server may take to get its first partitions.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);

/// What stands in the token of a stream's frame where that of a reply has a number.
const FRAMES: &str = "s";

/// The role that calls.
#[derive(Debug)]
pub(crate) struct KafkaRequester {
    connection: Arc<Connection>,
}

impl KafkaRequester {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Requester for KafkaRequester {
    fn request(&self, message: Message, deadline: Instant) -> Progress<Result<Message, Error>> {
        let connection = Arc::clone(&self.connection);
        if let Err(error) = connection.check_open() {
            return Progress::Done(Err(error));
        }
        if let Some(error) = too_large(&connection, &message) {
            return Progress::Done(Err(error));
        }
        let clock = Arc::clone(&connection.settings.clock);
        let message = match message.deadline() {
            Some(_) => message,
            None => {
                let left = deadline.saturating_duration_since(clock.now());
                message.with_deadline(left)
            }
        };
        Progress::pending(async move {
            tokio::select! {
                answer = call(&connection, &message) => answer,
                () = clock.sleep_until(deadline) => Err(late(&message)),
            }
        })
    }
}

async fn call(connection: &Arc<Connection>, message: &Message) -> Result<Message, Error> {
    let subject = message.subject();
    let topic = match connection.catalog.calls_to(subject) {
        Some(topic) => topic,
        None => {
            connection.catalog.look().await?;
            let topic = connection.catalog.calls_to(subject);
            topic.ok_or_else(|| nobody(subject))?
        }
    };
    let replies = replies(connection).await?;
    if !connection.catalog.has(&replies.topic) {
        // Somebody has deleted it. Nobody answers to where nothing is.
        let catalog = &connection.catalog;
        catalog.create(&replies.topic, &catalog.brief()).await?;
    }
    let mut waiting = replies.expect(subject);
    let sending = Sending {
        subject: Some(subject),
        reply: Some(&waiting.address),
        ..Sending::default()
    };
    let sent = send(connection, &topic, message, sending, None).await?;
    tokio::select! {
        biased;
        answer = &mut waiting.answer => answer.map_err(|_| errors::closed()),
        error = failed(connection, sent, subject) => {
            connection.catalog.forget(&topic);
            Err(error)
        }
    }
}

/// The replies to our calls, opened by the first of them, but not given up with it: else those who wait for less than that takes
/// would never get an answer.
pub(crate) async fn replies(connection: &Arc<Connection>) -> Result<&Replies, Error> {
    if let Some(replies) = connection.replies.get() {
        return Ok(replies);
    }
    let caller = Arc::new(());
    let (called, opening) = (Arc::downgrade(&caller), Arc::clone(connection));
    let opened = tokio::spawn(async move {
        let open = async || match called.strong_count() {
            // It failed before, and nobody waits for it any more.
            0 => Err(errors::closed()),
            _ => Replies::open(&opening).await,
        };
        let mut status = opening.settings.health.status.subscribe();
        let opened = tokio::select! {
            opened = opening.replies.get_or_try_init(open) => opened.map(drop),
            _ = status.wait_for(|status| *status == Status::Closed) => Err(errors::closed()),
        };
        opened
    });
    opened.await.map_err(|_| errors::closed())??;
    drop(caller);
    connection.replies.get().ok_or_else(errors::closed)
}

/// Ends where the brokers do not take a request. For one that they took, or may have taken, the reply or the deadline is waited for.
async fn failed(connection: &Connection, sent: Arc<Tally>, subject: &Subject) -> Error {
    std::future::poll_fn(|cx| sent.poll(cx)).await;
    match sent.report(0) {
        Report::Failed(code) if errors::is_definite(code) => {
            errors::refused(code, subject, connection.settings.config.max_payload)
        }
        Report::Failed(_) | Report::Unsent | Report::Sent | Report::Stored => {
            std::future::pending().await
        }
    }
}

/// Hands one message over that nobody waits for, if there is room for it now.
pub(crate) fn send_by_the_way(
    connection: &Connection,
    topic: &str,
    message: &Message,
    sending: Sending<'_>,
    partition: Option<i32>,
) -> bool {
    let window = &connection.producer.window;
    let Some(number) = window.enter(None, message.byte_len()) else {
        return false;
    };
    let mut record = record(topic, message, sending, number);
    record.partition = partition;
    let sent = connection.producer.current().send(record).is_ok();
    if !sent {
        window.leave(number);
    }
    sent
}

/// Hands one message over, waiting for room.
pub(crate) async fn send(
    connection: &Connection,
    topic: &str,
    message: &Message,
    sending: Sending<'_>,
    partition: Option<i32>,
) -> Result<Arc<Tally>, Error> {
    let clock = &connection.settings.clock;
    let window = &connection.producer.window;
    let tally = Arc::new(Tally::new(1));
    loop {
        connection.check_open()?;
        let who = Some((Arc::clone(&tally), 0));
        let Some(number) = window.enter(who, message.byte_len()) else {
            window.wait(message.byte_len()).await;
            continue;
        };
        tally.begin(0);
        let mut record = record(topic, message, sending, number);
        record.partition = partition;
        let native = connection.producer.current();
        let Err(code) = native.send(record) else {
            return Ok(tally);
        };
        window.leave(number);
        tally.take_back(0);
        match code {
            Code::QueueFull => clock.sleep_until(clock.now() + AGAIN).await,
            Code::Fatal | Code::PurgeQueue => connection.producer.renew(&native)?,
            code => {
                let limit = connection.settings.config.max_payload;
                return Err(errors::refused(code, message.subject(), limit));
            }
        }
    }
}

/// The error for a call that nobody serves.
fn nobody(subject: &Subject) -> Error {
    let message = "nobody answers this subject; start its handler first";
    Error::new(ErrorKind::NoRoute, message).with_context("subject", subject)
}

fn late(message: &Message) -> Error {
    let text = "no reply came by the deadline; allow more time, or look at the handler";
    Error::new(ErrorKind::Timeout, text).with_context("subject", message.subject())
}

/// The replies to a client's calls: a partition of its app's topic, read without a group.
#[derive(Debug)]
pub(crate) struct Replies {
    shared: Arc<Shared>,
    topic: String,
    partition: i32,
}

struct Shared {
    settings: Arc<Settings>,
    pending: Mutex<Slab<Pending>>,
    /// Tells our calls from those of others who read the same partition.
    nonce: u64,
    /// Takes the frames of our streams.
    mailbox: OnceLock<Weak<dyn Mailbox>>,
    stopping: AtomicBool,
}

struct Pending {
    token: String,
    subject: Subject,
    answer: oneshot::Sender<Message>,
}

/// A call that waits for its reply. Forgotten when dropped.
struct Waiting {
    shared: Arc<Shared>,
    slot: usize,
    address: Address,
    answer: oneshot::Receiver<Message>,
}

impl Replies {
    async fn open(connection: &Connection) -> Result<Self, Error> {
        let settings = &connection.settings;
        let topic = names::replies(&settings.transport.app)?;
        let catalog = &connection.catalog;
        if !catalog.has(&topic) {
            catalog.create(&topic, &catalog.brief()).await?;
        }
        let partitions = catalog.partitions(&topic).unwrap_or(1).max(1);
        let nonce = rand::random::<u64>();
        let partition = i32::try_from(nonce % u64::from(partitions.unsigned_abs())).unwrap_or(0);
        // Assigned by hand, so that no group is made and nothing is left behind.
        let group = format!("{}replies.{nonce:016x}", names::RESERVED);
        let config = settings.config.member(&settings.transport, &group, false)?;
        let shared = Arc::new(Shared {
            settings: Arc::clone(settings),
            pending: Mutex::default(),
            nonce,
            mailbox: OnceLock::new(),
            stopping: AtomicBool::new(false),
        });
        let (this, name) = (Arc::clone(&shared), topic.clone());
        // Stops the thread where nobody waits for it any more.
        let replies = Self {
            shared,
            topic,
            partition,
        };
        let opened = tokio::task::spawn_blocking(move || this.open(&config, &name, partition));
        opened.await.map_err(|_| errors::closed())??;
        Ok(replies)
    }

    fn expect(&self, subject: &Subject) -> Waiting {
        let (sender, answer) = oneshot::channel();
        let mut pending = self.shared.pending.lock();
        let entry = pending.vacant_entry();
        let slot = entry.key();
        let token = format!(
            "{:016x}.{slot}.{:08x}",
            self.shared.nonce,
            rand::random::<u32>()
        );
        entry.insert(Pending {
            token: token.clone(),
            subject: subject.clone(),
            answer: sender,
        });
        drop(pending);
        let address = Address {
            topic: self.topic.clone(),
            partition: self.partition,
            token,
        };
        Waiting {
            shared: Arc::clone(&self.shared),
            slot,
            address,
            answer,
        }
    }

    /// Has the frames of our streams delivered, and tells where they are sent to.
    pub(crate) fn take_frames(&self, mailbox: Weak<dyn Mailbox>) -> Address {
        // A client has one.
        let _ = self.shared.mailbox.set(mailbox);
        Address {
            topic: self.topic.clone(),
            partition: self.partition,
            token: format!("{:016x}.{FRAMES}", self.shared.nonce),
        }
    }

    pub(crate) fn stop(&self) {
        self.shared.stop();
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut pending = self.shared.pending.lock();
        let is_ours = |pending: &Pending| pending.token == self.address.token;
        if pending.get(self.slot).is_some_and(is_ours) {
            pending.remove(self.slot);
        }
    }
}

impl Shared {
    /// Starts hearing, from the end of the partition on. Blocks until that is known.
    fn open(
        self: Arc<Self>,
        config: &rdkafka::ClientConfig,
        topic: &str,
        partition: i32,
    ) -> Result<(), Error> {
        let mut listener = Listener {
            config: config.clone(),
            topic: topic.to_owned(),
            partition,
            next: 0,
        };
        let consumer = self.consumer(&listener)?;
        listener.next = self.end_of(&consumer, topic, partition)?;
        listener.assign(&consumer)?;
        let thread = std::thread::Builder::new().name("kafka replies".to_owned());
        let started = thread.spawn(move || self.listen(&mut listener, consumer));
        started.map(drop).map_err(|error| {
            Error::new(ErrorKind::Unavailable, "no thread can be started").with_source(error)
        })
    }

    fn consumer(&self, listener: &Listener) -> Result<BaseConsumer<Ear>, Error> {
        let ear = Ear(Arc::clone(&self.settings.health));
        let consumer = BaseConsumer::from_config_and_context(&listener.config, ear);
        consumer.map_err(|error| errors::from(&error, "making a consumer of replies"))
    }

    /// Where a partition ends. That of a topic which was created just now has no leader for a moment.
    fn end_of(
        &self,
        consumer: &BaseConsumer<Ear>,
        topic: &str,
        partition: i32,
    ) -> Result<i64, Error> {
        let start = Instant::now();
        loop {
            let error = match consumer.fetch_watermarks(topic, partition, QUESTION) {
                Ok((_, end)) => return Ok(end),
                Err(error) => errors::from(&error, "looking for replies"),
            };
            let is_over = self.stopping.load(Ordering::Acquire) || start.elapsed() >= PATIENCE;
            if !error.is_retryable() || is_over {
                return Err(error);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Hears replies until it is over, with a consumer that is made anew where the library has lost all brokers.
    fn listen(&self, listener: &mut Listener, mut consumer: BaseConsumer<Ear>) {
        while self.hear(listener, &consumer) {
            tracing::warn!(topic = %listener.topic, "the consumer of replies has lost all brokers, though they are there; it is made anew");
            match self.consumer(listener) {
                Ok(made) => consumer = made,
                Err(error) => tracing::error!(%error, "a consumer cannot be made"),
            }
            if let Err(error) = listener.assign(&consumer) {
                tracing::error!(%error, "replies cannot be heard");
            }
        }
        // Who still waits is told by the drop.
        self.pending.lock().clear();
        if let Some(mailbox) = self.mailbox.get().and_then(Weak::upgrade) {
            mailbox.lost();
        }
    }

    fn pulse(&self) -> Pulse {
        Pulse::new(self.settings.config.reconnects_within())
    }

    /// Hears replies; `true` where the consumer is lost.
    fn hear(&self, listener: &mut Listener, consumer: &BaseConsumer<Ear>) -> bool {
        let (health, mut pulse) = (&self.settings.health, self.pulse());
        while !self.stopping.load(Ordering::Acquire) {
            match consumer.poll(NAP) {
                Some(Ok(record)) => {
                    listener.next = record.offset() + 1;
                    self.take(&record);
                }
                Some(Err(error)) => health.hear_consumer(&Kind::Private, &error),
                None => {}
            }
            let ask = || consumer.fetch_metadata(Some(&listener.topic), pulse::PATIENCE);
            if pulse.is_lost(health.is_down(), ask) {
                return true;
            }
        }
        false
    }

    fn take(&self, record: &rdkafka::message::BorrowedMessage<'_>) {
        // Those of others who read the same partition are not looked into.
        let token = wire::token(record);
        if let Some(stream) = token.and_then(|token| self.stream(token)) {
            let subject = Subject::parse_any(record.topic());
            let mailbox = self.mailbox.get().and_then(Weak::upgrade);
            if let (Ok(subject), Some(mailbox)) = (subject, mailbox) {
                let read = wire::read(record, &subject, false, &*self.settings.clock);
                mailbox.deliver(read.message.with_correlation_id(stream));
            }
            return;
        }
        let Some(Pending {
            subject, answer, ..
        }) = token.and_then(|token| self.pending_of(token))
        else {
            metrics::counter!("anywire.kafka.unexpected_replies").increment(1);
            return;
        };
        let read = wire::read(record, &subject, false, &*self.settings.clock);
        let _ = answer.send(read.message);
    }

    /// The stream that a frame for us belongs to.
    fn stream<'a>(&self, token: &'a str) -> Option<&'a str> {
        let (nonce, stream) = token.split_once('.')?;
        let stream = stream.strip_prefix(FRAMES)?.strip_prefix('.')?;
        (u64::from_str_radix(nonce, 16) == Ok(self.nonce)).then_some(stream)
    }

    fn pending_of(&self, token: &str) -> Option<Pending> {
        let slot = token.split('.').nth(1)?.parse::<usize>().ok()?;
        let mut pending = self.pending.lock();
        pending.get(slot).filter(|pending| pending.token == token)?;
        pending.try_remove(slot)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// What a consumer of replies is made of.
struct Listener {
    config: rdkafka::ClientConfig,
    topic: String,
    partition: i32,
    /// The offset of the next reply.
    next: i64,
}

impl Listener {
    fn assign(&self, consumer: &BaseConsumer<Ear>) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        let next = Offset::Offset(self.next);
        let _ = list.add_partition_offset(&self.topic, self.partition, next);
        let assigned = consumer.assign(&list);
        assigned.map_err(|error| errors::from(&error, "listening for replies"))
    }
}

/// The ear of the consumer of replies.
struct Ear(Arc<Health>);

impl ClientContext for Ear {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.0.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.hear(&error, reason);
    }
}

impl ConsumerContext for Ear {}

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
