//! The emulation of streaming calls over a post that fails.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anywire::clock::Clock;
use anywire::{ErrorKind, Failure, Inbound, Message, Result, Router};
use common::streams::{Running, router, sum};
use common::wires::{Fate, HEARTBEAT, Wire, pass};
use common::{in_time, until};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

#[tokio::test]
async fn lost_repeated_and_forged_frames_are_noticed() {
    let is_item = |frame: &Message, number: u64| frame.frame() == Some(&format!("i {number}"));
    // What becomes of the frames, and what the reader gets.
    type Case = (
        &'static str,
        Box<dyn Fn(Message) -> Vec<Message> + Send + Sync>,
        Result<u64, ErrorKind>,
    );
    let swapped = Mutex::new(None);
    let cases: [Case; 6] = [
        (
            "repeated",
            Box::new(|frame| vec![frame.clone(), frame]),
            Ok(10),
        ),
        (
            "lost",
            Box::new(move |frame| match is_item(&frame, 5) {
                true => Vec::new(),
                false => vec![frame],
            }),
            Err(ErrorKind::Disconnected),
        ),
        (
            "swapped",
            Box::new(move |frame| {
                let mut held = swapped.lock();
                match (is_item(&frame, 5), held.take()) {
                    (true, _) => {
                        *held = Some(frame);
                        Vec::new()
                    }
                    (false, Some(before)) => vec![frame, before],
                    (false, None) => vec![frame],
                }
            }),
            Err(ErrorKind::Disconnected),
        ),
        (
            "forged",
            Box::new(move |frame| match is_item(&frame, 5) {
                true => vec![frame.with_frame("i 5000")],
                false => vec![frame],
            }),
            Err(ErrorKind::Rejected),
        ),
        (
            "too early an end",
            Box::new(move |frame| match is_item(&frame, 5) {
                true => vec![frame.with_frame("e 3")],
                false => vec![frame],
            }),
            Err(ErrorKind::Rejected),
        ),
        (
            "nonsense",
            Box::new(move |frame| {
                let nonsense = frame.clone().with_frame("i five");
                vec![nonsense, frame]
            }),
            Ok(10),
        ),
    ];
    for (name, fault, expected) in cases {
        let (wire, town) = Wire::emulated();
        town.breaks(fault);
        let (shop, till) = wire.start(router()).await;
        let mut items = till
            .client()
            .stream::<u64, u64>("math.count", &10)
            .await
            .unwrap();
        let mut read = 0;
        let end = loop {
            match items.next().await {
                Some(Ok(number)) => {
                    read += 1;
                    assert_eq!(number, read, "{name}");
                }
                Some(Err(error)) => {
                    let last = error.context("last").map(str::to_owned);
                    assert_eq!(last, Some(read.to_string()), "{name}");
                    break Err(error.kind());
                }
                None => break Ok(read),
            }
        };
        assert_eq!(end, expected, "{name}");
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn an_idle_stream_lives_and_a_silent_side_is_missed() {
    let (wire, town, clock) = Wire::timed();
    let running = Running::default();
    let router = Router::new().on_stream("data.wait", running.waiting());
    let (shop, till) = wire.start(router).await;
    let client = till.client();
    let mut items = client.stream::<u64, u64>("data.wait", &1).await.unwrap();
    pass(&clock, 3 * HEARTBEAT).await;
    assert_eq!(running.count(), 1, "an idle stream was ended");

    // Nothing arrives any more, at either side.
    town.breaks(|_| Vec::new());
    pass(&clock, 2 * HEARTBEAT).await;
    let end = items.next().await.unwrap().unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Disconnected);
    until("the handler's end", || running.count() == 0).await;
    drop((shop, till));
}

#[tokio::test]
async fn a_lost_end_and_a_lost_stop_are_made_up_for() {
    let (wire, town, clock) = Wire::timed();
    let running = Running::default();
    let router = router().on_stream("data.wait", running.waiting());
    let (shop, till) = wire.start(router).await;
    let client = till.client();
    town.breaks(|frame| match frame.frame() {
        Some("e 3") => Vec::new(),
        _ => vec![frame],
    });
    let mut items = client.stream::<u64, u64>("math.count", &3).await.unwrap();
    for number in 1..=3 {
        assert_eq!(items.next().await.unwrap().unwrap(), number);
    }
    pass(&clock, 2 * HEARTBEAT).await;
    let end = items.next().await.unwrap().unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Disconnected, "no clean end");

    let items = client.stream::<u64, u64>("data.wait", &1).await.unwrap();
    town.breaks(|_| Vec::new());
    drop(items);
    common::settle().await;
    assert_eq!(running.count(), 1);
    town.mends();
    pass(&clock, HEARTBEAT).await;
    until("the handler's end", || running.count() == 0).await;
    drop((shop, till));
}

#[tokio::test]
async fn ten_thousand_streams_that_are_left_leave_nothing() {
    for wire in Wire::all() {
        let running = Running::default();
        let router = Router::new().on_stream("data.wait", running.waiting());
        let (shop, till) = wire.start(router).await;
        let client = till.client();
        for _ in 0..10_000 {
            drop(client.stream::<u64, u64>("data.wait", &1).await.unwrap());
        }
        until("no stream", || running.count() == 0).await;
        if let Some(town) = wire.town() {
            let inboxes = town.inboxes();
            let is_empty = |inbox: &String| inbox.contains("streams: 0");
            assert!(
                inboxes.len() == 2 && inboxes.iter().all(is_empty),
                "{inboxes:?}"
            );
        }
        till.shutdown().await.unwrap();
        shop.shutdown().await.unwrap();
    }
}

/// A stream whose handler waits for the test before it accepts, and before it ends.
#[derive(Clone)]
struct Gated {
    gate: Arc<Semaphore>,
    running: Running,
}

impl Gated {
    fn new() -> Self {
        Self {
            gate: Arc::new(Semaphore::new(0)),
            running: Running::default(),
        }
    }

    async fn pass(self) {
        self.gate.acquire().await.unwrap().forget();
    }

    fn handler(
        &self,
    ) -> impl Fn(u64) -> BoxFuture<'static, Result<Numbers>> + Send + Sync + 'static {
        let gated = self.clone();
        move |to| {
            let gated = gated.clone();
            Box::pin(async move {
                let run = gated.running.begin();
                gated.clone().pass().await;
                let end = gated.pass().map(move |()| drop(run)).into_stream();
                let end = end.filter_map(async |()| None);
                Ok(stream::iter((1..=to).map(Ok)).chain(end).boxed())
            })
        }
    }
}

type Numbers = BoxStream<'static, Result<u64>>;

#[tokio::test]
async fn a_second_side_that_accepts_is_not_listened_to() {
    for is_first in [false, true] {
        let (wire, town, clock) = Wire::timed();
        let (shop, mall) = (Gated::new(), Running::default());
        let running = mall.clone();
        let hundreds = move |to: u64| {
            let run = running.begin();
            let all = stream::iter((1..=to).map(|number| Ok::<_, Failure>(number * 100)));
            all.chain(stream::pending()).map(move |item| (&run, item).1)
        };
        let shop_router = Router::new().on_stream("shop.count", shop.handler());
        let (shop_app, till) = wire.start(shop_router).await;
        let mall_router = Router::new().on_stream("mall.count", hundreds);
        let mall_app = wire.app("mall", mall_router).start().await.unwrap();

        let client = till.client();
        let open = tokio::spawn(async move { client.stream::<_, u64>("shop.count", &3).await });
        until("the handler", || shop.running.count() == 1).await;
        if is_first {
            // Its items are there before the other one has accepted.
            town.asks_again("mall.count").await.unwrap();
        }
        shop.gate.add_permits(1);
        let mut items = open.await.unwrap().unwrap();
        if !is_first {
            town.asks_again("mall.count").await.unwrap();
        }
        common::settle().await;
        for number in 1..=3 {
            assert_eq!(items.next().await.unwrap().unwrap(), number);
        }
        shop.gate.add_permits(1);
        assert!(items.next().await.is_none());
        drop(items);
        pass(&clock, HEARTBEAT).await;
        until("the end of the second one", || mall.count() == 0).await;
        drop((shop_app, mall_app, till));
    }
}

#[tokio::test]
async fn a_repeated_opening_opens_nothing_and_ends_nothing() {
    let (wire, town) = Wire::emulated();
    let gated = Gated::new();
    let router = Router::new().on_stream("shop.count", gated.handler());
    let (shop, till) = wire.start(router).await;
    let client = till.client();
    let open = tokio::spawn(async move { client.stream::<_, u64>("shop.count", &5_000).await });
    until("the handler", || gated.running.count() == 1).await;
    let repeating = town.clone();
    let early = tokio::spawn(async move { repeating.asks_again("shop.count").await });
    common::settle().await;
    gated.gate.add_permits(2);
    let mut items = open.await.unwrap().unwrap();
    let late = town.asks_again("shop.count").await.unwrap();
    let early = early.await.unwrap().unwrap();
    assert_eq!(early.frame(), late.frame());
    let read = async {
        for number in 1..=5_000 {
            assert_eq!(items.next().await.unwrap().unwrap(), number);
        }
        assert!(items.next().await.is_none());
    };
    in_time("all items", read).await;
    assert_eq!(gated.running.count(), 0);
    drop((shop, till));
}

#[tokio::test]
async fn what_one_direction_has_lost_is_made_up_for_while_the_other_goes_on() {
    let (wire, town, clock) = Wire::timed();
    let running = Running::default();
    let counting = running.clone();
    let reads = move |mut items: Inbound<u64>| {
        let run = counting.begin();
        stream::once(async move {
            let _run = run;
            while items.next().await.is_some() {}
            std::future::pending::<Result<u64>>().await
        })
    };
    let gate = Arc::new(Semaphore::new(0));
    let opening = Arc::clone(&gate);
    let refuses = move |items: Inbound<u64>| {
        let gate = Arc::clone(&opening);
        stream::once(async move {
            gate.acquire().await.unwrap().forget();
            drop(items);
            std::future::pending::<Result<u64>>().await
        })
    };
    let router = Router::new()
        .on_stream("data.reads", reads)
        .on_stream("data.sum", sum)
        .on_stream("data.refuses", refuses);
    let (shop, till) = wire.start(router).await;
    let client = till.client();

    // The end of what the caller sends, lost in a duplex and in an upload.
    let (mut items, replies) = client.duplex::<u64, u64>("data.reads").await.unwrap();
    items.send(&1).await.unwrap();
    town.breaks(|_| Vec::new());
    items.finish().await.unwrap();
    town.mends();
    pass(&clock, HEARTBEAT).await;
    until("the handler's end", || running.count() == 0).await;
    drop(replies);
    let mut upload = client.upload::<u64, u64>("data.sum").await.unwrap();
    upload.send(&1).await.unwrap();
    town.breaks(|_| Vec::new());
    let finishing = tokio::spawn(upload.finish());
    common::settle().await;
    town.mends();
    pass(&clock, HEARTBEAT).await;
    let error = in_time("a reply", finishing).await.unwrap().unwrap_err();
    assert!(error.as_remote().is_some() || error.kind() == ErrorKind::Disconnected);

    // The stop of a reader that goes on replying.
    let (mut items, replies) = client.duplex::<u64, u64>("data.refuses").await.unwrap();
    items.send(&1).await.unwrap();
    town.breaks(|_| Vec::new());
    gate.add_permits(1);
    common::settle().await;
    town.mends();
    pass(&clock, HEARTBEAT).await;
    let refused = items.send(&2).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Cancelled);
    drop(replies);

    // An end that the wire does not take.
    let (mut items, mut replies) = client.duplex::<u64, u64>("data.reads").await.unwrap();
    items.send(&1).await.unwrap();
    town.breaks(|frame| match frame.frame() {
        Some("e 1") => Fate::Fails(ErrorKind::Disconnected),
        _ => Fate::Arrives(vec![frame]),
    });
    assert_eq!(
        items.finish().await.unwrap_err().kind(),
        ErrorKind::Disconnected
    );
    until("the handler's end", || running.count() == 0).await;
    let end = in_time("an end", replies.next()).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::Disconnected);
    drop((shop, till));
}

#[tokio::test]
async fn thousands_of_idle_streams_live() {
    const STREAMS: usize = 5_000;
    let (wire, town, clock) = Wire::timed();
    let running = Running::default();
    let router = Router::new().on_stream("data.wait", running.waiting());
    let shop = wire
        .app("shop", router)
        .force(format!("[handlers.'data.wait']\nconcurrency = {STREAMS}"));
    let shop = shop.start().await.unwrap();
    let till = wire.app("till", Router::new()).start().await.unwrap();
    let client = till.client();
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        open.push(client.stream::<u64, u64>("data.wait", &1).await.unwrap());
    }
    let beats = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&beats);
    town.breaks(move |frame| {
        let is_beat = frame.frame().is_some_and(|frame| frame.starts_with("b "));
        counting.fetch_add(usize::from(is_beat), Ordering::Relaxed);
        vec![frame]
    });
    for _ in 0..6 {
        beats.store(0, Ordering::Relaxed);
        pass(&clock, HEARTBEAT / 2).await;
        until("a sign of life of each", || {
            beats.load(Ordering::Relaxed) >= 2 * STREAMS
        })
        .await;
    }
    assert_eq!(running.count(), STREAMS);
    drop((open, shop, till));
}

#[tokio::test]
async fn a_silent_side_is_missed_while_the_wire_takes_nothing() {
    let (wire, town, clock) = Wire::timed();
    let running = Running::default();
    let router = Router::new().on_stream("data.wait", running.waiting());
    let (shop, till) = wire.start(router).await;
    let client = till.client();
    let mut items = client.stream::<u64, u64>("data.wait", &1).await.unwrap();
    common::settle().await;
    town.breaks(Fate::Waits);
    pass(&clock, 2 * HEARTBEAT).await;
    let end = in_time("an end", items.next()).await.unwrap().unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Disconnected);
    until("the handler's end", || running.count() == 0).await;
    drop((shop, till));
}

#[tokio::test]
async fn an_opening_may_wait_long_for_its_handler() {
    let (wire, _, clock) = Wire::timed();
    let gated = Gated::new();
    let router = Router::new().on_stream("shop.count", gated.handler());
    let (shop, till) = wire.start(router).await;
    let client = till.client();
    let open = tokio::spawn(async move {
        let open = client.stream::<u64, u64>("shop.count", &3);
        open.open_timeout(100 * HEARTBEAT).await
    });
    until("the handler", || gated.running.count() == 1).await;
    pass(&clock, 4 * HEARTBEAT).await;
    assert_eq!(gated.running.count(), 1, "it was given up");
    gated.gate.add_permits(2);
    let items = open.await.unwrap().unwrap();
    assert_eq!(items.count().await, 3);
    drop((shop, till));
}

#[tokio::test]
async fn sides_of_unequal_heartbeats_keep_each_other() {
    for (of_shop, of_till) in [(HEARTBEAT, 5 * HEARTBEAT), (5 * HEARTBEAT, HEARTBEAT)] {
        let (wire, _, clock) = Wire::timed();
        let running = Running::default();
        let router = Router::new().on_stream("data.wait", running.waiting());
        let shop = wire
            .app_that_beats("shop", router, of_shop)
            .start()
            .await
            .unwrap();
        let till = wire
            .app_that_beats("till", Router::new(), of_till)
            .start()
            .await
            .unwrap();
        let client = till.client();
        let items = client.stream::<u64, u64>("data.wait", &1).await.unwrap();
        pass(&clock, 15 * HEARTBEAT).await;
        assert_eq!(running.count(), 1, "{of_shop:?}, {of_till:?}");
        drop((items, shop, till));
    }
}

#[tokio::test]
async fn a_sender_whose_item_is_stuck_hears_that_nobody_wants_it() {
    let (wire, town) = Wire::emulated();
    let gate = Arc::new(Semaphore::new(0));
    let opening = Arc::clone(&gate);
    let refuses = move |items: Inbound<u64>| {
        let gate = Arc::clone(&opening);
        stream::once(async move {
            gate.acquire().await.unwrap().forget();
            drop(items);
            std::future::pending::<Result<u64>>().await
        })
    };
    let (shop, till) = wire
        .start(Router::new().on_stream("data.refuses", refuses))
        .await;
    let client = till.client();
    let (mut items, replies) = client.duplex::<u64, u64>("data.refuses").await.unwrap();
    town.breaks(|frame| match frame.frame() {
        Some("i 1") => Fate::Waits(frame),
        _ => Fate::Arrives(vec![frame]),
    });
    let sending = tokio::spawn(async move { items.send(&1).await });
    common::settle().await;
    assert!(!sending.is_finished());
    gate.add_permits(1);
    let sent = in_time("an error", sending).await.unwrap();
    assert_eq!(sent.unwrap_err().kind(), ErrorKind::Cancelled);
    drop((replies, shop, till));
}

#[tokio::test]
async fn a_frame_that_the_wire_takes_late_is_as_good() {
    let (wire, town) = Wire::emulated();
    let (shop, till) = wire.start(router()).await;
    town.breaks(|frame| match frame.frame() {
        Some("i 3" | "e 5") => Fate::Waits(frame),
        _ => Fate::Arrives(vec![frame]),
    });
    let client = till.client();
    let mut items = client.stream::<u64, u64>("math.count", &5).await.unwrap();
    for number in 1..=2 {
        assert_eq!(items.next().await.unwrap().unwrap(), number);
    }
    common::settle().await;
    town.lets_go();
    assert_eq!(in_time("the rest", items.count()).await, 3);
    drop((shop, till));
}

#[tokio::test]
async fn a_caller_that_gave_up_is_told_of_by_the_first_sign_of_life() {
    let (wire, town, clock) = Wire::timed();
    let gated = Gated::new();
    let running = Running::default();
    let counting = running.clone();
    let ticking = {
        let clock = clock.clone();
        move |_: u64| {
            let (run, clock) = (counting.begin(), clock.clone());
            stream::repeat(()).then(move |()| {
                let _ = &run;
                let tick = clock.sleep_until(clock.now() + HEARTBEAT / 8);
                tick.map(|()| Ok::<_, Failure>(1))
            })
        }
    };
    let router = Router::new()
        .on_stream("shop.count", gated.handler())
        .on_stream("data.ticks", ticking);
    let (shop, till) = wire.start(router).await;

    // When it is accepted: no time passes at all.
    gated.gate.add_permits(1);
    let client = till.client();
    drop(client.stream::<_, u64>("shop.count", &3).await.unwrap());
    until("its end", || gated.running.count() == 0).await;
    gated.gate.add_permits(1);
    town.asks_again("shop.count").await.unwrap();
    until("its end", || gated.running.count() == 0).await;

    // While items are sent, and what the caller said is lost.
    let mut items = till
        .client()
        .stream::<u64, u64>("data.ticks", &1)
        .await
        .unwrap();
    pass(&clock, HEARTBEAT).await;
    items.next().await.unwrap().unwrap();
    town.breaks(|_| Vec::new());
    drop(items);
    common::settle().await;
    town.mends();
    pass(&clock, HEARTBEAT).await;
    until("its end", || running.count() == 0).await;
    drop((shop, till));
}

#[tokio::test]
async fn a_stream_whose_frames_are_stuck_holds_up_no_other() {
    let (wire, town, clock) = Wire::timed();
    let (stuck, other) = (Running::default(), Running::default());
    let router = Router::new()
        .on_stream("data.stuck", stuck.waiting())
        .on_stream("data.other", other.waiting());
    let (shop, till) = wire.start(router).await;
    let client = till.client();
    let marks = Arc::new(Mutex::new(HashSet::new()));
    let noting = Arc::clone(&marks);
    town.breaks(move |frame| {
        noting
            .lock()
            .insert(frame.correlation_id().map(str::to_owned));
        vec![frame]
    });
    let mut first = Vec::new();
    for _ in 0..4 {
        first.push(client.stream::<u64, u64>("data.stuck", &1).await.unwrap());
    }
    pass(&clock, HEARTBEAT).await;
    town.breaks(move |frame| {
        let mark = frame.correlation_id().map(str::to_owned);
        match marks.lock().contains(&mark) {
            true => Fate::Waits(frame),
            false => Fate::Arrives(vec![frame]),
        }
    });
    let second = client.stream::<u64, u64>("data.other", &1).await.unwrap();
    pass(&clock, 3 * HEARTBEAT).await;
    assert_eq!((stuck.count(), other.count()), (0, 1));
    drop((first, second, shop, till));
}
