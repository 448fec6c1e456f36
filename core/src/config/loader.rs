//! Puts the layers together.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::Config;
use super::layer::Layer;
use super::tree::{self, Document};
use crate::Error;

/// Collects layers of configuration. Files come in the order in which they are added, the later over the earlier; the
/// environment lies over all files, and what is forced over everything.
///
/// ```
/// use anywire::config::Config;
///
/// let config = Config::loader()
///     .toml("shop.toml", "url = 'nats://localhost'\nretention = '3d'")
///     .env([("ANYWIRE_URL".to_owned(), "memory://".to_owned())])
///     .load()?;
/// assert_eq!(config.address("main").as_deref(), Some("memory://"));
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone, Default)]
#[must_use = "a loader does nothing until `load`"]
pub struct Loader {
    base: Option<Config>,
    files: Vec<File>,
    variables: Option<BTreeMap<String, String>>,
    force: Vec<String>,
}

#[derive(Clone)]
enum File {
    /// Must exist.
    Path(PathBuf),
    Text(String, String),
}

impl Loader {
    /// The layers of this process: the file in `ANYWIRE_CONFIG`, which must exist, or `anywire.toml` in the working
    /// directory, where there is one; then the environment.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config): one of our variables is not UTF-8.
    pub fn of_process() -> Result<Self, Error> {
        let mut variables = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => drop(variables.insert(name, value)),
                Err(_) if name.starts_with("ANYWIRE_") => {
                    return Err(Error::config(format!("{name}: its value is not UTF-8")));
                }
                Err(_) => {}
            }
        }
        Ok(Self::of(variables, Path::new("")))
    }

    fn of(variables: BTreeMap<String, String>, directory: &Path) -> Self {
        let default = directory.join("anywire.toml");
        let loader = match variables.get("ANYWIRE_CONFIG") {
            Some(path) => Self::default().file(path),
            // A file that may not be looked at is no reason to start without it.
            None if default.try_exists().unwrap_or(true) => Self::default().file(default),
            None => Self::default(),
        };
        loader.env(variables)
    }

    /// Starts from a configuration that exists already, such as one from the user's own settings.
    pub fn base(mut self, config: Config) -> Self {
        self.base = Some(config);
        self
    }

    /// Adds a file, which must exist.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(File::Path(path.into()));
        self
    }

    /// Adds a text as if it were the file `name`.
    pub fn toml(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.files.push(File::Text(name.into(), text.into()));
        self
    }

    /// Sets the environment: its `ANYWIRE_URL` and `ANYWIRE__...`, and what `password_env` and the like name.
    /// Without this the process' own variables serve for the latter, and no variable sets a key.
    pub fn env(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.variables = Some(variables.into_iter().collect());
        self
    }

    /// Adds a layer, as TOML, that no file and no variable can override.
    pub fn force(mut self, text: impl Into<String>) -> Self {
        self.force.push(text.into());
        self
    }

    /// Reads and checks all layers.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config), naming file and line or variable, the key and the remedy, and never a secret.
    pub fn load(self) -> Result<Config, Error> {
        let (mut layer, mut turn) = match &self.base {
            Some(config) => (config.layer().clone(), config.turn()),
            None => (Layer::default(), 0),
        };
        let mut next = || {
            turn += 1;
            turn
        };
        for file in &self.files {
            layer.merge(Layer::read(&file.parse(next())?)?);
        }
        if let Some(variables) = &self.variables {
            let pairs = variables.iter();
            let pairs = pairs.map(|(name, value)| (name.as_str(), value.as_str()));
            layer.merge(Layer::read(&tree::from_environment(pairs, next())?)?);
        }
        for text in &self.force {
            layer.merge(Layer::read(&Document::Force.parse(text, next())?)?);
        }
        layer.capture(&|name| match &self.variables {
            Some(variables) => variables.get(name).cloned(),
            None => std::env::var(name).ok(),
        });
        let config = Config::from_layer(layer, turn)?;
        Ok(match self.base {
            Some(base) if base.is_on_memory() => config.on_memory(),
            _ => config,
        })
    }

    /// Reads what another part of the program has deserialized.
    pub(super) fn load_settings(table: toml::Table) -> Result<Config, Error> {
        let mut layer = Layer::read(&tree::from_settings(table, 1))?;
        layer.capture(&|name| std::env::var(name).ok());
        Config::from_layer(layer, 1)
    }
}

impl File {
    fn parse(&self, turn: u32) -> Result<tree::Node, Error> {
        match self {
            Self::Text(name, text) => Document::File(name).parse(text, turn),
            Self::Path(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Error::config(format!(
                        "cannot read the configuration in \"{name}\": {error}"
                    ))
                })?;
                Document::File(&name).parse(&text, turn)
            }
        }
    }
}

impl fmt::Debug for Loader {
    /// Neither texts nor variables: they hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("files", &self.files.len())
            .field("force", &self.force.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn grace(variables: &[(&str, &str)], directory: &Path) -> Result<u64, String> {
        let variables = variables.iter();
        let variables = variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = Loader::of(variables.collect(), directory).load();
        config
            .map(|config| config.grace().as_secs())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_file_is_the_one_of_the_variable_or_else_that_of_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(grace(&[], directory.path()), Ok(25));
        std::fs::write(directory.path().join("anywire.toml"), "grace = '1s'").unwrap();
        assert_eq!(grace(&[], directory.path()), Ok(1));
        assert_eq!(grace(&[("ANYWIRE__GRACE", "2s")], directory.path()), Ok(2));
        let other = directory.path().join("other.toml");
        std::fs::write(&other, "grace = '3s'").unwrap();
        let named = [("ANYWIRE_CONFIG", other.to_str().unwrap())];
        assert_eq!(grace(&named, directory.path()), Ok(3));
        let error = grace(&[("ANYWIRE_CONFIG", "/no/such.toml")], directory.path());
        assert!(error.unwrap_err().contains("/no/such.toml"));
    }
}
