//! What handlers tell the test that runs them.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::Test;

/// More than any test's handlers see.
const ROOM: usize = 20_000;

/// A handler's way to tell the test what it saw. Clones tell the same test.
#[derive(Debug)]
pub struct Teller<T>(mpsc::Sender<T>);

impl<T> Clone for Teller<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send> Teller<T> {
    /// Tells it, and is a handler's success.
    ///
    /// # Errors
    /// Never while the test listens.
    pub async fn tell(&self, sighting: T) -> anywire::Result<()> {
        let told = self.0.send(sighting).await;
        told.map_err(|_| anywire::Failure::discard("the test is over"))
    }
}

/// What the handlers of a test saw, in the order in which they told it.
#[derive(Debug)]
pub struct Sightings<T> {
    test: Test,
    told: mpsc::Receiver<T>,
    heard: bool,
}

pub(crate) fn sightings<T>(test: Test) -> (Teller<T>, Sightings<T>) {
    let (tell, told) = mpsc::channel(ROOM);
    let heard = false;
    (Teller(tell), Sightings { test, told, heard })
}

impl<T: std::fmt::Debug> Sightings<T> {
    /// The next one, within the profile's idle gap.
    ///
    /// # Panics
    /// When none comes.
    pub async fn next(&mut self) -> T {
        let gap = self.test.gap();
        let Some(sighting) = self.next_within(gap).await else {
            panic!("no handler saw anything for {gap:?}");
        };
        sighting
    }

    /// The next one, if it comes within `wait`.
    pub async fn next_within(&mut self, wait: Duration) -> Option<T> {
        let sighting = timeout(wait, self.told.recv()).await.ok().flatten();
        self.heard |= sighting.is_some();
        sighting
    }

    /// The next `count`.
    ///
    /// # Panics
    /// When they do not come.
    pub async fn take(&mut self, count: usize) -> Vec<T> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.next().await);
        }
        taken
    }

    /// Asserts that handlers see nothing: rule R4.
    ///
    /// # Panics
    /// When they do, or when they have never seen anything: then silence proves nothing.
    pub async fn stay_quiet(&mut self) {
        assert!(
            self.heard,
            "a negative assertion needs a positive control first"
        );
        if let Some(sighting) = self.next_within(self.test.quiet()).await {
            panic!("handlers were to see nothing, but saw {sighting:?}");
        }
    }
}
