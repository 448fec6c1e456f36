//! Publishing many events, pipelined.

use std::fmt;
use std::future::IntoFuture;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use tokio::task::coop::consume_budget;

use super::delay::Delay;
use super::emit::{Job, Pauses, encode, failed, no_entry, prepare};
use super::{Client, ClientCore, Wire};
use crate::clock::after;
use crate::pattern::publish_subscribe::{Entry, PublishBatch};
use crate::payload::IntoPayload;
use crate::{Error, ErrorKind, Guarantee, Key, Message, Receipt, Subject};

/// How many entries are handed to an adapter at once.
const CHUNK: usize = 1024;

/// Many events on their way out; awaiting it publishes them.
#[must_use = "the events are published when the builder is awaited"]
pub struct EmitAll<'a> {
    client: &'a Client,
    messages: Vec<Result<Message, Error>>,
    options: Options,
}

/// How all of them are to be published.
#[derive(Clone, Copy)]
struct Options {
    guarantee: Option<Guarantee>,
    delay: Option<Delay>,
    timeout: Duration,
}

impl<'a> EmitAll<'a> {
    pub(super) fn new<'p, P: IntoPayload + 'p>(
        client: &'a Client,
        subject: Result<Subject, Error>,
        payloads: impl IntoIterator<Item = &'p P>,
    ) -> Self {
        let core = client.core();
        let payloads = payloads.into_iter();
        let messages = match subject {
            Ok(subject) => payloads
                .map(|payload| encode(client, subject.clone(), payload))
                .collect(),
            Err(error) => {
                let copy = || Error::new(error.kind(), error.to_string());
                payloads.map(|_| Err(copy())).collect()
            }
        };
        Self {
            client,
            messages,
            options: Options {
                guarantee: None,
                delay: None,
                timeout: core.emit_timeout,
            },
        }
    }

    /// Gives all of them one key, of at most 1,024 bytes.
    pub fn key(mut self, key: impl Into<Key>) -> Self {
        let key = key.into();
        let keyed = |message: Message| {
            let message = message.with_key(key.clone());
            message.check_fields()?;
            Ok(message)
        };
        let messages = self.messages.into_iter();
        self.messages = messages.map(|message| message.and_then(keyed)).collect();
        self
    }

    /// Sets the deadline of each chunk of 1,024 entries. Default: 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Sets how sure the delivery is. Default: what the subject's rule says, else at least once.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.options.guarantee = Some(guarantee);
        self
    }

    /// Has all of them delivered when so much time has passed, as [`Emit::after`](super::Emit::after) does.
    pub fn after(mut self, delay: Duration) -> Self {
        self.options.delay = Some(Delay::After(delay));
        self
    }

    /// Has all of them delivered at a calendar time, as [`Emit::at`](super::Emit::at) does.
    pub fn at(mut self, time: SystemTime) -> Self {
        self.options.delay = Some(Delay::At(time));
        self
    }

    async fn run(self) -> Result<Vec<Receipt>, EmitAllError> {
        let mut results = Vec::with_capacity(self.messages.len());
        let mut messages = self.messages.into_iter().peekable();
        while messages.peek().is_some() {
            // As with a single emit: others get a turn, even if nothing ever waits.
            consume_budget().await;
            let chunk: Vec<_> = messages.by_ref().take(CHUNK).collect();
            publish_chunk(self.client, chunk, self.options, &mut results).await;
        }
        if results.iter().all(Result::is_ok) {
            return Ok(results.into_iter().flatten().collect());
        }
        Err(EmitAllError { results })
    }
}

/// All entries of a chunk have one subject, so one rule and one wire.
async fn publish_chunk(
    client: &Client,
    chunk: Vec<Result<Message, Error>>,
    options: Options,
    results: &mut Vec<Result<Receipt, Error>>,
) {
    let Options {
        guarantee,
        delay,
        timeout,
    } = options;
    let core = client.core();
    let is_open = core.check_open();
    let Some(subject) = chunk
        .iter()
        .find_map(|message| Some(message.as_ref().ok()?.subject().clone()))
    else {
        results.extend(
            chunk
                .into_iter()
                .map(|message| message.map(|_| Receipt::new())),
        );
        return;
    };
    if let Err(error) = is_open {
        results.extend(
            chunk
                .iter()
                .map(|_| Err(Error::new(error.kind(), error.to_string()))),
        );
        return;
    }
    let route = core.wires.route(&subject);
    let wire = core.wires.wire(route);
    let agreed = route.guarantee(guarantee).and_then(|guarantee| {
        let due = Delay::due(delay, core, wire, route, guarantee);
        Ok((guarantee, due?))
    });
    let (guarantee, due) = match agreed {
        Ok(agreed) => agreed,
        Err(error) => {
            results.extend(
                chunk
                    .iter()
                    .map(|_| Err(Error::new(error.kind(), error.to_string()))),
            );
            return;
        }
    };
    let deadline = after(core.clock.now(), timeout);
    let mut open = Vec::with_capacity(chunk.len());
    for message in chunk {
        let place = results.len();
        // What is open has its place here and is overwritten by its outcome.
        results.push(message.map(|message| {
            let (entry, fresh) = prepare(client, message, guarantee);
            let unrouted = route.unrouted;
            let entry = entry.with_not_before(due);
            open.push((place, Job { fresh, unrouted }, entry));
            Receipt::new()
        }));
    }
    let mut pauses = Pauses::until(deadline);
    let mut left = Some(timeout);
    let mut first = true;
    while let Some(time) = left {
        open = publish_once(core, wire, open, time, first, results).await;
        first = false;
        left = match open.is_empty() || guarantee == Guarantee::AtMostOnce {
            true => None,
            false => pauses.next(core).await,
        };
    }
    core.metrics.failed.increment(open.len() as u64);
}

/// An entry that has no outcome yet, with its place among the results.
type Open = (usize, Job, Entry);

/// Publishes what is open, and gives back what is still unknown.
async fn publish_once(
    core: &ClientCore,
    wire: &Wire,
    open: Vec<Open>,
    timeout: Duration,
    first: bool,
    results: &mut [Result<Receipt, Error>],
) -> Vec<Open> {
    let mut batch = PublishBatch::new(timeout);
    let mut jobs = Vec::with_capacity(open.len());
    for (place, job, entry) in open {
        batch.push(entry);
        jobs.push((place, job));
    }
    let (entries, outcomes) = wire.publisher.publish(batch).wait().await.into_parts();
    let mut unknown = Vec::new();
    let mut published = entries.into_iter().zip(outcomes);
    for (place, job) in jobs {
        let Some((entry, outcome)) = published.next() else {
            results[place] = failed(core, no_entry());
            continue;
        };
        results[place] = match job.result(core, &entry, outcome, first) {
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                unknown.push((place, job, entry));
                Err(error)
            }
            Err(error) => failed(core, error),
            Ok(receipt) => Ok(receipt),
        };
    }
    unknown
}

impl<'a> IntoFuture for EmitAll<'a> {
    type Output = Result<Vec<Receipt>, EmitAllError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl fmt::Debug for EmitAll<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmitAll")
            .field("messages", &self.messages.len())
            .finish_non_exhaustive()
    }
}

/// Some of many events were not published. Holds the result of each, in order.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anywire::Result<()> {
/// # let app = anywire::App::new("shop").start().await?;
/// # let client = app.client();
/// let error = client.emit_all("nobody.listens", &[1, 2]).await.unwrap_err();
/// assert_eq!(error.results().iter().filter(|result| result.is_err()).count(), 2);
/// # Ok(())
/// # }
/// ```
pub struct EmitAllError {
    results: Vec<Result<Receipt, Error>>,
}

impl EmitAllError {
    /// The result of each entry, in order.
    pub fn results(&self) -> &[Result<Receipt, Error>] {
        &self.results
    }

    /// The results, to keep.
    #[must_use]
    pub fn into_results(self) -> Vec<Result<Receipt, Error>> {
        self.results
    }

    fn first(&self) -> Option<&Error> {
        self.results.iter().find_map(|result| result.as_ref().err())
    }
}

impl fmt::Display for EmitAllError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.results.iter().filter(|result| result.is_err()).count();
        write!(
            f,
            "{failed} of {} events were not published",
            self.results.len()
        )?;
        self.first()
            .map_or(Ok(()), |error| write!(f, "; the first: {error}"))
    }
}

impl fmt::Debug for EmitAllError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::error::Error for EmitAllError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.first().map(|error| error as _)
    }
}
