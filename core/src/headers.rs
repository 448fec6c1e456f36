//! Headers: several values per name, in order, with case-insensitive look-up.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use smol_str::SmolStr;

use crate::{Error, ErrorKind, Result};

/// The most headers a user may put on a message.
pub const MAX_HEADERS: usize = 64;
/// The most bytes that names and values may have together.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// The longest header name, in bytes.
pub const MAX_HEADER_NAME: usize = 64;
/// Header names that begin so belong to the framework.
pub const RESERVED_PREFIX: &str = "anywire-";

/// The headers of a message. Values are bytes; names keep their case and are looked up without it.
///
/// Cloning shares the storage. Neither the spelling of a name nor the order across different names is promised to
/// survive a wire; the order of one name's values is.
///
/// ```
/// use anywire::Headers;
///
/// let mut headers = Headers::new();
/// headers.append("Tenant", "blue")?;
/// assert_eq!(headers.get_str("tenant"), Some("blue"));
/// # Ok::<(), anywire::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Headers(Option<Arc<Vec<(SmolStr, Bytes)>>>);

impl Headers {
    /// No headers. Allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Adds a value after those that the name has.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a name that does not match `[A-Za-z0-9_.-]{1,64}` or begins with `anywire-`;
    /// [`ErrorKind::TooLarge`] above 64 headers or 16 KiB in all.
    pub fn append(&mut self, name: &str, value: impl Into<HeaderValue>) -> Result<(), Error> {
        check_name(name)?;
        let value = value.into().0;
        let bytes = self.byte_len() + name.len() + value.len();
        if self.len() == MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            let message = format!(
                "a message has at most {MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes of them"
            );
            return Err(Error::new(ErrorKind::TooLarge, message).with_context("header", name));
        }
        self.push(name, value);
        Ok(())
    }

    /// Replaces the name's values by one.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn insert(&mut self, name: &str, value: impl Into<HeaderValue>) -> Result<(), Error> {
        check_name(name)?;
        self.remove(name);
        self.append(name, value)
    }

    /// Adds a header just as a foreign program sent it, unchecked. For adapters, on receipt.
    pub fn append_foreign(&mut self, name: &str, value: Bytes) {
        self.push(name, value);
    }

    /// Removes all values of the name.
    pub fn remove(&mut self, name: &str) {
        if self.contains(name)
            && let Some(shared) = &mut self.0
        {
            Arc::make_mut(shared).retain(|(found, _)| !found.eq_ignore_ascii_case(name));
        }
    }

    /// Removes what only the framework may send.
    pub(crate) fn remove_reserved(&mut self) {
        if let Some(shared) = &mut self.0 {
            Arc::make_mut(shared).retain(|(name, _)| !is_reserved(name));
        }
    }

    /// The first value of the name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The first value of the name, where it is UTF-8.
    #[must_use]
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All values of the name, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Bytes> {
        self.iter()
            .filter(move |(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Whether the name has a value.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All headers as (name, value).
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        let entries = self.0.as_deref().map(Vec::as_slice).unwrap_or_default();
        entries.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// How many headers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.as_deref().map_or(0, Vec::len)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of all names and values.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }

    fn push(&mut self, name: &str, value: Bytes) {
        Arc::make_mut(self.0.get_or_insert_default()).push((name.into(), value));
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Headers {}

/// Names only: a value may be a credential.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|(name, _)| name))
            .finish()
    }
}

/// What can be a header's value: text or bytes.
#[derive(Clone, Debug)]
pub struct HeaderValue(Bytes);

impl From<&str> for HeaderValue {
    fn from(value: &str) -> Self {
        Self(Bytes::copy_from_slice(value.as_bytes()))
    }
}

impl From<String> for HeaderValue {
    fn from(value: String) -> Self {
        Self(value.into())
    }
}

impl From<&String> for HeaderValue {
    fn from(value: &String) -> Self {
        value.as_str().into()
    }
}

impl From<&[u8]> for HeaderValue {
    fn from(value: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(value))
    }
}

impl From<Bytes> for HeaderValue {
    fn from(value: Bytes) -> Self {
        Self(value)
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if name.is_empty() || name.len() > MAX_HEADER_NAME || !name.bytes().all(legal) {
        let name: String = name.chars().take(80).collect();
        return Err(Error::config(format!(
            "{name:?} is not a header name; one matches [A-Za-z0-9_.-]{{1,64}}"
        )));
    }
    if is_reserved(name) {
        return Err(Error::config(format!(
            "header {name:?} begins with `{RESERVED_PREFIX}`, which is the framework's"
        )));
    }
    Ok(())
}

/// Whether the name belongs to the framework.
#[must_use]
pub(crate) fn is_reserved(name: &str) -> bool {
    name.get(..RESERVED_PREFIX.len())
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case(RESERVED_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_are_refused() {
        let long = "a".repeat(65);
        for name in [
            "",
            "a b",
            "a\r\nb",
            "a\0",
            "ä",
            "anywire-attempt",
            "AnyWire-Id",
            "a:b",
            &long,
        ] {
            assert!(Headers::new().append(name, "v").is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_bounds_hold() {
        let mut headers = Headers::new();
        for index in 0..MAX_HEADERS {
            headers.append(&format!("h{index}"), "v").unwrap();
        }
        assert_eq!(
            headers.append("one-more", "v").unwrap_err().kind(),
            ErrorKind::TooLarge
        );
        let big = vec![b'x'; MAX_HEADER_BYTES];
        assert_eq!(
            Headers::new()
                .append("big", big.as_slice())
                .unwrap_err()
                .kind(),
            ErrorKind::TooLarge
        );
    }

    #[test]
    fn a_clone_is_not_changed_by_the_original() {
        let mut headers = Headers::new();
        headers.append("a", "1").unwrap();
        let copy = headers.clone();
        headers.insert("A", "2").unwrap();
        assert_eq!(copy.get_str("a"), Some("1"));
        assert_eq!(headers.get_all("a").count(), 1);
    }

    proptest! {
        #[test]
        fn one_names_values_keep_their_order(values in prop::collection::vec(any::<Vec<u8>>(), 0..20)) {
            let mut headers = Headers::new();
            for value in &values {
                headers.append("Name", value.as_slice()).unwrap();
                headers.append("other", "x").unwrap();
            }
            let found: Vec<Vec<u8>> = headers.get_all("nAME").map(|value| value.to_vec()).collect();
            prop_assert_eq!(found, values);
        }

        #[test]
        fn any_name_is_taken_whole_or_refused(name in any::<String>()) {
            let mut headers = Headers::new();
            match headers.append(&name, "v") {
                Ok(()) => prop_assert_eq!(headers.get_str(&name), Some("v")),
                Err(_) => prop_assert!(headers.is_empty()),
            }
        }
    }
}
