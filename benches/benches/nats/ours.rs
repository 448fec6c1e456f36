//! The same with anywire.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Instant;

use anywire::{App, Client, Failure, Guarantee, Route, Router, RunningApp};
use anywire_benches::{Measured, allocated, call};
use futures::StreamExt;

use crate::{IN_FLIGHT, Progress, Sending, fresh, text};

fn app(url: &str, router: Router) -> App {
    App::new("bench")
        .adapter(anywire_nats::adapter())
        .url(url)
        .router(router)
}

async fn connect(url: &str) -> Client {
    let connected = Client::connect(app(url, Router::new())).await;
    connected.expect("a server")
}

async fn serve(url: &str, subject: &str, progress: &Arc<Progress>, of: Guarantee) -> RunningApp {
    let handled = Arc::clone(progress);
    let handler = move |text: String| {
        handled.handle(&text);
        std::future::ready(Ok::<(), Failure>(()))
    };
    let route = Route::event(subject, handler).guarantee(of);
    let started = app(url, Router::new().route(route)).start().await;
    started.expect("starts")
}

pub(crate) async fn core(url: String, size: usize, count: u64, sending: Sending) -> Measured {
    let subject = format!("{}.tick", fresh());
    let progress = Progress::new(count);
    let app = serve(&url, &subject, &progress, Guarantee::AtMostOnce).await;
    let client = connect(&url).await;
    let text = text(size);
    let (start, before) = (Instant::now(), allocated());
    if sending == Sending::All {
        let texts: Vec<&str> = vec![&text; 1024];
        for chunk in 0..count / 1024 {
            progress.before(chunk * 1024).await;
            let sent = client
                .emit_all(subject.as_str(), &texts)
                .guarantee(Guarantee::AtMostOnce);
            sent.await.expect("emits");
        }
    } else {
        for number in 0..count {
            progress.before(number).await;
            let sent = client
                .emit(subject.as_str(), &text)
                .guarantee(Guarantee::AtMostOnce);
            sent.await.expect("emits");
        }
    }
    progress.all().await;
    let measured = Measured::since(start, before, count);
    stop(app, &client).await;
    measured
}

pub(crate) async fn calls(url: String, callers: u64, count: u64) -> Measured {
    let subject = format!("{}.echo", fresh());
    let echo = |text: String| std::future::ready(Ok::<_, Failure>(text));
    let router = Router::new().on_call(subject.as_str(), echo);
    let app = app(&url, router).start().await.expect("starts");
    let client = connect(&url).await;
    let (caller, text) = (client.clone(), text(128));
    let measured = call(callers, count, 1, move |_| {
        let (client, subject, text) = (caller.clone(), subject.clone(), text.clone());
        async move {
            let reply: String = client
                .request(subject.as_str(), &text)
                .await
                .expect("answers");
            std::hint::black_box(reply);
        }
    })
    .await;
    stop(app, &client).await;
    measured
}

async fn send_all(client: &Client, subject: &str, size: usize, count: u64, sending: Sending) {
    let text = text(size);
    if sending == Sending::All {
        let texts: Vec<&str> = vec![&text; 1024];
        for _ in 0..count / 1024 {
            client.emit_all(subject, &texts).await.expect("emits");
        }
    } else {
        futures::stream::iter(0..count)
            .map(|_| client.emit(subject, &text).into_future())
            .buffer_unordered(IN_FLIGHT)
            .for_each(|sent| {
                sent.expect("emits");
                std::future::ready(())
            })
            .await;
    }
}

pub(crate) async fn publish(url: String, size: usize, count: u64, sending: Sending) -> Measured {
    let subject = format!("{}.tick", fresh());
    let client = connect(&url).await;
    // A subscription makes the store; nobody takes from it meanwhile.
    prepare(&url, &subject).await;
    let (start, before) = (Instant::now(), allocated());
    let mut samples = Vec::new();
    if sending == Sending::OneByOne {
        let text = text(size);
        for _ in 0..count {
            let begun = Instant::now();
            client.emit(subject.as_str(), &text).await.expect("emits");
            samples.push(begun.elapsed());
        }
    } else {
        send_all(&client, &subject, size, count, sending).await;
    }
    let measured = Measured::since(start, before, count).with_latencies(samples);
    client.close().await.expect("closes");
    clean(&url).await;
    measured
}

/// Makes the subscription and leaves it alone.
async fn prepare(url: &str, subject: &str) {
    let app = serve(url, subject, &Progress::new(1), Guarantee::AtLeastOnce).await;
    app.shutdown().await.expect("stops");
}

pub(crate) async fn consume(url: String, size: usize, count: u64) -> Measured {
    let subject = format!("{}.tick", fresh());
    let client = connect(&url).await;
    prepare(&url, &subject).await;
    send_all(&client, &subject, size, count, Sending::All).await;
    let progress = Progress::new(count);
    let app = serve(&url, &subject, &progress, Guarantee::AtLeastOnce).await;
    progress.all().await;
    let measured = progress.since_first();
    stop(app, &client).await;
    clean(&url).await;
    measured
}

pub(crate) async fn both(url: String, size: usize, count: u64) -> Measured {
    let subject = format!("{}.tick", fresh());
    let client = connect(&url).await;
    let progress = Progress::new(count);
    let app = serve(&url, &subject, &progress, Guarantee::AtLeastOnce).await;
    let (start, before) = (Instant::now(), allocated());
    send_all(&client, &subject, size, count, Sending::InFlight).await;
    progress.all().await;
    let measured = Measured::since(start, before, count);
    stop(app, &client).await;
    clean(&url).await;
    measured
}

async fn stop(app: RunningApp, client: &Client) {
    app.shutdown().await.expect("stops");
    client.close().await.expect("closes");
}

/// Deletes the streams of the bench.
async fn clean(url: &str) {
    let client = async_nats::connect(url).await.expect("a server");
    let context = async_nats::jetstream::new(client);
    let names: Vec<String> = context
        .stream_names()
        .filter_map(|name| std::future::ready(name.ok()))
        .collect()
        .await;
    for name in names.iter().filter(|name| name.contains("bench")) {
        context.delete_stream(name).await.expect("deletes");
    }
}
