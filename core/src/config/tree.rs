//! What a layer says before it is understood: values, each with its origin.

use std::collections::BTreeMap;

use smol_str::SmolStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::nearest::printable;
use super::origin::{Origin, Rank};
use crate::Error;

/// A value of a layer.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) data: Data,
    pub(super) origin: Origin,
    pub(super) rank: Rank,
    /// The text of an environment variable, where it is also a TOML value: a password may be all digits.
    raw: Option<String>,
}

#[derive(Clone)]
pub(super) enum Data {
    Text(String),
    Bool(bool),
    Integer(i64),
    Float(f64),
    Datetime(toml::value::Datetime),
    Array(Vec<Node>),
    Table(Table),
}

pub(super) type Table = BTreeMap<String, Node>;

impl Node {
    /// The text, if this is one.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(text) => Some(text),
            Data::Bool(_)
            | Data::Integer(_)
            | Data::Float(_)
            | Data::Datetime(_)
            | Data::Array(_)
            | Data::Table(_) => self.raw.as_deref(),
        }
    }

    /// The keys of a table.
    ///
    /// # Errors
    /// `Config`: it is not a table.
    pub(super) fn table(&self, path: &str) -> Result<&Table, Error> {
        match &self.data {
            Data::Table(table) => Ok(table),
            _ => Err(self.error(format!("[{}] must be a table", printable(path)))),
        }
    }

    /// An error that names the place.
    pub(super) fn error(&self, message: impl std::fmt::Display) -> Error {
        Error::config(format!("{}: {message}", self.origin))
    }

    /// Puts what `high` says over what this says, key by key.
    pub(super) fn merge(&mut self, high: &Self) {
        match (&mut self.data, &high.data) {
            (Data::Table(low), Data::Table(high)) => {
                for (key, node) in high {
                    match low.get_mut(key) {
                        Some(low) => low.merge(node),
                        None => drop(low.insert(key.clone(), node.clone())),
                    }
                }
            }
            _ if high.rank >= self.rank => *self = high.clone(),
            _ => {}
        }
    }

    /// As a value of the `toml` crate, for an adapter.
    pub(super) fn to_value(&self) -> toml::Value {
        match &self.data {
            Data::Text(text) => toml::Value::String(text.clone()),
            Data::Bool(value) => toml::Value::Boolean(*value),
            Data::Integer(value) => toml::Value::Integer(*value),
            Data::Float(value) => toml::Value::Float(*value),
            Data::Datetime(value) => toml::Value::Datetime(*value),
            Data::Array(nodes) => toml::Value::Array(nodes.iter().map(Self::to_value).collect()),
            Data::Table(table) => toml::Value::Table(to_toml(table)),
        }
    }
}

pub(super) fn to_toml(table: &Table) -> toml::Table {
    let values = table.iter();
    values
        .map(|(key, node)| (key.clone(), node.to_value()))
        .collect()
}

/// A document of its own: a file, or what the program forces.
pub(super) enum Document<'a> {
    File(&'a str),
    Force,
}

impl Document<'_> {
    /// Reads the document's text.
    ///
    /// # Errors
    /// `Config`, with file and line; nothing of the text is repeated, since it may be a secret.
    pub(super) fn parse(&self, text: &str, turn: u32) -> Result<Node, Error> {
        let reader = Reader {
            place: |offset| self.place(text, offset),
            turn,
        };
        match DeTable::parse(text) {
            Ok(table) => {
                let data = Data::Table(reader.table(table.get_ref())?);
                Ok(reader.node(0, data))
            }
            Err(error) => {
                let origin = self.place(text, error.span().map_or(0, |span| span.start));
                let why = error.message();
                Err(Error::config(format!("{origin}: not valid TOML: {why}")))
            }
        }
    }

    fn place(&self, text: &str, offset: usize) -> Origin {
        match self {
            Self::File(name) => Origin::File {
                name: SmolStr::new(name),
                line: 1 + text
                    .bytes()
                    .take(offset)
                    .filter(|byte| *byte == b'\n')
                    .count(),
            },
            Self::Force => Origin::Force,
        }
    }
}

/// Reads settings that another program part has parsed.
pub(super) fn from_settings(table: toml::Table, turn: u32) -> Node {
    let node = |data| Node {
        data,
        rank: Rank::new(&Origin::Settings, turn),
        origin: Origin::Settings,
        raw: None,
    };
    from_value(toml::Value::Table(table), &node)
}

fn from_value(value: toml::Value, node: &impl Fn(Data) -> Node) -> Node {
    node(match value {
        toml::Value::String(text) => Data::Text(text),
        toml::Value::Boolean(value) => Data::Bool(value),
        toml::Value::Integer(value) => Data::Integer(value),
        toml::Value::Float(value) => Data::Float(value),
        toml::Value::Datetime(value) => Data::Datetime(value),
        toml::Value::Array(values) => Data::Array(
            values
                .into_iter()
                .map(|value| from_value(value, node))
                .collect(),
        ),
        toml::Value::Table(table) => Data::Table(
            table
                .into_iter()
                .map(|(key, value)| (key, from_value(value, node)))
                .collect(),
        ),
    })
}

/// Reads `ANYWIRE_URL` and the variables that begin with `ANYWIRE__`; the others are not ours.
///
/// # Errors
/// `Config`, naming the variables that contradict each other.
pub(super) fn from_environment<'a>(
    variables: impl Iterator<Item = (&'a str, &'a str)>,
    turn: u32,
) -> Result<Node, Error> {
    let mut root = Node {
        data: Data::Table(Table::new()),
        origin: Origin::Variable("the environment".into()),
        rank: Rank::default(),
        raw: None,
    };
    for (name, text) in variables {
        let path = match name.strip_prefix("ANYWIRE__") {
            Some(path) => path,
            None if name == "ANYWIRE_URL" => "url",
            None => continue,
        };
        let origin = Origin::Variable(name.into());
        let path: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
        if path.iter().any(String::is_empty) {
            return Err(Error::config(format!(
                "{origin}: a part of its name is empty; write it as ANYWIRE__SECTION__KEY"
            )));
        }
        let mut node = from_variable(text, &origin, turn)?;
        for key in path.into_iter().rev() {
            node = Node {
                data: Data::Table(Table::from([(key, node)])),
                rank: Rank::new(&origin, turn),
                origin: origin.clone(),
                raw: None,
            };
        }
        graft(&mut root, node)?;
    }
    Ok(root)
}

/// A variable's value is TOML where it can be read as such, else a text.
fn from_variable(text: &str, origin: &Origin, turn: u32) -> Result<Node, Error> {
    let reader = Reader {
        place: |_| origin.clone(),
        turn,
    };
    match DeValue::parse(text) {
        Ok(value) => {
            let mut node = reader.value(0, &value)?;
            node.raw = Some(text.to_owned());
            Ok(node)
        }
        Err(_) => Ok(reader.node(0, Data::Text(text.to_owned()))),
    }
}

/// Joins what two variables say; both must not say the same thing.
fn graft(low: &mut Node, high: Node) -> Result<(), Error> {
    match (&mut low.data, high.data) {
        (Data::Table(low), Data::Table(high)) => {
            for (key, node) in high {
                match low.get_mut(&key) {
                    Some(low) => graft(low, node)?,
                    None => drop(low.insert(key, node)),
                }
            }
            Ok(())
        }
        _ => Err(Error::config(format!(
            "{} and {} set the same thing; unset one of them",
            low.origin, high.origin
        ))),
    }
}

struct Reader<P> {
    place: P,
    turn: u32,
}

impl<P: Fn(usize) -> Origin> Reader<P> {
    fn node(&self, offset: usize, data: Data) -> Node {
        let origin = (self.place)(offset);
        Node {
            data,
            rank: Rank::new(&origin, self.turn),
            origin,
            raw: None,
        }
    }

    fn table(&self, table: &DeTable<'_>) -> Result<Table, Error> {
        let entries = table.iter();
        entries
            .map(|(key, value)| {
                let node = self.value(key.span().start, value)?;
                Ok((key.get_ref().to_string(), node))
            })
            .collect()
    }

    fn value(&self, offset: usize, value: &Spanned<DeValue<'_>>) -> Result<Node, Error> {
        let data = match value.get_ref() {
            DeValue::String(text) => Data::Text(text.to_string()),
            DeValue::Boolean(value) => Data::Bool(*value),
            DeValue::Datetime(value) => Data::Datetime(*value),
            DeValue::Integer(number) => {
                let Ok(value) = i64::from_str_radix(number.as_str(), number.radix()) else {
                    return Err(self
                        .node(offset, Data::Bool(false))
                        .error("a number is too large"));
                };
                Data::Integer(value)
            }
            DeValue::Float(number) => {
                let Ok(value) = number.as_str().parse() else {
                    return Err(self
                        .node(offset, Data::Bool(false))
                        .error("a number is not readable"));
                };
                Data::Float(value)
            }
            DeValue::Array(values) => {
                let values = values.iter();
                let nodes = values.map(|value| self.value(value.span().start, value));
                Data::Array(nodes.collect::<Result<_, _>>()?)
            }
            DeValue::Table(table) => Data::Table(self.table(table)?),
        };
        Ok(self.node(offset, data))
    }
}
