//! The memory transport: messages inside one process, with everything a broker would do for them.
//!
//! It carries an app's messages where there is no broker, in tests, and between the parts of one program. It keeps
//! nothing when the process ends. It is also the executable specification of the driver traits: the adapters of the
//! brokers have the same files and behave the same way.
//!
//! | | on memory |
//! |---|---|
//! | an event | a bounded queue per subscription; an emit waits for room in all of them, then is in all of them |
//! | a subscription of a group | its queue stays when its consumers leave, until the broker is dropped |
//! | a broadcast subscription | its queue ends with its consumer |
//! | retry later | the queue holds the copy until it is due |
//! | a dead letter | a bounded store per group, declared before anything is delivered |
//! | replay | the last events, as many as `history` says; none by default |
//! | a call | straight to whoever serves the pattern; fails at once where nobody does |
//!
//! The URL is `memory://`. The `[transports.NAME.memory]` section is a [`MemoryConfig`]. As there is nobody else who
//! could create a queue, `provision = "none"` is the same as `"create"`; `"verify"` fails for a group's subscription
//! that nobody created before. Retention does not apply: what waits, and what is kept for replay, is bounded by number and size.
//! An event that no subscription and no store takes is not kept for replay either.

mod backlog;
mod broker;
mod calls;
mod config;
mod history;
mod publisher;
mod queue;
mod room;
mod service;
mod store;
mod streams;
mod subscriber;
mod switchboard;
#[cfg(test)]
mod tests;
mod transport;

pub use broker::MemoryBroker;
pub use config::MemoryConfig;
pub use transport::MemoryAdapter;

/// The scheme of the URL, and the name of the configuration section.
pub const SCHEME: &str = "memory";

/// The adapter for `memory://`, with a broker of its own.
///
/// ```
/// use std::sync::Arc;
/// use anywire::clock::TokioClock;
/// use anywire::config::TransportConfig;
/// use anywire::transport::{Adapter, Status};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), anywire::Error> {
/// let config = TransportConfig::bare("main", "shop", "memory");
/// let transport = anywire::memory::adapter().connect(config, Arc::new(TokioClock)).await?;
/// assert_eq!(*transport.status().borrow(), Status::Connected);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn adapter() -> MemoryAdapter {
    MemoryAdapter::new(MemoryBroker::new())
}

/// The adapter for `memory://` on a broker that others are on too: two apps in one process, or an app and its test.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anywire::Result<()> {
/// use anywire::App;
/// use anywire::memory::{MemoryBroker, adapter_on};
///
/// let broker = MemoryBroker::new();
/// let shop = App::new("shop").adapter(adapter_on(&broker)).start().await?;
/// let till = App::new("till").adapter(adapter_on(&broker)).start().await?;
/// let mut placed = till.client().subscribe::<u32>("shop.placed").await?;
/// shop.client().emit("shop.placed", &7).await?;
/// assert_eq!(placed.next().await.unwrap()?.take().await?, 7);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn adapter_on(broker: &MemoryBroker) -> MemoryAdapter {
    MemoryAdapter::new(broker.clone())
}
