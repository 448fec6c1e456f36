//! The streams of one client over its one inbox, and who looks after them.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, OnceLock, Weak};
use std::task::Poll;
use std::time::Duration;

use futures::future::{Either, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use smol_str::SmolStr;
use tokio::sync::mpsc;

use super::emulation::{Mailbox, Post};
use super::frame::{End, Frame, Mark};
use super::line::{Broken, Line};
use crate::clock::{Clock, after};
use crate::pattern::Progress;
use crate::pattern::request_reply::{Replier, Reply};
use crate::{Error, ErrorKind, Message};

/// The most streams that one client has open at once.
const MAX_STREAMS: usize = 65_536;
/// The most replies, and frames of streams that we do not know, that wait to be sent.
const MAX_WAITING: usize = 4_096;
/// The most errands that the wire has not taken yet.
const MAX_RUNNING: usize = 1_024;
/// How often the streams are looked through, for each sign of life that is due.
const LOOKS: u32 = 4;

/// The streams of one client.
pub(super) struct Exchange {
    pub(super) post: Arc<dyn Post>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) heartbeat: Duration,
    address: OnceLock<SmolStr>,
    opening: tokio::sync::Mutex<()>,
    lines: Mutex<HashMap<End, Weak<Line>>>,
    waiting: mpsc::Sender<Errand>,
    /// For the keeper, who starts with the inbox.
    errands: Mutex<Option<mpsc::Receiver<Errand>>>,
}

/// What is sent by the way.
pub(super) enum Errand {
    /// A stream, of which each waits once.
    Speak(Arc<Line>),
    Frame(SmolStr, Message),
    Reply(Arc<dyn Replier>, Box<Reply>),
}

impl Exchange {
    pub(super) fn new(
        post: Arc<dyn Post>,
        clock: Arc<dyn Clock>,
        heartbeat: Duration,
    ) -> Arc<Self> {
        let (waiting, errands) = mpsc::channel(MAX_STREAMS + MAX_WAITING);
        Arc::new(Self {
            post,
            clock,
            heartbeat,
            address: OnceLock::new(),
            opening: tokio::sync::Mutex::new(()),
            lines: Mutex::default(),
            waiting,
            errands: Mutex::new(Some(errands)),
        })
    }

    /// Our address, and with it the inbox that has it.
    pub(super) async fn inbox(self: &Arc<Self>) -> Result<SmolStr, Error> {
        if let Some(address) = self.address.get() {
            return Ok(address.clone());
        }
        let _turn = self.opening.lock().await;
        if let Some(address) = self.address.get() {
            return Ok(address.clone());
        }
        let mailbox: Weak<dyn Mailbox> = {
            let weak: Weak<Self> = Arc::downgrade(self);
            weak
        };
        let address = self.post.open(mailbox).await?;
        if let Some(errands) = self.errands.lock().take() {
            tokio::spawn(keep(Arc::downgrade(self), Arc::clone(&self.clock), errands));
        }
        Ok(self.address.get_or_init(|| address).clone())
    }

    pub(super) fn address(&self) -> Option<SmolStr> {
        self.address.get().cloned()
    }

    /// Makes a line known; tells of the one that is open under its name already.
    pub(super) fn remember(&self, line: &Arc<Line>) -> Result<Option<Arc<Line>>, Error> {
        let mut lines = self.lines.lock();
        if let Some(open) = lines.get(&line.end).and_then(Weak::upgrade) {
            return Ok(Some(open));
        }
        if lines.len() >= MAX_STREAMS {
            let text = format!("{MAX_STREAMS} streams are open; end some, or use more clients");
            return Err(Error::new(ErrorKind::Overloaded, text));
        }
        lines.insert(line.end, Arc::downgrade(line));
        Ok(None)
    }

    /// Forgets this line, and none that has its name after it.
    pub(super) fn forget(&self, line: &Line) {
        let mut lines = self.lines.lock();
        let known = lines.get(&line.end);
        if known.is_some_and(|known| std::ptr::eq(known.as_ptr(), line)) {
            lines.remove(&line.end);
        }
    }

    /// Takes an errand, where there is a place for it. All streams have one, whatever else waits.
    pub(super) fn run(&self, errand: Errand) -> bool {
        let has_place = match errand {
            Errand::Speak(_) => true,
            Errand::Frame(..) | Errand::Reply(..) => self.waiting.capacity() > MAX_STREAMS,
        };
        let is_taken = has_place && self.waiting.try_send(errand).is_ok();
        if !is_taken {
            metrics::counter!("anywire.streams.frames_left_out").increment(1);
        }
        is_taken
    }

    /// Waits until the wire has taken something, as long as it is news.
    pub(super) async fn taken(&self, sent: Progress<Result<(), Error>>) -> Result<(), Error> {
        let sending = match sent {
            Progress::Done(sent) => return sent,
            Progress::Pending(sending) => sending,
        };
        let old = self
            .clock
            .sleep_until(after(self.clock.now(), self.heartbeat));
        match select(sending, old).await {
            Either::Left((sent, _)) => sent,
            Either::Right(_) => Err(Error::new(
                ErrorKind::Timeout,
                "the wire did not take it within a heartbeat",
            )),
        }
    }

    fn find(&self, end: End) -> Option<Arc<Line>> {
        self.lines.lock().get(&end).and_then(Weak::upgrade)
    }

    fn all(&self) -> Vec<Arc<Line>> {
        // A line that goes looks itself up here: it must not go while we look.
        self.lines
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    fn look(&self) {
        let now = self.clock.now();
        for line in self.all() {
            line.keep(now);
        }
    }
}

impl Mailbox for Exchange {
    fn deliver(&self, frame: Message) {
        let mark = frame.correlation_id().and_then(Mark::read);
        let (Some(mark), Some(read)) = (mark, frame.frame().and_then(Frame::read)) else {
            metrics::counter!("anywire.streams.strange_frames").increment(1);
            return;
        };
        let line = self.find(mark.end);
        if line.is_some_and(|line| line.receive(mark.run, &read, &frame)) {
            return;
        }
        // Who believes in a stream that is over here, or never was, is told.
        if let Frame::Beat { address, .. } = read {
            let gone = Message::new(frame.subject().clone(), "")
                .with_correlation_id(mark.other().to_string())
                .with_frame(Frame::Gone.to_string());
            self.run(Errand::Frame(address, gone));
        }
    }

    fn lost(&self) {
        for line in self.all() {
            line.fail(Broken::Lost);
        }
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("address", &self.address)
            .field("streams", &self.lines.lock().len())
            .finish_non_exhaustive()
    }
}

/// Why the keeper is up.
enum Call {
    Look,
    Run(Option<Errand>),
}

/// Runs the errands and looks after the streams, until nobody has them any more. No look waits for the wire.
async fn keep(
    exchange: Weak<Exchange>,
    clock: Arc<dyn Clock>,
    mut errands: mpsc::Receiver<Errand>,
) {
    let mut running = FuturesUnordered::new();
    let mut timer = clock.sleep_until(clock.now());
    loop {
        let call = poll_fn(|cx| {
            if timer.poll_unpin(cx).is_ready() {
                return Poll::Ready(Call::Look);
            }
            while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
            match running.len() < MAX_RUNNING {
                true => errands.poll_recv(cx).map(Call::Run),
                false => Poll::Pending,
            }
        });
        let call = call.await;
        let Some(exchange) = exchange.upgrade() else {
            return;
        };
        match call {
            Call::Look => {
                exchange.look();
                timer = clock.sleep_until(after(clock.now(), exchange.heartbeat / LOOKS));
            }
            Call::Run(Some(errand)) => running.push(errand.run(exchange)),
            Call::Run(None) => return,
        }
    }
}

impl Errand {
    async fn run(self, exchange: Arc<Exchange>) {
        let sent = match self {
            Self::Speak(line) => line.speak().await,
            Self::Frame(address, frame) => {
                exchange.taken(exchange.post.send(&address, frame)).await
            }
            Self::Reply(replier, reply) => exchange.taken(replier.reply(*reply)).await,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "a frame of a stream could not be sent");
        }
    }
}
