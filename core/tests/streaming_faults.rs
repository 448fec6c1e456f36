//! The emulation of streaming calls over a post that fails.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use anywire::{ErrorKind, Message, Router};
use common::streams::{Running, router};
use common::until;
use common::wires::{HEARTBEAT, Wire, pass};
use parking_lot::Mutex;

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
        Some("e 3" | "stop") => Vec::new(),
        _ => vec![frame],
    });
    let mut items = client.stream::<u64, u64>("math.count", &3).await.unwrap();
    for number in 1..=3 {
        assert_eq!(items.next().await.unwrap().unwrap(), number);
    }
    pass(&clock, 2 * HEARTBEAT).await;
    let end = items.next().await.unwrap().unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Disconnected, "no clean end");

    drop(client.stream::<u64, u64>("data.wait", &1).await.unwrap());
    common::settle().await;
    assert_eq!(running.count(), 1);
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
