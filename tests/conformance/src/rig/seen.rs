//! What a handler was given.

use std::collections::HashSet;
use std::future::{Ready, ready};
use std::sync::Arc;

use anywire::pattern::publish_subscribe::Start;
use anywire::{Client, Error, Message, Result, Subscription};
use parking_lot::Mutex;

/// The numbers that a handler was given, each as often as it was.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<Vec<u64>>>);

impl Seen {
    /// A handler that writes down what it is given.
    pub fn handler(&self) -> impl Fn(u64) -> Ready<Result<()>> + Send + Sync + 'static + use<> {
        let seen = Arc::clone(&self.0);
        move |number| {
            seen.lock().push(number);
            ready(Ok(()))
        }
    }

    /// Whether each of these was seen at least once.
    #[must_use]
    pub fn has_all(&self, numbers: impl IntoIterator<Item = u64>) -> bool {
        let seen: HashSet<_> = self.0.lock().iter().copied().collect();
        numbers.into_iter().all(|number| seen.contains(&number))
    }

    /// What was seen, in order, without repeats.
    #[must_use]
    pub fn distinct(&self) -> Vec<u64> {
        let mut seen = self.0.lock().clone();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    /// How often this number was seen.
    #[must_use]
    pub fn times(&self, number: u64) -> usize {
        let seen = self.0.lock();
        seen.iter().filter(|found| **found == number).count()
    }

    /// How often a handler ran.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }
}

/// The dead letters of a group, from the first on.
///
/// # Errors
/// As [`Client::subscribe`].
pub async fn dead_letters(client: &Client, group: &str) -> Result<Subscription<Message>, Error> {
    let subject = format!("anywire.dead.{group}");
    let subscribe = client.subscribe::<Message>(subject.as_str());
    subscribe.start(Start::Earliest).await
}
