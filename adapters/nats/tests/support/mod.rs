//! A nats-server of the tests' own, and apps on it.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod harness;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;

use anywire::{App, Config, Router, RunningApp};
use anywire_conformance::rig::{Broker, Program, Seen, free_port};
use async_nats::jetstream;
use tempfile::TempDir;

/// The variable that names the program `nats-server`.
pub(crate) const SERVER: &str = "ANYWIRE_TEST_NATS_SERVER";
/// How the line of its log ends after which it takes connections.
const READY: &str = "Server is ready";
const CONFIG: &str = "server.conf";

/// A server on a port and with data of its own. It ends with its value.
pub(crate) struct Server {
    program: Program,
    port: u16,
}

impl Server {
    /// Starts a server with JetStream; `config` is added to its configuration file.
    pub(crate) fn start(config: &str) -> io::Result<Self> {
        let binary = std::env::var_os(SERVER).map(PathBuf::from);
        let binary = binary.ok_or_else(|| io::Error::other("there is no server"))?;
        let (data, port) = (TempDir::new()?, free_port()?);
        let store = data.path().join("store");
        let lines = format!("jetstream {{ store_dir: {store:?} }}\n{config}\n");
        std::fs::write(data.path().join(CONFIG), lines)?;
        // The data goes with the program.
        let command = move || {
            let mut command = Command::new(&binary);
            command.args(["--addr", "127.0.0.1", "--port", &port.to_string()]);
            command.arg("--config").arg(data.path().join(CONFIG));
            command
        };
        let program = Program::start(command, |line| line.ends_with(READY))?;
        Ok(Self { program, port })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    pub(crate) async fn behind_a_proxy(self) -> Broker {
        let address = self.address();
        Broker::start(self.program, address).await.unwrap()
    }
}

impl Deref for Server {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

/// An app on NATS, without the process' own configuration.
pub(crate) fn app(name: &str, url: &str) -> App {
    configured(name, &format!("url = {url:?}"))
}

/// An app with this configuration and no other.
pub(crate) fn configured(name: &str, toml: &str) -> App {
    App::new(name)
        .adapter(anywire_nats::adapter())
        .config(Config::from_toml(toml).unwrap())
}

/// A shop whose one handler writes down what was placed.
pub(crate) async fn shop(app: App, seen: &Seen) -> RunningApp {
    let router = Router::new().on_event("shop.placed", seen.handler());
    app.router(router).start().await.unwrap()
}

/// A client that knows nothing of anywire, and its view of JetStream.
pub(crate) async fn foreign(url: &str) -> jetstream::Context {
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect();
    jetstream::new(client.connect(url).await.unwrap())
}
