//! A nats-server of the tests' own, with a proxy before it.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod harness;
pub(crate) mod trials;

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anywire_conformance::BrokerControl;
use anywire_conformance::proxy::{Direction, Proxy};
use async_trait::async_trait;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(10);
/// How the line of its log ends after which it takes connections.
const READY: &str = "Server is ready";

/// The variable that names the program `nats-server`.
const BINARY: &str = "ANYWIRE_TEST_NATS_SERVER";

/// Why there is no server to test with, if there is none. In CI that is a failure.
pub(crate) fn missing() -> Option<&'static str> {
    if std::env::var_os(BINARY).is_some() {
        return None;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "CI runs these tests: set {BINARY}"
    );
    Some("no server: tools/brokers install nats && eval \"$(tools/brokers env nats)\"")
}

/// A server on ports and with data of its own. It ends with its value.
pub(crate) struct Server {
    binary: PathBuf,
    arguments: Vec<String>,
    port: u16,
    data: TempDir,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// Starts a server with JetStream; `config` is added to its configuration file.
    pub(crate) fn start(config: &str) -> io::Result<Self> {
        let binary = std::env::var_os(BINARY).map(PathBuf::from);
        let binary = binary.ok_or_else(|| io::Error::other("there is no server"))?;
        let data = TempDir::new()?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let file = data.path().join("server.conf");
        let store = data.path().join("store");
        std::fs::write(
            &file,
            format!("jetstream {{ store_dir: {store:?} }}\n{config}\n"),
        )?;
        let argument = |text: &str| text.to_owned();
        let server = Self {
            binary,
            arguments: vec![
                argument("--addr"),
                argument("127.0.0.1"),
                argument("--port"),
                port.to_string(),
                argument("--config"),
                file.display().to_string(),
            ],
            port,
            data,
            child: Mutex::default(),
        };
        server.launch()?;
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// Starts the program and waits until its log says that it is ready.
    pub(crate) fn launch(&self) -> io::Result<()> {
        let mut child = Command::new(&self.binary)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = child.stderr.take();
        *self.child.lock() = Some(child);
        let log = log.ok_or_else(|| io::Error::other("the server has no log"))?;
        let (ready, readiness) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut lines = BufReader::new(log).lines().map_while(Result::ok);
            let mut last = String::new();
            let is_ready = lines.any(|line| {
                last = line;
                last.ends_with(READY)
            });
            let _ = ready.send(if is_ready { Ok(()) } else { Err(last) });
            // The program must always find a reader. This ends with it.
            lines.for_each(drop);
        });
        match readiness.recv_timeout(PATIENCE) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(last)) => Err(io::Error::other(format!(
                "the server ended at its start: {last}"
            ))),
            Err(_) => Err(io::Error::other("the server does not start")),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let child = self.child.lock();
        let Some(child) = &*child else {
            return Err(io::Error::other("the server does not run"));
        };
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// Sends a signal that ends the server, and waits for the end.
    pub(crate) fn end(&self, signal: Signal) -> io::Result<()> {
        self.signal(signal)?;
        let child = self.child.lock().take();
        child.map_or(Ok(()), |mut child| child.wait().map(drop))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A server behind a proxy.
pub(crate) struct Broker {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
}

#[async_trait]
impl BrokerControl for Broker {
    async fn start(&self) -> io::Result<()> {
        self.server.launch()
    }

    async fn stop(&self) -> io::Result<()> {
        self.server.end(Signal::TERM)
    }

    async fn kill(&self) -> io::Result<()> {
        self.server.end(Signal::KILL)
    }

    async fn freeze(&self) -> io::Result<()> {
        self.server.signal(Signal::STOP)
    }

    async fn thaw(&self) -> io::Result<()> {
        self.server.signal(Signal::CONT)
    }

    async fn cut(&self) -> io::Result<()> {
        for direction in Direction::BOTH {
            self.proxy.blackhole(direction);
        }
        Ok(())
    }

    async fn heal(&self) -> io::Result<()> {
        self.proxy.heal().await
    }

    async fn kill_connections(&self) -> io::Result<()> {
        self.proxy.reset_all();
        Ok(())
    }
}
