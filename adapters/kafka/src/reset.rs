//! Moving a group that nobody works in.

use std::time::Duration;

use anywire::pattern::publish_subscribe::{Start, SubscriptionId, members_running};
use anywire::{Error, ErrorKind};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::errors;
use crate::group::Settings;
use crate::placed::Answers;

/// How long the brokers may take for each answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells the broker where the group is to go on in these topics. Waits for it.
///
/// # Errors
/// `Rejected` while the group has members, `NotFound` where it has never read any of the topics, or what the broker says.
pub(crate) fn run(
    settings: &Settings,
    subscription: &SubscriptionId,
    topics: &[String],
    start: &Start,
) -> Result<(), Error> {
    let failed = |error: KafkaError| errors::from(&error, "resetting the group");
    let group = subscription.group.as_deref().unwrap_or_default();
    let client = settings.config.member(&settings.transport, group, false)?;
    // It never joins: who has no members takes positions from anybody.
    let consumer: BaseConsumer = client.create().map_err(failed)?;
    let groups = consumer
        .fetch_group_list(Some(group), PATIENCE)
        .map_err(failed)?;
    if groups
        .groups()
        .iter()
        .any(|group| !group.members().is_empty())
    {
        return Err(members_running(subscription));
    }
    let metadata = consumer.fetch_metadata(None, PATIENCE).map_err(failed)?;
    let mut list = TopicPartitionList::new();
    for topic in metadata.topics() {
        if topics.iter().any(|wanted| wanted == topic.name()) {
            for partition in topic.partitions() {
                list.add_partition(topic.name(), partition.id());
            }
        }
    }
    let known = consumer
        .committed_offsets(list.clone(), PATIENCE)
        .map_err(failed)?;
    let is_known = |offset| matches!(offset, Offset::Offset(_));
    if !known
        .elements()
        .iter()
        .any(|place| is_known(place.offset()))
    {
        let text = "the group has never read what the pattern matches; check group and pattern";
        let error = Error::new(ErrorKind::NotFound, text);
        return Err(error.with_context("subscription", subscription));
    }
    let starts = std::slice::from_ref(start);
    let answers = Answers::ask(&consumer, &list, starts, PATIENCE).map_err(failed)?;
    let mut moved = TopicPartitionList::new();
    for place in list.elements() {
        let first = answers.first(start, place.topic(), place.partition());
        let first = Offset::Offset(first);
        moved
            .add_partition_offset(place.topic(), place.partition(), first)
            .map_err(failed)?;
    }
    match consumer.commit(&moved, CommitMode::Sync) {
        Ok(()) => {
            tracing::info!(group, %start, ?topics, "moved a group");
            Ok(())
        }
        // Somebody has come meanwhile.
        Err(error) if is_taken(&error) => Err(members_running(subscription)),
        Err(error) => Err(failed(error)),
    }
}

fn is_taken(error: &KafkaError) -> bool {
    let codes = [
        Code::UnknownMemberId,
        Code::IllegalGeneration,
        Code::RebalanceInProgress,
        Code::NonEmptyGroup,
    ];
    error
        .rdkafka_error_code()
        .is_some_and(|code| codes.contains(&code))
}
