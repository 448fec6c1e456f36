//! A: basic delivery.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anywire::pattern::publish_subscribe::Entry;
use futures::future::{join, join_all};
use rand::seq::SliceRandom;

use crate::behaviour::behaviours;
use crate::{Ledger, Subscription, Test};

behaviours! {
    a01_every_published_message_arrives_once_intact: [],
    a02_what_is_published_before_the_first_subscription_is_kept: [Durable],
    a02_what_is_published_before_the_first_subscription_is_gone: [NotDurable],
    a03_a_subscription_is_effective_when_it_is_returned: [],
    a04_two_groups_each_get_a_full_copy: [Groups],
    a05_the_members_of_a_group_share_the_load: [Groups],
    a06_many_subjects_on_one_client_do_not_mix: [],
    a07_subjects_that_share_a_prefix_are_apart: [],
    a08_a_subject_nobody_listens_to_disturbs_nobody: [],
    a09_many_tasks_may_publish_through_one_client: [],
    a10_an_idle_wire_delivers_without_delay: [],
}

/// What is published arrives: all of it, once, with payload and headers as they were.
pub async fn a01_every_published_message_arrives_once_intact(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let messages = test.messages("events", test.profile().messages());
    let mut ledger = Ledger::of(&messages);
    join(
        client.send_all(&messages),
        subscription.receive_all(&mut ledger),
    )
    .await;
    ledger.balance(0);
}

/// A durable wire keeps what is published to a declared store until a group comes for it.
pub async fn a02_what_is_published_before_the_first_subscription_is_kept(test: &Test) {
    let client = test.connect().await;
    client.declare(&test.pattern("events")).await;
    let messages = test.messages("events", 10);
    client.send_all(&messages).await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let mut ledger = Ledger::of(&messages);
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// A wire that keeps nothing drops it, and a message published later arrives alone.
pub async fn a02_what_is_published_before_the_first_subscription_is_gone(test: &Test) {
    let client = test.connect().await;
    let early = test.message("events", "early");
    // Whether this is refused or counts as accepted is L3's business.
    let _ = client.try_send(Entry::new(early)).await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let control = test.message("events", "control");
    client.send(control.clone()).await;
    let delivery = subscription.next().await;
    assert_eq!(delivery.message.payload(), "control");
    delivery.ack().await;
    subscription.stays_quiet().await;
}

/// `subscribe` returns when the subscription is there: what another client publishes right then is not lost.
pub async fn a03_a_subscription_is_effective_when_it_is_returned(test: &Test) {
    let (here, there) = join(test.connect(), test.connect()).await;
    for round in 0..test.profile().pick(50, 200, 200) {
        let subject = format!("fresh-{round}");
        let mut subscription = here.subscribe(test.spec("group", &subject)).await;
        there.send(test.message(&subject, "first")).await;
        subscription.next().await.ack().await;
        subscription.stop().await;
    }
}

/// Each group gets every message.
pub async fn a04_two_groups_each_get_a_full_copy(test: &Test) {
    let client = test.connect().await;
    let mut one = client.subscribe(test.spec("one", "events")).await;
    let mut two = client.subscribe(test.spec("two", "events")).await;
    let messages = test.messages("events", test.profile().pick(20, 50, 1_000));
    client.send_all(&messages).await;
    let (mut first, mut second) = (Ledger::of(&messages), Ledger::of(&messages));
    join(one.receive_all(&mut first), two.receive_all(&mut second)).await;
    first.balance(0);
    second.balance(0);
}

/// The members of a group, each on a connection of its own, get each message once between them, and each gets some.
pub async fn a05_the_members_of_a_group_share_the_load(test: &Test) {
    let messages = test.messages("events", test.profile().pick(100, 2_000, 5_000));
    let mut members = Vec::new();
    for _ in 0..test.profile().subscribers() {
        let spec = test.spec("group", "events").with_window(2);
        members.push(test.connect().await.subscribe(spec).await);
    }
    let publisher = test.connect().await;
    let per_publisher = messages.len().div_ceil(test.profile().publishers());
    let publish = join_all(
        messages
            .chunks(per_publisher)
            .map(|some| publisher.send_all(some)),
    );
    let received = AtomicUsize::new(0);
    let consume = async {
        // Each holds its first message until all have one: with small windows nobody can take everything.
        let firsts = join_all(members.iter_mut().map(Subscription::next)).await;
        join_all(members.iter_mut().zip(firsts).map(async |(member, first)| {
            let mut share = Vec::new();
            let mut next = Some(first);
            loop {
                match next {
                    Some(delivery) => {
                        delivery.ack().await;
                        share.push(delivery.message);
                        received.fetch_add(1, Ordering::Relaxed);
                    }
                    None if received.load(Ordering::Relaxed) >= messages.len() => break share,
                    None => {}
                }
                next = member.next_within(test.quiet()).await;
            }
        }))
        .await
    };
    let (_, shares) = join(publish, consume).await;
    let mut ledger = Ledger::of(&messages);
    shares.iter().for_each(|share| ledger.merge(share));
    ledger.balance(0);
}

/// One client publishes to many subjects and consumes them, all at once; each is complete and holds nothing else.
pub async fn a06_many_subjects_on_one_client_do_not_mix(test: &Test) {
    let client = test.connect().await;
    let per_subject = test.profile().pick(20, 50, 100);
    let subjects = (0..test.profile().pick(10, 20, 50)).map(|number| format!("subject-{number}"));
    let traffic = subjects.map(async |subject| {
        let mut subscription = client.subscribe(test.spec("group", &subject)).await;
        let messages = test.messages(&subject, per_subject);
        let mut ledger = Ledger::of(&messages);
        join(
            client.send_all(&messages),
            subscription.receive_all(&mut ledger),
        )
        .await;
        ledger.balance(0);
    });
    join_all(traffic).await;
}

/// `t`, `t-1` and `t.1` are three subjects.
pub async fn a07_subjects_that_share_a_prefix_are_apart(test: &Test) {
    let client = test.connect().await;
    for subject in ["t", "t-1", "t.1"] {
        let others: Vec<_> = ["t", "t-1", "t.1"]
            .into_iter()
            .filter(|other| *other != subject)
            .collect();
        let group = format!("only-{}", subject.replace('.', "-"));
        let mut subscription = client.subscribe(test.spec(&group, subject)).await;
        for other in others {
            let _ = client
                .try_send(Entry::new(test.message(other, other)))
                .await;
        }
        client.send(test.message(subject, subject)).await;
        let delivery = subscription.next().await;
        assert_eq!(delivery.message.payload(), subject);
        delivery.ack().await;
        subscription.stays_quiet().await;
        subscription.stop().await;
    }
}

/// Messages that reach nobody cost the others nothing.
pub async fn a08_a_subject_nobody_listens_to_disturbs_nobody(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "live")).await;
    let unheard = test.messages("unheard", test.profile().messages());
    let entries = unheard.into_iter().map(Entry::new);
    client.try_publish(entries, crate::PUBLISH_TIMEOUT).await;
    let messages = test.messages("live", 10);
    client.send_all(&messages).await;
    let mut ledger = Ledger::of(&messages);
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// One handle serves many tasks at once.
pub async fn a09_many_tasks_may_publish_through_one_client(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let mut messages = test.messages("events", test.profile().pick(200, 1_000, 10_000));
    messages.shuffle(&mut test.rng());
    let per_task = messages.len().div_ceil(test.profile().publishers());
    let mut ledger = Ledger::of(&messages);
    let tasks: Vec<_> = messages
        .chunks(per_task)
        .map(|share| {
            let (client, share) = (client.clone(), share.to_vec());
            tokio::spawn(async move {
                for message in share {
                    client.send(message).await;
                }
            })
        })
        .collect();
    subscription.receive_all(&mut ledger).await;
    for task in tasks {
        task.await.expect("the publishing task ends well");
    }
    ledger.balance(0);
}

/// One message at a time, with pauses: no batching timer holds it up. The bound is generous, a timer is caught.
pub async fn a10_an_idle_wire_delivers_without_delay(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let mut latencies = Vec::new();
    for message in test.messages("events", test.profile().pick(20, 100, 100)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let start = std::time::Instant::now();
        client.send(message).await;
        let delivery = subscription.next().await;
        latencies.push(start.elapsed());
        delivery.ack().await;
    }
    latencies.sort_unstable();
    let median = latencies[latencies.len() / 2];
    assert!(
        median < Duration::from_millis(100),
        "half took longer than {median:?}"
    );
}
