//! NATS as a harness: with JetStream, or without.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anywire::Subject;
use anywire::pattern::publish_subscribe::SubscriptionId;
use anywire::transport::Adapter;
use anywire_conformance::rig::{Broker, trials};
use anywire_conformance::{BrokerControl, Foreign, Harness, Raw};
use async_nats::jetstream::consumer;
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use async_trait::async_trait;
use futures::TryStreamExt;

use super::{SERVER, Server};

/// Runs the suite on a server of its own, which it may break.
pub(crate) fn run(name: &'static str, config: &'static str) -> ExitCode {
    if let Some(reason) = trials::missing(&[SERVER]) {
        println!("{name}: ignored, {reason}");
        return ExitCode::SUCCESS;
    }
    // The proxy and the native client live as long as the suite.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let nats = runtime.block_on(async {
        let server = Server::start("")?;
        let native = async_nats::connect(server.url()).await;
        Ok::<_, io::Error>(Nats {
            name,
            config,
            broker: server.behind_a_proxy().await,
            native: native.map_err(io::Error::other)?,
        })
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("skips");
    let skips = folder.join(name).with_extension("txt");
    anywire_conformance::run(nats.expect("a NATS server"), skips)
}

struct Nats {
    name: &'static str,
    config: &'static str,
    broker: Broker,
    native: async_nats::Client,
}

impl Harness for Nats {
    fn name(&self) -> &str {
        self.name
    }

    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::new(anywire_nats::adapter())
    }

    fn config(&self) -> String {
        let address = self.broker.proxy.address();
        format!("url = \"nats://{address}\"\n{}", self.config)
    }

    fn broker(&self) -> Option<&dyn BrokerControl> {
        Some(&self.broker)
    }

    fn raw(&self) -> Option<&dyn Raw> {
        Some(self)
    }
}

#[async_trait]
impl Raw for Nats {
    async fn publish(&self, subject: &Subject, message: Foreign) -> io::Result<()> {
        let mut headers = HeaderMap::new();
        for (name, value) in message.headers {
            let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
            let value = std::str::from_utf8(&value).map_err(|_| unsupported())?;
            let name = HeaderName::from_str(&name).map_err(|_| unsupported())?;
            let value = HeaderValue::from_str(value).map_err(|_| unsupported())?;
            headers.append(name, value);
        }
        let subject = subject.to_string();
        let published = self
            .native
            .publish_with_headers(subject, headers, message.payload);
        published.await.map_err(io::Error::other)?;
        self.native.flush().await.map_err(io::Error::other)
    }

    async fn depth(&self, subscription: &SubscriptionId) -> io::Result<Option<u64>> {
        let context = async_nats::jetstream::new(self.native.clone());
        let mut depth = None;
        let streams: Vec<_> = context
            .streams()
            .try_collect()
            .await
            .map_err(io::Error::other)?;
        for info in streams {
            let stream = context.get_stream_no_info(&info.config.name).await;
            let stream = stream.map_err(io::Error::other)?;
            let consumers: Vec<consumer::Info> = stream
                .consumers()
                .try_collect()
                .await
                .map_err(io::Error::other)?;
            for info in consumers
                .iter()
                .filter(|info| serves(&info.config.metadata, subscription))
            {
                let waiting = info.num_pending + info.num_ack_pending as u64;
                depth = Some(depth.unwrap_or_default() + waiting);
            }
        }
        Ok(depth)
    }
}

fn serves(metadata: &HashMap<String, String>, subscription: &SubscriptionId) -> bool {
    let said = |key: &str| metadata.get(key).map(String::as_str);
    said("anywire.group") == subscription.group.as_deref()
        && said("anywire.pattern") == Some(subscription.pattern.wildcards())
}
