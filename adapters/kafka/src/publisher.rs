//! Publishing: each message to its topic, a batch at a time, confirmed by the brokers.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use anywire::clock::Sleep;
use anywire::pattern::Progress;
use anywire::pattern::publish_subscribe::{
    Entry, Guarantee, PublishBatch, Published, Publisher, Receipt, Target,
};
use anywire::{Error, ErrorKind, Message, Subject};
use futures::future::join_all;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::BaseRecord;
use rustc_hash::FxHashSet;

use crate::catalog::Wanted;
use crate::errors;
use crate::names::{self, Rung};
use crate::producer::Native;
use crate::transport::Connection;
use crate::window::{Report, Tally};
use crate::wire::{self, Sending};

/// How soon it is tried again where the library has no room and cannot say when it has.
const AGAIN: Duration = Duration::from_millis(1);
/// How soon it is tried again where no broker answers.
const PAUSE: Duration = Duration::from_millis(100);
/// How long copies are kept that nobody takes, beyond the time that they wait.
const COPIES_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The role that publishes.
#[derive(Debug)]
pub(crate) struct KafkaPublisher {
    connection: Arc<Connection>,
}

impl KafkaPublisher {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Publisher for KafkaPublisher {
    fn publish(&self, batch: PublishBatch) -> Progress<PublishBatch> {
        let mut round = Round::new(&self.connection, batch);
        if self.connection.is_closed() {
            round.refuse_rest(errors::closed);
            return Progress::Done(round.conclude());
        }
        match round.advance() {
            // Nothing is waited for that may be lost.
            Stopped::End if round.sent == 0 => Progress::Done(round.conclude()),
            Stopped::End => {
                let timer = round.timer();
                Progress::pending(Confirming::new(round, timer))
            }
            stopped => Progress::pending(round.finish(stopped)),
        }
    }
}

/// A batch on its way.
struct Round {
    connection: Arc<Connection>,
    native: Arc<Native>,
    batch: PublishBatch,
    tally: Arc<Tally>,
    /// The next entry to be handed over.
    next: usize,
    /// How many were handed over that are confirmed.
    sent: usize,
    /// What ended without the brokers.
    ended: Vec<(usize, Published)>,
}

/// A batch that was handed over whole, and waits for its confirmations.
struct Confirming {
    round: Option<Round>,
    timer: Sleep,
}

impl Confirming {
    fn new(round: Round, timer: Sleep) -> Self {
        Self {
            round: Some(round),
            timer,
        }
    }
}

impl Future for Confirming {
    type Output = PublishBatch;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PublishBatch> {
        let this = &mut *self;
        if let Some(round) = &this.round
            && round.tally.poll(cx).is_pending()
            && Pin::new(&mut this.timer).poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        match this.round.take() {
            Some(round) => Poll::Ready(round.conclude()),
            None => unreachable!("polled again after it was ready"),
        }
    }
}

/// Why handing over has stopped.
#[derive(Debug)]
enum Stopped {
    End,
    /// The topic of the next entry is not known.
    Topic(Place),
    /// There is no room for it.
    Room,
    /// The library has no room, though we have.
    Queue,
    /// The library has given the producer up.
    GivenUp,
}

/// Where an entry goes, as far as that is known.
enum Address<'a> {
    Known(Cow<'a, str>, Sending<'a>),
    Unknown(Place),
    /// Nowhere.
    None(Error),
}

/// A topic that has to be found or made.
#[derive(Clone, Debug)]
struct Place {
    topic: String,
    kind: PlaceKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PlaceKind {
    /// Where the subject is at home.
    Home,
    /// A topic of the framework's own, made when it is first needed, that keeps what it holds for so long.
    Own(Duration),
}

impl Round {
    fn new(connection: &Arc<Connection>, batch: PublishBatch) -> Self {
        Self {
            native: connection.producer.current(),
            tally: Arc::new(Tally::new(batch.len())),
            connection: Arc::clone(connection),
            batch,
            next: 0,
            sent: 0,
            ended: Vec::new(),
        }
    }

    /// Hands over what can be handed over at once.
    fn advance(&mut self) -> Stopped {
        while self.next < self.batch.entries().len() {
            match self.hand_over() {
                Ok(None) => self.sent += 1,
                Ok(Some(ended)) => self.ended.push((self.next, ended)),
                Err(Stopped::GivenUp) => match self.renew() {
                    Ok(()) => continue,
                    Err(error) => self.ended.push((self.next, Published::Rejected(error))),
                },
                Err(stopped) => return stopped,
            }
            self.next += 1;
        }
        Stopped::End
    }

    /// Hands the next entry to the library; gives its outcome where that is the end of it.
    fn hand_over(&self) -> Result<Option<Published>, Stopped> {
        let Some(entry) = self.batch.entries().get(self.next) else {
            return Err(Stopped::End);
        };
        match self.address(entry) {
            Address::Known(topic, sending) => {
                self.produce(&topic, &entry.message, sending, entry.guarantee)
            }
            Address::Unknown(place) => Err(Stopped::Topic(place)),
            Address::None(error) => Ok(Some(Published::Rejected(error))),
        }
    }

    /// Where an entry goes, as far as that is known.
    fn address<'a>(&'a self, entry: &'a Entry) -> Address<'a> {
        let Entry {
            message,
            target,
            not_before,
            guarantee: _,
        } = entry;
        let connection = &self.connection;
        if let Some(error) = too_large(connection, message) {
            return Address::None(error);
        }
        let now = connection.settings.clock.now();
        let wait = not_before.map(|due| due.saturating_duration_since(now));
        let wait = wait.filter(|wait| !wait.is_zero());
        let home = match home(connection, message.subject()) {
            Ok(home) => home,
            Err(error) => return Address::None(error),
        };
        let due = wait.map(|wait| connection.settings.clock.wall() + wait);
        let (topic, sending) = match (target, wait) {
            (Target::Subject, None) => {
                let sending = home.sending(message);
                (home.topic, sending)
            }
            (Target::Subject, Some(wait)) => {
                if !connection.catalog.has(&home.topic) {
                    let topic = home.topic.into_owned();
                    let kind = PlaceKind::Home;
                    return Address::Unknown(Place { topic, kind });
                }
                let rung = Rung::below(wait);
                let mut sending = delayed(message, due);
                // It goes on to a lower rung then.
                let until = (rung.length() < wait).then(|| rung.length());
                sending.until = until.map(|wait| connection.settings.clock.wall() + wait);
                (Cow::Owned(names::delay(rung)), sending)
            }
            (Target::Subscription(subscription), wait) => {
                let Some(group) = &subscription.group else {
                    let text =
                        "a broadcast subscription has no address on Kafka; only a group's has";
                    return Address::None(Error::new(ErrorKind::Unsupported, text));
                };
                let rung = wait.map_or(Rung::Now, Rung::of);
                match names::retry(group, rung) {
                    Ok(topic) => {
                        let mut sending = delayed(message, due);
                        sending.to = Some(subscription);
                        (Cow::Owned(topic), sending)
                    }
                    Err(error) => return Address::None(error),
                }
            }
        };
        if !connection.catalog.has(&topic) {
            let kind = match *target == Target::Subject && wait.is_none() {
                true => PlaceKind::Home,
                false => PlaceKind::Own(COPIES_KEPT + wait.unwrap_or_default() * 2),
            };
            let topic = topic.into_owned();
            return Address::Unknown(Place { topic, kind });
        }
        Address::Known(topic, sending)
    }

    fn produce(
        &self,
        topic: &str,
        message: &Message,
        sending: Sending<'_>,
        guarantee: Guarantee,
    ) -> Result<Option<Published>, Stopped> {
        let window = &self.connection.producer.window;
        let confirmed = guarantee == Guarantee::AtLeastOnce;
        let at = self.next;
        let who = confirmed.then(|| (Arc::clone(&self.tally), at));
        let Some(number) = window.enter(who, message.byte_len()) else {
            return Err(Stopped::Room);
        };
        if confirmed {
            self.tally.begin(at);
        }
        let record = record(topic, message, sending, number);
        let Err(code) = self.native.send(record) else {
            return Ok((!confirmed).then(|| Published::Accepted(Receipt::new())));
        };
        window.leave(number);
        if confirmed {
            self.tally.take_back(at);
        }
        match code {
            Code::QueueFull => Err(Stopped::Queue),
            // Purged: it was given up while we held it.
            Code::Fatal | Code::PurgeQueue => Err(Stopped::GivenUp),
            code => {
                self.look_after(code, topic);
                let limit = self.connection.settings.config.max_payload;
                let refused = errors::refused(code, message.subject(), limit);
                Ok(Some(Published::Rejected(refused)))
            }
        }
    }

    fn renew(&mut self) -> Result<(), Error> {
        let producer = &self.connection.producer;
        producer.renew(&self.native)?;
        self.native = producer.current();
        Ok(())
    }

    /// Mends what an error tells of.
    fn look_after(&self, code: Code, topic: &str) {
        if matches!(code, Code::UnknownTopic | Code::UnknownTopicOrPartition) {
            self.connection.catalog.forget(topic);
        }
    }

    /// Ends when all must be confirmed.
    fn timer(&self) -> Sleep {
        let clock = &self.connection.settings.clock;
        clock.sleep_until(clock.now() + self.batch.timeout())
    }

    async fn finish(mut self, mut stopped: Stopped) -> PublishBatch {
        let clock = Arc::clone(&self.connection.settings.clock);
        let connection = Arc::clone(&self.connection);
        let mut timer = self.timer();
        let mut is_first = true;
        while !matches!(stopped, Stopped::End) {
            let waiting = async {
                match &stopped {
                    Stopped::End | Stopped::GivenUp => unreachable_end(),
                    Stopped::Topic(place) => {
                        if is_first {
                            self.find_others(place).await;
                        }
                        self.find(self.next, place).await
                    }
                    Stopped::Room => {
                        connection.producer.window.wait(self.bytes_of_next()).await;
                        Ok(())
                    }
                    Stopped::Queue => {
                        clock.sleep_until(clock.now() + AGAIN).await;
                        Ok(())
                    }
                }
            };
            let waited = tokio::select! {
                waited = waiting => waited,
                () = &mut timer => {
                    let is_down = self.connection.settings.health.is_down();
                    let for_a_topic = matches!(stopped, Stopped::Topic(_));
                    self.refuse_rest(|| not_sent(is_down, for_a_topic));
                    return self.conclude();
                }
            };
            is_first &= !matches!(stopped, Stopped::Topic(_));
            if let Err(error) = waited {
                let ended = self.without_a_topic(error);
                self.ended.push((self.next, ended));
                self.next += 1;
            }
            stopped = self.advance();
        }
        Confirming::new(self, timer).await
    }

    fn bytes_of_next(&self) -> usize {
        let next = self.batch.entries().get(self.next);
        next.map_or(0, |entry| entry.message.byte_len())
    }

    /// Finds out about all other topics that are not known, side by side: a batch may go to very many. What comes of it
    /// is seen when it is their turn.
    async fn find_others(&self, first: &Place) {
        let mut known = FxHashSet::default();
        known.insert(first.topic.clone());
        let mut places = vec![(self.next, first.clone())];
        for (at, entry) in self.batch.entries().iter().enumerate().skip(self.next) {
            if let Address::Unknown(place) = self.address(entry)
                && known.insert(place.topic.clone())
            {
                places.push((at, place));
            }
        }
        if places.len() > 1 {
            let finding = places.iter().map(|(at, place)| self.find(*at, place));
            join_all(finding).await;
        }
    }

    /// Finds out about a topic, or makes it.
    async fn find(&self, at: usize, place: &Place) -> Result<(), Error> {
        let Some(entry) = self.batch.entries().get(at) else {
            return Ok(());
        };
        let catalog = &self.connection.catalog;
        let clock = &self.connection.settings.clock;
        loop {
            let found = match place.kind {
                PlaceKind::Home => catalog.find(entry.message.subject(), &place.topic).await,
                PlaceKind::Own(kept) => {
                    let small = catalog.small(kept);
                    let made = match entry.target {
                        // Who moves must have them all when the first is due: a group takes its time for a new topic.
                        Target::Subject => self.make_rungs(entry, &small).await,
                        Target::Subscription(_) => catalog.create(&place.topic, &small).await,
                    };
                    if made.is_ok() && names::is_delay(&place.topic) {
                        self.connection.start_moving();
                    }
                    made
                }
            };
            match found {
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    clock.sleep_until(clock.now() + PAUSE).await;
                }
                found => return found,
            }
        }
    }

    /// Makes the topics in which an event waits.
    async fn make_rungs(&self, entry: &Entry, like: &Wanted) -> Result<(), Error> {
        let now = self.connection.settings.clock.now();
        let due = entry.not_before.unwrap_or(now);
        let first = Rung::below(due.saturating_duration_since(now));
        let rungs = first.lower().chain([first]).map(names::delay);
        let made = rungs.map(async |topic| self.connection.catalog.create(&topic, like).await);
        join_all(made).await.into_iter().collect()
    }

    /// What becomes of an entry that has nowhere to go.
    fn without_a_topic(&self, error: Error) -> Published {
        let entry = self.batch.entries().get(self.next);
        let may_be_lost = entry.is_some_and(|entry| entry.guarantee == Guarantee::AtMostOnce);
        match may_be_lost && error.kind() == ErrorKind::NoRoute {
            true => Published::Accepted(Receipt::new()),
            false => Published::Rejected(error),
        }
    }

    /// Ends all that was not handed over.
    fn refuse_rest(&mut self, why: impl Fn() -> Error) {
        for at in self.next..self.batch.entries().len() {
            self.ended.push((at, Published::Rejected(why())));
        }
        self.next = self.batch.entries().len();
    }

    /// Records the outcomes.
    fn conclude(mut self) -> PublishBatch {
        let mut ended = std::mem::take(&mut self.ended).into_iter().peekable();
        for at in 0..self.batch.entries().len() {
            let outcome = match ended.next_if(|(of, _)| *of == at) {
                Some((_, outcome)) => outcome,
                None => self.outcome(at),
            };
            self.batch.record(outcome);
        }
        self.batch
    }

    fn outcome(&self, at: usize) -> Published {
        match self.tally.report(at) {
            Report::Stored => Published::Accepted(Receipt::new()),
            Report::Failed(code) => {
                let limit = self.connection.settings.config.max_payload;
                let Some(entry) = self.batch.entries().get(at) else {
                    return Published::Unknown(unconfirmed());
                };
                let subject = entry.message.subject();
                if let Address::Known(topic, _) = self.address(entry) {
                    self.look_after(code, &topic);
                }
                errors::outcome(code, subject, limit)
            }
            Report::Sent | Report::Unsent => Published::Unknown(unconfirmed()),
        }
    }
}

/// Never awaited: handing over has come to its end.
fn unreachable_end() -> Result<(), Error> {
    Ok(())
}

/// Where a subject is at home.
struct Home<'a> {
    topic: Cow<'a, str>,
    /// Whether the topic carries other subjects as well.
    packed: bool,
}

impl Home<'_> {
    fn sending<'a>(&self, message: &'a Message) -> Sending<'a> {
        Sending {
            subject: self.packed.then_some(message.subject()),
            ..Sending::default()
        }
    }
}

fn home<'a>(connection: &'a Connection, subject: &'a Subject) -> Result<Home<'a>, Error> {
    for rule in connection.settings.rules.iter() {
        if rule.pattern.matches(subject) {
            if let Some(topic) = &rule.topic.topic {
                return Ok(Home {
                    topic: Cow::Borrowed(topic),
                    packed: true,
                });
            }
            break;
        }
    }
    let topic = names::topic(subject).map_err(|error| error.with_context("subject", subject))?;
    Ok(Home {
        topic,
        packed: false,
    })
}

/// How a message goes on a topic of the framework's own.
fn delayed(message: &Message, due: Option<SystemTime>) -> Sending<'_> {
    Sending {
        subject: Some(message.subject()),
        due,
        ..Sending::default()
    }
}

/// A message as the library wants it.
pub(crate) fn record<'a>(
    topic: &'a str,
    message: &'a Message,
    sending: Sending<'_>,
    number: usize,
) -> BaseRecord<'a, [u8], [u8], usize> {
    BaseRecord {
        topic,
        partition: None,
        payload: wire::payload(message),
        key: message.key().map(anywire::Key::as_bytes),
        timestamp: wire::timestamp(message),
        headers: wire::headers(message, sending),
        delivery_opaque: number,
    }
}

fn unconfirmed() -> Error {
    let text = "nothing was confirmed by the deadline; the message may be stored";
    Error::new(ErrorKind::OutcomeUnknown, text)
}

fn not_sent(is_down: bool, for_a_topic: bool) -> Error {
    match (is_down, for_a_topic) {
        (false, false) => errors::full(),
        (false, true) => Error::new(
            ErrorKind::Unavailable,
            "the brokers did not list or create its topic by the deadline; try again, or create topics beforehand",
        ),
        (true, _) => Error::new(
            ErrorKind::Unavailable,
            "no Kafka broker could be reached by the deadline",
        ),
    }
}

pub(crate) fn too_large(connection: &Connection, message: &Message) -> Option<Error> {
    let (size, limit) = (
        message.payload().len(),
        connection.settings.config.max_payload,
    );
    (size > limit).then(|| errors::too_large(limit).with_context("subject", message.subject()))
}
