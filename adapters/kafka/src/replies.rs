//! The replies to a client's calls: a partition of its app's topic, read without a group.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use anywire::pattern::streaming::Mailbox;
use anywire::transport::Status;
use anywire::{Error, ErrorKind, Message, Subject};
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use slab::Slab;
use tokio::sync::oneshot;

use crate::errors;
use crate::group::{Kind, Settings};
use crate::health::Health;
use crate::names;
use crate::pulse::{self, Pulse};
use crate::transport::Connection;
use crate::wire::{self, Address};

/// How long the brokers may take to tell where our replies begin.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a single question may take.
const QUESTION: Duration = Duration::from_millis(500);
/// How long the thread that hears replies waits for one, before it looks whether it should end.
const NAP: Duration = Duration::from_millis(250);
/// How soon a partition without a leader is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What stands in the token of a stream's frame where that of a reply has a number.
const FRAMES: &str = "s";

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

/// The replies to a client's calls: a partition of its app's topic, read without a group.
#[derive(Debug)]
pub(crate) struct Replies {
    shared: Arc<Shared>,
    pub(crate) topic: String,
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
pub(crate) struct Waiting {
    shared: Arc<Shared>,
    slot: usize,
    pub(crate) address: Address,
    pub(crate) answer: oneshot::Receiver<Message>,
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

    pub(crate) fn expect(&self, subject: &Subject) -> Waiting {
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
