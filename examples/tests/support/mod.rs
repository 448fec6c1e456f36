//! The shop on a wire, whichever it is: programs, brokers, and what must be true of them.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anywire_conformance::rig::free_port;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::{NamedTempFile, TempDir};

const SAMPLE: &[u8] = include_bytes!("../../data/orders.jsonl");
/// How many lines of it are placed, where each of them is to be placed more than once.
const SHORT: usize = 3_000;
/// All of it: parts that are more than a pipe and the customer's buffers hold, which are about 1,800 lines.
const LONG: usize = 10_000;
const PARTS: usize = 5;
/// How long a service may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a customer's summary ends with; after it comes the visit's.
const ACCOUNTED: &str = "every line is accounted for";

/// One process, then customers and two services: what they do is what is done on memory. That is events, calls, and the
/// three kinds of streaming calls.
pub(crate) fn the_summary_is_the_same(broker: &'static str) {
    let broker = Broker::start(broker);
    let orders = Orders::new(SHORT);
    let expected = orders.on_memory();
    let alone = Program::start(&broker.url, &["--orders", orders.path()]);
    assert_eq!(balanced(alone.output()), expected);
    let logs = ["one", "other"].map(|name| broker.home.path().join(name));
    let services = logs.each_ref().map(|log| Program::serve(&broker.url, log));
    broker.wait_for_a_shop();
    let customer = Program::start(&broker.url, &["order", "--orders", orders.path()]);
    let [ordered, visited] = parted(expected);
    assert_eq!(balanced(customer.output()), ordered);
    let visit = Program::start(&broker.url, &["visit"]);
    assert_eq!(told(visit.output()), visited);
    for service in services {
        service.end(Signal::TERM);
    }
    let logs = logs.map(|log| fs::read_to_string(log).unwrap());
    for log in &logs {
        assert!(
            log.contains("attempt failed"),
            "one had nothing to do: {log}"
        );
    }
    // Who gets orders that are tried again, and who some that are given up, is the wire's to say.
    for outcome in ["it is retried", "dead-lettered"] {
        assert!(logs.concat().contains(outcome), "{outcome}: {logs:?}");
    }
}

/// The customer, the service and the broker die in turn, and orders are on their way each time.
pub(crate) fn what_dies_in_the_middle_loses_no_order(broker: &'static str) {
    let broker = Broker::start(broker);
    let log = broker.home.path().join("shop");
    let serve = || Program::serve(&broker.url, &log);
    let mut service = serve();
    broker.wait_for_a_shop();
    let orders = Orders::new(LONG);
    // Once a part is written, orders of it are on their way.
    let parts = orders.parts();
    let order = || Program::start(&broker.url, &["order", "--orders", "-"]);
    let mut customer = order();
    customer.write(&parts[0]);
    customer.end(Signal::KILL);
    // The next one places the same orders, and more: the shop knows what it did already.
    let mut customer = order();
    for (number, part) in parts.iter().enumerate() {
        customer.write(part);
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
            3 => {
                broker.tool("restart");
            }
            _ => {}
        }
    }
    let [ordered, visited] = parted(orders.on_memory());
    assert_eq!(balanced(customer.output()), ordered);
    // Streams lose what breaks in the middle, but the ways that they take are there again.
    let visit = Program::start(&broker.url, &["visit"]);
    assert_eq!(told(visit.output()), visited);
    service.end(Signal::TERM);
}

/// The first lines of the sample, in a file.
pub(crate) struct Orders(NamedTempFile);

impl Orders {
    pub(crate) fn short() -> Self {
        Self::new(SHORT)
    }

    fn new(lines: usize) -> Self {
        let mut file = NamedTempFile::new().unwrap();
        let lines = SAMPLE.split_inclusive(|byte| *byte == b'\n').take(lines);
        lines.for_each(|line| file.write_all(line).unwrap());
        Self(file)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn parts(&self) -> Vec<Vec<u8>> {
        let text = fs::read(self.0.path()).unwrap();
        let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        let parts = lines.chunks(lines.len().div_ceil(PARTS));
        parts.map(<[_]>::concat).collect()
    }

    /// What the program says of them on memory.
    #[track_caller]
    pub(crate) fn on_memory(&self) -> Vec<String> {
        let program = Program::start("memory://", &["--orders", self.path()]);
        balanced(program.output())
    }
}

/// The summary of a run that lost nothing, without what differs from run to run.
#[track_caller]
pub(crate) fn balanced(output: Output) -> Vec<String> {
    let lines = told(output);
    assert!(lines.iter().any(|line| line == ACCOUNTED), "{lines:?}");
    lines
}

/// Of a run of both customers, what each of them tells.
fn parted(mut lines: Vec<String>) -> [Vec<String>; 2] {
    let end = lines.iter().position(|line| line == ACCOUNTED).unwrap();
    let visited = lines.split_off(end + 1);
    assert!(!visited.is_empty());
    [lines, visited]
}

/// What a program tells that ends well, without what differs from run to run.
#[track_caller]
fn told(output: Output) -> Vec<String> {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (summary, log) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{summary}{log}");
    let timed = |line: &&str| !line.contains(" lines read in ") && !line.contains("orders/s");
    summary.lines().filter(timed).map(str::to_owned).collect()
}

/// The shop in a process. It ends with its value.
pub(crate) struct Program {
    child: Option<Child>,
    log: File,
}

impl Program {
    pub(crate) fn command(url: &str, arguments: &[&str]) -> Command {
        let mut command = Self::without_url(arguments);
        command.env("ANYWIRE_URL", url);
        command
    }

    pub(crate) fn without_url(arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
        command
            .args(arguments)
            .env_remove("ANYWIRE_URL")
            .env_remove("RUST_LOG")
            // A broker that starts on a busy machine takes its time; an order must not be given up for that.
            .env("ANYWIRE__EMIT_TIMEOUT", "30s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(url: &str, arguments: &[&str]) -> Self {
        Self::logging(url, arguments, tempfile::tempfile().unwrap())
    }

    pub(crate) fn serve(url: &str, log: &Path) -> Self {
        Self::logging(
            url,
            &["serve"],
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(log)
                .unwrap(),
        )
    }

    /// What it says goes to a file: a pipe that nobody reads would fill up and stop it.
    fn logging(url: &str, arguments: &[&str], log: File) -> Self {
        let mut command = Self::command(url, arguments);
        command.stderr(log.try_clone().unwrap());
        let child = Some(command.spawn().unwrap());
        Self { child, log }
    }

    /// Writes to its input. One that is gone is shown with what it said.
    #[track_caller]
    pub(crate) fn write(&mut self, input: &[u8]) {
        let child = self.child.as_mut().unwrap();
        let written = child.stdin.as_mut().unwrap().write_all(input);
        if let Err(error) = written {
            let gone = Self {
                child: self.child.take(),
                log: self.log.try_clone().unwrap(),
            };
            panic!("{error}: {:?}", gone.output());
        }
    }

    /// Waits for its end.
    pub(crate) fn output(mut self) -> Output {
        let mut output = self.child.take().unwrap().wait_with_output().unwrap();
        self.log.rewind().unwrap();
        self.log.read_to_end(&mut output.stderr).unwrap();
        output
    }

    /// Ends it, well where it can do something about it.
    #[track_caller]
    pub(crate) fn end(self, signal: Signal) -> Output {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
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
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A server of the test's own, by `tools/brokers`. It ends with its value.
pub(crate) struct Broker {
    name: &'static str,
    pub(crate) home: TempDir,
    port: u16,
    pub(crate) url: String,
}

impl Broker {
    pub(crate) fn start(name: &'static str) -> Self {
        let port = free_port().unwrap();
        let mut broker = Self {
            name,
            home: TempDir::new().unwrap(),
            port,
            url: String::new(),
        };
        broker.tool("start");
        let variables = broker.tool("env");
        let name = format!("export ANYWIRE_TEST_{}_URL=", name.to_uppercase());
        let url = variables.lines().find_map(|line| line.strip_prefix(&name));
        url.unwrap().clone_into(&mut broker.url);
        broker
    }

    /// What `tools/brokers` says when it does this.
    #[track_caller]
    pub(crate) fn tool(&self, verb: &str) -> String {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/brokers");
        let port = format!("ANYWIRE_{}_PORT", self.name.to_uppercase());
        let output = Command::new(tool)
            .args([verb, self.name])
            .env("ANYWIRE_BROKERS_HOME", self.home.path())
            .env(port, self.port.to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
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
