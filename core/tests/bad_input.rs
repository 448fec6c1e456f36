//! Bad input: whatever comes in, at worst its own message is refused.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anywire::clock::{Clock, ManualClock};
use anywire::config::TransportConfig;
use anywire::memory::{self, MemoryBroker, MemoryConfig};
use anywire::pattern::request_reply::{CallSpec, Reply};
use anywire::pattern::{Batch, Tag, pull_calls};
use anywire::testing::TestApp;
use anywire::transport::{Adapter, Transport};
use anywire::{
    App, Bytes, Call, ContentType, Context, ErrorKind, Event, Failure, FromDelivery, Headers,
    Ignore, Message, Param, Parts, Raw, RemoteError, Result, Route, Router, Subject, wire,
};
use common::{app_on, settle, until};
use futures::FutureExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    id: u32,
}

const PLACED: Event<u32> = Event::new("shop.{region}.placed");
const DOUBLE: Call<u32, u32> = Call::new("math.double");

async fn order(_: Order) -> Result<()> {
    Ok(())
}

async fn double(number: u32) -> Result<u32> {
    Ok(number * 2)
}

async fn ignore(_: Ignore) -> Result<()> {
    Ok(())
}

fn app(router: Router) -> App {
    App::new("shop").router(router)
}

#[tokio::test]
async fn undecodable_events_are_dead_letters_with_their_raw_bytes_and_type() {
    let test = TestApp::start(app(Router::new().on_event("a.b", order)))
        .await
        .unwrap();
    for bytes in [&b"\xff\xfe{"[..], b"", b"{\"id\":\"x\"}", b"[[[[[[[["] {
        let raw = Raw(Bytes::copy_from_slice(bytes));
        let sent =
            test.emit_with(|client| client.emit("a.b", &raw).content_type(ContentType::JSON));
        sent.await.unwrap();
        let dead = test.dead_letters("shop").pop().unwrap();
        assert_eq!(dead.payload().as_ref(), bytes);
        assert_eq!(dead.content_type(), Some(&ContentType::JSON));
        let error = dead.trail().unwrap().error.clone().unwrap();
        assert!(error.contains("undecodable"), "{error}");
    }
    assert_eq!((test.handled("order"), test.dead_lettered("order")), (0, 4));
    assert_eq!(test.retried("order"), 0, "trying again is no use");
}

#[tokio::test]
async fn an_unknown_content_type_is_a_dead_letter_that_names_it() {
    let test = TestApp::start(app(Router::new().on_event("a.b", order)))
        .await
        .unwrap();
    let xml = Raw("<order/>".into());
    let sent = test.emit_with(|client| {
        client
            .emit("a.b", &xml)
            .content_type(ContentType::new("text/xml"))
    });
    sent.await.unwrap();
    let dead = test.dead_letters("shop").pop().unwrap();
    assert!(
        dead.trail()
            .unwrap()
            .error
            .as_ref()
            .unwrap()
            .contains("text/xml")
    );
}

#[tokio::test]
async fn an_undecodable_call_is_answered_so_and_the_next_one_is_answered() {
    let test = TestApp::start(app(Router::new().on_call(DOUBLE, double)))
        .await
        .unwrap();
    let client = test.client();
    let error = client
        .request::<_, u32>("math.double", "x")
        .await
        .unwrap_err();
    assert_eq!(
        error.as_remote().unwrap().code(),
        RemoteError::INVALID_PAYLOAD
    );
    assert_eq!(client.request(DOUBLE, &4).await.unwrap(), 8);
}

#[tokio::test]
async fn hostile_subjects_are_refused_and_a_value_never_steers() {
    let test = TestApp::start(app(Router::new().on_event(">", ignore)))
        .await
        .unwrap();
    let client = test.client();
    let long = "a.".repeat(10_000) + "a";
    for subject in [
        "a\r\nb",
        "a\0b",
        "a.*",
        "a.>",
        "",
        "a..b",
        "a b",
        "anywire.dead.shop",
        "$SYS.x",
        "_INBOX.x",
        &long,
    ] {
        let error = client.emit(subject, &1).await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Config | ErrorKind::TooLarge),
            "{subject:?}"
        );
        assert!(!error.to_string().contains(['\r', '\n', '\0']), "{error}");
        assert!(error.to_string().len() < 1_000);
        assert!(client.request::<_, u32>(subject, &1).await.is_err());
    }
    for hostile in [
        "eu.*",
        ">",
        "a\r\nb",
        "a\0",
        "anywire.dead.shop",
        "",
        "{region}",
    ] {
        let seen = test.emitted::<u32>("*.*.placed").len();
        test.emit(PLACED.with("region", hostile), &1).await.unwrap();
        assert_eq!(
            test.emitted::<u32>("*.*.placed").len(),
            seen + 1,
            "{hostile:?}"
        );
    }
    assert!(client.emit(PLACED, &1).await.is_err(), "an open capture");
    assert!(
        client
            .emit(PLACED.with("region", "x".repeat(10_000)), &1)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn hostile_headers_ids_and_keys_are_refused() {
    let test = TestApp::start(app(Router::new().on_event("a.b", ignore)))
        .await
        .unwrap();
    let client = test.client();
    let long = "x".repeat(65);
    for name in [
        "",
        "a b",
        "a\r\nb",
        "a:b",
        "ä",
        "a\0",
        &long,
        "anywire-attempt",
        "Anywire-Id",
        "ANYWIRE-SUBJECT",
    ] {
        let error = client.emit("a.b", &1).header(name, "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{name:?}");
        assert!(!error.to_string().contains(['\r', '\n', '\0']), "{error}");
        let refused = client.request::<_, u32>("a.b", &1).header(name, "x").await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Config);
    }
    let large = client.emit("a.b", &1).header("large", "x".repeat(17_000));
    assert_eq!(large.await.unwrap_err().kind(), ErrorKind::TooLarge);
    let many = (0..65).fold(client.emit("a.b", &1), |emit, _| emit.header("many", "x"));
    assert_eq!(many.await.unwrap_err().kind(), ErrorKind::TooLarge);
    let long = "x".repeat(256);
    for id in ["", "a\r\nb", "a\0", &long] {
        let error = client.emit("a.b", &1).id(id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{id:?}");
        let error = client.emit("a.b", &1).correlation_id(id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{id:?}");
    }
    let key = client.emit("a.b", &1).key("x".repeat(1_025));
    assert_eq!(key.await.unwrap_err().kind(), ErrorKind::TooLarge);
    test.emit("a.b", &1).await.unwrap();
    assert_eq!(test.handled("ignore"), 1);
}

#[tokio::test]
async fn header_values_may_be_any_bytes_and_arrive_as_they_are() {
    let seen: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let note = move |_: Ignore, headers: Headers| {
        noted.lock().extend(headers.get("odd").cloned());
        std::future::ready(Ok::<(), Failure>(()))
    };
    let test = TestApp::start(app(Router::new().on_event("a.b", note)))
        .await
        .unwrap();
    let odd: &[u8] = b"a\r\nX-Injected: b\0\xff";
    test.emit_with(|client| client.emit("a.b", &1).header("odd", odd))
        .await
        .unwrap();
    assert_eq!(*seen.lock(), [odd]);
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_by_name_and_the_next_one_goes_through() {
    let clock = ManualClock::new();
    let broker = MemoryBroker::with_config(MemoryConfig::default().with_max_payload(100));
    let large = |size: usize| async move { Ok::<String, Failure>("x".repeat(size)) };
    let details = |_: Ignore| async {
        Err::<u32, _>(
            Failure::permanent("no")
                .with_code("no")
                .with_details("x".repeat(200)),
        )
    };
    let router = Router::new()
        .on_event("a.b", ignore)
        .on_call("text.of", large)
        .on_call("text.never", details);
    let app = app_on(&broker, &clock, router).start().await.unwrap();
    let client = app.client();
    let error = client.emit("a.b", &"x".repeat(200)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("max_payload"), "{error}");
    client.emit("a.b", "x").await.unwrap();
    let error = client
        .request::<_, u32>("text.of", &"x".repeat(200))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    // A reply that is too large must not leave its caller waiting.
    let error = client
        .request::<_, String>("text.of", &200)
        .await
        .unwrap_err();
    assert_eq!(error.as_remote().unwrap().code(), RemoteError::TOO_LARGE);
    let error = client
        .request::<_, u32>("text.never", &1)
        .await
        .unwrap_err();
    assert_eq!(
        (
            error.as_remote().unwrap().code(),
            error.remote_as::<String>()
        ),
        ("no", None)
    );
    assert_eq!(
        client.request::<_, String>("text.of", &2).await.unwrap(),
        "xx"
    );
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn forged_framework_fields_do_not_get_past_a_client() {
    type Seen = Vec<(u32, Option<u32>, usize)>;
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let noted = Arc::clone(&seen);
    let note = move |message: Message, context: Context| {
        let trail = message.trail().map(|trail| trail.attempt);
        noted
            .lock()
            .push((context.attempt(), trail, message.headers().len()));
        assert_eq!(
            (message.reply_to(), message.error_code(), message.deadline()),
            (None, None, None)
        );
        std::future::ready(Ok::<(), Failure>(()))
    };
    let test = TestApp::start(app(Router::new().on_event("a.b", note)))
        .await
        .unwrap();
    let mut message = Message::new(Subject::parse("a.b").unwrap(), "1")
        .with_reply_to("shop.other")
        .with_error_code("x")
        .with_deadline(Duration::MAX);
    assert!(wire::read(&mut message, wire::ATTEMPT, b"4294967295"));
    let mut headers = Headers::new();
    headers.append_foreign("Anywire-Attempt", Bytes::from_static(b"7"));
    headers.append_foreign("tenant", Bytes::from_static(b"blue"));
    let message = message.with_headers(headers);
    test.emit_with(|client| client.forward(message))
        .await
        .unwrap();
    assert_eq!(*seen.lock(), [(1, None, 1)]);
}

async fn connect(broker: &MemoryBroker) -> Arc<dyn Transport> {
    let config = TransportConfig::bare("main", "shop", "memory");
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new());
    memory::adapter_on(broker)
        .connect(config, clock)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_reply_goes_to_its_caller_whatever_address_the_request_names() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let hits = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&hits);
    let victim = move |_: Ignore| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok::<(), Failure>(()))
    };
    let router = Router::new()
        .on_event("shop.victim", victim)
        .on_call(DOUBLE, double);
    let app = app_on(&broker, &clock, router).start().await.unwrap();
    let wire = connect(&broker).await;
    let request =
        Message::new(Subject::parse("math.double").unwrap(), "4").with_reply_to("shop.victim");
    let reply = wire
        .requester()
        .unwrap()
        .request(request, clock.now() + Duration::from_secs(5))
        .wait()
        .await
        .unwrap();
    assert_eq!(reply.payload().as_ref(), b"8");
    settle().await;
    assert_eq!(hits.load(Ordering::Relaxed), 0);
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn replies_that_nobody_asked_for_are_refused_and_reach_nobody() {
    let broker = MemoryBroker::new();
    let wire = connect(&broker).await;
    let spec = CallSpec::new("math.double".parse().unwrap());
    let mut served = wire.responder().unwrap().serve(&[spec]).await;
    let mut calls = served.remove(0).unwrap();
    let request = Message::new(Subject::parse("math.double").unwrap(), "4");
    let deadline = ManualClock::new().now() + Duration::from_secs(60);
    let requester = wire.requester().unwrap();
    let mut call = Box::pin(requester.request(request.clone(), deadline).wait());
    assert!(call.as_mut().now_or_never().is_none());
    let mut batch = Batch::new(8);
    pull_calls(&mut *calls, &mut batch).await.unwrap();
    let real = batch.drain().next().unwrap().tag;
    let replier = calls.replier();
    let reply = |tag: Tag, text: &'static str| Reply {
        tag,
        reply_to: None,
        correlation_id: None,
        message: Message::new(Subject::parse("math.double").unwrap(), text),
    };
    for forged in [
        Tag {
            slot: real.slot,
            epoch: real.epoch + 1,
        },
        Tag {
            slot: real.slot + 7,
            epoch: real.epoch,
        },
        Tag {
            slot: u64::MAX,
            epoch: u64::MAX,
        },
    ] {
        let refused = replier
            .reply(reply(forged, "forged"))
            .wait()
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Stale);
        assert!(call.as_mut().now_or_never().is_none());
    }
    replier.reply(reply(real, "true")).wait().await.unwrap();
    assert_eq!(
        replier
            .reply(reply(real, "twice"))
            .wait()
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Stale
    );
    assert_eq!(call.await.unwrap().payload().as_ref(), b"true");
}

struct PanicsWhenTaken;

impl FromDelivery for PanicsWhenTaken {
    fn from_delivery(_: &mut Parts<'_>) -> Result<Self> {
        panic!("taken")
    }
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped")
        }
    }
}

struct PanicsWhenRead;

impl<'de> Deserialize<'de> for PanicsWhenRead {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("read")
    }
}

async fn panics_when_called(_: Ignore) -> Result<()> {
    tokio::task::yield_now().await;
    panic!("polled later")
}

#[tokio::test]
async fn a_panic_anywhere_in_a_handler_is_a_failed_attempt_and_the_service_goes_on() {
    let at_once = |_: Ignore| -> std::future::Ready<Result<()>> { panic!("called") };
    let router = Router::new()
        .route(Route::event("p.call", at_once).retry([]))
        .route(Route::event("p.poll", panics_when_called).retry([]))
        .route(
            Route::event("p.take", |_: Ignore, _: PanicsWhenTaken| async {
                Ok::<(), Failure>(())
            })
            .retry([]),
        )
        .route(
            Route::event("p.read", |_: PanicsWhenRead| async {
                Ok::<(), Failure>(())
            })
            .retry([]),
        )
        .on_event("a.b", ignore);
    let test = TestApp::start(app(router)).await.unwrap();
    for subject in ["p.call", "p.poll", "p.take", "p.read"] {
        for _ in 0..2 {
            test.emit(subject, &1).await.unwrap();
        }
        let error = test
            .dead_letters("shop")
            .pop()
            .unwrap()
            .trail()
            .unwrap()
            .error
            .clone()
            .unwrap();
        assert!(error.contains("panicked"), "{subject}: {error}");
    }
    assert_eq!(test.dead_letters("shop").len(), 8);
    test.emit("a.b", &1).await.unwrap();
    assert!(test.app().health().is_ok());
    test.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_panic_in_a_call_is_internal_and_tells_nothing() {
    let panics = |_: Ignore| async {
        if true {
            panic!("hunter2")
        } else {
            Ok::<u32, Failure>(1)
        }
    };
    let test = TestApp::start(app(Router::new().on_call("p.call", panics)))
        .await
        .unwrap();
    let error = test
        .client()
        .request::<_, u32>("p.call", &1)
        .await
        .unwrap_err();
    assert_eq!(error.as_remote().unwrap().code(), RemoteError::INTERNAL);
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_handler_that_hangs_is_given_up_at_its_timeout_and_frees_its_slot() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let ran = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ran);
    let hangs = move |number: u32| {
        let count = Arc::clone(&count);
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            if number == 1 {
                // What it holds panics when it is given up: that must not take the service down.
                let _held = PanicsWhenDropped;
                std::future::pending::<()>().await;
            }
            Ok::<(), Failure>(())
        }
    };
    let route = Route::event("a.b", hangs)
        .concurrency(1)
        .retry([])
        .timeout(Duration::from_secs(7));
    let app = app_on(&broker, &clock, Router::new().route(route))
        .start()
        .await
        .unwrap();
    app.client().emit("a.b", &1).await.unwrap();
    app.client().emit("a.b", &2).await.unwrap();
    until("the timer", || clock.next_timer().is_some()).await;
    clock.advance(Duration::from_millis(6_999));
    settle().await;
    assert_eq!(ran.load(Ordering::Relaxed), 1);
    clock.advance(Duration::from_millis(1));
    until("the next one", || ran.load(Ordering::Relaxed) == 2).await;
    assert_eq!(broker.dead_letters("shop").len(), 1);
    assert!(app.health().is_ok());
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_call_to_a_handler_that_hangs_ends_with_the_callers_deadline() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let route =
        Route::call("a.b", |_: Ignore| std::future::pending::<Result<u32>>()).concurrency(1);
    let app = app_on(&broker, &clock, Router::new().route(route))
        .start()
        .await
        .unwrap();
    let client = app.client();
    let call = tokio::spawn(async move {
        client
            .request::<_, u32>("a.b", &1)
            .timeout(Duration::from_secs(3))
            .await
    });
    until("the timer", || clock.next_timer().is_some()).await;
    settle().await;
    clock.advance(Duration::from_secs(3));
    let error = call.await.unwrap().unwrap_err();
    // Its own timer, or the serving side's at the same instant.
    assert!(
        matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Remote),
        "{error:?}"
    );
    settle().await;
    app.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_capture_that_does_not_read_is_permanent() {
    let route = Route::event("a.{number}", |_: Ignore, Param(_): Param<u32>| async {
        Ok::<(), Failure>(())
    });
    let test = TestApp::start(app(Router::new().route(route.name("numbered"))))
        .await
        .unwrap();
    test.emit("a.x", &1).await.unwrap();
    test.emit("a.7", &1).await.unwrap();
    assert_eq!(
        (
            test.dead_lettered("numbered"),
            test.handled("numbered"),
            test.retried("numbered")
        ),
        (1, 1, 0)
    );
}

#[tokio::test]
async fn the_text_of_a_peers_error_stays_on_one_line() {
    let fails = |_: Ignore| async {
        Err::<u32, _>(
            Failure::permanent(format!("a\r\n\x1b[31mb{}", "x".repeat(5_000)))
                .with_code("odd\ncode"),
        )
    };
    let test = TestApp::start(app(Router::new().on_call("a.b", fails)))
        .await
        .unwrap();
    let error = test
        .client()
        .request::<_, u32>("a.b", &1)
        .await
        .unwrap_err();
    let line = error.to_string();
    assert!(
        !line.contains(char::is_control) && line.len() < 1_000,
        "{line}"
    );
}
