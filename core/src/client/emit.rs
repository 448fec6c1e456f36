//! Publishing one event.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use tokio::task::coop::consume_budget;

use super::delay::Delay;
use super::{Client, ClientCore};
use crate::clock::after;
use crate::config::Unrouted;
use crate::headers::HeaderValue;
use crate::pattern::Progress;
use crate::pattern::publish_subscribe::{Entry, PublishBatch, Published, Publisher};
use crate::payload::IntoPayload;
use crate::{ContentType, Error, ErrorKind, Guarantee, Key, Message, MessageId, Receipt, Subject};

/// The wait before an emit whose outcome is unknown is tried again, doubled each time up to a second.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// An event on its way out; awaiting it publishes it.
#[must_use = "an event is published when the builder is awaited"]
pub struct Emit<'a> {
    client: &'a Client,
    message: Result<Message, Error>,
    options: Options,
}

/// How an event is to be published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    guarantee: Option<Guarantee>,
    unrouted: Option<Unrouted>,
    delay: Option<Delay>,
    timeout: Duration,
}

impl Options {
    fn new(client: &Client) -> Self {
        Self {
            guarantee: None,
            unrouted: None,
            delay: None,
            timeout: client.core().emit_timeout,
        }
    }
}

impl<'a> Emit<'a> {
    pub(super) fn new<P: IntoPayload + ?Sized>(
        client: &'a Client,
        subject: Result<Subject, Error>,
        payload: &P,
    ) -> Self {
        let message = subject.and_then(|subject| encode(client, subject, payload));
        Self {
            client,
            message,
            options: Options::new(client),
        }
    }

    pub(super) fn forward(client: &'a Client, message: Message) -> Self {
        let message = Subject::parse(message.subject().as_str()).and_then(|_| {
            let message = message.into_plain();
            message.check_fields()?;
            Ok(message)
        });
        Self {
            client,
            message,
            options: Options::new(client),
        }
    }

    /// Its message, to be sent later, and how.
    pub(crate) fn into_parts(self) -> (Result<Message, Error>, Options) {
        (self.message, self.options)
    }

    /// A message that was taken out of another emit.
    pub(crate) fn of_parts(client: &'a Client, message: Message, options: Options) -> Self {
        Self {
            client,
            message: Ok(message),
            options,
        }
    }

    /// Sets the key: messages of one key are handled in order.
    pub fn key(self, key: impl Into<Key>) -> Self {
        self.change(|message| Ok(message.with_key(key)))
    }

    /// Adds a header.
    pub fn header(self, name: &str, value: impl Into<HeaderValue>) -> Self {
        self.change(|mut message| {
            message.headers_mut().append(name, value)?;
            Ok(message)
        })
    }

    /// Sets the id. Default: derived from the delivery inside a handler, random elsewhere.
    pub fn id(self, id: impl Into<MessageId>) -> Self {
        self.change(|message| Ok(message.with_id(id)))
    }

    /// Sets the correlation id.
    pub fn correlation_id(self, id: impl AsRef<str>) -> Self {
        self.change(|message| Ok(message.with_correlation_id(id.as_ref())))
    }

    /// Says how the payload is encoded, for bytes that were encoded elsewhere.
    pub fn content_type(self, content_type: ContentType) -> Self {
        self.change(|message| Ok(message.with_content_type(content_type)))
    }

    /// Sets the deadline. Default: 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Sets how sure the delivery is. Default: what the subject's rule says, else at least once.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.options.guarantee = Some(guarantee);
        self
    }

    /// Says what happens where nobody takes it. Default: what the subject's rule says, else it is refused.
    pub fn unrouted(mut self, unrouted: Unrouted) -> Self {
        self.options.unrouted = Some(unrouted);
        self
    }

    /// Has it delivered when so much time has passed, counted from when the builder is awaited. Zero is at once.
    ///
    /// The emit completes when the wire has stored the event, which then outlives this process and, where the wire is
    /// [durable](crate::Capabilities::durable), the broker. It never comes early; it comes at most 2 s late while its subject is consumed
    /// and the broker is well. Events that wait keep no order among themselves or with others. At most 2^27 s (four years), and
    /// less than the subject's retention. The last of `after` and [`at`](Self::at) counts.
    ///
    /// An emit is refused as [`Unsupported`](ErrorKind::Unsupported) where the wire has no delay, and where the event may be lost,
    /// as then nobody keeps it; as [`Config`](ErrorKind::Config) where it would have to wait too long.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// use std::time::Duration;
    /// # use anywire::testing::TestApp;
    /// # use anywire::{App, Result, Router};
    /// # async fn remind(_order: u32) -> Result<()> {
    /// #     Ok(())
    /// # }
    /// # let test = TestApp::start(App::new("shop").router(Router::new().on_event("shop.remind", remind))).await?;
    ///
    /// let day = Duration::from_secs(24 * 60 * 60);
    /// test.emit_with(|client| client.emit("shop.remind", &7).after(day)).await?; // the test's clock jumps
    /// assert_eq!(test.handled("remind"), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn after(mut self, delay: Duration) -> Self {
        self.options.delay = Some(Delay::After(delay));
        self
    }

    /// Has it delivered at a calendar time, by this machine's clock. A time that has passed is at once. As
    /// [`after`](Self::after) otherwise.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> anywire::Result<()> {
    /// use std::time::{Duration, SystemTime};
    ///
    /// # let app = anywire::App::new("shop").start().await?;
    /// # let client = app.client();
    /// let mut reminders = client.subscribe::<u32>("shop.remind").await?;
    /// let soon = SystemTime::now() + Duration::from_millis(20);
    /// client.emit("shop.remind", &7).at(soon).await?;
    /// assert_eq!(reminders.next().await.unwrap()?.take().await?, 7);
    /// assert!(SystemTime::now() >= soon);
    /// # Ok(())
    /// # }
    /// ```
    pub fn at(mut self, time: SystemTime) -> Self {
        self.options.delay = Some(Delay::At(time));
        self
    }

    fn change(mut self, change: impl FnOnce(Message) -> Result<Message, Error>) -> Self {
        self.message = self.message.and_then(change).and_then(|message| {
            message.check_fields()?;
            Ok(message)
        });
        self
    }
}

pub(super) fn encode<P: IntoPayload + ?Sized>(
    client: &Client,
    subject: Subject,
    payload: &P,
) -> Result<Message, Error> {
    let encoded = payload
        .into_payload(client.codec())
        .map_err(|error| error.with_context("subject", &subject))?;
    Ok(Message::new(subject, encoded.bytes).with_content_type(encoded.content_type))
}

impl<'a> IntoFuture for Emit<'a> {
    type Output = Result<Receipt, Error>;
    type IntoFuture = EmitFuture<'a>;

    fn into_future(self) -> EmitFuture<'a> {
        EmitFuture(State::Start(self))
    }
}

impl fmt::Debug for Emit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emit")
            .field("message", &self.message)
            .finish_non_exhaustive()
    }
}

/// The publishing of one event. Allocates nothing of its own, unless it has to be tried again.
pub struct EmitFuture<'a>(State<'a>);

#[allow(
    clippy::large_enum_variant,
    reason = "boxing the start is the allocation that this type avoids"
)]
enum State<'a> {
    Start(Emit<'a>),
    Publishing(Publishing<'a>),
    Again(BoxFuture<'static, Result<Receipt, Error>>),
    Over,
}

/// The first try, while the transport has it.
struct Publishing<'a> {
    future: BoxFuture<'static, PublishBatch>,
    attempt: Attempt<'a>,
    deadline: Instant,
}

/// What is needed to judge a try, and to make another one.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    core: &'a Arc<ClientCore>,
    publisher: &'a Arc<dyn Publisher>,
    job: Job,
}

impl<'a> Attempt<'a> {
    /// What comes after a try.
    fn follow(self, batch: PublishBatch, deadline: impl FnOnce() -> Instant) -> Step<'a> {
        match self.job.judge(self.core, batch) {
            Judged::Over(result) => Step::Over(result),
            Judged::Again(entry, error) => {
                let (core, publisher) = (Arc::clone(self.core), Arc::clone(self.publisher));
                let again = self.job.again(core, publisher, entry, error, deadline());
                Step::Waits(State::Again(Box::pin(again)))
            }
        }
    }
}

#[allow(
    clippy::large_enum_variant,
    reason = "it lives for a moment, and boxing it is an allocation for each event"
)]
enum Step<'a> {
    Over(Result<Receipt, Error>),
    Waits(State<'a>),
}

impl Future for EmitFuture<'_> {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let step = match &mut self.0 {
                State::Start(_) => {
                    // Where the transport takes everything at once, the task would never let another one run.
                    ready!(pin!(consume_budget()).poll(cx));
                    let State::Start(emit) = std::mem::replace(&mut self.0, State::Over) else {
                        unreachable!()
                    };
                    emit.begin()
                }
                State::Publishing(publishing) => {
                    let batch = ready!(publishing.future.as_mut().poll(cx));
                    let deadline = publishing.deadline;
                    publishing.attempt.follow(batch, || deadline)
                }
                State::Again(again) => Step::Over(ready!(again.as_mut().poll(cx))),
                State::Over => unreachable!("polled again after it was ready"),
            };
            match step {
                Step::Waits(state) => self.0 = state,
                Step::Over(result) => {
                    self.0 = State::Over;
                    return Poll::Ready(result);
                }
            }
        }
    }
}

impl fmt::Debug for EmitFuture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EmitFuture")
    }
}

impl<'a> Emit<'a> {
    fn begin(self) -> Step<'a> {
        let core = self.client.core();
        let Options {
            guarantee,
            unrouted,
            delay,
            timeout,
        } = self.options;
        let message = match self
            .message
            .and_then(|message| core.check_open().map(|()| message))
        {
            Ok(message) => message,
            Err(error) => return Step::Over(Err(error.with_operation("emit"))),
        };
        let route = core.wires.route(message.subject());
        let wire = core.wires.wire(route);
        let agreed = route.guarantee(guarantee).and_then(|guarantee| {
            let due = Delay::due(delay, core, wire, route, guarantee);
            Ok((guarantee, due?))
        });
        let (guarantee, due) = match agreed {
            Ok(agreed) => agreed,
            Err(error) => {
                let error = error.with_context("subject", message.subject());
                return Step::Over(Err(error.with_operation("emit")));
            }
        };
        let (entry, fresh) = prepare(self.client, message, guarantee);
        let entry = entry.with_not_before(due);
        let publishing = wire.publisher.publish(PublishBatch::single(entry, timeout));
        let attempt = Attempt {
            core,
            publisher: &wire.publisher,
            job: Job {
                fresh,
                unrouted: unrouted.unwrap_or(route.unrouted),
            },
        };
        let deadline = || after(core.clock.now(), timeout);
        match publishing {
            Progress::Done(batch) => attempt.follow(batch, deadline),
            Progress::Pending(future) => Step::Waits(State::Publishing(Publishing {
                future,
                attempt,
                deadline: deadline(),
            })),
        }
    }
}

/// Completes a message: its id, its trace, its place in a test's record. `true` says that its id is a fresh random one.
pub(super) fn prepare(
    client: &Client,
    mut message: Message,
    guarantee: Guarantee,
) -> (Entry, bool) {
    if let Some(cause) = client.cause() {
        cause.mark(&mut message);
    }
    let fresh = message.id().is_none();
    // An event that may be lost needs no id: nothing retries it. On NATS that saves its headers.
    if fresh && guarantee == Guarantee::AtLeastOnce {
        message.set_id(MessageId::random());
    }
    if let Some(recorder) = &client.core().recorder {
        recorder.emitted(&message);
    }
    (Entry::new(message).with_guarantee(guarantee), fresh)
}

/// How one entry is to be judged and, if need be, tried again.
#[derive(Clone, Copy)]
pub(super) struct Job {
    pub(super) fresh: bool,
    pub(super) unrouted: Unrouted,
}

enum Judged {
    Over(Result<Receipt, Error>),
    Again(Entry, Error),
}

impl Job {
    fn judge(self, core: &ClientCore, batch: PublishBatch) -> Judged {
        let Some((entry, outcome)) = batch.into_single() else {
            return Judged::Over(failed(core, no_entry()));
        };
        if let Published::Accepted(receipt) = outcome
            && !receipt.is_duplicate()
        {
            core.metrics.published.increment(1);
            return Judged::Over(Ok(receipt));
        }
        match self.result(core, &entry, outcome, true) {
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => Judged::Again(entry, error),
            Err(error) => Judged::Over(failed(core, error)),
            Ok(receipt) => Judged::Over(Ok(receipt)),
        }
    }

    /// What an outcome is to the caller. `first` tells a first try from a repetition.
    pub(super) fn result(
        self,
        core: &ClientCore,
        entry: &Entry,
        outcome: Published,
        first: bool,
    ) -> Result<Receipt, Error> {
        let subject = entry.message.subject();
        let error = match outcome {
            Published::Accepted(receipt) if receipt.is_duplicate() && self.fresh && first => {
                // The id is random and new: whatever the broker has under it is not this message.
                Error::new(
                    ErrorKind::Rejected,
                    "the broker took the message for a duplicate of another one",
                )
            }
            Published::Accepted(receipt) => {
                core.metrics.published.increment(1);
                return Ok(receipt);
            }
            Published::Rejected(error) if error.kind() == ErrorKind::NoRoute => {
                if let Some(receipt) = self.allow_unrouted(core, entry) {
                    return Ok(receipt);
                }
                error
            }
            Published::Rejected(error) if first => error,
            // Who was refused now may have been taken by a try before.
            Published::Rejected(error) | Published::Unknown(error) => {
                let unknown = "it cannot be known whether the broker took the message";
                Error::new(ErrorKind::OutcomeUnknown, unknown).with_source(error)
            }
        };
        Err(error
            .with_operation("emit")
            .with_context("subject", subject))
    }

    fn allow_unrouted(self, core: &ClientCore, entry: &Entry) -> Option<Receipt> {
        match &core.recorder {
            Some(recorder) => recorder.unrouted(&entry.message),
            None if self.unrouted == Unrouted::Refuse => return None,
            None => {}
        }
        core.metrics.unrouted.increment(1);
        if self.unrouted == Unrouted::Warn {
            tracing::warn!(subject = %entry.message.subject(), "nobody took the event");
        }
        Some(Receipt::new().with_unrouted(true))
    }

    /// Tries again, with the same id, until the outcome is known or the deadline has passed.
    async fn again(
        self,
        core: Arc<ClientCore>,
        publisher: Arc<dyn Publisher>,
        mut entry: Entry,
        mut last: Error,
        deadline: Instant,
    ) -> Result<Receipt, Error> {
        if entry.guarantee == Guarantee::AtMostOnce {
            return failed(&core, last);
        }
        let mut pauses = Pauses::until(deadline);
        while let Some(left) = pauses.next(&core).await {
            let batch = PublishBatch::single(entry, left);
            let published = publisher.publish(batch).wait().await.into_single();
            let Some((same, outcome)) = published else {
                return failed(&core, no_entry());
            };
            entry = same;
            match self.result(&core, &entry, outcome, false) {
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => last = error,
                Err(error) => return failed(&core, error),
                Ok(receipt) => return Ok(receipt),
            }
        }
        failed(&core, last)
    }
}

/// The waits between the tries of a publish whose outcome is unknown, until its deadline.
pub(super) struct Pauses {
    deadline: Instant,
    pause: Duration,
}

impl Pauses {
    pub(super) fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            pause: FIRST_RETRY,
        }
    }

    /// Waits. Tells how much time the next try has; `None`: there is none left.
    pub(super) async fn next(&mut self, core: &ClientCore) -> Option<Duration> {
        let due = core.clock.now() + self.pause;
        if due >= self.deadline {
            return None;
        }
        core.clock.sleep_until(due).await;
        self.pause = (self.pause * 2).min(LAST_RETRY);
        Some(self.deadline.saturating_duration_since(core.clock.now()))
    }
}

/// The end of a publish that failed for good.
pub(super) fn failed(core: &ClientCore, error: Error) -> Result<Receipt, Error> {
    core.metrics.failed.increment(1);
    Err(error)
}

pub(super) fn no_entry() -> Error {
    Error::new(ErrorKind::OutcomeUnknown, "the adapter gave no entry back")
}
