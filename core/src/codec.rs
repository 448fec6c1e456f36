//! How payloads become bytes. The content type on the wire decides how a payload is read.

use std::error::Error as StdError;
use std::fmt;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::error::Category;
use smol_str::SmolStr;

use crate::{Error, ErrorKind};

/// How a payload is encoded, as it stands on the wire, such as `application/json`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ContentType(SmolStr);

impl ContentType {
    /// JSON, the default.
    pub const JSON: Self = Self(SmolStr::new_static("application/json"));
    /// MessagePack, with field names.
    pub const MSGPACK: Self = Self(SmolStr::new_static("application/msgpack"));
    /// CBOR.
    pub const CBOR: Self = Self(SmolStr::new_static("application/cbor"));
    /// Protocol Buffers.
    pub const PROTOBUF: Self = Self(SmolStr::new_static("application/protobuf"));
    /// Any bytes.
    pub const BYTES: Self = Self(SmolStr::new_static("application/octet-stream"));

    /// A content type by its name.
    pub fn new(name: impl Into<SmolStr>) -> Self {
        Self(name.into())
    }

    /// The content type as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// How a service encodes what it sends. Reading goes by the content type on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Codec {
    /// JSON.
    #[default]
    Json,
    /// MessagePack, with field names.
    #[cfg(feature = "msgpack")]
    Msgpack,
    /// CBOR.
    #[cfg(feature = "cbor")]
    Cbor,
}

impl Codec {
    /// The codecs of this build, for error messages.
    const NAMES: &[&str] = &[
        "application/json",
        #[cfg(feature = "msgpack")]
        "application/msgpack",
        #[cfg(feature = "cbor")]
        "application/cbor",
        #[cfg(feature = "protobuf")]
        "application/protobuf (as Proto<T>)",
    ];

    /// What it puts on the wire; `None` for the default, which is implied.
    #[must_use]
    pub const fn content_type(self) -> Option<ContentType> {
        match self {
            Self::Json => None,
            #[cfg(feature = "msgpack")]
            Self::Msgpack => Some(ContentType::MSGPACK),
            #[cfg(feature = "cbor")]
            Self::Cbor => Some(ContentType::CBOR),
        }
    }

    /// The codec that reads `content_type`; parameters such as `; charset=utf-8` do not count.
    ///
    /// # Errors
    /// [`ErrorKind::Codec`], naming the type and those that can be read.
    pub fn for_content_type(content_type: Option<&ContentType>) -> Result<Self, Error> {
        let Some(content_type) = content_type else {
            return Ok(Self::Json);
        };
        let name = content_type
            .as_str()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("application/json") || name.to_ascii_lowercase().ends_with("+json") {
            return Ok(Self::Json);
        }
        #[cfg(feature = "msgpack")]
        if is("application/msgpack") || is("application/x-msgpack") || is("application/vnd.msgpack")
        {
            return Ok(Self::Msgpack);
        }
        #[cfg(feature = "cbor")]
        if is("application/cbor") {
            return Ok(Self::Cbor);
        }
        let name: String = name.chars().take(80).collect();
        let known = Self::NAMES.join(", ");
        Err(Error::new(
            ErrorKind::Codec,
            format!("content type {name:?} has no codec here; known: {known}"),
        ))
    }

    /// Appends the encoded value to `buffer`.
    ///
    /// # Errors
    /// [`ErrorKind::Codec`] when the value cannot be written in this format.
    pub fn encode<T: Serialize + ?Sized>(
        self,
        value: &T,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        match self {
            Self::Json => {
                serde_json::to_writer(buffer, value).map_err(|error| unwritable("JSON", error))
            }
            #[cfg(feature = "msgpack")]
            Self::Msgpack => rmp_serde::encode::write_named(buffer, value)
                .map_err(|error| unwritable("MessagePack", error)),
            #[cfg(feature = "cbor")]
            Self::Cbor => {
                ciborium::into_writer(value, buffer).map_err(|error| unwritable("CBOR", error))
            }
        }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// [`ErrorKind::Codec`] when the bytes do not read as a `T`.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, Error> {
        match self {
            Self::Json => {
                // One look at the whole is quicker than one at each string, which is what `from_slice` does.
                let text = std::str::from_utf8(bytes).map_err(|error| unreadable("JSON", error))?;
                serde_json::from_str(text).map_err(unreadable_json)
            }
            #[cfg(feature = "msgpack")]
            Self::Msgpack => {
                rmp_serde::from_slice(bytes).map_err(|error| unreadable("MessagePack", error))
            }
            #[cfg(feature = "cbor")]
            Self::Cbor => ciborium::from_reader(bytes).map_err(|error| unreadable("CBOR", error)),
        }
    }
}

fn unwritable(format: &str, error: impl StdError + Send + Sync + 'static) -> Error {
    let text = format!("the payload cannot be written as {format}: {error}");
    Error::new(ErrorKind::Codec, text).with_source(error)
}

/// JSON's own errors name the place, and quote the payload only where a value is of another type.
fn unreadable_json(error: serde_json::Error) -> Error {
    let text = error.to_string();
    let (line, column) = (error.line(), error.column());
    let text = match error.classify() {
        Category::Data if !is_of_the_type(&text) => {
            format!("a value does not fit the type at line {line} column {column}")
        }
        _ => text,
    };
    let text = format!("the payload cannot be read from JSON: {text}");
    Error::new(ErrorKind::Codec, text).with_source(error)
}

fn unreadable(format: &str, error: impl StdError + Send + Sync + 'static) -> Error {
    let text = error.to_string();
    let text = match is_of_the_type(&text) {
        true => format!("the payload cannot be read from {format}: {text}"),
        false => format!("the payload cannot be read from {format}"),
    };
    Error::new(ErrorKind::Codec, text).with_source(error)
}

/// Whether serde's text tells of the type alone: a text that quotes the payload must not reach a log, and is left to the
/// error's source.
fn is_of_the_type(text: &str) -> bool {
    text.starts_with("missing field") || text.starts_with("duplicate field")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_content_type_is_a_clear_error() {
        let error = Codec::for_content_type(Some(&ContentType::new("text/xml"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Codec);
        assert!(
            error.to_string().contains("text/xml")
                && error.to_string().contains("application/json"),
            "{error}"
        );
    }

    #[test]
    fn parameters_and_json_suffixes_are_json() {
        for name in [
            "application/json; charset=utf-8",
            "Application/JSON",
            "application/cloudevents+json",
        ] {
            assert_eq!(
                Codec::for_content_type(Some(&ContentType::new(name))).unwrap(),
                Codec::Json
            );
        }
    }

    #[test]
    fn deep_json_is_refused_and_does_not_exhaust_the_stack() {
        let deep = "[".repeat(100_000);
        assert!(
            Codec::Json
                .decode::<serde_json::Value>(deep.as_bytes())
                .is_err()
        );
    }
}
