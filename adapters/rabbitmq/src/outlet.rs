//! The way out: a bounded window of messages whose confirmations are awaited side by side, on a channel that is opened again
//! where it was closed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anywire::{Error, ErrorKind};
use futures::FutureExt;
use futures::future::BoxFuture;
use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, ExchangeKind};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::errors;
use crate::lane::{self, Lane, Room};
use crate::link::Link;
use crate::parcel::{Parcel, Sent, Ticket};
use crate::refusals::Refusals;

/// What a message takes besides its payload.
const OVERHEAD: usize = 256;

/// What is done on a new channel before anything is published on it.
pub(crate) type Prepare =
    Box<dyn Fn(Channel) -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// What an outlet is made of.
pub(crate) struct Setup {
    /// Whether the broker confirms.
    pub(crate) confirm: bool,
    /// The exchange that may be missing: nobody has subscribed yet.
    pub(crate) exchange: String,
    pub(crate) prepare: Prepare,
    pub(crate) window: usize,
    pub(crate) window_bytes: usize,
    /// The largest payload; where the broker takes less, it is learnt.
    pub(crate) max_size: Arc<AtomicUsize>,
}

/// A channel that publishes, and is opened again where it was closed.
pub(crate) struct Outlet {
    link: Arc<Link>,
    setup: Setup,
    count: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    lane: Mutex<Option<Arc<Lane>>>,
    opening: tokio::sync::Mutex<()>,
    refusals: Arc<Refusals>,
}

impl Outlet {
    pub(crate) fn new(link: Arc<Link>, setup: Setup) -> Self {
        Self {
            link,
            count: Arc::new(Semaphore::new(setup.window)),
            bytes: Arc::new(Semaphore::new(setup.window_bytes)),
            setup,
            lane: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            refusals: Arc::default(),
        }
    }

    /// Hands a message over, if nothing has to be waited for; its fate is told to `ticket`. `None` where something has.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) fn try_send(
        &self,
        parcel: Parcel,
        ticket: &Arc<Ticket>,
        index: usize,
    ) -> Option<Result<(), Sent>> {
        if let Some(error) = self.refusals.find(parcel.route()) {
            return Some(Err(Sent::Refused(error)));
        }
        let lane = self
            .current()
            .filter(|lane| parcel.exchange.as_str() != self.setup.exchange || lane.has_exchange());
        let lane = lane.filter(|_| !self.link.is_blocked())?;
        let room = self.room_now(parcel.payload.len())?;
        lane.launch(parcel, room, ticket, index).ok().map(Ok)
    }

    /// Hands a message over as soon as there is room and a connection; its fate is told to `ticket`.
    ///
    /// # Errors
    /// What was not sent, and why.
    pub(crate) async fn send(
        &self,
        parcel: Parcel,
        ticket: &Arc<Ticket>,
        index: usize,
    ) -> Result<(), Sent> {
        if let Some(error) = self.refusals.find(parcel.route()) {
            return Err(Sent::Refused(error));
        }
        let room = self.room(parcel.payload.len()).await?;
        let mut parcel = (parcel, room);
        loop {
            if self.link.is_blocked() {
                self.link.unblocked().await;
            }
            let lane = self.lane().await.map_err(Sent::Refused)?;
            if parcel.0.exchange.as_str() == self.setup.exchange
                && !self.has_exchange(&lane).await?
            {
                return Err(Sent::Returned);
            }
            match lane.launch(parcel.0, parcel.1, ticket, index) {
                Ok(()) => return Ok(()),
                Err(back) => parcel = *back,
            }
            // The channel is gone and the next one cannot be opened before others had their turn.
            self.forget(&lane);
            tokio::task::yield_now().await;
        }
    }

    /// Why messages wait, if they do.
    pub(crate) fn waits_for(&self) -> Error {
        if !self.link.is_connected() {
            return errors::unreachable();
        }
        Error::new(
            ErrorKind::Overloaded,
            match self.link.is_blocked() {
                true => {
                    "RabbitMQ takes no publishes (an alarm: memory or disk); give it room, or consume faster"
                }
                false => {
                    "too much was in flight until the deadline; publish less at once, or raise publish_window"
                }
            },
        )
    }

    /// Ends the channel once all fates are known.
    pub(crate) fn close(&self) {
        if let Some(lane) = self.lane.lock().take() {
            lane.retire();
        }
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn flushed(&self) {
        let all = u32::try_from(self.setup.window).unwrap_or(u32::MAX);
        drop(self.count.acquire_many(all).await);
    }

    fn room_now(&self, payload: usize) -> Option<Room> {
        let count = Arc::clone(&self.count).try_acquire_owned().ok()?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(self.weight(payload));
        Some(Room {
            _count: count,
            _bytes: bytes.ok()?,
        })
    }

    async fn room(&self, payload: usize) -> Result<Room, Sent> {
        let closed = |_| Sent::Refused(errors::closed());
        let count = Arc::clone(&self.count).acquire_owned();
        let count = count.await.map_err(closed)?;
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(self.weight(payload));
        Ok(Room {
            _count: count,
            _bytes: bytes.await.map_err(closed)?,
        })
    }

    /// What a payload takes of the window of bytes; one that is over it goes alone.
    fn weight(&self, payload: usize) -> u32 {
        let size = (payload + OVERHEAD).min(self.setup.window_bytes);
        u32::try_from(size).unwrap_or(u32::MAX)
    }

    /// The channel, opened where there is none.
    pub(crate) async fn lane(&self) -> Result<Arc<Lane>, Error> {
        if let Some(lane) = self.current() {
            return Ok(lane);
        }
        let _one_at_a_time = self.opening.lock().await;
        if let Some(lane) = self.current() {
            return Ok(lane);
        }
        loop {
            match self.open().await {
                Ok(lane) => {
                    let before = self.lane.lock().replace(Arc::clone(&lane));
                    if let Some(before) = before {
                        before.retire();
                    }
                    return Ok(lane);
                }
                // The link waits for the next connection.
                Err(error) if error.kind() == ErrorKind::Disconnected => {
                    tokio::task::yield_now().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn current(&self) -> Option<Arc<Lane>> {
        let lane = self.lane.lock();
        lane.as_ref().filter(|lane| lane.is_open()).cloned()
    }

    fn forget(&self, gone: &Arc<Lane>) {
        let mut lane = self.lane.lock();
        if lane.as_ref().is_some_and(|lane| Arc::ptr_eq(lane, gone)) {
            *lane = None;
        }
        drop(lane);
        gone.retire();
    }

    async fn open(&self) -> Result<Arc<Lane>, Error> {
        let (_, epoch) = self.link.live().await?;
        let lane = self.link.while_live(self.prepare()).await?;
        tokio::spawn(lane::drive(Arc::clone(&lane), self.link.end_of(epoch)));
        Ok(lane)
    }

    async fn prepare(&self) -> Result<Arc<Lane>, Error> {
        let channel = self.link.channel().await?;
        if self.setup.confirm {
            let selected = channel
                .confirm_select(ConfirmSelectOptions::default())
                .await;
            selected.map_err(errors::operation)?;
        }
        (self.setup.prepare)(channel.clone()).await?;
        let max_size = Arc::clone(&self.setup.max_size);
        Ok(Lane::new(channel, max_size, Arc::clone(&self.refusals)))
    }

    /// Whether the exchange is there. The broker closes the channel on a message to one that is not.
    async fn has_exchange(&self, lane: &Lane) -> Result<bool, Sent> {
        if lane.has_exchange() {
            return Ok(true);
        }
        let looking = self.link.while_live(self.find_exchange());
        let found = looking.await.map_err(Sent::Refused)?;
        if found {
            lane.note_exchange();
        }
        Ok(found)
    }

    async fn find_exchange(&self) -> Result<bool, Error> {
        let channel = self.link.channel().await?;
        let name = self.setup.exchange.as_str().into();
        let options = ExchangeDeclareOptions {
            passive: true,
            ..ExchangeDeclareOptions::default()
        };
        let found = channel
            .exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default())
            .await;
        match found {
            Ok(()) => {
                let _ = channel.close(200, "OK".into()).now_or_never();
                Ok(true)
            }
            Err(error) if errors::is_soft(&error, &AMQPSoftError::NOTFOUND) => Ok(false),
            Err(error) => Err(errors::operation(error)),
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}
