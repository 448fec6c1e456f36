//! Full queues: waiting, refusing, dropping, and waking those who wait.

use super::*;
use crate::pattern::publish_subscribe::{Guarantee, Target};

fn tiny(messages: usize) -> MemoryConfig {
    MemoryConfig::default().with_queue(messages)
}

async fn outcomes(progress: Progress<PublishBatch>) -> Vec<Published> {
    progress.wait().await.into_parts().1.into_vec()
}

#[tokio::test]
async fn a_full_queue_makes_a_publish_wait_until_there_is_room() {
    let rig = Rig::with(tiny(1)).await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    rig.emit("a.b", "1");
    let waiting = tokio::spawn(outcomes(rig.start([entry("a.b", "2")])));
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert_eq!(payloads(&take(&mut *incoming, 9).await), ["1"]);
    assert_accepted(&waiting.await.unwrap()[0]);
    assert_eq!(payloads(&take(&mut *incoming, 9).await), ["2"]);
}

#[tokio::test]
async fn a_queue_that_stays_full_refuses_at_the_deadline() {
    let rig = Rig::with(tiny(1)).await;
    let _full = rig.open(spec("g", "a.b")).await;
    let mut free = rig.open(spec("g", "a.c")).await;
    rig.emit("a.b", "1");
    let batch = [entry("a.b", "2"), entry("a.b", "3"), entry("a.c", "4")];
    let waiting = tokio::spawn(outcomes(rig.start(batch)));
    tokio::task::yield_now().await;
    assert_eq!(
        rig.clock.next_timer(),
        Some(crate::clock::Clock::now(&rig.clock) + PATIENCE)
    );
    assert!(rig.clock.advance_to_next());
    let outcomes = waiting.await.unwrap();
    assert_rejected(&outcomes[0], ErrorKind::Overloaded);
    assert_rejected(&outcomes[1], ErrorKind::Overloaded);
    assert_accepted(&outcomes[2]);
    assert_eq!(payloads(&take(&mut *free, 9).await), ["4"]);
    assert_eq!(rig.backlog("g", "a.b"), Some(1));
}

#[tokio::test]
async fn a_fan_out_is_in_all_queues_or_in_none() {
    let rig = Rig::with(tiny(1)).await;
    let mut wide = rig.open(spec("wide", "a.>")).await;
    let mut narrow = rig.open(spec("narrow", "a.b")).await;
    rig.emit("a.c", "1");
    let waiting = tokio::spawn(outcomes(rig.start([entry("a.b", "2")])));
    tokio::task::yield_now().await;
    assert_eq!(take(&mut *narrow, 9).await.len(), 0);
    assert_eq!(take(&mut *wide, 9).await.len(), 1);
    assert_accepted(&waiting.await.unwrap()[0]);
    assert_eq!(payloads(&take(&mut *narrow, 9).await), ["2"]);
    assert_eq!(payloads(&take(&mut *wide, 9).await), ["2"]);
}

#[tokio::test]
async fn the_bound_in_bytes_holds_and_an_empty_queue_takes_any() {
    let rig = Rig::with(MemoryConfig::default().with_queue_bytes(3)).await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    rig.emit("a.b", "12345");
    assert!(matches!(
        rig.start([entry("a.b", "")]),
        Progress::Pending(_)
    ));
    take_one(&mut *incoming).await;
    rig.emit("a.b", "12");
    assert!(matches!(
        rig.start([entry("a.b", "34")]),
        Progress::Pending(_)
    ));
    rig.emit("a.b", "3");
}

#[tokio::test]
async fn what_may_be_lost_is_dropped_when_the_queue_is_full() {
    let rig = Rig::with(tiny(1)).await;
    let lossy = spec("lossy", "a.b").with_guarantee(Guarantee::AtMostOnce);
    let mut lossy = rig.open(lossy).await;
    let mut sure = rig.open(spec("sure", "a.*")).await;
    rig.emit("a.b", "1");
    take_one(&mut *sure).await;
    // At least once for `sure`, which has room; `lossy` keeps nobody waiting.
    rig.emit("a.b", "2");
    assert_accepted(&rig.publish(entry("a.b", "3").with_guarantee(Guarantee::AtMostOnce)));
    assert_eq!(payloads(&take(&mut *lossy, 9).await), ["1"]);
    assert_eq!(payloads(&take(&mut *sure, 9).await), ["2"]);
}

#[tokio::test]
async fn a_copy_for_a_subscription_goes_into_its_full_queue_and_counts() {
    let rig = Rig::with(tiny(1)).await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    rig.emit("a.b", "1");
    let target = Target::Subscription(SubscriptionId::new("g", parse("a.b")));
    assert_accepted(&rig.publish(entry("a.b", "2").with_target(target)));
    assert_eq!(rig.backlog("g", "a.b"), Some(2));
    take_one(&mut *incoming).await;
    assert!(matches!(
        rig.start([entry("a.b", "3")]),
        Progress::Pending(_)
    ));
}

#[tokio::test]
async fn a_batch_that_waits_keeps_its_order() {
    let rig = Rig::with(tiny(2)).await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let entries = (0..100).map(|index| entry("a.b", &index.to_string()));
    let waiting = tokio::spawn(outcomes(rig.start(entries)));
    let mut seen = Vec::new();
    while seen.len() < 100 {
        let taken = take(&mut *incoming, 2).await;
        seen.extend(
            payloads(&taken)
                .into_iter()
                .map(|text| text.parse::<u32>().unwrap()),
        );
        for received in &taken {
            ack(&incoming.settler(), received);
        }
        tokio::task::yield_now().await;
    }
    waiting.await.unwrap().iter().for_each(assert_accepted);
    assert!(seen.is_sorted());
}

/// Publishers that fight for the room of a small queue: each must get everything through, and nobody may starve.
async fn crowd(room: usize, publishers: usize, each: usize) {
    let rig = Rig::with(tiny(room)).await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let settler = incoming.settler();
    let tasks: Vec<_> = (0..publishers)
        .map(|_| {
            let publisher = rig.transport.publisher();
            tokio::spawn(async move {
                for _ in 0..each {
                    let batch = PublishBatch::single(entry("a.b", "x"), PATIENCE);
                    let batch = publisher.publish(batch).wait().await;
                    assert_accepted(&batch.into_parts().1[0]);
                }
            })
        })
        .collect();
    let mut batch = Batch::new(16);
    let mut taken = 0;
    while taken < publishers * each {
        pull(&mut *incoming, &mut batch).await.unwrap();
        for received in batch.drain() {
            ack(&settler, &received);
            taken += 1;
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(rig.backlog("g", "a.b"), Some(0));
}

#[tokio::test]
async fn many_publishers_get_through_a_queue_of_one() {
    crowd(1, 50, 20).await;
}

#[tokio::test]
async fn nobody_starves_beside_quicker_publishers() {
    crowd(128, 4, 2000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_publishers_get_through_on_two_threads() {
    crowd(1, 20, 200).await;
    crowd(100, 20, 500).await;
}

#[tokio::test]
async fn a_waiting_publisher_that_gives_up_passes_its_turn_on() {
    let rig = Rig::with(tiny(1)).await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    rig.emit("a.b", "1");
    let first = tokio::spawn(outcomes(rig.start([entry("a.b", "2")])));
    tokio::task::yield_now().await;
    let second = tokio::spawn(outcomes(rig.start([entry("a.b", "3")])));
    tokio::task::yield_now().await;
    // The take wakes the first, which is gone before it can run.
    assert_eq!(take(&mut *incoming, 1).await.len(), 1);
    first.abort();
    assert_accepted(&second.await.unwrap()[0]);
    assert_eq!(payloads(&take(&mut *incoming, 1).await), ["3"]);
}

#[tokio::test]
async fn a_big_message_waits_until_it_fits() {
    let rig = Rig::with(MemoryConfig::default().with_queue_bytes(4)).await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    for payload in ["1", "2", "3", "4"] {
        rig.emit("a.b", payload);
    }
    let waiting = tokio::spawn(outcomes(rig.start([entry("a.b", "5555")])));
    let mut seen = Vec::new();
    while seen.len() < 5 {
        tokio::task::yield_now().await;
        for received in take(&mut *incoming, 1).await {
            ack(&incoming.settler(), &received);
            seen.push(received.message.payload().len());
        }
    }
    assert_accepted(&waiting.await.unwrap()[0]);
    assert_eq!(seen, [1, 1, 1, 1, 4]);
}

#[tokio::test]
async fn a_full_private_copy_that_ends_lets_the_publisher_go_on() {
    let rig = Rig::with(tiny(1)).await;
    let private = rig
        .open(Spec::new(SubscriptionId::broadcast(parse("a.b"))))
        .await;
    rig.emit("a.b", "1");
    let _group = rig.open(spec("g", "a.b")).await;
    let waiting = tokio::spawn(outcomes(rig.start([entry("a.b", "2")])));
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(private);
    assert_accepted(&waiting.await.unwrap()[0]);
}

#[tokio::test]
async fn a_close_ends_the_wait() {
    let rig = Rig::with(tiny(1)).await;
    let other = connect(&rig.broker, &rig.clock).await;
    let _incoming = other.subscriber().subscribe(&[spec("g", "a.b")]).await;
    rig.emit("a.b", "1");
    let waiting = tokio::spawn(outcomes(rig.start([entry("a.b", "2")])));
    tokio::task::yield_now().await;
    rig.transport.close(PATIENCE).await.unwrap();
    assert_rejected(&waiting.await.unwrap()[0], ErrorKind::Closed);
}
