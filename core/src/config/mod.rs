//! Configuration: what carries the messages, and everything operations may change without a build.

mod settings;
mod transport;

pub use settings::{AfterFailure, HandlerSettings, SubjectRule, Unrouted};
pub use transport::{Endpoint, Tls, TransportConfig};
