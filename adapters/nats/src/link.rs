//! One connection to NATS, with one inbox for everything that is answered.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anywire::config::TransportConfig;
use anywire::{Error, ErrorKind};
use async_nats::client::traits::Publisher;
use async_nats::message::OutboundMessage;
use async_nats::{Client, Event, Subject};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use rand::RngExt;
use slab::Slab;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use crate::config::{NatsConfig, servers};
use crate::errors;

/// The first pause of a reconnect, doubled with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A connection that was lost sooner than this was none to rely on: the next is not made at once.
const SHORT: Duration = Duration::from_secs(2);
/// The most such connections in a row that lengthen the pause, to 0.4 s: there may be nothing more to it than bad luck.
const MOST_FLAPS: usize = 4;
/// How many refused subscriptions are remembered.
const MOST_REFUSED: usize = 64;

/// A connection. It reconnects by itself, for ever, until it is closed.
pub(crate) struct Link {
    client: Client,
    /// A handle of its own for what is sent without waiting.
    sink: Mutex<Client>,
    /// What the addresses of our inbox begin with, dot included.
    inbox: String,
    /// What was published to last.
    subject: Mutex<Subject>,
    /// How often somebody has asked whether the server has seen what was sent before, and up to which of them it has.
    asked: AtomicU64,
    seen: tokio::sync::Mutex<u64>,
    state: Arc<State>,
    listener: JoinHandle<()>,
}

/// What the connection's own callbacks see: no handle of the client, which would keep it alive.
struct State {
    replies: Mutex<Slab<Slot>>,
    connected: AtomicBool,
    closed: AtomicBool,
    /// How many connections there have been: the epoch of what was received on one.
    connects: AtomicU64,
    /// When the last one was made.
    connected_at: Mutex<Instant>,
    /// How many in a row were lost as soon as they were made.
    flaps: AtomicUsize,
    /// The last subscriptions that the server refused us.
    refused: Mutex<Vec<String>>,
    changed: Changed,
}

/// Whether a connection that is there was there before.
pub(crate) type Again = bool;

/// Who is told what happens to the connection.
type Changed = Box<dyn Fn(&Event, Again) + Send + Sync>;

/// What became of a message that must not wait.
#[derive(Debug)]
pub(crate) enum Handed {
    /// The client has it, or will never take it.
    Over(Result<(), Error>),
    /// There was no room.
    Back(Box<OutboundMessage>),
}

/// A reply that is waited for.
struct Slot {
    /// Makes the address unguessable, and a used one stale.
    nonce: u64,
    answer: Answer,
    /// What came after it and before it was taken: whoever waits may want the second, where the first is a stream's word.
    second: Option<async_nats::Message>,
    permit: Option<OwnedSemaphorePermit>,
    /// Where the request goes.
    target: Option<Subject>,
}

enum Answer {
    Awaited(Option<Waker>),
    Here(Result<async_nats::Message, Lost>),
    /// Handed out; more may come.
    Taken,
}

/// Why no reply will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The connection was lost after the request may have left.
    Disconnected,
    /// The link was closed.
    Closed,
    /// The server says that we may not publish there.
    Denied,
}

impl Link {
    /// Connects, and opens the inbox. `changed` is told what happens to the connection.
    ///
    /// # Errors
    /// `Unavailable` where nobody is there, `Denied` where we are not let in, `Config` where TLS does not fit.
    pub(crate) async fn connect(
        config: &NatsConfig,
        transport: &TransportConfig,
        role: &str,
        changed: impl Fn(&Event, Again) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let state = Arc::new(State {
            replies: Mutex::default(),
            connected: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            connects: AtomicU64::new(1),
            connected_at: Mutex::new(Instant::now()),
            flaps: AtomicUsize::new(0),
            refused: Mutex::default(),
            changed: Box::new(changed),
        });
        let (told, pausing) = (Arc::clone(&state), Arc::clone(&state));
        let has_been = AtomicBool::new(false);
        let options = config.options(transport, role).await?;
        let options = options
            .event_callback(move |event| {
                told.hear(&event);
                std::future::ready(())
            })
            .reconnect_delay_callback(move |attempts| {
                pausing.end_if_closed();
                match has_been.swap(true, Ordering::Relaxed) {
                    true => pause(attempts.max(pausing.flaps.load(Ordering::Relaxed))),
                    false => Duration::ZERO,
                }
            });
        let client = options.connect(servers(transport)?).await;
        let client = client.map_err(|error| errors::connect(error, transport))?;
        let inbox = format!("{}.", client.new_inbox());
        let mut subscriber = client
            .subscribe(format!("{inbox}*"))
            .await
            .map_err(errors::disconnected)?;
        let (answering, prefix) = (Arc::clone(&state), inbox.len());
        let listener = tokio::spawn(async move {
            while let Some(message) = subscriber.next().await {
                answering.answer(prefix, message);
            }
        });
        let link = Self {
            sink: Mutex::new(client.clone()),
            client,
            inbox,
            subject: Mutex::new(Subject::from_static("")),
            asked: AtomicU64::new(0),
            seen: tokio::sync::Mutex::new(0),
            state,
            listener,
        };
        link.echo().await?;
        Ok(link)
    }

    /// The vendor's client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Which connection this is; it grows with each reconnect.
    pub(crate) fn epoch(&self) -> u64 {
        self.state.connects.load(Ordering::Acquire)
    }

    /// The subject as the client takes it. One that was used last is shared, not copied.
    pub(crate) fn subject(&self, text: &str) -> Subject {
        let mut last = self.subject.lock();
        if last.as_str() != text {
            *last = text.into();
        }
        last.clone()
    }

    /// Whether there is a connection now. What is sent without one waits in the client's queue and is sent on the next: an
    /// acknowledgement, which nobody believes in any more by then.
    pub(crate) fn is_connected(&self) -> bool {
        // The client knows first, and tells by an event that takes a moment; but only events tell that one was lost and
        // made again in between.
        self.state.connected.load(Ordering::Acquire)
            && self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Sends a message, waiting for room where the client has none.
    ///
    /// # Errors
    /// `Closed`, or `TooLarge` where it is over the server's limit.
    pub(crate) async fn send(&self, message: OutboundMessage) -> Result<(), Error> {
        let sent = self.client.publish_message(message).await;
        sent.map_err(errors::publish)
    }

    /// Sends a message if that needs no waiting; else gives it back.
    pub(crate) fn send_now(&self, message: OutboundMessage) -> Handed {
        let mut sink = self.sink.lock();
        let mut cx = Context::from_waker(Waker::noop());
        match sink.poll_ready_unpin(&mut cx) {
            Poll::Ready(Ok(())) => {
                Handed::Over(sink.start_send_unpin(message).map_err(errors::publish))
            }
            Poll::Ready(Err(error)) => Handed::Over(Err(errors::publish(error))),
            Poll::Pending => Handed::Back(Box::new(message)),
        }
    }

    /// An address for one reply to what is sent to `target`. The permit is held until it comes.
    pub(crate) fn expect(
        &self,
        target: Option<Subject>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Reply {
        let nonce = rand::rng().random();
        let key = self.state.replies.lock().insert(Slot {
            nonce,
            answer: Answer::Awaited(None),
            second: None,
            permit,
            target,
        });
        Reply {
            state: Arc::clone(&self.state),
            address: format!("{}{key:x}-{nonce:x}", self.inbox).into(),
            key,
        }
    }

    /// As [`expect`](Self::expect), for what makes no sense later: it fails at once without a connection.
    pub(crate) fn expect_now(&self) -> Reply {
        let reply = self.expect(None, None);
        if !self.is_connected() {
            self.state.lose(reply.key, Lost::Disconnected);
        }
        reply
    }

    /// A round trip through the server: what was sent before it has been seen there. (The client's own flush ends at the
    /// socket.)
    ///
    /// # Errors
    /// `Disconnected` or `Closed`.
    pub(crate) async fn echo(&self) -> Result<(), Error> {
        let reply = self.expect_now();
        let echo = OutboundMessage {
            subject: reply.address().clone(),
            reply: None,
            payload: Bytes::new(),
            headers: None,
        };
        self.send(echo).await?;
        reply.await.map(drop).map_err(Error::from)
    }

    /// As [`echo`](Self::echo), for what was sent on connection `epoch`. One round trip answers all who have asked before
    /// it began.
    ///
    /// # Errors
    /// `Disconnected` or `Closed`.
    pub(crate) async fn echo_for_all(&self, epoch: u64) -> Result<(), Error> {
        let mine = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut seen = self.seen.lock().await;
        if *seen < mine {
            let asked = self.asked.load(Ordering::Acquire);
            self.echo().await?;
            *seen = asked;
        }
        match self.epoch() == epoch {
            true => Ok(()),
            false => Err(Lost::Disconnected.into()),
        }
    }

    /// Whether the server has refused us a subscription. It says so by the way; what was said is heard after two echoes.
    pub(crate) async fn was_refused(&self, pattern: &str) -> Result<bool, Error> {
        self.echo().await?;
        self.echo().await?;
        let refused = self.state.refused.lock();
        Ok(refused.iter().any(|refused| refused == pattern))
    }

    /// Ends the connection, now or as soon as an attempt to connect is over.
    pub(crate) async fn close(&self) {
        if self.state.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.state.connected.store(false, Ordering::Release);
        self.state.lose_all(Lost::Closed);
        self.listener.abort();
        // Both only put a command into a queue that may be full of a lost connection's; whoever reconnects looks at the
        // flag. The client ends when it is polled after the drain, which the flush brings about.
        let ending = async {
            let _ = self.client.drain().await;
            let _ = self.client.flush().await;
        };
        let _ = tokio::time::timeout(Duration::from_millis(100), ending).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listener.abort();
        if self.state.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.state.lose_all(Lost::Closed);
        // What was queued last, the deliveries that go back among it, is thrown away by a client whose handles are gone:
        // one more handle lives until it is written.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let client = self.client.clone();
            runtime.spawn(async move {
                let ending = async {
                    let _ = client.flush().await;
                    let _ = client.drain().await;
                    let _ = client.flush().await;
                };
                let _ = tokio::time::timeout(Duration::from_secs(1), ending).await;
            });
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("connected", &self.is_connected())
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

impl State {
    fn hear(&self, event: &Event) {
        let mut again = false;
        match event {
            Event::Connected => {
                *self.connected_at.lock() = Instant::now();
                // The first one is told after we have counted it.
                again = !self.connected.swap(true, Ordering::AcqRel);
                if again {
                    self.connects.fetch_add(1, Ordering::AcqRel);
                }
            }
            Event::Disconnected | Event::Closed => {
                self.count_flap();
                // First the flag: who asks for a reply looks at it after it has its place.
                self.connected.store(false, Ordering::Release);
                self.lose_all(Lost::Disconnected);
            }
            Event::SlowConsumer(_) => metrics::counter!("anywire.nats.dropped").increment(1),
            Event::ServerError(error) => self.note_violation(&error.to_string()),
            Event::LameDuckMode | Event::Draining | Event::ClientError(_) => {}
        }
        (self.changed)(event, again);
    }

    fn count_flap(&self) {
        let flaps = match self.connected_at.lock().elapsed() < SHORT {
            true => self.flaps.load(Ordering::Relaxed) + 1,
            false => 0,
        };
        self.flaps.store(flaps.min(MOST_FLAPS), Ordering::Relaxed);
    }

    /// Notes a missing permission. The server tells it in words alone, with the subject between quotes.
    fn note_violation(&self, text: &str) {
        let Some(subject) = text.split('"').nth(1) else {
            return;
        };
        if text.contains("Permissions Violation for Publish") {
            for (_, slot) in &mut *self.replies.lock() {
                if slot.target.as_deref() == Some(subject) {
                    slot.lose(Lost::Denied);
                }
            }
        } else if text.contains("Permissions Violation for Subscription") {
            let mut refused = self.refused.lock();
            refused.truncate(MOST_REFUSED - 1);
            refused.insert(0, subject.to_owned());
        }
    }

    /// The client has no way to be told to stop reconnecting, but for this: its task ends here, without a word, as nobody
    /// waits for it. Where panics abort, it goes on trying until the process ends.
    fn end_if_closed(&self) {
        if cfg!(panic = "unwind") && self.closed.load(Ordering::Acquire) {
            std::panic::resume_unwind(Box::new("the link was closed"));
        }
    }

    fn answer(&self, prefix: usize, message: async_nats::Message) {
        let token = message.subject.get(prefix..).unwrap_or_default();
        let parsed = token.split_once('-').and_then(|(key, nonce)| {
            let key = usize::from_str_radix(key, 16).ok()?;
            Some((key, u64::from_str_radix(nonce, 16).ok()?))
        });
        let mut replies = self.replies.lock();
        let slot = parsed.and_then(|(key, nonce)| {
            let slot = replies.get_mut(key)?;
            (slot.nonce == nonce).then_some(slot)
        });
        let Some(slot) = slot else {
            drop(replies);
            metrics::counter!("anywire.nats.stray_replies").increment(1);
            return;
        };
        slot.permit = None;
        let waker = match &mut slot.answer {
            Answer::Awaited(waker) => waker.take(),
            Answer::Here(_) => {
                slot.second.get_or_insert(message);
                return;
            }
            Answer::Taken => None,
        };
        slot.answer = Answer::Here(Ok(message));
        drop(replies);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lose(&self, key: usize, why: Lost) {
        if let Some(slot) = self.replies.lock().get_mut(key) {
            slot.lose(why);
        }
    }

    fn lose_all(&self, why: Lost) {
        for (_, slot) in &mut *self.replies.lock() {
            slot.lose(why);
        }
    }
}

impl Slot {
    fn lose(&mut self, why: Lost) {
        if let Answer::Awaited(waker) = &mut self.answer {
            let waker = waker.take();
            self.answer = Answer::Here(Err(why));
            self.permit = None;
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// A reply that will come, or not. Dropping it gives it up.
pub(crate) struct Reply {
    state: Arc<State>,
    address: Subject,
    key: usize,
}

impl Reply {
    /// Where it is to be sent.
    pub(crate) fn address(&self) -> &Subject {
        &self.address
    }
}

/// Ends with the first reply. Polled again, it waits for another.
impl Future for Reply {
    type Output = Result<async_nats::Message, Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut replies = self.state.replies.lock();
        let Some(slot) = replies.get_mut(self.key) else {
            return Poll::Ready(Err(Lost::Closed));
        };
        match std::mem::replace(&mut slot.answer, Answer::Taken) {
            Answer::Here(answer) => {
                if let Some(second) = slot.second.take() {
                    slot.answer = Answer::Here(Ok(second));
                }
                Poll::Ready(answer)
            }
            Answer::Awaited(_) | Answer::Taken => {
                slot.answer = Answer::Awaited(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.state.replies.lock().try_remove(self.key);
    }
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Disconnected => Self::new(
                ErrorKind::Disconnected,
                "the connection to the NATS server was lost; it is being made again",
            ),
            Lost::Closed => errors::closed(),
            Lost::Denied => Self::new(
                ErrorKind::Denied,
                "the NATS user may not publish there; see its permissions",
            ),
        }
    }
}

/// Longer with each attempt, and never the same for all who lost the same server.
fn pause(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(doublings.min(16)));
    pause
        .min(LONGEST_PAUSE)
        .mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        for attempts in 1..10 {
            let doubled = FIRST_PAUSE * 2_u32.pow(attempts - 1);
            let longest = doubled.min(LONGEST_PAUSE);
            let range = longest / 2..=longest;
            assert!(range.contains(&pause(attempts as usize)));
        }
        assert!(pause(usize::MAX) <= LONGEST_PAUSE);
    }
}
