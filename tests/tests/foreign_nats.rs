//! A NATS program that knows nothing of anywire takes part, by what `docs/wire.md` says: it sends an order, reads an event,
//! calls a handler and answers calls. It is `foreign/nats_client.py`, on the client library of NATS for Python.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anywire::{
    App, Client, Context, ErrorKind, Failure, HandlerError, Headers, Message, MessageId, Param,
    Router,
};
use anywire_conformance::trials;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A server's address, and a Python with the client library.
const NEEDS: [&str; 2] = ["ANYWIRE_TEST_NATS_URL", "ANYWIRE_TEST_PYTHON"];
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
struct Order {
    id: String,
    count: u32,
}

#[derive(Debug, Serialize, Deserialize, HandlerError)]
enum QuoteError {
    #[handler_error(message = "there is no {item}")]
    UnknownItem { item: String },
}

/// What the order's handler saw.
#[derive(Debug, PartialEq)]
struct Seen {
    order: String,
    count: u32,
    region: String,
    tenant: Option<String>,
    id: Option<MessageId>,
}

trials![[NEEDS[0], NEEDS[1]] => a_foreign_program_takes_part];

async fn a_foreign_program_takes_part() {
    let [url, python] = NEEDS.map(|name| std::env::var(name).unwrap());
    let token = format!("foreign-{}", MessageId::random());
    let (saw, mut seen) = mpsc::unbounded_channel();
    let service = service(&token, saw);
    let app = App::new(&*token).adapter(anywire_nats::adapter());
    let app = app.router(service).url(&url).start().await.unwrap();
    // The stream that stores what the handler emits is there once somebody subscribed to it.
    let client = app.client();
    let charges = client.subscribe::<Value>(&format!("{token}.charged"));
    let charges = charges.group("books").await.unwrap();

    let mut foreign = Foreign::start(&python, &url, &token);
    assert_eq!(foreign.tells().await, json!({ "what": "serves" }));
    let sent = foreign.tells().await;
    // The same message sent twice is stored once.
    assert_eq!(
        sent,
        json!({ "what": "sent", "stream": format!("anywire-{token}"), "repeated": true })
    );
    let order = Seen {
        order: "o-1".into(),
        count: 2,
        region: "eu".into(),
        tenant: Some("blue".into()),
        id: Some("order-1".into()),
    };
    assert_eq!(seen.recv().await, Some(order));

    let read = json!({
        "what": "read",
        "subject": format!("{token}.charged"),
        "payload": { "order": "o-1" },
        "has_id": true,
        "key": "c-17",
    });
    assert_eq!(foreign.tells().await, read);

    let answered = json!({ "what": "answered", "payload": 250, "headers": {} });
    assert_eq!(foreign.tells().await, answered);
    let refused = foreign.tells().await;
    assert_eq!(refused["code"], "unknown_item");
    assert_eq!(refused["payload"]["message"], "there is no unicorn");
    assert_eq!(
        refused["payload"]["details"],
        json!({ "UnknownItem": { "item": "unicorn" } })
    );
    assert_eq!(foreign.tells().await, json!({ "what": "nobody" }));

    let rate = format!("{token}.rate");
    let euros: f64 = client.request(&rate, "EUR").await.unwrap();
    assert_eq!(euros, 1.25);
    let error = app
        .client()
        .request::<_, f64>(&rate, "XAU")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    let remote = error.as_remote().unwrap();
    assert_eq!(
        (remote.code(), remote.message()),
        ("unknown_currency", "no XAU here")
    );
    assert_eq!(remote.details_as(), Some(json!({ "asked": "XAU" })));

    foreign.ends_well().await;
    drop(charges);
    app.shutdown().await.unwrap();
    assert_eq!(seen.recv().await, None, "the repeated message came, too");
}

fn service(token: &str, saw: mpsc::UnboundedSender<Seen>) -> Router {
    let charged = format!("{token}.charged");
    let placed = move |order: Order,
                       Param(region): Param<String>,
                       headers: Headers,
                       context: Context,
                       client: Client| {
        let (saw, charged) = (saw.clone(), charged.clone());
        async move {
            client
                .emit(&charged, &json!({ "order": order.id }))
                .key("c-17")
                .await?;
            let message: &Message = context.message();
            let tenant = headers.get_str("tenant").map(str::to_owned);
            let id = message.id().cloned();
            let _ = saw.send(Seen {
                order: order.id,
                count: order.count,
                region,
                tenant,
                id,
            });
            Ok::<(), Failure>(())
        }
    };
    let quote = async |item: String| match item.as_str() {
        "tea" => Ok(250),
        _ => Err(QuoteError::UnknownItem { item }),
    };
    Router::new()
        .on_event(&format!("{token}.{{region}}.placed"), placed)
        .on_call(&format!("{token}.quote"), quote)
}

struct Foreign {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Foreign {
    fn start(python: &str, url: &str, token: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("foreign/nats_client.py");
        let mut child = Command::new(python)
            .arg(script)
            .args([url, token])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it did next.
    async fn tells(&mut self) -> Value {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.expect("a word in time").unwrap();
        serde_json::from_str(&line.expect("a word before its end")).unwrap()
    }

    async fn ends_well(mut self) {
        let status = timeout(PATIENCE, self.child.wait()).await;
        assert!(status.expect("an end in time").unwrap().success());
    }
}
