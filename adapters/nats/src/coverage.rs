//! Which subjects a stream stores.
//!
//! JetStream answers a publish that no stream stores only where nobody at all listens. Where core subscribers do, the
//! publisher would wait until its deadline. So it is looked up, once for each of a stream's subjects.

use std::collections::HashSet;
use std::sync::Arc;

use anywire::pattern::publish_subscribe::{SubscriptionId, no_route};
use anywire::{Error, ErrorKind, Pattern, Subject};
use parking_lot::RwLock;

use crate::names::{self, RETRY_STREAM};
use crate::topology::{self, Topology};

/// The most of either kind that is remembered.
const MOST: usize = 4096;

/// What is known of the streams' subjects.
#[derive(Debug)]
pub(crate) struct Coverage {
    topology: Arc<Topology>,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    subjects: Vec<Pattern>,
    subscriptions: HashSet<String>,
}

impl Known {
    fn learn(&mut self, subjects: Pattern) {
        // Two may have asked at once.
        if self.subjects.contains(&subjects) {
            return;
        }
        if self.subjects.len() >= MOST {
            self.subjects.clear();
        }
        self.subjects.push(subjects);
    }
}

impl Coverage {
    pub(crate) fn new(topology: Arc<Topology>) -> Self {
        Self {
            topology,
            known: RwLock::default(),
        }
    }

    /// Asks whether a stream stores the subject. `just_missed` says that it was asked a moment ago, for nothing.
    ///
    /// # Errors
    /// `NoRoute`, or why it cannot be told.
    pub(crate) async fn check(&self, subject: &Subject, just_missed: bool) -> Result<(), Error> {
        if self.is_known(subject) {
            return Ok(());
        }
        if just_missed {
            return Err(no_route(subject));
        }
        let literal = Pattern::parse_any(subject.as_str())?;
        let streams = loop {
            match self.topology.api.streams_meeting(&literal).await {
                // The question was lost with its connection. It is asked again on the next; whoever publishes has a
                // deadline.
                Err(error) if error.kind() == ErrorKind::Disconnected => {}
                answer => break answer?,
            }
        };
        let mut known = self.known.write();
        let mut patterns = streams
            .iter()
            .flat_map(|info| topology::patterns(&info.config));
        let stored = patterns.find(|pattern| pattern.matches(subject));
        known.learn(stored.ok_or_else(|| no_route(subject))?);
        Ok(())
    }

    /// Asks whether there is a subscription that copies can be sent to.
    ///
    /// # Errors
    /// `NotFound` where there is none, `Unsupported` for one that is not stored.
    pub(crate) async fn check_subscription(
        &self,
        subscription: &SubscriptionId,
    ) -> Result<(), Error> {
        if subscription.group.is_none() {
            let text = "a broadcast subscription has no address; nothing can be sent to it alone";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let name = names::subscription(subscription);
        if self.known.read().subscriptions.contains(&name) {
            return Ok(());
        }
        if self
            .topology
            .api
            .consumer(RETRY_STREAM, &name)
            .await?
            .is_none()
        {
            let text = "the subscription does not exist; start its handler first";
            let error = Error::new(ErrorKind::NotFound, text);
            return Err(error.with_context("subscription", subscription));
        }
        let mut known = self.known.write();
        if known.subscriptions.len() >= MOST {
            known.subscriptions.clear();
        }
        known.subscriptions.insert(name);
        Ok(())
    }

    /// Forgets everything: something was not as it was known to be.
    pub(crate) fn forget(&self) {
        *self.known.write() = Known::default();
    }

    fn is_known(&self, subject: &Subject) -> bool {
        // A wildcard in first position hides from reserved subjects, but a stream of an operator's does not.
        let known = self.known.read();
        known
            .subjects
            .iter()
            .any(|pattern| pattern.matches(subject))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_known_is_bounded_and_holds_the_last() {
        let pattern = |n: usize| Pattern::parse(&format!("a{n}.>")).unwrap();
        let mut known = Known::default();
        for n in 0..=MOST {
            known.learn(pattern(n));
            known.learn(pattern(n));
        }
        assert_eq!(known.subjects, [pattern(MOST)]);
    }
}
