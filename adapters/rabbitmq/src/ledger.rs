//! What a channel delivered and what became of it, so that acknowledgements go together and none goes astray.

use std::collections::{BTreeMap, BTreeSet};

use anywire::Message;
use anywire::pattern::Tag;
use anywire::pattern::publish_subscribe::Received;

/// The deliveries of one subscription. It holds what is unsettled, which the prefetch bounds.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Counts the channels. It is the upper half of a tag's epoch.
    generation: u32,
    /// Held by core, or given back to ourselves; by the broker's tag.
    open: BTreeMap<u64, Delivery>,
    /// What the broker is to be told that it is settled.
    settled: Vec<u64>,
    /// What was given back to ourselves, in the order of the channel.
    again: BTreeSet<u64>,
    /// Whether returned messages stay with us, so that they come before those behind them.
    keeps: bool,
}

#[derive(Debug)]
struct Delivery {
    /// How often it was given back; the lower half of its tag's epoch.
    life: u32,
    kept: Option<Message>,
    deliveries: u32,
}

/// What the broker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Ack { tag: u64, multiple: bool },
    Nack { tag: u64 },
}

impl Ledger {
    pub(crate) fn new(keeps: bool) -> Self {
        Self {
            generation: 0,
            open: BTreeMap::new(),
            settled: Vec::new(),
            again: BTreeSet::new(),
            keeps,
        }
    }

    /// The channel is gone, and with it all that it delivered.
    pub(crate) fn begin_anew(&mut self) {
        self.generation += 1;
        self.open.clear();
        self.settled.clear();
        self.again.clear();
    }

    /// Takes a delivery in.
    pub(crate) fn take_in(&mut self, tag: u64, message: Message, deliveries: u32) -> Received {
        let kept = self.keeps.then(|| message.clone());
        let life = 0;
        let delivery = Delivery {
            life,
            kept,
            deliveries,
        };
        self.open.insert(tag, delivery);
        received(message, self.tag(tag, life), deliveries)
    }

    /// Takes a delivery in that nobody shall see.
    pub(crate) fn pass_by(&mut self, tag: u64) {
        self.settled.push(tag);
    }

    /// What was given back to ourselves, to be delivered again.
    pub(crate) fn next_again(&mut self) -> Option<Received> {
        let tag = self.again.pop_first()?;
        let delivery = self.open.get(&tag)?;
        let message = delivery.kept.clone()?;
        Some(received(
            message,
            self.tag(tag, delivery.life),
            delivery.deliveries,
        ))
    }

    /// Marks a delivery as handled; `false` where it is not ours to settle.
    pub(crate) fn ack(&mut self, tag: Tag) -> bool {
        if self.held(tag).is_none() {
            return false;
        }
        self.open.remove(&tag.slot);
        self.settled.push(tag.slot);
        true
    }

    /// Gives a delivery back: to the broker, or to ourselves where the order is ours to keep. `None` where it is not ours.
    pub(crate) fn give_back(&mut self, tag: Tag) -> Option<Option<Word>> {
        let keeps = self.keeps;
        let delivery = self.held(tag)?;
        if keeps {
            delivery.life += 1;
            delivery.deliveries = delivery.deliveries.saturating_add(1);
            self.again.insert(tag.slot);
            return Some(None);
        }
        self.open.remove(&tag.slot);
        Some(Some(Word::Nack { tag: tag.slot }))
    }

    /// Whether core holds nothing.
    pub(crate) fn is_settled(&self) -> bool {
        self.open.len() == self.again.len()
    }

    /// What the broker is to be told about what was acknowledged: one word as far as all before is settled, then one for each.
    pub(crate) fn words(&mut self, words: &mut Vec<Word>) {
        let open = self.open.first_key_value();
        let open = open.map_or(u64::MAX, |(tag, _)| *tag);
        let together = self.settled.iter().filter(|tag| **tag < open);
        let (last, count) = together.fold((None, 0), |(last, count), tag| {
            (last.max(Some(*tag)), count + 1)
        });
        words.extend(last.map(|tag| Word::Ack {
            tag,
            multiple: count > 1,
        }));
        let single = self.settled.drain(..).filter(|tag| *tag > open);
        words.extend(single.map(|tag| Word::Ack {
            tag,
            multiple: false,
        }));
    }

    fn tag(&self, tag: u64, life: u32) -> Tag {
        Tag {
            slot: tag,
            epoch: epoch(self.generation, life),
        }
    }

    fn held(&mut self, tag: Tag) -> Option<&mut Delivery> {
        let generation = self.generation;
        let delivery = self.open.get_mut(&tag.slot)?;
        (epoch(generation, delivery.life) == tag.epoch).then_some(delivery)
    }
}

fn epoch(generation: u32, life: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(life)
}

fn received(message: Message, tag: Tag, deliveries: u32) -> Received {
    Received {
        deliveries: Some(deliveries),
        ..Received::new(message, tag)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn message() -> Message {
        Message::new(anywire::Subject::parse("a.b").unwrap(), "x")
    }

    fn filled(keeps: bool, count: u64) -> (Ledger, Vec<Tag>) {
        let mut ledger = Ledger::new(keeps);
        let tags = (1..=count).map(|tag| ledger.take_in(tag, message(), 1).tag);
        let tags = tags.collect();
        (ledger, tags)
    }

    fn words(ledger: &mut Ledger) -> Vec<Word> {
        let mut words = Vec::new();
        ledger.words(&mut words);
        words
    }

    const fn ack(tag: u64, multiple: bool) -> Word {
        Word::Ack { tag, multiple }
    }

    #[test]
    fn acknowledgements_go_together_as_far_as_nothing_is_open_before_them() {
        let (mut ledger, tags) = filled(false, 6);
        assert!(ledger.ack(tags[0]) && ledger.ack(tags[1]) && ledger.ack(tags[4]));
        assert_eq!(words(&mut ledger), [ack(2, true), ack(5, false)]);
        assert!(ledger.ack(tags[2]) && ledger.ack(tags[3]));
        // 5 was told; 4 is the last that is news.
        assert_eq!(words(&mut ledger), [ack(4, true)]);
        assert!(ledger.ack(tags[5]));
        assert_eq!(words(&mut ledger), [ack(6, false)]);
        assert!(words(&mut ledger).is_empty());
    }

    #[test]
    fn a_tag_settles_once() {
        let (mut ledger, tags) = filled(false, 2);
        assert!(ledger.ack(tags[1]));
        assert!(!ledger.ack(tags[1]));
        assert!(ledger.give_back(tags[1]).is_none());
        assert_eq!(ledger.give_back(tags[0]), Some(Some(Word::Nack { tag: 1 })));
        assert!(!ledger.ack(tags[0]));
        assert_eq!(words(&mut ledger), [ack(2, false)]);
    }

    #[test]
    fn a_tag_of_an_earlier_channel_settles_nothing() {
        let (mut ledger, tags) = filled(false, 1);
        ledger.begin_anew();
        let again = ledger.take_in(1, message(), 2).tag;
        assert_eq!(again.slot, tags[0].slot);
        assert!(!ledger.ack(tags[0]));
        assert!(ledger.ack(again));
    }

    #[test]
    fn what_is_kept_comes_again_in_order_with_a_tag_of_its_own() {
        let (mut ledger, tags) = filled(true, 3);
        for at in [1, 0] {
            assert_eq!(ledger.give_back(tags[at]), Some(None));
        }
        assert!(!ledger.ack(tags[0]), "it was given back");
        let again: Vec<_> = std::iter::from_fn(|| ledger.next_again()).collect();
        assert!(!ledger.is_settled());
        let slots: Vec<_> = again.iter().map(|received| received.tag.slot).collect();
        assert_eq!(slots, [1, 2]);
        assert_eq!(again[0].deliveries, Some(2));
        assert!(ledger.ack(again[0].tag));
        assert_eq!(ledger.give_back(tags[2]), Some(None));
        assert_eq!(ledger.give_back(again[1].tag), Some(None));
        assert!(ledger.is_settled(), "nobody holds what is to come again");
        assert_eq!(words(&mut ledger), [ack(1, false)]);
    }

    #[test]
    fn one_that_stays_open_holds_no_memory_of_what_was_settled_behind_it() {
        let (mut ledger, tags) = filled(false, 1);
        for tag in 2..100_000 {
            let next = ledger.take_in(tag, message(), 1).tag;
            assert!(ledger.ack(next));
            assert_eq!(words(&mut ledger), [ack(tag, false)]);
        }
        assert_eq!((ledger.open.len(), ledger.settled.len()), (1, 0));
        assert!(ledger.ack(tags[0]));
    }

    #[test]
    fn what_is_passed_by_is_acknowledged_with_the_others() {
        let (mut ledger, tags) = filled(false, 1);
        ledger.pass_by(2);
        assert_eq!(words(&mut ledger), [ack(2, false)]);
        assert!(ledger.ack(tags[0]));
        assert_eq!(words(&mut ledger), [ack(1, false)]);
    }
}
