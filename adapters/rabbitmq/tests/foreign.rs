//! What programs that know nothing of anywire send: it is delivered, or becomes a dead letter, and harms nobody else.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use anywire::{Headers, Raw, Result, Router, Subject};
use anywire_conformance::rig::{Seen, dead_letters, soon, until};
use anywire_conformance::trials;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, DecimalValue, FieldTable, ShortString};
use parking_lot::Mutex;
use support::bytes::Publisher;
use support::{Server, Taken, app, foreign, shop};

trials![
    [support::SERVER, support::CTL] =>
    any_header_that_a_foreign_program_sends_is_delivered,
    any_routing_key_of_a_foreign_program_is_delivered,
    names_that_are_not_text_harm_nobody,
    an_empty_payload_is_delivered,
    a_foreign_message_that_cannot_be_read_becomes_a_dead_letter_with_its_reason,
    a_call_that_wants_its_reply_elsewhere_is_not_answered,
];

/// Publishes as who knows nothing of us: a body, and nothing else.
async fn publish_plain(channel: &lapin::Channel, key: &str, body: &[u8]) {
    let sent = channel.basic_publish(
        "anywire".into(),
        key.into(),
        BasicPublishOptions::default(),
        body,
        BasicProperties::default(),
    );
    sent.await.unwrap().await.unwrap();
}

async fn any_header_that_a_foreign_program_sends_is_delivered() {
    let server = Server::start("").unwrap();
    let seen: Arc<Mutex<Vec<Headers>>> = Arc::default();
    let handled = Arc::clone(&seen);
    let router = Router::new().on_event("shop.placed", move |_: Raw, headers: Headers| {
        handled.lock().push(headers);
        std::future::ready(Ok::<_, anywire::Failure>(()))
    });
    let service = app("shop", &server.url()).router(router);
    let service = service.start().await.unwrap();
    let one = |name: &str, value| -> FieldTable {
        let fields: BTreeMap<ShortString, AMQPValue> = [(name.into(), value)].into_iter().collect();
        fields.into()
    };
    let decimal = DecimalValue { scale: 2, value: 7 };
    let values = [
        AMQPValue::Boolean(true),
        AMQPValue::ShortShortInt(-1),
        AMQPValue::ShortShortUInt(1),
        AMQPValue::ShortInt(-1),
        AMQPValue::ShortUInt(1),
        AMQPValue::LongInt(-1),
        AMQPValue::LongUInt(1),
        AMQPValue::LongLongInt(-1),
        AMQPValue::Float(0.5),
        AMQPValue::Double(0.5),
        AMQPValue::DecimalValue(decimal),
        AMQPValue::LongString("text".into()),
        AMQPValue::LongString(vec![0xff, 0x00].into()),
        AMQPValue::ByteArray(vec![0xff, 0x00].into()),
        AMQPValue::FieldArray(vec![AMQPValue::Void, AMQPValue::Boolean(false)].into()),
        AMQPValue::FieldTable(one("inner", AMQPValue::LongInt(1))),
        AMQPValue::Timestamp(u64::MAX),
        AMQPValue::Void,
    ];
    let native = foreign(&server.url()).await;
    let channel = native.create_channel().await.unwrap();
    for value in &values {
        let properties = BasicProperties::default()
            .with_headers(one("odd", value.clone()))
            .with_timestamp(u64::MAX)
            .with_reply_to("anywhere".into());
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish(
            "anywire".into(),
            "shop.placed".into(),
            options,
            b"",
            properties,
        );
        sent.await.unwrap();
    }
    until("all of them", || seen.lock().len() == values.len()).await;
    assert!(seen.lock().iter().all(|headers| headers.contains("odd")));
    service.shutdown().await.unwrap();
}

async fn any_routing_key_of_a_foreign_program_is_delivered() {
    let server = Server::start("").unwrap();
    let taken = Taken::default();
    let router = Router::new().on_event("shop.>", taken.handler());
    let service = app("shop", &server.url()).router(router);
    let service = service.start().await.unwrap();
    let native = foreign(&server.url()).await;
    let channel = native.create_channel().await.unwrap();
    // Escaped they are longer than a subject may be.
    let odd = format!("shop.{}", "\u{20ac}".repeat(83));
    let empty = format!("shop.{}", ".".repeat(250));
    let keys = [
        odd.as_str(),
        empty.as_str(),
        "shop..placed",
        "shop.a b",
        "shop.*",
        "shop.>",
        "shop.#",
        "shop.\0",
        "shop.=",
    ];
    for key in keys {
        publish_plain(&channel, key, b"1").await;
    }
    for message in taken.wait_for(keys.len()).await {
        let subject = message.subject().as_str();
        assert!(Subject::parse(subject).is_ok(), "{subject}");
    }
    service.shutdown().await.unwrap();
}

/// The library ends its connection over them, and they would come again with the next one, for ever.
async fn names_that_are_not_text_harm_nobody() {
    let server = Server::start("").unwrap();
    let seen: Arc<Mutex<Vec<(Subject, Headers)>>> = Arc::default();
    let handled = Arc::clone(&seen);
    let router = Router::new().on_event(
        "shop.*",
        move |_: Raw, subject: Subject, headers: Headers| {
            handled.lock().push((subject, headers));
            std::future::ready(Ok::<_, anywire::Failure>(()))
        },
    );
    let service = app("shop", &server.url()).router(router);
    let service = service.start().await.unwrap();
    let mut status = service.client().transport("main").unwrap().status();
    status.mark_unchanged();
    let address = server.address();
    let publishing = tokio::task::spawn_blocking(move || {
        let mut publisher = Publisher::connect(address)?;
        publisher.publish(b"shop.\xff\xfe", b"", b"1")?;
        publisher.publish(b"shop.named", b"\x04na\xc3\xffS\x00\x00\x00\x01x", b"2")?;
        publisher.publish(b"shop.plain", b"", b"3")?;
        publisher.close()
    });
    publishing.await.unwrap().unwrap();
    until("all of them", || seen.lock().len() == 3).await;
    let seen = std::mem::take(&mut *seen.lock());
    // As every token that is none of ours: escaped.
    assert_eq!(seen[0].0.as_str(), "shop.=3F=3F");
    assert!(seen[1].1.contains("na??"), "{:?}", seen[1].1);
    assert_eq!(seen[2].0.as_str(), "shop.plain");
    assert!(!status.has_changed().unwrap(), "the connection was lost");
    service.shutdown().await.unwrap();
}

async fn an_empty_payload_is_delivered() {
    let server = Server::start("").unwrap();
    let taken = Taken::default();
    let router = Router::new().on_event("shop.placed", taken.handler());
    let service = app("shop", &server.url()).router(router);
    let service = service.start().await.unwrap();
    let native = foreign(&server.url()).await;
    let channel = native.create_channel().await.unwrap();
    publish_plain(&channel, "shop.placed", b"").await;
    let ours = service.client();
    ours.emit("shop.placed", &Raw(bytes::Bytes::new()))
        .await
        .unwrap();
    let taken = taken.wait_for(2).await;
    assert!(taken.iter().all(|message| message.payload().is_empty()));
    service.shutdown().await.unwrap();
}

async fn a_foreign_message_that_cannot_be_read_becomes_a_dead_letter_with_its_reason() {
    let server = Server::start("").unwrap();
    let seen = Seen::default();
    let service = shop(app("shop", &server.url()), &seen).await;
    let mut letters = dead_letters(&service.client(), "shop").await.unwrap();
    let native = foreign(&server.url()).await;
    let channel = native.create_channel().await.unwrap();
    let bodies: [&[u8]; 5] = [
        b"",
        b"plain text",
        b"{\"not\": \"closed",
        b"\xff\x00",
        b"-1",
    ];
    for (number, body) in bodies.iter().enumerate() {
        publish_plain(&channel, "shop.placed", body).await;
        let neighbour = number.to_string();
        publish_plain(&channel, "shop.placed", neighbour.as_bytes()).await;
    }
    let (mut left, mut letters_read) = (bodies.to_vec(), 0);
    while !left.is_empty() {
        let letter = soon("a dead letter", letters.next()).await;
        let letter = letter.unwrap().unwrap();
        left.retain(|body| letter.message().payload() != body);
        let trail = letter.message().trail().unwrap();
        assert_eq!(trail.attempt, 1, "what cannot be read was tried again");
        assert_eq!(trail.subject.as_str(), "shop.placed");
        let why = trail.error.as_deref().unwrap_or_default();
        assert!(why.contains("payload"), "{why}");
        letter.ack().await.unwrap();
        letters_read += 1;
    }
    assert_eq!(letters_read, bodies.len());
    until("the neighbours", || seen.has_all(0..5)).await;
    assert_eq!(seen.count(), 5);
    service.shutdown().await.unwrap();
}

async fn a_call_that_wants_its_reply_elsewhere_is_not_answered() {
    let server = Server::start("").unwrap();
    let router = Router::new().on_call("math.double", async |number: u64| -> Result<u64> {
        Ok(number * 2)
    });
    let service = app("math", &server.url()).router(router);
    let service = service.start().await.unwrap();
    let native = foreign(&server.url()).await;
    let channel = native.create_channel().await.unwrap();
    let victim = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare("victim".into(), victim, FieldTable::default())
        .await
        .unwrap();
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .unwrap();
    let properties = BasicProperties::default().with_reply_to("victim".into());
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish(
        "anywire~calls".into(),
        "math.double".into(),
        options,
        b"1",
        properties,
    );
    sent.await.unwrap().await.unwrap();
    // Calls of one pattern are answered in turn: this one came behind.
    let answer = service.client();
    let answer = answer.request::<_, u64>("math.double", &21);
    assert_eq!(soon("an answer", async { answer.await }).await.unwrap(), 42);
    let found = channel
        .basic_get("victim".into(), lapin::options::BasicGetOptions::default())
        .await
        .unwrap();
    assert!(found.is_none(), "it was answered");
    service.shutdown().await.unwrap();
}
