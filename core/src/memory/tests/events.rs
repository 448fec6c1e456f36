//! Who gets what: routing, groups, broadcast, order, delays.

use super::*;
use crate::pattern::publish_subscribe::{Guarantee, Order, Provision, Start, Store, Target};
use crate::transport::Status;

#[tokio::test]
async fn each_matching_group_gets_a_copy_and_its_consumers_share() {
    let rig = Rig::new().await;
    let mut audit = rig.open(spec("audit", "shop.>")).await;
    let mut left = rig.open(spec("billing", "shop.{region}.placed")).await;
    let mut right = rig.open(spec("billing", "shop.*.placed")).await;
    for payload in ["1", "2", "3"] {
        rig.emit("shop.eu.placed", payload);
    }
    assert_eq!(payloads(&take(&mut *audit, 9).await), ["1", "2", "3"]);
    assert_eq!(payloads(&take(&mut *left, 2).await), ["1", "2"]);
    assert_eq!(payloads(&take(&mut *right, 9).await), ["3"]);
}

#[tokio::test]
async fn parked_consumers_take_turns() {
    let rig = Rig::new().await;
    let mut tasks = Vec::new();
    let (sender, mut taken) = tokio::sync::mpsc::unbounded_channel();
    for consumer in 0..2 {
        let mut incoming = rig.open(spec("g", "a.b")).await;
        let sender = sender.clone();
        tasks.push(tokio::spawn(async move {
            let settler = incoming.settler();
            let mut batch = Batch::new(1);
            while let Ok(crate::pattern::Pulled::Some) = pull(&mut *incoming, &mut batch).await {
                for received in batch.drain() {
                    ack(&settler, &received);
                    sender.send(consumer).unwrap();
                }
            }
        }));
    }
    let mut counts = [0; 2];
    for _ in 0..10 {
        tokio::task::yield_now().await;
        rig.emit("a.b", "x");
        let consumer: usize = taken.recv().await.unwrap();
        counts[consumer] += 1;
        // Both are to be parked again.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
    assert!(counts.iter().all(|count| *count > 2), "{counts:?}");
    rig.transport.close(PATIENCE).await.unwrap();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_groups_queue_outlives_its_consumers_and_a_broadcast_does_not() {
    let rig = Rig::new().await;
    let broadcast = Spec::new(SubscriptionId::broadcast(parse("a.b")));
    let (group, mut private) = (rig.open(spec("g", "a.b")).await, rig.open(broadcast).await);
    rig.emit("a.b", "1");
    assert_eq!(payloads(&take(&mut *private, 9).await), ["1"]);
    drop((group, private));
    rig.emit("a.b", "2");
    assert_eq!(rig.backlog("g", "a.b"), Some(2));
    let mut again = rig.open(spec("g", "a.b")).await;
    assert_eq!(payloads(&take(&mut *again, 9).await), ["1", "2"]);
}

#[tokio::test]
async fn nobody_to_take_it_is_no_route_unless_it_may_be_lost() {
    let rig = Rig::new().await;
    assert_rejected(&rig.publish(entry("a.b", "x")), ErrorKind::NoRoute);
    let lossy = entry("a.b", "x").with_guarantee(Guarantee::AtMostOnce);
    assert!(matches!(rig.publish(lossy), Published::Accepted(receipt) if receipt.is_unrouted()));
    let private = rig
        .open(Spec::new(SubscriptionId::broadcast(parse("a.b"))))
        .await;
    rig.emit("a.b", "x");
    drop(private);
    assert_rejected(&rig.publish(entry("a.b", "x")), ErrorKind::NoRoute);
}

#[tokio::test]
async fn a_copy_for_one_subscription_reaches_no_other() {
    let rig = Rig::new().await;
    let (mut one, mut two) = (
        rig.open(spec("one", "a.*")).await,
        rig.open(spec("two", "a.*")).await,
    );
    let to = |group: &str| Target::Subscription(SubscriptionId::new(group, parse("a.{x}")));
    assert_accepted(&rig.publish(entry("a.b", "x").with_target(to("one"))));
    assert_rejected(
        &rig.publish(entry("a.b", "x").with_target(to("three"))),
        ErrorKind::NotFound,
    );
    assert_eq!(take(&mut *one, 9).await.len(), 1);
    assert_eq!(take(&mut *two, 9).await.len(), 0);
}

#[tokio::test]
async fn an_oversized_message_is_refused_and_the_next_one_goes_through() {
    let rig = Rig::with(MemoryConfig::default().with_max_payload(3)).await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let Progress::Done(batch) = rig.start([entry("a.b", "1234"), entry("a.b", "123")]) else {
        panic!("the publish has to wait");
    };
    let (_, outcomes) = batch.into_parts();
    assert_rejected(&outcomes[0], ErrorKind::TooLarge);
    assert_accepted(&outcomes[1]);
    assert_eq!(payloads(&take(&mut *incoming, 9).await), ["123"]);
}

#[tokio::test]
async fn a_batch_over_several_subjects_keeps_its_order() {
    let rig = Rig::new().await;
    let mut incoming = rig.open(spec("g", "a.*")).await;
    let subjects = ["a.b", "a.c", "a.c", "a.b"];
    let entries = subjects.iter().zip(["1", "2", "3", "4"]);
    let Progress::Done(batch) =
        rig.start(entries.map(|(subject, payload)| entry(subject, payload)))
    else {
        panic!("the publish has to wait");
    };
    batch.into_parts().1.iter().for_each(assert_accepted);
    assert_eq!(
        payloads(&take(&mut *incoming, 9).await),
        ["1", "2", "3", "4"]
    );
}

#[tokio::test]
async fn a_delayed_message_wakes_its_consumer_when_it_is_due_and_not_before() {
    let rig = Rig::new().await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let second = Duration::from_secs(1);
    let later = |payload, delay| {
        let due = crate::clock::Clock::now(&rig.clock) + delay;
        entry("a.b", payload).with_not_before(Some(due))
    };
    assert_accepted(&rig.publish(later("late", 9 * second)));
    assert_eq!(take(&mut *incoming, 9).await.len(), 0);
    let consumer = tokio::spawn(async move { take_when_there(&mut *incoming).await });
    tokio::task::yield_now().await;
    assert_accepted(&rig.publish(later("soon", 3 * second)));
    tokio::task::yield_now().await;
    rig.clock.advance(2 * second);
    tokio::task::yield_now().await;
    assert!(!consumer.is_finished());
    rig.clock.advance(second);
    assert_eq!(payloads(&consumer.await.unwrap()), ["soon"]);
}

async fn take_when_there(incoming: &mut dyn Incoming) -> Vec<Received> {
    let mut batch = Batch::new(9);
    pull(incoming, &mut batch).await.unwrap();
    batch.drain().collect()
}

#[tokio::test]
async fn delayed_messages_count_as_waiting_for_the_bound() {
    let rig = Rig::with(MemoryConfig::default().with_queue(1)).await;
    let _incoming = rig.open(spec("g", "a.b")).await;
    let due = crate::clock::Clock::now(&rig.clock) + PATIENCE * 2;
    assert_accepted(&rig.publish(entry("a.b", "x").with_not_before(Some(due))));
    assert!(matches!(
        rig.start([entry("a.b", "x")]),
        Progress::Pending(_)
    ));
}

#[tokio::test]
async fn a_disagreement_with_the_queue_that_exists_is_told() {
    let rig = Rig::new().await;
    let _incoming = rig.open(spec("g", "a.b")).await;
    let lossy = spec("g", "a.b").with_guarantee(Guarantee::AtMostOnce);
    let error = rig.try_open(lossy).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    for name in ["AtMostOnce", "AtLeastOnce", "g/a.b"] {
        assert!(error.to_string().contains(name), "{error}");
    }
    let ordered = spec("g", "a.b").with_order(Order::KeyInGroup);
    assert_eq!(
        rig.try_open(ordered).await.unwrap_err().kind(),
        ErrorKind::Config
    );
}

#[tokio::test]
async fn verifying_creates_nothing() {
    let rig = Rig::new().await;
    let verify = spec("g", "a.b").with_provision(Provision::Verify);
    let error = rig.try_open(verify.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(rig.backlog("g", "a.b"), None);
    drop(
        rig.open(spec("g", "a.b").with_provision(Provision::None))
            .await,
    );
    rig.open(verify).await;
}

#[tokio::test]
async fn a_declared_store_hands_over_to_the_first_group_from_the_earliest() {
    let rig = Rig::with(MemoryConfig::default().with_queue(2)).await;
    let store = Store {
        pattern: parse("audit.>"),
        retention: PATIENCE,
        provision: Provision::Create,
    };
    let declared = rig.transport.subscriber().declare(&[store]).await;
    assert!(declared.iter().all(Result::is_ok));
    for payload in ["1", "2", "3"] {
        rig.emit("audit.eu", payload);
    }
    let mut latest = rig
        .open(spec("new", "audit.us").with_start(Start::Latest))
        .await;
    let mut first = rig.open(spec("first", "audit.*")).await;
    let mut second = rig.open(spec("second", "audit.*")).await;
    // The store held two, and the oldest made room.
    assert_eq!(payloads(&take(&mut *first, 9).await), ["2", "3"]);
    rig.emit("audit.eu", "4");
    assert_eq!(payloads(&take(&mut *first, 9).await), ["4"]);
    assert_eq!(payloads(&take(&mut *second, 9).await), ["4"]);
    assert_eq!(take(&mut *latest, 9).await.len(), 0);
}

#[tokio::test]
async fn a_group_is_asked_for_what_it_has_stored() {
    let rig = Rig::new().await;
    let _incoming = rig.open(spec("g", "a.b")).await;
    let _other = rig.open(spec("other", "a.b")).await;
    rig.emit("a.b", "x");
    let stored = rig.transport.subscriber().stored("g").await.unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].subscription.to_string(), "g/a.b");
    assert_eq!(stored[0].backlog, Some(1));
}

#[tokio::test]
async fn a_closed_transport_refuses_everything_and_the_others_go_on() {
    let rig = Rig::new().await;
    let other = connect(&rig.broker, &rig.clock).await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let settler = incoming.settler();
    rig.emit("a.b", "1");
    let received = take_one(&mut *incoming).await;
    let mut status = rig.transport.status();
    assert!(status.borrow_and_update().is_connected());
    rig.transport.close(PATIENCE).await.unwrap();
    rig.transport.close(PATIENCE).await.unwrap();
    status.changed().await.unwrap();
    assert_eq!(*status.borrow(), Status::Closed);
    assert_eq!(
        pull(&mut *incoming, &mut Batch::new(1)).await.unwrap(),
        crate::pattern::Pulled::End
    );
    assert_rejected(&rig.publish(entry("a.b", "x")), ErrorKind::Closed);
    assert_eq!(
        rig.try_open(spec("g", "a.b")).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    let late = settle(&settler, received.tag, Settlement::Ack).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Closed);

    let mut heir = other
        .subscriber()
        .subscribe(&[spec("g", "a.b")])
        .await
        .remove(0)
        .unwrap();
    let again = take_one(&mut *heir).await;
    assert_eq!(again.deliveries, Some(2));
}
