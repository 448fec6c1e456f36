//! A JetStream subscription: its consumers' messages, merged, with a window of its own.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anywire::clock::Sleep;
use anywire::pattern::publish_subscribe::{Incoming, Received, Settle, Spec};
use anywire::pattern::{Batch, PullResult, Pulled};
use anywire::{Error, ErrorKind, Position, Until};
use async_nats::Subject;
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;

use crate::hostile;
use crate::ledger::{Arrived, Ledger, Told};
use crate::link::Link;
use crate::names::RETRY_STREAM;
use crate::settle::{self, NAK};
use crate::source::{Brought, SILENCE, Source};
use crate::topology::{Bound, PINNED_GROUP};
use crate::transport::{Connection, End};
use crate::wire;

/// The part of a window by which copies for this subscription alone may exceed it while they wait here: were they to
/// share it, a full window would hold them back for ever.
const RETRY_SHARE: usize = 8;
/// How long it takes until a request for which there was no room is made again.
const AGAIN: Duration = Duration::from_millis(5);
/// How long after a failed repair the next is tried.
const REPAIR_PAUSE: Duration = Duration::from_secs(1);

/// The messages of one subscription.
#[derive(Debug)]
pub(crate) struct Intake {
    shared: Arc<Shared>,
    /// Which connection the pulls were sent on.
    epoch: u64,
    repair: Option<Repair>,
    timer: Option<(Instant, Sleep)>,
}

/// Consumers that are looked for, and created where they are gone.
struct Repair(BoxFuture<'static, Result<Vec<Bound>, Error>>);

impl fmt::Debug for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Repair")
    }
}

/// What pulling, settling and closing share.
pub(crate) struct Shared {
    pub(crate) connection: Arc<Connection>,
    pub(crate) link: Arc<Link>,
    spec: Spec,
    private_name: String,
    sources: Mutex<Vec<Source>>,
    /// The stream of each source; none for the one that brings copies.
    places: Vec<Option<Arc<str>>>,
    /// Where each source of a bounded read ends: its last sequence, or none once that has come.
    ends: Option<Mutex<Vec<Option<u64>>>>,
    pub(crate) ledger: Mutex<Ledger>,
    tie: usize,
}

impl Intake {
    pub(crate) async fn open(connection: &Arc<Connection>, spec: &Spec) -> Result<Self, Error> {
        let link = connection.consuming().await?;
        let private_name = format!("anywire-{:032x}", rand::random::<u128>());
        let topology = &connection.topology;
        let bound = topology.ensure_subscription(spec, &private_name).await?;
        let epoch = link.epoch();
        let now = connection.clock.now();
        let ends = match &spec.until {
            None => None,
            Some(Until::Now) => Some(Mutex::new(topology.ends(&bound).await?)),
            Some(_) => return Err(unknown_end()),
        };
        let place = |bound: &Bound| {
            let name = bound.stream.as_str();
            (name != RETRY_STREAM).then(|| Arc::from(name))
        };
        let places = bound.iter().map(place).collect();
        let mut sources = Vec::with_capacity(bound.len());
        for bound in bound {
            let pull = topology.api.pull_subject(&bound.stream, &bound.consumer);
            sources.push(Source::open(&link, bound, pull, now).await?);
        }
        let count = sources.len();
        let shared = Arc::new_cyclic(|this: &Weak<Shared>| Shared {
            tie: connection.tie(Weak::clone(this) as Weak<dyn End>),
            connection: Arc::clone(connection),
            link,
            spec: spec.clone(),
            private_name,
            sources: Mutex::new(sources),
            places,
            ends,
            ledger: Mutex::new(Ledger::new(count)),
        });
        // A close that came between the check and the tie ended everybody but us.
        connection.check_open()?;
        Ok(Self {
            shared,
            epoch,
            repair: None,
            timer: None,
        })
    }

    /// Begins anew on a new connection: the server has forgotten what was asked for, and may have lost more.
    fn follow_reconnect(&mut self, now: Instant) {
        let epoch = self.shared.link.epoch();
        if epoch != self.epoch {
            self.epoch = epoch;
            self.shared
                .sources
                .lock()
                .iter_mut()
                .for_each(|source| source.reset(now));
            self.start_repair();
        }
    }

    fn start_repair(&mut self) {
        if self.repair.is_none() {
            let shared = Arc::clone(&self.shared);
            self.repair = Some(Repair(Box::pin(async move {
                let topology = &shared.connection.topology;
                topology
                    .ensure_subscription(&shared.spec, &shared.private_name)
                    .await
            })));
        }
    }

    fn poll_repair(&mut self, cx: &mut Context<'_>) {
        let Some(repair) = &mut self.repair else {
            return;
        };
        let Poll::Ready(repaired) = repair.0.poll_unpin(cx) else {
            return;
        };
        self.repair = None;
        if let Err(error) = repaired {
            let subscription = &self.shared.spec.subscription;
            tracing::warn!(%subscription, %error, "the consumers of a subscription are gone and cannot be made again yet");
            let clock = Arc::clone(&self.shared.connection.clock);
            let shared = Arc::clone(&self.shared);
            self.repair = Some(Repair(Box::pin(async move {
                clock.sleep_until(clock.now() + REPAIR_PAUSE).await;
                let topology = &shared.connection.topology;
                topology
                    .ensure_subscription(&shared.spec, &shared.private_name)
                    .await
            })));
            // Its first poll arms the pause.
            cx.waker().wake_by_ref();
        }
    }

    /// Takes what has come.
    fn receive(&mut self, cx: &mut Context<'_>, now: Instant) {
        let mut gone = None;
        let mut early = Vec::new();
        let mut sources = self.shared.sources.lock();
        for (at, source) in sources.iter_mut().enumerate() {
            while let Poll::Ready(brought) = source.poll(cx, now) {
                match brought {
                    Brought::Message(message) => {
                        early.extend(self.shared.take_in(at, message, now));
                    }
                    Brought::Gone(why) => {
                        gone = Some(why);
                        break;
                    }
                    Brought::End => break,
                }
            }
            if source.is_silent(now) {
                source.reset(now);
                gone.get_or_insert_with(|| "no sign of life".to_owned());
            }
        }
        drop(sources);
        for (address, nak) in early {
            settle::send(&self.shared.link, address, nak);
        }
        if let Some(why) = gone {
            let subscription = &self.shared.spec.subscription;
            tracing::warn!(%subscription, why, "a consumer does not answer; it is looked for");
            self.start_repair();
        }
    }

    /// Arms the timer for the next look at silent sources.
    fn arm(&mut self, cx: &mut Context<'_>, at: Instant) {
        let clock = &self.shared.connection.clock;
        loop {
            let armed = self.timer.as_ref().map(|(armed, _)| *armed);
            if armed.is_none_or(|armed| armed > at) {
                self.timer = Some((at, clock.sleep_until(at)));
            }
            let Some((_, timer)) = &mut self.timer else {
                return;
            };
            if Pin::new(timer).poll(cx).is_pending() {
                return;
            }
            self.timer = None;
            if at <= clock.now() {
                cx.waker().wake_by_ref();
                return;
            }
        }
    }
}

#[async_trait]
impl Incoming for Intake {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<Received>,
    ) -> Poll<PullResult> {
        let now = self.shared.connection.clock.now();
        if !self.shared.ledger.lock().watch(cx) {
            return Poll::Ready(Ok(Pulled::End));
        }
        self.follow_reconnect(now);
        self.poll_repair(cx);
        self.receive(cx, now);
        let delivered = self.shared.deliver(batch);
        if !delivered && self.shared.is_over() {
            return Poll::Ready(Ok(Pulled::End));
        }
        let asked = self.repair.is_some() || self.shared.ask(batch.room(), now);
        if delivered {
            return Poll::Ready(Ok(Pulled::Some));
        }
        self.arm(cx, now + if asked { SILENCE } else { AGAIN });
        Poll::Pending
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::clone(&self.shared) as Arc<dyn Settle>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.repair = None;
        let alone = Arc::strong_count(&self.shared) == 1;
        self.shared.wind_up(alone).await;
        Ok(())
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.repair = None;
        self.shared.abandon();
    }
}

impl Shared {
    /// Takes a message in; or gives back where it is returned to, and how, when its time has not come.
    fn take_in(
        &self,
        source: usize,
        native: async_nats::Message,
        now: Instant,
    ) -> Option<(Subject, bytes::Bytes)> {
        let address = native.reply?;
        let told = Told::read(&address);
        if !self.is_wanted(source, &told) {
            return None;
        }
        let clock = &*self.connection.clock;
        let read = wire::read(
            &native.subject,
            native.payload,
            native.headers.as_ref(),
            told.time,
            clock,
        );
        if let Some(due) = read.due {
            let wait = due.duration_since(clock.wall()).unwrap_or_default();
            return Some((address, settle::nak_after(wait)));
        }
        let place = self.places.get(source).cloned().flatten();
        let position = place.map(|place| {
            let position = Position::new(place, 0, told.sequence);
            match told.time {
                Some(time) => position.with_time(time),
                None => position,
            }
        });
        self.ledger.lock().take_in(Arrived {
            message: read.message,
            address,
            source,
            since: now,
            deliveries: told.deliveries,
            sequence: told.sequence,
            position,
        });
        None
    }

    /// Whether a message belongs to a bounded read, whose end it may be.
    fn is_wanted(&self, source: usize, told: &Told) -> bool {
        let Some(ends) = &self.ends else {
            return true;
        };
        let mut ends = ends.lock();
        let Some(end) = ends.get_mut(source) else {
            return true;
        };
        // One that comes again was wanted before.
        let wanted = end.is_some_and(|last| told.sequence <= last) || told.deliveries > 1;
        let is_last = told.left == Some(0);
        *end = end.filter(|last| told.sequence < *last && !is_last);
        wanted
    }

    /// Whether a bounded read has brought everything.
    fn is_over(&self) -> bool {
        let Some(ends) = &self.ends else {
            return false;
        };
        ends.lock().iter().all(Option::is_none) && !self.ledger.lock().is_ready()
    }

    /// Asks each source for what its part of the window has room for, and for no more than is wanted: what waits here is
    /// counted as delivered by the server, and others may be idle. Who takes all that there is and wants more than one is
    /// going to want the whole window.
    ///
    /// `false` says that the client has no room for a request now.
    fn ask(&self, wanted: usize, now: Instant) -> bool {
        let mut sources = self.sources.lock();
        let wanted = match wanted > 1 && !self.ledger.lock().is_ready() {
            true => usize::MAX,
            false => wanted,
        };
        let streams = if self.spec.subscription.group.is_some() {
            // The last source brings the copies.
            sources.len().saturating_sub(1)
        } else {
            sources.len()
        };
        let window = self.spec.window;
        let mut sent = true;
        for (at, source) in sources.iter_mut().enumerate() {
            let share = match at < streams {
                true => window / streams,
                false => window / RETRY_SHARE,
            };
            let count = self.ledger.lock().count(at);
            let room = share.max(1).saturating_sub(count).min(wanted);
            let room = room.saturating_sub(source.outstanding());
            // Asked for again when half of it has come, so that more is on its way while the rest is handled.
            let enough = source.outstanding() == 0 || room >= share.min(wanted).div_ceil(2);
            if room > 0 && enough {
                sent &= source.ask(room, now);
            }
        }
        sent
    }

    /// Delivers what is ready, as far as batch and window allow; tells whether the batch holds anything.
    fn deliver(&self, batch: &mut Batch<Received>) -> bool {
        let mut ledger = self.ledger.lock();
        while batch.room() > 0
            && let Some(received) = ledger.deliver(self.spec.window)
        {
            batch.push(received);
        }
        !batch.is_empty()
    }

    /// Whether one client at a time is served, so that order is ours to keep.
    pub(crate) fn keeps_order(&self) -> bool {
        self.spec.order == anywire::Order::KeyInGroup
    }

    /// Ends pulling, gives back what was not pulled, and with `all` what was.
    async fn wind_up(&self, all: bool) {
        let mut left = self.close_ledger(all);
        let sources = std::mem::take(&mut *self.sources.lock());
        let pinned: Vec<_> = sources
            .iter()
            .filter(|source| source.is_pinned())
            .map(|source| source.bound.clone())
            .collect();
        let bound: Vec<_> = sources.iter().map(|source| source.bound.clone()).collect();
        for drained in join_all(sources.into_iter().map(Source::drain)).await {
            left.extend(drained);
        }
        for address in left {
            let _ = self.link.send(settle::message(address, NAK)).await;
        }
        let api = &self.connection.topology.api;
        for bound in pinned {
            let _ = api
                .unpin(&bound.stream, &bound.consumer, PINNED_GROUP)
                .await;
        }
        if self.link.is_connected() {
            let _ = tokio::time::timeout(Duration::from_secs(1), self.link.echo()).await;
            if self.spec.subscription.group.is_none() {
                for bound in bound {
                    let _ = api.delete_consumer(&bound.stream, &bound.consumer).await;
                }
            }
        }
    }

    /// As [`wind_up`](Self::wind_up), without waiting for anything.
    fn abandon(self: &Arc<Self>) {
        let left = self.close_ledger(Arc::strong_count(self) == 1);
        for address in left {
            settle::send(&self.link, address, NAK);
        }
        let sources = std::mem::take(&mut *self.sources.lock());
        let is_private = self.spec.subscription.group.is_none();
        if is_private
            && !sources.is_empty()
            && !self.connection.is_closed()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let connection = Arc::downgrade(&self.connection);
            let bound: Vec<_> = sources.iter().map(|source| source.bound.clone()).collect();
            runtime.spawn(async move {
                for bound in bound {
                    let Some(connection) = connection.upgrade() else {
                        return;
                    };
                    let api = &connection.topology.api;
                    let _ = api.delete_consumer(&bound.stream, &bound.consumer).await;
                }
            });
        }
    }

    /// Marks the end, and gives the addresses of what is not to be kept.
    fn close_ledger(&self, all: bool) -> Vec<Subject> {
        let mut ledger = self.ledger.lock();
        ledger.close();
        let left = ledger.give_back(all);
        let waker = ledger.take_waker();
        drop(ledger);
        if let Some(waker) = waker {
            waker.wake();
        }
        left
    }
}

impl End for Shared {
    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.wind_up(true))
    }

    fn renew(&self, before: Instant) {
        let addresses = self.ledger.lock().older_than(before);
        for address in addresses {
            settle::send(&self.link, address, settle::IN_PROGRESS);
        }
    }

    fn clear_hostile(&self) -> BoxFuture<'_, ()> {
        Box::pin(clear(self))
    }

    fn reconnected(&self) {
        // Tags die with their connection. What they named is returned, or it would wait for its time to run out.
        let mut ledger = self.ledger.lock();
        let left = ledger.give_back(true);
        let waker = ledger.take_waker();
        drop(ledger);
        for address in left {
            settle::send(&self.link, address, NAK);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Clears the consumers of a subscription one by one.
async fn clear(shared: &Shared) {
    let bound: Vec<_> = {
        let sources = shared.sources.lock();
        sources.iter().map(|source| source.bound.clone()).collect()
    };
    for bound in bound {
        if let Err(error) = hostile::clear(&shared.connection, &shared.spec, &bound).await {
            let subscription = &shared.spec.subscription;
            tracing::warn!(%subscription, %error, "cannot look for messages that end the connection");
        }
    }
}

fn unknown_end() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "this adapter does not know how to end a read there",
    )
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.connection.untie(self.tie);
        for address in self.ledger.lock().give_back(true) {
            settle::send(&self.link, address, NAK);
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamSubscription")
            .field("subscription", &self.spec.subscription)
            .finish_non_exhaustive()
    }
}
