//! The health of a running app.

use crate::transport::Status;

/// Whether an app does its work, and where it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The state of each transport.
    pub transports: Vec<TransportHealth>,
    /// The state of each handler.
    pub handlers: Vec<HandlerHealth>,
}

/// The state of a transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportHealth {
    /// Its name in the configuration.
    pub name: String,
    /// The state of its connection.
    pub status: Status,
}

/// The state of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerHealth {
    /// Its name.
    pub name: String,
    /// Whether deliveries can reach it.
    pub consuming: bool,
    /// Deliveries that it holds because neither a retry copy nor a dead letter can be stored.
    pub stuck: usize,
}

impl Health {
    /// Whether everything is well.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        let transports = self
            .transports
            .iter()
            .all(|transport| transport.status.is_connected());
        transports && self.handlers.iter().all(HandlerHealth::is_ok)
    }
}

impl HandlerHealth {
    /// Whether the handler does its work.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.consuming && self.stuck == 0
    }
}
