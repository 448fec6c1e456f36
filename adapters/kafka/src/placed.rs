//! Where a time or a position is in each partition.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anywire::pattern::publish_subscribe::Start;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// What the brokers said of some partitions.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    times: Vec<(i64, TopicPartitionList)>,
    ends: Option<TopicPartitionList>,
}

impl Answers {
    /// Asks for all that these starts need to be found in all of these partitions.
    ///
    /// # Errors
    /// Where the brokers do not answer.
    pub(crate) fn ask<C: ConsumerContext>(
        consumer: &BaseConsumer<C>,
        list: &TopicPartitionList,
        starts: &[Start],
        patience: Duration,
    ) -> Result<Self, KafkaError> {
        let mut answers = Self::default();
        for start in starts {
            let Some(millis) = millis_of(start) else {
                continue;
            };
            if !answers.times.iter().any(|(asked, _)| *asked == millis) {
                let mut asked = list.clone();
                asked.set_all_offsets(Offset::Offset(millis))?;
                let found = consumer.offsets_for_times(asked, patience)?;
                answers.times.push((millis, found));
            }
        }
        // Asked last, so that nothing that was found lies behind it.
        answers.ends = Some(edges(consumer, list, Offset::End, patience)?);
        Ok(answers)
    }

    /// The first offset from `start` on; never beyond the end.
    pub(crate) fn first(&self, start: &Start, topic: &str, number: i32) -> i64 {
        let end = offset_in(self.ends.as_ref(), topic, number);
        let named = match start {
            Start::Earliest => Some(0),
            Start::Position(position)
                if position.place() == topic && i64::from(position.part()) == i64::from(number) =>
            {
                Some(i64::try_from(position.number()).unwrap_or(i64::MAX))
            }
            Start::Latest => Some(i64::MAX),
            Start::At(_) | Start::Position(_) => None,
        };
        let found = named.unwrap_or_else(|| {
            let Some(millis) = millis_of(start) else {
                // It does not tell its time.
                return 0;
            };
            let list = self.times.iter().find(|(asked, _)| *asked == millis);
            // There is nothing of that time or later.
            offset_in(list.map(|(_, list)| list), topic, number).unwrap_or(i64::MAX)
        });
        found.min(end.unwrap_or(found))
    }
}

/// The first or the last offsets of partitions.
pub(crate) fn edges<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    list: &TopicPartitionList,
    which: Offset,
    patience: Duration,
) -> Result<TopicPartitionList, KafkaError> {
    let mut asked = list.clone();
    asked.set_all_offsets(which)?;
    consumer.offsets_for_times(asked, patience)
}

/// What a list says of a partition.
pub(crate) fn offset_in(
    list: Option<&TopicPartitionList>,
    topic: &str,
    number: i32,
) -> Option<i64> {
    match list?.find_partition(topic, number)?.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

/// The time by which a start is looked up, as records are stamped: what is of the same millisecond belongs to it.
fn millis_of(start: &Start) -> Option<i64> {
    let millis = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    };
    match start {
        Start::At(time) => Some(millis(*time)),
        Start::Position(position) => position.time().map(millis),
        Start::Earliest | Start::Latest => None,
    }
}
