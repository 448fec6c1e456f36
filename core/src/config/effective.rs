//! The effective configuration, for people.

use std::fmt;

use super::Config;
use super::keys::{Keys, Shown};
use super::kind;
use super::layer::{RuleSection, TransportSection};
use super::origin::{Origin, Said};
use super::secret::{SecretSource, is_secret_name, masked};
use super::tree::{self, Data, Node};

/// Every key that holds, as `key = value  # origin`, one a line; secrets are masked.
///
/// A [`Handler`](super::Handler) displays its own in the same way, with what the code says.
#[derive(Clone, Copy)]
pub struct Effective<'a>(&'a Config);

impl Config {
    /// The effective configuration: displayed, it lists every key with its value and where that came from.
    ///
    /// ```
    /// use anywire::Config;
    ///
    /// let config = Config::from_toml("url = 'nats://u:hunter2@localhost'")?;
    /// let printed = config.effective().to_string();
    /// assert!(printed.contains("url = \"nats://[secret]@localhost\"  # configuration:1"));
    /// # Ok::<(), anywire::Error>(())
    /// ```
    #[must_use]
    pub fn effective(&self) -> Effective<'_> {
        Effective(self)
    }
}

impl Effective<'_> {
    pub(super) fn lines(&self) -> Vec<String> {
        let config = self.0;
        let layer = config.layer();
        let mut lines = Lines(Vec::new());
        lines.section("", layer.top.said(), self.top_defaults());
        for (name, section) in &layer.transports {
            lines.transport(&format!("transports.{name}"), section);
        }
        lines.section("defaults", layer.defaults.said(), handler_defaults());
        for (index, section) in layer.subjects.iter().enumerate() {
            lines.rule(&format!("subjects[{index}]"), section);
        }
        for (name, section) in &layer.handlers {
            lines.section(&format!("handlers.{name}"), section.keys.said(), Vec::new());
        }
        for (name, section) in &layer.handlers_without_case {
            lines.section(&format!("handlers.{name}"), section.keys.said(), Vec::new());
        }
        lines.0
    }

    fn top_defaults(&self) -> Vec<(&'static str, String)> {
        let config = self.0;
        let mut keys = vec![
            (
                "events",
                (kind::TRANSPORT.show)(&config.events_transport().to_owned()),
            ),
            (
                "calls",
                (kind::TRANSPORT.show)(&config.calls_transport().to_owned()),
            ),
            ("grace", (kind::GRACE.show)(&config.grace())),
            (
                "request_timeout",
                (kind::TIMEOUT.show)(&config.request_timeout()),
            ),
            ("emit_timeout", (kind::TIMEOUT.show)(&config.emit_timeout())),
            ("retention", (kind::RETENTION.show)(&config.retention())),
            (
                "dead_letter_retention",
                (kind::RETENTION.show)(&config.dead_letter_retention()),
            ),
            ("provision", (kind::PROVISION.show)(&config.provision())),
        ];
        if let Some(timeout) = config.connect_timeout() {
            keys.push(("connect_timeout", (kind::TIMEOUT.show)(&timeout)));
        }
        keys
    }
}

/// `group` and `start` are missing: they depend on the app and on the handler.
fn handler_defaults() -> Vec<(&'static str, String)> {
    use super::defaults::{CONCURRENCY, RETRY, TIMEOUT};
    vec![
        ("concurrency", (kind::CONCURRENCY.show)(&CONCURRENCY)),
        ("timeout", (kind::TIMEOUT.show)(&TIMEOUT)),
        ("retry", (kind::RETRY.show)(&RETRY.to_vec())),
        ("delivery", (kind::GUARANTEE.show)(&Default::default())),
        ("order", (kind::ORDER.show)(&Default::default())),
        (
            "after_failure",
            (kind::AFTER_FAILURE.show)(&Default::default()),
        ),
        ("codec", (kind::CODEC.show)(&Default::default())),
    ]
}

impl fmt::Display for Effective<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.lines() {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Effective<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lines()).finish()
    }
}

struct Lines(Vec<String>);

impl Lines {
    fn add(&mut self, path: &str, key: &str, value: &str, origin: &Origin) {
        let dot = if path.is_empty() { "" } else { "." };
        self.0
            .push(format!("{path}{dot}{key} = {value}  # {origin}"));
    }

    fn text(&mut self, path: &str, key: &str, text: &str, origin: &Origin) {
        self.add(path, key, &kind::quoted(text), origin);
    }

    /// What is said, then the defaults of what is not.
    fn section(&mut self, path: &str, said: Vec<Shown<'_>>, defaults: Vec<(&'static str, String)>) {
        let is_said = |key: &str| said.iter().any(|(said, ..)| *said == key);
        let defaults = defaults.into_iter().filter(|(key, _)| !is_said(key));
        let defaults: Vec<_> = defaults.collect();
        for (key, value, origin) in said {
            self.add(path, key, &value, origin);
        }
        for (key, value) in defaults {
            self.add(path, key, &value, &Origin::Default);
        }
    }

    fn transport(&mut self, path: &str, section: &TransportSection) {
        if let Some(url) = &section.url {
            self.text(path, "url", &url.value.to_string(), &url.origin);
        }
        self.secret(path, "user", &section.user);
        self.secret(path, "password", &section.password);
        self.secret(path, "token", &section.token);
        self.section(&format!("{path}.tls"), section.tls.said(), Vec::new());
        if let Some(said) = &section.allow_plaintext {
            self.add(
                path,
                "allow_plaintext",
                &said.value.to_string(),
                &said.origin,
            );
        }
        if let Some(said) = &section.stream_heartbeat {
            self.add(
                path,
                "stream_heartbeat",
                &(kind::TIMEOUT.show)(&said.value),
                &said.origin,
            );
        }
        for (scheme, node) in &section.sections {
            self.node(&format!("{path}.{scheme}"), node);
        }
    }

    fn secret(&mut self, path: &str, key: &str, said: &Option<Said<SecretSource>>) {
        if let Some(said) = said {
            let (ending, shown) = said.value.shown();
            self.text(path, &format!("{key}{ending}"), &shown, &said.origin);
        }
    }

    fn rule(&mut self, path: &str, section: &RuleSection) {
        self.section(path, section.keys.said(), Vec::new());
        for (scheme, table) in &section.rule.native {
            let table = toml::Value::Table(masked(table)).to_string();
            self.add(path, scheme, &table, &section.origin);
        }
    }

    /// The keys of an adapter's section, each with its own origin.
    fn node(&mut self, path: &str, node: &Node) {
        let Data::Table(table) = &node.data else {
            return;
        };
        for (key, node) in table {
            match &node.data {
                Data::Table(_) if !is_secret_name(key) => self.node(&format!("{path}.{key}"), node),
                _ => {
                    let one = tree::Table::from([(key.clone(), node.clone())]);
                    let shown = masked(&tree::to_toml(&one));
                    for value in shown.values() {
                        self.add(path, key, &value.to_string(), &node.origin);
                    }
                }
            }
        }
    }
}
