//! Errors about names that nobody knows, with the name that was probably meant.

use crate::Error;

/// The error for a URL's scheme that no registered adapter answers to.
///
/// ```
/// let error = anywire::config::unknown_scheme("nast", &["memory", "nats"]);
/// assert_eq!(
///     error.to_string(),
///     "scheme `nast` has no adapter; registered: memory, nats (did you mean `nats`?)"
/// );
/// ```
#[must_use]
pub fn unknown_scheme(scheme: &str, known: &[&str]) -> Error {
    let scheme = printable(scheme);
    let hint = match nearest(&scheme, known) {
        Some(near) => format!(" (did you mean `{near}`?)"),
        None => " (name its adapter with `.adapter(..)`)".to_owned(),
    };
    let known = list(known);
    Error::config(format!(
        "scheme `{scheme}` has no adapter; registered: {known}{hint}"
    ))
}

/// The end of an error about an unknown name: the nearest known one, or all of them.
pub(super) fn suggestion(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("known: {}", list(known)),
    }
}

/// The known name that `name` was probably meant to be.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let distance = |known: &str| strsim::damerau_levenshtein(&name, &known.to_ascii_lowercase());
    known
        .iter()
        .map(|&known| (distance(known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min()
        .map(|(_, known)| known)
}

/// Text of others as it may stand in an error: no line breaks, not long, and no credentials of a URL.
pub(super) fn printable(text: &str) -> String {
    let text = super::url::redact(text);
    let short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().count() > 80 {
        format!("{short}...")
    } else {
        short
    }
}

fn list(known: &[&str]) -> String {
    if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scheme_lists_the_registered_ones() {
        assert_eq!(
            unknown_scheme("nat", &["memory", "nats"]).to_string(),
            "scheme `nat` has no adapter; registered: memory, nats (did you mean `nats`?)"
        );
        assert_eq!(
            unknown_scheme("zeromq", &[]).to_string(),
            "scheme `zeromq` has no adapter; registered: none (name its adapter with `.adapter(..)`)"
        );
    }

    #[test]
    fn a_name_that_is_far_from_all_lists_them() {
        assert_eq!(
            nearest("concurency", &["codec", "concurrency"]),
            Some("concurrency")
        );
        assert_eq!(suggestion("xyzzy", &["a", "b"]), "known: a, b");
    }

    #[test]
    fn text_of_others_is_short_and_on_one_line() {
        assert_eq!(printable("a\nb"), "a\\nb");
        assert_eq!(printable(&"x".repeat(100)).len(), 83);
        assert_eq!(printable("nats://u:hunter2@h"), "nats://[secret]@h");
    }
}
