//! What an app with many handlers costs: threads, sockets, and objects on the broker; and that it leaves none of them.
#![allow(clippy::unwrap_used)]

mod support;

use anywire::{Result, Router};
use anywire_conformance::rig::{Seen, sockets, threads, until};
use anywire_conformance::trials;
use support::{Server, Tool, app, foreign};
use tokio::sync::Mutex;

trials![
    in turn, [support::SERVER, support::CTL] =>
    fifty_event_handlers_share_two_connections_and_have_a_channel_each,
    fifty_call_handlers_share_two_connections_and_have_a_channel_each,
];

/// How many handlers an app has here.
const HANDLERS: usize = 50;
/// One that publishes, and one that consumes.
const CONNECTIONS: usize = 2;
/// The library's thread of each connection.
const THREADS: usize = CONNECTIONS;
/// One that publishes what is confirmed, one for replies and what may be lost, one for calls.
const PUBLISHING: usize = 3;

/// One test at a time, as each counts the threads of the whole process.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn fifty_event_handlers_share_two_connections_and_have_a_channel_each() {
    let _alone = ALONE.lock().await;
    let (server, before) = start().await;
    let seen = Seen::default();
    let router = (0..HANDLERS).fold(Router::new(), |router, n| {
        router.on_event(&format!("shop.placed.{n}"), seen.handler())
    });
    let service = app("shop", &server.url()).router(router);
    let service = service.start().await.unwrap();
    let client = service.client();
    for n in 0..HANDLERS {
        let subject = format!("shop.placed.{n}");
        client.emit(subject.as_str(), &n).await.unwrap();
    }
    until("an event for each", || seen.distinct().len() == HANDLERS).await;
    // The dead letters have a queue as well.
    assert_bounds(&server, before, HANDLERS + 1);
    service.shutdown().await.unwrap();
    assert_nothing_is_left(&server, before, HANDLERS + 1).await;
}

async fn fifty_call_handlers_share_two_connections_and_have_a_channel_each() {
    let _alone = ALONE.lock().await;
    let (server, before) = start().await;
    let router = (0..HANDLERS).fold(Router::new(), |router, n| {
        router.on_call(&format!("math.double.{n}"), |number: u64| double(number))
    });
    let service = app("math", &server.url()).router(router);
    let service = service.start().await.unwrap();
    let client = service.client();
    for n in 0..HANDLERS {
        let subject = format!("math.double.{n}");
        let number = n as u64;
        let answer: u64 = client.request(subject.as_str(), &number).await.unwrap();
        assert_eq!(answer, 2 * number);
    }
    assert_bounds(&server, before, HANDLERS);
    service.shutdown().await.unwrap();
    // A queue of calls goes with who answers them.
    assert_nothing_is_left(&server, before, 0).await;
}

async fn double(number: u64) -> Result<u64> {
    Ok(number * 2)
}

/// A server, and how many threads there are before its first app.
async fn start() -> (Server, usize) {
    let server = Server::start("").unwrap();
    // The library's first connection starts a thread that serves all others until the process ends.
    let first = foreign(&server.url()).await;
    first.close(200, "OK".into()).await.unwrap();
    drop(first);
    let tool = server.tool();
    until("nobody", || Objects::of(&tool).connections == 0).await;
    (server, threads())
}

fn assert_bounds(server: &Server, threads_before: usize, queues: usize) {
    let objects = Objects::of(&server.tool());
    assert_eq!(objects.connections, CONNECTIONS);
    assert_eq!(sockets(server.address()), CONNECTIONS);
    let channels = HANDLERS..=HANDLERS + PUBLISHING;
    assert!(channels.contains(&objects.channels), "{objects:?}");
    assert_eq!(objects.queues, queues);
    assert_eq!(objects.consumers, HANDLERS);
    let more = threads().saturating_sub(threads_before);
    assert!(more <= THREADS, "{more} threads more");
}

/// Only queues may stay, so many of them.
async fn assert_nothing_is_left(server: &Server, threads_before: usize, queues: usize) {
    let tool = server.tool();
    let rest = Objects {
        queues,
        ..Objects::default()
    };
    until("nothing but queues", || Objects::of(&tool) == rest).await;
    until("the threads' end", || threads() <= threads_before).await;
    assert_eq!(sockets(server.address()), 0);
}

/// How many objects a broker has.
#[derive(Debug, Default, PartialEq)]
struct Objects {
    connections: usize,
    channels: usize,
    queues: usize,
    consumers: usize,
}

impl Objects {
    /// Asks for all of them at once, as the tool takes seconds to start.
    fn of(tool: &Tool) -> Self {
        let counted = tool.run(&[
            "eval",
            "[length(rabbit_networking:connections()), length(rabbit_channel:list()),
              length(rabbit_amqqueue:list()), length(rabbit_amqqueue:consumers_all(<<\"/\">>))].",
        ]);
        let mut numbers = counted
            .trim_matches(|c: char| !c.is_ascii_digit())
            .split(',')
            .map(|number| number.parse().unwrap());
        let mut next = || numbers.next().unwrap();
        Self {
            connections: next(),
            channels: next(),
            queues: next(),
            consumers: next(),
        }
    }
}
