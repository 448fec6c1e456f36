//! How one transport is reached.

use std::path::PathBuf;

use serde::de::DeserializeOwned;

use crate::{Error, Secret};

/// The configuration of one transport, as its adapter gets it. Credentials are not in the URL any more.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Its name in the configuration, such as `main`.
    pub name: String,
    /// The app that connects.
    pub app: String,
    /// The scheme of its URL, such as `nats`.
    pub scheme: String,
    /// The servers, in the order in which they were given.
    pub endpoints: Vec<Endpoint>,
    /// What follows the servers in the URL, without its slash.
    pub path: String,
    /// The URL's parameters, in order.
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
    /// The `[transports.NAME.SCHEME]` section.
    pub section: toml::Table,
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
            section: toml::Table::new(),
        }
    }

    /// Reads the adapter's own section. The type must refuse unknown keys (`deny_unknown_fields`).
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming the section and the key.
    pub fn section<T: DeserializeOwned>(&self) -> Result<T, Error> {
        toml::Value::Table(self.section.clone())
            .try_into()
            .map_err(|error: toml::de::Error| {
                let section = format!("[transports.{}.{}]", self.name, self.scheme);
                Error::config(format!("{section}: {}", error.message()))
            })
    }
}
