//! Tests that go through the public face: text and variables in, a configuration or an error out.

#![allow(clippy::unwrap_used)]

mod handlers;
mod layers;
mod mistakes;
mod properties;
mod transports;

use super::{Config, Handler, HandlerSettings};
use crate::{Error, Pattern};

fn file(text: &str) -> Config {
    Config::loader().toml("anywire.toml", text).load().unwrap()
}

fn file_error(text: &str) -> String {
    let config = Config::loader().toml("anywire.toml", text).load();
    config.unwrap_err().to_string()
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn with_env(text: &str, pairs: &[(&str, &str)]) -> Result<Config, Error> {
    let loader = Config::loader().toml("anywire.toml", text);
    loader.env(variables(pairs)).load()
}

fn env_error(pairs: &[(&str, &str)]) -> String {
    with_env("", pairs).unwrap_err().to_string()
}

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

fn handler_in_code(config: &Config, code: &HandlerSettings) -> Result<Handler, Error> {
    config.handler("placed", &pattern("shop.{region}.placed"), code, "shop")
}

fn placed(config: &Config) -> Handler {
    handler_in_code(config, &HandlerSettings::default()).unwrap()
}

fn placed_error(config: &Config) -> String {
    let handler = handler_in_code(config, &HandlerSettings::default());
    handler.unwrap_err().to_string()
}
