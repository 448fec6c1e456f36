//! What can be a payload: any serde type, and a few wrappers for those who want something else.

use std::cell::RefCell;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::codec::{Codec, ContentType};
use crate::{Error, Message};

/// Can be read from a message: the first argument of a handler, and what a subscription or a call yields.
///
/// Any type that implements `serde::Deserialize` can; so can [`Raw`], [`Ignore`], [`Message`] and
/// `Proto<T>` (feature `protobuf`).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a message",
    label = "not a payload",
    note = "derive `serde::Deserialize` for it, or take `Raw`, `Ignore`, `Message` or `Proto<T>`",
    note = "the payload is a handler's first argument; extractors such as `Param` and `Client` come after it"
)]
pub trait FromPayload: Sized + Send + 'static {
    /// Reads the payload.
    ///
    /// # Errors
    /// [`Codec`](crate::ErrorKind::Codec) for an unknown content type and for bytes that do not read as this type.
    fn from_payload(message: &Message) -> Result<Self, Error>;
}

#[diagnostic::do_not_recommend]
impl<T: DeserializeOwned + Send + 'static> FromPayload for T {
    fn from_payload(message: &Message) -> Result<Self, Error> {
        Codec::for_content_type(message.content_type())?.decode(message.payload())
    }
}

/// Can be written into a message: what a client sends and what a call's handler answers.
///
/// Any type that implements `serde::Serialize` can; so can [`Raw`] and `Proto<T>` (feature `protobuf`).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written into a message",
    label = "not a payload",
    note = "derive `serde::Serialize` for it, or send `Raw` or `Proto<T>`"
)]
pub trait IntoPayload {
    /// Writes the payload; `codec` is the service's own and what the other side reads by default.
    ///
    /// # Errors
    /// [`Codec`](crate::ErrorKind::Codec) when the value cannot be written.
    #[allow(
        clippy::wrong_self_convention,
        reason = "it is the other half of `FromPayload`, and what is sent stays with its sender"
    )]
    fn into_payload(&self, codec: Codec) -> Result<Encoded, Error>;
}

#[diagnostic::do_not_recommend]
impl<T: Serialize + ?Sized> IntoPayload for T {
    fn into_payload(&self, codec: Codec) -> Result<Encoded, Error> {
        let bytes = with_scratch(|buffer| codec.encode(self, buffer))?;
        Ok(Encoded {
            bytes,
            content_type: codec.content_type(),
        })
    }
}

/// A payload as it goes out: its bytes, and how to read them.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The bytes.
    pub bytes: Bytes,
    /// How they are encoded; `None` means the default, JSON.
    pub content_type: Option<ContentType>,
}

/// The payload's bytes, as they are.
///
/// ```
/// use anywire::{Raw, Result};
///
/// async fn size(Raw(bytes): Raw) -> Result<usize> {
///     Ok(bytes.len())
/// }
/// # let _ = anywire::Router::new().on_call("demo.size", size);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw(pub Bytes);

impl FromPayload for Raw {
    fn from_payload(message: &Message) -> Result<Self, Error> {
        Ok(Self(message.payload().clone()))
    }
}

impl IntoPayload for Raw {
    fn into_payload(&self, _: Codec) -> Result<Encoded, Error> {
        Ok(Encoded {
            bytes: self.0.clone(),
            content_type: Some(ContentType::BYTES),
        })
    }
}

/// A payload that nobody looks at, whatever it is.
///
/// ```
/// use anywire::{Ignore, Result};
///
/// async fn count(_: Ignore) -> Result<()> {
///     Ok(())
/// }
/// # let _ = anywire::Router::new().on_event("shop.>", count);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignore;

impl FromPayload for Ignore {
    fn from_payload(_: &Message) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl FromPayload for Message {
    fn from_payload(message: &Message) -> Result<Self, Error> {
        Ok(message.clone())
    }
}

/// A Protocol Buffers message, by `prost`.
#[cfg(feature = "protobuf")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proto<T>(pub T);

#[cfg(feature = "protobuf")]
impl<T: prost::Message + Default + Send + 'static> FromPayload for Proto<T> {
    fn from_payload(message: &Message) -> Result<Self, Error> {
        const NAMES: [&str; 4] = [
            "application/protobuf",
            "application/x-protobuf",
            "application/grpc",
            "application/grpc+proto",
        ];
        if let Some(content_type) = message.content_type()
            && !NAMES
                .iter()
                .any(|name| content_type.as_str().eq_ignore_ascii_case(name))
        {
            let why =
                format!("the payload is {content_type:?} where the handler reads Protocol Buffers");
            return Err(Error::new(crate::ErrorKind::Codec, why));
        }
        T::decode(message.payload().clone())
            .map(Self)
            .map_err(|error| {
                let why = format!("the payload cannot be read from Protocol Buffers: {error}");
                Error::new(crate::ErrorKind::Codec, why).with_source(error)
            })
    }
}

#[cfg(feature = "protobuf")]
impl<T: prost::Message> IntoPayload for Proto<T> {
    fn into_payload(&self, _: Codec) -> Result<Encoded, Error> {
        Ok(Encoded {
            bytes: self.0.encode_to_vec().into(),
            content_type: Some(ContentType::PROTOBUF),
        })
    }
}

/// The largest scratch buffer that a thread keeps.
const MAX_SCRATCH: usize = 64 * 1024;

/// Encodes into the thread's buffer and copies the bytes out: one allocation of the right size for any payload.
fn with_scratch(encode: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>) -> Result<Bytes, Error> {
    thread_local!(static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
    SCRATCH.with(|scratch| {
        // A `Serialize` that encodes something else meanwhile finds the buffer taken, and gets one of its own.
        let mut buffer = scratch.take();
        buffer.clear();
        let encoded = encode(&mut buffer).map(|()| Bytes::copy_from_slice(&buffer));
        if buffer.capacity() <= MAX_SCRATCH {
            scratch.replace(buffer);
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Subject;

    fn message(payload: Encoded) -> Message {
        Message::new(Subject::parse("a").unwrap(), payload.bytes)
            .with_content_type(payload.content_type)
    }

    #[test]
    fn json_is_implied() {
        let sent = [1, 2].into_payload(Codec::Json).unwrap();
        assert_eq!(
            (sent.bytes.as_ref(), sent.content_type.is_none()),
            (b"[1,2]".as_slice(), true)
        );
        assert_eq!(Vec::<u8>::from_payload(&message(sent)).unwrap(), [1, 2]);
    }

    #[cfg(all(feature = "msgpack", feature = "cbor"))]
    #[test]
    fn the_content_type_decides_how_a_payload_is_read() {
        for codec in [Codec::Json, Codec::Msgpack, Codec::Cbor] {
            let sent = ("x", 7).into_payload(codec).unwrap();
            assert_eq!(
                <(String, u8)>::from_payload(&message(sent)).unwrap(),
                ("x".to_owned(), 7)
            );
        }
    }

    #[cfg(feature = "protobuf")]
    #[test]
    fn protobuf_refuses_another_content_type() {
        let sent = Proto(7_u32).into_payload(Codec::Json).unwrap();
        assert_eq!(
            Proto::<u32>::from_payload(&message(sent)).unwrap(),
            Proto(7)
        );
        let json =
            message(7.into_payload(Codec::Json).unwrap()).with_content_type(ContentType::JSON);
        assert!(
            Proto::<u32>::from_payload(&json)
                .unwrap_err()
                .to_string()
                .contains("application/json")
        );
    }
}
