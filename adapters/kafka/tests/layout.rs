//! What an app with many handlers costs: threads, sockets, topics and groups; and that it leaves neither thread nor socket.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anywire::{Result, Router};
use anywire_conformance::rig::{Seen, sockets, threads, until};
use anywire_conformance::trials;
use rdkafka::consumer::{BaseConsumer, Consumer};
use support::{app, native, unique, url};

trials![
    [support::URL] =>
    fifty_handlers_share_one_consumer,
];

/// How many handlers an app has here.
const HANDLERS: usize = 50;
/// Of the library for each client: its own, and one for each broker, those of the first contact and the group's among them.
const THREADS_OF_A_CLIENT: usize = 5;
const PATIENCE: Duration = Duration::from_secs(10);

/// The threads and sockets before there is an app.
struct Before {
    threads: usize,
    sockets: usize,
}

impl Before {
    fn take() -> Self {
        Self {
            threads: threads(),
            sockets: sockets(address()),
        }
    }

    /// `clients` is how many clients of the library there may be, and `connections` how many of those they have.
    fn assert_bounds(&self, clients: usize, connections: usize) {
        // Each has a thread of ours that serves it.
        let added = threads().saturating_sub(self.threads);
        assert!(
            added <= clients * (THREADS_OF_A_CLIENT + 1),
            "{added} threads"
        );
        let added = sockets(address()).saturating_sub(self.sockets);
        assert!(added <= connections, "{added} sockets");
    }

    async fn assert_nothing_is_left(&self) {
        until("the threads' end", || threads() <= self.threads).await;
        until("the sockets' end", || sockets(address()) <= self.sockets).await;
    }
}

/// One after the other, as each counts the threads of the whole process.
async fn fifty_handlers_share_one_consumer() {
    of_events().await;
    of_calls().await;
}

async fn of_events() {
    let (name, seen, before) = (unique("shop"), Seen::default(), Before::take());
    let router = (0..HANDLERS).fold(Router::new(), |router, n| {
        router.on_event(&format!("{name}.placed.{n}"), seen.handler())
    });
    let service = app(&name, &url()).router(router);
    let service = service.start().await.unwrap();
    let client = service.client();
    for n in 0..HANDLERS {
        let subject = format!("{name}.placed.{n}");
        client.emit(subject.as_str(), &n).await.unwrap();
    }
    until("an event for each", || seen.distinct().len() == HANDLERS).await;
    // One publishes, one asks for topics, one consumes, and one may move what waits for its time. A consumer has a connection to
    // its group's coordinator as well.
    before.assert_bounds(4, 6);
    let broker = Objects::of(&name);
    // The dead letters have a topic as well.
    assert_eq!(broker.topics.len(), HANDLERS + 1, "{broker:?}");
    assert_eq!(broker.groups, BTreeSet::from([name.clone()]));
    service.shutdown().await.unwrap();
    before.assert_nothing_is_left().await;
}

async fn of_calls() {
    let (name, before) = (unique("math"), Before::take());
    let router = (0..HANDLERS).fold(Router::new(), |router, n| {
        router.on_call(&format!("{name}.double.{n}"), |number: u64| double(number))
    });
    let service = app(&name, &url()).router(router);
    let service = service.start().await.unwrap();
    let client = service.client();
    for n in 0..HANDLERS {
        let (subject, number) = (format!("{name}.double.{n}"), n as u64);
        let answer: u64 = client.request(subject.as_str(), &number).await.unwrap();
        assert_eq!(answer, 2 * number);
    }
    // One publishes, one asks for topics, one takes calls, one takes replies, and one may move what waits for its time.
    before.assert_bounds(5, 7);
    let broker = Objects::of(&name);
    // The replies have a topic as well. The group is everybody's who answers calls.
    assert_eq!(broker.topics.len(), HANDLERS + 1, "{broker:?}");
    assert!(broker.groups.is_empty(), "{broker:?}");
    service.shutdown().await.unwrap();
    before.assert_nothing_is_left().await;
}

async fn double(number: u64) -> Result<u64> {
    Ok(number * 2)
}

fn address() -> SocketAddr {
    let url = url();
    url.trim_start_matches("kafka://").parse().unwrap()
}

/// The topics and groups of a broker whose names hold an app's.
#[derive(Debug)]
struct Objects {
    topics: BTreeSet<String>,
    groups: BTreeSet<String>,
}

impl Objects {
    fn of(app: &str) -> Self {
        let client: BaseConsumer = native(&url()).create().unwrap();
        let topics = client.fetch_metadata(None, PATIENCE).unwrap();
        let topics = topics.topics().iter().map(|topic| topic.name().to_owned());
        let groups = client.fetch_group_list(None, PATIENCE).unwrap();
        let groups = groups.groups().iter().map(|group| group.name().to_owned());
        let has_name = |name: &String| name.contains(app);
        Self {
            topics: topics.filter(has_name).collect(),
            groups: groups.filter(has_name).collect(),
        }
    }
}
