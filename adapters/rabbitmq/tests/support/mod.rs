//! A RabbitMQ of the tests' own, and apps on it.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod bytes;
pub(crate) mod harness;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anywire::{App, Config, Message, Result, Router, RunningApp};
use anywire_conformance::rig::{Broker, Program, Seen, free_port, until};
use parking_lot::Mutex;
use tempfile::TempDir;

/// The variable that names the program that runs a server.
pub(crate) const SERVER: &str = "ANYWIRE_TEST_RABBITMQ_SERVER";
/// The variable that names the server's own tool.
pub(crate) const CTL: &str = "ANYWIRE_TEST_RABBITMQ_CTL";
/// The line of its log after which it takes connections holds this.
const READY: &str = "Server startup complete";

/// A server on a port and with data of its own. It ends with its value.
pub(crate) struct Server {
    program: Program,
    port: u16,
    data: PathBuf,
}

impl Server {
    /// Starts a server; `config` is added to its configuration file.
    pub(crate) fn start(config: &str) -> io::Result<Self> {
        Self::prepared(|_| config.to_owned())
    }

    /// As [`start`](Self::start), with files that `prepare` puts into the server's directory.
    pub(crate) fn prepared(prepare: impl FnOnce(&Path) -> String) -> io::Result<Self> {
        let binary = std::env::var_os(SERVER).map(PathBuf::from);
        let binary = binary.ok_or_else(|| io::Error::other("there is no server"))?;
        let (folder, port) = (TempDir::new()?, free_port()?);
        let data = folder.path().join("data");
        let lines = folder.path().join("server.conf");
        std::fs::create_dir(&data)?;
        std::fs::write(&lines, format!("{}\n", prepare(&data)))?;
        let at = data.clone();
        // The data goes with the program.
        let command = move || {
            let mut command = Command::new(&binary);
            command.arg(port.to_string()).arg(&at);
            command.arg(folder.path().join("server.conf"));
            command
        };
        let program = Program::start(command, |line| line.contains(READY))?;
        Ok(Self {
            program,
            port,
            data,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://{}", self.address())
    }

    pub(crate) fn tool(&self) -> Tool {
        Tool {
            port: self.port,
            data: self.data.clone(),
        }
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

/// The server's own tool.
#[derive(Clone)]
pub(crate) struct Tool {
    port: u16,
    data: PathBuf,
}

impl Tool {
    /// Lets the server write down which quorum queues there are. RabbitMQ 4.0 does so a moment after it says that a new one is
    /// there; killed before that, it comes back without the queue and all that it confirmed, or with one that never answers.
    pub(crate) fn write_down_queues(&self) {
        let names = "maps:get(names, ra_system:fetch(quorum_queues))";
        let sync = format!("dets:sync(maps:get(directory_rev, {names})).");
        let said = self.run(&["eval", &sync]);
        assert_eq!(said.trim(), "ok");
    }

    /// Runs the tool and gives what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let ended = Command::new(std::env::var_os(CTL).expect("the server's tool"))
            .arg(self.port.to_string())
            .arg(Path::new(&self.data))
            .arg("--quiet")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the server's tool runs");
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{arguments:?}: {said}{complaint}");
        said
    }
}

/// An app on RabbitMQ, without the process' own configuration.
pub(crate) fn app(name: &str, url: &str) -> App {
    configured(name, &format!("url = {url:?}"))
}

/// An app with this configuration and no other.
pub(crate) fn configured(name: &str, toml: &str) -> App {
    App::new(name)
        .adapter(anywire_rabbitmq::adapter())
        .config(Config::from_toml(toml).unwrap())
}

/// A shop whose one handler writes down what was placed.
pub(crate) async fn shop(app: App, seen: &Seen) -> RunningApp {
    let router = Router::new().on_event("shop.placed", seen.handler());
    app.router(router).start().await.unwrap()
}

/// A client that knows nothing of anywire.
pub(crate) async fn foreign(url: &str) -> lapin::Connection {
    lapin::Connection::connect(url, lapin::ConnectionProperties::default())
        .await
        .unwrap()
}

/// The messages that a handler was given.
#[derive(Clone, Default)]
pub(crate) struct Taken(Arc<Mutex<Vec<Message>>>);

impl Taken {
    /// A handler that keeps what it is given.
    pub(crate) fn handler(
        &self,
    ) -> impl Fn(Message) -> std::future::Ready<Result<()>> + Send + Sync + 'static {
        let taken = self.clone();
        move |message| {
            taken.0.lock().push(message);
            std::future::ready(Ok(()))
        }
    }

    /// What it was given once it is so many.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Message> {
        until("all of them", || self.0.lock().len() >= count).await;
        self.0.lock().clone()
    }
}
