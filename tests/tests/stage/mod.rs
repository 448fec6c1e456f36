//! An app of ours on a wire, and a foreign program that takes part.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test program uses its part")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anywire::transport::Adapter;
use anywire::{
    App, Client, Context, ErrorKind, Failure, HandlerError, Headers, Inbound, MessageId, Param,
    Route, Router, RunningApp, Subscription,
};
use futures::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A Python with the client libraries.
pub(crate) const PYTHON: &str = "ANYWIRE_TEST_PYTHON";
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
pub(crate) struct Seen {
    pub(crate) order: String,
    pub(crate) count: u32,
    pub(crate) region: String,
    pub(crate) tenant: Option<String>,
    pub(crate) id: Option<MessageId>,
    pub(crate) key: Option<Vec<u8>>,
}

impl Seen {
    /// The order that every foreign program sends, as far as all wires carry it.
    pub(crate) fn sample() -> Self {
        Self {
            order: "o-1".into(),
            count: 2,
            region: "eu".into(),
            tenant: Some("blue".into()),
            id: Some("order-1".into()),
            key: None,
        }
    }
}

/// The app, the program, and what they tell.
pub(crate) struct Stage {
    /// The first of all subjects' tokens, which is the app's name, too.
    pub(crate) token: String,
    app: RunningApp,
    seen: mpsc::UnboundedReceiver<Seen>,
    charges: Subscription<Value>,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Stage {
    /// Starts both: the app on the server that the variable `url` names, the program from `foreign/`.
    pub(crate) async fn open(adapter: impl Adapter, url: &str, script: &str) -> Self {
        let [url, python] = [url, PYTHON].map(|name| std::env::var(name).unwrap());
        let token = format!("foreign-{}", MessageId::random());
        let (saw, seen) = mpsc::unbounded_channel();
        let app = App::new(&*token).adapter(adapter).url(&url);
        let app = app.router(service(&token, saw)).start().await.unwrap();
        // What the handler emits is stored once somebody has subscribed to it.
        let charges = app.client();
        let charges = charges.subscribe::<Value>(&format!("{token}.charged"));
        let charges = charges.group("books").await.unwrap();

        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("foreign")
            .join(script);
        let mut child = Command::new(python)
            .arg(script)
            .args([&url, &token])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            token,
            app,
            seen,
            charges,
            child,
            lines,
        }
    }

    /// What the program did next.
    pub(crate) async fn tells(&mut self) -> Value {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.expect("a word in time").unwrap();
        serde_json::from_str(&line.expect("a word before its end")).unwrap()
    }

    /// The order that the handler is given next.
    pub(crate) async fn order(&mut self) -> Seen {
        let seen = timeout(PATIENCE, self.seen.recv()).await;
        seen.expect("an order in time").unwrap()
    }

    /// It has read what the handler emitted, and the dead letter of what was no order.
    pub(crate) async fn reads(&mut self) {
        let read = json!({
            "what": "read",
            "subject": format!("{}.charged", self.token),
            "payload": { "order": "o-1" },
            "has_id": true,
            "key": "c-17",
        });
        assert_eq!(self.tells().await, read);
        let past = json!({
            "subject": format!("{}.eu.placed", self.token),
            "group": self.token,
            "handler": "placed",
            "attempt": "1",
        });
        let buried = json!({ "what": "buried", "payload": "three mugs", "past": past });
        assert_eq!(self.tells().await, buried);
    }

    /// It has called: once well, once in vain.
    pub(crate) async fn calls(&mut self) {
        let answered = self.tells().await;
        assert_eq!(answered["payload"], json!(250), "{answered}");
        assert_eq!(answered["headers"], json!({}), "{answered}");
        let refused = self.tells().await;
        assert_eq!(refused["headers"]["anywire-error"], "unknown_item");
        assert_eq!(refused["payload"]["message"], "there is no unicorn");
        assert_eq!(
            refused["payload"]["details"],
            json!({ "UnknownItem": { "item": "unicorn" } })
        );
    }

    /// It has made streaming calls: read one to its end, one to its error, one that was refused, and sent one.
    pub(crate) async fn streams(&mut self) {
        let streamed = json!({ "what": "streamed", "in_order": true });
        assert_eq!(self.tells().await, streamed);
        let failed = self.tells().await;
        assert_eq!(failed["items"], json!([1, 2, 3, 4, 5]), "{failed}");
        assert_eq!(failed["code"], "too_far");
        assert_eq!(failed["payload"]["message"], "no further");
        let refused = json!({ "what": "turned away", "code": "invalid_payload" });
        assert_eq!(self.tells().await, refused);
        let uploaded = json!({ "what": "uploaded", "items": [500_500] });
        assert_eq!(self.tells().await, uploaded);
    }

    /// It is called: it answers once, and refuses once.
    pub(crate) async fn is_called(&self) {
        let client = self.app.client();
        let rate = format!("{}.rate", self.token);
        let euros: f64 = client.request(&rate, "EUR").await.unwrap();
        assert_eq!(euros, 1.25);
        let error = client.request::<_, f64>(&rate, "XAU").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Remote, "{error:?}");
        let remote = error.as_remote().unwrap();
        assert_eq!(
            (remote.code(), remote.message()),
            ("unknown_currency", "no XAU here")
        );
        assert_eq!(remote.details_as(), Some(json!({ "asked": "XAU" })));
    }

    /// Both end well, and no further order came.
    pub(crate) async fn close(mut self) {
        let status = timeout(PATIENCE, self.child.wait()).await;
        assert!(status.expect("an end in time").unwrap().success());
        drop(self.charges);
        self.app.shutdown().await.unwrap();
        assert_eq!(self.seen.recv().await, None, "an order came twice");
    }
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
            let message = context.message();
            let _ = saw.send(Seen {
                order: order.id,
                count: order.count,
                region,
                tenant: headers.get_str("tenant").map(str::to_owned),
                id: message.id().cloned(),
                key: message.key().map(|key| key.as_bytes().to_vec()),
            });
            Ok::<(), Failure>(())
        }
    };
    let quote = async |item: String| match item.as_str() {
        "tea" => Ok(250),
        _ => Err(QuoteError::UnknownItem { item }),
    };
    // A number below zero ends in an error.
    let count = |to: i64| {
        let error = Failure::permanent("no further").with_code("too_far");
        let end = (to < 0).then_some(Err::<i64, _>(error));
        stream::iter((1..=to.abs()).map(Ok).chain(end))
    };
    let sum = async |mut numbers: Inbound<i64>| {
        let mut sum = 0;
        while let Some(number) = numbers.next().await {
            sum += number?;
        }
        Ok::<_, Failure>(sum)
    };
    Router::new()
        .on_stream(&format!("{token}.count"), count)
        .on_stream(&format!("{token}.sum"), sum)
        .route(Route::event(&*format!("{token}.{{region}}.placed"), placed).name("placed"))
        .on_call(&format!("{token}.quote"), quote)
}
