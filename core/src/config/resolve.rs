//! Which transport is which: names, URLs, sections, credentials.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::layer::{MAIN, TransportSection};
use super::nearest::{printable, suggestion};
use super::origin::{Origin, Said};
use super::secret::SecretSource;
use super::tree::{self, Data};
use super::{Config, TransportConfig, unknown_scheme};
use crate::{Error, Secret};

const NO_URL: &str = "set ANYWIRE_URL, or memory:// on purpose";

impl Config {
    /// The names of the transports that are configured, `main` among them only where it is.
    pub fn transports(&self) -> impl Iterator<Item = &str> {
        self.layer().transports.keys().map(String::as_str)
    }

    /// The address of a transport, as it may stand in a log: without credentials. `None`: it has no URL.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<String> {
        let url = self.layer().transports.get(name)?.url.as_ref()?;
        Some(match self.0.on_memory {
            true => "memory://".to_owned(),
            false => url.value.to_string(),
        })
    }

    /// The configuration of the transport `name` for `app`, with its secrets and with the section named after its scheme.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config): it is not configured or has no URL, or a secret cannot be read.
    pub fn transport(&self, name: &str, app: &str) -> Result<TransportConfig, Error> {
        self.transport_of(name, app, &[])
    }

    /// As [`transport`](Self::transport), for an app with these adapters, each given by its
    /// [schemes](crate::transport::Adapter::schemes): `main` without a URL is memory where no adapter of another wire is
    /// registered; a scheme without an adapter is an error; a section may bear any of its adapter's schemes.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), as above.
    pub fn resolve(
        &self,
        name: &str,
        app: &str,
        adapters: &[&[&str]],
    ) -> Result<TransportConfig, Error> {
        let known = adapters.concat();
        let has_url = |section: &TransportSection| section.url.is_some();
        let without_url = name == MAIN && !self.layer().transports.get(MAIN).is_some_and(has_url);
        let mut transport = if self.0.on_memory {
            self.must_exist(name)?;
            TransportConfig::bare(name, app, "memory")
        } else if without_url {
            if let Some(section) = self.layer().transports.get(MAIN) {
                let place = &section.origin;
                return Err(Error::config(format!(
                    "{place}: [transports.main] has no url: {NO_URL}"
                )));
            }
            if known.iter().any(|scheme| *scheme != "memory") {
                return Err(Error::config(format!(
                    "nothing says where messages go: {NO_URL}"
                )));
            }
            TransportConfig::bare(name, app, "memory")
        } else {
            return self.transport_of(name, app, adapters);
        };
        transport.subjects = Arc::clone(&self.0.rules);
        Ok(transport)
    }

    fn transport_of(
        &self,
        name: &str,
        app: &str,
        adapters: &[&[&str]],
    ) -> Result<TransportConfig, Error> {
        self.must_exist(name)?;
        if self.0.on_memory {
            return self.resolve(name, app, &[]);
        }
        let section = self.layer().transports.get(name);
        let url = section.and_then(|section| section.url.as_ref());
        let (Some(section), Some(url)) = (section, url) else {
            return Err(Error::config(format!(
                "transport \"{name}\" has no url: {NO_URL}"
            )));
        };
        let scheme = url.value.scheme.as_str();
        let own = [scheme];
        let schemes = adapters.iter().find(|schemes| schemes.contains(&scheme));
        if schemes.is_none() && !adapters.is_empty() {
            let error = unknown_scheme(scheme, &adapters.concat());
            return Err(error
                .with_context("transport", name)
                .with_context("at", &url.origin));
        }
        let user = credential(&section.user, &url.value.user, url, name, "user")?;
        let password = credential(
            &section.password,
            &url.value.password,
            url,
            name,
            "password",
        )?;
        let token = credential(&section.token, &None, url, name, "token")?;
        let (places, table) = section.of_schemes(name, schemes.copied().unwrap_or(&own))?;
        Ok(TransportConfig {
            endpoints: url.value.endpoints.clone(),
            path: url.value.path.clone(),
            parameters: url.value.parameters.clone(),
            user: user.map(|user| user.expose().to_owned()),
            password,
            token,
            tls: section.tls(),
            allow_plaintext: super::or(&section.allow_plaintext, false),
            stream_heartbeat: super::or(
                &section.stream_heartbeat,
                super::defaults::STREAM_HEARTBEAT,
            ),
            section: table,
            subjects: Arc::clone(&self.0.rules),
            places,
            ..TransportConfig::bare(name, app, scheme)
        })
    }

    /// Checks that every transport has a URL and that every name of one leads to one.
    pub(super) fn check_transports(&self) -> Result<(), Error> {
        let layer = self.layer();
        for (name, section) in &layer.transports {
            if section.url.is_none() && name != MAIN {
                let place = &section.origin;
                return Err(Error::config(format!(
                    "{place}: [transports.{name}] has no url; write it as url = \"scheme://host:port\""
                )));
            }
        }
        let handlers = layer
            .handlers
            .values()
            .chain(layer.handlers_without_case.values());
        let names = [&layer.top.events, &layer.top.calls].into_iter();
        let names = names.chain(handlers.map(|section| &section.keys.transport));
        let names = names.chain(layer.subjects.iter().map(|section| &section.keys.transport));
        for said in names.flatten() {
            self.must_be_known(said)?;
        }
        Ok(())
    }

    /// Refuses the name of a transport that is not configured.
    pub(super) fn must_be_known(&self, said: &Said<String>) -> Result<(), Error> {
        self.must_exist(&said.value)
            .map_err(|error| Error::config(format!("{}: {error}", said.origin)))
    }

    fn must_exist(&self, name: &str) -> Result<(), Error> {
        let mut known: Vec<&str> = self.transports().collect();
        if !known.contains(&MAIN) {
            known.push(MAIN);
        }
        if known.contains(&name) {
            return Ok(());
        }
        let hint = suggestion(name, &known);
        let name = printable(name);
        Err(Error::config(format!(
            "transport \"{name}\" is not configured; {hint}"
        )))
    }
}

impl TransportSection {
    /// The section for the adapter that answers to `schemes`; the others are for other wires.
    fn of_schemes(
        &self,
        name: &str,
        schemes: &[&str],
    ) -> Result<(BTreeMap<String, Origin>, toml::Table), Error> {
        let mut found = None;
        for (scheme, node) in &self.sections {
            let Data::Table(table) = &node.data else {
                continue;
            };
            if !schemes.contains(&scheme.as_str()) {
                tracing::info!(
                    "{}: [transports.{name}.{scheme}] is for another wire and is skipped",
                    node.origin
                );
            } else if let Some(first) = found.replace(table) {
                let first = first
                    .values()
                    .next()
                    .map_or(&self.origin, |node| &node.origin);
                return Err(node.error(format!(
                    "[transports.{name}.{scheme}] and another section for the same adapter ({first}); keep one of them"
                )));
            }
        }
        let Some(table) = found else {
            return Ok(Default::default());
        };
        let places = table.iter();
        let places = places.map(|(key, node)| (key.clone(), node.origin.clone()));
        Ok((places.collect(), tree::to_toml(table)))
    }
}

/// The credential that holds: the URL's own, or that of a key, which must then be of a stronger layer.
fn credential<T>(
    said: &Option<Said<SecretSource>>,
    in_url: &Option<Secret>,
    url: &Said<T>,
    transport: &str,
    key: &str,
) -> Result<Option<Secret>, Error> {
    let Some(said) = said else {
        return Ok(in_url.clone());
    };
    let origin = &said.origin;
    if in_url.is_some() && said.rank <= url.rank {
        let url = &url.origin;
        return Err(Error::config(format!(
            "the {key} of transport \"{transport}\" is given twice: in the url ({url}) and by a key ({origin}); keep one of them"
        )));
    }
    said.value.reveal(&origin.to_string()).map(Some)
}
