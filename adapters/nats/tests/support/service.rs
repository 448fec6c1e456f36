//! Apps on a server of the tests' own, and what their handlers saw.

#![allow(dead_code, reason = "each test program uses its part")]

use std::future::{Future, Ready, ready};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anywire::pattern::publish_subscribe::Start;
use anywire::{App, Client, Config, Message, Result, Router, RunningApp, Subscription};
use async_nats::jetstream;
use parking_lot::Mutex;

/// How long a condition may take to hold.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// An app on NATS, without the process' own configuration.
pub(crate) fn app(name: &str, url: &str) -> App {
    configured(name, &format!("url = {url:?}"))
}

/// An app with this configuration and no other.
pub(crate) fn configured(name: &str, toml: &str) -> App {
    App::new(name)
        .adapter(anywire_nats::adapter())
        .config(Config::from_toml(toml).unwrap())
}

/// A shop whose one handler writes down what was placed.
pub(crate) async fn shop(app: App, seen: &Seen) -> RunningApp {
    let router = Router::new().on_event("shop.placed", seen.handler());
    app.router(router).start().await.unwrap()
}

/// Waits until the condition holds; a test that waits in vain is told so.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    soon(what, waiting).await;
}

/// As [`until`], for a condition that has to be asked for.
pub(crate) async fn until_async(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    soon(what, waiting).await;
}

/// What comes of a future that must not take long.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let Ok(output) = tokio::time::timeout(PATIENCE, future).await else {
        panic!("in vain: {what}");
    };
    output
}

/// A client that knows nothing of anywire, and its view of JetStream.
pub(crate) async fn foreign(url: &str) -> jetstream::Context {
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect();
    jetstream::new(client.connect(url).await.unwrap())
}

/// The dead letters of a group, from the first on.
pub(crate) async fn dead_letters(client: &Client, group: &str) -> Subscription<Message> {
    let subject = format!("anywire.dead.{group}");
    let subscribe = client.subscribe::<Message>(subject.as_str());
    subscribe.start(Start::Earliest).await.unwrap()
}

/// The numbers that a handler was given, each as often as it was.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<u64>>>);

impl Seen {
    /// A handler that writes down what it is given.
    pub(crate) fn handler(
        &self,
    ) -> impl Fn(u64) -> Ready<Result<()>> + Send + Sync + 'static + use<> {
        let seen = Arc::clone(&self.0);
        move |number| {
            seen.lock().push(number);
            ready(Ok(()))
        }
    }

    /// Whether each of these was seen at least once.
    pub(crate) fn has_all(&self, numbers: impl IntoIterator<Item = u64>) -> bool {
        let seen: std::collections::HashSet<_> = self.0.lock().iter().copied().collect();
        numbers.into_iter().all(|number| seen.contains(&number))
    }

    /// What was seen, in order, without repeats.
    pub(crate) fn distinct(&self) -> Vec<u64> {
        let mut seen = self.0.lock().clone();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    /// How often a handler ran.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }
}

/// Publishes whatever bytes it is told to, as no client library would.
pub(crate) struct RawPublisher {
    reader: BufReader<TcpStream>,
}

impl RawPublisher {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut publisher = Self {
            reader: BufReader::new(stream),
        };
        let mut greeting = String::new();
        publisher.reader.read_line(&mut greeting).unwrap();
        assert!(greeting.starts_with("INFO"), "{greeting}");
        publisher.send(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n");
        publisher
    }

    /// Publishes a payload behind this header block, and returns when the server has taken it.
    pub(crate) fn publish(&mut self, subject: &str, header: &[u8], payload: &[u8]) {
        let (header_len, total) = (header.len(), header.len() + payload.len());
        let line = format!("HPUB {subject} {header_len} {total}\r\n");
        self.send(&[line.as_bytes(), header, payload, b"\r\nPING\r\n"].concat());
        loop {
            let mut answer = String::new();
            self.reader.read_line(&mut answer).unwrap();
            match answer.trim_end() {
                "PONG" => return,
                // The server asks on its own, too, now and then.
                "PING" => self.send(b"PONG\r\n"),
                other => panic!("the server refuses the message: {other:?}"),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }
}

/// Runs a future on a runtime of its own, on which no task may be left.
pub(crate) async fn leaves_nothing<F: Future<Output = ()>>(
    body: impl FnOnce() -> F + Send + 'static,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    let done = tokio::task::spawn_blocking(move || handle.block_on(body())).await;
    if let Err(panic) = done {
        std::mem::forget(runtime);
        std::panic::resume_unwind(panic.into_panic());
    }
    until("no task", || runtime.metrics().num_alive_tasks() == 0).await;
    runtime.shutdown_background();
}

/// The memory of this process, in bytes, where the system tells.
pub(crate) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kib.unwrap_or(0) * 1024
}
