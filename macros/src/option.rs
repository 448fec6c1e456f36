//! The options of an attribute: which there are, what each takes, and where it makes no sense.

use std::time::{Duration, UNIX_EPOCH};

use proc_macro2::Span;
use quote::format_ident;
use syn::{Error, Expr, Ident, Lit, LitStr, Result, parse_quote};

use crate::ast::{Setting, Value, bare};
use crate::attr::{Kind, Written};

struct Known {
    key: &'static str,
    takes: Takes,
    /// Why a call cannot have it.
    not_on_calls: Option<&'static str>,
}

enum Takes {
    Flag,
    Text,
    Count,
    Duration,
    Durations,
    /// One of these words, each a variant of the enum.
    Word(&'static str, &'static [(&'static str, &'static str)]),
}

const NO_GROUP: &str = "calls have no group: all who answer a pattern share its calls; remove it";
const NEVER_RETRIED: &str = "calls are never retried: the caller gets the error and decides; remove it, or use `#[event_pattern]`";
const NOT_STORED: &str =
    "calls are not stored, so there is nothing to start from; remove it, or use `#[event_pattern]`";
const AT_MOST_ONCE: &str =
    "calls are delivered at most once, always; remove it, or use `#[event_pattern]`";
const NO_ORDER: &str = "calls have no order: each caller waits for its own reply; remove it, or use `#[event_pattern]`";

const KNOWN: [Known; 11] = [
    Known::anywhere("name", Takes::Text),
    Known::on_events("group", Takes::Text, NO_GROUP),
    Known::on_events("broadcast", Takes::Flag, NO_GROUP),
    Known::anywhere("concurrency", Takes::Count),
    Known::anywhere("timeout", Takes::Duration),
    Known::on_events("retry", Takes::Durations, NEVER_RETRIED),
    Known::on_events(
        "delivery",
        Takes::Word(
            "Guarantee",
            &[
                ("at_least_once", "AtLeastOnce"),
                ("at_most_once", "AtMostOnce"),
            ],
        ),
        AT_MOST_ONCE,
    ),
    Known::on_events(
        "order",
        Takes::Word(
            "Order",
            &[
                ("none", "None"),
                ("key", "Key"),
                ("key-in-group", "KeyInGroup"),
            ],
        ),
        NO_ORDER,
    ),
    Known::on_events(
        "after_failure",
        Takes::Word("AfterFailure", &[("pass", "Pass"), ("hold", "Hold")]),
        NEVER_RETRIED,
    ),
    Known::on_events(
        "start",
        Takes::Word("Start", &[("earliest", "Earliest"), ("latest", "Latest")]),
        NOT_STORED,
    ),
    Known::anywhere("transport", Takes::Text),
];

impl Known {
    const fn anywhere(key: &'static str, takes: Takes) -> Self {
        Self {
            key,
            takes,
            not_on_calls: None,
        }
    }

    const fn on_events(key: &'static str, takes: Takes, why: &'static str) -> Self {
        Self {
            key,
            takes,
            not_on_calls: Some(why),
        }
    }
}

/// Reads all options of one attribute.
pub(crate) fn read(kind: Kind, options: Vec<Written>) -> Result<Vec<Setting>> {
    let mut seen: Vec<Ident> = Vec::new();
    let mut settings = Vec::new();
    for option in options {
        let known = known(kind, &option.key)?;
        if seen.contains(&option.key) {
            let message = format!("`{}` is given twice; keep one", option.key);
            return Err(Error::new(option.key.span(), message));
        }
        seen.push(option.key.clone());
        settings.extend(setting(known, option)?);
    }
    let is_set = |method: &str| settings.iter().find(|it: &&Setting| it.method == method);
    if let (Some(_), Some(group)) = (is_set("broadcast"), is_set("group")) {
        return Err(Error::new(
            group.method.span(),
            "a broadcast handler has no group: every instance gets a copy; remove `group` or `broadcast`",
        ));
    }
    Ok(settings)
}

fn known(kind: Kind, key: &Ident) -> Result<&'static Known> {
    let allowed = |known: &&Known| kind == Kind::Event || known.not_on_calls.is_none();
    let Some(known) = KNOWN.iter().find(|known| key == known.key) else {
        let keys: Vec<&str> = KNOWN.iter().filter(allowed).map(|it| it.key).collect();
        let message = format!(
            "unknown option `{key}`; {}",
            nearest(&key.to_string(), &keys)
        );
        return Err(Error::new(key.span(), message));
    };
    match known.not_on_calls {
        Some(why) if kind != Kind::Event => Err(Error::new(key.span(), why)),
        _ => Ok(known),
    }
}

/// The part of a message that helps with a misspelt word.
pub(crate) fn nearest(word: &str, known: &[&str]) -> String {
    let closest = known
        .iter()
        .map(|it| (strsim::damerau_levenshtein(word, it), it))
        .min_by_key(|(distance, _)| *distance);
    match closest {
        Some((distance, closest)) if distance <= 2.max(word.len() / 3) => {
            format!("did you mean `{closest}`?")
        }
        _ => format!("there are: {}", known.join(", ")),
    }
}

fn setting(known: &Known, option: Written) -> Result<Option<Setting>> {
    let Written { key, value } = option;
    let method = match known.key {
        "delivery" => Ident::new("guarantee", key.span()),
        _ => key.clone(),
    };
    let value = match (&known.takes, value) {
        (Takes::Flag, None) => Value::Set,
        (Takes::Flag, Some(value)) => match bare(&value) {
            Expr::Lit(literal) if matches!(&literal.lit, Lit::Bool(it) if it.value) => Value::Set,
            Expr::Lit(literal) if matches!(&literal.lit, Lit::Bool(_)) => return Ok(None),
            _ => return Err(wrong(known, &value)),
        },
        (_, None) => {
            let message = format!("`{key}` needs a value, as in `{}`", example(known));
            return Err(Error::new(key.span(), message));
        }
        (takes, Some(value)) => read_value(known, takes, value)?,
    };
    Ok(Some(Setting { method, value }))
}

fn read_value(known: &Known, takes: &Takes, value: Expr) -> Result<Value> {
    let bare = bare(&value);
    match (takes, bare) {
        // A const of the user's own; its type is the compiler's business.
        (Takes::Text | Takes::Count | Takes::Duration | Takes::Durations, Expr::Path(_)) => {
            Ok(Value::Written(value))
        }
        (Takes::Durations, Expr::Array(array)) => {
            let waits = array.elems.iter().map(|wait| duration(known, wait));
            Ok(Value::Waits(waits.collect::<Result<_>>()?))
        }
        (Takes::Duration, _) => {
            let wait = duration(known, bare)?;
            if wait.is_zero() {
                let message = "a timeout of nothing lets no handler run; write `timeout = \"2s\"`, or remove it";
                return Err(Error::new_spanned(&value, message));
            }
            Ok(Value::Wait(wait))
        }
        (Takes::Text, Expr::Lit(literal)) => match &literal.lit {
            Lit::Str(text) if text.value().trim().is_empty() => {
                let message = format!("`{}` is empty; write `{}`", known.key, example(known));
                Err(Error::new(text.span(), message))
            }
            Lit::Str(_) => Ok(Value::Written(value)),
            _ => Err(wrong(known, &value)),
        },
        (Takes::Count, Expr::Lit(literal)) => match &literal.lit {
            Lit::Int(count) => match count.base10_parse::<usize>() {
                Ok(0) => Err(Error::new(
                    count.span(),
                    format!("`{}` is at least 1", known.key),
                )),
                Ok(_) => Ok(Value::Written(value)),
                Err(_) => Err(wrong(known, &value)),
            },
            _ => Err(wrong(known, &value)),
        },
        (Takes::Word(name, words), bare) => {
            let text = string(bare).ok_or_else(|| wrong(known, &value))?;
            if known.key == "start"
                && let Some(time) = time(text)
            {
                return Ok(Value::Written(time));
            }
            word(known, name, words, text)
        }
        _ => Err(wrong(known, &value)),
    }
}

fn duration(known: &Known, value: &Expr) -> Result<Duration> {
    let Some(text) = string(bare(value)) else {
        return Err(wrong(known, value));
    };
    humantime::parse_duration(&text.value()).map_err(|_| {
        let message = format!(
            "`{}` is not a duration; write a number and a unit, as in `{}`",
            text.value(),
            example(known)
        );
        Error::new(text.span(), message)
    })
}

/// A calendar time, where the text is one.
fn time(text: &LitStr) -> Option<Expr> {
    let time = humantime::parse_rfc3339(&text.value()).ok()?;
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    let (seconds, nanos) = (since.as_secs(), since.subsec_nanos());
    Some(parse_quote! {
        ::anywire::Start::At(::std::time::UNIX_EPOCH + ::std::time::Duration::new(#seconds, #nanos))
    })
}

fn word(known: &Known, name: &str, words: &[(&str, &str)], text: &LitStr) -> Result<Value> {
    let written = text.value();
    let Some((_, variant)) = words.iter().find(|(word, _)| *word == written) else {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let hint = nearest(&written, &words);
        let message = format!("`{}` cannot be `{written}`; {hint}", known.key);
        return Err(Error::new(text.span(), message));
    };
    let ours = Span::mixed_site();
    Ok(Value::Variant(
        format_ident!("{name}", span = ours),
        format_ident!("{variant}", span = ours),
    ))
}

fn string(value: &Expr) -> Option<&LitStr> {
    match value {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Str(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn wrong(known: &Known, value: &Expr) -> Error {
    let key = known.key;
    let what = match known.takes {
        Takes::Flag => "is on or off".to_owned(),
        Takes::Text => "is a string".to_owned(),
        Takes::Count => "is a whole number".to_owned(),
        Takes::Duration => "is a duration in quotes".to_owned(),
        Takes::Durations => "is a list of durations in quotes".to_owned(),
        Takes::Word(_, words) => {
            let words: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            format!("is one of {}", words.join(", "))
        }
    };
    let message = format!("`{key}` {what}; write `{}`", example(known));
    Error::new_spanned(value, message)
}

fn example(known: &Known) -> String {
    let key = known.key;
    match &known.takes {
        Takes::Flag => key.to_owned(),
        Takes::Text => match key {
            "name" => "name = \"place_order\"".to_owned(),
            "transport" => "transport = \"log\"".to_owned(),
            _ => format!("{key} = \"billing\""),
        },
        Takes::Count => format!("{key} = 32"),
        Takes::Duration => format!("{key} = \"2s\""),
        Takes::Durations => format!("{key} = [\"200ms\", \"5s\"]"),
        Takes::Word(_, words) => {
            let word = words.last().map_or("", |(word, _)| word);
            format!("{key} = {word:?}")
        }
    }
}
