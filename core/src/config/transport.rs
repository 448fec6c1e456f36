//! How one transport is reached.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::SubjectRule;
use super::nearest::{printable, suggestion};
use super::origin::Origin;
use super::secret::{MASK, masked};
use super::url::Url;
use crate::{Error, Secret};

/// The configuration of one transport, as its adapter gets it. Credentials are not in the URL any more, and `Debug` holds
/// none.
///
/// ```
/// use anywire::Config;
///
/// let config = Config::from_toml("url = 'nats://shop:hunter2@localhost:4222'")?;
/// let transport = config.transport("main", "shop")?;
/// assert_eq!((transport.scheme.as_str(), transport.endpoints[0].port), ("nats", Some(4222)));
/// assert!(!format!("{transport:?}").contains("hunter2"));
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone)]
pub struct TransportConfig {
    /// Its name in the configuration, such as `main`.
    pub name: String,
    /// The app that connects.
    pub app: String,
    /// The scheme of its URL, such as `nats`.
    pub scheme: String,
    /// The servers, in the order in which they were given.
    pub endpoints: Vec<Endpoint>,
    /// What follows the servers in the URL, without its slash, decoded.
    pub path: String,
    /// The URL's parameters, in order, decoded.
    pub parameters: Vec<(String, String)>,
    /// The user name.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// The token.
    pub token: Option<Secret>,
    /// The client's TLS settings.
    pub tls: Tls,
    /// Whether a server that is not on this machine may be reached without encryption.
    pub allow_plaintext: bool,
    /// How often a side of an emulated stream gives a sign of life; who is silent for twice as long is lost.
    pub stream_heartbeat: Duration,
    /// The `[transports.NAME.SCHEME]` section.
    pub section: toml::Table,
    /// The `[[subjects]]` rules; the first match wins. An adapter looks here for its own table and for replicas.
    pub subjects: Arc<[SubjectRule]>,
    /// Where the keys of the section were said.
    pub(super) places: BTreeMap<String, Origin>,
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// Port, where the URL names one.
    pub port: Option<u16>,
}

/// TLS settings. Paths are read when the transport connects.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate authorities to trust, as a PEM file. Default: the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate, as a PEM file.
    pub cert: Option<PathBuf>,
    /// The client's key, as a PEM file.
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must have. Default: the host of the URL.
    pub server_name: Option<String>,
}

impl TransportConfig {
    /// The configuration of a bare `scheme://`.
    #[must_use]
    pub fn bare(name: &str, app: &str, scheme: &str) -> Self {
        Self {
            name: name.to_owned(),
            app: app.to_owned(),
            scheme: scheme.to_owned(),
            endpoints: Vec::new(),
            path: String::new(),
            parameters: Vec::new(),
            user: None,
            password: None,
            token: None,
            tls: Tls::default(),
            allow_plaintext: false,
            stream_heartbeat: super::defaults::STREAM_HEARTBEAT,
            section: toml::Table::new(),
            subjects: Arc::default(),
            places: BTreeMap::new(),
        }
    }

    /// The transport's address, as it may stand in a log: without credentials.
    #[must_use]
    pub fn address(&self) -> String {
        self.url().to_string()
    }

    /// Checks that nothing goes in the clear to another machine, unless `allow_plaintext` says so; then it warns.
    ///
    /// `encrypted` says whether the connection will be, by its scheme and TLS settings. An adapter calls it from
    /// [`Adapter::check`](crate::transport::Adapter::check).
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming the server and the remedy.
    pub fn require_encryption(&self, encrypted: bool) -> Result<(), Error> {
        if encrypted {
            return Ok(());
        }
        let Some(remote) = self.endpoints.iter().find(|server| !server.is_local()) else {
            return Ok(());
        };
        let name = &self.name;
        if self.allow_plaintext {
            tracing::warn!(transport = %name, server = %remote, "messages and credentials travel without encryption");
            return Ok(());
        }
        Err(Error::config(format!(
            "transport \"{name}\" would reach {remote} without encryption; use a scheme with TLS, or set allow_plaintext = true in [transports.{name}]"
        )))
    }

    fn url(&self) -> Url {
        Url {
            scheme: self.scheme.clone(),
            user: self.user.clone().map(Secret::new),
            password: self.password.clone(),
            endpoints: self.endpoints.clone(),
            path: self.path.clone(),
            parameters: self.parameters.clone(),
        }
    }

    /// Reads the adapter's own section. The type must refuse unknown keys (`deny_unknown_fields`).
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming the place and the key, and no value.
    pub fn section<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let section = toml::Value::Table(self.section.clone());
        section
            .try_into()
            .map_err(|error| self.section_error(&error))
    }

    fn section_error(&self, error: &toml::de::Error) -> Error {
        let display = error.to_string();
        // The crate tells where it was only in the last line of its display: in `a.b`.
        let line = display.lines().last().unwrap_or_default();
        let inside = line
            .strip_prefix("in `")
            .and_then(|line| line.strip_suffix('`'));
        let inside = inside.unwrap_or_default();
        let mut names = error.message().split('`').skip(1).step_by(2);
        let unknown = match error.message().starts_with("unknown field") {
            true => names.next(),
            false => None,
        };
        let top = inside.split('.').next().filter(|top| !top.is_empty());
        let place = match self.places.get(top.or(unknown).unwrap_or_default()) {
            Some(origin) => format!("{origin}: "),
            None => String::new(),
        };
        let path = format!("[transports.{}.{}]", self.name, self.scheme);
        let at = match inside.is_empty() {
            true => path,
            false => format!("\"{}\" in {path}", printable(inside)),
        };
        Error::config(match unknown {
            Some(key) => {
                let hint = suggestion(key, &names.collect::<Vec<_>>());
                let key = printable(key);
                format!("{place}unknown key \"{key}\" in {at}; {hint}")
            }
            None => {
                let why = without_values(error.message(), &self.section);
                format!("{place}{at}: {why}")
            }
        })
    }
}

/// Takes the section's texts out of a message: one of them may be a secret.
fn without_values(message: &str, section: &toml::Table) -> String {
    fn texts<'a>(value: &'a toml::Value, found: &mut Vec<&'a str>) {
        match value {
            toml::Value::String(text) => found.push(text),
            toml::Value::Array(values) => values.iter().for_each(|value| texts(value, found)),
            toml::Value::Table(table) => table.values().for_each(|value| texts(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    section.values().for_each(|value| texts(value, &mut found));
    // The longest first: a text may be a part of another.
    found.sort_by_key(|text| std::cmp::Reverse(text.len()));
    let mut message = message.to_owned();
    for text in found {
        message = message
            .replace(&format!("{text:?}"), MASK)
            .replace(&format!("`{text}`"), MASK);
        if text.len() >= 4 {
            message = message.replace(text, MASK);
        }
    }
    message
}

impl Endpoint {
    /// Whether the server is on this machine: `localhost` or a loopback address.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let host = self.host.to_ascii_lowercase();
        match host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => host == "localhost" || host.ends_with(".localhost"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for TransportConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportConfig")
            .field("name", &self.name)
            .field("app", &self.app)
            .field("url", &self.url())
            .field("token", &self.token)
            .field("tls", &self.tls)
            .field("allow_plaintext", &self.allow_plaintext)
            .field("section", &masked(&self.section))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Section {
        linger: Option<u32>,
        password: Option<u32>,
        deep: Option<Box<Self>>,
    }

    fn with_section(text: &str) -> TransportConfig {
        let mut config = TransportConfig::bare("log", "shop", "kafka");
        config.section = toml::from_str(text).unwrap();
        config
    }

    fn section_error(text: &str) -> String {
        let error = with_section(text).section::<Section>().unwrap_err();
        error.to_string()
    }

    #[test]
    fn a_section_is_read_by_its_adapter() {
        let section: Section = with_section("linger = 5").section().unwrap();
        assert_eq!((section.linger, section.password), (Some(5), None));
        assert!(section.deep.is_none());
    }

    #[test]
    fn an_unknown_key_of_a_section_gets_the_nearest_one() {
        assert_eq!(
            section_error("lingr = 5"),
            "unknown key \"lingr\" in [transports.log.kafka]; did you mean \"linger\"?"
        );
        assert_eq!(
            section_error("deep = { lingr = 5 }"),
            "unknown key \"lingr\" in \"deep\" in [transports.log.kafka]; did you mean \"linger\"?"
        );
    }

    #[test]
    fn an_error_in_a_section_names_the_key_and_not_the_value() {
        assert_eq!(
            section_error("password = 'hunter2'"),
            "\"password\" in [transports.log.kafka]: invalid type: string [secret], expected u32"
        );
        assert!(!format!("{:?}", with_section("password = 'hunter2'")).contains("hunter2"));
    }

    #[test]
    fn plaintext_to_another_machine_must_be_allowed() {
        let mut config = TransportConfig::bare("main", "shop", "nats");
        for host in [
            "localhost",
            "127.0.0.9",
            "::1",
            "::ffff:127.0.0.1",
            "a.localhost",
        ] {
            config.endpoints = vec![Endpoint {
                host: host.to_owned(),
                port: None,
            }];
            config.require_encryption(false).unwrap();
        }
        config.endpoints.push(Endpoint {
            host: "10.0.0.1".to_owned(),
            port: Some(4222),
        });
        let error = config.require_encryption(false).unwrap_err().to_string();
        assert!(
            error.contains("10.0.0.1:4222") && error.contains("allow_plaintext"),
            "{error}"
        );
        config.require_encryption(true).unwrap();
        config.allow_plaintext = true;
        config.require_encryption(false).unwrap();
    }
}
