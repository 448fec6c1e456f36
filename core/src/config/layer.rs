//! A layer of configuration, read and checked by itself: what is overridden must be right too.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::keys::{HandlerKeys, Keys, SubjectKeys, TlsKeys, TopKeys};
use super::kind::{self, section};
use super::nearest::{nearest, printable, suggestion};
use super::origin::{Origin, Rank, Said, merge};
use super::secret::SecretSource;
use super::tree::{self, Data, Node};
use super::url::{self, Url};
use super::{SubjectRule, Tls};
use crate::{Error, Secret};

/// The transport that the top-level `url` configures.
pub(super) const MAIN: &str = "main";

#[derive(Clone, Default)]
pub(super) struct Layer {
    pub(super) top: TopKeys,
    pub(super) defaults: HandlerKeys,
    pub(super) handlers: BTreeMap<String, HandlerSection>,
    /// From the environment, whose names have no case: in lower case.
    pub(super) handlers_without_case: BTreeMap<String, HandlerSection>,
    pub(super) transports: BTreeMap<String, TransportSection>,
    /// The stronger layer's first.
    pub(super) subjects: Vec<RuleSection>,
}

#[derive(Clone)]
pub(super) struct HandlerSection {
    pub(super) origin: Origin,
    pub(super) keys: HandlerKeys,
}

#[derive(Clone)]
pub(super) struct RuleSection {
    pub(super) origin: Origin,
    pub(super) rank: Rank,
    pub(super) keys: SubjectKeys,
    pub(super) rule: SubjectRule,
}

#[derive(Clone)]
pub(super) struct TransportSection {
    pub(super) origin: Origin,
    pub(super) url: Option<Said<Url>>,
    pub(super) user: Option<Said<SecretSource>>,
    pub(super) password: Option<Said<SecretSource>>,
    pub(super) token: Option<Said<SecretSource>>,
    pub(super) tls: TlsKeys,
    pub(super) allow_plaintext: Option<Said<bool>>,
    pub(super) stream_heartbeat: Option<Said<Duration>>,
    /// The sections for single schemes.
    pub(super) sections: BTreeMap<String, Node>,
}

impl Layer {
    /// Reads what one source says.
    ///
    /// # Errors
    /// `Config`, for the first key that is unknown or of the wrong kind.
    pub(super) fn read(root: &Node) -> Result<Self, Error> {
        const SECTIONS: [&str; 5] = ["url", "transports", "subjects", "defaults", "handlers"];
        let mut layer = Self::default();
        for (key, node) in root.table("")? {
            match key.as_str() {
                "url" => layer.read_short_url(node)?,
                "transports" => layer.read_transports(node)?,
                "subjects" => layer.read_subjects(node)?,
                "defaults" => layer.defaults = read_defaults(node)?,
                "handlers" => layer.read_handlers(node)?,
                _ if layer.top.read(key, node, "")? => {}
                _ => {
                    return Err(unknown(
                        key,
                        node,
                        "",
                        &[&SECTIONS, TopKeys::NAMES].concat(),
                    ));
                }
            }
        }
        Ok(layer)
    }

    /// Puts `high` over this, each key by the strength of its layer.
    pub(super) fn merge(&mut self, high: Self) {
        self.top.merge(&high.top);
        self.defaults.merge(&high.defaults);
        merge_handlers(&mut self.handlers, high.handlers);
        merge_handlers(&mut self.handlers_without_case, high.handlers_without_case);
        for (name, section) in high.transports {
            match self.transports.get_mut(&name) {
                Some(low) => low.merge(section),
                None => drop(self.transports.insert(name, section)),
            }
        }
        self.subjects.splice(0..0, high.subjects);
        self.subjects.sort_by_key(|rule| Reverse(rule.rank));
    }

    /// Remembers the values of the environment variables that hold secrets.
    pub(super) fn capture(&mut self, variable: &dyn Fn(&str) -> Option<String>) {
        for transport in self.transports.values_mut() {
            let secrets = [
                &mut transport.user,
                &mut transport.password,
                &mut transport.token,
            ];
            for said in secrets.into_iter().flatten() {
                if let SecretSource::Variable(name, value @ None) = &mut said.value {
                    *value = variable(name).map(Secret::new);
                }
            }
        }
    }

    fn read_short_url(&mut self, node: &Node) -> Result<(), Error> {
        let mut section = TransportSection::new(&node.origin);
        section.read_url(node, "")?;
        self.join_transport(MAIN, section)
    }

    fn read_transports(&mut self, node: &Node) -> Result<(), Error> {
        for (name, node) in node.table("transports")? {
            if !kind::is_transport_name(name) {
                let name = printable(name);
                return Err(node.error(format!(
                    "\"{name}\" cannot name a transport; write a lower-case letter, then lower-case letters, digits, `-` or `_`"
                )));
            }
            let section = TransportSection::read(node, &format!("transports.{name}"))?;
            self.join_transport(name, section)?;
        }
        Ok(())
    }

    fn join_transport(&mut self, name: &str, section: TransportSection) -> Result<(), Error> {
        match self.transports.get_mut(name) {
            Some(low) => low.join(section)?,
            None => drop(self.transports.insert(name.to_owned(), section)),
        }
        Ok(())
    }

    fn read_subjects(&mut self, node: &Node) -> Result<(), Error> {
        let Data::Array(rules) = &node.data else {
            return Err(
                node.error("\"subjects\" must be a list of tables, each under [[subjects]]")
            );
        };
        let rules = rules.iter().map(RuleSection::read);
        self.subjects = rules.collect::<Result<_, _>>()?;
        Ok(())
    }

    fn read_handlers(&mut self, node: &Node) -> Result<(), Error> {
        for (name, node) in node.table("handlers")? {
            let keys = read_handler(node, &format!("handlers.{name}"))?;
            let origin = node.origin.clone();
            let (handlers, name) = match origin {
                Origin::Variable(_) => (&mut self.handlers_without_case, name.to_ascii_lowercase()),
                _ => (&mut self.handlers, name.clone()),
            };
            let section = HandlerSection { origin, keys };
            merge_handlers(handlers, BTreeMap::from([(name, section)]));
        }
        Ok(())
    }
}

fn merge_handlers(
    low: &mut BTreeMap<String, HandlerSection>,
    high: BTreeMap<String, HandlerSection>,
) {
    for (name, section) in high {
        match low.get_mut(&name) {
            Some(low) => low.keys.merge(&section.keys),
            None => drop(low.insert(name, section)),
        }
    }
}

fn read_handler(node: &Node, path: &str) -> Result<HandlerKeys, Error> {
    let mut keys = HandlerKeys::default();
    for (key, node) in node.table(path)? {
        if !keys.read(key, node, path)? {
            return Err(unknown(key, node, path, HandlerKeys::NAMES));
        }
    }
    Ok(keys)
}

fn read_defaults(node: &Node) -> Result<HandlerKeys, Error> {
    let keys = read_handler(node, "defaults")?;
    match &keys.transport {
        Some(said) => Err(Error::config(format!(
            "{}: \"transport\" in [defaults] would not reach those who send; set `events` or `calls` at the top level",
            said.origin
        ))),
        None => Ok(keys),
    }
}

impl RuleSection {
    fn read(node: &Node) -> Result<Self, Error> {
        let mut keys = SubjectKeys::default();
        let mut native = BTreeMap::new();
        for (key, node) in node.table("subjects")? {
            if keys.read(key, node, "subjects")? {
                continue;
            }
            let table = scheme_section(key, node, "subjects", SubjectKeys::NAMES)?;
            native.insert(key.clone(), tree::to_toml(table));
        }
        let Some(pattern) = keys.pattern.clone() else {
            return Err(node.error("a rule in [[subjects]] needs a \"match\", such as \"audit.>\""));
        };
        let rule = SubjectRule {
            pattern: pattern.value,
            transport: value(&keys.transport),
            guarantee: value(&keys.guarantee),
            retention: value(&keys.retention),
            replicas: value(&keys.replicas),
            unrouted: value(&keys.unrouted),
            declare: value(&keys.declare).unwrap_or_default(),
            native,
        };
        Ok(Self {
            origin: node.origin.clone(),
            rank: node.rank,
            keys,
            rule,
        })
    }
}

impl TransportSection {
    const KEYS: [&'static str; 13] = [
        "url",
        "user",
        "user_file",
        "user_env",
        "password",
        "password_file",
        "password_env",
        "token",
        "token_file",
        "token_env",
        "tls",
        "allow_plaintext",
        "stream_heartbeat",
    ];

    fn new(origin: &Origin) -> Self {
        Self {
            origin: origin.clone(),
            url: None,
            user: None,
            password: None,
            token: None,
            tls: TlsKeys::default(),
            allow_plaintext: None,
            stream_heartbeat: None,
            sections: BTreeMap::new(),
        }
    }

    fn read(node: &Node, path: &str) -> Result<Self, Error> {
        let mut section = Self::new(&node.origin);
        for (key, node) in node.table(path)? {
            match key.as_str() {
                "url" => section.read_url(node, path)?,
                "tls" => section.tls = read_tls(node, &format!("{path}.tls"))?,
                "allow_plaintext" => {
                    section.allow_plaintext = Some(kind::FLAG.read(node, key, path)?);
                }
                "stream_heartbeat" => {
                    section.stream_heartbeat = Some(kind::TIMEOUT.read(node, key, path)?);
                }
                _ if Self::KEYS.contains(&key.as_str()) => section.read_secret(key, node, path)?,
                _ => {
                    scheme_section(key, node, path, &Self::KEYS)?;
                    section.sections.insert(key.clone(), node.clone());
                }
            }
        }
        Ok(section)
    }

    fn read_url(&mut self, node: &Node, path: &str) -> Result<(), Error> {
        let text = kind::TEXT.read(node, "url", path)?.value;
        let url: Url = text.parse().map_err(|why| {
            let shown = match text.contains("://") {
                true => format!(" ({})", printable(&text)),
                false => String::new(),
            };
            node.error(format!("\"url\"{} is wrong: {why}{shown}", section(path)))
        })?;
        self.url = Some(Said {
            value: url,
            origin: node.origin.clone(),
            rank: node.rank,
        });
        Ok(())
    }

    fn read_secret(&mut self, key: &str, node: &Node, path: &str) -> Result<(), Error> {
        let (name, source) = if let Some(name) = key.strip_suffix("_file") {
            let path = kind::PATH.read(node, key, path)?.value;
            (name, SecretSource::File(path))
        } else if let Some(name) = key.strip_suffix("_env") {
            let variable = kind::VARIABLE.read(node, key, path)?.value;
            (name, SecretSource::Variable(variable, None))
        } else {
            let text = kind::TEXT.read(node, key, path)?.value;
            (key, SecretSource::Inline(Secret::new(text)))
        };
        let slot = match name {
            "user" => &mut self.user,
            "password" => &mut self.password,
            _ => &mut self.token,
        };
        if let Some(other) = slot {
            let (other, ending) = (&other.origin, other.value.shown().0);
            return Err(node.error(format!(
                "\"{key}\"{} says the same as \"{name}{ending}\" ({other}); keep one of them",
                section(path)
            )));
        }
        *slot = Some(Said {
            value: source,
            origin: node.origin.clone(),
            rank: node.rank,
        });
        Ok(())
    }

    /// Joins the short form (a top-level `url`) and the section of the same layer.
    fn join(&mut self, other: Self) -> Result<(), Error> {
        if let (Some(mine), Some(other)) = (&self.url, &other.url) {
            let (mine, other) = (&mine.origin, &other.origin);
            return Err(Error::config(format!(
                "{mine} and {other} both set the url of the transport \"main\"; keep one of them"
            )));
        }
        self.merge(other);
        Ok(())
    }

    fn merge(&mut self, high: Self) {
        merge(&mut self.url, &high.url);
        merge(&mut self.user, &high.user);
        merge(&mut self.password, &high.password);
        merge(&mut self.token, &high.token);
        self.tls.merge(&high.tls);
        merge(&mut self.allow_plaintext, &high.allow_plaintext);
        merge(&mut self.stream_heartbeat, &high.stream_heartbeat);
        for (scheme, node) in high.sections {
            match self.sections.get_mut(&scheme) {
                Some(low) => low.merge(&node),
                None => drop(self.sections.insert(scheme, node)),
            }
        }
        self.drop_what_belongs_to_another_url();
    }

    /// Credentials and TLS of a weaker layer were meant for that layer's server: they must not reach this one.
    fn drop_what_belongs_to_another_url(&mut self) {
        let Some(rank) = self.url.as_ref().map(|url| url.rank) else {
            return;
        };
        fn keep<T>(said: &mut Option<Said<T>>, rank: Rank) {
            said.take_if(|said| said.rank < rank);
        }
        keep(&mut self.user, rank);
        keep(&mut self.password, rank);
        keep(&mut self.token, rank);
        keep(&mut self.tls.ca, rank);
        keep(&mut self.tls.cert, rank);
        keep(&mut self.tls.key, rank);
        keep(&mut self.tls.server_name, rank);
        keep(&mut self.allow_plaintext, rank);
    }

    /// The TLS settings that hold.
    pub(super) fn tls(&self) -> Tls {
        Tls {
            ca: value(&self.tls.ca),
            cert: value(&self.tls.cert),
            key: value(&self.tls.key),
            server_name: value(&self.tls.server_name),
        }
    }
}

fn read_tls(node: &Node, path: &str) -> Result<TlsKeys, Error> {
    let mut tls = TlsKeys::default();
    for (key, node) in node.table(path)? {
        if !tls.read(key, node, path)? {
            return Err(unknown(key, node, path, TlsKeys::NAMES));
        }
    }
    Ok(tls)
}

/// What is not ours may be a section for the adapter of a scheme, if it is a table and no mistyped key.
fn scheme_section<'a>(
    key: &str,
    node: &'a Node,
    path: &str,
    known: &[&str],
) -> Result<&'a tree::Table, Error> {
    match &node.data {
        Data::Table(table) if url::is_scheme(key) && nearest(key, known).is_none() => Ok(table),
        _ => Err(unknown(key, node, path, known)),
    }
}

fn unknown(key: &str, node: &Node, path: &str, known: &[&str]) -> Error {
    let place = match path {
        "" => " at the top level".to_owned(),
        path => section(path),
    };
    let hint = suggestion(key, known);
    node.error(format!("unknown key \"{}\"{place}; {hint}", printable(key)))
}

/// The value alone.
pub(super) fn value<T: Clone>(said: &Option<Said<T>>) -> Option<T> {
    said.as_ref().map(|said| said.value.clone())
}
