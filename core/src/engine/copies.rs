//! Copies that leave the process: delayed retries, dead letters and what is sent back from there. Written once, for all
//! wires.

use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

use crate::client::{ClientCore, Wire};
use crate::context::Context;
use crate::pattern::publish_subscribe::{
    Entry, Provision, PublishBatch, Published, Store, SubscriptionId, Target,
};
use crate::wire::{MAX_ERROR, clip};
use crate::{Error, ErrorKind, Message, Pattern, Subject};

/// How long a copy may take to be stored before its original is given back.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Makes sure that the dead letters of `group` have a place.
pub(crate) async fn declare_dead_letters(
    core: &ClientCore,
    wire: &Wire,
    group: &str,
) -> Result<(), Error> {
    let store = dead_letter_store(core.dead_letter_retention, Provision::Create, group)?;
    let declared = wire.subscriber.declare(&[store]).await;
    declared.into_iter().collect()
}

pub(crate) fn dead_letter_store(
    retention: Duration,
    provision: Provision,
    group: &str,
) -> Result<Store, Error> {
    let pattern = Pattern::parse_any(Subject::dead_letters(group).as_str())?;
    Ok(Store {
        pattern,
        retention,
        provision,
    })
}

/// Publishes a copy for one subscription, due after `delay`, with its failed attempts counted.
pub(crate) async fn publish_retry(
    wire: &Wire,
    context: &Context,
    subscription: &SubscriptionId,
    delay: Duration,
) -> Result<(), Error> {
    let clock = &context.scope.client.clock;
    let due = clock.now() + delay;
    let mut message = failed_copy(context, None);
    message.trail_mut().due = Some(clock.wall() + delay);
    let target = Target::Subscription(subscription.clone());
    publish(
        wire,
        Entry::new(message)
            .with_target(target)
            .with_not_before(Some(due)),
    )
    .await
}

/// Publishes a copy to the dead letters of `group`, with all that is known of its end.
pub(crate) async fn publish_dead_letter(
    wire: &Wire,
    context: &Context,
    group: &SmolStr,
    error: &str,
) -> Result<(), Error> {
    let mut message = failed_copy(context, Some(error)).with_subject(Subject::dead_letters(group));
    let trail = message.trail_mut();
    trail.origin = Some(wire.name.clone());
    trail.due = None;
    publish(wire, Entry::new(message)).await
}

/// Sends a dead letter back to the subscription that failed it.
pub(crate) async fn redrive(core: &Arc<ClientCore>, dead_letter: &Message) -> Result<(), Error> {
    let refused = |why: &str| {
        let error = Error::config(format!("the message cannot be redriven: {why}"));
        Err(error
            .with_operation("redrive")
            .with_context("subject", dead_letter.subject()))
    };
    let Some(trail) = dead_letter.trail() else {
        return refused("it is no dead letter");
    };
    let (Some(group), Some(pattern)) = (&trail.group, &trail.pattern) else {
        return refused("it does not tell which subscription failed it");
    };
    let wire = trail
        .origin
        .as_deref()
        .and_then(|origin| core.wires.by_name(origin));
    let wire = wire.unwrap_or_else(|| core.wires.wire(core.wires.route(&trail.subject)));
    let subscription = SubscriptionId::new(group.as_str(), pattern.clone());
    let message = dead_letter
        .clone()
        .with_subject(trail.subject.clone())
        .with_trail(None);
    publish(
        wire,
        Entry::new(message).with_target(Target::Subscription(subscription)),
    )
    .await
}

/// The message with its trail brought up to date.
fn failed_copy(context: &Context, error: Option<&str>) -> Message {
    let now = context.scope.client.clock.wall();
    let info = &context.scope.info;
    let mut message = context.message.clone();
    let attempts = context.failed;
    let trail = message.trail_mut();
    trail.attempt = attempts;
    trail.pattern = Some(info.pattern.clone());
    trail.group.clone_from(&info.group);
    trail.handler = Some(info.name.clone());
    trail
        .first_at
        .get_or_insert(context.first_failed.unwrap_or(now));
    trail.last_at = Some(now);
    if let Some(error) = error {
        trail.error = Some(clip(error, MAX_ERROR).to_owned());
    }
    message
}

async fn publish(wire: &Wire, entry: Entry) -> Result<(), Error> {
    let (_, outcomes) = wire
        .publisher
        .publish(PublishBatch::single(entry, TIMEOUT))
        .wait()
        .await
        .into_parts();
    match outcomes.into_iter().next() {
        Some(Published::Accepted(_)) => Ok(()),
        Some(Published::Rejected(error) | Published::Unknown(error)) => Err(error),
        None => Err(Error::new(
            ErrorKind::OutcomeUnknown,
            "the adapter reported no outcome",
        )),
    }
}
