//! What does not fit: a configuration that differs from what is there, and messages that are odd or too large. Each harms
//! itself and nothing else.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anywire::{Error, ErrorKind, Headers, Ignore, Raw, Result, Router};
use anywire_conformance::rig::{Seen, soon, until};
use anywire_conformance::trials;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, DecimalValue, FieldTable, ShortString};
use lapin::{BasicProperties, ExchangeKind};
use parking_lot::Mutex;
use support::{Server, app, configured, foreign, shop};

trials![
    [support::SERVER, support::CTL] =>
    what_is_there_and_differs_stops_the_start_and_is_named,
    what_is_not_there_stops_a_start_that_may_create_nothing,
    a_wrong_address_is_told_at_once_and_without_the_password,
    any_header_that_a_foreign_program_sends_is_delivered,
    a_payload_over_the_brokers_limit_is_refused_and_its_neighbours_are_confirmed,
    a_call_that_wants_its_reply_elsewhere_is_not_answered,
];

async fn refused(name: &str, config: &str) -> Error {
    let router = Router::new().on_event("shop.placed", async |_: Ignore| -> Result<()> { Ok(()) });
    let starting = configured(name, config).router(router).start();
    let started = tokio::time::timeout(Duration::from_secs(10), starting).await;
    started.expect("at once").unwrap_err()
}

async fn what_is_there_and_differs_stops_the_start_and_is_named() {
    let server = Server::start("").unwrap();
    let url = server.url();
    let native = foreign(&url).await;
    let channel = native.create_channel().await.unwrap();
    let options = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let other = channel.exchange_declare(
        "other".into(),
        ExchangeKind::Fanout,
        options,
        FieldTable::default(),
    );
    other.await.unwrap();
    let section = "[transports.main.rabbitmq]\nexchange = 'other'";
    let error = refused("shop", &format!("url = {url:?}\n{section}")).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("`type` differs"), "{error}");

    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let queue = "anywire/shop/shop.placed";
    let classic = channel.queue_declare(queue.into(), options, FieldTable::default());
    classic.await.unwrap();
    for provision in ["", "provision = 'verify'"] {
        if !provision.is_empty() {
            // What else there must be is there.
            let other = app("other", &url).router(
                Router::new().on_event("shop.placed", async |_: Ignore| -> Result<()> { Ok(()) }),
            );
            other.start().await.unwrap().shutdown().await.unwrap();
            let options = QueueDeclareOptions {
                durable: true,
                ..QueueDeclareOptions::default()
            };
            let dead =
                channel.queue_declare("anywire.dead.shop".into(), options, FieldTable::default());
            let _ = dead.await;
        }
        let error = refused("shop", &format!("url = {url:?}\n{provision}")).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains("` differs"), "{error}");
    }
}

async fn what_is_not_there_stops_a_start_that_may_create_nothing() {
    let server = Server::start("").unwrap();
    for provision in ["verify", "none"] {
        let config = format!("url = {:?}\nprovision = {provision:?}", server.url());
        let error = refused("shop", &config).await;
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    }
}

async fn a_wrong_address_is_told_at_once_and_without_the_password() {
    let server = Server::start("").unwrap();
    let address = server.address();
    for (url, kind, name) in [
        (
            format!("amqp://guest:guest@{address}/nowhere"),
            ErrorKind::Config,
            "nowhere",
        ),
        (
            format!("amqp://guest:hunter2@{address}"),
            ErrorKind::Denied,
            "credentials",
        ),
        (
            format!("amqps://guest:hunter2@{address}"),
            ErrorKind::Config,
            "TLS",
        ),
    ] {
        let error = refused("shop", &format!("url = {url:?}")).await;
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
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

async fn a_payload_over_the_brokers_limit_is_refused_and_its_neighbours_are_confirmed() {
    let server = Server::start("max_message_size = 1000000").unwrap();
    let seen = Seen::default();
    let service = shop(app("shop", &server.url()), &seen).await;
    let client = service.client();
    let large = vec![0_u8; 2_000_000];
    for number in 0..20 {
        let (refused, accepted) = tokio::join!(
            async { client.emit("shop.large", &Raw(large.clone().into())).await },
            async { client.emit("shop.placed", &number).await },
        );
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused:?}");
        accepted.unwrap();
    }
    until("the neighbours", || seen.has_all(0..20)).await;
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
