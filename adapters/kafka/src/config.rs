//! The `[transports.NAME.kafka]` section, and what it and the URL make of a client.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anywire::config::{Tls, TransportConfig};
use anywire::{Error, Pattern, Subject};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use serde::{Deserialize, Deserializer};

/// The port of a URL that names none.
const DEFAULT_PORT: u16 = 9092;
/// The partitions of a topic that we create: so many members of a group can share its work.
const DEFAULT_PARTITIONS: i32 = 4;
/// The most milliseconds between two tries to connect, and for one of them, where nothing else is set.
const RECONNECT_BACKOFF: u64 = 1000;
const CONNECTION_SETUP: u64 = 5000;
/// What is left for key, headers and the record's own fields below the broker's limit.
pub(crate) const HEADER_ROOM: usize = 64 * 1024;
/// What the broker takes unless it is told otherwise.
const BROKER_LIMIT: usize = 1024 * 1024;

/// What only Kafka has.
///
/// ```
/// use std::time::Duration;
/// use anywire_kafka::KafkaConfig;
///
/// let config = KafkaConfig::default();
/// assert_eq!(config.partitions, 4);
/// assert_eq!(config.commit_interval, Duration::from_millis(100));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct KafkaConfig {
    /// The partitions of topics that we create. Default: 4.
    pub partitions: i32,
    /// How many brokers keep each topic that we create. Default: three, or as many as there are brokers.
    pub replicas: Option<i32>,
    /// `min.insync.replicas` of topics that we create. Default: the cluster's.
    pub min_insync_replicas: Option<u32>,
    /// How long a message may wait for company before it is sent. Default: not at all; what comes while a request is
    /// under way goes with the next one.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub linger: Duration,
    /// Default: none.
    pub compression: Compression,
    /// How long the library tries to deliver a message. Default: 30 s.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub delivery_timeout: Duration,
    /// The most publishes that wait for their confirmation at once. Default: 16,384.
    pub max_in_flight: usize,
    /// The most bytes that wait for their confirmation at once. Default: 64 MiB.
    pub max_in_flight_bytes: usize,
    /// The largest payload, in bytes. The broker's own limit counts key and headers, too, and must leave them room.
    /// Default: 1 MiB less 64 KiB.
    pub max_payload: usize,
    /// How often a group's position is written down while it moves. Default: 100 ms.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub commit_interval: Duration,
    /// How far a partition is read past its first message that is not done, and how much waits here for a subscription.
    /// Default: 4096 messages.
    pub partition_window: usize,
    /// The most bytes that are fetched ahead for a group, and again as many that wait here for each of its subscriptions.
    /// Default: 32 MiB.
    pub fetch_bytes: usize,
    /// How soon a topic is seen that somebody else created. Default: 2 s; at most 5 s.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub discovery: Duration,
    /// After how long a silent member of a group has lost its partitions. Default: 15 s.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub session_timeout: Duration,
    /// A name of this instance that stays the same when it starts again: its partitions wait for it meanwhile.
    pub instance_id: Option<String>,
    /// How groups are kept: by their members (`classic`), or by the broker (`consumer`, KIP-848). Default: `classic`.
    pub group_protocol: GroupProtocol,
    /// How user and password are told: `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or, with the feature `sasl`, `GSSAPI`.
    /// Default: `PLAIN`, where there is a user.
    pub sasl_mechanism: Option<String>,
    /// Further settings of librdkafka, by their own names. Those that the framework relies upon are refused.
    pub properties: BTreeMap<String, Property>,
}

/// How records are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard. Needs the feature `zstd`.
    Zstd,
}

/// Who assigns the partitions of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GroupProtocol {
    /// One of its members.
    #[default]
    Classic,
    /// The broker.
    Consumer,
}

/// A setting of librdkafka, as text. It may be a secret, so `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Property(String);

impl fmt::Debug for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            partitions: DEFAULT_PARTITIONS,
            replicas: None,
            min_insync_replicas: None,
            linger: Duration::ZERO,
            compression: Compression::None,
            delivery_timeout: Duration::from_secs(30),
            max_in_flight: 16_384,
            max_in_flight_bytes: 64 * 1024 * 1024,
            max_payload: BROKER_LIMIT - HEADER_ROOM,
            commit_interval: Duration::from_millis(100),
            partition_window: 4096,
            fetch_bytes: 32 * 1024 * 1024,
            discovery: Duration::from_secs(2),
            session_timeout: Duration::from_secs(15),
            instance_id: None,
            group_protocol: GroupProtocol::Classic,
            sasl_mechanism: None,
            properties: BTreeMap::new(),
        }
    }
}

/// What a `[[subjects]]` rule says about topics, in its `kafka` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TopicRule {
    /// The one topic that carries all of the rule's subjects.
    pub(crate) topic: Option<String>,
    pub(crate) partitions: Option<i32>,
    pub(crate) min_insync_replicas: Option<u32>,
}

/// A rule about the subjects of a pattern.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) pattern: Pattern,
    pub(crate) topic: TopicRule,
    pub(crate) replicas: Option<i32>,
    pub(crate) retention: Option<Duration>,
}

/// What the framework sets itself, and the key of ours that says it.
const OWNED: [(&str, &str); 32] = [
    ("bootstrap.servers", "the URL"),
    ("metadata.broker.list", "the URL"),
    ("group.id", "the handler's `group`"),
    ("group.instance.id", "`instance_id`"),
    ("group.protocol", "`group_protocol`"),
    ("session.timeout.ms", "`session_timeout`"),
    ("enable.idempotence", "nothing: it is always on"),
    ("acks", "nothing: it is always `all`"),
    ("request.required.acks", "nothing: it is always `all`"),
    (
        "enable.auto.commit",
        "nothing: positions are the framework's",
    ),
    (
        "enable.auto.offset.store",
        "nothing: positions are the framework's",
    ),
    ("auto.offset.reset", "the handler's `start`"),
    ("linger.ms", "`linger`"),
    ("queue.buffering.max.ms", "`linger`"),
    ("delivery.timeout.ms", "`delivery_timeout`"),
    ("message.timeout.ms", "`delivery_timeout`"),
    ("message.max.bytes", "`max_payload`"),
    ("queue.buffering.max.messages", "`max_in_flight`"),
    ("queue.buffering.max.kbytes", "`max_in_flight_bytes`"),
    ("queued.max.messages.kbytes", "`fetch_bytes`"),
    ("topic.metadata.refresh.interval.ms", "`discovery`"),
    (
        "topic.blacklist",
        "nothing: Kafka's own topics are left alone",
    ),
    ("allow.auto.create.topics", "`provision`"),
    ("security.protocol", "the URL's scheme and `tls`"),
    ("compression.type", "`compression`"),
    ("compression.codec", "`compression`"),
    ("request.timeout.ms", "`delivery_timeout`"),
    (
        "delivery.report.only.error",
        "nothing: each message is reported",
    ),
    ("transactional.id", "nothing: there are no transactions"),
    (
        "partition.assignment.strategy",
        "nothing: it is always cooperative",
    ),
    ("topic.metadata.refresh.sparse", "nothing: it is always on"),
    (
        "topic.metadata.refresh.fast.cnt",
        "nothing: it is the library's",
    ),
];

/// What the framework takes from the transport's own keys.
const CREDENTIALS: [&str; 7] = [
    "sasl.username",
    "sasl.password",
    "sasl.mechanism",
    "sasl.mechanisms",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
];

impl KafkaConfig {
    /// Reads a transport's configuration and checks what can be checked without a connection.
    pub(crate) fn from_transport(config: &TransportConfig) -> Result<Self, Error> {
        config.require_encryption(is_encrypted(config))?;
        let section: Self = config.section()?;
        section.check(config)?;
        servers(config)?;
        rules(config)?;
        section.common(config)?;
        Ok(section)
    }

    fn check(&self, config: &TransportConfig) -> Result<(), Error> {
        let name = &config.name;
        let at = |key: &str, why: &str| {
            Err(Error::config(format!(
                "[transports.{name}.kafka]: `{key}` {why}"
            )))
        };
        let bounds = [
            ("max_in_flight", self.max_in_flight),
            ("max_in_flight_bytes", self.max_in_flight_bytes),
            ("max_payload", self.max_payload),
            ("partition_window", self.partition_window),
            ("fetch_bytes", self.fetch_bytes),
            ("partitions", usize::try_from(self.partitions).unwrap_or(0)),
            (
                "replicas",
                usize::try_from(self.replicas.unwrap_or(1)).unwrap_or(0),
            ),
        ];
        if let Some((key, _)) = bounds.iter().find(|(_, bound)| *bound == 0) {
            return at(key, "must be at least 1");
        }
        // The library counts the sizes of its queues in kilobytes and up to two gigabytes.
        for (key, bytes) in [
            ("max_in_flight_bytes", self.max_in_flight_bytes),
            ("fetch_bytes", self.fetch_bytes),
            ("max_payload", self.max_payload),
        ] {
            if bytes > 900_000_000 {
                return at(key, "must be at most 900000000");
            }
        }
        if self.max_in_flight > 1_000_000 {
            return at("max_in_flight", "must be at most 1000000");
        }
        if self.discovery < Duration::from_millis(100) || self.discovery > Duration::from_secs(5) {
            return at("discovery", "must be between 100ms and 5s");
        }
        if self.commit_interval > Duration::from_secs(60) {
            return at("commit_interval", "must be at most 60s");
        }
        if self.session_timeout < Duration::from_secs(6) {
            return at("session_timeout", "must be at least 6s");
        }
        if self.delivery_timeout < Duration::from_secs(1) {
            return at("delivery_timeout", "must be at least 1s");
        }
        if self.linger > Duration::from_secs(1) {
            return at("linger", "must be at most 1s");
        }
        for key in self.properties.keys() {
            if let Some((_, instead)) = OWNED.iter().find(|(owned, _)| owned == key) {
                return at(
                    "properties",
                    &format!("must not hold \"{key}\"; use {instead}"),
                );
            }
            if CREDENTIALS.contains(&key.as_str()) {
                return at(
                    "properties",
                    &format!("must not hold \"{key}\"; use user, password, sasl_mechanism and tls"),
                );
            }
        }
        if !config.path.is_empty() || !config.parameters.is_empty() {
            return Err(Error::config(format!(
                "transport \"{name}\": a Kafka URL has neither path nor parameters; use [transports.{name}.kafka]"
            )));
        }
        if config.token.is_some() {
            return Err(Error::config(format!(
                "transport \"{name}\": Kafka takes no token; use user and password"
            )));
        }
        if config.tls.server_name.is_some() {
            return Err(Error::config(format!(
                "transport \"{name}\": the certificate's name is checked against the broker's advertised host; leave tls.server_name out"
            )));
        }
        if is_encrypted(config) && !HAS_TLS {
            return Err(not_built(name, "TLS", "ssl\" or \"ssl-vendored"));
        }
        if self.compression == Compression::Zstd && !cfg!(feature = "zstd") {
            return Err(not_built(name, "zstd", "zstd"));
        }
        match self.sasl_mechanism.as_deref() {
            Some("PLAIN") | None => Ok(()),
            Some("SCRAM-SHA-256" | "SCRAM-SHA-512") if HAS_TLS => Ok(()),
            Some("SCRAM-SHA-256" | "SCRAM-SHA-512") => {
                Err(not_built(name, "SCRAM", "ssl\" or \"ssl-vendored"))
            }
            Some("GSSAPI") if cfg!(feature = "sasl") => Ok(()),
            Some("GSSAPI") => Err(not_built(name, "Kerberos", "sasl")),
            Some(_) => at(
                "sasl_mechanism",
                "must be PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or GSSAPI",
            ),
        }
    }

    /// What all clients of a transport have in common.
    fn common(&self, config: &TransportConfig) -> Result<ClientConfig, Error> {
        let mut client = ClientConfig::new();
        for (key, Property(value)) in &self.properties {
            client.set(key, value);
        }
        let (setup, backoff) = (CONNECTION_SETUP.to_string(), RECONNECT_BACKOFF.to_string());
        let defaults = [
            ("socket.keepalive.enable", "true"),
            ("socket.nagle.disable", "true"),
            // A request without an answer: a connection that died in silence is noticed within 25 s.
            ("socket.timeout.ms", "10000"),
            ("socket.connection.setup.timeout.ms", &setup),
            ("reconnect.backoff.ms", "50"),
            ("reconnect.backoff.max.ms", &backoff),
            // A new topic is told of a moment before its broker takes anything for it.
            ("retry.backoff.ms", "20"),
            ("topic.metadata.refresh.fast.interval.ms", "50"),
            ("client.id", &config.app),
        ];
        for (key, value) in defaults {
            if !self.properties.contains_key(key) {
                client.set(key, value);
            }
        }
        client
            .set("bootstrap.servers", servers(config)?)
            .set("topic.metadata.refresh.interval.ms", millis(self.discovery))
            .set("topic.metadata.refresh.sparse", "true")
            .set_log_level(RDKafkaLogLevel::Warning);
        self.secure(config, &mut client);
        // The library checks names and values when it makes a configuration of its own.
        client.create_native_config().map_err(|error| {
            let rdkafka::error::KafkaError::ClientConfig(_, _, key, _) = &error else {
                return Error::config("librdkafka refuses the configuration");
            };
            Error::config(format!(
                "[transports.{}.kafka]: librdkafka refuses the property \"{key}\"; look it up in its CONFIGURATION.md",
                config.name
            ))
        })?;
        Ok(client)
    }

    fn secure(&self, config: &TransportConfig, client: &mut ClientConfig) {
        let sasl = config.user.is_some() || self.sasl_mechanism.is_some();
        let protocol = match (is_encrypted(config), sasl) {
            (false, false) => "plaintext",
            (false, true) => "sasl_plaintext",
            (true, false) => "ssl",
            (true, true) => "sasl_ssl",
        };
        client.set("security.protocol", protocol);
        if sasl {
            let mechanism = self.sasl_mechanism.as_deref().unwrap_or("PLAIN");
            client.set("sasl.mechanism", mechanism);
        }
        if let Some(user) = &config.user {
            client.set("sasl.username", user);
        }
        if let Some(password) = &config.password {
            client.set("sasl.password", password.expose());
        }
        let Tls {
            ca,
            cert,
            key,
            server_name: _,
        } = &config.tls;
        let files = [
            ("ssl.ca.location", ca),
            ("ssl.certificate.location", cert),
            ("ssl.key.location", key),
        ];
        for (name, path) in files {
            if let Some(path) = path {
                client.set(name, path.display().to_string());
            }
        }
    }

    /// The client that publishes.
    pub(crate) fn producer(&self, config: &TransportConfig) -> Result<ClientConfig, Error> {
        let mut client = self.common(config)?;
        let compression = match self.compression {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        };
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set(
                "linger.ms",
                (self.linger.as_secs_f64() * 1000.0).to_string(),
            )
            .set("delivery.timeout.ms", millis(self.delivery_timeout))
            .set(
                "request.timeout.ms",
                millis(self.delivery_timeout.min(Duration::from_secs(10))),
            )
            .set("compression.type", compression)
            .set(
                "message.max.bytes",
                (self.max_payload + HEADER_ROOM).to_string(),
            )
            // Ours are the bounds that count; the library's must never be met.
            .set(
                "queue.buffering.max.messages",
                (self.max_in_flight * 2 + 1000).to_string(),
            )
            .set(
                "queue.buffering.max.kbytes",
                ((self.max_in_flight_bytes + self.max_payload + HEADER_ROOM) / 512).to_string(),
            );
        if !self.properties.contains_key("partitioner") {
            // A key is where Java's clients put it.
            client.set("partitioner", "murmur2_random");
        }
        Ok(client)
    }

    /// How long a client may take to be connected again to a broker that is there.
    pub(crate) fn reconnects_within(&self) -> Duration {
        let millis = |name: &str, default| {
            let set = self.properties.get(name);
            set.and_then(|Property(value)| value.parse().ok())
                .unwrap_or(default)
        };
        let backoff = millis("reconnect.backoff.max.ms", RECONNECT_BACKOFF);
        let setup = millis("socket.connection.setup.timeout.ms", CONNECTION_SETUP);
        Duration::from_millis(backoff) * 2 + Duration::from_millis(setup)
    }

    /// The client that creates topics.
    pub(crate) fn admin(&self, config: &TransportConfig) -> Result<ClientConfig, Error> {
        self.common(config)
    }

    /// A client that reads without a group.
    pub(crate) fn reader(&self, config: &TransportConfig) -> Result<ClientConfig, Error> {
        let mut client = self.common(config)?;
        client
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("topic.blacklist", crate::names::INTERNAL)
            .set(
                "queued.max.messages.kbytes",
                (self.fetch_bytes / 1024).max(1).to_string(),
            );
        let defaults = [
            ("check.crcs", "true"),
            // What a consumer asks of a broker waits behind its fetch.
            ("fetch.wait.max.ms", "100"),
            ("fetch.error.backoff.ms", "50"),
            ("queued.min.messages", "20000"),
        ];
        for (key, value) in defaults {
            if !self.properties.contains_key(key) {
                client.set(key, value);
            }
        }
        Ok(client)
    }

    /// A member of a group.
    pub(crate) fn member(
        &self,
        config: &TransportConfig,
        group: &str,
        is_static: bool,
    ) -> Result<ClientConfig, Error> {
        let mut client = self.reader(config)?;
        client.set("group.id", group);
        match self.group_protocol {
            GroupProtocol::Classic => {
                client
                    .set("partition.assignment.strategy", "cooperative-sticky")
                    .set("session.timeout.ms", millis(self.session_timeout));
                // A member hears of the coming and going of others by the answer.
                let heartbeat = (self.session_timeout / 5).min(Duration::from_secs(1));
                if !self.properties.contains_key("heartbeat.interval.ms") {
                    client.set("heartbeat.interval.ms", millis(heartbeat));
                }
            }
            GroupProtocol::Consumer => {
                client.set("group.protocol", "consumer");
            }
        }
        if let Some(id) = self.instance_id.as_ref().filter(|_| is_static) {
            client.set("group.instance.id", id);
        }
        Ok(client)
    }
}

const HAS_TLS: bool = cfg!(any(feature = "ssl", feature = "ssl-vendored"));

fn not_built(name: &str, what: &str, feature: &str) -> Error {
    Error::config(format!(
        "transport \"{name}\" needs {what}, which is not built in; add the cargo feature \"{feature}\" of anywire-kafka"
    ))
}

/// The addresses of the brokers that are asked first, as the library wants them.
fn servers(config: &TransportConfig) -> Result<String, Error> {
    if config.endpoints.is_empty() {
        return Err(Error::config(format!(
            "transport \"{}\" names no broker; write its URL as kafka://host:port",
            config.name
        )));
    }
    let address = |endpoint: &anywire::config::Endpoint| {
        let mut endpoint = endpoint.clone();
        endpoint.port.get_or_insert(DEFAULT_PORT);
        endpoint.to_string()
    };
    let servers: Vec<_> = config.endpoints.iter().map(address).collect();
    Ok(servers.join(","))
}

/// The rules about topics, in order.
pub(crate) fn rules(config: &TransportConfig) -> Result<Vec<Rule>, Error> {
    let read = |rule: &anywire::config::SubjectRule| {
        let pattern = rule.pattern.wildcards();
        let table = rule.native.get(crate::SCHEME).cloned().unwrap_or_default();
        let topic: TopicRule =
            toml::Value::Table(table)
                .try_into()
                .map_err(|error: toml::de::Error| {
                    let why = error.message();
                    Error::config(format!("[[subjects]] match = \"{pattern}\", kafka: {why}"))
                })?;
        let legal = topic.topic.as_deref().map(|topic| {
            let subject = Subject::parse(topic).ok();
            subject.is_some_and(|subject| {
                crate::names::topic(&subject).is_ok_and(|name| name == topic)
            })
        });
        if legal == Some(false) {
            return Err(Error::config(format!(
                "[[subjects]] match = \"{pattern}\": `kafka.topic` must be a name of letters, digits and \". _ -\" that does not begin with \"anywire.\""
            )));
        }
        if topic.partitions.is_some_and(|count| count < 1) {
            return Err(Error::config(format!(
                "[[subjects]] match = \"{pattern}\": `kafka.partitions` must be at least 1"
            )));
        }
        Ok(Rule {
            pattern: rule.pattern.clone(),
            topic,
            replicas: rule.replicas.and_then(|count| i32::try_from(count).ok()),
            retention: rule.retention,
        })
    };
    config.subjects.iter().map(read).collect()
}

fn is_encrypted(config: &TransportConfig) -> bool {
    config.scheme == crate::TLS_SCHEME || config.tls != Tls::default()
}

fn millis(time: Duration) -> String {
    time.as_millis().to_string()
}

impl<'de> Deserialize<'de> for Property {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Property;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number, or true or false")
            }

            fn visit_str<E>(self, text: &str) -> Result<Property, E> {
                Ok(Property(text.to_owned()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Property, E> {
                Ok(Property(number.to_string()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Property, E> {
                Ok(Property(number.to_string()))
            }

            fn visit_bool<E>(self, is: bool) -> Result<Property, E> {
                Ok(Property(is.to_string()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
