//! Credentials: where they come from, and how they stay out of sight.

use std::path::PathBuf;

use crate::{Error, Secret};

/// What is printed in the place of a secret.
pub(super) const MASK: &str = "[secret]";

/// Where a credential is found. Files are read when the transport is resolved, so that a program that only looks at its
/// configuration needs none.
#[derive(Clone)]
pub(super) enum SecretSource {
    Inline(Secret),
    File(PathBuf),
    /// The variable's name, and its value when the configuration was loaded.
    Variable(String, Option<Secret>),
}

impl SecretSource {
    /// The secret itself. `place` says who asked for it, for the error.
    pub(super) fn reveal(&self, place: &str) -> Result<Secret, Error> {
        match self {
            Self::Inline(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let shown = path.display();
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Error::config(format!(
                        "{place}: cannot read the secret in {shown}: {error}"
                    ))
                })?;
                // Editors and `echo` end a file with a line break that is no part of the secret.
                let text = text.strip_suffix('\n').unwrap_or(&text);
                let text = text.strip_suffix('\r').unwrap_or(text);
                if text.is_empty() {
                    return Err(Error::config(format!(
                        "{place}: the secret in {shown} is empty"
                    )));
                }
                Ok(Secret::new(text))
            }
            Self::Variable(_, Some(secret)) if !secret.expose().is_empty() => Ok(secret.clone()),
            Self::Variable(name, _) => Err(Error::config(format!(
                "{place}: the environment variable {name} is not set"
            ))),
        }
    }

    /// The key's ending and the value that may be shown.
    pub(super) fn shown(&self) -> (&'static str, String) {
        match self {
            Self::Inline(_) => ("", MASK.to_owned()),
            Self::File(path) => ("_file", path.display().to_string()),
            Self::Variable(name, _) => ("_env", name.clone()),
        }
    }
}

/// Whether the value behind this name of a parameter or an adapter's key must not be shown.
pub(super) fn is_secret_name(name: &str) -> bool {
    const PARTS: [&str; 11] = [
        "pass", "pwd", "secret", "token", "key", "cred", "auth", "jwt", "seed", "user", "sasl",
    ];
    let name = name.to_ascii_lowercase();
    PARTS.iter().any(|part| name.contains(part))
}

/// A copy of an adapter's settings that may be shown.
pub(super) fn masked(table: &toml::Table) -> toml::Table {
    let shown = |(name, value): (&String, &toml::Value)| (name.clone(), mask(name, value));
    table.iter().map(shown).collect()
}

fn mask(name: &str, value: &toml::Value) -> toml::Value {
    match value {
        _ if is_secret_name(name) => toml::Value::String(MASK.to_owned()),
        toml::Value::Table(table) => toml::Value::Table(masked(table)),
        toml::Value::Array(values) => {
            toml::Value::Array(values.iter().map(|value| mask(name, value)).collect())
        }
        toml::Value::String(text) => toml::Value::String(super::url::redact(text)),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_an_adapter_keeps_secret_is_masked_by_its_name() {
        let table: toml::Table = toml::from_str(
            "linger = '5ms'\n'sasl.password' = 'hunter2'\nurl = 'x://u:hunter2@h'\nlist = [{token = 'hunter2'}]\n[a]\nsecrets = ['hunter2']",
        )
        .unwrap();
        let shown = format!("{:?}", masked(&table));
        assert!(shown.contains("5ms"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_secret_that_is_not_there_is_named_by_its_place() {
        let source = SecretSource::Variable("NATS_PASSWORD".to_owned(), None);
        assert_eq!(
            source.reveal("anywire.toml:3").unwrap_err().to_string(),
            "anywire.toml:3: the environment variable NATS_PASSWORD is not set"
        );
        let source = SecretSource::File("/no/such/file".into());
        let error = source.reveal("anywire.toml:3").unwrap_err().to_string();
        assert!(error.contains("/no/such/file"), "{error}");
    }
}
