//! Kafka as a harness.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anywire::Subject;
use anywire::pattern::publish_subscribe::SubscriptionId;
use anywire::transport::Adapter;
use anywire_conformance::rig::trials;
use anywire_conformance::{BrokerControl, Foreign, Harness, Raw};
use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{SERVER, Server};

/// How long the broker may take to answer the tests' own questions.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the suite on a server of its own, which it may break.
pub(crate) fn run(name: &'static str, config: &'static str) -> ExitCode {
    if let Some(reason) = trials::missing(&[SERVER]) {
        println!("{name}: ignored, {reason}");
        return ExitCode::SUCCESS;
    }
    // The proxy lives as long as the suite.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let kafka = runtime.block_on(async {
        let server = Server::start("").await?;
        Ok::<_, io::Error>(Kafka {
            name,
            config,
            server,
        })
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("skips");
    let skips = folder.join(name).with_extension("txt");
    anywire_conformance::run(kafka.unwrap(), skips)
}

struct Kafka {
    name: &'static str,
    config: &'static str,
    server: Server,
}

impl Harness for Kafka {
    fn name(&self) -> &str {
        self.name
    }

    fn adapter(&self) -> Arc<dyn Adapter> {
        Arc::new(anywire_kafka::adapter())
    }

    fn config(&self) -> String {
        format!("url = \"{}\"\n{}", self.server.url(), self.config)
    }

    fn patience(&self, stops_the_broker: bool) -> Duration {
        // It starts in four seconds on a quiet machine, a member that joins a group or leaves takes a tenth of a second, and one that
        // could not say goodbye is missed for a session of six.
        Duration::from_secs(if stops_the_broker { 60 } else { 20 })
    }

    fn broker(&self) -> Option<&dyn BrokerControl> {
        Some(&self.server.broker)
    }

    fn raw(&self) -> Option<&dyn Raw> {
        Some(self)
    }
}

#[async_trait]
impl Raw for Kafka {
    async fn publish(&self, subject: &Subject, message: Foreign) -> io::Result<()> {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &message.headers {
            let value = Some(value.as_ref());
            headers = headers.insert(Header { key, value });
        }
        let payload: &[u8] = &message.payload;
        let record = FutureRecord::<[u8], [u8]>::to(subject.as_str())
            .payload(payload)
            .headers(headers);
        // It lives for one message: a broker that goes and comes changes how many threads it has, which is taken for a leak.
        let native: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", self.server.address().to_string())
            .set("linger.ms", "0")
            .create()
            .map_err(io::Error::other)?;
        let sent = native.send(record, PATIENCE).await;
        sent.map(drop).map_err(|(error, _)| io::Error::other(error))
    }

    async fn depth(&self, subscription: &SubscriptionId) -> io::Result<Option<u64>> {
        let (Some(group), Some(subject)) = (&subscription.group, subscription.pattern.as_subject())
        else {
            return Ok(None);
        };
        let (servers, group) = (self.server.address().to_string(), group.to_string());
        let depth = tokio::task::spawn_blocking(move || lag(&servers, &group, subject.as_str()));
        depth.await?.map(Some).map_err(io::Error::other)
    }
}

/// How far a group is behind in a topic.
fn lag(servers: &str, group: &str, topic: &str) -> rdkafka::error::KafkaResult<u64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", group)
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let mut list = TopicPartitionList::new();
    let partitions = metadata
        .topics()
        .iter()
        .flat_map(|topic| topic.partitions());
    for partition in partitions {
        list.add_partition(topic, partition.id());
    }
    let mut lag = 0;
    for place in consumer.committed_offsets(list, PATIENCE)?.elements() {
        let (low, high) = consumer.fetch_watermarks(topic, place.partition(), PATIENCE)?;
        let at = match place.offset() {
            Offset::Offset(offset) => offset,
            _ => low,
        };
        lag += high.saturating_sub(at).max(0).unsigned_abs();
    }
    Ok(lag)
}
