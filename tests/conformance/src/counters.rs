//! What the framework counts, read back.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;

/// A recorder for one app: install it around the app's start with [`record`](Self::record).
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Mutex<BTreeMap<Name, Arc<AtomicU64>>>>);

/// A metric's name and its `handler`, if it has one.
type Name = (String, Option<String>);

impl Counters {
    /// Runs `future` with this as the recorder: handles that it makes count here.
    pub async fn record<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| metrics::with_local_recorder(self, || future.as_mut().poll(cx)))
            .await
    }

    /// A counter of the app.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.read(name, None)
    }

    /// A counter of a handler.
    #[must_use]
    pub fn of(&self, handler: &str, name: &str) -> u64 {
        self.read(name, Some(handler))
    }

    /// A gauge of a handler.
    #[must_use]
    pub fn gauge_of(&self, handler: &str, name: &str) -> f64 {
        f64::from_bits(self.read(name, Some(handler)))
    }

    fn read(&self, name: &str, handler: Option<&str>) -> u64 {
        let name = (name.to_owned(), handler.map(str::to_owned));
        let found = self
            .0
            .lock()
            .get(&name)
            .map(|value| value.load(Ordering::SeqCst));
        found.unwrap_or_default()
    }

    fn value(&self, key: &Key) -> Arc<AtomicU64> {
        let mut labels = key.labels();
        let handler = labels.find(|label| label.key() == "handler");
        let name = (
            key.name().to_owned(),
            handler.map(|label| label.value().to_owned()),
        );
        Arc::clone(self.0.lock().entry(name).or_default())
    }
}

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.value(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.value(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
