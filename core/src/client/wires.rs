//! Which transport carries a subject, and what holds for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use crate::config::Unrouted;
use crate::pattern::publish_subscribe::{Publisher, Subscriber};
use crate::pattern::request_reply::Requester;
use crate::pattern::streaming::Streamer;
use crate::transport::Transport;
use crate::{Capabilities, Error, ErrorKind, Guarantee, Pattern, Subject};

/// A connected transport under its name.
pub(crate) struct Wire {
    pub(crate) name: String,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) publisher: Arc<dyn Publisher>,
    pub(crate) subscriber: Arc<dyn Subscriber>,
    pub(crate) requester: Option<Arc<dyn Requester>>,
    pub(crate) streamer: Option<Arc<dyn Streamer>>,
    pub(crate) capabilities: Capabilities,
}

/// What holds for the subjects of one rule, or for all others.
#[derive(Clone, Debug)]
pub(crate) struct SubjectRoute {
    pub(crate) wire: usize,
    pub(crate) calls: usize,
    pub(crate) guarantee: Guarantee,
    /// What the configuration says of the guarantee; an emit may not weaken it.
    pub(crate) rule: Option<Guarantee>,
    pub(crate) unrouted: Unrouted,
    pub(crate) retention: Duration,
}

impl SubjectRoute {
    /// The guarantee of an emit that asks for `code`: the rule beats it, but may not weaken it.
    pub(crate) fn guarantee(&self, code: Option<Guarantee>) -> Result<Guarantee, Error> {
        match (code, self.rule) {
            (None, _) => Ok(self.guarantee),
            (Some(code), None) => Ok(code),
            (Some(code), Some(rule)) if rule >= code => Ok(rule),
            (Some(_), Some(_)) => {
                let why = "the subject's rule says at most once where the emit asks for at least once; change one";
                Err(Error::config(why))
            }
        }
    }
}

/// The app's connections and the rules that choose between them.
#[derive(Debug)]
pub(crate) struct Wires {
    wires: Vec<Arc<Wire>>,
    rules: Vec<(Pattern, SubjectRoute)>,
    default: SubjectRoute,
}

impl Wire {
    pub(crate) fn new(name: String, transport: Arc<dyn Transport>) -> Self {
        Self {
            name,
            publisher: transport.publisher(),
            subscriber: transport.subscriber(),
            requester: transport.requester(),
            streamer: transport.streamer(),
            capabilities: transport.capabilities(),
            transport,
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wire").field(&self.name).finish()
    }
}

impl Wires {
    pub(crate) fn new(
        wires: Vec<Arc<Wire>>,
        rules: Vec<(Pattern, SubjectRoute)>,
        default: SubjectRoute,
    ) -> Self {
        Self {
            wires,
            rules,
            default,
        }
    }

    /// The first rule that matches, or the default.
    pub(crate) fn route(&self, subject: &Subject) -> &SubjectRoute {
        let rule = self
            .rules
            .iter()
            .find(|(pattern, _)| pattern.matches(subject));
        rule.map_or(&self.default, |(_, route)| route)
    }

    /// As [`route`](Self::route), for a subscription's pattern.
    pub(crate) fn route_of_pattern(&self, pattern: &Pattern) -> &SubjectRoute {
        let rule = self.rules.iter().find(|(rule, _)| rule.covers(pattern));
        rule.map_or(&self.default, |(_, route)| route)
    }

    pub(crate) fn wire(&self, route: &SubjectRoute) -> &Arc<Wire> {
        &self.wires[route.wire]
    }

    pub(crate) fn requester(&self, subject: &Subject) -> Result<&Arc<dyn Requester>, Error> {
        let wire = &self.wires[self.route(subject).calls];
        wire.requester.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "the transport has no calls; name another under `calls`",
            )
            .with_context("transport", &wire.name)
            .with_context("subject", subject)
        })
    }

    pub(crate) fn streamer(&self, subject: &Subject) -> Result<&Arc<dyn Streamer>, Error> {
        let wire = &self.wires[self.route(subject).calls];
        wire.streamer.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "the transport has no streaming calls; name another under `calls`",
            )
            .with_context("transport", &wire.name)
            .with_context("subject", subject)
        })
    }

    pub(crate) fn at(&self, index: usize) -> &Arc<Wire> {
        &self.wires[index]
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<Wire>> {
        self.wires.iter().find(|wire| wire.name == name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Wire>> {
        self.wires.iter()
    }

    pub(crate) async fn close(&self, grace: Duration) -> Result<(), Error> {
        let results = join_all(self.wires.iter().map(|wire| wire.transport.close(grace))).await;
        results.into_iter().collect()
    }
}
