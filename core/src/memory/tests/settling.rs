//! Windows, tags, redelivery, and keys that hold.

use super::*;
use crate::pattern::publish_subscribe::{Guarantee, Order};

#[tokio::test]
async fn the_window_is_a_hard_limit_and_a_settlement_wakes_the_consumer() {
    let rig = Rig::new().await;
    let mut incoming = rig.open(spec("g", "a.b").with_window(2)).await;
    let settler = incoming.settler();
    for payload in ["1", "2", "3"] {
        rig.emit("a.b", payload);
    }
    let taken = take(&mut *incoming, 9).await;
    assert_eq!(payloads(&taken), ["1", "2"]);
    assert_eq!(take(&mut *incoming, 9).await.len(), 0);
    let consumer = tokio::spawn(async move { take_one_when_there(&mut *incoming).await });
    tokio::task::yield_now().await;
    assert!(!consumer.is_finished());
    ack(&settler, &taken[0]);
    assert_eq!(payloads(&consumer.await.unwrap()), ["3"]);
}

async fn take_one_when_there(incoming: &mut dyn Incoming) -> Vec<Received> {
    let mut batch = Batch::new(1);
    pull(incoming, &mut batch).await.unwrap();
    batch.drain().collect()
}

#[tokio::test]
async fn a_stale_tag_is_an_error_and_settles_nothing_else() {
    let rig = Rig::new().await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let mut other = rig.open(spec("g", "a.b")).await;
    let (settler, stranger) = (incoming.settler(), other.settler());
    rig.emit("a.b", "1");
    let first = take_one(&mut *incoming).await;
    ack(&settler, &first);
    rig.emit("a.b", "2");
    let second = take_one(&mut *incoming).await;
    assert_eq!(first.tag.slot, second.tag.slot, "the slot is used again");
    for (settler, tag) in [(&settler, first.tag), (&stranger, second.tag)] {
        let error = settle(settler, tag, Settlement::Ack).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale);
    }
    settle(&settler, second.tag, Settlement::Return).unwrap();
    let error = settle(&settler, second.tag, Settlement::Ack).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale, "the first decision wins");
    assert_eq!(take_one(&mut *other).await.deliveries, Some(2));
}

#[tokio::test]
async fn one_bad_tag_fails_alone_in_its_batch() {
    let rig = Rig::new().await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    rig.emit("a.b", "1");
    let received = take_one(&mut *incoming).await;
    let mut batch = SettleBatch::default();
    batch.push(Tag { slot: 77, epoch: 1 }, Settlement::Ack);
    batch.push(received.tag, Settlement::Ack);
    let Progress::Done(batch) = incoming.settler().settle(batch) else {
        panic!("settling has to wait");
    };
    let failed: Vec<usize> = batch.failed().iter().map(|(index, _)| *index).collect();
    assert_eq!(failed, [0]);
    assert_eq!(
        rig.broker
            .load(crate::clock::Clock::now(&rig.clock))
            .unsettled,
        0
    );
}

#[tokio::test]
async fn what_is_returned_comes_first_and_in_its_old_order() {
    let rig = Rig::new().await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let settler = incoming.settler();
    for payload in ["1", "2", "3"] {
        rig.emit("a.b", payload);
    }
    let taken = take(&mut *incoming, 2).await;
    for received in taken.iter().rev() {
        settle(&settler, received.tag, Settlement::Return).unwrap();
    }
    let again = take(&mut *incoming, 9).await;
    assert_eq!(payloads(&again), ["1", "2", "3"]);
    let counts: Vec<_> = again.iter().map(|received| received.deliveries).collect();
    assert_eq!(counts, [Some(2), Some(2), Some(1)]);
}

#[tokio::test]
async fn what_is_returned_for_later_comes_then() {
    let rig = Rig::new().await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let settler = incoming.settler();
    rig.emit("a.b", "1");
    let received = take_one(&mut *incoming).await;
    settle(&settler, received.tag, Settlement::ReturnAfter(PATIENCE)).unwrap();
    assert_eq!(take(&mut *incoming, 9).await.len(), 0);
    let now = crate::clock::Clock::now(&rig.clock);
    assert_eq!(rig.clock.next_timer(), Some(now + PATIENCE));
    assert!(rig.clock.advance_to_next());
    assert_eq!(take_one(&mut *incoming).await.deliveries, Some(2));
}

#[tokio::test]
async fn at_most_once_is_settled_before_it_is_delivered() {
    let rig = Rig::new().await;
    let lossy = spec("g", "a.b").with_guarantee(Guarantee::AtMostOnce);
    let mut incoming = rig.open(lossy.with_window(1)).await;
    rig.emit("a.b", "1");
    rig.emit("a.b", "2");
    let taken = take(&mut *incoming, 1).await;
    let settler = incoming.settler();
    settle(&settler, taken[0].tag, Settlement::Return).unwrap();
    drop((incoming, settler));
    assert_eq!(rig.backlog("g", "a.b"), Some(1), "only the second is left");
}

#[tokio::test]
async fn what_nobody_can_settle_any_more_is_delivered_to_the_next() {
    let rig = Rig::new().await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let mut heir = rig.open(spec("g", "a.b")).await;
    let settler = incoming.settler();
    rig.emit("a.b", "1");
    let received = take_one(&mut *incoming).await;
    drop(incoming);
    assert_eq!(
        take(&mut *heir, 9).await.len(),
        0,
        "it can still be settled"
    );
    let waiting = tokio::spawn(async move { take_one_when_there(&mut *heir).await });
    tokio::task::yield_now().await;
    drop(settler);
    let again = waiting.await.unwrap();
    assert_eq!(again[0].deliveries, Some(2));
    assert_ne!(again[0].tag, received.tag);
}

#[tokio::test]
async fn a_stopped_consumer_takes_nothing_more_and_may_settle_what_it_has() {
    let rig = Rig::new().await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let settler = incoming.settler();
    rig.emit("a.b", "1");
    let received = take_one(&mut *incoming).await;
    rig.emit("a.b", "2");
    incoming.stop().await.unwrap();
    assert_eq!(
        pull(&mut *incoming, &mut Batch::new(1)).await.unwrap(),
        crate::pattern::Pulled::End
    );
    ack(&settler, &received);
    assert_eq!(rig.backlog("g", "a.b"), Some(1));
}

#[tokio::test]
async fn a_key_that_is_out_holds_its_other_messages_for_the_whole_group() {
    let rig = Rig::new().await;
    let ordered = spec("g", "a.b").with_order(Order::KeyInGroup);
    let (mut left, mut right) = (rig.open(ordered.clone()).await, rig.open(ordered).await);
    let settler = left.settler();
    for (key, payload) in [("k", "k1"), ("k", "k2"), ("j", "j1"), ("k", "k3")] {
        let entry = Entry::new(message("a.b", payload).with_key(key));
        assert_accepted(&rig.publish(entry));
    }
    let first = take_one(&mut *left).await;
    let beside = take(&mut *right, 9).await;
    assert_eq!(payloads(&beside), ["j1"]);
    settle(&settler, first.tag, Settlement::Return).unwrap();
    let again = take(&mut *left, 9).await;
    assert_eq!(
        payloads(&again),
        ["k1"],
        "it goes before those of its key that waited"
    );
    ack(&settler, &again[0]);
    let second = take(&mut *left, 9).await;
    assert_eq!(payloads(&second), ["k2"]);
    settle(&settler, second[0].tag, Settlement::ReturnAfter(PATIENCE)).unwrap();
    assert_eq!(
        payloads(&take(&mut *right, 9).await),
        ["k3"],
        "it lets its key go"
    );
}

#[tokio::test]
async fn a_freed_key_wakes_the_consumer_that_waits_for_it() {
    let rig = Rig::new().await;
    let ordered = spec("g", "a.b").with_order(Order::KeyInGroup);
    let (mut left, mut right) = (rig.open(ordered.clone()).await, rig.open(ordered).await);
    for payload in ["1", "2"] {
        assert_accepted(&rig.publish(Entry::new(message("a.b", payload).with_key("k"))));
    }
    let first = take_one(&mut *left).await;
    let waiting = tokio::spawn(async move { take_one_when_there(&mut *right).await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    ack(&left.settler(), &first);
    assert_eq!(payloads(&waiting.await.unwrap()), ["2"]);
}

#[tokio::test]
async fn the_load_counts_what_is_to_be_done_and_each_change_is_told() {
    let rig = Rig::new().await;
    let now = crate::clock::Clock::now(&rig.clock);
    let changes = rig.broker.watch();
    let abandoned = rig.open(spec("gone", "a.b")).await;
    drop(abandoned);
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let settler = incoming.settler();
    let changed = changes.notified();
    rig.emit("a.b", "1");
    changed.await;
    assert_eq!(
        (rig.broker.load(now).ready, rig.broker.load(now).unsettled),
        (1, 0)
    );
    let received = take_one(&mut *incoming).await;
    assert_eq!(
        (rig.broker.load(now).ready, rig.broker.load(now).unsettled),
        (0, 1)
    );
    let changed = changes.notified();
    settle(&settler, received.tag, Settlement::ReturnAfter(PATIENCE)).unwrap();
    changed.await;
    assert_eq!(
        (rig.broker.load(now).ready, rig.broker.load(now).unsettled),
        (0, 0)
    );
    assert_eq!(rig.broker.load(now + PATIENCE).ready, 1);
}
