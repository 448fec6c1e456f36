//! RabbitMQ as a harness.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anywire::Subject;
use anywire::pattern::publish_subscribe::SubscriptionId;
use anywire::transport::Adapter;
use anywire_conformance::rig::{Broker, trials};
use anywire_conformance::{BrokerControl, Foreign, Harness, Raw};
use async_trait::async_trait;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::{CTL, SERVER, Server, Tool};

/// Runs the suite on a server of its own, which it may break.
pub(crate) fn run() -> ExitCode {
    if let Some(reason) = trials::missing(&[SERVER, CTL]) {
        println!("rabbitmq: ignored, {reason}");
        return ExitCode::SUCCESS;
    }
    // The proxy lives as long as the suite.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let rabbitmq = runtime.block_on(async {
        let server = Server::start("")?;
        let (url, tool) = (server.url(), server.tool());
        // The library's first connection starts a thread that serves all others until the process ends.
        let first = super::foreign(&url).await;
        first
            .close(200, "OK".into())
            .await
            .map_err(io::Error::other)?;
        Ok::<_, io::Error>(Rabbitmq {
            url,
            tool,
            broker: server.behind_a_proxy().await,
            runtime: runtime.handle().clone(),
        })
    });
    let skips = Path::new(env!("CARGO_MANIFEST_DIR")).join("skips/rabbitmq.txt");
    anywire_conformance::run(rabbitmq.expect("a RabbitMQ"), skips)
}

struct Rabbitmq {
    url: String,
    tool: Tool,
    broker: Broker,
    runtime: tokio::runtime::Handle,
}

impl Harness for Rabbitmq {
    fn name(&self) -> &str {
        "rabbitmq"
    }

    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::new(anywire_rabbitmq::adapter())
    }

    fn config(&self) -> String {
        // The library's heartbeat notices after half an interval that its connection is closed; until then the suite would take
        // it for a leak.
        let address = self.broker.proxy.address();
        format!("url = \"amqp://{address}\"\n[transports.main.rabbitmq]\nheartbeat = \"2s\"")
    }

    fn patience(&self, stops_the_broker: bool) -> Duration {
        // It starts in four seconds on a quiet machine.
        Duration::from_secs(if stops_the_broker { 45 } else { 0 })
    }

    fn broker(&self) -> Option<&dyn BrokerControl> {
        Some(self)
    }

    fn raw(&self) -> Option<&dyn Raw> {
        Some(self)
    }
}

#[async_trait]
impl BrokerControl for Rabbitmq {
    async fn start(&self) -> io::Result<()> {
        self.broker.start().await
    }

    async fn stop(&self) -> io::Result<()> {
        self.broker.stop().await
    }

    async fn kill(&self) -> io::Result<()> {
        // What is killed here is a broker that has come to rest.
        self.tool.write_down_queues();
        self.broker.kill().await
    }

    async fn freeze(&self) -> io::Result<()> {
        self.broker.freeze().await
    }

    async fn thaw(&self) -> io::Result<()> {
        self.broker.thaw().await
    }

    async fn cut(&self) -> io::Result<()> {
        self.broker.cut().await
    }

    async fn heal(&self) -> io::Result<()> {
        self.broker.heal().await
    }

    async fn kill_connections(&self) -> io::Result<()> {
        self.broker.kill_connections().await
    }
}

#[async_trait]
impl Raw for Rabbitmq {
    async fn publish(&self, subject: &Subject, message: Foreign) -> io::Result<()> {
        let url = self.url.clone();
        let key = subject.to_string();
        // A connection's tasks and thread would be taken for a leak of the test that made it.
        let published = self.runtime.spawn(async move {
            let mut headers: BTreeMap<ShortString, AMQPValue> = BTreeMap::new();
            for (name, value) in message.headers {
                let value = AMQPValue::LongString(value.to_vec().into());
                headers.insert(name.into(), value);
            }
            let connection = super::foreign(&url).await;
            let channel = connection.create_channel().await?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_headers(FieldTable::from(headers));
            let options = BasicPublishOptions::default();
            let sent = channel.basic_publish(
                "anywire".into(),
                key.into(),
                options,
                &message.payload,
                properties,
            );
            sent.await?.await?;
            connection.close(200, "OK".into()).await
        });
        published
            .await
            .map_err(io::Error::other)?
            .map_err(io::Error::other)
    }

    async fn depth(&self, subscription: &SubscriptionId) -> io::Result<Option<u64>> {
        let Some(group) = &subscription.group else {
            return Ok(None);
        };
        let queue = format!("anywire/{group}/{}", subscription.pattern.wildcards());
        let url = self.url.clone();
        let counted = self.runtime.spawn(async move {
            let connection = super::foreign(&url).await;
            let channel = connection.create_channel().await?;
            let options = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let declared = channel.queue_declare(queue.into(), options, FieldTable::default());
            let count = declared.await?.message_count();
            connection.close(200, "OK".into()).await?;
            Ok::<_, lapin::Error>(u64::from(count))
        });
        let counted = counted.await.map_err(io::Error::other)?;
        counted.map(Some).map_err(io::Error::other)
    }
}
