//! The `[transports.NAME.rabbitmq]` section, and what it and the URL make of a connection.

use std::time::Duration;

use anywire::config::{Endpoint, Tls, TransportConfig};
use anywire::{Error, ErrorKind};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::{
    AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism,
};
use serde::Deserialize;

/// The most bytes of a payload that a broker takes by default: 16 MiB since 4.0.
const DEFAULT_MAX_MESSAGE_SIZE: usize = 16 * 1024 * 1024;

/// What only RabbitMQ has.
///
/// ```
/// use std::time::Duration;
/// use anywire_rabbitmq::RabbitmqConfig;
///
/// let config = RabbitmqConfig::default();
/// assert_eq!(config.exchange, "anywire");
/// assert_eq!(config.heartbeat, Duration::from_secs(10));
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RabbitmqConfig {
    /// The virtual host. Default: that of the URL, else `/`.
    pub vhost: Option<String>,
    /// The topic exchange of all events; the names of our queues begin with it. Default: `anywire`.
    pub exchange: String,
    /// The type of the queues whose messages must not be lost. Default: `quorum`.
    pub queue_type: QueueType,
    /// More arguments of these queues, such as `x-max-length`.
    pub arguments: toml::Table,
    /// The most deliveries of a subscription that may be unsettled. Default: what its handler asks for.
    pub prefetch: Option<u16>,
    /// The priority of what is published, from 0 to 9.
    pub priority: Option<u8>,
    /// The priority of our consumers: a queue serves those with a higher one first.
    pub consumer_priority: Option<i32>,
    /// How long a queue that may lose messages is kept while nobody consumes from it. Default: 5 minutes.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub expiry: Duration,
    /// The most messages that such a queue holds; the oldest are dropped. Default: 65,536.
    pub max_length: u32,
    /// How often both ends give a sign of life. Default: 10 s.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub heartbeat: Duration,
    /// The most publishes that wait for their confirmation at once. Default: 4096.
    pub publish_window: usize,
    /// The most bytes of them. Default: 64 MiB.
    pub publish_window_bytes: usize,
    /// The largest payload, in bytes; the broker's `max_message_size`. Default: 16 MiB.
    pub max_message_size: usize,
    /// How we tell who we are. Default: `plain`.
    pub auth: Auth,
}

/// What a queue whose messages must not be lost is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum QueueType {
    /// Replicated, by consensus.
    #[default]
    Quorum,
    /// On one node.
    Classic,
}

impl QueueType {
    /// The value of `x-queue-type`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// The SASL mechanism.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Auth {
    /// User name and password.
    #[default]
    Plain,
    /// The client's certificate.
    External,
}

impl Default for RabbitmqConfig {
    fn default() -> Self {
        Self {
            vhost: None,
            exchange: "anywire".to_owned(),
            queue_type: QueueType::Quorum,
            arguments: toml::Table::new(),
            prefetch: None,
            priority: None,
            consumer_priority: None,
            expiry: Duration::from_secs(5 * 60),
            max_length: 65_536,
            heartbeat: Duration::from_secs(10),
            publish_window: 4096,
            publish_window_bytes: 64 * 1024 * 1024,
            max_message_size: DEFAULT_MAX_MESSAGE_SIZE,
            auth: Auth::Plain,
        }
    }
}

impl RabbitmqConfig {
    /// Reads a transport's configuration and checks what can be checked without a connection.
    pub(crate) fn from_transport(config: &TransportConfig) -> Result<Self, Error> {
        config.require_encryption(is_encrypted(config))?;
        let mut section: Self = config.section()?;
        section.check(&config.name)?;
        if let Some((name, _)) = config.parameters.first() {
            return Err(Error::config(format!(
                "transport \"{}\": a RabbitMQ URL has no parameters, and this one has \"{name}\"; use [transports.{}.rabbitmq]",
                config.name, config.name
            )));
        }
        if config.token.is_some() {
            return Err(Error::config(format!(
                "transport \"{}\": RabbitMQ takes a token as the password",
                config.name
            )));
        }
        if !config.path.is_empty() {
            if section.vhost.is_some() {
                return Err(Error::config(format!(
                    "transport \"{}\": the URL and [transports.{}.rabbitmq] both name a vhost; name it once",
                    config.name, config.name
                )));
            }
            section.vhost = Some(config.path.clone());
        }
        if config.endpoints.is_empty() {
            return Err(Error::config(format!(
                "transport \"{}\" names no server; write its URL as amqp://host:port",
                config.name
            )));
        }
        let Tls {
            ca: _,
            cert,
            key,
            server_name: _,
        } = &config.tls;
        if cert.is_some() != key.is_some() {
            return Err(Error::config(
                "tls.cert and tls.key belong together; set both or none",
            ));
        }
        if section.auth == Auth::External && cert.is_none() {
            return Err(Error::config(
                "auth = \"external\" needs the client's certificate: set tls.cert and tls.key",
            ));
        }
        Ok(section)
    }

    fn check(&self, transport: &str) -> Result<(), Error> {
        let at = |key: &str, why: &str| {
            Err(Error::config(format!(
                "[transports.{transport}.rabbitmq]: `{key}` {why}"
            )))
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if self.exchange.is_empty()
            || self.exchange.len() > 64
            || !self.exchange.bytes().all(plain)
            || self.exchange.starts_with("amq.")
        {
            return at(
                "exchange",
                "must have 1 to 64 letters, digits or `_.-`, and not begin with `amq.`",
            );
        }
        if self.heartbeat < Duration::from_secs(1) || self.heartbeat > Duration::from_secs(3600) {
            return at("heartbeat", "must be between 1s and 1h");
        }
        if self.expiry < Duration::from_secs(1) || self.expiry > MAX_TIMER {
            return at("expiry", "must be between 1s and 49 days");
        }
        if self.priority.is_some_and(|priority| priority > 9) {
            return at("priority", "must be between 0 and 9");
        }
        if self.vhost.as_ref().is_some_and(|vhost| vhost.len() > 255) {
            return at("vhost", "must have at most 255 bytes");
        }
        let bounds = [
            ("prefetch", self.prefetch.map_or(1, usize::from)),
            ("max_length", self.max_length as usize),
            ("publish_window", self.publish_window),
            ("publish_window_bytes", self.publish_window_bytes),
            ("max_message_size", self.max_message_size),
        ];
        if let Some((key, _)) = bounds.iter().find(|(_, bound)| *bound == 0) {
            return at(key, "must be at least 1");
        }
        if self.publish_window > MOST || self.publish_window_bytes > MOST {
            return at(
                "publish_window",
                "and `publish_window_bytes` must be below 2^29",
            );
        }
        for (name, value) in &self.arguments {
            if name.is_empty() || name.len() > 128 {
                return at("arguments", "must have names of 1 to 128 bytes");
            }
            if argument(value).is_none() {
                return at(
                    "arguments",
                    "must be texts, whole numbers, or true and false",
                );
            }
        }
        Ok(())
    }

    /// The arguments that the configuration adds to a queue whose messages must not be lost.
    pub(crate) fn add_arguments(&self, table: &mut FieldTable) {
        for (name, value) in &self.arguments {
            if let (Ok(name), Some(value)) = (ShortString::try_new(name.as_str()), argument(value))
            {
                table.insert(name, value);
            }
        }
    }

    /// How a server is addressed. The value holds the password: it is never printed.
    pub(crate) fn uri(&self, config: &TransportConfig, endpoint: &Endpoint) -> AMQPUri {
        let scheme = match is_encrypted(config) {
            true => AMQPScheme::AMQPS,
            false => AMQPScheme::AMQP,
        };
        let port = endpoint.port.unwrap_or_else(|| scheme.default_port());
        let default = AMQPUserInfo::default();
        let password = config.password.as_ref().map(|secret| secret.expose());
        AMQPUri {
            scheme,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: config.user.clone().unwrap_or(default.username),
                    password: password.map_or(default.password, str::to_owned),
                },
                host: endpoint.host.clone(),
                port,
            },
            vhost: self.vhost.clone().unwrap_or_else(|| "/".to_owned()),
            query: AMQPQueryString {
                heartbeat: u16::try_from(self.heartbeat.as_secs()).ok(),
                auth_mechanism: Some(match self.auth {
                    Auth::Plain => SASLMechanism::Plain,
                    Auth::External => SASLMechanism::External,
                }),
                ..AMQPQueryString::default()
            },
        }
    }
}

/// The longest time that the broker takes for a TTL or an expiry.
pub(crate) const MAX_TIMER: Duration = Duration::from_millis(u32::MAX as u64);
/// The most that a window counts.
const MOST: usize = 1 << 29;

/// Whether the connection will be encrypted.
pub(crate) fn is_encrypted(config: &TransportConfig) -> bool {
    config.scheme == super::TLS_SCHEME || config.tls != Tls::default()
}

/// Reads the files that the TLS settings name.
///
/// # Errors
/// `Config` where a file cannot be read, which is named; its content is not.
pub(crate) async fn tls(tls: &Tls) -> Result<OwnedTLSConfig, Error> {
    let Tls {
        ca,
        cert,
        key,
        server_name: _,
    } = tls;
    let mut config = OwnedTLSConfig::default();
    if let Some(path) = ca {
        let read = tokio::fs::read_to_string(path).await;
        config.cert_chain = Some(read.map_err(|error| unreadable(path, &error))?);
    }
    if let (Some(cert), Some(key)) = (cert, key) {
        let pem = tokio::fs::read(cert).await;
        let key_pem = tokio::fs::read(key).await;
        config.identity = Some(OwnedIdentity::PKCS8 {
            pem: pem.map_err(|error| unreadable(cert, &error))?,
            key: key_pem.map_err(|error| unreadable(key, &error))?,
        });
    }
    Ok(config)
}

fn unreadable(path: &std::path::Path, error: &std::io::Error) -> Error {
    // The text of the error may quote the file, which may hold a secret.
    let kind = error.kind();
    let path = path.display();
    Error::new(ErrorKind::Config, format!("cannot read {path}: {kind}"))
}

fn argument(value: &toml::Value) -> Option<AMQPValue> {
    match value {
        toml::Value::String(text) => Some(AMQPValue::LongString(text.as_str().into())),
        toml::Value::Integer(number) => Some(AMQPValue::LongLongInt(*number)),
        toml::Value::Boolean(bool) => Some(AMQPValue::Boolean(*bool)),
        toml::Value::Float(_)
        | toml::Value::Datetime(_)
        | toml::Value::Array(_)
        | toml::Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::Config;

    fn transport(text: &str) -> TransportConfig {
        let config = Config::from_toml(text).unwrap();
        config
            .resolve("main", "shop", &[&["rabbitmq", "amqp", "amqps"]])
            .unwrap()
    }

    fn read(text: &str) -> Result<RabbitmqConfig, Error> {
        RabbitmqConfig::from_transport(&transport(text))
    }

    #[test]
    fn a_bare_url_gives_the_defaults_and_a_section_changes_them() {
        assert_eq!(
            read("url = 'amqp://localhost'").unwrap(),
            RabbitmqConfig::default()
        );
        let config = read(
            "url = 'amqp://localhost'\n[transports.main.rabbitmq]\nheartbeat = '5s'\nqueue_type = 'classic'\narguments = { x-max-length = 5 }",
        );
        let config = config.unwrap();
        assert_eq!(config.heartbeat, Duration::from_secs(5));
        assert_eq!(config.queue_type, QueueType::Classic);
        let mut table = FieldTable::default();
        config.add_arguments(&mut table);
        assert_eq!(
            table.inner().get("x-max-length"),
            Some(&AMQPValue::LongLongInt(5))
        );
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (line, name) in [
            ("hartbeat = '2s'", "heartbeat"),
            ("heartbeat = '2'", "heartbeat"),
            ("heartbeat = '10ms'", "heartbeat"),
            ("exchange = 'a/b'", "exchange"),
            ("exchange = 'amq.topic'", "exchange"),
            ("prefetch = 0", "prefetch"),
            ("publish_window = 0", "publish_window"),
            ("priority = 10", "priority"),
            ("expiry = '60days'", "expiry"),
            ("arguments = { x = [1] }", "arguments"),
            ("auth = 'external'", "tls.cert"),
        ] {
            let text = format!("url = 'amqp://localhost'\n[transports.main.rabbitmq]\n{line}");
            let error = read(&text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{line}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn the_vhost_comes_from_the_url_or_the_section_and_not_from_both() {
        let section = "\n[transports.main.rabbitmq]\nvhost = 'blue'";
        let of = |text: &str| read(text).map(|config| config.vhost);
        assert_eq!(
            of("url = 'amqp://localhost/blue'").unwrap(),
            Some("blue".to_owned())
        );
        assert_eq!(
            of(&format!("url = 'amqp://localhost'{section}")).unwrap(),
            Some("blue".to_owned())
        );
        let error = of(&format!("url = 'amqp://localhost/red'{section}")).unwrap_err();
        assert!(error.to_string().contains("vhost"), "{error}");
    }

    #[test]
    fn several_servers_get_their_ports_and_the_credentials() {
        let config = transport("url = 'amqp://u:p@127.0.0.1,127.0.0.2:5000'");
        let section = RabbitmqConfig::from_transport(&config).unwrap();
        let uris: Vec<_> = config
            .endpoints
            .iter()
            .map(|endpoint| section.uri(&config, endpoint))
            .collect();
        let ports: Vec<_> = uris.iter().map(|uri| uri.authority.port).collect();
        assert_eq!(ports, [5672, 5000]);
        assert_eq!(uris[0].authority.userinfo.password, "p");
        assert_eq!(uris[0].query.heartbeat, Some(10));
    }

    #[test]
    fn another_machine_is_reached_with_tls_alone() {
        let error = read("url = 'amqp://10.0.0.1'").unwrap_err().to_string();
        assert!(error.contains("without encryption"), "{error}");
        read("url = 'amqps://10.0.0.1'").unwrap();
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_named_and_not_quoted() {
        let config = transport(
            "url = 'amqps://localhost'\n[transports.main]\ntls = { ca = '/no/such/ca.pem' }",
        );
        let error = tls(&config.tls).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/ca.pem"), "{error}");
    }
}
