//! What a peer may send that is wrong is answered with a status that says so, and the service goes on.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use anywire::transport::Status;
use anywire::{
    Client, Error, ErrorKind, Failure, Inbound, Raw as Payload, RemoteError, Result, Route, Router,
    RunningApp,
};
use anywire_conformance::rig::{Seen, resident, soon, until};
use anywire_conformance::trials;
use bytes::Bytes;
use support::{Gate, Raw, Unending, address, alone, caller, frame, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

trials![
    in turn, [] =>
    a_frame_that_tells_more_than_it_may_hold_is_refused_unread,
    a_method_that_nobody_has_is_unimplemented,
    bad_metadata_is_an_invalid_argument,
    what_is_no_grpc_is_told_so,
    a_request_without_a_frame_is_told_so,
    a_payload_over_the_limit_is_refused_before_the_socket_and_the_next_goes_through,
    who_speaks_no_http_is_hung_up_on_and_nobody_else_suffers,
    too_many_requests_at_once_are_refused,
    what_one_instance_refuses_another_takes,
    what_waits_for_a_handler_is_bounded,
    who_connects_and_says_nothing_is_hung_up_on,
    a_request_that_does_not_come_gives_its_place_up,
    a_caller_that_waits_for_longer_than_it_said_is_told_what_happened,
    an_upload_that_is_given_up_is_no_end,
    a_dead_letter_from_outside_is_no_dead_letter,
];

async fn size(Payload(bytes): Payload) -> Result<usize> {
    Ok(bytes.len())
}

async fn padding(size: usize) -> Result<Payload> {
    Ok(Payload(vec![b'x'; size].into()))
}

async fn service(config: &str) -> RunningApp {
    let router = Router::new()
        .on_call("shop.size", size)
        .on_call("shop.padding", padding)
        .on_event("shop.placed", Seen::default().handler());
    start("shop", config, router).await
}

/// It still answers.
async fn answers(shop: &RunningApp) {
    let client = shop.client();
    let size = client.request::<_, usize>("shop.size", &Payload("four".into()));
    assert_eq!(soon("an answer", size.into_future()).await.unwrap(), 4);
}

async fn a_frame_that_tells_more_than_it_may_hold_is_refused_unread() {
    let at = address();
    let shop = service(&alone(at)).await;
    let mut raw = Raw::new(at);
    let before = resident();
    for path in ["/shop/size", "/shop/placed"] {
        for length in [u32::MAX, 5 * 1024 * 1024] {
            let answer = raw.send(path, &[], frame(b"x", length));
            let (_, status, message) = soon("an answer", answer).await;
            assert_eq!(status.as_deref(), Some("11"), "{message}");
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 * 1024 * 1024, "{grown} bytes more");
    answers(&shop).await;
    shop.shutdown().await.unwrap();
}

async fn a_method_that_nobody_has_is_unimplemented() {
    let at = address();
    let shop = service(&alone(at)).await;
    let mut raw = Raw::new(at);
    for path in [
        "/shop/lost",
        "/shop.size",
        "/",
        "/a/b/c",
        "/shop/%ff",
        "/anywire.dead/shop",
    ] {
        let answer = raw.send(path, &[], frame(b"1", 1));
        let (_, status, message) = soon("an answer", answer).await;
        assert_eq!(status.as_deref(), Some("12"), "{path}: {message}");
    }
    answers(&shop).await;
    shop.shutdown().await.unwrap();
}

async fn bad_metadata_is_an_invalid_argument() {
    let at = address();
    let shop = service(&alone(at)).await;
    let mut raw = Raw::new(at);
    for (name, value) in [
        ("trace-bin", b"***".as_slice()),
        ("tenant", b"\xff\xfe"),
        ("grpc-timeout", b"soon"),
    ] {
        for path in ["/shop/size", "/shop/placed"] {
            let headers = [(name, value)];
            let answer = raw.send(path, &headers, frame(b"1", 1));
            let (_, status, message) = soon("an answer", answer).await;
            assert_eq!(status.as_deref(), Some("3"), "{message}");
            assert!(message.contains(name), "{message}");
        }
    }
    answers(&shop).await;
    shop.shutdown().await.unwrap();
}

async fn what_is_no_grpc_is_told_so() {
    let at = address();
    let shop = service(&alone(at)).await;
    let mut raw = Raw::new(at);
    for kind in ["application/json", "text/html", "application/grpcx"] {
        let headers = [("content-type", kind.as_bytes())];
        let answer = raw.send("/shop/size", &headers, Bytes::from_static(b"{}"));
        assert_eq!(soon("an answer", answer).await.0, 415, "{kind}");
    }
    answers(&shop).await;
    shop.shutdown().await.unwrap();
}

async fn a_request_without_a_frame_is_told_so() {
    let at = address();
    let shop = service(&alone(at)).await;
    let mut raw = Raw::new(at);
    for body in [
        Bytes::new(),
        Bytes::from_static(b"\0\0"),
        frame(b"x", 9),
        Bytes::from_static(b"\x07\0\0\0\x01x"),
    ] {
        let answer = raw.send("/shop/size", &[], body.clone());
        let (_, status, message) = soon("an answer", answer).await;
        assert!(
            status.as_deref().is_some_and(|status| status != "0"),
            "{body:?}: {message}"
        );
    }
    answers(&shop).await;
    shop.shutdown().await.unwrap();
}

async fn a_payload_over_the_limit_is_refused_before_the_socket_and_the_next_goes_through() {
    let config = format!(
        "{}\n[transports.main.grpc]\nmax_payload = 65536",
        alone(address())
    );
    let shop = service(&config).await;
    let client = shop.client();
    let large = Payload(vec![b'1'; 70_000].into());
    let emitted = client.emit("shop.placed", &large).await.unwrap_err();
    assert_eq!(emitted.kind(), ErrorKind::TooLarge, "{emitted}");
    let asked = client
        .request::<_, usize>("shop.size", &large)
        .await
        .unwrap_err();
    assert_eq!(asked.kind(), ErrorKind::TooLarge, "{asked}");
    // The reply is the other side's, which says why there is none.
    let answered = client
        .request::<_, Payload>("shop.padding", &70_000)
        .await
        .unwrap_err();
    let code = answered.as_remote().map(RemoteError::code);
    assert_eq!(code, Some(RemoteError::TOO_LARGE), "{answered:?}");
    client.emit("shop.placed", &1).await.unwrap();
    answers(&shop).await;
    shop.shutdown().await.unwrap();
}

async fn who_speaks_no_http_is_hung_up_on_and_nobody_else_suffers() {
    let at = address();
    let shop = service(&alone(at)).await;
    for words in [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".as_slice(),
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut socket = TcpStream::connect(at).await.unwrap();
        socket.write_all(words).await.unwrap();
        let mut said = Vec::new();
        // What it says is HTTP's business; that it ends is ours.
        let _ = soon("the end", socket.read_to_end(&mut said)).await;
    }
    // One who says nothing at all does not hold up the end.
    let silent = TcpStream::connect(at).await.unwrap();
    answers(&shop).await;
    let start = std::time::Instant::now();
    shop.shutdown().await.unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    drop(silent);
}

/// The configuration of who holds two requests at once.
fn narrow(at: SocketAddr) -> String {
    format!("{}\n[transports.main.grpc]\nmax_concurrent = 2", alone(at))
}

/// Calls at once, which wait at a gate where they are not refused.
fn calls(client: &Client, count: u64) -> Vec<JoinHandle<Result<u64, Error>>> {
    let call = |number| {
        let client = client.clone();
        tokio::spawn(async move { client.request::<_, u64>("shop.wait", &number).await })
    };
    (0..count).map(call).collect()
}

async fn too_many_requests_at_once_are_refused() {
    let gate = Gate::new();
    let router = Router::new()
        .on_call("shop.wait", gate.handler())
        .on_call("shop.size", size);
    let shop = start("shop", &narrow(address()), router).await;
    // By the first answer the client knows what the server allows.
    answers(&shop).await;
    let held = calls(&shop.client(), 8);
    gate.reached_by(2).await;
    until("the refusals", || {
        held.iter().filter(|call| call.is_finished()).count() == 6
    })
    .await;
    gate.open(2);
    let mut answered = 0;
    for call in held {
        match soon("its end", call).await.unwrap() {
            Ok(_) => answered += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Overloaded, "{error:?}"),
        }
    }
    assert_eq!(answered, 2);
    answers(&shop).await;
    shop.shutdown().await.unwrap();
}

async fn what_one_instance_refuses_another_takes() {
    let (here, there) = (address(), address());
    let gate = Gate::new();
    let router = || Router::new().on_call("shop.wait", gate.handler());
    let narrow = start("shop", &narrow(here), router()).await;
    let wide = start("shop", &alone(there), router()).await;
    let till = start("till", &caller(&[here, there]), Router::new()).await;
    let status = till.client().transport("main").unwrap().status();
    until("both connections", || *status.borrow() == Status::Connected).await;
    let calls = calls(&till.client(), 20);
    gate.reached_by(20).await;
    gate.open(20);
    for call in calls {
        soon("its end", call).await.unwrap().unwrap();
    }
    for app in [till, narrow, wide] {
        app.shutdown().await.unwrap();
    }
}

async fn what_waits_for_a_handler_is_bounded() {
    let gate = Gate::new();
    let router = Router::new().route(Route::call("shop.wait", gate.handler()).concurrency(1));
    let config = format!("{}\n[transports.main.grpc]\nbacklog = 1", alone(address()));
    let shop = start("shop", &config, router).await;
    // The handler has some, one waits, and the rest is too much.
    let calls = calls(&shop.client(), 100);
    let refused = || calls.iter().filter(|call| call.is_finished()).count();
    until("the refusals", || refused() > 50).await;
    gate.open(100);
    let mut answered = 0;
    for call in calls {
        match soon("its end", call).await.unwrap() {
            Ok(_) => answered += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Overloaded, "{error:?}"),
        }
    }
    assert!((2..50).contains(&answered), "{answered}");
    shop.shutdown().await.unwrap();
}

async fn who_connects_and_says_nothing_is_hung_up_on() {
    let at = address();
    let config = format!(
        "{}\n[transports.main.grpc]\nmax_connections = 1\nconnect_timeout = '200ms'",
        alone(at)
    );
    let shop = service(&config).await;
    let mut silent = TcpStream::connect(at).await.unwrap();
    // It is taken: the server speaks first.
    soon("a word", silent.read_u8()).await.unwrap();
    let mut refused = TcpStream::connect(at).await.unwrap();
    let refusal = soon("the end", refused.read_u8()).await;
    refusal.unwrap_err();
    let mut said = Vec::new();
    let _ = soon("the end", silent.read_to_end(&mut said)).await;
    // Who speaks takes its place.
    let mut client = Unending::new(at).await;
    let mut request = client.begin("/shop/size").await;
    request.body.send_data(frame(b"four", 4), true).unwrap();
    assert_eq!(
        soon("an answer", request.answer).await.unwrap().status(),
        200
    );
    shop.shutdown().await.unwrap();
}

async fn a_request_that_does_not_come_gives_its_place_up() {
    let at = address();
    let config = format!(
        "{}\n[transports.main.grpc]\nmax_concurrent = 1\nkeep_alive = '100ms'\nkeep_alive_timeout = '200ms'",
        alone(at)
    );
    let shop = service(&config).await;
    let mut client = Unending::new(at).await;
    for path in ["/shop/size", "/shop/placed"] {
        let request = client.begin(path).await;
        let answer = soon("an answer", request.answer).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
    }
    answers(&shop).await;
    shop.shutdown().await.unwrap();
}

async fn a_caller_that_waits_for_longer_than_it_said_is_told_what_happened() {
    let at = address();
    let gate = Gate::new();
    let router = Router::new().on_call("shop.wait", gate.handler());
    let shop = start("shop", &alone(at), router).await;
    let mut client = Unending::new(at).await;
    for _ in 0..20 {
        let begun = client.begin_with("/shop/wait", &[("grpc-timeout", "20m")]);
        let mut request = begun.await;
        request.body.send_data(frame(b"7", 1), true).unwrap();
        let answer = soon("an answer", request.answer).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
    }
    gate.open(20);
    shop.shutdown().await.unwrap();
}

async fn an_upload_that_is_given_up_is_no_end() {
    let at = address();
    let (tell, mut told) = tokio::sync::mpsc::channel(8);
    let count = move |mut numbers: Inbound<u64>| {
        let tell = tell.clone();
        async move {
            loop {
                let next = numbers.next().await;
                let is_end = !matches!(next, Some(Ok(_)));
                tell.send(next).await.unwrap();
                if is_end {
                    return Ok::<u64, Failure>(0);
                }
            }
        }
    };
    let router = Router::new().on_stream("shop.count", count);
    let shop = start("shop", &alone(at), router).await;
    // All of it: this is an end.
    let mut raw = Raw::new(at);
    let answer = raw.send("/shop/count", &[], frame(b"7", 1));
    assert_eq!(soon("the sum", answer).await.1.as_deref(), Some("0"));
    assert_eq!(
        soon("the item", told.recv())
            .await
            .unwrap()
            .unwrap()
            .unwrap(),
        7
    );
    assert!(soon("the end", told.recv()).await.unwrap().is_none());
    // The first of it, and then a reset.
    let mut client = Unending::new(at).await;
    let mut upload = client.begin("/shop/count").await;
    upload.body.send_data(frame(b"7", 1), false).unwrap();
    let item = soon("the item", told.recv()).await.unwrap();
    assert_eq!(item.unwrap().unwrap(), 7);
    upload.body.send_reset(h2::Reason::CANCEL);
    let error = soon("the end", told.recv())
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_eq!(
        error.as_remote().map(RemoteError::code),
        Some("cancelled"),
        "{error:?}"
    );
    shop.shutdown().await.unwrap();
}

async fn a_dead_letter_from_outside_is_no_dead_letter() {
    let at = address();
    let letters = Seen::default();
    let router = Router::new()
        .on_call("shop.size", size)
        .on_event("anywire.dead.billing", letters.handler());
    let shop = start("shop", &alone(at), router).await;
    let mut raw = Raw::new(at);
    for path in ["/anywire.dead/billing", "/anywire%2Edead/billing"] {
        let headers = [("anywire-attempt", b"3".as_slice())];
        let answer = raw.send(path, &headers, frame(b"1", 1));
        let (_, status, message) = soon("an answer", answer).await;
        assert_eq!(status.as_deref(), Some("12"), "{path}: {message}");
    }
    assert_eq!(letters.count(), 0);
    answers(&shop).await;
    shop.shutdown().await.unwrap();
}
