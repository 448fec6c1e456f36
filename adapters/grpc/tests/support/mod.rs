//! Apps on gRPC, and what speaks to them without being one.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test program uses its part")]

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anywire::{App, Config, Raw as Payload, Result, Router, RunningApp};
use anywire_conformance::rig::{free_port, soon};
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Response};
use http_body::Frame;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

/// An app with this configuration and no other.
pub(crate) fn app(name: &str, toml: &str) -> App {
    App::new(name)
        .adapter(anywire_grpc::adapter())
        .config(Config::from_toml(toml).unwrap())
}

/// An app with this configuration and these handlers, started.
pub(crate) async fn start(name: &str, toml: &str, router: Router) -> RunningApp {
    app(name, toml).router(router).start().await.unwrap()
}

/// An address of this machine that nobody has.
pub(crate) fn address() -> SocketAddr {
    ([127, 0, 0, 1], free_port().unwrap()).into()
}

/// The configuration of who listens here and calls itself; a step above a second is nothing for this wire.
pub(crate) fn alone(address: SocketAddr) -> String {
    format!("url = 'grpc://?listen={address}'\n[defaults]\nretry = ['10ms', '20ms']")
}

/// The configuration of who calls these.
pub(crate) fn caller(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    format!("url = 'grpc://{}'", addresses.join(","))
}

/// The configuration of who sends events to these groups.
pub(crate) fn groups(groups: &[(&str, &[SocketAddr])]) -> String {
    let mut config = "url = 'grpc://'\n[transports.main.grpc.groups]\n".to_owned();
    for (name, addresses) in groups {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        writeln!(config, "{name} = {addresses:?}").unwrap();
    }
    config
}

/// Whether the server that this app calls says of itself that it serves.
pub(crate) async fn is_serving(caller: &RunningApp) -> bool {
    let client = caller.client();
    // The request is an empty message of Protocol Buffers, and SERVING is 1.
    let empty = Payload(Vec::new().into());
    let check = client.request::<_, Payload>("grpc.health.v1.Health.Check", &empty);
    match check.await.unwrap().0.as_ref() {
        [0x08, 1] => true,
        [0x08, 2] => false,
        other => panic!("{other:?}"),
    }
}

/// A handler that answers with its own number, once it is let through.
#[derive(Clone)]
pub(crate) struct Gate {
    waiting: Arc<Semaphore>,
    free: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        let none = || Arc::new(Semaphore::new(0));
        Self {
            waiting: none(),
            free: none(),
        }
    }

    pub(crate) fn handler(
        &self,
    ) -> impl Fn(u64) -> BoxFuture<'static, Result<u64>> + Clone + Send + Sync + 'static {
        let gate = self.clone();
        move |number| {
            let gate = gate.clone();
            Box::pin(async move {
                gate.waiting.add_permits(1);
                gate.free.acquire().await.unwrap().forget();
                Ok(number)
            })
        }
    }

    /// Waits until so many more have come to it.
    pub(crate) async fn reached_by(&self, count: u32) {
        let reached = self.waiting.acquire_many(count);
        soon("the handlers", reached).await.unwrap().forget();
    }

    /// Lets so many through.
    pub(crate) fn open(&self, count: usize) {
        self.free.add_permits(count);
    }
}

/// A client that writes its frames itself.
pub(crate) struct Raw(Channel);

impl Raw {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self(
            Endpoint::from_shared(format!("http://{address}"))
                .unwrap()
                .connect_lazy(),
        )
    }

    /// Sends these bytes as a body, and gives the answer's status and message.
    pub(crate) async fn send(
        &mut self,
        path: &str,
        headers: &[(&'static str, &[u8])],
        body: Bytes,
    ) -> (u16, Option<String>, String) {
        let mut request = http::Request::post(path).header("te", "trailers");
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc+json");
        }
        for (name, value) in headers {
            request = request.header(*name, http::HeaderValue::from_bytes(value).unwrap());
        }
        let request = request.body(Body::new(OneFrame(Some(body)))).unwrap();
        let response = self.call(request).await;
        let code = response.status().as_u16();
        let said = trailers(response).await;
        let text = |name: &str| {
            said.get(name)
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        (
            code,
            text("grpc-status"),
            text("grpc-message").unwrap_or_default(),
        )
    }

    async fn call(&mut self, request: http::Request<Body>) -> Response<Body> {
        std::future::poll_fn(|cx| self.0.poll_ready(cx))
            .await
            .unwrap();
        self.0.call(request).await.unwrap()
    }
}

/// A client that begins requests and does not end them.
pub(crate) struct Unending {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

/// A request that has begun.
pub(crate) struct Begun {
    pub(crate) answer: ResponseFuture,
    pub(crate) body: SendStream<Bytes>,
}

impl Unending {
    pub(crate) async fn new(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        let (requests, connection) = h2::client::handshake(socket).await.unwrap();
        // Its end is no matter.
        let connection = tokio::spawn(async move { drop(connection.await) });
        Self {
            requests,
            connection,
        }
    }

    pub(crate) async fn begin(&mut self, path: &str) -> Begun {
        self.begin_with(path, &[]).await
    }

    pub(crate) async fn begin_with(&mut self, path: &str, metadata: &[(&str, &str)]) -> Begun {
        std::future::poll_fn(|cx| self.requests.poll_ready(cx))
            .await
            .unwrap();
        let mut request = http::Request::post(format!("http://shop{path}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc+json");
        for (name, value) in metadata {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let (answer, body) = self.requests.send_request(request, false).unwrap();
        Begun { answer, body }
    }
}

impl Drop for Unending {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The headers of a response, and its trailers where there is no status in them.
async fn trailers(response: Response<Body>) -> HeaderMap {
    let (parts, mut body) = response.into_parts();
    let mut all = parts.headers;
    let frame =
        |body: &mut Body, cx: &mut Context<'_>| http_body::Body::poll_frame(Pin::new(body), cx);
    while let Some(Ok(part)) = std::future::poll_fn(|cx| frame(&mut body, cx)).await {
        if let Ok(trailers) = part.into_trailers() {
            all.extend(trailers);
        }
    }
    all
}

/// A gRPC frame with this payload, and with this length in its head.
pub(crate) fn frame(payload: &[u8], length: u32) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(length);
    frame.put_slice(payload);
    frame.freeze()
}

struct OneFrame(Option<Bytes>);

impl http_body::Body for OneFrame {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}
