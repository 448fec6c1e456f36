//! Kinds of values: what is expected, how it is read, which are refused, how it is shown.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::IntoDeserializer;
use serde::de::value::{Error as Refused, StrDeserializer};
use serde::{Serialize, de::DeserializeOwned};

use super::nearest::printable;
use super::origin::{Origin, Said};
use super::tree::{Data, Node};
use super::{AfterFailure, Unrouted};
use crate::pattern::publish_subscribe::{Guarantee, Order, Provision, Start};
use crate::{Codec, Error, Pattern};

/// The longest wait of a schedule: the top rung of the delay ladder of the wires, about four years.
const LONGEST_STEP: Duration = Duration::from_secs(1 << 27);
const LONGEST_RETENTION: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

pub(super) struct Kind<T> {
    expected: &'static str,
    read: fn(&Node) -> Option<T>,
    is_good: fn(&T) -> bool,
    pub(super) show: fn(&T) -> String,
}

impl<T: Clone> Kind<T> {
    /// Reads `node`, which stands under `key` in the section `path`.
    ///
    /// # Errors
    /// `Config`: place, key and what is expected; never the value, which may be a misplaced secret.
    pub(super) fn read(&self, node: &Node, key: &str, path: &str) -> Result<Said<T>, Error> {
        match (self.read)(node).filter(self.is_good) {
            Some(value) => Ok(Said {
                value,
                origin: node.origin.clone(),
                rank: node.rank,
            }),
            None => Err(node.error(format!(
                "\"{key}\"{} must be {}",
                section(path),
                self.expected
            ))),
        }
    }

    /// Takes a value from the code of `owner`.
    ///
    /// # Errors
    /// `Config`, naming owner and key.
    pub(super) fn code(
        &self,
        value: Option<&T>,
        key: &str,
        owner: &str,
    ) -> Result<Option<Said<T>>, Error> {
        match value {
            Some(value) if !(self.is_good)(value) => Err(Error::config(format!(
                "{}: \"{key}\" of {owner} must be {}",
                Origin::Code,
                self.expected
            ))),
            other => Ok(other.cloned().map(Said::in_code)),
        }
    }
}

/// ` in [path]`, or nothing at the top level.
pub(super) fn section(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!(" in [{}]", printable(path))
    }
}

fn text(node: &Node) -> Option<String> {
    node.text().map(str::to_owned)
}

pub(super) fn quoted(text: impl Into<String>) -> String {
    toml::Value::String(text.into()).to_string()
}

fn whole<T: TryFrom<i64>>(node: &Node) -> Option<T> {
    match node.data {
        Data::Integer(value) => value.try_into().ok(),
        _ => None,
    }
}

fn duration(node: &Node) -> Option<Duration> {
    humantime::parse_duration(node.text()?).ok()
}

fn show_duration(value: &Duration) -> String {
    format!("\"{}\"", humantime::format_duration(*value))
}

fn variant<T: DeserializeOwned>(node: &Node) -> Option<T> {
    let text: StrDeserializer<'_, Refused> = node.text()?.into_deserializer();
    T::deserialize(text).ok()
}

fn show_variant<T: Serialize>(value: &T) -> String {
    toml::Value::try_from(value).map_or_else(|_| "?".to_owned(), |value| value.to_string())
}

const fn any<T>(_: &T) -> bool {
    true
}

const fn of_variants<T: DeserializeOwned + Serialize>(expected: &'static str) -> Kind<T> {
    Kind {
        expected,
        read: variant::<T>,
        is_good: any::<T>,
        show: show_variant::<T>,
    }
}

pub(super) const GUARANTEE: Kind<Guarantee> = of_variants("\"at_least_once\" or \"at_most_once\"");
pub(super) const ORDER: Kind<Order> = of_variants("\"none\", \"key\" or \"key-in-group\"");
pub(super) const AFTER_FAILURE: Kind<AfterFailure> = of_variants("\"pass\" or \"hold\"");
pub(super) const UNROUTED: Kind<Unrouted> = of_variants("\"refuse\", \"warn\" or \"ignore\"");
pub(super) const START: Kind<Start> = Kind {
    expected: "\"earliest\", \"latest\", a time such as \"2026-11-01T00:00:00Z\" or a position",
    read: |node| node.text()?.parse().ok(),
    is_good: any::<Start>,
    show: |start| quoted(start.to_string()),
};
pub(super) const PROVISION: Kind<Provision> = of_variants("\"create\", \"verify\" or \"none\"");

pub(super) const CODEC: Kind<Codec> = Kind {
    expected: "a codec of this build: \"json\", or with their features \"msgpack\" and \"cbor\"",
    read: variant::<Codec>,
    is_good: any::<Codec>,
    show: |codec| quoted(format!("{codec:?}").to_ascii_lowercase()),
};

pub(super) const FLAG: Kind<bool> = Kind {
    expected: "true or false",
    read: |node| match node.data {
        Data::Bool(value) => Some(value),
        _ => None,
    },
    is_good: any::<bool>,
    show: bool::to_string,
};

pub(super) const GROUP: Kind<String> = Kind {
    expected: "a name: 1 to 128 characters, none of them a control character",
    read: text,
    is_good: |text| {
        let fits = !text.trim().is_empty() && text.chars().count() <= 128;
        fits && !text.contains(char::is_control)
    },
    show: |text| quoted(text),
};

pub(super) const TRANSPORT: Kind<String> = Kind {
    expected: "the name of a transport: a lower-case letter, then lower-case letters, digits, `-` or `_`",
    read: text,
    is_good: |text| is_transport_name(text),
    show: |text| quoted(text),
};

/// Lower case, since environment variables are matched without regard to case.
pub(super) fn is_transport_name(text: &str) -> bool {
    let rest = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    let starts = text.starts_with(|first: char| first.is_ascii_lowercase());
    starts && text.len() <= 64 && text.bytes().all(rest)
}

pub(super) const TEXT: Kind<String> = Kind {
    expected: "a text that is not empty",
    read: text,
    is_good: |text| !text.is_empty(),
    show: |text| quoted(text),
};

pub(super) const PATH: Kind<PathBuf> = Kind {
    expected: "the path of a file",
    read: |node| node.text().map(PathBuf::from),
    is_good: |path| !path.as_os_str().is_empty(),
    show: |path| quoted(path.display().to_string()),
};

pub(super) const VARIABLE: Kind<String> = Kind {
    expected: "the name of an environment variable",
    read: text,
    is_good: |text| {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        !text.is_empty() && text.bytes().all(is_name)
    },
    show: |text| quoted(text),
};

pub(super) const PATTERN: Kind<Pattern> = Kind {
    expected: "a pattern such as \"audit.>\"",
    read: |node| Pattern::parse(node.text()?).ok(),
    is_good: any::<Pattern>,
    show: |pattern| quoted(pattern.to_string()),
};

pub(super) const CONCURRENCY: Kind<usize> = Kind {
    expected: "a whole number from 1 to 1000000",
    read: whole,
    is_good: |value| (1..=1_000_000).contains(value),
    show: usize::to_string,
};

pub(super) const REPLICAS: Kind<u32> = Kind {
    expected: "a whole number from 1 to 99",
    read: whole,
    is_good: |value| (1..=99).contains(value),
    show: u32::to_string,
};

pub(super) const TIMEOUT: Kind<Duration> = Kind {
    expected: "a duration above zero, such as \"5s\"",
    read: duration,
    is_good: |value| !value.is_zero() && *value <= LONGEST_STEP,
    show: show_duration,
};

pub(super) const GRACE: Kind<Duration> = Kind {
    expected: "a duration such as \"25s\"",
    read: duration,
    is_good: |value| *value <= LONGEST_STEP,
    show: show_duration,
};

pub(super) const RETENTION: Kind<Duration> = Kind {
    expected: "a duration from \"1s\" to a hundred years, such as \"7d\"",
    read: duration,
    is_good: |value| (Duration::from_secs(1)..=LONGEST_RETENTION).contains(value),
    show: show_duration,
};

pub(super) const RETRY: Kind<Vec<Duration>> = Kind {
    expected: "a list of at most 100 durations such as [\"200ms\", \"5s\"], none longer than 2^27 seconds",
    read: |node| match &node.data {
        Data::Array(nodes) => nodes.iter().map(duration).collect(),
        _ => None,
    },
    is_good: |steps| steps.len() <= 100 && steps.iter().all(|step| *step <= LONGEST_STEP),
    show: |steps| {
        let steps: Vec<String> = steps.iter().map(show_duration).collect();
        format!("[{}]", steps.join(", "))
    },
};
