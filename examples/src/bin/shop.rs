//! A shop that takes orders, and a customer who places them: the first program to read, and to run.
//!
//! ```text
//! shop                      service and customers in one process, on memory, with the sample orders
//! shop serve                the service alone, for a broker
//! shop order                the customer alone, for a broker
//! shop visit                a customer who imports orders, follows them and haggles: streaming calls, for a broker
//! --orders FILE             read the orders from FILE, one JSON object per line; `-` is standard input
//! ```
//!
//! It ends with status 0 if every line is accounted for, 1 if not, and 2 if it could not run.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anywire::{App, Client, Config, Error, Result};
use anywire_examples::shop::summary::Summary;
use anywire_examples::shop::wires::on_all_wires;
use anywire_examples::shop::{app, customer, lines, visit};
#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

const USAGE: &str = "usage: shop [serve | order | visit] [--orders FILE]";

/// Where nothing else is configured. A file of nothing but bad lines makes many dead letters; they have room.
const ON_MEMORY: &str = "
    url = 'memory://'
    [transports.main.memory]
    dead_letters = 10_000_000
";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(status) => status,
        Err(error) => {
            eprintln!("shop: {error}");
            ExitCode::from(2)
        }
    }
}

/// To standard error, as `RUST_LOG` says. A customer's summary counts the dead letters, so a line for each of them is
/// shown by the service alone.
fn start_log(mode: Mode) {
    let quiet = || {
        let filter = Targets::new().with_default(LevelFilter::WARN);
        // The library of RabbitMQ tells of everything that the broker refuses it, which the adapter deals with.
        let filter = filter.with_target("lapin", LevelFilter::OFF);
        match mode {
            Mode::Serve => filter,
            Mode::Both | Mode::Order | Mode::Visit => {
                filter.with_target("anywire::engine", LevelFilter::OFF)
            }
        }
    };
    let chosen = std::env::var("RUST_LOG").ok();
    let filter = chosen.and_then(|filter| filter.parse().ok());
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    tracing_subscriber::registry()
        .with(lines)
        .with(filter.unwrap_or_else(quiet))
        .init();
}

async fn run() -> Result<ExitCode> {
    let Some(arguments) = Arguments::read(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    start_log(arguments.mode);
    match arguments.mode {
        Mode::Both => both(&arguments).await,
        Mode::Serve => {
            must_have_a_broker()?;
            app()?.run().await?;
            Ok(ExitCode::SUCCESS)
        }
        Mode::Order | Mode::Visit => {
            must_have_a_broker()?;
            let client = Client::connect(on_all_wires(App::new("customer"))).await?;
            let ended = match arguments.mode {
                Mode::Visit => pay_a_visit(&client).await,
                _ => order(&client, &arguments)
                    .await
                    .map(|it| status(&it.problems())),
            };
            client.close().await?;
            ended
        }
    }
}

/// The service beside something else: started, used and shut down by hand.
async fn both(arguments: &Arguments) -> Result<ExitCode> {
    let memory = Config::from_toml(ON_MEMORY)?;
    let config = anywire::config::Loader::of_process()?.base(memory).load()?;
    let shop = app()?.config(config).start().await?;
    let ended = both_customers(&shop.client(), arguments).await;
    shop.shutdown().await?;
    ended
}

async fn both_customers(client: &Client, arguments: &Arguments) -> Result<ExitCode> {
    let summary = order(client, arguments).await?;
    let problems = summary.problems();
    if summary.stopped || !problems.is_empty() {
        return Ok(status(&problems));
    }
    pay_a_visit(client).await
}

async fn pay_a_visit(client: &Client) -> Result<ExitCode> {
    let visit = visit::run(client).await?;
    println!("{visit}");
    Ok(status(&visit.problems()))
}

fn status(problems: &[String]) -> ExitCode {
    ExitCode::from(u8::from(!problems.is_empty()))
}

async fn order(client: &Client, arguments: &Arguments) -> Result<Summary> {
    let lines = match &arguments.orders {
        None => lines::sample(),
        Some(path) => lines::open(path)
            .map_err(|error| Error::config(format!("cannot read {path}: {error}")))?,
    };
    let stop = stop_on_signal()?;
    let summary = customer::run(client, lines, &stop, show_progress()).await?;
    println!("{summary}");
    Ok(summary)
}

/// Two processes cannot share a memory.
fn must_have_a_broker() -> Result<()> {
    let config = Config::load()?;
    let address = config.address(config.events_transport());
    if address.is_none_or(|address| address.starts_with("memory:")) {
        let message =
            "two processes cannot share memory; set ANYWIRE_URL to a broker, or run `shop` alone";
        return Err(Error::config(message).into());
    }
    Ok(())
}

/// The first signal stops the reading; a second one exits at once.
fn stop_on_signal() -> io::Result<CancellationToken> {
    let mut signals = Signals::listen()?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        signals.next().await;
        stopping.cancel();
        signals.next().await;
        std::process::exit(130);
    });
    Ok(stop)
}

#[cfg(unix)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// On a terminal, one line that is written over and over.
fn show_progress() -> impl Fn(&Summary) {
    let terminal = io::stderr().is_terminal();
    move |summary| {
        if terminal {
            let dead: u64 = summary.dead.values().sum();
            // Back to the line's start when it is written, so that whatever comes next takes its place.
            eprint!(
                "{} read, {} placed, {} fulfilled, {dead} dead-lettered\r",
                summary.read, summary.placed, summary.fulfilled
            );
        }
    }
}

struct Arguments {
    mode: Mode,
    orders: Option<String>,
}

#[derive(Clone, Copy)]
enum Mode {
    Both,
    Serve,
    Order,
    Visit,
}

impl Arguments {
    /// `None`: help is wanted.
    fn read(mut words: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let (mut mode, mut orders) = (Mode::Both, None);
        while let Some(word) = words.next() {
            match word.as_str() {
                "serve" => mode = Mode::Serve,
                "order" => mode = Mode::Order,
                "visit" => mode = Mode::Visit,
                "-h" | "--help" => return Ok(None),
                "--orders" => {
                    let missing = || Error::config(format!("--orders needs a file; {USAGE}"));
                    orders = Some(words.next().ok_or_else(missing)?);
                }
                _ => {
                    return Err(Error::config(format!("what is `{word}`? {USAGE}")).into());
                }
            }
        }
        Ok(Some(Self { mode, orders }))
    }
}
