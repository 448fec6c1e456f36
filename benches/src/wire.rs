//! Our side, on any wire.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Instant;

use anywire::{App, Client, Failure, Guarantee, Route, Router, RunningApp};
use futures::StreamExt;

use crate::progress::{IN_FLIGHT, Progress, Sending, fresh, one_by_one, text};
use crate::{Measured, allocated, call};

/// How apps reach a wire.
#[derive(Clone)]
pub struct Wire(Arc<dyn Fn() -> App + Send + Sync>);

impl Wire {
    /// `app` makes an app with the adapter and the server's address.
    pub fn new(app: impl Fn() -> App + Send + Sync + 'static) -> Self {
        Self(Arc::new(app))
    }

    async fn connect(&self) -> Client {
        Client::connect((self.0)()).await.expect("a server")
    }

    /// An app that has at most `window` unsettled deliveries.
    async fn serve(
        &self,
        subject: &str,
        progress: &Arc<Progress>,
        guarantee: Guarantee,
        window: usize,
    ) -> RunningApp {
        let handled = Arc::clone(progress);
        let handler = move |text: String| {
            handled.handle(&text);
            std::future::ready(Ok::<(), Failure>(()))
        };
        // What is held is four times what may run.
        let route = Route::event(subject, handler)
            .guarantee(guarantee)
            .concurrency(window / 4);
        let app = (self.0)().router(Router::new().route(route));
        app.start().await.expect("starts")
    }

    /// At-most-once events from a publisher to a handler.
    pub async fn fleeting(self, size: usize, count: u64, sending: Sending) -> Measured {
        let subject = format!("{}.tick", fresh());
        let progress = Progress::new(count);
        let guarantee = Guarantee::AtMostOnce;
        let app = self.serve(&subject, &progress, guarantee, 256).await;
        let client = self.connect().await;
        let text = text(size);
        let (start, before) = (Instant::now(), allocated());
        if sending == Sending::All {
            let texts: Vec<&str> = vec![&text; 1024];
            for chunk in 0..count / 1024 {
                progress.before(chunk * 1024).await;
                let sent = client.emit_all(subject.as_str(), &texts);
                sent.guarantee(guarantee).await.expect("emits");
            }
        } else {
            for number in 0..count {
                progress.before(number).await;
                let sent = client.emit(subject.as_str(), &text);
                sent.guarantee(guarantee).await.expect("emits");
            }
        }
        progress.all().await;
        let measured = Measured::since(start, before, count);
        stop(app, &client).await;
        measured
    }

    /// Calls, so many at once.
    pub async fn calls(self, callers: u64, count: u64) -> Measured {
        let subject = format!("{}.echo", fresh());
        let echo = |text: String| std::future::ready(Ok::<_, Failure>(text));
        let router = Router::new().on_call(subject.as_str(), echo);
        let app = (self.0)().router(router).start().await.expect("starts");
        let client = self.connect().await;
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

    /// One stream of so many replies, from a handler to a caller.
    pub async fn stream(self, size: usize, count: u64) -> Measured {
        let subject = format!("{}.stream", fresh());
        let (app, client) = self.streaming(&subject, size).await;
        let (start, before) = (Instant::now(), allocated());
        let replies = client.stream::<_, String>(subject.as_str(), &count);
        let mut replies = replies.await.expect("opens");
        while let Some(reply) = replies.next().await {
            std::hint::black_box(reply.expect("comes"));
        }
        let measured = Measured::since(start, before, count);
        stop(app, &client).await;
        measured
    }

    /// Streams of one reply, one after the other: how long it takes until the first item is here.
    pub async fn first_item(self, count: u64) -> Measured {
        let subject = format!("{}.stream", fresh());
        let (app, client) = self.streaming(&subject, 128).await;
        let (caller, subject) = (client.clone(), subject.clone());
        let measured = call(1, count, 1, move |_| {
            let (client, subject) = (caller.clone(), subject.clone());
            async move {
                let replies = client.stream::<_, String>(subject.as_str(), &1_u64);
                let mut replies = replies.await.expect("opens");
                let first = replies.next().await.expect("one").expect("comes");
                std::hint::black_box(first);
            }
        })
        .await;
        stop(app, &client).await;
        measured
    }

    /// An app that answers with as many replies as it is asked for.
    async fn streaming(&self, subject: &str, size: usize) -> (RunningApp, Client) {
        let text = text(size);
        let many = move |count: u64| {
            let text = text.clone();
            futures::stream::iter((0..count).map(move |_| Ok::<_, Failure>(text.clone())))
        };
        let router = Router::new().on_stream(subject, many);
        let app = (self.0)().router(router).start().await.expect("starts");
        (app, self.connect().await)
    }

    /// At-least-once events to a store from which nobody takes meanwhile.
    pub async fn publish(self, size: usize, count: u64, sending: Sending) -> Measured {
        let subject = format!("{}.tick", fresh());
        let client = self.connect().await;
        self.prepare(&subject).await;
        let (start, before) = (Instant::now(), allocated());
        let mut samples = Vec::new();
        if sending == Sending::OneByOne {
            let text = text(size);
            samples = one_by_one(count, || async {
                client.emit(subject.as_str(), &text).await.expect("emits");
            })
            .await;
        } else {
            send(&client, &subject, size, count, sending).await;
        }
        let measured = Measured::since(start, before, count).with_latencies(samples);
        client.close().await.expect("closes");
        measured
    }

    /// What is stored, through a handler.
    pub async fn consume(self, size: usize, count: u64, window: usize) -> Measured {
        let subject = format!("{}.tick", fresh());
        let client = self.connect().await;
        self.prepare(&subject).await;
        send(&client, &subject, size, count, Sending::All).await;
        let progress = Progress::new(count);
        let guarantee = Guarantee::AtLeastOnce;
        let app = self.serve(&subject, &progress, guarantee, window).await;
        progress.all().await;
        let measured = progress.since_first();
        stop(app, &client).await;
        measured
    }

    /// At-least-once events from a publisher to a handler.
    pub async fn both(self, size: usize, count: u64, sending: Sending) -> Measured {
        let subject = format!("{}.tick", fresh());
        let client = self.connect().await;
        let progress = Progress::new(count);
        let guarantee = Guarantee::AtLeastOnce;
        let app = self.serve(&subject, &progress, guarantee, IN_FLIGHT).await;
        let (start, before) = (Instant::now(), allocated());
        send(&client, &subject, size, count, sending).await;
        progress.all().await;
        let measured = Measured::since(start, before, count);
        stop(app, &client).await;
        measured
    }

    /// Makes the store by a subscription, and leaves it alone.
    async fn prepare(&self, subject: &str) {
        let (nothing, guarantee) = (Progress::new(1), Guarantee::AtLeastOnce);
        let app = self.serve(subject, &nothing, guarantee, 256).await;
        app.shutdown().await.expect("stops");
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

async fn send(client: &Client, subject: &str, size: usize, count: u64, sending: Sending) {
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

async fn stop(app: RunningApp, client: &Client) {
    app.shutdown().await.expect("stops");
    client.close().await.expect("closes");
}
