//! Streaming calls: as memory has them, and as the emulation makes them of calls and inboxes.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anywire::memory::MemoryBroker;
use anywire::pattern::streaming::{WINDOW, WINDOW_BYTES};
use anywire::{
    App, Bytes, Config, Context, Duplex, ErrorKind, Failure, Inbound, Raw, Result, Router, State,
    StreamReply, Streaming, Support, Upload, controller, handlers, stream_pattern,
};
use common::streams::{Ended, ShopError, count, router, sum};
use common::until;
use common::wires::Wire;
use futures::{Stream, StreamExt, stream};

#[tokio::test]
async fn items_come_whole_in_order_and_then_the_end() {
    for wire in Wire::all() {
        let (shop, till) = wire.start(router()).await;
        let client = till.client();
        let numbers = client.stream::<_, u64>("math.count", &5_000).await.unwrap();
        let numbers: Vec<u64> = numbers.map(Result::unwrap).collect().await;
        assert_eq!(numbers, (1..=5_000).collect::<Vec<_>>(), "{}", wire.name);

        let mut upload = client.upload::<u64, u64>("math.sum").await.unwrap();
        for number in 1..=5_000 {
            upload.send(&number).await.unwrap();
        }
        assert_eq!(upload.finish().await.unwrap(), 12_502_500);

        let (mut numbers, doubles) = client.duplex::<u64, u64>("math.double").await.unwrap();
        let sending = async {
            for number in 1..=5_000 {
                numbers.send(&number).await.unwrap();
            }
            numbers.finish().await.unwrap();
        };
        let reading = doubles.map(Result::unwrap).collect::<Vec<u64>>();
        let ((), doubles) = tokio::join!(sending, reading);
        assert_eq!(doubles, (1..=5_000).map(|n| n * 2).collect::<Vec<_>>());
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_comes_before_the_first_item_and_an_error_after_the_last() {
    for wire in Wire::all() {
        let (shop, till) = wire.start(router()).await;
        let client = till.client();
        let refused = client.stream::<u64, String>("shop.follow", &0).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Remote, "{refused:?}");
        let unknown = ShopError::Unknown { order: 0 };
        assert_eq!(refused.remote_as::<ShopError>(), Some(unknown));

        let steps = client.stream::<u64, String>("shop.follow", &7).await;
        let steps: Vec<_> = steps.unwrap().collect().await;
        assert_eq!(steps.len(), 3);
        assert_eq!(steps[1].as_ref().unwrap(), "sent");
        let lost = steps[2].as_ref().unwrap_err();
        assert_eq!(lost.remote_as::<ShopError>(), Some(ShopError::Lost));

        let undecodable = client.stream::<_, u64>("math.count", "seven").await;
        let code = undecodable.unwrap_err();
        assert_eq!(code.as_remote().unwrap().code(), "invalid_payload");
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_its_sender_back() {
    for wire in Wire::all() {
        let made = Arc::new(AtomicUsize::new(0));
        let making = Arc::clone(&made);
        let endless = move |size: usize| {
            let making = Arc::clone(&making);
            stream::repeat_with(move || {
                making.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Failure>(Raw(Bytes::from(vec![0; size])))
            })
        };
        let (shop, till) = wire
            .start(Router::new().on_stream("data.all", endless))
            .await;
        for (size, most) in [(1, WINDOW), (WINDOW_BYTES / 4, 4)] {
            made.store(0, Ordering::Relaxed);
            let mut items = till
                .client()
                .stream::<_, Raw>("data.all", &size)
                .await
                .unwrap();
            until("a full window", || made.load(Ordering::Relaxed) >= most).await;
            common::settle().await;
            let ahead = made.load(Ordering::Relaxed);
            assert!(ahead <= most + 1, "{}: {ahead} of {most}", wire.name);
            for _ in 0..3 * most {
                items.next().await.unwrap().unwrap();
            }
            let ahead = made.load(Ordering::Relaxed);
            assert!(ahead <= 4 * most + 1, "{}: {ahead} of {most}", wire.name);
        }
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_goes_stops_the_handler() {
    for wire in Wire::all() {
        let ended = Arc::new(AtomicBool::new(false));
        let telling = Arc::clone(&ended);
        let waiting = move |_: u64| {
            let ended = Ended(Arc::clone(&telling));
            stream::iter([Ok::<u64, Failure>(1)]).chain(stream::pending().map(move |item| {
                let _ = &ended;
                item
            }))
        };
        let telling = Arc::clone(&ended);
        let reading = move |mut items: Inbound<u64>| {
            let ended = Ended(Arc::clone(&telling));
            async move {
                let _ended = ended;
                while let Some(item) = items.next().await {
                    item?;
                }
                std::future::pending::<Result<u64>>().await
            }
        };
        let router = Router::new()
            .on_stream("data.wait", waiting)
            .on_stream("data.read", reading);
        let (shop, till) = wire.start(router).await;
        let client = till.client();

        let mut items = client.stream::<u64, u64>("data.wait", &1).await.unwrap();
        assert_eq!(items.next().await.unwrap().unwrap(), 1);
        drop(items);
        until("the end of a stream", || {
            ended.swap(false, Ordering::Relaxed)
        })
        .await;

        let mut upload = client.upload::<u64, u64>("data.read").await.unwrap();
        upload.send(&1).await.unwrap();
        drop(upload);
        until("the end of an upload", || {
            ended.swap(false, Ordering::Relaxed)
        })
        .await;

        let upload = client.upload::<u64, u64>("data.read").await.unwrap();
        let finishing = tokio::spawn(upload.finish());
        common::settle().await;
        finishing.abort();
        until("the end of a call", || ended.swap(false, Ordering::Relaxed)).await;
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_sender_that_gives_up_is_no_clean_end() {
    for wire in Wire::all() {
        let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let reading = move |mut items: Inbound<u64>| {
            let sender = sender.clone();
            async move {
                let mut last = items.next().await;
                while let Some(Ok(_)) = last {
                    last = items.next().await;
                }
                sender.send(last.map(|item| item.unwrap_err())).unwrap();
                std::future::pending::<Result<u64>>().await
            }
        };
        let router = Router::new().on_stream("data.read", reading);
        let (shop, till) = wire.start(router).await;
        let (mut items, reply) = {
            let target = Duplex::<u64, u64>::new("data.read");
            till.client().duplex(target.pattern()).await.unwrap()
        };
        let _reply: Inbound<u64> = reply;
        items.send(&1).await.unwrap();
        drop(items);
        let end = seen.recv().await.unwrap().expect("an error");
        assert_eq!(
            end.as_remote().unwrap().code(),
            "cancelled",
            "{}",
            wire.name
        );
        drop(_reply);
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_handler_that_answers_early_wants_no_more_and_its_reply_is_there() {
    for wire in Wire::all() {
        let first =
            async |mut items: Inbound<u64>| -> Result<u64> { Ok(items.next().await.unwrap()?) };
        let fails = async |mut items: Inbound<u64>| -> Result<u64, ShopError> {
            let _ = items.next().await;
            Err(ShopError::Lost)
        };
        let router = Router::new()
            .on_stream("data.first", first)
            .on_stream("data.fails", fails);
        let (shop, till) = wire.start(router).await;
        let client = till.client();
        for subject in ["data.first", "data.fails"] {
            let mut upload = client.upload::<u64, u64>(subject).await.unwrap();
            let error = loop {
                match upload.send(&7).await {
                    Ok(()) => tokio::task::yield_now().await,
                    Err(error) => break error,
                }
            };
            if subject == "data.first" {
                assert_eq!(error.kind(), ErrorKind::Cancelled, "{}", wire.name);
                assert_eq!(upload.finish().await.unwrap(), 7);
            } else {
                assert_eq!(error.remote_as::<ShopError>(), Some(ShopError::Lost));
                let again = upload.send(&7).await.unwrap_err();
                assert_eq!(again.remote_as::<ShopError>(), Some(ShopError::Lost));
                let end = upload.finish().await.unwrap_err();
                assert_eq!(end.remote_as::<ShopError>(), Some(ShopError::Lost));
            }
        }
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_too_large_is_told_and_a_panic_is_an_error() {
    for wire in Wire::all() {
        let large = |size: usize| stream::iter([Ok::<_, Failure>(Raw(vec![0; size].into()))]);
        let panics = |_: u64| {
            stream::iter([1, 2]).map(|number| -> Result<u64> {
                assert!(number < 2, "two is too many");
                Ok(number)
            })
        };
        let router = Router::new()
            .on_stream("data.large", large)
            .on_stream("data.panics", panics);
        let (shop, till) = wire.start(router).await;
        let client = till.client();
        let mut items = client
            .stream::<_, Raw>("data.large", &20_000_000)
            .await
            .unwrap();
        let error = items.next().await.unwrap().unwrap_err();
        assert_eq!(error.as_remote().unwrap().code(), "too_large", "{error:?}");
        let mut items = client.stream::<u64, u64>("data.panics", &0).await.unwrap();
        assert_eq!(items.next().await.unwrap().unwrap(), 1);
        let error = items.next().await.unwrap().unwrap_err();
        assert_eq!(error.as_remote().unwrap().code(), "internal", "{error:?}");
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

/// Panics when it is dropped.
struct Bomb(Arc<AtomicBool>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        panic!("dropped");
    }
}

#[tokio::test]
async fn a_handler_that_panics_as_it_is_stopped_ends_nothing_else() {
    for wire in Wire::all() {
        let dropped = Arc::new(AtomicBool::new(false));
        let telling = Arc::clone(&dropped);
        let explodes = move |_: Inbound<u64>| {
            let bomb = Bomb(Arc::clone(&telling));
            async move {
                let _bomb = bomb;
                std::future::pending::<Result<u64>>().await
            }
        };
        let router = router().on_stream("data.explodes", explodes);
        let (shop, till) = wire.start(router).await;
        let client = till.client();
        for _ in 0..3 {
            drop(client.upload::<u64, u64>("data.explodes").await.unwrap());
            until("its end", || dropped.swap(false, Ordering::Relaxed)).await;
        }
        assert!(shop.health().is_ok(), "{}", wire.name);
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn calls_and_streaming_calls_are_told_apart() {
    for wire in Wire::all() {
        let answer = async |number: u64| -> Result<u64> { Ok(number) };
        let router = router().on_call("math.one", answer);
        let (shop, till) = wire.start(router).await;
        let client = till.client();
        let call = client.request::<u64, u64>("math.count", &1).await;
        let error = call.unwrap_err();
        assert_eq!(error.as_remote().unwrap().code(), "streaming_call");
        let stream = client.stream::<u64, u64>("math.one", &1).await;
        assert_eq!(stream.unwrap_err().kind(), ErrorKind::Unsupported);
        let stream = client.stream::<u64, u64>("math.none", &1).await;
        assert_eq!(stream.unwrap_err().kind(), ErrorKind::NoRoute);
        let mut upload = client.upload::<u64, u64>("math.count").await;
        if let Ok(upload) = &mut upload {
            let _ = upload.send(&1).await;
        }
        let error = match upload {
            Ok(upload) => upload.finish().await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.as_remote().unwrap().code(), "no_items");
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn the_whole_and_the_wait_for_an_item_are_limited() {
    for wire in Wire::all() {
        let (wire, clock) = wire.on_a_clock();
        let ended = Arc::new(AtomicBool::new(false));
        let telling = Arc::clone(&ended);
        let waiting = move |_: u64, context: Context| {
            let ended = Ended(Arc::clone(&telling));
            let has_deadline = u64::from(context.deadline().is_some());
            stream::iter([Ok::<u64, Failure>(has_deadline)])
                .chain(stream::pending().map(move |item| (&ended, item).1))
        };
        let router = Router::new().on_stream("data.wait", waiting);
        let (shop, till) = wire.start(router).await;
        let client = till.client();
        for (whole, deadline) in [(true, 1), (false, 0)] {
            let open = client.stream::<u64, u64>("data.wait", &1);
            let open = match whole {
                true => open.timeout(Duration::from_secs(3)),
                false => open.idle_timeout(Duration::from_secs(3)),
            };
            let mut items = open.await.unwrap();
            assert_eq!(items.next().await.unwrap().unwrap(), deadline);
            let next = tokio::spawn(async move { items.next().await });
            common::settle().await;
            assert!(!next.is_finished(), "{}", wire.name);
            clock.advance(Duration::from_secs(4));
            let end = next.await.unwrap().unwrap().unwrap_err();
            assert!(
                end.kind() == ErrorKind::Timeout || end.as_remote().is_some(),
                "{end:?}"
            );
            until("its end", || ended.swap(false, Ordering::Relaxed)).await;
        }
        drop((shop, till));
    }
}

#[tokio::test]
async fn streams_end_with_their_service() {
    for wire in Wire::all() {
        let waiting = |_: u64| stream::iter([Ok::<u64, Failure>(1)]).chain(stream::pending());
        let router = Router::new().on_stream("data.wait", waiting);
        let shop = wire
            .app("shop", router)
            .force("grace = '1s'")
            .start()
            .await
            .unwrap();
        let till = wire.app("till", Router::new()).start().await.unwrap();
        let mut items = till
            .client()
            .stream::<u64, u64>("data.wait", &1)
            .await
            .unwrap();
        assert_eq!(items.next().await.unwrap().unwrap(), 1);
        assert_eq!(
            shop.shutdown().await.unwrap_err().kind(),
            ErrorKind::Timeout
        );
        let end = items.next().await.unwrap().unwrap_err();
        assert!(
            [
                ErrorKind::Remote,
                ErrorKind::Disconnected,
                ErrorKind::Closed
            ]
            .contains(&end.kind()),
            "{}: {end:?}",
            wire.name
        );
        till.shutdown().await.unwrap();
    }
}

const FOLLOW: Streaming<u64, String, ShopError> = Streaming::new("shop.{region}.follow");
const IMPORT: Upload<u64, u64> = Upload::new("shop.import");

/// Shows every shape of a handler.
struct Shop {
    steps: Vec<String>,
}

#[controller]
impl Shop {
    /// Borrows from the shop.
    #[stream_pattern(FOLLOW)]
    fn follow(&self, order: u64) -> impl Stream<Item = Result<String, ShopError>> {
        stream::iter(
            self.steps
                .iter()
                .map(move |step| Ok(format!("{order} {step}"))),
        )
    }

    #[stream_pattern("shop.refuse", concurrency = 8)]
    async fn refuse(&self, order: u64) -> Result<impl Stream<Item = Result<String>>> {
        if order > 5 {
            return Err(Failure::permanent("too high").with_code("too_high"));
        }
        Ok(stream::iter(self.steps.iter().map(|step| Ok(step.clone()))))
    }

    #[stream_pattern(IMPORT)]
    async fn import(&self, mut orders: Inbound<u64>, State(by): State<u64>) -> Result<u64> {
        let mut sum = 0;
        while let Some(order) = orders.next().await {
            sum += order? * by;
        }
        Ok(sum)
    }

    #[stream_pattern("shop.negotiate")]
    fn negotiate(&self, offers: Inbound<u64>) -> impl Stream<Item = Result<u64>> {
        let floor = self.steps.len() as u64;
        offers.map(move |offer| Ok(offer?.max(floor)))
    }
}

#[stream_pattern("free.count")]
fn free(to: u64) -> impl Stream<Item = Result<u64>> {
    count(to)
}

#[stream_pattern("free.sum")]
async fn free_sum(numbers: Inbound<u64>) -> Result<u64> {
    sum(numbers).await
}

#[tokio::test]
async fn annotated_handlers_of_every_shape_answer() {
    for wire in Wire::all() {
        let shop = Shop {
            steps: vec!["packed".into(), "sent".into()],
        };
        let driven =
            |order: u64, reply: StreamReply| async move { reply.drive(count(order)).await };
        let app = wire
            .app("shop", Router::new().on_stream("free.driven", driven))
            .controller(shop)
            .handlers(handlers![free, free_sum])
            .state(2_u64);
        let app = app.start().await.unwrap();
        let client = app.client();
        let steps = client
            .stream(FOLLOW.with("region", "eu"), &7)
            .await
            .unwrap();
        let steps: Vec<String> = steps.map(Result::unwrap).collect().await;
        assert_eq!(steps, ["7 packed", "7 sent"]);
        let refused = client.stream::<u64, String>("shop.refuse", &6).await;
        assert_eq!(refused.unwrap_err().as_remote().unwrap().code(), "too_high");
        let steps = client
            .stream::<u64, String>("shop.refuse", &5)
            .await
            .unwrap();
        assert_eq!(steps.count().await, 2);
        let mut upload = client.upload(IMPORT).await.unwrap();
        upload.send(&4).await.unwrap();
        upload.send(&5).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), 18);
        let (mut offers, mut answers) = client.duplex::<u64, u64>("shop.negotiate").await.unwrap();
        for (offer, answer) in [(1, 2), (9, 9)] {
            offers.send(&offer).await.unwrap();
            assert_eq!(answers.next().await.unwrap().unwrap(), answer);
        }
        offers.finish().await.unwrap();
        assert!(answers.next().await.is_none());
        for subject in ["free.count", "free.driven"] {
            let numbers = client.stream::<u64, u64>(subject, &3).await.unwrap();
            assert_eq!(numbers.count().await, 3);
        }
        let mut upload = client.upload::<u64, u64>("free.sum").await.unwrap();
        upload.send(&4).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), 4);
        app.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_wire_without_streams_refuses_the_handler_and_the_client() {
    let broker = MemoryBroker::new();
    let altered = || {
        let mut altered = common::Altered::new(&broker);
        altered.capabilities = |capabilities| capabilities.streams = Support::Unsupported;
        App::new("shop")
            .config(Config::from_toml("url = 'memory://'").unwrap())
            .adapter(altered)
    };
    let refused = altered().router(router()).check().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let text = refused.to_string();
    assert!(
        text.contains("streaming calls") && text.contains("`count`"),
        "{text}"
    );
}
