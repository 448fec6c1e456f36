//! A running test: its names, its clients, its measurements.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anywire::clock::Clock;
use anywire::pattern::publish_subscribe::{Spec, SubscriptionId};
use anywire::transport::Transport;
use anywire::{
    App, Capabilities, Guarantee, Headers, Message, MessageId, Pattern, Route, Router, RunningApp,
    Subject,
};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::sabotage::Switched;
use crate::sightings::sightings;
use crate::{BrokerControl, Connection, Harness, Profile, Raw, Sabotage, Sightings, Teller};

/// The header that carries the test's own name on every message.
pub const TEST_HEADER: &str = "conformance-test";
/// The shortest time in which "nothing arrives" is believed.
const SHORTEST_QUIET: Duration = Duration::from_millis(500);

/// What a behaviour works with. Clones are the same test.
#[derive(Clone)]
pub struct Test(Arc<Inner>);

struct Inner {
    harness: Arc<dyn Harness>,
    name: String,
    unique: String,
    profile: Profile,
    seed: u64,
    transports: Mutex<Vec<Arc<dyn Transport>>>,
    published: Mutex<HashMap<MessageId, Instant>>,
    latencies: Mutex<Vec<Duration>>,
}

impl Test {
    pub(crate) fn new(harness: Arc<dyn Harness>, name: &str, profile: Profile, seed: u64) -> Self {
        let id = name.split('_').next().unwrap_or(name);
        Self(Arc::new(Inner {
            harness,
            name: name.to_owned(),
            unique: format!("{id}-{:08x}", rand::random::<u32>()),
            profile,
            seed,
            transports: Mutex::default(),
            published: Mutex::default(),
            latencies: Mutex::default(),
        }))
    }

    /// The behaviour's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How hard to push.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.0.profile
    }

    /// What the adapter declares.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.0.harness.capabilities()
    }

    /// The clock of the transports.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.0.harness.clock()
    }

    /// The harness.
    #[must_use]
    pub fn harness(&self) -> &Arc<dyn Harness> {
        &self.0.harness
    }

    /// The way to the broker.
    ///
    /// # Panics
    /// In a behaviour that does not list [`Need::Broker`](crate::Need::Broker).
    #[must_use]
    pub fn broker(&self) -> &dyn BrokerControl {
        let broker = self.0.harness.broker();
        broker.expect("the behaviour must list that it needs the broker")
    }

    /// The native client.
    ///
    /// # Panics
    /// In a behaviour that does not list [`Need::Raw`](crate::Need::Raw).
    #[must_use]
    pub fn raw(&self) -> &dyn Raw {
        let raw = self.0.harness.raw();
        raw.expect("the behaviour must list that it needs a native client")
    }

    /// Randomness that is the same for the same `ANYWIRE_SEED`.
    #[must_use]
    pub fn rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.0.seed)
    }

    /// A subject of this test alone: `tail` behind the test's own first tokens.
    #[must_use]
    pub fn subject(&self, tail: &str) -> Subject {
        Subject::parse(&self.address(tail)).expect("a legal subject")
    }

    /// A pattern of this test alone: `tail` may hold wildcards and captures.
    #[must_use]
    pub fn pattern(&self, tail: &str) -> Pattern {
        Pattern::parse(&self.address(tail)).expect("a legal pattern")
    }

    fn address(&self, tail: &str) -> String {
        format!("{}.{tail}", self.0.harness.subject(&self.0.unique))
    }

    /// A group of this test alone.
    #[must_use]
    pub fn group(&self, name: &str) -> String {
        format!("{name}-{}", self.0.unique)
    }

    /// A subscription of `group` to the pattern `tail`, with the defaults and the harness' own guarantee.
    #[must_use]
    pub fn spec(&self, group: &str, tail: &str) -> Spec {
        let id = SubscriptionId::new(self.group(group), self.pattern(tail));
        Spec::new(id).with_guarantee(self.guarantee())
    }

    /// How sure the delivery is by the harness' configuration.
    #[must_use]
    pub fn guarantee(&self) -> Guarantee {
        self.0.harness.app_config().guarantee()
    }

    /// A subscription of one instance alone.
    #[must_use]
    pub fn broadcast(&self, tail: &str) -> Spec {
        let id = SubscriptionId::broadcast(self.pattern(tail));
        Spec::new(id).with_guarantee(self.guarantee())
    }

    /// A message with an id of its own and the test's header.
    pub fn message(&self, tail: &str, payload: impl Into<bytes::Bytes>) -> Message {
        Message::new(self.subject(tail), payload)
            .with_id(MessageId::random())
            .with_headers(self.headers(&[]))
    }

    /// So many messages; their payloads are their numbers, from 0.
    #[must_use]
    pub fn messages(&self, tail: &str, count: usize) -> Vec<Message> {
        let numbered = |number: usize| {
            let headers = self.headers(&[("number", &number.to_string())]);
            self.message(tail, number.to_string()).with_headers(headers)
        };
        (0..count).map(numbered).collect()
    }

    /// The test's header and these.
    #[must_use]
    pub fn headers(&self, more: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in [(TEST_HEADER, self.name())].iter().chain(more) {
            headers.append(name, *value).expect("a legal header");
        }
        headers
    }

    /// An app of this test, on the wire under test, with a name that no other test uses.
    pub fn app(&self, name: &str) -> App {
        self.sabotaged_app(name, &Sabotage::default())
    }

    /// As [`app`](Self::app), with a switch in its wire.
    pub fn sabotaged_app(&self, name: &str, sabotage: &Sabotage) -> App {
        let adapter = Switched {
            sabotage: sabotage.clone(),
            inner: self.0.harness.adapter(),
        };
        App::new(self.group(name))
            .adapter(adapter)
            .config(self.0.harness.app_config())
            .clock(self.clock())
    }

    /// Starts an app with one handler.
    pub async fn start(&self, name: &str, route: Route) -> RunningApp {
        let app = self.app(name).router(Router::new().route(route));
        app.start().await.expect("the app starts")
    }

    /// A subscription to the dead letters of an app of this test, with a group of its own.
    #[must_use]
    pub fn dead_letters(&self, app: &str) -> Spec {
        let subject = Subject::dead_letters(&self.group(app));
        let pattern = Pattern::parse_any(subject.as_str()).expect("a legal pattern");
        let id = SubscriptionId::new(self.group("reader"), pattern);
        Spec::new(id).with_guarantee(self.guarantee())
    }

    /// A way for handlers to tell the test what they saw.
    #[must_use]
    pub fn sightings<T: Send>(&self) -> (Teller<T>, Sightings<T>) {
        sightings(self.clone())
    }

    /// A new client. It is closed at the end of the test, if the test does not.
    pub async fn connect(&self) -> Connection {
        let connection = self.connect_loose().await;
        let transport = Arc::clone(connection.transport());
        self.0.transports.lock().push(transport);
        connection
    }

    /// A new client that nobody closes: what happens when it is just dropped.
    pub async fn connect_loose(&self) -> Connection {
        let transport = self.0.harness.connect().await;
        Connection::new(self.clone(), transport.expect("the harness connects"))
    }

    /// Closes what the test left open, and lets go of it.
    pub(crate) async fn finish(&self) {
        let transports = std::mem::take(&mut *self.0.transports.lock());
        for transport in transports {
            // A broker that the test broke may refuse; what matters is that nothing is left.
            let _ = transport.close(Duration::from_secs(1)).await;
        }
    }

    pub(crate) fn note_published(&self, id: Option<&MessageId>) {
        if let Some(id) = id {
            self.0.published.lock().insert(id.clone(), Instant::now());
        }
    }

    pub(crate) fn note_received(&self, id: Option<&MessageId>) {
        let start = id.and_then(|id| self.0.published.lock().remove(id));
        if let Some(start) = start {
            self.0.latencies.lock().push(start.elapsed());
        }
    }

    /// The time from publish to receipt that 99 of 100 messages of this test kept, so far.
    #[must_use]
    pub fn p99(&self) -> Duration {
        let mut latencies = self.0.latencies.lock().clone();
        latencies.sort_unstable();
        let at = (latencies.len() * 99).div_ceil(100).saturating_sub(1);
        latencies.get(at).copied().unwrap_or_default()
    }

    /// How much longer than elsewhere this wire may take for whatever involves its broker.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.0.harness.patience(false)
    }

    /// How long after the end of a fault messages must flow again.
    #[must_use]
    pub fn recovery(&self) -> Duration {
        Duration::from_secs(10) + self.patience()
    }

    /// How long something that is to come may stay away.
    #[must_use]
    pub fn gap(&self) -> Duration {
        self.profile().idle_gap() + self.patience()
    }

    /// How long nothing must arrive before "nothing arrives" is believed: rule R4.
    #[must_use]
    pub fn quiet(&self) -> Duration {
        // A backlog that was consumed late is no latency: a quarter of the deadline bounds what it may make of this.
        let ceiling = self.profile().deadline() / 4;
        (self.p99() * 3).clamp(SHORTEST_QUIET, ceiling)
    }
}

impl fmt::Debug for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Test({}, {})", self.0.name, self.0.unique)
    }
}

/// The number that [`Test::messages`] gave a message.
#[must_use]
pub fn number(message: &Message) -> usize {
    let text = std::str::from_utf8(message.payload()).unwrap_or_default();
    text.parse().expect("a numbered message")
}
