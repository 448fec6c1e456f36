//! The broker's objects: which there must be for a subscription, a store, a delay or a call, and what they are made of.
//!
//! The broker closes the channel on which it refuses something, so each object is looked after on a channel of its own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anywire::config::TransportConfig;
use anywire::pattern::publish_subscribe::{Guarantee, Order, Provision, Spec, Start, Store};
use anywire::{Error, ErrorKind, Pattern};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions,
    ConfirmSelectOptions, ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use parking_lot::Mutex;

use crate::config::{MAX_TIMER, QueueType, RabbitmqConfig};
use crate::errors;
use crate::link::Link;
use crate::names::{self, Names};
use crate::wire;

/// The broker must not give a message up by itself: 4.x does after 20 deliveries unless told otherwise, and 3.x takes no
/// `-1` for never. With a limit, however high, what is returned keeps its place in the queue.
const DELIVERY_LIMIT: i64 = i32::MAX as i64;
/// How long a private queue outlives its instance: longer than a reconnect takes.
const PRIVATE_EXPIRY: Duration = Duration::from_secs(60);
/// How long a delay queue outlives the last message that was put into it.
const DELAY_MARGIN: Duration = Duration::from_secs(20 * 60);
/// How often it is declared anew, which renews its time.
const DELAY_RENEWAL: Duration = Duration::from_secs(5 * 60);
/// How many queues we remember to have declared.
const REMEMBERED: usize = 4096;
/// How many messages are moved at a time.
const TRANSFER: usize = 256;
/// The longest step: the broker's timers reach no further.
const LAST_STEP: u32 = 22;

/// Looks after the broker's objects.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) names: Names,
    config: RabbitmqConfig,
    transport: Arc<TransportConfig>,
    delays: Mutex<HashMap<String, Instant>>,
    /// What was logged: each object once.
    told: Mutex<HashSet<String>>,
}

/// A queue, as it is declared.
struct Wanted {
    name: String,
    arguments: FieldTable,
    auto_delete: bool,
}

impl Topology {
    pub(crate) fn new(config: RabbitmqConfig, transport: Arc<TransportConfig>) -> Self {
        Self {
            names: Names::new(&config.exchange),
            config,
            transport,
            delays: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// The name of a subscription's queue; `unique` is for one that is private.
    pub(crate) fn queue(&self, spec: &Spec, unique: u128) -> String {
        let subscription = &spec.subscription;
        match (&subscription.group, spec.guarantee) {
            (None, _) => self.names.private(unique),
            (Some(_), Guarantee::AtMostOnce) => self.names.fleeting(subscription),
            (Some(_), Guarantee::AtLeastOnce) => self.names.subscription(subscription),
        }
    }

    /// Makes sure that the queue of a subscription is there and bound; its name.
    pub(crate) async fn ensure_subscription(
        &self,
        link: &Link,
        channel: &Channel,
        spec: &Spec,
        unique: u128,
    ) -> Result<String, Error> {
        let pattern = &spec.subscription.pattern;
        let queue = self.queue(spec, unique);
        // A private queue is made whatever the policy: nobody else could.
        let provision = match spec.subscription.group {
            None => Provision::Create,
            Some(_) => spec.provision,
        };
        if provision == Provision::None {
            return Ok(queue);
        }
        let exchange = self.names.exchange();
        self.ensure_exchange(channel, exchange, spec.provision)
            .await?;
        if pattern.is_dead_letters() && queue == self.names.store(pattern) {
            self.ensure_dead_letters(link, channel, pattern, spec.retention, provision)
                .await?;
            return Ok(queue);
        }
        let wanted = self.of_subscription(spec, queue);
        let is_durable =
            spec.guarantee == Guarantee::AtLeastOnce && spec.subscription.group.is_some();
        let has_store = is_durable
            && provision == Provision::Create
            && self.exists(link, &self.names.store(pattern)).await?;
        if has_store && spec.start == Start::Earliest {
            self.claim_store(link, channel, &wanted.name).await?;
        }
        self.ensure_queue(link, channel, &wanted, provision).await?;
        self.bind(channel, &wanted.name, exchange, pattern, provision)
            .await?;
        if has_store {
            self.end_store(link, pattern, &wanted.name).await?;
        }
        Ok(wanted.name)
    }

    /// Notes on the broker that a queue which is yet to be made shall have what the store of its pattern holds: who comes after
    /// a crash takes over the rest.
    async fn claim_store(&self, link: &Link, channel: &Channel, queue: &str) -> Result<(), Error> {
        if self.exists(link, queue).await? {
            return Ok(());
        }
        let mut arguments = FieldTable::default();
        put_text(&mut arguments, "x-queue-type", "classic");
        let claim = Wanted {
            name: self.names.claim(queue),
            arguments,
            auto_delete: false,
        };
        self.ensure_queue(link, channel, &claim, Provision::Create)
            .await
    }

    /// A store holds what nobody has subscribed to. A group that comes for just its pattern has a queue from now on: the first
    /// takes along what is there, and the store goes.
    async fn end_store(&self, link: &Link, pattern: &Pattern, queue: &str) -> Result<(), Error> {
        let (store, claim) = (self.names.store(pattern), self.names.claim(queue));
        let is_claimed = self.exists(link, &claim).await?;
        let channel = link.channel().await?;
        if is_claimed && !is_alone(&channel, &claim).await? {
            // Another instance of the group is at it.
            return Ok(());
        }
        if !self.exists(link, &store).await? {
            // Another one has just done it.
            return self.delete(link, &claim).await;
        }
        let unbound = channel.queue_unbind(
            store.as_str().into(),
            self.names.exchange().into(),
            names::binding(pattern).as_str().into(),
            FieldTable::default(),
        );
        unbound.await.map_err(errors::operation)?;
        if is_claimed {
            let moved = transfer(&channel, &store, queue).await;
            moved.map_err(errors::operation)?;
            // First the claim: what is left behind by a crash now is empty.
            self.delete(link, &claim).await?;
        }
        self.delete(link, &store).await
    }

    /// Makes sure that there is a place for what matches a pattern before anybody subscribes.
    pub(crate) async fn ensure_store(&self, link: &Link, store: &Store) -> Result<(), Error> {
        let Store {
            pattern,
            retention,
            provision,
        } = store;
        if *provision == Provision::None {
            return Ok(());
        }
        let channel = &link.channel().await?;
        let exchange = self.names.exchange();
        self.ensure_exchange(channel, exchange, *provision).await?;
        if pattern.is_dead_letters() && pattern.is_literal() {
            return self
                .ensure_dead_letters(link, channel, pattern, *retention, *provision)
                .await;
        }
        let wanted = Wanted {
            name: self.names.store(pattern),
            arguments: self.durable(pattern, *retention),
            auto_delete: false,
        };
        self.ensure_queue(link, channel, &wanted, *provision)
            .await?;
        self.bind(channel, &wanted.name, exchange, pattern, *provision)
            .await
    }

    /// The queue of dead letters is there for its readers as it is: they may not agree with its writer about retention.
    async fn ensure_dead_letters(
        &self,
        link: &Link,
        channel: &Channel,
        pattern: &Pattern,
        retention: Duration,
        provision: Provision,
    ) -> Result<(), Error> {
        let wanted = Wanted {
            name: self.names.store(pattern),
            arguments: self.durable(pattern, retention),
            auto_delete: false,
        };
        if !self.exists(link, &wanted.name).await? {
            self.ensure_queue(link, channel, &wanted, provision).await?;
        }
        let exchange = self.names.exchange();
        self.bind(channel, &wanted.name, exchange, pattern, provision)
            .await
    }

    /// Makes sure that calls to a pattern find their way; the name of their queue.
    pub(crate) async fn ensure_calls(
        &self,
        link: &Link,
        channel: &Channel,
        pattern: &Pattern,
    ) -> Result<String, Error> {
        let exchange = self.names.calls_exchange();
        self.ensure_exchange(channel, &exchange, Provision::Create)
            .await?;
        let mut arguments = FieldTable::default();
        put_text(&mut arguments, "x-queue-type", "classic");
        let wanted = Wanted {
            name: self.names.calls(pattern),
            arguments,
            auto_delete: true,
        };
        self.ensure_queue(link, channel, &wanted, Provision::Create)
            .await?;
        self.bind(channel, &wanted.name, &exchange, pattern, Provision::Create)
            .await?;
        Ok(wanted.name)
    }

    /// Makes sure that messages for a queue can wait; the queue where they do.
    ///
    /// # Errors
    /// `NoRoute` where there is no such queue; `Unsupported` for a delay beyond the broker's timers.
    pub(crate) async fn ensure_delay_for(
        &self,
        link: &Link,
        queue: &str,
        delay: Duration,
    ) -> Result<String, Error> {
        let step = step(delay)?;
        let name = self.names.delay_for(step, queue);
        if self.is_declared(&name) {
            return Ok(name);
        }
        if !self.exists(link, queue).await? {
            return Err(Error::new(
                ErrorKind::NoRoute,
                "the subscription has no queue on the broker; start its handler first",
            ));
        }
        let mut arguments = self.waiting(step);
        put_text(&mut arguments, "x-dead-letter-exchange", "");
        put_text(&mut arguments, "x-dead-letter-routing-key", queue);
        if self.config.queue_type == QueueType::Quorum {
            put_text(&mut arguments, "x-dead-letter-strategy", "at-least-once");
        }
        let wanted = Wanted {
            name,
            arguments,
            auto_delete: false,
        };
        let channel = link.channel().await?;
        self.ensure_queue(link, &channel, &wanted, Provision::Create)
            .await?;
        self.declared(&wanted.name);
        Ok(wanted.name)
    }

    /// Makes sure that events can wait for so many seconds; the exchange that takes them.
    ///
    /// There is a rung for each power of two, and an event has a header for each that its wait is made of. A rung's exchange
    /// gives it to the rung's queue, or passes it on to the next lower one; so does the queue when the time is over. Its key
    /// stays what it is.
    ///
    /// # Errors
    /// Where the broker refuses something.
    pub(crate) async fn ensure_ladder(&self, link: &Link, seconds: u32) -> Result<String, Error> {
        let top = seconds.max(1).ilog2();
        let name = self.names.rung(top);
        if self.is_declared(&name) {
            return Ok(name);
        }
        let channel = link.channel().await?;
        self.ensure_ladders_end(link, &channel).await?;
        for step in 0..=top {
            let rung = self.names.rung(step);
            if !self.is_declared(&rung) {
                self.ensure_rung(link, &channel, step).await?;
                self.declared(&rung);
            }
        }
        Ok(name)
    }

    async fn ensure_rung(&self, link: &Link, channel: &Channel, step: u32) -> Result<(), Error> {
        let next = match step.checked_sub(1) {
            Some(lower) => self.names.rung(lower),
            None => self.names.ladders_end(),
        };
        let mut arguments = self.waiting(step);
        // An event that came to a rung without its queue would be passed on too early: it stays.
        arguments = without(&arguments, "x-expires");
        put_text(&mut arguments, "x-dead-letter-exchange", &next);
        if self.config.queue_type == QueueType::Quorum {
            put_text(&mut arguments, "x-dead-letter-strategy", "at-least-once");
        }
        let wanted = Wanted {
            name: self.names.rung(step),
            arguments,
            auto_delete: false,
        };
        let mut passes = FieldTable::default();
        put_text(&mut passes, "alternate-exchange", &next);
        let name = wanted.name.as_str();
        declare_exchange(channel, name, ExchangeKind::Headers, passes).await?;
        self.ensure_queue(link, channel, &wanted, Provision::Create)
            .await?;
        let mut takes = FieldTable::default();
        put_text(&mut takes, "x-match", "all");
        takes.insert(wire::rung(step).into(), AMQPValue::Boolean(true));
        let options = QueueBindOptions::default();
        let bound = channel.queue_bind(name.into(), name.into(), "".into(), options, takes);
        bound.await.map_err(errors::operation)
    }

    async fn ensure_ladders_end(&self, link: &Link, channel: &Channel) -> Result<(), Error> {
        let mut arguments = FieldTable::default();
        put_text(&mut arguments, "x-queue-type", "classic");
        put_number(&mut arguments, "x-message-ttl", 0);
        let end = Wanted {
            name: self.names.ladders_end(),
            arguments,
            auto_delete: false,
        };
        let name = end.name.as_str();
        let none = FieldTable::default();
        declare_exchange(channel, name, ExchangeKind::Fanout, none.clone()).await?;
        self.ensure_exchange(channel, self.names.exchange(), Provision::Create)
            .await?;
        let options = ExchangeBindOptions::default();
        let main = self.names.exchange();
        let bound =
            channel.exchange_bind(main.into(), name.into(), "".into(), options, none.clone());
        bound.await.map_err(errors::operation)?;
        // The last rung keeps what nobody confirms, and an event that nobody wants when it is due would hold up the others.
        self.ensure_queue(link, channel, &end, Provision::Create)
            .await?;
        let options = QueueBindOptions::default();
        let bound = channel.queue_bind(name.into(), name.into(), "".into(), options, none);
        bound.await.map_err(errors::operation)
    }

    /// Whether a queue is there.
    pub(crate) async fn exists(&self, link: &Link, queue: &str) -> Result<bool, Error> {
        let channel = link.channel().await?;
        match passive(&channel, queue).await {
            Ok(()) => Ok(true),
            Err(error) if errors::is_soft(&error, &AMQPSoftError::NOTFOUND) => Ok(false),
            // Only its owner sees a queue that is exclusive, and it is there.
            Err(error) if errors::is_soft(&error, &AMQPSoftError::RESOURCELOCKED) => Ok(true),
            Err(error) => Err(errors::operation(error)),
        }
    }

    /// Deletes a queue, if it is there.
    pub(crate) async fn delete(&self, link: &Link, queue: &str) -> Result<(), Error> {
        let channel = link.channel().await?;
        let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
        deleted.await.map(drop).map_err(errors::operation)
    }

    async fn ensure_exchange(
        &self,
        channel: &Channel,
        name: &str,
        provision: Provision,
    ) -> Result<(), Error> {
        let options = ExchangeDeclareOptions {
            durable: true,
            passive: provision == Provision::Verify,
            ..ExchangeDeclareOptions::default()
        };
        let declared = channel.exchange_declare(
            name.into(),
            ExchangeKind::Topic,
            options,
            FieldTable::default(),
        );
        let declared = declared.await.map_err(errors::operation);
        declared.map_err(|error| self.at(error, "exchange", name))
    }

    async fn ensure_queue(
        &self,
        link: &Link,
        channel: &Channel,
        wanted: &Wanted,
        provision: Provision,
    ) -> Result<(), Error> {
        if provision == Provision::Verify {
            return self.verify(link, wanted).await;
        }
        // Declaring what is there compares it, and the broker names what differs.
        let declared = declare(channel, wanted).await.map_err(errors::operation);
        declared.map_err(|error| self.at(error, "queue", &wanted.name))?;
        let mut told = self.told.lock();
        if told.len() < REMEMBERED && told.insert(wanted.name.clone()) {
            tracing::info!(transport = %self.transport.name, queue = wanted.name, "a queue was declared");
        }
        Ok(())
    }

    /// Compares a queue that must be there. Who may not configure it may use it, but not compare it.
    async fn verify(&self, link: &Link, wanted: &Wanted) -> Result<(), Error> {
        let name = wanted.name.as_str();
        if !self.exists(link, name).await? {
            let message = "the queue does not exist; create it, or set `provision = \"create\"`";
            let error = Error::new(ErrorKind::NotFound, message);
            return Err(self.at(error, "queue", name));
        }
        let channel = link.channel().await?;
        match declare(&channel, wanted).await {
            Ok(()) => Ok(()),
            Err(error) if errors::is_soft(&error, &AMQPSoftError::ACCESSREFUSED) => {
                tracing::info!(
                    queue = name,
                    "its arguments cannot be compared: the user may not configure it"
                );
                Ok(())
            }
            Err(error) => Err(self.at(errors::operation(error), "queue", name)),
        }
    }

    async fn bind(
        &self,
        channel: &Channel,
        queue: &str,
        exchange: &str,
        pattern: &Pattern,
        provision: Provision,
    ) -> Result<(), Error> {
        if provision != Provision::Create {
            // AMQP cannot ask for bindings.
            return Ok(());
        }
        let bound = channel.queue_bind(
            queue.into(),
            exchange.into(),
            names::binding(pattern).as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        let bound = bound.await.map_err(errors::operation);
        bound.map_err(|error| self.at(error, "queue", queue))
    }

    fn at(&self, error: Error, what: &'static str, name: &str) -> Error {
        error
            .with_context("transport", &self.transport.name)
            .with_context(what, name)
    }

    fn of_subscription(&self, spec: &Spec, name: String) -> Wanted {
        let Spec {
            subscription,
            guarantee,
            order,
            start: _,
            until: _,
            window: _,
            provision: _,
            retention,
        } = spec;
        let mut arguments = match (guarantee, &subscription.group) {
            (Guarantee::AtLeastOnce, Some(_)) => self.durable(&subscription.pattern, *retention),
            (Guarantee::AtLeastOnce, None) => {
                let mut arguments = FieldTable::default();
                put_text(&mut arguments, "x-queue-type", "classic");
                put_time(&mut arguments, "x-expires", PRIVATE_EXPIRY);
                put_time(&mut arguments, "x-message-ttl", *retention);
                arguments
            }
            (Guarantee::AtMostOnce, _) => {
                let mut arguments = FieldTable::default();
                put_text(&mut arguments, "x-queue-type", "classic");
                put_time(&mut arguments, "x-expires", self.config.expiry);
                put_number(
                    &mut arguments,
                    "x-max-length",
                    self.config.max_length.into(),
                );
                put_text(&mut arguments, "x-overflow", "drop-head");
                arguments
            }
        };
        if *order == Order::KeyInGroup {
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        }
        Wanted {
            name,
            arguments,
            auto_delete: false,
        }
    }

    /// The arguments of a queue whose messages must not be lost.
    fn durable(&self, pattern: &Pattern, retention: Duration) -> FieldTable {
        let mut arguments = FieldTable::default();
        put_text(
            &mut arguments,
            "x-queue-type",
            self.config.queue_type.as_str(),
        );
        put_time(&mut arguments, "x-message-ttl", retention);
        if self.config.queue_type == QueueType::Quorum {
            put_number(&mut arguments, "x-delivery-limit", DELIVERY_LIMIT);
            if let Some(replicas) = self.replicas(pattern) {
                put_number(&mut arguments, "x-quorum-initial-group-size", replicas);
            }
        }
        self.config.add_arguments(&mut arguments);
        arguments
    }

    /// The arguments of a queue where messages wait for 2^`step` seconds.
    fn waiting(&self, step: u32) -> FieldTable {
        let ttl = Duration::from_secs(1 << step);
        let mut arguments = FieldTable::default();
        put_text(
            &mut arguments,
            "x-queue-type",
            self.config.queue_type.as_str(),
        );
        put_time(&mut arguments, "x-message-ttl", ttl);
        put_text(&mut arguments, "x-overflow", "reject-publish");
        if self.config.queue_type == QueueType::Quorum {
            put_number(&mut arguments, "x-delivery-limit", DELIVERY_LIMIT);
        }
        // It goes with what is in it, so it must outlive that.
        if ttl + DELAY_MARGIN <= MAX_TIMER {
            put_time(&mut arguments, "x-expires", ttl + DELAY_MARGIN);
        }
        arguments
    }

    fn replicas(&self, pattern: &Pattern) -> Option<i64> {
        let mut rules = self.transport.subjects.iter();
        let rule = rules.find(|rule| rule.pattern.covers(pattern))?;
        rule.replicas.map(i64::from)
    }

    fn is_declared(&self, name: &str) -> bool {
        let delays = self.delays.lock();
        delays
            .get(name)
            .is_some_and(|at| at.elapsed() < DELAY_RENEWAL)
    }

    fn declared(&self, name: &str) {
        let mut delays = self.delays.lock();
        if delays.len() == REMEMBERED {
            delays.retain(|_, at| at.elapsed() < DELAY_RENEWAL);
        }
        if delays.len() < REMEMBERED {
            delays.insert(name.to_owned(), Instant::now());
        }
    }

    /// What was declared is to be looked for again: a message did not get there.
    pub(crate) fn forget_delays(&self) {
        self.delays.lock().clear();
    }
}

/// Whether nobody else has this queue for himself; from now on we have, as long as the channel is there.
async fn is_alone(channel: &Channel, queue: &str) -> Result<bool, Error> {
    let options = BasicConsumeOptions {
        exclusive: true,
        ..BasicConsumeOptions::default()
    };
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    match consumer.await {
        Ok(_) => Ok(true),
        Err(error)
            if errors::is_soft(&error, &AMQPSoftError::ACCESSREFUSED)
                || errors::is_soft(&error, &AMQPSoftError::NOTFOUND) =>
        {
            Ok(false)
        }
        Err(error) => Err(errors::operation(error)),
    }
}

/// Moves what is in one queue to another.
async fn transfer(channel: &Channel, from: &str, to: &str) -> lapin::Result<()> {
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    loop {
        let (mut last, mut confirms) = (None, Vec::new());
        while confirms.len() < TRANSFER
            && let Some(message) = channel
                .basic_get(from.into(), BasicGetOptions::default())
                .await?
        {
            last = Some(message.delivery_tag);
            let message = message.delivery;
            let mut headers = message.properties.headers().clone().unwrap_or_default();
            // Its key is now the queue's name.
            put_text(
                &mut headers,
                anywire::wire::SUBJECT,
                message.routing_key.as_str(),
            );
            let properties = message.properties.with_headers(headers);
            let options = BasicPublishOptions::default();
            let sent =
                channel.basic_publish("".into(), to.into(), options, &message.data, properties);
            confirms.push(sent.await?);
        }
        let Some(last) = last else {
            return Ok(());
        };
        for confirm in confirms {
            if !confirm.await?.is_ack() {
                return Err(lapin::ErrorKind::InvalidChannelState(
                    lapin::ChannelState::Connected,
                    "a queue refused what a store kept for it",
                )
                .into());
            }
        }
        channel
            .basic_ack(last, BasicAckOptions { multiple: true })
            .await?;
    }
}

async fn declare(channel: &Channel, wanted: &Wanted) -> lapin::Result<()> {
    let options = QueueDeclareOptions {
        durable: true,
        auto_delete: wanted.auto_delete,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(
        wanted.name.as_str().into(),
        options,
        wanted.arguments.clone(),
    );
    declared.await.map(drop)
}

async fn passive(channel: &Channel, queue: &str) -> lapin::Result<()> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(queue.into(), options, FieldTable::default());
    declared.await.map(drop)
}

/// The step of the ladder that lasts for `delay` at least.
fn step(delay: Duration) -> Result<u32, Error> {
    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    let step = seconds.max(1).next_power_of_two().trailing_zeros();
    match step <= LAST_STEP {
        true => Ok(step),
        false => Err(Error::new(
            ErrorKind::Unsupported,
            "RabbitMQ holds a message for 48 days at most; keep it elsewhere until then",
        )),
    }
}

/// How many seconds of the ladder a wait is made of.
///
/// # Errors
/// `Unsupported` for more than it has.
pub(crate) fn seconds(delay: Duration) -> Result<u32, Error> {
    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    let seconds = u32::try_from(seconds.max(1)).ok();
    let within = seconds.filter(|seconds| seconds.ilog2() <= LAST_STEP);
    within.ok_or_else(|| {
        let text = "RabbitMQ holds an event for 97 days at most; keep it elsewhere until then";
        Error::new(ErrorKind::Unsupported, text)
    })
}

async fn declare_exchange(
    channel: &Channel,
    name: &str,
    kind: ExchangeKind,
    arguments: FieldTable,
) -> Result<(), Error> {
    let options = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let declared = channel.exchange_declare(name.into(), kind, options, arguments);
    declared.await.map_err(errors::operation)
}

fn without(arguments: &FieldTable, name: &str) -> FieldTable {
    let fields = arguments.inner().iter();
    let others = fields.filter(|(found, _)| found.as_str() != name);
    others
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect::<std::collections::BTreeMap<_, _>>()
        .into()
}

fn put_text(arguments: &mut FieldTable, name: &str, value: &str) {
    arguments.insert(name.into(), AMQPValue::LongString(value.into()));
}

fn put_number(arguments: &mut FieldTable, name: &str, value: i64) {
    arguments.insert(name.into(), AMQPValue::LongLongInt(value));
}

fn put_time(arguments: &mut FieldTable, name: &str, value: Duration) {
    let millis = value.min(MAX_TIMER).max(Duration::from_millis(1));
    let millis = i64::try_from(millis.as_millis()).unwrap_or(i64::MAX);
    put_number(arguments, name, millis);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_step_is_never_shorter_than_the_delay() {
        let of = |millis| step(Duration::from_millis(millis)).unwrap();
        assert_eq!(
            [of(1), of(1_000), of(1_001), of(2_000), of(600_000)],
            [0, 0, 1, 1, 10]
        );
        for millis in (0..200_000).step_by(777) {
            assert!(Duration::from_secs(1 << of(millis)) >= Duration::from_millis(millis));
        }
        let error = step(Duration::from_secs(1 << 23)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
