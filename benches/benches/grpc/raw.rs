//! What a careful person writes on tonic, with JSON as the codec.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anywire_benches::progress::text;
use anywire_benches::{Measured, allocated, call};
use bytes::{Buf, BufMut};
use futures::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse, uri::PathAndQuery};
use tonic::server::{NamedService, ServerStreamingService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tower_service::Service;

/// As long as ours allows a call.
const DEADLINE: Duration = Duration::from_secs(30);

struct Json<E, D>(PhantomData<fn() -> (E, D)>);

impl<E, D> Json<E, D> {
    fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> Codec for Json<E, D>
where
    E: Serialize + Send + 'static,
    D: DeserializeOwned + Send + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::new()
    }

    fn decoder(&mut self) -> Self {
        Self::new()
    }
}

impl<E: Serialize + Send + 'static, D> Encoder for Json<E, D> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        serde_json::to_writer(frame.writer(), &item)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl<E, D: DeserializeOwned + Send + 'static> Decoder for Json<E, D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, frame: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let bytes = frame.copy_to_bytes(frame.remaining());
        let item = serde_json::from_slice(&bytes);
        item.map(Some)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// Echoes, and streams as many texts as it is asked for.
#[derive(Clone)]
struct Bench(String);

impl NamedService for Bench {
    const NAME: &'static str = "bench.Bench";
}

struct Echo;

impl UnaryService<String> for Echo {
    type Response = String;
    type Future = Ready<Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

struct Many(String);

type Texts = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

impl ServerStreamingService<u64> for Many {
    type Response = String;
    type ResponseStream = Texts;
    type Future = Ready<Result<Response<Texts>, Status>>;

    fn call(&mut self, request: Request<u64>) -> Self::Future {
        let text = self.0.clone();
        let texts = (0..request.into_inner()).map(move |_| Ok(text.clone()));
        ready(Ok(Response::new(Box::pin(futures::stream::iter(texts)))))
    }
}

impl Service<HttpRequest<Body>> for Bench {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let text = self.0.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/bench.Bench/Echo" => {
                    let mut grpc = tonic::server::Grpc::new(Json::<String, String>::new());
                    grpc.unary(Echo, request).await
                }
                "/bench.Bench/Many" => {
                    let mut grpc = tonic::server::Grpc::new(Json::<String, u64>::new());
                    grpc.server_streaming(Many(text), request).await
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

/// A server, and a client that is connected to it.
async fn connect(size: usize) -> (JoinHandle<()>, Grpc<Channel>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    let incoming = TcpIncoming::from(socket).with_nodelay(Some(true));
    let service = Bench(text(size));
    let serving = tokio::spawn(async move {
        let server = Server::builder().add_service(service);
        server.serve_with_incoming(incoming).await.expect("serves");
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let channel = endpoint.expect("an address").connect().await;
    (serving, Grpc::new(channel.expect("a server")))
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

async fn open(client: &mut Grpc<Channel>, count: u64) -> tonic::Streaming<String> {
    client.ready().await.expect("connected");
    let path = PathAndQuery::from_static("/bench.Bench/Many");
    let codec = Json::<u64, String>::new();
    let opened = client.server_streaming(request(count), path, codec);
    opened.await.expect("opens").into_inner()
}

pub(crate) async fn calls(callers: u64, count: u64) -> Measured {
    let (serving, client) = connect(128).await;
    let text = text(128);
    let measured = call(callers, count, 1, move |_| {
        let (mut client, text) = (client.clone(), text.clone());
        async move {
            client.ready().await.expect("connected");
            let path = PathAndQuery::from_static("/bench.Bench/Echo");
            let codec = Json::<String, String>::new();
            let answered = tokio::time::timeout(DEADLINE, client.unary(request(text), path, codec));
            let reply = answered.await.expect("in time").expect("answers");
            std::hint::black_box(reply.into_inner());
        }
    })
    .await;
    serving.abort();
    measured
}

pub(crate) async fn stream(size: usize, count: u64) -> Measured {
    let (serving, mut client) = connect(size).await;
    let (start, before) = (Instant::now(), allocated());
    let mut texts = open(&mut client, count).await;
    while let Some(text) = texts.next().await {
        std::hint::black_box(text.expect("comes"));
    }
    let measured = Measured::since(start, before, count);
    serving.abort();
    measured
}

pub(crate) async fn first_item(count: u64) -> Measured {
    let (serving, client) = connect(128).await;
    let measured = call(1, count, 1, move |_| {
        let mut client = client.clone();
        async move {
            let first = open(&mut client, 1).await.next().await;
            std::hint::black_box(first.expect("one").expect("comes"));
        }
    })
    .await;
    serving.abort();
    measured
}
