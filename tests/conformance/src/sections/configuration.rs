//! CFG: configuration decides, and what is wrong with it is found before anything runs.

use anywire::{
    Context, Error, ErrorKind, Failure, Ignore, Message, Order, Provision, Route, Router,
};

use crate::behaviour::behaviours;
use crate::{Sabotage, Test, assert_intact};

behaviours! {
    cfg02_a_need_that_the_wire_lacks_stops_the_start: [AtLeastOnce],
    cfg03_an_unknown_key_is_an_error_and_tells_the_nearest: [],
    cfg03_a_secret_stays_out_of_errors: [],
    cfg03_an_unknown_scheme_tells_the_known_ones: [],
    cfg04_creating_what_is_there_is_fine: [],
    cfg04_verifying_what_is_missing_fails: [AtLeastOnce, Groups],
    cfg05_a_bridge_keeps_what_it_carries: [],
    cfg06_a_section_for_another_wire_is_ignored: [],
    cfg07_operations_beat_code: [AtLeastOnce],
}

/// Each need, one sentence that names handler, need and transport. Nothing is downgraded in silence.
pub async fn cfg02_a_need_that_the_wire_lacks_stops_the_start(test: &Test) {
    let poor = Sabotage::default();
    poor.deny_capabilities();
    let event = |tail: &str| {
        let route = Route::event(test.pattern(tail), async |_: Ignore| Ok::<(), Failure>(()));
        // Retries in place alone, so that each handler below has one need.
        route.retry([]).name("needy")
    };
    let call = Route::call(test.pattern("ask"), async |_: Ignore| Ok::<u32, Failure>(1));
    let needs = [
        ("key-in-group", event("events").order(Order::KeyInGroup)),
        ("wildcards", event("events.*")),
        ("calls", call.name("needy")),
        (
            "retries",
            event("events").retry([std::time::Duration::from_secs(5)]),
        ),
    ];
    for (need, route) in needs {
        let app = test
            .sabotaged_app("app", &poor)
            .router(Router::new().route(route));
        let error = app.start().await.expect_err("the start is refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        let sentence = error.to_string();
        for part in [need, "needy", "main"] {
            assert!(
                sentence.contains(part),
                "{part:?} is missing in {sentence:?}"
            );
        }
    }
    let modest = test
        .sabotaged_app("app", &poor)
        .router(Router::new().route(event("events")));
    modest
        .check()
        .expect("a handler without such needs may start");
}

/// A typing error is not a setting that is silently not there.
pub async fn cfg03_an_unknown_key_is_an_error_and_tells_the_nearest(test: &Test) {
    let error = refused(test, "[defaults]\nconcurency = 3");
    assert!(
        error.contains("concurency") && error.contains("concurrency"),
        "{error}"
    );
    let error = refused(test, "grase = \"1s\"");
    assert!(
        error.contains("grase") && error.contains("grace"),
        "{error}"
    );
    let error = refused(test, "[handlers.nobody]\nconcurrency = 3");
    assert!(error.contains("nobody"), "{error}");
    let error = refused(test, "[defaults]\nconcurrency = \"many\"");
    assert!(error.contains("concurrency"), "{error}");
}

/// Neither the password nor the URL that holds it is in what is printed.
pub async fn cfg03_a_secret_stays_out_of_errors(test: &Test) {
    let wrong = "[transports.main]\nurl = \"nowire://user:canary@host:1\"\npassword = \"canary\"";
    let app = test.app("app").force(wrong);
    let shown = format!("{app:?}");
    let error = app.check().expect_err("there is no such wire");
    for text in [format!("{error:?}"), error.to_string(), shown] {
        assert!(!text.contains("canary"), "{text}");
    }
}

/// The error is for the person on call.
pub async fn cfg03_an_unknown_scheme_tells_the_known_ones(test: &Test) {
    let app = test.app("app").url("nowire://host:1");
    let error = app.check().expect_err("there is no such wire");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    let sentence = error.to_string();
    for scheme in test
        .harness()
        .adapter()
        .schemes()
        .iter()
        .chain(&["nowire", "memory"])
    {
        assert!(
            sentence.contains(scheme),
            "{scheme:?} is missing in {sentence:?}"
        );
    }
}

/// Starting is idempotent: twice, at the same time and again, on the same objects.
pub async fn cfg04_creating_what_is_there_is_fine(test: &Test) {
    let (one, two) = (test.connect().await, test.connect().await);
    let spec = || {
        test.spec("group", "events.*")
            .with_provision(Provision::Create)
    };
    let (first, second) = futures::future::join(one.subscribe(spec()), two.subscribe(spec())).await;
    drop((first, second));
    let mut again = one.subscribe(spec()).await;
    two.send(test.message("events.x", "body")).await;
    again.next().await.ack().await;
}

/// `verify` creates nothing, and is content once somebody else has.
pub async fn cfg04_verifying_what_is_missing_fails(test: &Test) {
    let client = test.connect().await;
    let spec = || test.spec("group", "events.*");
    let opened = client
        .try_subscribe(spec().with_provision(Provision::Verify))
        .await;
    let error = opened.expect_err("nobody has created it");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let stored = client
        .transport()
        .subscriber()
        .stored(&test.group("group"))
        .await;
    assert_eq!(
        stored.expect("the wire answers"),
        [],
        "verifying has created it"
    );
    let _creates = client
        .subscribe(spec().with_provision(Provision::Create))
        .await;
    client
        .subscribe(spec().with_provision(Provision::Verify))
        .await;
}

/// From the wire under test to memory: id, headers, key and content type are what they were.
pub async fn cfg05_a_bridge_keeps_what_it_carries(test: &Test) {
    let (tell, mut arrived) = test.sightings::<Message>();
    let far = test.subject("far");
    let crosses = move |message: Message, context: Context| {
        let far = far.clone();
        async move {
            let forwarded = message.with_subject(far);
            context.client().forward(forwarded).await?;
            Ok::<(), Failure>(())
        }
    };
    let receives = move |message: Message| {
        let tell = tell.clone();
        async move { tell.tell(message).await }
    };
    let router = Router::new()
        .route(Route::event(test.pattern("near"), crosses).name("bridge"))
        .route(Route::event(test.pattern("far"), receives).name("receiver"));
    let two_wires = format!(
        "[transports.other]\nurl = \"memory://\"\n[[subjects]]\nmatch = \"{}\"\ntransport = \"other\"",
        test.pattern("far")
    );
    let app = test
        .app("app")
        .force(two_wires)
        .router(router)
        .start()
        .await
        .expect("the app starts");
    let message = test
        .message("near", vec![1, 2, 3])
        .with_key("key")
        .with_headers(test.headers(&[("tag", "b"), ("tag", "a")]))
        .with_content_type(anywire::ContentType::CBOR);
    app.client()
        .forward(message.clone())
        .await
        .expect("accepted");
    let expected = message.with_subject(test.subject("far"));
    assert_intact(&expected, &arrived.next().await);
    arrived.stay_quiet().await;
    app.shutdown().await.expect("it stops");
}

/// What only another broker understands does not hinder this one.
pub async fn cfg06_a_section_for_another_wire_is_ignored(test: &Test) {
    let schemes = test.harness().adapter().schemes();
    let other = ["kafka", "nats"]
        .into_iter()
        .find(|other| !schemes.contains(other));
    let section = format!(
        "[transports.main.{}]\nlinger = \"5ms\"",
        other.expect("one of two")
    );
    let route = Route::event(test.pattern("events"), async |_: Ignore| {
        Ok::<(), Failure>(())
    });
    let router = Router::new().route(route.name("handler"));
    let app = test.app("app").force(section).router(router).start().await;
    app.expect("the app starts")
        .shutdown()
        .await
        .expect("it stops");
}

/// A handler's setting in the configuration takes the place of the one in code.
pub async fn cfg07_operations_beat_code(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let fails = move |_: Ignore, context: Context| {
        let tell = tell.clone();
        async move {
            tell.tell(context.attempt()).await?;
            Err::<(), _>(Failure::transient("never"))
        }
    };
    let route = Route::event(test.pattern("events"), fails)
        .name("fails")
        .retry([]);
    let app = test
        .app("app")
        .force("[handlers.fails]\nretry = [\"10ms\", \"10ms\"]");
    let app = app
        .router(Router::new().route(route))
        .start()
        .await
        .expect("the app starts");
    app.client()
        .emit(test.subject("events"), &1)
        .await
        .expect("accepted");
    assert_eq!(seen.take(3).await, [1, 2, 3]);
    seen.stay_quiet().await;
    app.shutdown().await.expect("it stops");
}

/// What the check of an app with this configuration says.
fn refused(test: &Test, toml: &str) -> String {
    let error: Error = match test.app("app").force(toml).check() {
        Err(error) => error,
        Ok(()) => panic!("{toml:?} was taken"),
    };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    error.to_string()
}
