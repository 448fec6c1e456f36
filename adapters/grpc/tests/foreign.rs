//! A gRPC program that knows nothing of anywire takes part, by what `docs/wire.md` says: it calls handlers of all kinds, sends events
//! and answers calls of all kinds, with messages of its own. It is `foreign_peer.py`, on gRPC's own library for Python.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anywire::{ErrorKind, Failure, HandlerError, Headers, Inbound, Proto, Result, Router};
use anywire_conformance::rig::soon;
use anywire_conformance::trials;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use support::{address, start};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};

/// A Python with gRPC.
const PYTHON: &str = "ANYWIRE_TEST_PYTHON";

trials![[PYTHON] => a_foreign_program_takes_part];

#[derive(Clone, PartialEq, prost::Message)]
struct Item {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Quote {
    #[prost(uint64, tag = "1")]
    cents: u64,
    #[prost(string, tag = "2")]
    tenant: String,
}

#[derive(Debug, serde::Serialize, serde::Deserialize, HandlerError)]
enum QuoteError {
    #[handler_error(message = "there is no {item}")]
    UnknownItem { item: String },
}

fn quote_of(cents: u64) -> Proto<Quote> {
    Proto(Quote {
        cents,
        tenant: String::new(),
    })
}

fn service() -> Router {
    let quote = async |Proto(item): Proto<Item>, headers: Headers| match item.name.as_str() {
        "tea" => {
            assert_eq!(headers.get("raw-bin").unwrap().as_ref(), [0, 255]);
            let tenant = headers.get_str("tenant").unwrap_or_default().to_owned();
            Ok(Proto(Quote { cents: 250, tenant }))
        }
        _ => Err(QuoteError::UnknownItem { item: item.name }),
    };
    let slow = async |_: Proto<Item>| -> Result<Proto<Quote>> { std::future::pending().await };
    let placed = async |Proto(item): Proto<Item>| -> Result<()> {
        match item.name.as_str() {
            "tea" => Ok(()),
            _ => Err(Failure::permanent("no such thing")),
        }
    };
    let follow = async |Proto(item): Proto<Item>| {
        if item.name == "unicorn" {
            return Err(QuoteError::UnknownItem { item: item.name });
        }
        let count = if item.name == "endless" { u64::MAX } else { 3 };
        let end = (item.name == "lost").then_some(Err(QuoteError::UnknownItem { item: item.name }));
        let quotes = (1..=count).map(|cents| Ok(quote_of(cents)));
        Ok(stream::iter(quotes.chain(end)))
    };
    let sum = async |mut items: Inbound<Proto<Item>>| -> Result<Proto<Quote>> {
        let mut cents = 0;
        while let Some(item) = items.next().await {
            cents += item?.0.name.len() as u64;
        }
        Ok(quote_of(cents))
    };
    let haggle = |items: Inbound<Proto<Item>>| {
        items.map(|item| -> Result<_> { Ok(quote_of(item?.0.name.len() as u64)) })
    };
    Router::new()
        .on_stream("shop.v1.Prices.Follow", follow)
        .on_stream("shop.v1.Prices.Sum", sum)
        .on_stream("shop.v1.Prices.Haggle", haggle)
        .on_call("shop.v1.Prices.Quote", quote)
        .on_call("shop.v1.Prices.Slow", slow)
        .on_event("shop.v1.Orders.Placed", placed)
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = soon("a word", lines.next_line()).await.unwrap();
    serde_json::from_str(&line.expect("a word before its end")).unwrap()
}

async fn a_foreign_program_takes_part() {
    let (ours, theirs) = (address(), address());
    let config = format!("url = 'grpc://{theirs}?listen={ours}'\n[defaults]\nretry = ['10ms']");
    let shop = start("shop", &config, service()).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign_peer.py");
    let mut peer = Command::new(std::env::var_os(PYTHON).unwrap())
        .arg(script)
        .args([ours.to_string(), theirs.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(peer.stdout.take().unwrap()).lines();
    for said in [
        json!({ "what": "serves" }),
        json!({ "what": "healthy", "status": 1 }),
        json!({ "what": "answered", "cents": 250, "tenant": "blue", "code": "OK" }),
        json!({ "what": "refused", "code": "FAILED_PRECONDITION", "message": "there is no unicorn", "details": true }),
        json!({ "what": "refused", "code": "FAILED_PRECONDITION", "message": "there is no ", "details": true }),
        json!({ "what": "nobody", "code": "UNIMPLEMENTED" }),
        json!({ "what": "late", "code": "DEADLINE_EXCEEDED" }),
        json!({ "what": "placed", "name": "" }),
    ] {
        assert_eq!(next(&mut lines).await, said);
    }
    let failed = next(&mut lines).await;
    assert_eq!(failed["code"], "FAILED_PRECONDITION");
    assert!(
        failed["message"]
            .as_str()
            .unwrap()
            .contains("no such thing"),
        "{failed}"
    );
    for said in [
        json!({ "what": "followed", "cents": [1, 2, 3] }),
        json!({ "what": "ended", "read": [], "code": "FAILED_PRECONDITION", "message": "there is no unicorn" }),
        json!({ "what": "ended", "read": [1, 2, 3], "code": "FAILED_PRECONDITION", "message": "there is no lost" }),
        json!({ "what": "left", "first": 1 }),
        json!({ "what": "summed", "cents": 10 }),
        json!({ "what": "haggled", "cents": [1, 2, 3] }),
        json!({ "what": "over" }),
    ] {
        assert_eq!(next(&mut lines).await, said);
    }

    let client = shop.client();
    let item = |name: &str| {
        Proto(Item {
            name: name.to_owned(),
        })
    };
    let rate = client.request::<_, Proto<Quote>>("shop.v1.Rates.Rate", &item("EUR"));
    let rate = rate
        .header("tenant", "green")
        .header("raw", [0, 255].as_slice());
    let Proto(rate) = rate.timeout(Duration::from_secs(10)).await.unwrap();
    assert_eq!((rate.cents, rate.tenant.as_str()), (125, "green"));
    let called = json!({ "what": "called", "tenant": "green", "raw": [0, 255], "has_time": true });
    assert_eq!(next(&mut lines).await, called);

    let ask = async |method: &str, name: &str| {
        client
            .request::<_, Proto<Quote>>(method, &item(name))
            .await
            .unwrap_err()
    };
    let error = ask("shop.v1.Rates.Rate", "XAU").await;
    let remote = error.as_remote().unwrap();
    assert_eq!(
        (remote.code(), remote.message()),
        ("not_found", "no XAU here")
    );
    assert_eq!(
        ask("shop.v1.Rates.Rate", "XXX").await.kind(),
        ErrorKind::Denied
    );
    assert_eq!(
        ask("shop.v1.Rates.Lost", "EUR").await.kind(),
        ErrorKind::NoRoute
    );

    for (name, end) in [("EUR", None), ("XXX", Some("not_found"))] {
        let watching = client.stream::<_, Proto<Quote>>("shop.v1.Rates.Watch", &item(name));
        let mut rates = watching.await.unwrap();
        for cents in 1..=3 {
            let Proto(rate) = rates.next().await.unwrap().unwrap();
            assert_eq!((rate.cents, rate.tenant.as_str()), (cents, name));
        }
        let last = rates.next().await;
        let code = last.map(|last| last.unwrap_err().as_remote().unwrap().code().to_owned());
        assert_eq!(code.as_deref(), end);
    }
    let upload = client.upload::<Proto<Item>, Proto<Quote>>("shop.v1.Rates.Count");
    let mut upload = upload.await.unwrap();
    for name in ["a", "bb"] {
        upload.send(&item(name)).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap().0.cents, 3);
    let echo = client.duplex::<Proto<Item>, Proto<Quote>>("shop.v1.Rates.Echo");
    let (mut items, mut echoes) = echo.await.unwrap();
    for name in ["ccc", "dddd"] {
        items.send(&item(name)).await.unwrap();
        assert_eq!(echoes.next().await.unwrap().unwrap().0.tenant, name);
    }
    items.finish().await.unwrap();
    assert!(echoes.next().await.is_none());

    drop(peer.stdin.take());
    assert!(soon("its end", peer.wait()).await.unwrap().success());
    shop.shutdown().await.unwrap();
}
