//! What does not fit: a configuration that differs from what is there, and messages and names that are too long. Each harms
//! itself and nothing else.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use anywire::{Client, Context, Error, ErrorKind, Failure, Ignore, Raw, Result, Router};
use anywire_conformance::rig::{Books, Seen, soon, until};
use anywire_conformance::trials;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use support::{Server, Taken, app, configured, foreign, shop};

trials![
    [support::SERVER, support::CTL] =>
    what_is_there_and_differs_stops_the_start_and_is_named,
    what_is_not_there_stops_a_start_that_may_create_nothing,
    a_wrong_address_is_told_at_once_and_without_the_password,
    a_payload_over_the_brokers_limit_is_refused_and_its_neighbours_are_confirmed,
    a_subject_that_amqp_has_no_room_for_is_refused_and_the_longest_goes_through,
    a_name_that_is_cut_names_one_queue_through_retries_and_restarts,
    a_queue_that_may_not_be_read_stops_the_start_and_nobody_else,
    a_full_queue_leaves_the_outcome_unknown_and_its_neighbours_confirmed,
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

async fn a_subject_that_amqp_has_no_room_for_is_refused_and_the_longest_goes_through() {
    let server = Server::start("").unwrap();
    let taken = Taken::default();
    let router = Router::new().on_event("shop.>", taken.handler());
    let service = app("shop", &server.url()).router(router);
    let service = service.start().await.unwrap();
    let client = service.client();
    let longest = format!("shop.{}", "x".repeat(250));
    let too_long = format!("{longest}x");
    for _ in 0..20 {
        let (emitted, asked, accepted) = tokio::join!(
            async { client.emit(&too_long, &0).await },
            async { client.request::<_, u64>(&too_long, &0).await },
            async { client.emit(&longest, &0).await },
        );
        for refused in [emitted.unwrap_err(), asked.unwrap_err()] {
            assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused:?}");
        }
        accepted.unwrap();
    }
    for message in taken.wait_for(20).await {
        assert_eq!(message.subject().as_str(), longest);
    }
    service.shutdown().await.unwrap();
}

async fn a_name_that_is_cut_names_one_queue_through_retries_and_restarts() {
    let server = Server::start("").unwrap();
    let subject = format!("shop.{}", "x".repeat(240));
    let seen = Seen::default();
    let start = async || {
        let handler = seen.handler();
        // So long a wait is not spent in the app, but in a queue that is named by this one.
        let second_time = move |number: u64, context: Context| {
            let handled = (context.attempt() > 1).then(|| handler(number));
            let later = Failure::transient("not yet").retry_after(Duration::from_secs(2));
            async move { handled.ok_or(later)?.await }
        };
        let router = Router::new().on_event(&subject, second_time);
        app(&"g".repeat(64), &server.url())
            .router(router)
            .start()
            .await
    };
    let service = start().await.unwrap();
    service.client().emit(&subject, &1).await.unwrap();
    until("the second attempt", || seen.has_all([1])).await;
    service.shutdown().await.unwrap();

    let till = Client::connect(app("till", &server.url())).await.unwrap();
    till.emit(&subject, &2).await.unwrap();
    till.close().await.unwrap();
    let service = start().await.unwrap();
    until("what was kept", || seen.has_all([2])).await;
    service.shutdown().await.unwrap();
    let names = server
        .tool()
        .run(&["--no-table-headers", "list_queues", "name"]);
    let hashed = |start: &str| {
        let of_kind = names.lines().filter(|name| name.starts_with(start));
        of_kind.filter(|name| name.contains('#')).count()
    };
    assert_eq!(
        (hashed("anywire/"), hashed("anywire~delay/")),
        (1, 1),
        "{names}"
    );
}

async fn a_queue_that_may_not_be_read_stops_the_start_and_nobody_else() {
    let server = Server::start("").unwrap();
    let tool = server.tool();
    tool.run(&["add_user", "shop", "right"]);
    let readable = "^anywire$|^anywire/.*/shop\\.placed$";
    tool.run(&["set_permissions", "shop", ".*", ".*", readable]);
    let url = format!("amqp://shop:right@{}", server.address());
    let seen = Seen::default();
    let service = shop(app("shop", &url), &seen).await;
    let refused = async |name: &str| {
        let router = Router::new()
            .on_event("shop.placed", Seen::default().handler())
            .on_event("shop.secret", Seen::default().handler());
        let starting = app(name, &url).router(router).start();
        let refused = soon("the start's end", starting).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied, "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains("shop.secret"), "{text}");
        assert!(!text.contains("shop.placed"), "{text}");
        assert!(!format!("{refused:?}").contains("right"), "{refused:?}");
    };
    let client = service.client();
    for number in 0..5 {
        let (_, accepted) = tokio::join!(refused("spy"), async {
            client.emit("shop.placed", &number).await
        });
        accepted.unwrap();
    }
    until("the others", || seen.has_all(0..5)).await;
    assert!(service.health().is_ok());
    service.shutdown().await.unwrap();
}

async fn a_full_queue_leaves_the_outcome_unknown_and_its_neighbours_confirmed() {
    /// How many messages it takes, by its arguments; and how many a handler holds.
    const LENGTH: u64 = 10;
    let server = Server::start("").unwrap();
    let section = "[transports.main.rabbitmq.arguments]\nx-overflow = 'reject-publish'";
    let config = format!(
        "url = {:?}\n{section}\nx-max-length = {LENGTH}",
        server.url()
    );
    let full = configured("archive", &config).router(
        Router::new().on_event("shop.archived", async |_: Ignore| -> Result<()> { Ok(()) }),
    );
    // Nobody takes anything from it while it fills.
    full.start().await.unwrap().shutdown().await.unwrap();
    let books = Books::default();
    let auditor = app("audit", &server.url())
        .router(Router::new().on_event("shop.archived", books.handler()));
    let auditor = auditor.start().await.unwrap();
    let seen = Seen::default();
    let service = shop(app("shop", &server.url()), &seen).await;
    let client = service.client();
    let timeout = Duration::from_millis(300);
    for number in 0..40 {
        let (_, placed) = tokio::join!(books.emit(&client, "shop.archived", timeout), async {
            client.emit("shop.placed", &number).await
        },);
        placed.unwrap();
    }
    // The other group has it, so nobody may say that it was refused.
    let balance = books.balance();
    assert!(balance.unknown >= 20, "{balance:?}");
    until("the other group", || books.balance().handled == 40).await;
    books.assert_true();
    until("the neighbours", || seen.has_all(0..40)).await;
    assert!(service.health().is_ok());
    service.shutdown().await.unwrap();
    auditor.shutdown().await.unwrap();
}
