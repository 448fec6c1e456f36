//! A Kafka of the tests' own, and apps on it.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod harness;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anywire::{App, Config};
use anywire_conformance::proxy::Proxy;
use anywire_conformance::rig::{Broker, Program, free_port};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tempfile::TempDir;

/// The variable that names the program that starts a Kafka.
pub(crate) const SERVER: &str = "ANYWIRE_TEST_KAFKA_SERVER";
/// The variable that tells of a Kafka that runs, for tests that do not break it.
pub(crate) const URL: &str = "ANYWIRE_TEST_KAFKA_URL";
/// What its log says when it takes connections.
const READY: &str = "Kafka Server started";
const CONFIG: &str = "added.properties";

/// A server behind a proxy, and its own address.
///
/// A client is told where the broker is by the broker itself, so that is the proxy's address, or it would go round it.
pub(crate) struct Server {
    pub(crate) broker: Broker,
    address: SocketAddr,
}

impl Server {
    /// Starts a server; `config` is added to its properties.
    pub(crate) async fn start(config: &str) -> io::Result<Self> {
        let launcher = std::env::var_os(SERVER).map(PathBuf::from);
        let launcher = launcher.ok_or_else(|| io::Error::other("there is no server"))?;
        let (data, port) = (TempDir::new()?, free_port()?);
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let proxy = Proxy::start(address).await?;
        let seen = proxy.address();
        // For those who know it by its own address there is a second listener.
        let lines = format!(
            "advertised.listeners=CLIENT://{seen}\ninter.broker.listener.name=CLIENT\n\
             controller.quorum.append.linger.ms=0\n{config}\n"
        );
        std::fs::write(data.path().join(CONFIG), lines)?;
        // The data goes with the program.
        let command = move || {
            let mut command = Command::new(&launcher);
            command.arg(port.to_string()).arg(data.path().join("data"));
            command.arg(data.path().join(CONFIG));
            // It lives too briefly for its code to be worth much of the processors.
            command.env("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1");
            command
        };
        let program = Program::start(command, |line| line.contains(READY))?;
        let broker = Broker { program, proxy };
        Ok(Self { broker, address })
    }

    /// Where clients reach it, through the proxy.
    pub(crate) fn address(&self) -> SocketAddr {
        self.broker.proxy.address()
    }

    pub(crate) fn url(&self) -> String {
        format!("kafka://{}", self.address())
    }
}

/// Where the Kafka is that runs.
pub(crate) fn url() -> String {
    std::env::var(URL).unwrap()
}

/// A name that no other test uses.
pub(crate) fn unique(name: &str) -> String {
    format!("{name}-{:08x}", rand::random::<u32>())
}

/// The settings of a native client of a Kafka.
pub(crate) fn native(url: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", url.trim_start_matches("kafka://"))
        .set("linger.ms", "0");
    client
}

/// A client that writes as programs do that know nothing of us.
pub(crate) fn foreign(url: &str) -> FutureProducer {
    native(url).create().unwrap()
}

/// Writes a record.
pub(crate) async fn write(foreign: &FutureProducer, record: FutureRecord<'_, [u8], [u8]>) {
    let sent = foreign.send(record, Duration::from_secs(10)).await;
    sent.map_err(|(error, _)| error).unwrap();
}

pub(crate) fn admin(url: &str) -> AdminClient<DefaultClientContext> {
    native(url).create().unwrap()
}

/// An app on Kafka, without the process' own configuration.
pub(crate) fn app(name: &str, url: &str) -> App {
    configured(name, &format!("url = {url:?}"))
}

/// An app with this configuration and no other.
pub(crate) fn configured(name: &str, toml: &str) -> App {
    App::new(name)
        .adapter(anywire_kafka::adapter())
        .config(Config::from_toml(toml).unwrap())
}
