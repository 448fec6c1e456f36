use super::*;
use crate::Position;
use crate::pattern::publish_subscribe::{Order, Provision, Start, Store, Until};

async fn rig(history: usize) -> Rig {
    Rig::with(MemoryConfig::default().with_history(history)).await
}

fn reader(start: Start) -> Spec {
    let id = SubscriptionId::broadcast(parse("shop.*"));
    Spec::new(id).with_start(start).with_until(Some(Until::Now))
}

async fn read(rig: &Rig, start: Start) -> Vec<String> {
    let mut incoming = rig.open(reader(start)).await;
    let taken = take(&mut *incoming, 100).await;
    payloads(&taken).into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn without_a_history_going_back_is_refused_with_the_remedy() {
    let rig = Rig::new().await;
    let start = Start::At(std::time::UNIX_EPOCH);
    let late = spec("late", "shop.a").with_start(start);
    for spec in [late, reader(Start::Earliest)] {
        let error = rig.try_open(spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("`history`"), "{error}");
    }
    let id = SubscriptionId::new("late", parse("shop.a"));
    let reset = rig
        .transport
        .subscriber()
        .reset(&id, &Start::Earliest)
        .await;
    assert_eq!(reset.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(rig.backlog("late", "shop.a"), None, "nothing is left of it");
}

#[tokio::test]
async fn the_oldest_makes_room_and_a_position_that_is_gone_is_the_earliest() {
    let rig = rig(3).await;
    let mut live = rig.open(spec("live", "shop.*")).await;
    for payload in ["a", "b", "c", "d", "e"] {
        rig.emit("shop.a", payload);
    }
    let taken = take(&mut *live, 100).await;
    let first = taken[0].position.clone().unwrap();
    assert_eq!(read(&rig, Start::Earliest).await, ["c", "d", "e"]);
    assert_eq!(read(&rig, Start::Position(first)).await, ["c", "d", "e"]);
    let last = taken[4].position.clone().unwrap();
    assert_eq!(read(&rig, Start::Position(last)).await, ["e"]);
    let beyond = Position::new("memory", 0, u64::MAX);
    assert!(read(&rig, Start::Position(beyond)).await.is_empty());
}

#[tokio::test]
async fn the_history_is_bounded_in_bytes() {
    let config = MemoryConfig::default()
        .with_history(100)
        .with_queue_bytes(100);
    let rig = Rig::with(config).await;
    let mut live = rig.open(spec("live", "shop.*")).await;
    for _ in 0..5 {
        rig.emit("shop.a", &"x".repeat(60));
        let delivery = take_one(&mut *live).await;
        settle(&live.settler(), delivery.tag, Settlement::Ack).unwrap();
    }
    assert_eq!(read(&rig, Start::Earliest).await.len(), 1);
}

#[tokio::test]
async fn what_nobody_took_and_dead_letters_are_no_history() {
    let rig = rig(10).await;
    let refused = rig.publish(entry("shop.a", "lost"));
    assert!(matches!(refused, Published::Rejected(_)));
    let _live = rig.open(spec("live", "shop.*")).await;
    rig.emit("shop.a", "kept");
    assert_eq!(read(&rig, Start::Earliest).await, ["kept"]);
    let letters = Store {
        pattern: Pattern::parse_any("anywire.dead.live").unwrap(),
        retention: Duration::from_secs(60),
        provision: Provision::Create,
    };
    let declared = rig.transport.subscriber().declare(&[letters]).await;
    declared.into_iter().collect::<Result<(), _>>().unwrap();
    rig.emit("anywire.dead.live", "letter");
    assert_eq!(read(&rig, Start::Earliest).await, ["kept"]);
}

#[tokio::test]
async fn a_time_is_found_by_the_clock_of_the_transport() {
    let rig = rig(10).await;
    let _live = rig.open(spec("live", "shop.*")).await;
    let minute = Duration::from_secs(60);
    rig.emit("shop.a", "before");
    rig.clock.advance(minute);
    let time = crate::clock::Clock::wall(&rig.clock);
    rig.emit("shop.a", "at");
    rig.clock.advance(minute);
    rig.emit("shop.a", "after");
    assert_eq!(read(&rig, Start::At(time)).await, ["at", "after"]);
    assert_eq!(read(&rig, Start::At(time - minute)).await.len(), 3);
    assert!(read(&rig, Start::At(time + 2 * minute)).await.is_empty());
}

#[tokio::test]
async fn an_event_for_later_is_not_early_for_who_comes_meanwhile() {
    let rig = rig(10).await;
    let _live = rig.open(spec("live", "shop.*")).await;
    let hour = Duration::from_secs(60 * 60);
    let due = crate::clock::Clock::now(&rig.clock) + hour;
    let late = entry("shop.a", "late").with_not_before(Some(due));
    assert_accepted(&rig.publish(late));
    let mut comes = rig.open(spec("comes", "shop.*")).await;
    assert!(take(&mut *comes, 9).await.is_empty());
    rig.clock.advance(hour);
    assert_eq!(payloads(&take(&mut *comes, 9).await), ["late"]);
}

#[tokio::test]
async fn a_group_is_moved_while_nobody_holds_anything_of_it() {
    let rig = rig(10).await;
    let live = spec("live", "shop.*").with_order(Order::KeyInGroup);
    let mut incoming = rig.open(live.clone()).await;
    rig.emit("shop.a", "a");
    rig.emit("shop.a", "b");
    let held = take_one(&mut *incoming).await;
    let settler = incoming.settler();
    let subscriber = rig.transport.subscriber();
    let reset = async || subscriber.reset(&live.subscription, &Start::Earliest).await;
    assert_eq!(reset().await.unwrap_err().kind(), ErrorKind::Rejected);
    incoming.stop().await.unwrap();
    assert_eq!(
        reset().await.unwrap_err().kind(),
        ErrorKind::Rejected,
        "one is out"
    );
    settle(&settler, held.tag, Settlement::Ack).unwrap();
    reset().await.unwrap();
    let mut again = rig.open(live.clone()).await;
    assert_eq!(payloads(&take(&mut *again, 9).await), ["a", "b"]);
}

#[tokio::test]
async fn a_bounded_read_is_in_nobodys_way() {
    let config = MemoryConfig::default().with_history(10).with_queue(1);
    let rig = Rig::with(config).await;
    let mut live = rig.open(spec("live", "shop.*")).await;
    rig.emit("shop.a", "a");
    let _unread = rig.open(reader(Start::Earliest)).await;
    let delivery = take_one(&mut *live).await;
    settle(&live.settler(), delivery.tag, Settlement::Ack).unwrap();
    rig.emit("shop.a", "b");
    assert_eq!(payloads(&take(&mut *live, 9).await), ["b"]);
}
