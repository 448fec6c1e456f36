//! A consumer that is opened again whenever it ends: the connection was lost, the channel was closed, the queue deleted.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anywire::clock::Clock;
use anywire::transport::Seldom;
use anywire::{Error, ErrorKind};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicNackOptions};
use lapin::{Channel, Consumer};
use parking_lot::Mutex;

use crate::errors;

/// Between two attempts to open a consumer again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the broker may take to begin to deliver.
const CONSUME: Duration = Duration::from_secs(5);
/// How long the broker may take to confirm that it delivers no more.
const CANCEL: Duration = Duration::from_millis(500);

/// A consumer, and the channel that it has for itself.
#[derive(Clone)]
pub(crate) struct Active {
    pub(crate) channel: Arc<Channel>,
    pub(crate) consumer: Consumer,
}

/// How a consumer is opened.
pub(crate) type Open = Box<dyn Fn() -> BoxFuture<'static, Result<Active, Error>> + Send + Sync>;

/// What a feed brings.
pub(crate) enum Fed {
    Delivery(Box<Delivery>),
    /// What was delivered and not settled is not ours any more; another consumer is being opened.
    Lost,
    /// There will be no other.
    Failed(Error),
    /// The feed was stopped.
    Over,
}

/// What pulling and stopping share.
pub(crate) struct Seat {
    open: Open,
    /// Who is next in line must not get anything before he has what this one did not settle. The broker turns to him as soon as
    /// a consumer is cancelled, whatever it holds; where its channel is closed, it takes that back first.
    in_order: bool,
    state: Mutex<State>,
}

struct State {
    active: Option<Active>,
    is_over: bool,
    waker: Option<Waker>,
}

/// Pulls from a consumer.
pub(crate) struct Feed {
    seat: Arc<Seat>,
    clock: Arc<dyn Clock>,
    opening: Option<BoxFuture<'static, Result<Active, Error>>>,
    seldom: Seldom,
}

impl Feed {
    /// Opens a consumer.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub(crate) async fn open(
        open: Open,
        in_order: bool,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let active = loop {
            match open().await {
                Ok(active) => break active,
                // Opening waits for the next connection.
                Err(error) if error.kind() == ErrorKind::Disconnected => {
                    tokio::task::yield_now().await;
                }
                Err(error) => return Err(error),
            }
        };
        let seat = Seat {
            open,
            in_order,
            state: Mutex::new(State {
                active: Some(active),
                is_over: false,
                waker: None,
            }),
        };
        Ok(Self {
            seat: Arc::new(seat),
            clock,
            opening: None,
            seldom: Seldom::default(),
        })
    }

    pub(crate) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }

    /// The next delivery, or news.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Fed> {
        loop {
            if let Some(opening) = &mut self.opening {
                if self.seat.watch(cx) {
                    return Poll::Ready(Fed::Over);
                }
                let Poll::Ready(opened) = opening.poll_unpin(cx) else {
                    return Poll::Pending;
                };
                self.opening = None;
                match opened {
                    Ok(active) => self.seat.sit(active),
                    Err(error) if is_final(&error) => return Poll::Ready(Fed::Failed(error)),
                    Err(error) => self.try_again(&error),
                }
                continue;
            }
            return match self.seat.poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Fed::Lost) => {
                    self.opening = Some((self.seat.open)());
                    Poll::Ready(Fed::Lost)
                }
                Poll::Ready(fed) => Poll::Ready(fed),
            };
        }
    }

    fn try_again(&mut self, error: &Error) {
        if error.kind() != ErrorKind::Disconnected && self.seldom.is_due() {
            tracing::warn!(%error, "a consumer cannot be opened again yet");
        }
        let (clock, seat) = (Arc::clone(&self.clock), Arc::clone(&self.seat));
        let pause = match error.kind() {
            // The link waits for the next connection.
            ErrorKind::Disconnected => Duration::ZERO,
            _ => PAUSE,
        };
        self.opening = Some(Box::pin(async move {
            clock.sleep_until(clock.now() + pause).await;
            (seat.open)().await
        }));
    }
}

/// Whether no other attempt will help.
fn is_final(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Closed | ErrorKind::Denied | ErrorKind::Config | ErrorKind::NotFound
    )
}

impl Seat {
    /// The channel that deliveries are settled on, while it is open.
    pub(crate) fn channel(&self) -> Option<Arc<Channel>> {
        let state = self.state.lock();
        let active = state.active.as_ref()?;
        let is_open = active.channel.status().connected();
        is_open.then(|| Arc::clone(&active.channel))
    }

    /// Wakes who pulls.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.state.lock().waker.take() {
            waker.wake();
        }
    }

    /// Whether it is over; else the task is woken when it is.
    fn watch(&self, cx: &Context<'_>) -> bool {
        let mut state = self.state.lock();
        state.watch(cx);
        state.is_over
    }

    fn sit(&self, active: Active) {
        let mut state = self.state.lock();
        if !state.is_over {
            state.active = Some(active);
            return;
        }
        drop(state);
        if self.in_order {
            close(&active);
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Fed> {
        let mut state = self.state.lock();
        state.watch(cx);
        if state.is_over {
            return Poll::Ready(Fed::Over);
        }
        let Some(active) = &mut state.active else {
            return Poll::Ready(Fed::Lost);
        };
        match Pin::new(&mut active.consumer).poll_next_unpin(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(delivery))) => Poll::Ready(Fed::Delivery(Box::new(delivery))),
            Poll::Ready(Some(Err(_)) | None) => {
                let lost = state.active.take();
                drop(state);
                drop(lost);
                Poll::Ready(Fed::Lost)
            }
        }
    }

    /// Takes no more, and returns what came and was not pulled; in order, that waits until [`leave`](Self::leave). What was
    /// pulled may still be settled.
    pub(crate) async fn stop(&self) {
        let Some(active) = self.end().filter(|_| !self.in_order) else {
            return;
        };
        let tag = active.consumer.tag();
        let cancelled = active
            .channel
            .basic_cancel(tag, BasicCancelOptions::default());
        let _ = tokio::time::timeout(CANCEL, cancelled).await;
        give_back(active);
    }

    /// As [`stop`](Self::stop), without waiting for anything.
    pub(crate) fn abandon(self: &Arc<Self>) {
        let Some(active) = self.end().filter(|_| !self.in_order) else {
            return;
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let tag = active.consumer.tag();
                runtime.spawn(async move {
                    let cancelled = active
                        .channel
                        .basic_cancel(tag, BasicCancelOptions::default());
                    let _ = tokio::time::timeout(CANCEL, cancelled).await;
                    give_back(active);
                });
            }
            Err(_) => give_back(active),
        }
    }

    /// Returns all that is not settled, where that must be in order. Nothing can be settled any more.
    pub(crate) fn leave(&self) {
        let mut state = self.state.lock();
        let goes = self.in_order && state.is_over;
        let active = state.active.take_if(|_| goes);
        drop(state);
        if let Some(active) = active {
            close(&active);
        }
    }

    /// Marks the end; gives the consumer to whoever comes first.
    fn end(&self) -> Option<Active> {
        let mut state = self.state.lock();
        let first = !std::mem::replace(&mut state.is_over, true);
        let active = state.active.clone().filter(|_| first);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        active
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.state.get_mut().is_over = true;
        self.leave();
    }
}

impl State {
    fn watch(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            waker => *waker = Some(cx.waker().clone()),
        }
    }
}

/// Closes the channel of a consumer, which returns all that it holds.
fn close(active: &Active) {
    send(active.channel.close(200, "OK".into()));
}

/// Returns what waits in the library's buffer.
fn give_back(mut active: Active) {
    while let Some(Some(Ok(delivery))) = active.consumer.next().now_or_never() {
        send(give_back_one(&active.channel, delivery.delivery_tag));
    }
}

pub(crate) async fn give_back_one(channel: &Channel, tag: u64) -> lapin::Result<()> {
    let options = BasicNackOptions {
        requeue: true,
        multiple: false,
    };
    channel.basic_nack(tag, options).await
}

/// Waits for a consumer. The broker may answer nobody who comes while a queue recovers from a crash; the next who comes is served.
///
/// # Errors
/// Why there is none; `Disconnected` where another attempt should follow at once.
pub(crate) async fn in_time(
    consumer: impl Future<Output = lapin::Result<Consumer>>,
) -> Result<Consumer, Error> {
    match tokio::time::timeout(CONSUME, consumer).await {
        Ok(consumer) => consumer.map_err(errors::operation),
        Err(_) => Err(errors::disconnected()),
    }
}

/// Hands a frame to the library. Its first poll does that; the later ones would only wait until it is written.
pub(crate) fn send(frame: impl Future<Output = lapin::Result<()>>) {
    let _ = frame.now_or_never();
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seat")
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Feed")
    }
}
