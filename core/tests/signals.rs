//! SIGTERM in the middle, and a second signal: seen from outside of the process.
#![cfg(all(unix, feature = "signals"))]
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, Command, Stdio};

use anywire::memory::{self, MemoryBroker};
use anywire::{App, Client, Config, Result, Router};

/// The service under test, in a process of its own: this program again, told to run the one test that is ignored.
#[test]
#[ignore = "the other tests run it"]
fn the_service() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(serve()).unwrap();
    eprintln!("drained");
}

/// Says `running` when its handler runs, and lets it end when a line comes on standard input.
async fn serve() -> Result<()> {
    let broker = MemoryBroker::new();
    let app = |name: &str| {
        let config = Config::from_toml("url = 'memory://'");
        Ok::<_, anywire::Error>(
            App::new(name)
                .adapter(memory::adapter_on(&broker))
                .config(config?),
        )
    };
    let sender = Client::connect(app("sender")?).await?;
    let service = app("service")?.router(Router::new().on_event("a.b", slow));
    let service = tokio::spawn(service.run());
    // It subscribes meanwhile: until then nobody takes the event.
    while sender.emit("a.b", &1).await.is_err() {
        tokio::task::yield_now().await;
    }
    Ok(service.await??)
}

async fn slow(_: u32) -> Result<()> {
    eprintln!("running");
    let line = tokio::task::spawn_blocking(|| std::io::stdin().lock().lines().next()).await?;
    eprintln!("handled {}", line.is_some());
    Ok(())
}

/// The service with its handler running.
fn running() -> (Child, BufReader<ChildStderr>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_service", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "running\n");
    (child, said)
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill")
        .args(["-s", name, &id])
        .status()
        .unwrap();
    assert!(sent.success());
}

#[test]
fn sigterm_lets_the_running_handler_finish_and_exits_well() {
    let (mut child, mut said) = running();
    signal(&child, "TERM");
    assert!(
        child.try_wait().unwrap().is_none(),
        "it waits for its handler"
    );
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "handled true\ndrained\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_exits_at_once() {
    let (mut child, mut said) = running();
    signal(&child, "TERM");
    // Two signals of one kind that come together are one; two kinds are two.
    signal(&child, "INT");
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "nothing is waited for");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
