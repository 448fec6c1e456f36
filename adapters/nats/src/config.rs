//! The `[transports.NAME.nats]` section, and what it and the URL make of a connection.

use std::path::PathBuf;
use std::time::Duration;

use anywire::config::{Tls, TransportConfig};
use anywire::{Error, ErrorKind};
use async_nats::{ConnectOptions, ServerAddr};
use serde::Deserialize;

/// The port of a URL that names none.
const DEFAULT_PORT: u16 = 4222;
/// How long one attempt to connect may take: a server that does not speak as it should is told within five seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// A silent connection is given up when a third ping finds two unanswered, so within 24 seconds.
const PING_INTERVAL: Duration = Duration::from_secs(8);

/// The most messages that the client library holds for a subscription. They are taken out at once; where they are not,
/// it reports each that it drops.
const LIBRARY_BUFFER: usize = 65_536;

/// What only NATS has.
///
/// ```
/// use std::time::Duration;
/// use anywire_nats::NatsConfig;
///
/// let config = NatsConfig::default();
/// assert!(config.jetstream);
/// assert_eq!(config.ack_wait, Duration::from_secs(10));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct NatsConfig {
    /// Whether JetStream is used. Without it nothing is stored and everything is at most once. Default: yes.
    pub jetstream: bool,
    /// The JetStream domain, where the server is a leaf node of another.
    pub domain: Option<String>,
    /// An NKey seed, as a file.
    pub nkey_file: Option<PathBuf>,
    /// A `.creds` file: a JWT with its NKey seed.
    pub credentials_file: Option<PathBuf>,
    /// What the inboxes of this client begin with. Default: `_INBOX`.
    pub inbox_prefix: String,
    /// How many copies a cluster keeps of the streams that we create. Default: three, or as many as there are servers.
    pub replicas: Option<usize>,
    /// Where the streams that we create keep their messages. Default: `file`.
    pub storage: Storage,
    /// The most bytes of a stream that we create; a full one refuses new messages. Default: as many as there is room for.
    pub max_bytes: Option<u64>,
    /// The tags of the servers that hold the streams that we create.
    pub placement_tags: Vec<String>,
    /// How long a stream that we create remembers the ids of messages, to drop repeats. Default: 2 minutes.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub dedup_window: Duration,
    /// How long a delivery stays ours without a sign of life; running handlers give one. Default: 10 s.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub ack_wait: Duration,
    /// Whether each acknowledgement is confirmed by the consumer itself. Default: no; that the server has it is confirmed
    /// either way.
    pub confirm_acks: bool,
    /// The most publishes that wait for their confirmation at once. Default: 4096.
    pub max_in_flight: usize,
    /// The most messages of a subscription without a store that wait to be pulled; more are dropped and counted. Default:
    /// 65,536.
    pub buffer: usize,
    /// The largest payload, in bytes. The server's own limit counts headers, too, and must leave them room. Default:
    /// 1 MiB less 64 KiB.
    pub max_payload: usize,
}

/// Where a stream keeps its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Storage {
    /// On disk.
    #[default]
    File,
    /// In the server's memory.
    Memory,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            jetstream: true,
            domain: None,
            nkey_file: None,
            credentials_file: None,
            inbox_prefix: "_INBOX".to_owned(),
            replicas: None,
            storage: Storage::File,
            max_bytes: None,
            placement_tags: Vec::new(),
            dedup_window: Duration::from_secs(2 * 60),
            ack_wait: Duration::from_secs(10),
            confirm_acks: false,
            max_in_flight: 4096,
            buffer: 65_536,
            max_payload: 1024 * 1024 - HEADER_ROOM,
        }
    }
}

/// What is left for headers below the server's limit: 16 KiB, three times that where every byte is escaped.
pub(crate) const HEADER_ROOM: usize = 64 * 1024;

impl NatsConfig {
    /// Reads a transport's configuration and checks what can be checked without a connection.
    pub(crate) fn from_transport(config: &TransportConfig) -> Result<Self, Error> {
        config.require_encryption(is_encrypted(config))?;
        let section: Self = config.section()?;
        let at = |key: &str, why: &str| {
            let name = &config.name;
            Err(Error::config(format!(
                "[transports.{name}.nats]: `{key}` {why}"
            )))
        };
        if section.ack_wait < Duration::from_secs(1) {
            return at("ack_wait", "must be at least 1s");
        }
        if section.replicas == Some(0) {
            return at("replicas", "must be at least 1");
        }
        let bounds = [
            ("max_in_flight", section.max_in_flight),
            ("buffer", section.buffer),
            ("max_payload", section.max_payload),
        ];
        if let Some((key, _)) = bounds.iter().find(|(_, bound)| *bound == 0) {
            return at(key, "must be at least 1");
        }
        let prefix = &section.inbox_prefix;
        if anywire::Subject::parse_any(prefix).is_err() {
            return at("inbox_prefix", "must be a subject without wildcards");
        }
        if config.tls.server_name.is_some() {
            return Err(Error::config(format!(
                "transport \"{}\": the certificate's name is checked against the host of the URL; put the name there instead of tls.server_name",
                config.name
            )));
        }
        if !config.path.is_empty() || !config.parameters.is_empty() {
            return Err(Error::config(format!(
                "transport \"{}\": a NATS URL has neither path nor parameters; use [transports.{}.nats]",
                config.name, config.name
            )));
        }
        servers(config)?;
        Ok(section)
    }

    /// The options of one connection; `role` tells the connections of a client apart in the server's lists.
    ///
    /// # Errors
    /// `Config` where a file cannot be read, which is named; its content is not.
    pub(crate) async fn options(
        &self,
        config: &TransportConfig,
        role: &str,
    ) -> Result<ConnectOptions, Error> {
        let mut options = ConnectOptions::new()
            .name(format!("{}/{role}", config.app))
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(LIBRARY_BUFFER)
            .custom_inbox_prefix(&self.inbox_prefix)
            .require_tls(is_encrypted(config));
        let Tls {
            ca,
            cert,
            key,
            server_name: _,
        } = &config.tls;
        if let Some(ca) = ca {
            options = options.add_root_certificates(ca.clone());
        }
        match (cert, key) {
            (Some(cert), Some(key)) => {
                options = options.add_client_certificate(cert.clone(), key.clone());
            }
            (None, None) => {}
            _ => {
                return Err(Error::config(
                    "tls.cert and tls.key belong together; set both or none",
                ));
            }
        }
        if let Some(path) = &self.credentials_file {
            let read = options.credentials_file(path).await;
            options = read.map_err(|error| unreadable(path, &error))?;
        }
        if let Some(path) = &self.nkey_file {
            let seed = tokio::fs::read_to_string(path).await;
            let seed = seed.map_err(|error| unreadable(path, &error))?;
            options = options.nkey(seed.trim().to_owned());
        }
        if let Some(token) = &config.token {
            options = options.token(token.expose().to_owned());
        }
        if let Some(user) = &config.user {
            let password = config
                .password
                .as_ref()
                .map_or("", |secret| secret.expose());
            options = options.user_and_password(user.clone(), password.to_owned());
        }
        Ok(options)
    }
}

/// The addresses of the servers, without credentials: those are options.
pub(crate) fn servers(config: &TransportConfig) -> Result<Vec<ServerAddr>, Error> {
    let scheme = if config.scheme == super::TLS_SCHEME {
        super::TLS_SCHEME
    } else {
        super::SCHEME
    };
    let address = |endpoint: &anywire::config::Endpoint| {
        let mut endpoint = endpoint.clone();
        endpoint.port.get_or_insert(DEFAULT_PORT);
        let address = format!("{scheme}://{endpoint}").parse::<ServerAddr>();
        address.map_err(|_| {
            Error::config(format!(
                "transport \"{}\": {endpoint} is not the address of a server",
                config.name
            ))
        })
    };
    let servers: Result<Vec<_>, _> = config.endpoints.iter().map(address).collect();
    match servers {
        Ok(servers) if servers.is_empty() => Err(Error::config(format!(
            "transport \"{}\" names no server; write its URL as nats://host:port",
            config.name
        ))),
        servers => servers,
    }
}

fn is_encrypted(config: &TransportConfig) -> bool {
    config.scheme == super::TLS_SCHEME || config.tls != Tls::default()
}

fn unreadable(path: &std::path::Path, error: &std::io::Error) -> Error {
    // The text of the error may quote the file, which holds a secret.
    let kind = error.kind();
    let path = path.display();
    Error::new(ErrorKind::Config, format!("cannot read {path}: {kind}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::Config;

    fn transport(text: &str) -> TransportConfig {
        let config = Config::from_toml(text).unwrap();
        config.resolve("main", "shop", &[&["nats", "tls"]]).unwrap()
    }

    fn read(text: &str) -> Result<NatsConfig, Error> {
        NatsConfig::from_transport(&transport(text))
    }

    #[test]
    fn a_bare_url_gives_the_defaults_and_a_section_changes_them() {
        assert_eq!(
            read("url = 'nats://localhost'").unwrap(),
            NatsConfig::default()
        );
        let config = read(
            "url = 'nats://localhost'\n[transports.main.nats]\nack_wait = '2s'\nstorage = 'memory'",
        );
        let config = config.unwrap();
        assert_eq!(config.ack_wait, Duration::from_secs(2));
        assert_eq!(config.storage, Storage::Memory);
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (line, name) in [
            ("ack_wat = '2s'", "ack_wait"),
            ("ack_wait = '2'", "ack_wait"),
            ("ack_wait = '10ms'", "ack_wait"),
            ("replicas = 0", "replicas"),
            ("max_in_flight = 0", "max_in_flight"),
            ("inbox_prefix = 'a.>'", "inbox_prefix"),
        ] {
            let text = format!("url = 'nats://localhost'\n[transports.main.nats]\n{line}");
            let error = read(&text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{line}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn several_servers_get_their_ports() {
        let servers = servers(&transport("url = 'nats://u:p@127.0.0.1,[::1]:5000'")).unwrap();
        let ports: Vec<_> = servers.iter().map(|server| server.port()).collect();
        assert_eq!(ports, [4222, 5000]);
        assert!(!format!("{servers:?}").contains("p@"));
    }

    #[test]
    fn another_machine_is_reached_with_tls_alone() {
        let error = read("url = 'nats://10.0.0.1'").unwrap_err().to_string();
        assert!(error.contains("without encryption"), "{error}");
        read("url = 'tls://10.0.0.1'").unwrap();
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_named_and_not_quoted() {
        let text = "url = 'nats://localhost'\n[transports.main.nats]\nnkey_file = '/no/such/seed'";
        let config = transport(text);
        let section = NatsConfig::from_transport(&config).unwrap();
        let error = section.options(&config, "main").await.unwrap_err();
        assert!(error.to_string().contains("/no/such/seed"), "{error}");
    }
}
