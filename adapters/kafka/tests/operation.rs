//! What operators and other programs do while an app runs.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use anywire::{Client, ErrorKind, Message, Provision, Result, Route, Router, Start, Subject};
use anywire_conformance::rig::{Books, Seen, dead_letters, soon, until, until_async};
use anywire_conformance::{BrokerControl as _, trials};
use futures::future::join_all;
use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureRecord, Producer as _};
use support::{Server, admin, app, configured, foreign, unique, url, write};
use tokio::sync::mpsc;

trials![
    [support::URL, support::SERVER] =>
    a_partition_that_is_added_is_read,
    a_topic_that_is_created_after_the_subscription_is_read,
    a_copy_for_nobody_any_more_becomes_a_dead_letter,
    a_record_without_a_payload_is_handled,
    what_is_too_large_is_refused_before_it_is_sent,
    a_missing_topic_that_nobody_may_create_is_read_when_it_is_there,
    members_that_vanish_or_stand_still_leave_their_work_to_the_others,
    a_window_that_is_full_of_what_nobody_confirms_refuses_the_rest,
    a_topic_of_replies_that_was_deleted_is_made_again,
    an_event_for_later_whose_topic_is_gone_becomes_a_dead_letter,
];

/// How long the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon a change must be seen, so that a test need not wait for the default.
const SOON: &str = "[transports.main.kafka]\ndiscovery = '200ms'\nsession_timeout = '6s'";

fn configuration() -> String {
    format!("url = {:?}\n{SOON}", url())
}

async fn create(topic: &str) {
    let new = NewTopic::new(topic, 2, TopicReplication::Fixed(1));
    // Kept: the answer to one that was dropped may never come.
    let admin = admin(&url());
    let created = admin.create_topics([&new], &AdminOptions::new());
    created.await.unwrap().remove(0).unwrap();
}

async fn a_partition_that_is_added_is_read() {
    let (name, seen) = (unique("shop"), Seen::default());
    let subject = format!("{name}.placed");
    let router = Router::new().on_event(subject.as_str(), seen.handler());
    let app = configured(&name, &configuration()).router(router);
    let app = app.start().await.unwrap();
    app.client().emit(subject.as_str(), &0).await.unwrap();
    until("the first event", || seen.has_all([0])).await;

    let more = NewPartitions::new(&subject, 6);
    let admin = admin(&url());
    let added = admin.create_partitions([&more], &AdminOptions::new());
    added.await.unwrap().remove(0).unwrap();
    let foreign = foreign(&url());
    until("the broker's knowledge of them", || {
        let known = foreign.client().fetch_metadata(Some(&subject), PATIENCE);
        known.is_ok_and(|known| {
            known
                .topics()
                .iter()
                .all(|topic| topic.partitions().len() == 6)
        })
    })
    .await;
    for number in 1..=6_i32 {
        let text = number.to_string();
        let record = FutureRecord::to(&subject).partition(number - 1);
        write(&foreign, record.payload(text.as_bytes())).await;
    }
    until("what each partition holds", || seen.has_all(0..=6)).await;
    app.shutdown().await.unwrap();
}

async fn a_topic_that_is_created_after_the_subscription_is_read() {
    let (name, seen) = (unique("shop"), Seen::default());
    let pattern = format!("{name}.*.placed");
    let router = Router::new().on_event(pattern.as_str(), seen.handler());
    let app = configured(&name, &configuration()).router(router);
    let app = app.start().await.unwrap();
    let topic = format!("{name}.eu.placed");
    create(&topic).await;
    let foreign = foreign(&url());
    write(&foreign, FutureRecord::to(&topic).payload(b"1".as_slice())).await;
    until("what was there first", || seen.has_all([1])).await;
    app.shutdown().await.unwrap();
}

async fn a_copy_for_nobody_any_more_becomes_a_dead_letter() {
    let (name, seen) = (unique("shop"), Seen::default());
    let subject = format!("{name}.placed");
    let start = || {
        let router = Router::new().on_event(subject.as_str(), seen.handler());
        configured(&name, &configuration()).router(router).start()
    };
    let app = start().await.unwrap();
    let topic = format!("anywire.retry.{name}.now");
    create(&topic).await;
    let gone = format!("{name}.gone");
    let value = Some(gone.as_str());
    let headers = ["anywire-subject", "anywire-to"]
        .into_iter()
        .fold(OwnedHeaders::new(), |headers, key| {
            headers.insert(Header { key, value })
        });
    let record = FutureRecord::to(&topic)
        .payload(b"7".as_slice())
        .headers(headers);
    write(&foreign(&url()), record).await;

    let undertaker = support::app(&unique("undertaker"), &url());
    let undertaker = Client::connect(undertaker).await.unwrap();
    let mut letters = dead_letters(&undertaker, &name).await.unwrap();
    let letter = soon("the dead letter", letters.next()).await;
    let letter = letter.unwrap().unwrap();
    assert_eq!(letter.message().payload(), "7");
    let trail = letter.message().trail().unwrap();
    assert_eq!(trail.subject.as_str(), gone);
    assert_eq!(trail.group.as_deref(), Some(name.as_str()));
    assert_eq!(trail.pattern.as_ref().unwrap().wildcards(), gone);
    letter.ack().await.unwrap();
    app.shutdown().await.unwrap();

    // The position has passed it: it is not told of again.
    let app = start().await.unwrap();
    let again = tokio::time::timeout(Duration::from_secs(2), letters.next()).await;
    assert!(again.is_err(), "{again:?}");
    undertaker.close().await.unwrap();
    app.shutdown().await.unwrap();
}

async fn a_record_without_a_payload_is_handled() {
    let name = unique("shop");
    let subject = format!("{name}.removed");
    let (tell, mut told) = mpsc::channel(8);
    let handler = move |message: Message| {
        let tell = tell.clone();
        async move {
            tell.send(message).await?;
            Result::<()>::Ok(())
        }
    };
    let router = Router::new().on_event(subject.as_str(), handler);
    let app = app(&name, &url()).router(router).start().await.unwrap();
    let record = FutureRecord::to(&subject).key(b"c-17".as_slice());
    write(&foreign(&url()), record).await;
    let message = soon("the tombstone", told.recv()).await.unwrap();
    assert!(message.payload().is_empty());
    assert_eq!(message.key().unwrap().as_bytes(), b"c-17");
    assert!(message.headers().contains("kafka-tombstone"));
    app.shutdown().await.unwrap();
}

async fn what_is_too_large_is_refused_before_it_is_sent() {
    let (name, seen) = (unique("shop"), Seen::default());
    let subject = format!("{name}.placed");
    let router = Router::new().on_event(subject.as_str(), seen.handler());
    let config = format!("{}\nmax_payload = 1000", configuration());
    let app = configured(&name, &config).router(router);
    let app = app.start().await.unwrap();
    let client = app.client();
    let large = "x".repeat(1000);
    let error = client.emit(subject.as_str(), &large).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    client.emit(subject.as_str(), &1).await.unwrap();
    until("the next one", || seen.has_all([1])).await;
    app.shutdown().await.unwrap();
}

async fn a_missing_topic_that_nobody_may_create_is_read_when_it_is_there() {
    let (name, seen) = (unique("shop"), Seen::default());
    let subject = format!("{name}.placed");
    let route = Route::event(subject.as_str(), seen.handler()).provision(Provision::None);
    let app = configured(&name, &configuration()).router(Router::new().route(route));
    let app = app.start().await.unwrap();
    let client = app.client();
    let error = client.emit(subject.as_str(), &1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error}");
    create(&subject).await;
    client.emit(subject.as_str(), &1).await.unwrap();
    until("the event", || seen.has_all([1])).await;
    app.shutdown().await.unwrap();
}

async fn members_that_vanish_or_stand_still_leave_their_work_to_the_others() {
    let (name, seen) = (unique("shop"), Seen::default());
    let subject = format!("{name}.placed");
    let start = || {
        let router = Router::new().on_event(subject.as_str(), seen.handler());
        configured(&name, &configuration()).router(router).start()
    };
    let stuck = Route::event(subject.as_str(), |_: u64| {
        std::future::pending::<Result<()>>()
    });
    let stuck = configured(&name, &format!("grace = '100ms'\n{}", configuration()))
        .router(Router::new().route(stuck));
    let (first, vanishing) = futures::future::try_join(start(), start()).await.unwrap();
    let stuck = stuck.start().await.unwrap();
    let till = app(&unique("till"), &url());
    let client = Client::connect(till).await.unwrap();
    for number in 0..100_u64 {
        client.emit(subject.as_str(), &number).await.unwrap();
    }
    vanishing.shutdown().await.unwrap();
    // It says what it could not do.
    let _ = stuck.shutdown().await;
    for number in 100..200_u64 {
        client.emit(subject.as_str(), &number).await.unwrap();
    }
    until("all of it", || seen.has_all(0..200)).await;
    client.close().await.unwrap();
    first.shutdown().await.unwrap();
}

async fn a_window_that_is_full_of_what_nobody_confirms_refuses_the_rest() {
    /// How many may be under way, and how many more are tried.
    const WINDOW: usize = 4;
    const MORE: usize = 6;
    let server = Server::start("").await.unwrap();
    let section = format!("[transports.main.kafka]\nmax_in_flight = {WINDOW}");
    let config = format!("url = {:?}\n{section}", server.url());
    let books = Books::default();
    let router = Router::new().on_event("shop.placed", books.handler());
    let app = configured("shop", &config).router(router);
    let app = app.start().await.unwrap();
    let client = app.client();
    let emit = |timeout| books.emit(&client, "shop.placed", Duration::from_secs(timeout));
    emit(30).await;

    server.broker.freeze().await.unwrap();
    join_all((0..WINDOW + MORE).map(|_| emit(1))).await;
    let frozen = books.balance();
    assert_eq!(
        (frozen.unknown, frozen.refused),
        (WINDOW, MORE),
        "{frozen:?}"
    );
    server.broker.thaw().await.unwrap();
    emit(30).await;
    let all = || {
        let balance = books.balance();
        balance.lost == 0 && balance.handled == WINDOW + 2
    };
    until("what was accepted, and what was under way", all).await;
    books.assert_true();
    app.shutdown().await.unwrap();
}

async fn a_topic_of_replies_that_was_deleted_is_made_again() {
    let name = unique("math");
    let subject = format!("{name}.double");
    let double = async |number: u64| -> Result<u64> { Ok(number * 2) };
    let router = Router::new().on_call(subject.as_str(), double);
    let app = configured(&name, &configuration()).router(router);
    let app = app.start().await.unwrap();
    let client = app.client();
    let call = async || {
        let call = client.request::<u64, u64>(subject.as_str(), &2);
        call.timeout(Duration::from_secs(2)).await
    };
    assert_eq!(call().await.unwrap(), 4);
    let deleted = admin(&url());
    let topic = format!("anywire.replies.{name}");
    let deleted = deleted.delete_topics(&[topic.as_str()], &AdminOptions::new());
    deleted.await.unwrap().remove(0).unwrap();
    until_async("an answer", async || call().await.is_ok()).await;
    app.shutdown().await.unwrap();
}

/// It is not acked for want of a place to go to: a broker that does not know of a topic may only just have started.
async fn an_event_for_later_whose_topic_is_gone_becomes_a_dead_letter() {
    // Whoever else is on a Kafka would help to move it.
    let server = Server::start("").await.unwrap();
    let (name, seen) = (unique("shop"), Seen::default());
    let subject = format!("{name}.placed");
    let router = Router::new().on_event(subject.as_str(), seen.handler());
    let text = format!("url = {:?}\n{SOON}", server.url());
    let app = configured(&name, &text).router(router).start();
    let app = app.await.unwrap();
    let client = app.client();
    let emit = client.emit(subject.as_str(), &7);
    emit.after(Duration::from_secs(4)).await.unwrap();
    let deleted = admin(&server.url());
    let deleted = deleted.delete_topics(&[subject.as_str()], &AdminOptions::new());
    deleted.await.unwrap().remove(0).unwrap();

    let letters = Subject::dead_letters("anywire.delay");
    let letters = client.subscribe::<Message>(letters.as_str());
    let mut letters = letters.start(Start::Earliest).await.unwrap();
    let letter = soon("the dead letter", letters.next()).await;
    let letter = letter.unwrap().unwrap();
    assert_eq!(letter.message().payload(), "7");
    let trail = letter.message().trail().unwrap();
    assert_eq!(trail.subject.as_str(), subject);
    assert_eq!(trail.group.as_deref(), Some("anywire.delay"));
    app.shutdown().await.unwrap();
}
