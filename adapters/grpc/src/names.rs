//! Subjects as paths of methods, and back.
//!
//! `shop.v1.Prices.Quote` is `/shop.v1.Prices/Quote`: the last token is the method, all before it the service. A subject of
//! one token has no service; it is a method of `_`. A byte that stands for something else in a path is written as `%XX`.

use std::fmt::Write;

use anywire::{Error, Subject};
use http::uri::PathAndQuery;

/// The service of a subject that has one token.
const NO_SERVICE: &str = "_";

/// The path of a subject.
///
/// # Errors
/// `Config` where HTTP does not take it as a path, which no subject should see.
pub(crate) fn path(subject: &Subject) -> Result<PathAndQuery, Error> {
    let text = match subject.as_str().rsplit_once('.') {
        None => format!("/{NO_SERVICE}/{}", escaped(subject.as_str())),
        // It would be read as the subject without it.
        Some((NO_SERVICE, method)) => format!("/%5F/{}", escaped(method)),
        Some((service, method)) => format!("/{}/{}", escaped(service), escaped(method)),
    };
    text.parse()
        .map_err(|_| Error::config("the subject cannot be a path").with_context("subject", subject))
}

/// The subject of a path; `None` where it is no method's.
pub(crate) fn subject(path: &str) -> Option<Subject> {
    let (service, method) = path.strip_prefix('/')?.rsplit_once('/')?;
    if method.contains('.') {
        return None;
    }
    let text = match service {
        NO_SERVICE => unescaped(method)?,
        _ => format!("{}.{}", unescaped(service)?, unescaped(method)?),
    };
    Subject::parse_any(&text).ok()
}

fn escaped(part: &str) -> String {
    let mut text = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"._-=:@~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn unescaped(part: &str) -> Option<String> {
    if !part.contains('%') {
        return Some(part.to_owned());
    }
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_method_is_the_last_token() {
        for (name, at) in [
            ("shop.v1.Prices.Quote", "/shop.v1.Prices/Quote"),
            ("shop.quote", "/shop/quote"),
            ("quote", "/_/quote"),
            ("_.quote", "/%5F/quote"),
            ("50%.off", "/50%25/off"),
        ] {
            assert_eq!(path(&Subject::parse(name).unwrap()).unwrap().as_str(), at);
            assert_eq!(subject(at).unwrap().as_str(), name);
        }
    }

    #[test]
    fn what_is_no_method_is_no_subject() {
        for at in [
            "",
            "/",
            "/quote",
            "quote",
            "//quote",
            "/shop/",
            "/shop/a.b",
            "/a/b/c",
            "/shop/%zz",
            "/shop/%ff",
            "/shop/*",
            "/shop/>",
            "/shop/a b",
            "/shop..v1/a",
        ] {
            assert_eq!(subject(at), None, "{at}");
        }
        let long = format!("/{}/quote", "a.".repeat(400));
        assert_eq!(subject(&long), None);
    }

    proptest! {
        #[test]
        fn each_subject_has_a_path_of_its_own(text in "[A-Za-z0-9_=:@~%-]{1,8}(\\.[A-Za-z0-9_=:@~%-]{1,8}){0,4}") {
            let name = Subject::parse_any(&text).unwrap();
            prop_assert_eq!(subject(path(&name).unwrap().as_str()), Some(name));
        }
    }
}
