//! What the shelf promises, without a broker.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use anywire::{Pattern, Subject};
use futures::task::noop_waker;

use super::*;

const BOUNDS: Bounds = Bounds {
    count: 4,
    bytes: 1000,
};

fn id(pattern: &str) -> SubscriptionId {
    SubscriptionId::new("group", Pattern::parse(pattern).unwrap())
}

struct Desk {
    shelf: Shelf,
    partition: PartitionKey,
}

impl Desk {
    fn new() -> Self {
        let mut shelf = Shelf::new(BOUNDS, false, true);
        let partition = shelf.gain(&"a".into(), 0);
        Self { shelf, partition }
    }

    fn put(&mut self, offset: i64, to: &[SeatKey]) -> Vec<(PartitionKey, i64)> {
        let message = Message::new(Subject::parse("a").unwrap(), offset.to_string());
        let targets = to.iter().map(|seat| seat.subscription).collect();
        let partition = self.partition;
        self.shelf.take_in(&mut vec![Fresh {
            partition,
            offset,
            targets,
            message,
        }])
    }

    fn pull(&mut self, seat: SeatKey) -> Vec<(i64, Tag)> {
        let mut batch = Batch::new(100);
        let waker = noop_waker();
        let cx = Context::from_waker(&waker);
        self.shelf.deliver(seat, &mut batch, &cx).unwrap();
        let read = |received: Received| {
            let text = String::from_utf8(received.message.payload().to_vec()).unwrap();
            (text.parse().unwrap(), received.tag)
        };
        batch.drain().map(read).collect()
    }

    fn position(&mut self) -> Option<i64> {
        let positions = self.shelf.positions();
        positions.first().map(|position| position.offset)
    }
}

fn offsets(pulled: &[(i64, Tag)]) -> Vec<i64> {
    pulled.iter().map(|(offset, _)| *offset).collect()
}

#[test]
fn the_position_waits_for_all_who_share_a_message() {
    let mut desk = Desk::new();
    let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
    desk.put(0, &[one, other]);
    let (mine, theirs) = (desk.pull(one), desk.pull(other));
    assert_eq!(desk.position(), Some(0));
    desk.shelf.settle(one, mine[0].1, true).unwrap();
    assert_eq!(desk.position(), None);
    desk.shelf.settle(other, theirs[0].1, true).unwrap();
    assert_eq!(desk.position(), Some(1));
}

#[test]
fn a_window_is_never_exceeded_and_a_tag_settles_once() {
    let mut desk = Desk::new();
    let seat = desk.shelf.sit_down(&id("a"), 2, Begin::default()).unwrap();
    (0..4).for_each(|offset| drop(desk.put(offset, &[seat])));
    let pulled = desk.pull(seat);
    assert_eq!(offsets(&pulled), [0, 1]);
    assert!(desk.pull(seat).is_empty());
    assert!(desk.shelf.settle(seat, pulled[1].1, true).is_some());
    assert!(desk.shelf.settle(seat, pulled[1].1, true).is_none());
    let next = desk.pull(seat);
    assert_eq!(next[0].1.slot, pulled[1].1.slot, "the slot is used again");
    assert!(desk.shelf.settle(seat, pulled[1].1, false).is_none());
}

#[test]
fn what_is_returned_comes_before_what_was_behind_it() {
    let mut desk = Desk::new();
    let seat = desk.shelf.sit_down(&id("a"), 3, Begin::default()).unwrap();
    (0..4).for_each(|offset| drop(desk.put(offset, &[seat])));
    let pulled = desk.pull(seat);
    for at in [1, 0, 2] {
        desk.shelf.settle(seat, pulled[at].1, false).unwrap();
    }
    assert_eq!(offsets(&desk.pull(seat)), [0, 1, 2]);
}

#[test]
fn what_a_lost_partition_brought_is_stale_and_dropped() {
    let mut desk = Desk::new();
    let seat = desk.shelf.sit_down(&id("a"), 2, Begin::default()).unwrap();
    (0..4).for_each(|offset| drop(desk.put(offset, &[seat])));
    let pulled = desk.pull(seat);
    desk.shelf.settle(seat, pulled[0].1, true).unwrap();
    let last = desk.shelf.lose(desk.partition).unwrap();
    assert_eq!(last.offset, 1);
    assert!(desk.shelf.settle(seat, pulled[1].1, true).is_none());
    assert!(desk.pull(seat).is_empty());
    assert!(desk.shelf.positions().is_empty());
    // The partition may come back.
    desk.partition = desk.shelf.gain(&"a".into(), 1);
    desk.put(7, &[seat]);
    let next = desk.pull(seat);
    assert!(desk.shelf.settle(seat, pulled[1].1, true).is_none());
    assert!(desk.shelf.settle(seat, next[0].1, true).is_some());
}

#[test]
fn an_offset_that_was_passed_is_read_again_with_all_behind_it() {
    let mut desk = Desk::new();
    let seat = desk.shelf.sit_down(&id("a"), 2, Begin::default()).unwrap();
    (5..8).for_each(|offset| assert!(desk.put(offset, &[seat]).is_empty()));
    let pulled = desk.pull(seat);
    assert_eq!(desk.put(3, &[seat]), [(desk.partition, 3)]);
    assert!(desk.shelf.settle(seat, pulled[0].1, true).is_none());
    assert!(desk.pull(seat).is_empty(), "it comes again");
    assert_eq!(desk.position(), None);
    (3..6).for_each(|offset| assert!(desk.put(offset, &[seat]).is_empty()));
    assert_eq!(offsets(&desk.pull(seat)), [3, 4]);
    assert_eq!(desk.position(), Some(3));
}

#[test]
fn what_is_not_done_below_an_offset_that_was_passed_is_read_again() {
    let mut desk = Desk::new();
    let seat = desk.shelf.sit_down(&id("a"), 4, Begin::default()).unwrap();
    (5..9).for_each(|offset| assert!(desk.put(offset, &[seat]).is_empty()));
    let pulled = desk.pull(seat);
    desk.shelf.settle(seat, pulled[0].1, true).unwrap();
    assert_eq!(desk.put(8, &[seat]), [(desk.partition, 6)]);
    assert!(desk.shelf.settle(seat, pulled[1].1, true).is_none());
}

#[test]
fn who_leaves_while_others_stay_finds_everything_on_coming_back() {
    let mut desk = Desk::new();
    let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
    desk.put(0, &[one, other]);
    desk.shelf.leave(one);
    assert_eq!(desk.shelf.entitled().count(), 2);
    desk.put(1, &[one, other]);
    for (_, tag) in desk.pull(other) {
        desk.shelf.settle(other, tag, true).unwrap();
    }
    assert_eq!(desk.position(), Some(0), "it is not everybody's");
    let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    assert_eq!(offsets(&desk.pull(one)), [0, 1]);
}

#[test]
fn what_they_had_who_left_for_good_is_for_whoever_takes_the_strays() {
    let mut desk = Desk::new();
    let strays = desk.shelf.sit_for_strays(&id(">"), 9).unwrap();
    let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
    desk.put(0, &[one, other]);
    desk.shelf.leave(one);
    for (_, tag) in desk.pull(other) {
        desk.shelf.settle(other, tag, true).unwrap();
    }
    desk.shelf.bury(Duration::from_secs(60));
    assert!(desk.pull(strays).is_empty());
    desk.shelf.bury(Duration::ZERO);
    assert_eq!(desk.shelf.entitled().count(), 1);
    assert_eq!(desk.position(), Some(0));
    let handed_on = desk.pull(strays);
    assert_eq!(offsets(&handed_on), [0]);
    desk.shelf.settle(strays, handed_on[0].1, true).unwrap();
    assert_eq!(desk.position(), Some(1));
}

#[test]
fn a_stray_tells_for_whom_it_was() {
    let message = Message::new(Subject::parse("a").unwrap(), "");
    let trail = addressed(message, Some(id("*").pattern)).trail().cloned();
    assert_eq!(trail.unwrap().pattern.unwrap().wildcards(), "*");
}

#[test]
fn who_leaves_last_takes_nothing_for_handled() {
    let mut desk = Desk::new();
    let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
    desk.put(0, &[one, other]);
    let theirs = desk.pull(other);
    for seat in [one, other] {
        desk.shelf.close_seat(seat);
    }
    desk.shelf.leave(one);
    desk.shelf.bury(Duration::ZERO);
    desk.shelf.settle(other, theirs[0].1, true).unwrap();
    desk.shelf.leave(other);
    desk.shelf.bury(Duration::ZERO);
    assert_eq!(desk.position(), Some(0));
}

#[test]
fn nobody_is_waited_for_before_somebody_is_there_to_wait() {
    let mut desk = Desk::new();
    let patience = Duration::from_secs(60);
    let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
    desk.put(0, &[one]);
    desk.shelf.leave(one);
    let key = one.subscription;
    desk.shelf.subscriptions.get_mut(&key).unwrap().left = Instant::now().checked_sub(patience);
    desk.shelf.close_seat(other);
    desk.shelf.bury(patience);
    desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
    desk.shelf.bury(patience);
    let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    assert_eq!(offsets(&desk.pull(one)), [0]);
}

#[test]
fn where_no_position_is_kept_who_leaves_holds_nobody_up_at_all() {
    let mut shelf = Shelf::new(BOUNDS, false, false);
    let partition = shelf.gain(&"a".into(), 0);
    let mut desk = Desk { shelf, partition };
    let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
    let targets = [other.subscription];
    for offset in 0..4 {
        desk.put(offset, &[one, other]);
    }
    for (_, tag) in desk.pull(other) {
        desk.shelf.settle(other, tag, true).unwrap();
    }
    assert_eq!(desk.shelf.room(partition, &targets), 0);
    desk.shelf.leave(one);
    desk.shelf.bury(Duration::from_secs(60));
    assert_eq!(desk.shelf.room(partition, &targets), 4);
}

#[test]
fn what_is_settled_early_waits_for_those_alone_who_will_take_it() {
    let mut shelf = Shelf::new(
        Bounds {
            count: 4,
            bytes: 1000,
        },
        true,
        false,
    );
    let partition = shelf.gain(&Arc::from("topic"), 0);
    let seat = shelf.sit_down(&id("a"), 2, Begin::default()).unwrap();
    assert_eq!(shelf.room(partition, &[seat.subscription]), 2);
}

#[test]
fn two_without_a_group_get_a_copy_each() {
    let mut desk = Desk::new();
    let private = SubscriptionId::broadcast(Pattern::parse("a").unwrap());
    let [one, other] =
        [(); 2].map(|()| desk.shelf.sit_down(&private, 9, Begin::default()).unwrap());
    desk.put(0, &[one, other]);
    assert_eq!(offsets(&desk.pull(one)), [0]);
    assert_eq!(offsets(&desk.pull(other)), [0]);
}

#[test]
fn two_of_one_identity_share_and_one_that_leaves_hands_over() {
    let mut desk = Desk::new();
    let one = desk.shelf.sit_down(&id("a"), 1, Begin::default()).unwrap();
    let other = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    assert_eq!(one.subscription, other.subscription);
    (0..3).for_each(|offset| drop(desk.put(offset, &[one])));
    assert_eq!(offsets(&desk.pull(one)), [0]);
    desk.shelf.close_seat(one);
    assert_eq!(offsets(&desk.pull(other)), [1, 2]);
    desk.shelf.leave(one);
    assert_eq!(offsets(&desk.pull(other)), [0]);
}

#[test]
fn without_a_broker_what_is_held_goes_stale_and_comes_again_with_one() {
    let mut desk = Desk::new();
    let seat = desk.shelf.sit_down(&id("a"), 1, Begin::default()).unwrap();
    (0..2).for_each(|offset| drop(desk.put(offset, &[seat])));
    let held = desk.pull(seat);
    desk.shelf.interrupt();
    assert!(desk.shelf.settle(seat, held[0].1, true).is_none());
    assert!(desk.pull(seat).is_empty());
    desk.shelf.resume();
    let again = desk.pull(seat);
    assert_eq!(offsets(&again), [0]);
    assert!(desk.shelf.settle(seat, held[0].1, true).is_none());
    assert!(desk.shelf.settle(seat, again[0].1, true).is_some());
    assert_eq!(offsets(&desk.pull(seat)), [1]);
}

#[test]
fn who_takes_the_strays_is_nobodys_subscription() {
    let mut desk = Desk::new();
    let strays = desk.shelf.sit_for_strays(&id(">"), 9).unwrap();
    assert_eq!(desk.shelf.subscriptions().count(), 0);
    let seat = desk.shelf.sit_down(&id(">"), 9, Begin::default()).unwrap();
    assert_ne!(seat.subscription, strays.subscription);
    desk.put(0, &[strays]);
    assert!(desk.pull(seat).is_empty());
    assert_eq!(offsets(&desk.pull(strays)), [0]);
    desk.shelf.leave(seat);
    assert!(desk.shelf.retire(), "nobody stays because of it");
}

#[test]
fn what_nobody_finished_keeps_the_position_where_it_is() {
    let mut desk = Desk::new();
    let one = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    let other = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
    desk.put(0, &[one, other]);
    desk.shelf.leave(one);
    let theirs = desk.pull(other);
    desk.shelf.settle(other, theirs[0].1, true).unwrap();
    assert_eq!(
        desk.position(),
        Some(0),
        "the one who left had not handled it"
    );
    desk.put(1, &[one]);
    assert_eq!(
        desk.position(),
        None,
        "what was read for one who left comes again"
    );
}

#[test]
fn a_slow_subscription_stops_its_siblings_a_window_ahead() {
    let mut desk = Desk::new();
    let slow = desk.shelf.sit_down(&id("a"), 9, Begin::default()).unwrap();
    let fast = desk.shelf.sit_down(&id("*"), 9, Begin::default()).unwrap();
    let targets = [slow.subscription, fast.subscription];
    let mut offset = 0;
    while desk.shelf.room(desk.partition, &targets) > 0 {
        desk.put(offset, &[slow, fast]);
        for (_, tag) in desk.pull(fast) {
            desk.shelf.settle(fast, tag, true).unwrap();
        }
        offset += 1;
    }
    assert_eq!(offset, 4);
    let mut told = false;
    for (_, tag) in desk.pull(slow) {
        // The reader has looked, and the position's move is known.
        told |= desk.shelf.room(desk.partition, &targets) > 0;
        told |= desk.shelf.settle(slow, tag, true).unwrap().for_reader;
    }
    assert!(told, "the reader is told of the room");
    assert!(desk.shelf.room(desk.partition, &targets) > 0);
}
