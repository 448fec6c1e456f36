//! A server's program, as a process group of its own.

use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, kill_process_group};

pub use rustix::process::Signal;

/// How often it is started that ends at its start.
const LAUNCHES: usize = 3;
/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// The ports that are given out: below those of the launchers, and of outgoing connections, any of which might take it before its
/// server is there, or while that is away.
const PORTS: std::ops::Range<u16> = 10_000..14_000;

/// A port on loopback that nobody listens to at the moment, and that no other test of this program gets.
///
/// # Errors
/// Where there is none.
pub fn free_port() -> io::Result<u16> {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    let count = PORTS.end - PORTS.start;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for _ in 0..count {
        let port = PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % count;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A program that can be started, signalled and started again. It is killed when its value is dropped.
pub struct Program {
    command: Box<dyn Fn() -> Command + Send + Sync>,
    is_ready: fn(&str) -> bool,
    child: Mutex<Option<Child>>,
}

impl Program {
    /// Starts what `command` makes, and returns when a line of its log, on either output, says that it is ready.
    ///
    /// # Errors
    /// Where it cannot be started or ends before that, with its last line, or takes longer than a minute.
    pub fn start(
        command: impl Fn() -> Command + Send + Sync + 'static,
        is_ready: fn(&str) -> bool,
    ) -> io::Result<Self> {
        let program = Self {
            command: Box::new(command),
            is_ready,
            child: Mutex::default(),
        };
        program.launch()?;
        Ok(program)
    }

    /// Starts it again after its end.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn launch(&self) -> io::Result<()> {
        for _ in 1..LAUNCHES {
            match self.launch_once() {
                // One that was just killed may leave behind what keeps its successor from starting for a moment.
                Err(_) if self.child.lock().is_none() => {}
                launched => return launched,
            }
        }
        self.launch_once()
    }

    fn launch_once(&self) -> io::Result<()> {
        let (log, output) = io::pipe()?;
        let child = (self.command)()
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        *self.child.lock() = Some(child);
        let (ready, readiness) = mpsc::sync_channel(1);
        let is_ready = self.is_ready;
        // Of a name, as whoever looks for threads that stay goes by those.
        let thread = std::thread::Builder::new().name("program".to_owned());
        thread.spawn(move || {
            let mut lines = BufReader::new(log).split(b'\n').map_while(Result::ok);
            let mut last = String::new();
            let started = lines.any(|line| {
                last = String::from_utf8_lossy(&line).into_owned();
                is_ready(&last)
            });
            let _ = ready.send(if started { Ok(()) } else { Err(last) });
            // The program must always find a reader. This ends with it.
            lines.for_each(drop);
        })?;
        match readiness.recv_timeout(PATIENCE) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(last)) => {
                if let Some(mut child) = self.child.lock().take() {
                    let _ = child.kill();
                    child.wait()?;
                }
                let text = format!("the server ended at its start: {last}");
                Err(io::Error::other(text))
            }
            Err(_) => Err(io::Error::other("the server does not start")),
        }
    }

    /// Sends a signal to all of its processes.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let child = self.child.lock();
        let Some(child) = &*child else {
            return Err(io::Error::other("the server does not run"));
        };
        Ok(kill_process_group(Pid::from_child(child), signal)?)
    }

    /// Whether all of its processes stand still, after [`Signal::STOP`]. `true` where it does not run.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let child = self.child.lock();
        let Some(group) = child.as_ref().map(Child::id) else {
            return true;
        };
        let group = group.to_string();
        folders("/proc".as_ref())
            .filter(|process| field(process, 2).as_ref() == Some(&group))
            .flat_map(|process| folders(&process.join("task")))
            .all(|thread| field(&thread, 0).is_none_or(|state| matches!(&*state, "T" | "Z")))
    }

    /// Sends a signal that ends it, and waits for the end.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub fn end(&self, signal: Signal) -> io::Result<()> {
        self.signal(signal)?;
        let child = self.child.lock().take();
        child.map_or(Ok(()), |mut child| child.wait().map(drop))
    }
}

fn folders(of: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(of).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// A field of a process or thread: state, parent, group and so on. Before them stands a name in brackets, which may hold anything.
fn field(of: &Path, number: usize) -> Option<String> {
    let stat = std::fs::read_to_string(of.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(number).map(str::to_owned)
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("child", &self.child)
            .finish_non_exhaustive()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A stopped group dies of it, too.
        let _ = self.end(Signal::KILL);
    }
}
