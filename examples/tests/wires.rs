//! The shop on every wire that the programs were built with: the same orders give the same summary, whatever carries them
//! and whatever happens on the way.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anywire_conformance::trials;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const SAMPLE: &[u8] = include_bytes!("../data/orders.jsonl");
/// How long a service may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

trials![
    ["ANYWIRE_TEST_NATS_SERVER"] =>
    the_summary_is_the_same_on_memory_and_on_jetstream,
    two_services_share_the_work_of_a_customer_elsewhere,
    what_dies_in_the_middle_loses_no_order,
    core_nats_is_refused,
];

async fn the_summary_is_the_same_on_memory_and_on_jetstream() {
    let broker = Broker::start();
    assert_eq!(
        balanced(Program::start(&broker.url, &[]).output()),
        on_memory()
    );
}

async fn two_services_share_the_work_of_a_customer_elsewhere() {
    let broker = Broker::start();
    let logs = ["one", "other"].map(|name| broker.home.path().join(name));
    let services = logs.each_ref().map(|log| Program::serve(&broker.url, log));
    broker.wait_for_a_shop();
    let summary = balanced(Program::start(&broker.url, &["order"]).output());
    assert_eq!(summary, on_memory());
    for service in services {
        service.end(Signal::TERM);
    }
    for log in logs {
        let log = fs::read_to_string(log).unwrap();
        // Each had orders of which an attempt failed, and some that it gave up.
        assert!(log.contains("it is retried"), "{log}");
        assert!(log.contains("dead-lettered"), "{log}");
    }
}

async fn what_dies_in_the_middle_loses_no_order() {
    let broker = Broker::start();
    let log = broker.home.path().join("shop");
    let serve = || Program::serve(&broker.url, &log);
    let mut service = serve();
    broker.wait_for_a_shop();
    let mut customer = Program::start(&broker.url, &["order", "--orders", "-"]);
    // Once a part is written, orders of it are on their way: it is more than a pipe and the customer's buffer hold.
    let lines: Vec<&[u8]> = SAMPLE.split_inclusive(|byte| *byte == b'\n').collect();
    for (number, part) in lines.chunks(lines.len().div_ceil(5)).enumerate() {
        customer.write(&part.concat());
        match number {
            0 => {
                service.end(Signal::KILL);
                service = serve();
            }
            1 => {
                service.end(Signal::TERM);
                service = serve();
            }
            2 => {
                broker.tool("kill");
                broker.tool("start");
            }
            3 => broker.tool("restart"),
            _ => {}
        }
    }
    assert_eq!(balanced(customer.output()), on_memory());
    service.end(Signal::TERM);
}

/// Core NATS keeps nothing, so that an order could get lost. The shop does not start on it.
async fn core_nats_is_refused() {
    let broker = Broker::start();
    let mut shop = Program::command(&broker.url, &["serve"]);
    shop.env("ANYWIRE__TRANSPORTS__MAIN__NATS__JETSTREAM", "false");
    shop.env("ANYWIRE__DEFAULTS__RETRY", "[]");
    let output = shop.output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(
        complaint.contains("core NATS delivers at most once"),
        "{complaint}"
    );
}

/// What the program says on memory.
fn on_memory() -> &'static [String] {
    static SUMMARY: OnceLock<Vec<String>> = OnceLock::new();
    SUMMARY.get_or_init(|| balanced(Program::start("memory://", &[]).output()))
}

/// The summary of a run that lost nothing, without what differs from run to run.
#[track_caller]
fn balanced(output: Output) -> Vec<String> {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (summary, log) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{summary}{log}");
    assert!(summary.contains("every line is accounted for"), "{summary}");
    let timed = |line: &&str| !line.contains(" lines read in ") && !line.contains("orders/s");
    summary.lines().filter(timed).map(str::to_owned).collect()
}

/// The shop in a process. It ends with its value.
struct Program(Option<Child>);

impl Program {
    fn command(url: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
        command
            .args(arguments)
            .env("ANYWIRE_URL", url)
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(url: &str, arguments: &[&str]) -> Self {
        Self(Some(Self::command(url, arguments).spawn().unwrap()))
    }

    /// The service. What it says goes to a file: a pipe that nobody reads would fill up and stop it.
    fn serve(url: &str, log: &Path) -> Self {
        let mut command = Self::command(url, &["serve"]);
        command.stderr(File::create(log).unwrap());
        Self(Some(command.spawn().unwrap()))
    }

    fn write(&mut self, input: &[u8]) {
        let child = self.0.as_mut().unwrap();
        child.stdin.as_mut().unwrap().write_all(input).unwrap();
    }

    /// Waits for its end.
    fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }

    /// Ends it, well where it can do something about it.
    #[track_caller]
    fn end(self, signal: Signal) -> Output {
        kill_process(Pid::from_child(self.0.as_ref().unwrap()), signal).unwrap();
        let output = self.output();
        assert!(
            output.status.success() || signal == Signal::KILL,
            "{output:?}"
        );
        output
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A NATS server of the test's own, by `tools/brokers`. It ends with its value.
struct Broker {
    home: TempDir,
    port: u16,
    url: String,
}

impl Broker {
    fn start() -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let broker = Self {
            home: TempDir::new().unwrap(),
            port,
            url: format!("nats://127.0.0.1:{port}"),
        };
        broker.tool("start");
        broker
    }

    #[track_caller]
    fn tool(&self, verb: &str) {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/brokers");
        let output = Command::new(tool)
            .args([verb, "nats"])
            .env("ANYWIRE_BROKERS_HOME", self.home.path())
            .env("ANYWIRE_NATS_PORT", self.port.to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Until a customer without orders leaves in peace.
    fn wait_for_a_shop(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let visit = Program::start(&self.url, &["order", "--orders", "/dev/null"]).output();
            if visit.status.success() {
                return;
            }
            assert!(Instant::now() < end, "{visit:?}");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.tool("kill");
    }
}
