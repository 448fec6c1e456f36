//! Memory: events and calls against hand-written loops of bounded channels and `serde_json`.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anywire::{App, Client, Key, Result, Router};
use anywire_benches::{
    Counting, Measured, Runtime, Table, allocated, alternate, call, peak_memory,
};
use futures::{FutureExt, StreamExt};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const QUEUE: usize = 1024;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tick {
    id: u64,
    quantity: u32,
    price: f64,
}

#[derive(Default)]
struct Done {
    count: AtomicU64,
    all: tokio::sync::Notify,
}

impl Done {
    fn one(&self, of: u64) {
        if self.count.fetch_add(1, Ordering::Relaxed) + 1 == of {
            self.all.notify_one();
        }
    }
}

async fn tick(tick: Tick, done: &Done, of: u64) {
    std::hint::black_box(&tick);
    done.one(of);
}

/// What of an event is turned on.
#[derive(Clone, Copy, PartialEq)]
enum Flavour {
    Plain,
    Keyed,
    EmitAll,
}

fn our_events(runtime: Runtime, count: u64, flavour: Flavour) -> Measured {
    runtime.run(async move {
        let done = Arc::new(Done::default());
        let shared = Arc::clone(&done);
        let handler = move |event: Tick| {
            let done = Arc::clone(&shared);
            async move {
                tick(event, &done, count).await;
                Ok::<(), anywire::Failure>(())
            }
        };
        let app = App::new("bench")
            .url("memory://")
            .router(Router::new().on_event("bench.tick", handler));
        let app = app.start().await.expect("starts");
        let client = app.client();
        let (start, before) = (Instant::now(), allocated());
        let emitter = tokio::spawn(async move { emit(&client, count, flavour).await });
        done.all.notified().await;
        let measured = Measured::since(start, before, count);
        emitter.await.expect("no panic").expect("emits");
        app.shutdown().await.expect("stops");
        measured
    })
}

async fn emit(client: &Client, count: u64, flavour: Flavour) -> Result<()> {
    let event = |id| Tick {
        id,
        quantity: 7,
        price: 12.5,
    };
    match flavour {
        Flavour::Plain => {
            for id in 0..count {
                client.emit("bench.tick", &event(id)).await?;
            }
        }
        Flavour::Keyed => {
            for id in 0..count {
                client
                    .emit("bench.tick", &event(id))
                    .key(Key::from(id % 64))
                    .await?;
            }
        }
        Flavour::EmitAll => {
            for chunk in 0..count / 1000 {
                let events: Vec<Tick> = (0..1000).map(|id| event(chunk * 1000 + id)).collect();
                client.emit_all("bench.tick", &events).await?;
            }
        }
    }
    Ok(())
}

fn loop_events(runtime: Runtime, count: u64) -> Measured {
    runtime.run(async move {
        let done = Arc::new(Done::default());
        let shared = Arc::clone(&done);
        let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(QUEUE);
        let (start, before) = (Instant::now(), allocated());
        let consumer = tokio::spawn(async move {
            while let Some(bytes) = receiver.recv().await {
                let event: Tick = serde_json::from_slice(&bytes).expect("JSON");
                tick(event, &shared, count).await;
            }
        });
        let emitter = tokio::spawn(async move {
            for id in 0..count {
                let event = Tick {
                    id,
                    quantity: 7,
                    price: 12.5,
                };
                let bytes = serde_json::to_vec(&event).expect("JSON");
                sender.send(bytes).await.expect("open");
            }
        });
        done.all.notified().await;
        let measured = Measured::since(start, before, count);
        emitter.await.expect("no panic");
        consumer.await.expect("no panic");
        measured
    })
}

/// The loop with what a handler is promised: at most 64 attempts at once, a deadline for each, a panic is a failed
/// attempt, what failed comes again, and every message has an id.
fn careful_events(runtime: Runtime, count: u64) -> Measured {
    struct Sent {
        id: u128,
        bytes: Vec<u8>,
    }
    async fn attempt(sent: &Sent, done: &Done, of: u64) -> Result<(), serde_json::Error> {
        std::hint::black_box(sent.id);
        let event: Tick = serde_json::from_slice(&sent.bytes)?;
        tick(event, done, of).await;
        Ok(())
    }
    runtime.run(async move {
        let done = Arc::new(Done::default());
        let shared = Arc::clone(&done);
        let (sender, mut receiver) = mpsc::channel::<Sent>(QUEUE);
        let again = sender.downgrade();
        let (start, before) = (Instant::now(), allocated());
        let consumer = tokio::spawn(async move {
            let messages = futures::stream::poll_fn(|cx| receiver.poll_recv(cx));
            let handled = messages.for_each_concurrent(64, |sent| async {
                let attempt = AssertUnwindSafe(attempt(&sent, &shared, count)).catch_unwind();
                let ended = tokio::time::timeout(Duration::from_secs(60), attempt).await;
                if !matches!(ended, Ok(Ok(Ok(())))) {
                    let sender = again.upgrade().expect("open");
                    sender.send(sent).await.expect("open");
                }
            });
            handled.await;
        });
        let emitter = tokio::spawn(async move {
            let mut ids = SmallRng::from_rng(&mut rand::rng());
            for id in 0..count {
                let event = Tick {
                    id,
                    quantity: 7,
                    price: 12.5,
                };
                let bytes = serde_json::to_vec(&event).expect("JSON");
                let id = ids.random();
                sender.send(Sent { id, bytes }).await.expect("open");
            }
        });
        done.all.notified().await;
        let measured = Measured::since(start, before, count);
        emitter.await.expect("no panic");
        consumer.await.expect("no panic");
        measured
    })
}

fn our_calls(runtime: Runtime, callers: u64, count: u64) -> Measured {
    runtime.run(async move {
        let handler = |tick: Tick| async move { Ok::<_, anywire::Failure>(tick) };
        let app = App::new("bench")
            .url("memory://")
            .router(Router::new().on_call("bench.echo", handler));
        let app = app.start().await.expect("starts");
        let client = app.client();
        let measured = echoes(callers, count, move |tick| {
            let client = client.clone();
            async move { client.request("bench.echo", &tick).await.expect("answers") }
        })
        .await;
        app.shutdown().await.expect("stops");
        measured
    })
}

type Asked = (Vec<u8>, oneshot::Sender<Vec<u8>>);

fn loop_calls(runtime: Runtime, callers: u64, count: u64) -> Measured {
    runtime.run(async move {
        let (sender, mut receiver) = mpsc::channel::<Asked>(QUEUE);
        let server = tokio::spawn(async move {
            while let Some((bytes, reply)) = receiver.recv().await {
                let tick: Tick = serde_json::from_slice(&bytes).expect("JSON");
                let tick = async move { tick }.await;
                let _ = reply.send(serde_json::to_vec(&tick).expect("JSON"));
            }
        });
        let measured = echoes(callers, count, move |tick| {
            let sender = sender.clone();
            async move {
                let (reply, answer) = oneshot::channel();
                sender
                    .send((serde_json::to_vec(&tick).expect("JSON"), reply))
                    .await
                    .expect("open");
                serde_json::from_slice::<Tick>(&answer.await.expect("answers")).expect("JSON")
            }
        })
        .await;
        server.await.expect("no panic");
        measured
    })
}

/// One stream of ticks, from a handler to a caller of the same app.
fn our_stream(runtime: Runtime, count: u64) -> Measured {
    runtime.run(async move {
        let ticks = |count: u64| {
            let ticks = (0..count).map(|id| Tick {
                id,
                quantity: 7,
                price: 12.5,
            });
            futures::stream::iter(ticks.map(Ok::<_, anywire::Failure>))
        };
        let app = App::new("bench")
            .url("memory://")
            .router(Router::new().on_stream("bench.ticks", ticks));
        let app = app.start().await.expect("starts");
        let (start, before) = (Instant::now(), allocated());
        let client = app.client();
        let ticks = client.stream::<_, Tick>("bench.ticks", &count);
        let mut ticks = ticks.await.expect("opens");
        while let Some(tick) = ticks.next().await {
            std::hint::black_box(tick.expect("comes"));
        }
        let measured = Measured::since(start, before, count);
        app.shutdown().await.expect("stops");
        measured
    })
}

/// A channel with the window of a stream.
fn loop_stream(runtime: Runtime, count: u64) -> Measured {
    runtime.run(async move {
        let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(256);
        let (start, before) = (Instant::now(), allocated());
        let producer = tokio::spawn(async move {
            for id in 0..count {
                let tick = Tick {
                    id,
                    quantity: 7,
                    price: 12.5,
                };
                let bytes = serde_json::to_vec(&tick).expect("JSON");
                sender.send(bytes).await.expect("open");
            }
        });
        while let Some(bytes) = receiver.recv().await {
            std::hint::black_box(serde_json::from_slice::<Tick>(&bytes).expect("JSON"));
        }
        let measured = Measured::since(start, before, count);
        producer.await.expect("no panic");
        measured
    })
}

async fn echoes<F, Fut>(callers: u64, count: u64, ask: F) -> Measured
where
    F: Fn(Tick) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Tick> + Send,
{
    call(callers, count, 16, move |id| {
        let answer = ask(Tick {
            id,
            quantity: 7,
            price: 12.5,
        });
        async move { assert_eq!(answer.await.id, id) }
    })
    .await
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let one: Option<String> = std::env::args()
        .skip_while(|argument| argument != "--only")
        .nth(1);
    if let Some(only) = one {
        let count =
            std::env::var("COUNT").map_or(3_000_000, |count| count.parse().expect("a number"));
        let runtime = if only.ends_with('2') {
            Runtime::Two
        } else {
            Runtime::One
        };
        let measured = if only.starts_with("event") {
            our_events(runtime, count, Flavour::Plain)
        } else if only.starts_with("all") {
            our_events(runtime, count, Flavour::EmitAll)
        } else if only.starts_with("stream") {
            our_stream(runtime, count)
        } else if only.starts_with("careful") {
            careful_events(runtime, count)
        } else if only.starts_with("loop") {
            loop_events(runtime, count)
        } else {
            our_calls(runtime, 1, count)
        };
        println!("{only}: {:.0}/s", measured.rate);
        return;
    }
    let (events, calls, rounds) = if quick {
        (500_000, 100_000, 3)
    } else {
        (2_000_000, 400_000, 7)
    };
    let mut table = Table::default();
    Table::heading();
    for runtime in [Runtime::One, Runtime::Two] {
        for (name, flavour, goal) in [
            ("event", Flavour::Plain, ">= 1.00"),
            ("event, keyed", Flavour::Keyed, "-"),
            ("event, emit_all", Flavour::EmitAll, "-"),
        ] {
            let ours = || our_events(runtime, events, flavour);
            let (ours, baseline) = alternate(rounds, ours, || loop_events(runtime, events));
            table.row(&format!("{name}, {runtime}"), goal, &ours, &baseline);
        }
        let ours = || our_events(runtime, events, Flavour::Plain);
        let (ours, baseline) = alternate(rounds, ours, || careful_events(runtime, events));
        let name = format!("event, against the careful loop, {runtime}");
        table.row(&name, ">= 1.00", &ours, &baseline);
        let ours = || our_stream(runtime, events);
        let (ours, baseline) = alternate(rounds, ours, || loop_stream(runtime, events));
        table.row(&format!("stream, {runtime}"), ">= 0.60", &ours, &baseline);
        for callers in [64, 1] {
            let ours = || our_calls(runtime, callers, calls);
            let (ours, baseline) = alternate(rounds, ours, || loop_calls(runtime, callers, calls));
            table.row(
                &format!("call, {callers} callers, {runtime}"),
                ">= 0.60",
                &ours,
                &baseline,
            );
        }
    }
    if let Some(peak) = peak_memory() {
        println!("\npeak memory of the whole run: {peak} MiB");
    }
}
