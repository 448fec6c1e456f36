//! P: streaming calls.

use std::time::{Duration, Instant};

use anywire::pattern::streaming::{WINDOW, WINDOW_BYTES};
use anywire::{ErrorKind, RemoteError};
use futures::future::{join, join_all};
use tokio::time::timeout;

use crate::behaviour::behaviours;
use crate::harness::HEARTBEAT;
use crate::streams::{Accepting, Streams};
use crate::{Talk, Test};

/// How long something may take where nothing is broken.
const PATIENCE: Duration = Duration::from_secs(5);
/// How late a timer may be.
const SLACK: Duration = Duration::from_secs(1);

behaviours! {
    p01_items_arrive_whole_and_in_order_and_then_the_end: [Streams],
    p01_many_streams_keep_apart: [Streams],
    p02_a_reader_that_takes_nothing_bounds_its_sender: [Streams],
    p03_a_reader_that_goes_stops_its_sender_within_a_second: [Streams],
    p03_an_error_comes_after_all_items_before_it: [Streams],
    p03_a_refusal_is_the_openings_own_error: [Streams],
    p03_a_sender_that_goes_is_no_clean_end: [Streams],
    p04_what_the_caller_sends_ends_by_itself: [Streams],
    p05_an_idle_stream_lives_and_a_silent_one_is_missed: [Streams, Broker],
    p05_a_side_that_vanishes_is_missed: [Streams],
    p06_nobody_who_accepts_is_told_at_once: [Streams, NoResponder],
    p07_streams_that_are_left_leave_a_working_client: [Streams],
}

/// Both sides, the one that accepts first; `sends` says whether the other one sends items.
async fn both(test: &Test, sends: bool) -> (Accepting, Streams, [crate::Connection; 2]) {
    let (server, client) = (test.connect().await, test.connect().await);
    let accepting = server.streams().accept("talk", sends).await;
    (accepting, client.streams(), [server, client])
}

/// A stream between two clients: the side that has accepted, and the one that has opened.
async fn talk(accepting: &mut Accepting, client: &Streams, sends: bool) -> (Talk, Talk) {
    let (server, opened) = join(accepting.talk(), client.open("talk", "hello", sends)).await;
    (server, opened.expect("it opens"))
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

async fn send_all(talk: &mut Talk, items: &[String]) {
    for item in items {
        talk.send(item.clone()).await.expect("the item is sent");
    }
    talk.finish(None).await.expect("the end is sent");
}

/// A thousand items in each direction, and after them an end.
pub async fn p01_items_arrive_whole_and_in_order_and_then_the_end(test: &Test) {
    let (mut accepting, client, _clients) = both(test, true).await;
    let (mut server, mut caller) = talk(&mut accepting, &client, true).await;
    let items = numbers(test.profile().messages().min(1_000));
    let Talk { sink, source } = &mut server;
    let mut answering = Talk {
        sink: sink.take(),
        source: None,
    };
    let mut reading = Talk {
        sink: None,
        source: source.take(),
    };
    let mut asking = Talk {
        sink: caller.sink.take(),
        source: None,
    };
    let sending = join(
        send_all(&mut answering, &items),
        send_all(&mut asking, &items),
    );
    let (_, (up, down)) = join(sending, join(reading.rest(), caller.rest())).await;
    assert_eq!(up, items, "what the caller has sent");
    assert_eq!(down, items, "what the server has sent");
    assert!(
        caller.next().await.is_none(),
        "after the end there is nothing"
    );
}

/// Streams side by side, each with its own items.
pub async fn p01_many_streams_keep_apart(test: &Test) {
    let (mut accepting, client, clients) = both(test, false).await;
    let count = test.profile().pick(10, 50, 100);
    let serving = tokio::spawn(async move {
        let mut talks = Vec::new();
        for _ in 0..count {
            let received = accepting.next().await.expect("a streaming call");
            let name = received.message.payload().clone();
            let duplex = received.door.accept().await.expect("it is accepted");
            talks.push(async move {
                let mut talk = Talk {
                    sink: Some(duplex.sink),
                    source: Some(duplex.source),
                };
                for number in 0..30 {
                    let item = [&*name, b"-", number.to_string().as_bytes()].concat();
                    talk.send(item).await.expect("the item is sent");
                }
                talk.finish(None).await.expect("the end is sent");
            });
        }
        join_all(talks).await;
    });
    let reading = (0..count).map(async |stream| {
        let name = format!("s{stream}");
        let opened = client.open("talk", &name, false).await;
        let items = opened.expect("it opens").rest().await;
        let expected: Vec<_> = (0..30).map(|number| format!("{name}-{number}")).collect();
        assert_eq!(items, expected);
    });
    join_all(reading).await;
    serving.await.expect("the server ends");
    drop(clients);
}

/// The window holds, in items and in bytes; what was held back comes when the reader reads.
pub async fn p02_a_reader_that_takes_nothing_bounds_its_sender(test: &Test) {
    let (mut accepting, client, _clients) = both(test, false).await;
    let large = WINDOW_BYTES / 8;
    for (size, most) in [(10, WINDOW), (large, WINDOW_BYTES / large + 1)] {
        let (mut server, mut caller) = talk(&mut accepting, &client, false).await;
        let sending = async {
            let mut sent = 0;
            while let Ok(result) = timeout(SLACK, server.send(vec![b'x'; size])).await {
                result.expect("the item is sent");
                sent += 1;
                // A wire's own window may be one of bytes alone.
                let is_held = sent <= 4 * most || sent * size <= 4 * WINDOW_BYTES;
                assert!(is_held, "the sender was never held back");
            }
            sent
        };
        let sent = sending.await;
        // What the wire itself holds comes on top of the window.
        assert!(sent >= most.min(8), "{sent} items of {size} bytes");
        for _ in 0..sent {
            let item = caller.next().await.expect("an item").expect("an item");
            assert_eq!(item.len(), size);
        }
        let again = timeout(PATIENCE, server.send("more")).await;
        again.expect("there is room again").expect("it is sent");
        assert_eq!(
            caller.next().await.expect("an item").expect("an item"),
            "more"
        );
    }
}

/// The sender hears of it by its token and by its next item.
pub async fn p03_a_reader_that_goes_stops_its_sender_within_a_second(test: &Test) {
    let (mut accepting, client, _clients) = both(test, false).await;
    let opening = client.open("talk", "hello", false);
    let accepted = async {
        let received = accepting.next().await.expect("a streaming call");
        let stopped = received.stopped.clone();
        let duplex = received.door.accept().await.expect("it is accepted");
        (stopped, duplex)
    };
    let ((stopped, duplex), opened) = join(accepted, opening).await;
    let mut server = Talk {
        sink: Some(duplex.sink),
        source: Some(duplex.source),
    };
    let mut caller = opened.expect("it opens");
    server.send("one").await.expect("it is sent");
    assert_eq!(
        caller.next().await.expect("an item").expect("an item"),
        "one"
    );
    assert!(!stopped.is_cancelled());
    drop(caller);
    let told = timeout(SLACK, stopped.cancelled()).await;
    told.expect("the sender is told within a second");
    let refused = server.send("two").await;
    let kind = refused.expect_err("nobody reads").kind();
    assert!(
        matches!(kind, ErrorKind::Cancelled | ErrorKind::Disconnected),
        "{kind}"
    );
}

/// All items, then the sender's own error, with its details.
pub async fn p03_an_error_comes_after_all_items_before_it(test: &Test) {
    let (mut accepting, client, _clients) = both(test, false).await;
    let (mut server, mut caller) = talk(&mut accepting, &client, false).await;
    for item in numbers(20) {
        server.send(item).await.expect("the item is sent");
    }
    let error = RemoteError::new("sold_out", "there is none left").with_details(Some(7.into()));
    let finished = server.finish(Some(error.clone())).await;
    finished.expect("the end is sent");
    for item in numbers(20) {
        assert_eq!(
            caller.next().await.expect("an item").expect("an item"),
            item
        );
    }
    let end = caller.next().await.expect("the error");
    let end = end.expect_err("the error");
    assert_eq!(end.as_remote(), Some(&error));
    assert!(
        caller.next().await.is_none(),
        "after the error there is nothing"
    );
}

/// Refused, a stream never began.
pub async fn p03_a_refusal_is_the_openings_own_error(test: &Test) {
    let (mut accepting, client, _clients) = both(test, false).await;
    let error = RemoteError::new("closed_today", "come again").with_retryable(true);
    let refusing = async {
        let received = accepting.next().await.expect("a streaming call");
        assert_eq!(received.message.payload(), "hello");
        let refused = received.door.refuse(error.clone()).await;
        refused.expect("it can be refused");
        // One that is dropped is refused, too.
        drop(accepting.next().await.expect("a streaming call"));
    };
    let opening = async {
        let refused = client.open("talk", "hello", false).await;
        let refused = refused.expect_err("it is refused");
        assert_eq!(refused.as_remote(), Some(&error));
        let dropped = client.open("talk", "again", false).await;
        assert_eq!(
            dropped.expect_err("it is refused").kind(),
            ErrorKind::Remote
        );
    };
    join(refusing, opening).await;
}

/// A sender that is dropped before its end has not ended its stream.
pub async fn p03_a_sender_that_goes_is_no_clean_end(test: &Test) {
    let (mut accepting, client, _clients) = both(test, false).await;
    let (mut server, mut caller) = talk(&mut accepting, &client, false).await;
    server.send("one").await.expect("it is sent");
    drop(server.sink.take());
    assert_eq!(
        caller.next().await.expect("an item").expect("an item"),
        "one"
    );
    let end = timeout(PATIENCE, caller.next()).await.expect("it is told");
    end.expect("an error").expect_err("an error, and no end");
}

/// The caller ends what it sends; what it reads goes on.
pub async fn p04_what_the_caller_sends_ends_by_itself(test: &Test) {
    let (mut accepting, client, _clients) = both(test, true).await;
    let (mut server, mut caller) = talk(&mut accepting, &client, true).await;
    caller.send("question").await.expect("it is sent");
    caller.finish(None).await.expect("the end is sent");
    assert_eq!(server.rest().await, ["question"]);
    server.send("answer").await.expect("it is sent");
    server.finish(None).await.expect("the end is sent");
    assert_eq!(caller.rest().await, ["answer"]);
}

/// Nothing is sent for three heartbeats; then the network is cut.
pub async fn p05_an_idle_stream_lives_and_a_silent_one_is_missed(test: &Test) {
    let (mut accepting, client, clients) = both(test, true).await;
    let (mut server, mut caller) = talk(&mut accepting, &client, true).await;
    tokio::time::sleep(3 * HEARTBEAT).await;
    server.send("still here").await.expect("it is sent");
    let item = timeout(PATIENCE, caller.next()).await.expect("in time");
    assert_eq!(item.expect("an item").expect("an item"), "still here");
    test.broker().cut().await.expect("the network is cut");
    let start = Instant::now();
    let end = timeout(2 * HEARTBEAT + 2 * SLACK, caller.next()).await;
    test.broker().heal().await.expect("the network is mended");
    let end = end.unwrap_or_else(|_| panic!("not missed after {:?}", start.elapsed()));
    let end = end.expect("an error").expect_err("an error, and no end");
    assert_eq!(end.kind(), ErrorKind::Disconnected);
    assert_eq!(end.context("last"), Some("1"));
    drop((server, caller, accepting, client));
    for client in clients {
        let _ = client.transport().close(PATIENCE).await;
    }
}

/// A client that goes without a word.
pub async fn p05_a_side_that_vanishes_is_missed(test: &Test) {
    let (mut accepting, client, [server_client, _client]) = both(test, false).await;
    let (mut server, mut caller) = talk(&mut accepting, &client, false).await;
    server.send("one").await.expect("it is sent");
    assert_eq!(
        caller.next().await.expect("an item").expect("an item"),
        "one"
    );
    server_client.close().await;
    let end = timeout(2 * HEARTBEAT + 2 * SLACK, caller.next()).await;
    let end = end.expect("it is missed").expect("an error");
    end.expect_err("an error, and no end");
    let stopped = timeout(PATIENCE, server.send("two")).await;
    stopped.expect("it ends").expect_err("it is closed");
}

/// As for calls.
pub async fn p06_nobody_who_accepts_is_told_at_once(test: &Test) {
    let client = test.connect().await;
    let start = Instant::now();
    let opened = client.streams().open("nobody", "hello", false).await;
    assert_eq!(
        opened.expect_err("nobody is there").kind(),
        ErrorKind::NoRoute
    );
    assert!(start.elapsed() < PATIENCE, "it took its deadline");
}

/// Hundreds that are opened and left at once; then one that is read. (The runner looks for tasks that stayed.)
pub async fn p07_streams_that_are_left_leave_a_working_client(test: &Test) {
    let (mut accepting, client, _clients) = both(test, false).await;
    let count = test.profile().pick(50, 200, 1_000);
    let accepting = async {
        let mut stops = Vec::new();
        for _ in 0..count {
            let received = accepting.next().await.expect("a streaming call");
            let stopped = received.stopped.clone();
            let duplex = received.door.accept().await.expect("it is accepted");
            stops.push(async move {
                stopped.cancelled().await;
                drop(duplex);
            });
        }
        let stopped = timeout(2 * PATIENCE, join_all(stops)).await;
        stopped.expect("every one that was left is stopped");
        accepting
    };
    let leaving = async {
        for _ in 0..count {
            drop(client.open("talk", "left", false).await.expect("it opens"));
        }
    };
    let (mut accepting, ()) = join(accepting, leaving).await;
    let (mut server, mut caller) = talk(&mut accepting, &client, false).await;
    send_all(&mut server, &numbers(3)).await;
    assert_eq!(caller.rest().await, numbers(3));
    accepting.stop().await;
}
