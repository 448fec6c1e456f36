//! The syntax of a pattern, checked where it is written.
//!
//! The rules are those of `anywire::Pattern`; a test holds the two together.

use syn::{Error, LitStr, Result};

/// The shortest limit of the wires.
const MAX_LEN: usize = 255;

/// First tokens that belong to the framework or to a broker.
const RESERVED_FIRST: [&str; 3] = ["anywire", "_INBOX", "amq"];

/// Checks a pattern and returns the names of its captures, in order.
pub(crate) fn captures(literal: &LitStr) -> Result<Vec<String>> {
    read(&literal.value()).map_err(|why| Error::new(literal.span(), why))
}

fn read(text: &str) -> std::result::Result<Vec<String>, String> {
    if text.is_empty() {
        return Err("a pattern has one token or more, as in `shop.placed`".to_owned());
    }
    if text.len() > MAX_LEN {
        let len = text.len();
        return Err(format!(
            "the pattern is {len} bytes long; the wires carry up to {MAX_LEN}"
        ));
    }
    let tokens: Vec<&str> = text.split('.').collect();
    let mut names = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let last = at + 1 == tokens.len();
        if let Some(name) = read_token(text, token, last)? {
            if names.contains(&name) {
                return Err(format!(
                    "`{text}` names the capture `{name}` twice; give each its own name"
                ));
            }
            names.push(name);
        }
    }
    let first = tokens.first().copied().unwrap_or_default();
    if RESERVED_FIRST.contains(&first) && !text.starts_with("anywire.dead.") {
        return Err(format!(
            "`{first}` as the first token is reserved; begin with a name of your own, as in `shop.placed`"
        ));
    }
    Ok(names)
}

/// Checks one token; its name, where it is a capture.
fn read_token(text: &str, token: &str, last: bool) -> std::result::Result<Option<String>, String> {
    match token {
        "" => Err(format!(
            "`{text}` has an empty token; write a name before and after each dot"
        )),
        "*" => Ok(None),
        ">" if last => Ok(None),
        ">" => Err(format!(
            "`>` stands for the rest of the subject, so it comes last; write `*` for one token in `{text}`"
        )),
        _ if token.starts_with('{') || token.ends_with('}') => {
            let name = token
                .strip_prefix('{')
                .and_then(|name| name.strip_suffix('}'))
                .filter(|name| !name.is_empty())
                .ok_or_else(|| {
                    format!("a capture is a whole token with a name, as in `{{region}}`; `{token}` is not one")
                })?;
            check_letters(name).map(|()| Some(name.to_owned()))
        }
        _ => check_letters(token).map(|()| None),
    }
}

fn check_letters(token: &str) -> std::result::Result<(), String> {
    let legal = |letter: char| letter.is_ascii_alphanumeric() || "_-=:@~%".contains(letter);
    match token.chars().find(|&letter| !legal(letter)) {
        None => Ok(()),
        Some('*' | '>' | '{' | '}') => Err(format!(
            "`*`, `>` and `{{name}}` are whole tokens, so `{token}` is not one; put dots around them"
        )),
        Some(letter) => Err(format!(
            "{letter:?} is not allowed in a token; use letters, digits and `_-=:@~%`, with dots between tokens"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERNS: [&str; 38] = [
        "a",
        "shop.placed",
        "shop.{region}.placed",
        "shop.*.placed",
        "shop.>",
        ">",
        "*",
        "{a}.{b}",
        "a-b_c=d:e@f~g%h",
        "anywire.dead.shop",
        "shop.anywire",
        "{a}.{a}",
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a/b",
        "a.>.b",
        "a*",
        "a.b>",
        "{a",
        "a}",
        "{}",
        "{a}b",
        "{a.b}",
        "{{a}}",
        "{a b}",
        "anywire.x",
        "anywire",
        "amq.topic",
        "_INBOX.x",
        "$SYS.x",
        "caf\u{e9}",
        "a\n",
        "a\0",
        "#",
    ];

    #[test]
    fn the_rules_are_those_of_the_framework() {
        let long = ["x".repeat(255), "x".repeat(256)];
        for text in PATTERNS.into_iter().chain(long.iter().map(String::as_str)) {
            let theirs = anywire::Pattern::parse(text)
                .map(|pattern| pattern.capture_names().map(str::to_owned).collect());
            assert_eq!(read(text).ok(), theirs.ok(), "{text:?}");
        }
    }

    #[test]
    fn a_message_says_what_to_write() {
        let message = |text| read(text).unwrap_err();
        assert!(message("a..b").contains("empty token"));
        assert!(message("a.>.b").contains("write `*`"));
        assert!(message("a b").contains("' ' is not allowed"));
        assert!(message("a.{b").contains("as in `{region}`"));
        assert!(message("a*").contains("whole tokens"));
    }
}
