//! A connection that is made again whenever it is lost.
//!
//! The library could recover by itself; it would replay what it remembers instead of what is wanted, stop after some attempts
//! and keep quiet about it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anywire::Error;
use anywire::config::TransportConfig;
use anywire::transport::Seldom;
use backon::{BackoffBuilder, ExponentialBuilder};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use lapin::{Channel, Event};
use tokio::sync::watch;

use crate::config::RabbitmqConfig;
use crate::dial::{self, Plug};
use crate::errors;

/// The first pause between two attempts, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How long the broker may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a link tells about itself.
pub(crate) type Changed = Box<dyn Fn(&News) + Send + Sync>;

/// What happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It is there, and not blocked.
    Up,
    /// The broker takes no publishes from it, for this reason.
    Blocked(String),
    /// It was lost.
    Down,
}

/// A connection that is made again whenever it is lost.
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    config: RabbitmqConfig,
    transport: Arc<TransportConfig>,
    role: &'static str,
    changed: Changed,
    state: watch::Sender<State>,
}

/// What a link is now.
#[derive(Clone, Default)]
pub(crate) struct State {
    /// The connection, while there is one.
    live: Option<Live>,
    /// How many there were.
    epoch: u64,
    blocked: bool,
    closed: bool,
}

#[derive(Clone)]
struct Live {
    connection: Arc<lapin::Connection>,
    plug: Plug,
}

impl Link {
    /// Connects, once; from then on the link looks after itself.
    ///
    /// # Errors
    /// Why none of the servers could be reached.
    pub(crate) async fn connect(
        config: &RabbitmqConfig,
        transport: &Arc<TransportConfig>,
        role: &'static str,
        changed: Changed,
    ) -> Result<Self, Error> {
        let inner = Arc::new(Inner {
            config: config.clone(),
            transport: Arc::clone(transport),
            role,
            changed,
            state: watch::Sender::default(),
        });
        let first = inner.dial().await?;
        let events = inner.take(&first);
        tokio::spawn(Arc::clone(&inner).keep(events));
        Ok(Self(inner))
    }

    /// The connection, and which one it is; waits while there is none.
    ///
    /// # Errors
    /// `Closed`.
    pub(crate) async fn live(&self) -> Result<(Arc<lapin::Connection>, u64), Error> {
        let mut state = self.0.state.subscribe();
        let state = state
            .wait_for(|state| state.closed || state.is_live())
            .await
            .map_err(|_| errors::closed())?;
        match &state.live {
            Some(live) if !state.closed => Ok((Arc::clone(&live.connection), state.epoch)),
            _ => Err(errors::closed()),
        }
    }

    /// A new channel on the connection; waits while there is none.
    ///
    /// # Errors
    /// `Closed`; `Disconnected` where the connection is lost meanwhile.
    pub(crate) async fn channel(&self) -> Result<Channel, Error> {
        let (connection, _) = self.live().await?;
        connection.create_channel().await.map_err(errors::operation)
    }

    /// Does something with the connection that is there, for as long as it is: the library leaves who asks in the moment of its end
    /// without an answer.
    ///
    /// # Errors
    /// `Closed`; `Disconnected` where the connection is lost meanwhile.
    pub(crate) async fn while_live<T>(
        &self,
        doing: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let (_, epoch) = self.live().await?;
        tokio::select! {
            biased;
            done = doing => done,
            () = self.end_of(epoch) => Err(errors::disconnected()),
        }
    }

    /// Which connection it is now.
    pub(crate) fn epoch(&self) -> u64 {
        self.0.state.borrow().epoch
    }

    /// Waits until this connection is no more.
    pub(crate) fn end_of(&self, epoch: u64) -> impl Future<Output = ()> + Send + 'static {
        let mut state = self.0.state.subscribe();
        async move {
            let is_over =
                |state: &State| state.closed || state.epoch != epoch || state.live.is_none();
            drop(state.wait_for(is_over).await);
        }
    }

    /// The connection now, if there is one.
    pub(crate) fn now(&self) -> Option<Arc<lapin::Connection>> {
        let state = self.0.state.borrow();
        let live = state.live.as_ref().filter(|_| state.is_live());
        live.map(|live| Arc::clone(&live.connection))
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.0.state.borrow().is_live()
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.0.state.borrow().blocked
    }

    /// Waits until the broker takes publishes.
    pub(crate) async fn unblocked(&self) {
        let mut state = self.0.state.subscribe();
        // The sender lives as long as we do.
        let _ = state.wait_for(|state| state.closed || !state.blocked).await;
    }

    /// Closes the connection for good. Who does not say goodbye within `patience` is left without.
    pub(crate) async fn close(&self, patience: Duration) {
        let Some(live) = self.0.shut() else {
            return;
        };
        let goodbye = live.connection.close(200, "OK".into());
        let _ = tokio::time::timeout(patience.min(GOODBYE), goodbye).await;
        live.plug.pull();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The last handle to the connection says goodbye, and the broker's answer ends it.
        drop(self.0.shut());
    }
}

impl State {
    fn is_live(&self) -> bool {
        self.live
            .as_ref()
            .is_some_and(|live| live.connection.status().connected())
    }
}

impl Inner {
    /// Tries the servers in turn.
    async fn dial(&self) -> Result<Live, Error> {
        let mut last = None;
        for endpoint in &self.transport.endpoints {
            match dial::dial(&self.config, &self.transport, endpoint, self.role).await {
                Ok((connection, plug)) => {
                    let connection = Arc::new(connection);
                    return Ok(Live { connection, plug });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(errors::unreachable))
    }

    /// Takes a new connection; gives what it will tell.
    fn take(&self, live: &Live) -> BoxStream<'static, Event> {
        let events = live.connection.events_listener().boxed();
        self.state.send_if_modified(|state| {
            if state.closed {
                return false;
            }
            state.epoch += 1;
            state.blocked = live.connection.status().blocked();
            state.live = Some(live.clone());
            true
        });
        events
    }

    /// Looks after the connection until the link is closed.
    async fn keep(self: Arc<Self>, mut events: BoxStream<'static, Event>) {
        loop {
            self.watch(&mut events).await;
            if self.state.borrow().closed {
                return;
            }
            let lost = self.lose();
            (self.changed)(&News::Down);
            drop(lost);
            let Some(live) = self.dial_again().await else {
                return;
            };
            events = self.take(&live);
            (self.changed)(&News::Up);
        }
    }

    /// Ends when the connection does, or the link.
    async fn watch(&self, events: &mut BoxStream<'static, Event>) {
        let mut state = self.state.subscribe();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = state.wait_for(|state| state.closed) => return,
            };
            match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    self.state.send_modify(|state| state.blocked = true);
                    (self.changed)(&News::Blocked(reason));
                }
                Some(Event::ConnectionUnblocked) => {
                    self.state.send_modify(|state| state.blocked = false);
                    (self.changed)(&News::Up);
                }
                // The end of a channel is told like that, too.
                Some(_) if self.state.borrow().is_live() => {}
                Some(_) | None => return,
            }
        }
    }

    fn lose(&self) -> Option<Live> {
        let mut lost = None;
        self.state.send_modify(|state| {
            lost = state.live.take();
            state.blocked = false;
        });
        if let Some(live) = &lost {
            live.plug.pull();
        }
        lost
    }

    /// Tries for as long as it takes; `None` when the link is closed.
    async fn dial_again(&self) -> Option<Live> {
        let mut state = self.state.subscribe();
        let closed = async { drop(state.wait_for(|state| state.closed).await) };
        let mut closed = std::pin::pin!(closed.fuse());
        let seldom = Seldom::default();
        let pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_jitter()
            .without_max_times();
        for pause in pauses.build() {
            // Jitter comes on top.
            let pause = pause.min(LONGEST_PAUSE);
            let attempt = async {
                tokio::time::sleep(pause).await;
                self.dial().await
            };
            let dialled = tokio::select! {
                dialled = attempt => dialled,
                () = &mut closed => return None,
            };
            match dialled {
                Ok(live) => return Some(live),
                Err(error) if seldom.is_due() => {
                    tracing::warn!(transport = %self.transport.name, role = self.role, %error, "RabbitMQ cannot be reached again yet");
                }
                Err(_) => {}
            }
        }
        None
    }

    fn shut(&self) -> Option<Live> {
        let mut live = None;
        self.state.send_modify(|state| {
            state.closed = true;
            live = state.live.take();
        });
        live
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("role", &self.0.role)
            .finish_non_exhaustive()
    }
}
