//! Peers that are not there, that die, and that come back: each call ends by its deadline, and one dead address costs nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anywire::transport::Status;
use anywire::{Context, ErrorKind, Failure, Headers, RemoteError, Result, Router, RunningApp};
use anywire_conformance::proxy::{Direction, Proxy};
use anywire_conformance::rig::{Seen, soon, until, until_async};
use anywire_conformance::trials;
use support::{Gate, address, alone, app, caller, is_serving, start};
use tokio::net::TcpListener;

trials![
    [] =>
    one_dead_address_of_two_costs_no_call,
    one_silent_address_of_two_costs_no_call,
    one_dead_address_behind_a_name_costs_no_call,
    a_server_that_is_killed_ends_each_call_by_its_deadline,
    a_peer_that_falls_silent_is_taken_out_and_comes_back,
    a_peer_that_starts_again_is_found,
    an_instance_without_the_handler_passes_the_call_on,
    an_answer_that_breaks_off_is_a_loss_and_nobody_else_is_asked,
    a_refusal_comes_back_whole,
    the_deadline_and_the_headers_travel,
    health_is_told_to_whoever_asks,
    what_a_descriptor_set_says_is_told_by_reflection,
    who_ends_lets_running_calls_end,
    a_connection_is_renewed_when_it_is_old,
    an_address_has_as_many_connections_as_it_is_told,
    two_settings_at_one_address_stop_the_start,
];

async fn double(number: u64) -> Result<u64> {
    Ok(2 * number)
}

async fn service(at: SocketAddr) -> RunningApp {
    let router = Router::new().on_call("shop.double", double);
    start("shop", &alone(at), router).await
}

/// Calls that must all be answered, soon after the caller has come up.
async fn all_answered(caller: &RunningApp) {
    let client = caller.client();
    let start = Instant::now();
    for number in 0..100 {
        let call = client
            .request::<_, u64>("shop.double", &number)
            .timeout(Duration::from_secs(3));
        assert_eq!(call.await.unwrap(), 2 * number);
    }
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

async fn one_dead_address_of_two_costs_no_call() {
    let (alive, dead) = (address(), address());
    let shop = service(alive).await;
    for order in [[dead, alive], [alive, dead]] {
        let caller = start("till", &caller(&order), Router::new()).await;
        all_answered(&caller).await;
        let status = caller.client().transport("main").unwrap().status();
        let is_told =
            || matches!(&*status.borrow(), Status::Degraded(why) if why.contains("1 of 2"));
        until("the news of it", is_told).await;
        caller.shutdown().await.unwrap();
    }
    shop.shutdown().await.unwrap();
}

async fn one_silent_address_of_two_costs_no_call() {
    // It takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let alive = address();
    let shop = service(alive).await;
    let caller = app("till", &caller(&[silent.local_addr().unwrap(), alive]));
    let caller = caller.start().await.unwrap();
    let client = caller.client();
    // A connection that was taken is held for one that works, until a call says otherwise; then it is out.
    let answered = async || {
        let call = client
            .request::<_, u64>("shop.double", &1)
            .timeout(Duration::from_millis(300));
        call.await.is_ok()
    };
    until_async("a call without an answer", async || !answered().await).await;
    for number in 0..40 {
        assert!(answered().await, "call {number} after it");
    }
    shop.shutdown().await.unwrap();
    caller.shutdown().await.unwrap();
}

async fn one_dead_address_behind_a_name_costs_no_call() {
    // `localhost` is two addresses on most machines; we listen at one of them.
    let alive = address();
    let shop = service(alive).await;
    let url = format!("url = 'grpc://localhost:{}'", alive.port());
    let caller = start("till", &url, Router::new()).await;
    all_answered(&caller).await;
    caller.shutdown().await.unwrap();
    shop.shutdown().await.unwrap();
}

async fn a_server_that_is_killed_ends_each_call_by_its_deadline() {
    let at = address();
    let never = async |_: u64| -> Result<u64> { std::future::pending().await };
    let router = Router::new().on_call("shop.wait", never);
    let shop = start("shop", &alone(at), router).await;
    let proxy = Proxy::start(at).await.unwrap();
    let caller = start("till", &caller(&[proxy.address()]), Router::new()).await;
    let client = caller.client();
    let calls: Vec<_> = (0..50)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                let start = Instant::now();
                let call = client
                    .request::<_, u64>("shop.wait", &number)
                    .timeout(Duration::from_secs(2));
                (call.await.unwrap_err().kind(), start.elapsed())
            })
        })
        .collect();
    until("the calls on their way", || {
        proxy.counters().to_server > 2_000
    })
    .await;
    proxy.reset_all();
    for call in calls {
        let (kind, took) = soon("its end", call).await.unwrap();
        let is_right = matches!(
            kind,
            ErrorKind::Disconnected | ErrorKind::Timeout | ErrorKind::Unavailable
        );
        assert!(is_right, "{kind}");
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    caller.shutdown().await.unwrap();
    let _ = shop.shutdown().await;
}

async fn a_peer_that_falls_silent_is_taken_out_and_comes_back() {
    let at = address();
    let shop = service(at).await;
    let proxy = Proxy::start(at).await.unwrap();
    let caller = start("till", &caller(&[proxy.address()]), Router::new()).await;
    let client = caller.client();
    assert_eq!(
        client.request::<_, u64>("shop.double", &1).await.unwrap(),
        2
    );
    proxy.blackhole(Direction::ToServer);
    let call = client
        .request::<_, u64>("shop.double", &1)
        .timeout(Duration::from_millis(300));
    let start = Instant::now();
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(start.elapsed() < Duration::from_secs(1));
    proxy.heal().await.unwrap();
    // It would be asked for a sign of life only after twenty seconds.
    let answered = async || {
        let call = client
            .request::<_, u64>("shop.double", &1)
            .timeout(Duration::from_millis(300));
        call.await.is_ok()
    };
    let start = Instant::now();
    until_async("an answer", answered).await;
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    caller.shutdown().await.unwrap();
    shop.shutdown().await.unwrap();
}

async fn a_peer_that_starts_again_is_found() {
    let at = address();
    let shop = service(at).await;
    let caller = start("till", &caller(&[at]), Router::new()).await;
    all_answered(&caller).await;
    shop.shutdown().await.unwrap();
    let client = caller.client();
    let start = Instant::now();
    let error = client
        .request::<_, u64>("shop.double", &1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(1));
    let shop = service(at).await;
    all_answered(&caller).await;
    for app in [caller, shop] {
        app.shutdown().await.unwrap();
    }
}

async fn an_instance_without_the_handler_passes_the_call_on() {
    let (old, new) = (address(), address());
    let router = Router::new().on_event("shop.placed", Seen::default().handler());
    let one = start("shop", &alone(old), router).await;
    let other = service(new).await;
    let caller = start("till", &caller(&[old, new]), Router::new()).await;
    all_answered(&caller).await;
    let error = caller
        .client()
        .request::<_, u64>("shop.lost", &1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error:?}");
    for app in [caller, one, other] {
        app.shutdown().await.unwrap();
    }
}

/// A server that answers each request with headers, which name this encoding, and no status.
async fn half_a_server(encoding: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            // Its client may have gone meanwhile.
            let Ok(mut requests) = h2::server::handshake(socket).await else {
                continue;
            };
            tokio::spawn(async move {
                while let Some(Ok((_, mut answer))) = requests.accept().await {
                    let response = http::Response::builder()
                        .header("content-type", "application/grpc+json")
                        .header("grpc-encoding", encoding);
                    let response = response.body(()).unwrap();
                    answer.send_response(response, true).unwrap();
                }
            });
        }
    });
    at
}

async fn an_answer_that_breaks_off_is_a_loss_and_nobody_else_is_asked() {
    for encoding in ["identity", "gzip"] {
        let half = half_a_server(encoding).await;
        let whole = address();
        let asked = Seen::default();
        let handler = asked.handler();
        let count = move |number: u64| {
            let seen = handler(number);
            async move { seen.await.map(|()| number) }
        };
        let till = start("till", &caller(&[half, whole]), Router::new()).await;
        let client = till.client();
        // Nobody else is there yet, so that this one is asked.
        let calling = tokio::spawn(async move { client.request::<_, u64>("shop.count", &1).await });
        let shop = start(
            "shop",
            &alone(whole),
            Router::new().on_call("shop.count", count),
        )
        .await;
        let error = soon("its end", calling).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error:?}");
        assert_eq!(asked.count(), 0);
        for app in [till, shop] {
            app.shutdown().await.unwrap();
        }
    }
}

async fn a_refusal_comes_back_whole() {
    let at = address();
    let refuse = async |item: String| -> Result<u64> {
        let details = serde_json::json!({ "item": item, "päck": [1, 2] });
        let failure = Failure::permanent("there is no such thing");
        Err(failure.with_code("unknown_item").with_details(details))
    };
    let router = Router::new().on_call("shop.quote", refuse);
    let shop = start("shop", &alone(at), router).await;
    let caller = start("till", &caller(&[at]), Router::new()).await;
    let error = caller
        .client()
        .request::<_, u64>("shop.quote", "unicörn")
        .await
        .unwrap_err();
    let remote: &RemoteError = error.as_remote().unwrap();
    assert_eq!(
        (remote.code(), remote.message()),
        ("unknown_item", "there is no such thing")
    );
    assert!(!remote.is_retryable());
    let details = remote.details_as::<serde_json::Value>().unwrap();
    assert_eq!(
        details,
        serde_json::json!({ "item": "unicörn", "päck": [1, 2] })
    );
    for app in [caller, shop] {
        app.shutdown().await.unwrap();
    }
}

async fn the_deadline_and_the_headers_travel() {
    let at = address();
    let told = async |_: u64, headers: Headers, context: Context| -> Result<(String, u64)> {
        let left = context
            .deadline()
            .unwrap()
            .saturating_duration_since(Instant::now());
        let tenant = headers.get_str("tenant").unwrap_or_default().to_owned();
        Ok((tenant, left.as_millis() as u64))
    };
    let router = Router::new().on_call("shop.told", told);
    let shop = start("shop", &alone(at), router).await;
    let caller = start("till", &caller(&[at]), Router::new()).await;
    let client = caller.client();
    let call = client.request::<_, (String, u64)>("shop.told", &1);
    let (tenant, left) = call
        .header("tenant", "blau")
        .timeout(Duration::from_secs(7))
        .await
        .unwrap();
    assert_eq!(tenant, "blau");
    assert!((5_000..=7_001).contains(&left), "{left}");
    for app in [caller, shop] {
        app.shutdown().await.unwrap();
    }
}

async fn health_is_told_to_whoever_asks() {
    let at = address();
    let shop = service(at).await;
    let caller = start("till", &caller(&[at]), Router::new()).await;
    assert!(is_serving(&caller).await);
    for app in [caller, shop] {
        app.shutdown().await.unwrap();
    }
}

async fn what_a_descriptor_set_says_is_told_by_reflection() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::{FILE_DESCRIPTOR_SET, ServerReflectionRequest};

    // A descriptor set is a descriptor set: that of reflection itself.
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("set.bin");
    std::fs::write(&file, FILE_DESCRIPTOR_SET).unwrap();
    let at = address();
    let config = format!(
        "{}\n[transports.main.grpc]\ndescriptors = [{file:?}]",
        alone(at)
    );
    let router = Router::new().on_call("shop.double", double);
    let shop = start("shop", &config, router).await;
    let caller = start("till", &caller(&[at]), Router::new()).await;
    all_answered(&caller).await;

    let channel = anywire_grpc::native(&caller.client()).unwrap();
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let asked = reflection.server_reflection_info(futures::stream::iter([question]));
    let mut answers = soon("an answer", asked).await.unwrap().into_inner();
    let answer = soon("the list", answers.message()).await.unwrap().unwrap();
    assert!(
        format!("{answer:?}").contains("grpc.reflection.v1.ServerReflection"),
        "{answer:?}"
    );
    drop((answers, reflection));
    for app in [caller, shop] {
        app.shutdown().await.unwrap();
    }
}

async fn who_ends_lets_running_calls_end() {
    let at = address();
    let gate = Gate::new();
    let router = Router::new().on_call("shop.slow", gate.handler());
    let shop = start("shop", &alone(at), router).await;
    let caller = start("till", &caller(&[at]), Router::new()).await;
    let client = caller.client();
    let call = tokio::spawn(async move { client.request::<_, u64>("shop.slow", &7).await });
    gate.reached_by(1).await;
    let ending = tokio::spawn(shop.shutdown());
    until_async("the news of it", async || !is_serving(&caller).await).await;
    // What comes now is not taken.
    let late = caller.client();
    let late = late.request::<_, u64>("shop.slow", &8).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Unavailable, "{late:?}");
    gate.open(1);
    soon("the end", ending).await.unwrap().unwrap();
    assert_eq!(soon("the answer", call).await.unwrap().unwrap(), 7);
    caller.shutdown().await.unwrap();
}

async fn a_connection_is_renewed_when_it_is_old() {
    let at = address();
    let config = format!(
        "{}\n[transports.main.grpc]\nmax_connection_age = '100ms'",
        alone(at)
    );
    let shop = start(
        "shop",
        &config,
        Router::new().on_call("shop.double", double),
    )
    .await;
    let proxy = Proxy::start(at).await.unwrap();
    let till = start("till", &caller(&[proxy.address()]), Router::new()).await;
    let client = till.client();
    // No call is lost over it.
    let start = Instant::now();
    while proxy.counters().accepted < 4 {
        assert_eq!(
            client.request::<_, u64>("shop.double", &4).await.unwrap(),
            8
        );
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "it is never asked to go"
        );
    }
    for app in [till, shop] {
        app.shutdown().await.unwrap();
    }
}

async fn an_address_has_as_many_connections_as_it_is_told() {
    let at = address();
    let shop = service(at).await;
    let proxy = Proxy::start(at).await.unwrap();
    let config = format!(
        "{}\n[transports.main.grpc]\nconnections = 3",
        caller(&[proxy.address()])
    );
    let till = start("till", &config, Router::new()).await;
    until("the connections", || proxy.counters().open == 3).await;
    all_answered(&till).await;
    assert_eq!(proxy.counters().accepted, 3);
    for app in [till, shop] {
        app.shutdown().await.unwrap();
    }
}

async fn two_settings_at_one_address_stop_the_start() {
    let at = address();
    let config = format!(
        "events = 'other'\n{}\n[transports.other]\nurl = 'grpc://?listen={at}'\n[transports.other.grpc]\nmax_payload = 7",
        alone(at)
    );
    let router = Router::new()
        .on_call("shop.double", double)
        .on_event("shop.placed", Seen::default().handler());
    let error = app("shop", &config)
        .router(router)
        .start()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains(&at.to_string()), "{error}");
}
