//! Wires with streaming calls: memory, which has them, and memory with the emulation, over a post that fails as it is told.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anywire::clock::{Clock, ManualClock};
use anywire::config::TransportConfig;
use anywire::memory::{self, MemoryBroker};
use anywire::pattern::Progress;
use anywire::pattern::publish_subscribe::{Publisher, Spec, Subscriber};
use anywire::pattern::request_reply::{CallSpec, Requester, Responder};
use anywire::pattern::streaming::{Emulation, Mailbox, Post, Streamer};
use anywire::transport::{Adapter, BrokerObject, Status, Transport};
use anywire::{
    App, Capabilities, Config, Error, ErrorKind, Message, Router, RunningApp, Support, async_trait,
};
use parking_lot::Mutex;
use tokio::sync::watch;

pub const HEARTBEAT: Duration = Duration::from_secs(4);

/// What becomes of a frame on its way.
pub enum Fate {
    Arrives(Vec<Message>),
    /// The wire takes it when the town lets go.
    Waits(Message),
    Fails(ErrorKind),
}

impl From<Vec<Message>> for Fate {
    fn from(frames: Vec<Message>) -> Self {
        Self::Arrives(frames)
    }
}

pub type Fault = dyn Fn(Message) -> Fate + Send + Sync;

/// An opening, and who sent it.
type Asked = (Arc<dyn Requester>, Message, Instant);

/// Carries frames between the inboxes of this process.
#[derive(Clone)]
pub struct Town {
    houses: Arc<Mutex<HashMap<String, Weak<dyn Mailbox>>>>,
    numbers: Arc<AtomicU64>,
    fault: Arc<Mutex<Option<Arc<Fault>>>>,
    gate: Arc<watch::Sender<bool>>,
    asked: Arc<Mutex<Option<Asked>>>,
}

impl Default for Town {
    fn default() -> Self {
        Self {
            houses: Arc::default(),
            numbers: Arc::default(),
            fault: Arc::default(),
            gate: Arc::new(watch::Sender::new(false)),
            asked: Arc::default(),
        }
    }
}

impl Town {
    pub fn breaks<F: Into<Fate>>(&self, fault: impl Fn(Message) -> F + Send + Sync + 'static) {
        *self.fault.lock() = Some(Arc::new(move |frame| fault(frame).into()));
    }

    pub fn mends(&self) {
        *self.fault.lock() = None;
    }

    /// Frames that wait for the wire leave.
    pub fn lets_go(&self) {
        self.gate.send_replace(true);
    }

    /// Sends the last opening once more, to this subject, and tells how it was answered.
    pub async fn asks_again(&self, subject: &str) -> Result<Message, Error> {
        let (requester, opening, deadline) = self.asked.lock().clone().unwrap();
        let again = Message::new(subject.parse().unwrap(), opening.payload().clone())
            .with_content_type(opening.content_type().cloned())
            .with_frame(opening.frame().unwrap().to_owned());
        requester.request(again, deadline).wait().await
    }

    /// How each inbox shows itself.
    pub fn inboxes(&self) -> Vec<String> {
        let houses = self.houses.lock();
        let houses: Vec<_> = houses.values().filter_map(Weak::upgrade).collect();
        houses.iter().map(|house| format!("{house:?}")).collect()
    }

    fn carry(&self, address: &str, frames: Vec<Message>) {
        let house = self.houses.lock().get(address).and_then(Weak::upgrade);
        if let Some(house) = house {
            frames.into_iter().for_each(|frame| house.deliver(frame));
        }
    }
}

impl fmt::Debug for Town {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Town")
    }
}

#[async_trait]
impl Post for Town {
    async fn open(&self, mailbox: Weak<dyn Mailbox>) -> Result<smol_str::SmolStr, Error> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let address = format!("house.{number}");
        self.houses.lock().insert(address.clone(), mailbox);
        Ok(address.into())
    }

    fn send(&self, address: &str, frame: Message) -> Progress<Result<(), Error>> {
        if frame.payload().len() > 1_000_000 {
            return Progress::Done(Err(Error::new(ErrorKind::TooLarge, "too large")));
        }
        let fault = self.fault.lock().clone();
        let fate = match fault {
            Some(fault) => fault(frame),
            None => Fate::Arrives(vec![frame]),
        };
        match fate {
            Fate::Arrives(frames) => self.carry(address, frames),
            Fate::Fails(kind) => return Progress::Done(Err(Error::new(kind, "the wire failed"))),
            Fate::Waits(frame) => {
                let (town, address) = (self.clone(), address.to_owned());
                let mut gate = self.gate.subscribe();
                return Progress::pending(async move {
                    let _ = gate.wait_for(|is_open| *is_open).await;
                    town.carry(&address, vec![frame]);
                    Ok(())
                });
            }
        }
        Progress::Done(Ok(()))
    }
}

/// Keeps the opening that it sent last.
#[derive(Debug)]
struct Remembering {
    inner: Arc<dyn Requester>,
    town: Town,
}

impl Requester for Remembering {
    fn request(&self, message: Message, deadline: Instant) -> Progress<Result<Message, Error>> {
        *self.town.asked.lock() = Some((Arc::clone(&self.inner), message.clone(), deadline));
        self.inner.request(message, deadline)
    }
}

/// Memory, its streams emulated.
#[derive(Clone, Debug)]
struct Emulated {
    broker: MemoryBroker,
    town: Town,
    heartbeat: Duration,
}

#[async_trait]
impl Adapter for Emulated {
    fn schemes(&self) -> &'static [&'static str] {
        &["memory"]
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        memory::adapter().check(config)
    }

    fn capabilities(&self, config: &TransportConfig) -> Capabilities {
        let mut capabilities = memory::adapter().capabilities(config);
        capabilities.streams = Support::Emulated;
        capabilities
    }

    fn describe(&self, _: &TransportConfig, _: &[Spec], _: &[CallSpec]) -> Vec<BrokerObject> {
        Vec::new()
    }

    async fn connect(
        &self,
        config: TransportConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<dyn Transport>, Error> {
        let adapter = memory::adapter_on(&self.broker);
        let inner = adapter.connect(config, Arc::clone(&clock)).await?;
        let requester = Remembering {
            inner: inner.requester().unwrap(),
            town: self.town.clone(),
        };
        let streamer = Emulation::new(
            Arc::new(requester),
            inner.responder().unwrap(),
            Arc::new(self.town.clone()),
            clock,
            self.heartbeat,
        );
        Ok(Arc::new(EmulatedTransport { inner, streamer }))
    }
}

#[derive(Debug)]
struct EmulatedTransport {
    inner: Arc<dyn Transport>,
    streamer: Emulation,
}

#[async_trait]
impl Transport for EmulatedTransport {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.inner.publisher()
    }

    fn subscriber(&self) -> Arc<dyn Subscriber> {
        self.inner.subscriber()
    }

    fn requester(&self) -> Option<Arc<dyn Requester>> {
        self.inner.requester()
    }

    fn responder(&self) -> Option<Arc<dyn Responder>> {
        self.inner.responder()
    }

    fn streamer(&self) -> Option<Arc<dyn Streamer>> {
        Some(Arc::new(self.streamer.clone()))
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.inner.status()
    }

    async fn close(&self, grace: Duration) -> Result<(), Error> {
        self.inner.close(grace).await
    }
}

/// What a test's apps talk over.
pub struct Wire {
    pub name: &'static str,
    broker: MemoryBroker,
    town: Option<Town>,
    clock: Option<ManualClock>,
}

impl Wire {
    pub fn all() -> [Self; 2] {
        let native = Self {
            name: "native",
            broker: MemoryBroker::new(),
            town: None,
            clock: None,
        };
        [native, Self::emulated().0]
    }

    pub fn emulated() -> (Self, Town) {
        let town = Town::default();
        let wire = Self {
            name: "emulated",
            broker: MemoryBroker::new(),
            town: Some(town.clone()),
            clock: None,
        };
        (wire, town)
    }

    /// Emulated, on a clock that stands still.
    pub fn timed() -> (Self, Town, ManualClock) {
        let (wire, town) = Self::emulated();
        let (wire, clock) = wire.on_a_clock();
        (wire, town, clock)
    }

    pub fn on_a_clock(mut self) -> (Self, ManualClock) {
        let clock = ManualClock::new();
        self.clock = Some(clock.clone());
        (self, clock)
    }

    pub fn town(&self) -> Option<&Town> {
        self.town.as_ref()
    }

    pub fn app(&self, name: &str, router: Router) -> App {
        self.app_that_beats(name, router, HEARTBEAT)
    }

    pub fn app_that_beats(&self, name: &str, router: Router, heartbeat: Duration) -> App {
        let app = App::new(name)
            .config(Config::from_toml("url = 'memory://'").unwrap())
            .router(router);
        let app = match &self.clock {
            Some(clock) => app.clock(Arc::new(clock.clone())),
            None => app,
        };
        match &self.town {
            Some(town) => app.adapter(Emulated {
                broker: self.broker.clone(),
                town: town.clone(),
                heartbeat,
            }),
            None => app.adapter(memory::adapter_on(&self.broker)),
        }
    }

    pub async fn start(&self, router: Router) -> (RunningApp, RunningApp) {
        let shop = self.app("shop", router).start().await.unwrap();
        let till = self.app("till", Router::new()).start().await.unwrap();
        (shop, till)
    }
}

/// Lets the time pass in steps that every sign of life is sent in.
pub async fn pass(clock: &ManualClock, time: Duration) {
    for _ in 0..time.as_millis() / 250 {
        clock.advance(Duration::from_millis(250));
        super::settle().await;
    }
}
