//! The `[transports.NAME.memory]` section.

use serde::Deserialize;

use crate::Error;
use crate::config::{Tls, TransportConfig};

/// How much a [`MemoryBroker`](super::MemoryBroker) holds. The first transport that connects to a broker decides, or
/// [`MemoryBroker::with_config`](super::MemoryBroker::with_config).
///
/// ```
/// use anywire::memory::MemoryConfig;
///
/// let config = MemoryConfig::default().with_queue(16);
/// assert_eq!(config.queue, 16);
/// assert_eq!(config.max_payload, 1024 * 1024);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// The most messages that wait in the queue of one subscription. Default: 4096.
    pub queue: usize,
    /// The most bytes of payloads and headers that wait in the queue of one subscription. Default: 64 MiB.
    pub queue_bytes: usize,
    /// The most dead letters that are kept for one group. Default: 10,000.
    pub dead_letters: usize,
    /// The largest payload, in bytes. Default: 1 MiB.
    pub max_payload: usize,
    /// How many of the last events are kept for replay, whether they were handled or not, and in no more bytes than
    /// `queue_bytes`. Default: 0, none.
    pub history: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            queue: 4096,
            queue_bytes: 64 * 1024 * 1024,
            dead_letters: 10_000,
            max_payload: 1024 * 1024,
            history: 0,
        }
    }
}

impl MemoryConfig {
    /// Sets the most messages that wait in one queue; at least 1.
    #[must_use]
    pub fn with_queue(mut self, messages: usize) -> Self {
        self.queue = messages.max(1);
        self
    }

    /// Sets the most bytes that wait in one queue; at least 1. A larger message is taken by an empty queue.
    #[must_use]
    pub fn with_queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = bytes.max(1);
        self
    }

    /// Sets the most dead letters that are kept for one group; at least 1.
    #[must_use]
    pub fn with_dead_letters(mut self, letters: usize) -> Self {
        self.dead_letters = letters.max(1);
        self
    }

    /// Sets the largest payload, in bytes; at least 1.
    #[must_use]
    pub fn with_max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes.max(1);
        self
    }

    /// Sets how many of the last events are kept for replay; 0 for none.
    #[must_use]
    pub fn with_history(mut self, events: usize) -> Self {
        self.history = events;
        self
    }

    /// Reads a transport's configuration: a bare `memory://`, and the section.
    pub(super) fn from_transport(config: &TransportConfig) -> Result<Self, Error> {
        refuse_what_only_a_server_has(config)?;
        let section: Self = config.section()?;
        let Self {
            queue,
            queue_bytes,
            dead_letters,
            max_payload,
            history: _,
        } = section;
        let bounds = [
            ("queue", queue),
            ("queue_bytes", queue_bytes),
            ("dead_letters", dead_letters),
            ("max_payload", max_payload),
        ];
        match bounds.iter().find(|(_, bound)| *bound == 0) {
            Some((key, _)) => Err(Error::config(format!(
                "[transports.{}.memory]: `{key}` must be at least 1",
                config.name
            ))),
            None => Ok(section),
        }
    }
}

fn refuse_what_only_a_server_has(config: &TransportConfig) -> Result<(), Error> {
    let has_host = |endpoint: &crate::config::Endpoint| !endpoint.host.is_empty();
    let parts = [
        ("a host", config.endpoints.iter().any(has_host)),
        ("a path", !config.path.is_empty()),
        ("parameters", !config.parameters.is_empty()),
        (
            "credentials",
            config.user.is_some() || config.password.is_some() || config.token.is_some(),
        ),
        ("TLS settings", config.tls != Tls::default()),
    ];
    match parts.iter().find(|(_, present)| *present) {
        Some((part, _)) => Err(Error::config(format!(
            "transport `{}`: memory takes no {}; write the URL as `memory://`",
            config.name,
            part.trim_start_matches("a ")
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::Endpoint;
    use crate::{ErrorKind, Secret};

    fn bare() -> TransportConfig {
        TransportConfig::bare("main", "shop", "memory")
    }

    fn section(text: &str) -> Result<MemoryConfig, Error> {
        let mut config = bare();
        config.section = toml::from_str(text).unwrap();
        MemoryConfig::from_transport(&config)
    }

    #[test]
    fn a_bare_url_gives_the_defaults_and_a_section_changes_them() {
        assert_eq!(section("").unwrap(), MemoryConfig::default());
        assert_eq!(section("queue = 3").unwrap().queue, 3);
    }

    #[test]
    fn an_unknown_key_and_a_zero_are_refused_by_name() {
        for (text, name) in [("queu = 3", "queu"), ("queue_bytes = 0", "queue_bytes")] {
            let error = section(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(name), "{error}");
            assert!(error.to_string().contains("transports.main.memory"));
        }
    }

    #[test]
    fn what_only_a_server_has_is_refused() {
        let mut host = bare();
        host.endpoints.push(Endpoint {
            host: "somewhere".into(),
            port: None,
        });
        let mut secret = bare();
        secret.password = Some(Secret::new("canary"));
        for config in [host, secret] {
            let error = MemoryConfig::from_transport(&config).unwrap_err();
            assert!(error.to_string().contains("memory://"), "{error}");
            assert!(!format!("{error:?}").contains("canary"));
        }
    }

    #[test]
    fn an_empty_host_is_a_bare_url() {
        let mut config = bare();
        config.endpoints.push(Endpoint {
            host: String::new(),
            port: None,
        });
        assert!(MemoryConfig::from_transport(&config).is_ok());
    }
}
