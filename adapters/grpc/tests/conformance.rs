//! The conformance suite on gRPC. Its clients are transports of one program that share one server, as many services would each have
//! their own: what one publishes or calls goes through a socket to the others.
//!
//! Events are at most once here, as the suite's senders do not wait for handlers. What is at least once on gRPC, where the sender
//! is the store, is in `events.rs`.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anywire::Subject;
use anywire::pattern::publish_subscribe::SubscriptionId;
use anywire::transport::Adapter;
use anywire_conformance::rig::free_port;
use anywire_conformance::{Foreign, Harness, Raw};
use anywire_grpc::GrpcAdapter;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

fn main() -> ExitCode {
    // The server lives as long as the suite, on a runtime of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let port = free_port().expect("a free port");
    let _entered = runtime.enter();
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"));
    let grpc = Grpc {
        port,
        adapter: anywire_grpc::adapter().runtime(runtime.handle().clone()),
        native: endpoint.expect("an address").connect_lazy(),
        runtime: runtime.handle().clone(),
    };
    let skips = Path::new(env!("CARGO_MANIFEST_DIR")).join("skips/grpc.txt");
    anywire_conformance::run(grpc, skips)
}

struct Grpc {
    port: u16,
    adapter: GrpcAdapter,
    native: Channel,
    runtime: tokio::runtime::Handle,
}

impl Harness for Grpc {
    fn name(&self) -> &str {
        "grpc"
    }

    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::new(self.adapter.clone())
    }

    fn config(&self) -> String {
        let port = self.port;
        format!("url = 'grpc://?listen=127.0.0.1:{port}'\n[defaults]\ndelivery = \"at_most_once\"")
    }

    fn raw(&self) -> Option<&dyn Raw> {
        Some(self)
    }
}

#[async_trait]
impl Raw for Grpc {
    async fn publish(&self, subject: &Subject, message: Foreign) -> io::Result<()> {
        let subject = subject.as_str();
        let (service, method) = subject.rsplit_once('.').unwrap_or(("_", subject));
        let mut frame = BytesMut::with_capacity(message.payload.len() + 5);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.payload.len()).map_err(io::Error::other)?);
        frame.put(message.payload);
        let mut request = http::Request::post(format!("/{service}/{method}"))
            .header("content-type", "application/grpc+json")
            .header("te", "trailers");
        for (name, value) in message.headers {
            let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
            let (name, value) = match std::str::from_utf8(&value) {
                Ok(text) if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) => {
                    (name, text.to_owned())
                }
                _ => (format!("{name}-bin"), STANDARD_NO_PAD.encode(&value)),
            };
            let name =
                HeaderName::try_from(name.to_ascii_lowercase()).map_err(|_| unsupported())?;
            let value = HeaderValue::try_from(value).map_err(|_| unsupported())?;
            request = request.header(name, value);
        }
        let body = Body::new(OneFrame(Some(frame.freeze())));
        let request = request.body(body).map_err(io::Error::other)?;
        let mut native = self.native.clone();
        // The native connection outlives the test's runtime.
        let sending = self.runtime.spawn(async move {
            std::future::poll_fn(|cx| native.poll_ready(cx)).await?;
            native.call(request).await
        });
        let response = sending
            .await
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?;
        match response.headers().get("grpc-status") {
            Some(status) if status != "0" => Err(io::Error::other(format!("{status:?}"))),
            _ => Ok(()),
        }
    }

    async fn depth(&self, _: &SubscriptionId) -> io::Result<Option<u64>> {
        Ok(None)
    }
}

struct OneFrame(Option<Bytes>);

impl http_body::Body for OneFrame {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        let frame = self.0.take().map(|bytes| Ok(http_body::Frame::data(bytes)));
        std::task::Poll::Ready(frame)
    }
}
