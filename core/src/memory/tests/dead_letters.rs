//! Dead letters: kept until somebody deals with them.

use super::*;
use crate::message::Guard;
use crate::pattern::publish_subscribe::{Provision, Store};

async fn declare(rig: &Rig, provision: Provision) -> Result<(), Error> {
    let store = Store {
        pattern: parse("anywire.dead.g"),
        retention: PATIENCE,
        provision,
    };
    rig.transport.subscriber().declare(&[store]).await.remove(0)
}

fn kept(rig: &Rig) -> usize {
    rig.broker.dead_letters("g").len()
}

#[tokio::test]
async fn a_declared_store_keeps_dead_letters_and_an_undeclared_one_is_no_route() {
    let rig = Rig::new().await;
    let letter = || entry("anywire.dead.g", "x");
    assert_rejected(&rig.publish(letter()), ErrorKind::NoRoute);
    let missing = declare(&rig, Provision::Verify).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    declare(&rig, Provision::Create).await.unwrap();
    declare(&rig, Provision::Verify).await.unwrap();
    assert_accepted(&rig.publish(letter()));
    assert_eq!(kept(&rig), 1);
}

#[tokio::test]
async fn a_full_store_refuses_at_once_and_loses_nothing() {
    let rig = Rig::with(MemoryConfig::default().with_dead_letters(1)).await;
    declare(&rig, Provision::Create).await.unwrap();
    let mut incoming = rig.open(spec("desk", "anywire.dead.g")).await;
    rig.emit("anywire.dead.g", "1");
    let first = take_one(&mut *incoming).await;
    assert_rejected(
        &rig.publish(entry("anywire.dead.g", "2")),
        ErrorKind::Overloaded,
    );
    assert_eq!(
        take(&mut *incoming, 9).await.len(),
        0,
        "a refused letter is nowhere"
    );
    ack(&incoming.settler(), &first);
    rig.emit("anywire.dead.g", "3");
    assert_eq!(payloads(&take(&mut *incoming, 9).await), ["3"]);
}

#[tokio::test]
async fn a_later_subscription_gets_what_is_kept_and_its_ack_removes_it() {
    let rig = Rig::new().await;
    declare(&rig, Provision::Create).await.unwrap();
    rig.emit("anywire.dead.g", "1");
    rig.emit("anywire.dead.g", "2");
    let mut incoming = rig.open(spec("desk", "anywire.dead.g")).await;
    let taken = take(&mut *incoming, 9).await;
    assert_eq!(payloads(&taken), ["1", "2"]);
    settle(&incoming.settler(), taken[0].tag, Settlement::Return).unwrap();
    ack(&incoming.settler(), &taken[1]);
    let left = rig.broker.dead_letters("g");
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].payload(), "1");
}

#[tokio::test]
async fn a_private_look_removes_nothing() {
    let rig = Rig::new().await;
    declare(&rig, Provision::Create).await.unwrap();
    let broadcast = Spec::new(SubscriptionId::broadcast(parse("anywire.dead.g")));
    let mut incoming = rig.open(broadcast).await;
    rig.emit("anywire.dead.g", "1");
    let received = take_one(&mut *incoming).await;
    ack(&incoming.settler(), &received);
    assert_eq!(kept(&rig), 1);
}

#[tokio::test]
async fn a_letter_that_is_kept_holds_no_guard() {
    let rig = Rig::new().await;
    declare(&rig, Provision::Create).await.unwrap();
    let token = Arc::new(());
    let mut message = message("anywire.dead.g", "1");
    message.set_guard(Some(Guard(Arc::<()>::clone(&token))));
    assert_accepted(&rig.publish(Entry::new(message)));
    assert_eq!(kept(&rig), 1);
    assert_eq!(Arc::strong_count(&token), 1);
}

#[tokio::test]
async fn a_settled_message_drops_its_guard_and_a_guard_may_ask_the_broker() {
    struct Asks(MemoryBroker, SubscriptionId);
    impl Drop for Asks {
        fn drop(&mut self) {
            assert_eq!(self.0.backlog(&self.1), Some(0));
        }
    }
    let rig = Rig::new().await;
    let mut incoming = rig.open(spec("g", "a.b")).await;
    let guard = Arc::new(Asks(
        rig.broker.clone(),
        SubscriptionId::new("g", parse("a.b")),
    ));
    let watched = Arc::downgrade(&guard);
    let mut message = message("a.b", "1");
    message.set_guard(Some(Guard(guard)));
    assert_accepted(&rig.publish(Entry::new(message)));
    let Received { message, tag, .. } = take_one(&mut *incoming).await;
    drop(message);
    settle(&incoming.settler(), tag, Settlement::Ack).unwrap();
    assert_eq!(watched.strong_count(), 0);
}

#[tokio::test]
async fn a_letter_that_waits_for_a_full_desk_is_not_kept_yet() {
    let rig = Rig::with(MemoryConfig::default().with_dead_letters(1)).await;
    declare(&rig, Provision::Create).await.unwrap();
    let mut quick = rig.open(spec("quick", "anywire.dead.g")).await;
    let mut slow = rig.open(spec("slow", "anywire.dead.g")).await;
    rig.emit("anywire.dead.g", "1");
    let first = take_one(&mut *quick).await;
    ack(&quick.settler(), &first);
    let waiting = rig.start([entry("anywire.dead.g", "2")]);
    assert!(matches!(waiting, Progress::Pending(_)));
    assert_eq!(kept(&rig), 0);
    take_one(&mut *slow).await;
    waiting.wait().await;
    assert_eq!(kept(&rig), 1);
}
