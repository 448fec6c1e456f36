//! More than can be handled: memory stays flat, what may be lost is dropped and counted, and the rest waits its turn.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anywire::{Guarantee, Ignore, Result, Route, Router};
use anywire_conformance::BrokerControl;
use anywire_conformance::rig::{Seen, resident, until};
use anywire_conformance::trials;
use bytes::Bytes;
use futures::StreamExt;
use support::{Server, app, foreign};
use tokio::sync::Semaphore;

trials![
    in turn, [support::SERVER] =>
    large_messages_that_nobody_handles_fill_no_memory,
    emits_that_may_be_lost_fill_no_memory_while_the_server_is_frozen,
];

const MEBIBYTE: usize = 1024 * 1024;

async fn large_messages_that_nobody_handles_fill_no_memory() {
    let server = Server::start("max_pending: 1GB").unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    let stuck = move |_: Ignore| {
        let waiting = Arc::clone(&waiting);
        async move {
            waiting.acquire().await?.forget();
            Result::<()>::Ok(())
        }
    };
    let seen = Seen::default();
    let router = Router::new()
        .route(
            Route::event("bulk.data", stuck)
                .guarantee(Guarantee::AtMostOnce)
                .concurrency(1),
        )
        .route(Route::event("bulk.size", seen.handler()).guarantee(Guarantee::AtMostOnce));
    let app = app("shop", &server.url())
        .router(router)
        .start()
        .await
        .unwrap();
    let foreign = foreign(&server.url()).await.client();
    let before = resident();
    let large = Bytes::from(vec![7; MEBIBYTE - 1024]);
    for n in 0..500 {
        foreign.publish("bulk.data", large.clone()).await.unwrap();
        foreign
            .publish("bulk.size", n.to_string().into())
            .await
            .unwrap();
    }
    foreign.flush().await.unwrap();
    until("what came behind", || seen.has_all([499])).await;
    let grown = resident().saturating_sub(before) / MEBIBYTE;
    assert!(grown < 160, "{grown} MiB of 500 more");
    gate.add_permits(1000);
    app.shutdown().await.unwrap();
}

async fn emits_that_may_be_lost_fill_no_memory_while_the_server_is_frozen() {
    let server = Server::start("").unwrap();
    let broker = server.behind_a_proxy().await;
    let seen = Seen::default();
    let router = Router::new()
        .route(
            Route::event("bulk.data", async |_: Ignore| -> Result<()> { Ok(()) })
                .guarantee(Guarantee::AtMostOnce),
        )
        .on_event("bulk.size", seen.handler());
    let app = app("shop", &format!("nats://{}", broker.proxy.address()));
    let app = app.router(router).start().await.unwrap();
    let client = app.client();
    broker.freeze().await.unwrap();
    let before = resident();
    let large = "x".repeat(8 * 1024);
    let timeout = Duration::from_millis(200);
    let refused = AtomicUsize::new(0);
    // More than the client and the socket hold.
    let emitting = futures::stream::iter(0..6_000).for_each_concurrent(256, async |_| {
        let start = Instant::now();
        let emit = client.emit("bulk.data", &large);
        let emit = emit.guarantee(Guarantee::AtMostOnce).timeout(timeout);
        refused.fetch_add(usize::from(emit.await.is_err()), Ordering::Relaxed);
        let took = start.elapsed();
        assert!(
            took < timeout + Duration::from_secs(1),
            "an emit took {took:?}"
        );
    });
    emitting.await;
    assert_ne!(refused.into_inner(), 0, "all was taken");
    let grown = resident().saturating_sub(before) / MEBIBYTE;
    assert!(grown < 64, "{grown} MiB more");
    broker.thaw().await.unwrap();
    client.emit("bulk.size", &1).await.unwrap();
    until("an event", || seen.has_all([1])).await;
    app.shutdown().await.unwrap();
}
