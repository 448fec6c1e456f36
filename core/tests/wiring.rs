//! What is checked before anything runs, and what settings, extractors and layers come to.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::sync::{Arc, OnceLock};

use anywire::clock::ManualClock;
use anywire::memory::MemoryBroker;
use anywire::pattern::publish_subscribe::{
    Incoming, Spec, Start, Store, Stored, Subscriber, SubscriptionId,
};
use anywire::testing::TestApp;
use anywire::{
    App, Capabilities, Client, Config, Context, Error, ErrorKind, Failure, FromDelivery, Guarantee,
    Ignore, Layer, Next, Order, OrderScope, Output, Param, Parts, Result, Route, Router, State,
    Support, async_trait,
};
use common::{Altered, app_on};
use parking_lot::Mutex;

async fn ignore(_: Ignore) -> Result<()> {
    Ok(())
}

async fn answer(_: Ignore) -> Result<u32> {
    Ok(1)
}

fn app(router: Router) -> App {
    App::new("shop")
        .config(Config::from_toml("url = 'memory://'").unwrap())
        .router(router)
}

/// What stops the start, as `check` and `start` tell it.
async fn refusal(app: impl Fn() -> App) -> String {
    let checked = app().check().unwrap_err();
    let started = app().start().await.unwrap_err();
    assert_eq!(checked.kind(), started.kind());
    assert!(started.to_string().contains(&checked.to_string()));
    checked.to_string()
}

#[tokio::test]
async fn an_unknown_key_names_the_nearest_one() {
    let mistake = app(Router::new())
        .force("[handlers.a]\nconcurency = 3")
        .check()
        .unwrap_err();
    assert_eq!(mistake.kind(), ErrorKind::Config);
    assert!(
        mistake.to_string().contains("concurency")
            && mistake.to_string().contains("\"concurrency\""),
        "{mistake}"
    );
    let router = || Router::new().on_event("a.b", ignore);
    let text = refusal(|| app(router()).force("[handlers.ingore]\nconcurrency = 3")).await;
    assert!(text.contains("ignore"), "{text}");
}

#[tokio::test]
async fn a_scheme_without_an_adapter_names_those_there_are() {
    let text =
        refusal(|| App::new("shop").config(Config::from_toml("url = 'nat://x:1'").unwrap())).await;
    assert!(text.contains("nat") && text.contains("memory"), "{text}");
}

#[tokio::test]
async fn two_handlers_of_one_subscription_are_told_to_take_groups_of_their_own() {
    let router = || {
        Router::new()
            .route(Route::event("a.{x}", ignore).name("one"))
            .route(Route::event("a.*", ignore).name("two"))
    };
    let text = refusal(|| app(router())).await;
    assert!(
        text.contains("one") && text.contains("two") && text.contains("group"),
        "{text}"
    );
    let apart = Router::new()
        .route(Route::event("a.{x}", ignore).name("one"))
        .route(Route::event("a.*", ignore).name("two").group("other"));
    app(apart).check().unwrap();
}

#[tokio::test]
async fn two_handlers_of_one_name_are_refused() {
    let router = || {
        Router::new()
            .on_event("a.b", ignore)
            .on_event("c.d", ignore)
    };
    let text = refusal(|| app(router())).await;
    assert!(
        text.contains("`ignore`") && text.contains("name = "),
        "{text}"
    );
}

#[tokio::test]
async fn a_subject_is_for_events_or_for_calls_and_calls_do_not_overlap() {
    let both = || Router::new().on_event("a.*", ignore).on_call("a.b", answer);
    assert!(
        refusal(|| app(both()))
            .await
            .contains("for events, for calls or for streaming calls")
    );
    let overlap = || {
        Router::new()
            .route(Route::call("a.*", answer).name("one"))
            .route(Route::call("*.b", answer).name("two"))
    };
    assert!(refusal(|| app(overlap())).await.contains("narrow"));
}

#[tokio::test]
async fn a_need_that_the_transport_lacks_names_handler_need_and_transport() {
    type Reduce = fn(&mut Capabilities);
    let cases: [(Reduce, Route, &str); 5] = [
        (
            |c| c.wildcards = Support::Unsupported,
            Route::event("a.*", ignore),
            "wildcards",
        ),
        (
            |c| c.calls = Support::Unsupported,
            Route::call("a.b", answer).name("ignore"),
            "calls",
        ),
        (
            |c| c.groups = Support::Unsupported,
            Route::event("a.b", ignore),
            "groups",
        ),
        (
            |c| c.order = OrderScope::Consumer,
            Route::event("a.b", ignore).order(Order::KeyInGroup),
            "key-in-group",
        ),
        (
            |c| c.delay = Support::Unsupported,
            Route::event("a.b", ignore),
            "retries later",
        ),
    ];
    for (capabilities, route, need) in cases {
        let adapter = Altered {
            capabilities,
            ..Altered::new(&MemoryBroker::new())
        };
        let error = app(Router::new().route(route))
            .adapter(adapter)
            .check()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(
            text.contains(need) && text.contains("`ignore`") && text.contains("`main`"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_missing_state_and_a_missing_capture_stop_the_start() {
    let state = |_: Ignore, _: State<u64>| async { Ok::<(), Failure>(()) };
    let text = refusal(|| app(Router::new().on_event("a.b", state))).await;
    assert!(
        text.contains("u64") && text.contains("App::state"),
        "{text}"
    );
    let capture = |_: Ignore, _: Param<u64>, _: Param<u64>| async { Ok::<(), Failure>(()) };
    let text = refusal(|| app(Router::new().on_event("a.{x}", capture))).await;
    assert!(
        text.contains("2 `Param`") && text.contains("1 capture"),
        "{text}"
    );
}

#[tokio::test]
async fn configuration_may_strengthen_what_code_says_and_not_weaken_it() {
    let route = || {
        Route::event("a.b", ignore)
            .order(Order::Key)
            .guarantee(Guarantee::AtLeastOnce)
    };
    for weak in ["order = 'none'", "delivery = 'at_most_once'"] {
        let toml = format!("url = 'memory://'\n[handlers.ignore]\n{weak}");
        let config = || Config::from_toml(&toml).unwrap();
        let text = refusal(|| app(Router::new().route(route())).config(config())).await;
        assert!(text.contains("weaker"), "{text}");
    }
    let strong =
        app(Router::new().route(route())).force("[handlers.ignore]\norder = 'key-in-group'");
    assert_eq!(
        strong.describe().unwrap().subscriptions[0].order,
        Order::KeyInGroup
    );
}

struct Tenant(String);

impl FromDelivery for Tenant {
    fn from_delivery(parts: &mut Parts<'_>) -> Result<Self> {
        let tenant = parts.context().headers().get_str("tenant");
        let missing = || Failure::permanent("no tenant");
        tenant
            .map(|tenant| Self(tenant.to_owned()))
            .ok_or_else(missing)
    }
}

#[cfg(feature = "macros")]
#[derive(anywire::Params)]
struct Place {
    region: String,
    shelf: u32,
}

#[cfg(feature = "macros")]
#[tokio::test]
async fn extractors_take_what_they_say() {
    use anywire::Params;
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let handler = move |number: u32,
                        Param(region): Param<String>,
                        Params(place): Params<Place>,
                        state: State<&'static str>,
                        tenant: Option<Tenant>| {
        assert_eq!(region, place.region);
        let tenant = tenant.map_or("nobody".to_owned(), |tenant| tenant.0);
        noted.lock().push(format!(
            "{number} {region} {} {} {tenant}",
            place.shelf, *state
        ));
        std::future::ready(Ok::<(), Failure>(()))
    };
    let strict = |_: Ignore, _: Tenant| async { Ok::<(), Failure>(()) };
    let router = Router::new()
        .on_event("stock.{region}.{shelf}", handler)
        .route(Route::event("strict", strict).name("strict"));
    let test = TestApp::start(app(router).state("state")).await.unwrap();
    test.emit("stock.eu=2Ewest.7", &1).await.unwrap();
    let sent = test.emit_with(|client| client.emit("stock.us.8", &2).header("tenant", "blue"));
    sent.await.unwrap();
    assert_eq!(
        *seen.lock(),
        ["1 eu.west 7 state nobody", "2 us 8 state blue"]
    );
    test.emit("strict", &1).await.unwrap();
    assert_eq!(test.dead_lettered("strict"), 1);
}

/// Notes its way in and out.
struct Noted(&'static str, Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Layer for Noted {
    async fn call(&self, context: Context, next: Next) -> Result<Output> {
        self.1.lock().push(format!("{} in", self.0));
        let result = next.run(context).await;
        self.1.lock().push(format!("{} out", self.0));
        result
    }
}

/// Answers in the handler's place.
struct Short(fn() -> Result<Output>);

#[async_trait]
impl Layer for Short {
    async fn call(&self, _: Context, _: Next) -> Result<Output> {
        (self.0)()
    }
}

#[tokio::test]
async fn layers_nest_from_the_app_to_the_route_and_run_for_each_attempt() {
    let notes: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = |name| Noted(name, Arc::clone(&notes));
    let ran = Arc::clone(&notes);
    let handler = move |_: Ignore, context: Context| {
        ran.lock().push(format!("handler {}", context.attempt()));
        let fails = context.attempt() == 1;
        std::future::ready(if fails {
            Err(Failure::transient("no"))
        } else {
            Ok(())
        })
    };
    let route = Route::event("a.b", handler).layer(noted("route"));
    let router = Router::new()
        .route(route)
        .layer(noted("inner"))
        .layer(noted("outer"));
    let test = TestApp::start(app(router).layer(noted("first")).layer(noted("second")))
        .await
        .unwrap();
    test.emit("a.b", &1).await.unwrap();
    let notes = notes.lock().clone();
    let once = [
        "first in",
        "second in",
        "outer in",
        "inner in",
        "route in",
        "handler 1",
        "route out",
        "inner out",
        "outer out",
        "second out",
        "first out",
    ];
    assert_eq!(notes[..11], once);
    assert_eq!(notes.len(), 22);
    assert_eq!(notes[16], "handler 2");
}

#[tokio::test]
async fn a_layer_may_answer_in_the_handlers_place() {
    let never = |_: Ignore| -> std::future::Ready<Result<()>> { unreachable!() };
    let router = Router::new()
        .route(
            Route::event("a.ok", never)
                .name("ok")
                .layer(Short(|| Ok(Output::default()))),
        )
        .route(
            Route::event("a.no", never)
                .name("no")
                .layer(Short(|| Err(Failure::discard("no")))),
        )
        .route(
            Route::call("b.no", answer)
                .layer(Short(|| Err(Failure::permanent("no").with_code("denied")))),
        );
    let test = TestApp::start(app(router)).await.unwrap();
    test.emit("a.ok", &1).await.unwrap();
    test.emit("a.no", &1).await.unwrap();
    assert_eq!((test.handled("ok"), test.discarded("no")), (1, 1));
    let error = test
        .client()
        .request::<_, u32>("b.no", &1)
        .await
        .unwrap_err();
    assert_eq!(error.as_remote().unwrap().code(), "denied");
}

#[tokio::test]
async fn an_undecodable_payload_passes_its_layers_and_is_still_one() {
    let notes: Arc<Mutex<Vec<String>>> = Arc::default();
    let number = |_: u32| async { Ok::<(), Failure>(()) };
    let same = |number: u32| async move { Ok::<u32, Failure>(number) };
    let router = Router::new().on_event("a.b", number).on_call("c.d", same);
    let test = TestApp::start(app(router).layer(Noted("layer", Arc::clone(&notes))))
        .await
        .unwrap();
    test.emit("a.b", "x").await.unwrap();
    assert_eq!(test.dead_letters("shop")[0].payload().as_ref(), b"\"x\"");
    assert_eq!(test.retried("a.b"), 0);
    let error = test
        .client()
        .request::<_, u32>("c.d", "x")
        .await
        .unwrap_err();
    assert_eq!(error.as_remote().unwrap().code(), "invalid_payload");
    assert_eq!(notes.lock().len(), 4);
}

#[cfg(feature = "tower")]
#[tokio::test]
async fn tower_layers_wrap_handlers() {
    use anywire::TowerLayer;
    let layer = TowerLayer::new(tower::limit::ConcurrencyLimitLayer::new(1));
    let router = Router::new()
        .on_event("a.b", ignore)
        .on_call("c.d", answer)
        .layer(layer);
    let test = TestApp::start(app(router)).await.unwrap();
    test.emit("a.b", &1).await.unwrap();
    assert_eq!(test.handled("ignore"), 1);
    assert_eq!(test.client().request::<_, u32>("c.d", &1).await.unwrap(), 1);
}

#[cfg(feature = "msgpack")]
#[tokio::test]
async fn the_codec_of_a_handler_is_how_it_answers_and_emits() {
    use anywire::{Codec, ContentType, Message};
    let pass = |_: Ignore, client: Client| async move {
        client.emit("c.d", &7).await?;
        Ok::<u32, Failure>(7)
    };
    let types: Arc<Mutex<Vec<Option<ContentType>>>> = Arc::default();
    let noted = Arc::clone(&types);
    let note = move |message: Message| {
        noted.lock().push(message.content_type().cloned());
        std::future::ready(Ok::<(), Failure>(()))
    };
    let router = Router::new()
        .route(Route::call("a.b", pass).name("pass"))
        .on_event("c.d", note);
    let app = app(router).force("[handlers.pass]\ncodec = 'msgpack'");
    let test = TestApp::start(app).await.unwrap();
    let reply: Message = test.client().request("a.b", &1).await.unwrap();
    assert_eq!(reply.content_type(), Some(&ContentType::MSGPACK));
    assert_eq!(test.client().request::<_, u32>("a.b", &1).await.unwrap(), 7);
    common::until("the event", || types.lock().len() == 2).await;
    assert_eq!(types.lock()[0], Some(ContentType::MSGPACK));
    let _ = Codec::Msgpack;
}

#[tokio::test]
async fn health_tells_transports_and_handlers() {
    let (broker, clock) = (MemoryBroker::new(), ManualClock::new());
    let app = app_on(&broker, &clock, Router::new().on_event("a.b", ignore))
        .start()
        .await
        .unwrap();
    let health = app.health();
    assert!(health.is_ok());
    assert_eq!(
        (
            health.transports[0].name.as_str(),
            health.handlers[0].name.as_str()
        ),
        ("main", "ignore")
    );
    app.client()
        .transport("main")
        .unwrap()
        .close(std::time::Duration::ZERO)
        .await
        .unwrap();
    common::until("red health", || !app.health().handlers[0].consuming).await;
    assert!(!app.health().is_ok());
    let _ = app.shutdown().await;
    let _ = Client::connect(app_on(&broker, &clock, Router::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn one_handler_answers_on_several_wires_and_each_side_says_which() {
    let config = Config::from_toml(
        "calls = 'near'\nevents = 'near'\n\
         [transports.near]\nurl = 'memory://'\n[transports.far]\nurl = 'memory://'\n\
         [[subjects]]\nmatch = 'far.>'\ntransport = 'far'\n\
         [handlers.near]\ntransport = 'near'\n[handlers.far]\ntransport = 'far'\n",
    );
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let note = move |name: String| {
        let told = told.clone();
        async move {
            let _ = told.send(name);
            Ok::<(), Failure>(())
        }
    };
    let on = |wire: &str| {
        let route = Route::event("{where}.placed", note.clone());
        route.name(wire)
    };
    let router = Router::new().route(on("near")).route(on("far"));
    let app = App::new("app").config(config.unwrap()).router(router);
    let app = app.start().await.unwrap();
    for subject in ["near.placed", "far.placed"] {
        app.client().emit(subject, subject).await.unwrap();
        assert_eq!(heard.recv().await.unwrap(), subject);
    }
    app.shutdown().await.unwrap();
    assert!(heard.try_recv().is_err(), "each came once");
}

/// A wire that stores nothing opens its door with the first source: a call that comes too early is told so, an event would be lost.
#[tokio::test]
async fn events_are_listened_to_before_calls_are() {
    static CALLER: OnceLock<Client> = OnceLock::new();
    static EARLY: OnceLock<ErrorKind> = OnceLock::new();

    #[derive(Debug)]
    struct Early(Arc<dyn Subscriber>);

    #[async_trait]
    impl Subscriber for Early {
        async fn subscribe(&self, specs: &[Spec]) -> Vec<Result<Box<dyn Incoming>, Error>> {
            let call = CALLER.get().unwrap().request::<_, u32>("a.answer", &1);
            EARLY.set(call.await.unwrap_err().kind()).unwrap();
            self.0.subscribe(specs).await
        }

        async fn declare(&self, stores: &[Store]) -> Vec<Result<(), Error>> {
            self.0.declare(stores).await
        }

        async fn stored(&self, group: &str) -> Result<Vec<Stored>, Error> {
            self.0.stored(group).await
        }

        async fn reset(&self, id: &SubscriptionId, start: &Start) -> Result<(), Error> {
            self.0.reset(id, start).await
        }
    }

    let broker = MemoryBroker::new();
    let on = |name| App::new(name).config(Config::from_toml("url = 'memory://'").unwrap());
    let till = on("till").adapter(anywire::memory::adapter_on(&broker));
    let till = till.start().await.unwrap();
    CALLER.set(till.client()).unwrap();
    let early = Altered {
        subscriber: |inner| Arc::new(Early(inner)),
        ..Altered::new(&broker)
    };
    let router = Router::new()
        .on_call("a.answer", answer)
        .on_event("a.b", ignore);
    let shop = on("shop")
        .adapter(early)
        .router(router)
        .start()
        .await
        .unwrap();
    assert_eq!(EARLY.get(), Some(&ErrorKind::NoRoute));
    let call = till.client();
    assert_eq!(call.request::<_, u32>("a.answer", &1).await.unwrap(), 1);
    for app in [till, shop] {
        app.shutdown().await.unwrap();
    }
}
