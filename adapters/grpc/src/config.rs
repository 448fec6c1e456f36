//! The `[transports.NAME.grpc]` section, and what it and the URL make of a wire.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anywire::Error;
use anywire::config::{Endpoint, Tls, TransportConfig};
use serde::Deserialize;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// The port of an address that names none.
const DEFAULT_PORT: u16 = 50051;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(4);
/// The parameter of the URL that says where we listen.
const LISTEN: &str = "listen";

/// What only gRPC has.
///
/// ```
/// use anywire_grpc::GrpcConfig;
///
/// let config = GrpcConfig::default();
/// assert_eq!(config.max_payload, 4 * 1024 * 1024);
/// assert!(config.groups.is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct GrpcConfig {
    /// Who gets events: for each group, the addresses of its instances, of which one is asked. Default: one group, the peers of
    /// the URL.
    pub groups: BTreeMap<String, Vec<String>>,
    /// The certificate that our server shows, as a PEM file. Only with `grpcs`.
    pub server_cert: Option<PathBuf>,
    /// The key of that certificate, as a PEM file.
    pub server_key: Option<PathBuf>,
    /// The authorities of the certificates that clients of our server must have, as a PEM file. Default: none is asked for.
    pub client_ca: Option<PathBuf>,
    /// Descriptor sets, as `protoc --descriptor_set_out` writes them, for server reflection. Default: none, and no reflection.
    pub descriptors: Vec<PathBuf>,
    /// The largest payload, in both directions. Default: 4 MiB.
    pub max_payload: usize,
    /// The most requests that our server holds at once; more are refused. Default: 4096.
    pub max_concurrent: usize,
    /// The most requests that wait for one handler, beyond those that it holds; more are refused. Default: 1024.
    pub backlog: usize,
    /// The most at-most-once events that wait for one handler; more are dropped and counted. Default: 65,536.
    pub buffer: usize,
    /// The most connections to our server; more are closed at once. Default: 1024.
    pub max_connections: usize,
    /// How old a connection to our server grows before its client is asked to make another, which lets new instances have their
    /// share. Default: 1 h.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub max_connection_age: Duration,
    /// How many connections are made to each address. Default: 1.
    pub connections: usize,
    /// The most requests of ours that are under way at once. Default: 4096.
    pub max_in_flight: usize,
    /// How long making a connection may take. Default: 4 s.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub connect_timeout: Duration,
    /// How often names are looked up again. Default: 30 s.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub resolve_every: Duration,
    /// How long a connection may be silent while something is under way before it is asked for a sign of life. Default: 20 s.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub keep_alive: Duration,
    /// How long that sign of life may take. Default: 10 s.
    #[serde(deserialize_with = "anywire::config::duration")]
    pub keep_alive_timeout: Duration,
    /// Whether a sign of life is asked for also while nothing is under way. Servers of other makes end a connection that does so
    /// too often. Default: no.
    pub keep_alive_while_idle: bool,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            groups: BTreeMap::new(),
            server_cert: None,
            server_key: None,
            client_ca: None,
            descriptors: Vec::new(),
            max_payload: 4 * 1024 * 1024,
            max_concurrent: 4096,
            backlog: 1024,
            buffer: 65_536,
            max_connections: 1024,
            max_connection_age: Duration::from_secs(60 * 60),
            connections: 1,
            max_in_flight: 4096,
            connect_timeout: Duration::from_secs(4),
            resolve_every: Duration::from_secs(30),
            keep_alive: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(10),
            keep_alive_while_idle: false,
        }
    }
}

/// Who is where, read from the URL and the section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// Where we listen; `None` for who only sends.
    pub(crate) listen: Option<Endpoint>,
    /// Who is called. Without a name, ourselves.
    pub(crate) peers: Vec<Endpoint>,
    /// Who gets events, by group; none says that it is the peers.
    pub(crate) groups: Vec<(String, Vec<Endpoint>)>,
    /// Whether the peers are ourselves.
    pub(crate) is_self: bool,
}

impl GrpcConfig {
    /// Reads a transport's configuration and checks what can be checked without a connection.
    pub(crate) fn from_transport(config: &TransportConfig) -> Result<(Self, Places), Error> {
        let section: Self = config.section()?;
        section.check_bounds(config)?;
        let places = section.places(config)?;
        section.check_security(config, &places)?;
        Ok((section, places))
    }

    fn check_bounds(&self, config: &TransportConfig) -> Result<(), Error> {
        let at = |key: &str, why: &str| {
            let name = &config.name;
            Err(Error::config(format!(
                "[transports.{name}.grpc]: `{key}` {why}"
            )))
        };
        let counts = [
            ("max_payload", self.max_payload),
            ("max_concurrent", self.max_concurrent),
            ("backlog", self.backlog),
            ("buffer", self.buffer),
            ("max_connections", self.max_connections),
            ("connections", self.connections),
            ("max_in_flight", self.max_in_flight),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return at(key, "must be at least 1");
        }
        if u32::try_from(self.max_payload).is_err() {
            return at(
                "max_payload",
                "must be below 4 GiB, as a frame tells its length in 32 bits",
            );
        }
        let times = [
            ("max_connection_age", self.max_connection_age),
            ("connect_timeout", self.connect_timeout),
            ("resolve_every", self.resolve_every),
            ("keep_alive", self.keep_alive),
            ("keep_alive_timeout", self.keep_alive_timeout),
        ];
        if let Some((key, _)) = times
            .iter()
            .find(|(_, time)| *time < Duration::from_millis(100))
        {
            return at(key, "must be at least 100ms");
        }
        Ok(())
    }

    fn places(&self, config: &TransportConfig) -> Result<Places, Error> {
        let wrong = |why: String| {
            Err(Error::config(format!(
                "transport \"{}\": {why}",
                config.name
            )))
        };
        if !config.path.is_empty() {
            return wrong("a gRPC URL has no path".to_owned());
        }
        let mut listen = None;
        for (name, value) in &config.parameters {
            if name != LISTEN {
                return wrong(format!(
                    "a gRPC URL has the parameter `listen` alone, not `{name}`"
                ));
            }
            if listen.is_some() {
                return wrong("its URL says twice where to listen".to_owned());
            }
            listen = Some(endpoint(value, config)?);
        }
        let with_port = |address: &Endpoint| Endpoint {
            host: address.host.clone(),
            port: Some(address.port.unwrap_or(DEFAULT_PORT)),
        };
        let mut peers: Vec<_> = config.endpoints.iter().map(with_port).collect();
        let is_self = peers.is_empty();
        if is_self {
            match &listen {
                Some(listen) => peers.push(ourselves(listen)),
                None if self.groups.is_empty() => {
                    return wrong("its URL names nobody; write it as grpc://host:port for a peer, or grpc://?listen=0.0.0.0:50051 to be called".to_owned());
                }
                None => {}
            }
        }
        let mut groups = Vec::with_capacity(self.groups.len());
        for (name, addresses) in &self.groups {
            if addresses.is_empty() {
                return wrong(format!("the group `{name}` has no address"));
            }
            let addresses: Result<Vec<_>, _> = addresses
                .iter()
                .map(|text| endpoint(text, config))
                .collect();
            groups.push((name.clone(), addresses?));
        }
        Ok(Places {
            listen,
            peers,
            groups,
            is_self,
        })
    }

    fn check_security(&self, config: &TransportConfig, places: &Places) -> Result<(), Error> {
        let encrypted = is_encrypted(config);
        let mut everywhere = config.clone();
        everywhere.endpoints.clone_from(&places.peers);
        everywhere.endpoints.extend(places.listen.clone());
        let groups = places
            .groups
            .iter()
            .flat_map(|(_, addresses)| addresses.iter().cloned());
        everywhere.endpoints.extend(groups);
        everywhere.require_encryption(encrypted)?;
        let name = &config.name;
        let wrong = |why: &str| Err(Error::config(format!("transport \"{name}\": {why}")));
        if config.user.is_some() || config.password.is_some() {
            return wrong(
                "gRPC knows neither user nor password; use certificates (tls.cert, tls.key), or a token",
            );
        }
        if config.token.is_some() && !encrypted {
            return wrong("a token is sent with grpcs:// alone");
        }
        if !encrypted && config.tls != Tls::default() {
            return wrong("there is TLS with grpcs:// alone, but [transports.NAME.tls] says how");
        }
        if config.tls.cert.is_some() != config.tls.key.is_some() {
            return wrong("tls.cert and tls.key belong together; set both or none");
        }
        if self.server_cert.is_some() != self.server_key.is_some() {
            return wrong("server_cert and server_key belong together; set both or none");
        }
        let has_identity = self.server_cert.is_some();
        if !encrypted && (has_identity || self.client_ca.is_some()) {
            return wrong("server_cert, server_key and client_ca are for grpcs:// alone");
        }
        if encrypted && places.listen.is_some() && !has_identity {
            return wrong(
                "who listens with grpcs:// needs a certificate: set server_cert and server_key in its section `grpc`",
            );
        }
        if places.listen.is_none()
            && (has_identity || self.client_ca.is_some() || !self.descriptors.is_empty())
        {
            return wrong(
                "server_cert, server_key, client_ca and descriptors are for who listens; add ?listen= to the URL",
            );
        }
        Ok(())
    }

    /// How we reach a peer with TLS; `None` without.
    ///
    /// # Errors
    /// `Config` where a file cannot be read, which is named; its content is not.
    pub(crate) fn client_tls(config: &TransportConfig) -> Result<Option<ClientTlsConfig>, Error> {
        if !is_encrypted(config) {
            return Ok(None);
        }
        let Tls {
            ca,
            cert,
            key,
            // The name is the address' own where there is none; each connection is told.
            server_name: _,
        } = &config.tls;
        let mut tls = ClientTlsConfig::new().timeout(HANDSHAKE);
        tls = match ca {
            Some(ca) => tls.ca_certificate(Certificate::from_pem(read(ca)?)),
            None => tls.with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (cert, key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(Some(tls))
    }

    /// How we are reached with TLS; `None` without.
    ///
    /// # Errors
    /// As [`client_tls`](Self::client_tls).
    pub(crate) fn server_tls(&self) -> Result<Option<ServerTlsConfig>, Error> {
        let (Some(cert), Some(key)) = (&self.server_cert, &self.server_key) else {
            return Ok(None);
        };
        let identity = Identity::from_pem(read(cert)?, read(key)?);
        let mut tls = ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE);
        if let Some(ca) = &self.client_ca {
            tls = tls.client_ca_root(Certificate::from_pem(read(ca)?));
        }
        Ok(Some(tls))
    }
}

/// Whether the wire is TLS.
pub(crate) fn is_encrypted(config: &TransportConfig) -> bool {
    config.scheme == crate::TLS_SCHEME
}

/// Reads a file that the configuration names.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| {
        // The text of the error may quote the file, which may hold a secret.
        let (kind, path) = (error.kind(), path.display());
        Error::config(format!("cannot read {path}: {kind}"))
    })
}

/// Reads `host:port`.
fn endpoint(text: &str, config: &TransportConfig) -> Result<Endpoint, Error> {
    let wrong = || {
        Error::config(format!(
            "transport \"{}\": {text:?} is no address; write it as host:port",
            config.name
        ))
    };
    let (host, port) = match text.rsplit_once(':').filter(|_| !text.ends_with(']')) {
        Some((host, port)) if !host.ends_with(':') || host.starts_with('[') => {
            (host, port.parse::<u16>().map_err(|_| wrong())?)
        }
        _ => (text, DEFAULT_PORT),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().map_err(|_| wrong())?.to_string(),
        None => host.to_owned(),
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_host) || (bare.is_none() && host.contains(':')) {
        return Err(wrong());
    }
    Ok(Endpoint {
        host,
        port: Some(port),
    })
}

/// How we reach what we listen at.
fn ourselves(listen: &Endpoint) -> Endpoint {
    let host = match listen.host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        Ok(IpAddr::V6(address)) if address.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
        _ => listen.host.clone(),
    };
    Endpoint {
        host,
        port: listen.port,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use anywire::{Config, ErrorKind};

    fn read(text: &str) -> Result<(GrpcConfig, Places), Error> {
        let config = Config::from_toml(text).unwrap();
        let config = config
            .resolve("main", "shop", &[&["grpc", "grpcs"]])
            .unwrap();
        GrpcConfig::from_transport(&config)
    }

    #[test]
    fn a_url_tells_peers_and_where_to_listen() {
        let (config, places) = read("url = 'grpc://127.0.0.1,localhost:7?listen=[::1]:9'").unwrap();
        assert_eq!(config, GrpcConfig::default());
        let shown: Vec<_> = places.peers.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.1:50051", "localhost:7"]);
        assert_eq!(places.listen.unwrap().to_string(), "[::1]:9");
        assert!(!places.is_self);
    }

    #[test]
    fn without_a_peer_we_call_ourselves() {
        let (_, places) =
            read("[transports.main]\nurl = 'grpc://?listen=0.0.0.0:7'\nallow_plaintext = true")
                .unwrap();
        assert!(places.is_self);
        assert_eq!(places.peers[0].to_string(), "127.0.0.1:7");
    }

    #[test]
    fn groups_have_addresses_of_their_own() {
        let (_, places) = read(
            "url = 'grpc://localhost'\n[transports.main.grpc.groups]\nbilling = ['localhost:1', '[::1]']",
        )
        .unwrap();
        let (name, addresses) = &places.groups[0];
        let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(
            (name.as_str(), shown),
            (
                "billing",
                vec!["localhost:1".to_owned(), "[::1]:50051".to_owned()]
            )
        );
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (text, part) in [
            ("url = 'grpc://'", "names nobody"),
            ("url = 'grpc://localhost/x'", "path"),
            ("url = 'grpc://localhost?lisen=a'", "lisen"),
            ("url = 'grpc://localhost?listen=a:b'", "a:b"),
            ("url = 'grpc://localhost?listen=::1'", "::1"),
            ("url = 'grpc://10.0.0.1'", "allow_plaintext"),
            ("url = 'grpc://?listen=0.0.0.0:1'", "allow_plaintext"),
            ("url = 'grpc://u:p@localhost'", "certificates"),
            ("url = 'grpcs://localhost?listen=0.0.0.0:1'", "server_cert"),
            (
                "url = 'grpc://localhost'\n[transports.main.grpc]\nmax_paylod = 1",
                "max_payload",
            ),
            (
                "url = 'grpc://localhost'\n[transports.main.grpc]\nmax_payload = 0",
                "max_payload",
            ),
            (
                "url = 'grpc://localhost'\n[transports.main.grpc]\nkeep_alive = '1ms'",
                "keep_alive",
            ),
            (
                "url = 'grpc://localhost'\n[transports.main.grpc]\nserver_key = 'x'",
                "server_cert",
            ),
            (
                "url = 'grpc://localhost'\n[transports.main.grpc]\ndescriptors = ['x']",
                "listen",
            ),
            (
                "url = 'grpc://localhost'\n[transports.main.grpc.groups]\nx = []",
                "`x`",
            ),
            (
                "url = 'grpc://localhost'\n[transports.main.grpc.groups]\nx = ['10.0.0.1']",
                "allow_plaintext",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }
}
