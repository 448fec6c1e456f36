//! Records from outside that are broken or forged: each harms itself and nothing else.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use anywire::{ErrorKind, Message, Result, Router};
use anywire_conformance::rig::{Seen, dead_letters, soon, until};
use anywire_conformance::trials;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use support::{app, foreign, unique, url, write};
use tokio::sync::mpsc;

trials![
    [support::URL] =>
    forged_headers_change_neither_subject_nor_time,
    a_copy_that_names_nobody_holds_up_none_behind_it,
    a_call_with_a_forged_address_is_answered_nowhere,
    garbage_among_the_replies_answers_no_call,
];

fn headers(pairs: &[(&str, &[u8])]) -> OwnedHeaders {
    let add = |headers: OwnedHeaders, (key, value): &(&str, &[u8])| {
        headers.insert(Header {
            key,
            value: Some(*value),
        })
    };
    pairs.iter().fold(OwnedHeaders::new(), add)
}

async fn forged_headers_change_neither_subject_nor_time() {
    let name = unique("shop");
    let subject = format!("{name}.placed");
    let (tell, mut told) = mpsc::channel(64);
    let handler = move |message: Message| {
        let tell = tell.clone();
        async move {
            tell.send(message).await?;
            Result::<()>::Ok(())
        }
    };
    let router = Router::new().on_event(subject.as_str(), handler);
    let app = app(&name, &url()).router(router).start().await.unwrap();
    let foreign = foreign(&url());
    let hostile: [&[(&str, &[u8])]; 6] = [
        &[("anywire-id", b"\xff\xfe"), ("anywire-attempt", b"-1")],
        &[("anywire-subject", b"other.subject")],
        &[("anywire-due", b"99999999999999")],
        &[("anywire-to", b">"), ("anywire-pattern", b"..")],
        &[
            ("content-type", b"\xff/\x00"),
            ("kafka_correlationId", b"\xff"),
        ],
        &[("name", b"\x00\xff"), ("name", b""), ("", b"nameless")],
    ];
    for (number, pairs) in hostile.iter().enumerate() {
        let body = number.to_string();
        let record = FutureRecord::to(&subject).payload(body.as_bytes());
        write(&foreign, record.headers(headers(pairs))).await;
    }
    let nothing = OwnedHeaders::new().insert(Header::<&[u8]> {
        key: "nothing",
        value: None,
    });
    let record = FutureRecord::to(&subject)
        .payload(b"6".as_slice())
        .headers(nothing);
    write(&foreign, record).await;
    let mut bodies = Vec::new();
    for _ in 0..=hostile.len() {
        let message = soon("each of them", told.recv()).await.unwrap();
        assert_eq!(message.subject().as_str(), subject);
        bodies.push(String::from_utf8(message.payload().to_vec()).unwrap());
    }
    bodies.sort_unstable();
    assert_eq!(bodies, ["0", "1", "2", "3", "4", "5", "6"]);
    app.shutdown().await.unwrap();
}

async fn a_copy_that_names_nobody_holds_up_none_behind_it() {
    let (name, seen) = (unique("shop"), Seen::default());
    let subject = format!("{name}.placed");
    let router = Router::new().on_event(subject.as_str(), seen.handler());
    let app = app(&name, &url()).router(router).start().await.unwrap();
    let client = app.client();
    let topic = format!("anywire.retry.{name}.now");
    let mut letters = dead_letters(&client, &name).await.unwrap();

    // A letter that is sent back makes the topic of copies.
    client.emit(subject.as_str(), &"no number").await.unwrap();
    let letter = soon("a dead letter", letters.next()).await;
    let letter = letter.unwrap().unwrap();
    client.redrive(letter.message()).await.unwrap();
    letter.ack().await.unwrap();
    let letter = soon("it again", letters.next()).await;
    letter.unwrap().unwrap().ack().await.unwrap();

    let foreign = foreign(&url());
    write(
        &foreign,
        FutureRecord::to(&topic).payload(b"garbage".as_slice()),
    )
    .await;
    let to = headers(&[
        ("anywire-subject", subject.as_bytes()),
        ("anywire-to", subject.as_bytes()),
    ]);
    let record = FutureRecord::to(&topic)
        .payload(b"7".as_slice())
        .headers(to);
    write(&foreign, record).await;
    until("the copy behind", || seen.has_all([7])).await;
    let letter = soon("the garbage", letters.next()).await;
    let letter = letter.unwrap().unwrap();
    assert_eq!(letter.message().payload(), "garbage");
    letter.ack().await.unwrap();
    app.shutdown().await.unwrap();
}

async fn a_call_with_a_forged_address_is_answered_nowhere() {
    let (name, seen) = (unique("shop"), Seen::default());
    let (subject, victim) = (format!("{name}.double"), format!("{name}.placed"));
    let double = async |number: u64| -> Result<u64> { Ok(number * 2) };
    let router = Router::new()
        .on_call(subject.as_str(), double)
        .on_event(victim.as_str(), seen.handler());
    let app = app(&name, &url()).router(router).start().await.unwrap();
    let foreign = foreign(&url());
    let topic = format!("anywire.calls.{subject}");
    for (reply_topic, partition) in [
        (victim.as_str(), &b"0"[..]),
        ("anywire.replies.nobody-ever", b"0"),
        ("anywire.replies.", b"-1"),
        ("..", b"what"),
    ] {
        let forged = headers(&[
            ("kafka_replyTopic", reply_topic.as_bytes()),
            ("kafka_replyPartition", partition),
            ("kafka_correlationId", b"token"),
            ("anywire-subject", subject.as_bytes()),
        ]);
        let record = FutureRecord::to(&topic)
            .payload(b"21".as_slice())
            .headers(forged);
        write(&foreign, record).await;
    }
    let client = app.client();
    let call = client.request::<_, u64>(subject.as_str(), &4);
    assert_eq!(call.timeout(Duration::from_secs(20)).await.unwrap(), 8);
    client.emit(victim.as_str(), &1).await.unwrap();
    until("the event", || seen.has_all([1])).await;
    assert_eq!(seen.distinct(), [1], "an answer went where it must not");
    app.shutdown().await.unwrap();
}

async fn garbage_among_the_replies_answers_no_call() {
    let name = unique("shop");
    let subject = format!("{name}.wait");
    let (go_on, waiting) = tokio::sync::watch::channel(false);
    let wait = move |number: u64| {
        let mut waiting = waiting.clone();
        async move {
            let _ = waiting.wait_for(|goes_on| *goes_on).await;
            Result::<u64>::Ok(number)
        }
    };
    let router = Router::new().on_call(subject.as_str(), wait);
    let app = app(&name, &url()).router(router).start().await.unwrap();
    let client = app.client();
    // The first call makes the topic of replies.
    let call = client.request::<_, u64>(subject.as_str(), &1);
    let early = call.timeout(Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(early.kind(), ErrorKind::Timeout, "{early}");
    let foreign = foreign(&url());
    let call = client.request::<_, u64>(subject.as_str(), &2);
    let call = call.timeout(Duration::from_secs(20));
    let forging = async {
        let topic = format!("anywire.replies.{name}");
        for partition in 0..4 {
            for token in [&b"0000000000000000.0.00000000"[..], b"", b"..", b"\xff"] {
                let forged = headers(&[("kafka_correlationId", token)]);
                let record = FutureRecord::to(&topic).partition(partition);
                write(&foreign, record.payload(b"666".as_slice()).headers(forged)).await;
            }
        }
        go_on.send_replace(true);
    };
    let (answer, ()) = futures::future::join(call.into_future(), forging).await;
    assert_eq!(answer.unwrap(), 2);
    app.shutdown().await.unwrap();
}
