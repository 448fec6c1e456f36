//! The error that a call's handler sends back to its caller.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What a handler answered instead of a reply: a code to branch on, a message to read, details to decode.
///
/// It travels as a JSON object in the reply's payload, marked by the `anywire-error` header that holds the code.
///
/// ```
/// use anywire::RemoteError;
///
/// let error = RemoteError::new("sold_out", "there is none left").with_details(Some(3.into()));
/// assert_eq!((error.code(), error.details_as::<u32>()), ("sold_out", Some(3)));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoteError {
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Value>,
    #[serde(default)]
    retryable: bool,
}

impl RemoteError {
    /// The code of an error that the handler did not classify. Its text stays on the serving side, under an error id.
    pub const INTERNAL: &'static str = "internal";
    /// The code for a request that the handler could not decode.
    pub const INVALID_PAYLOAD: &'static str = "invalid_payload";

    /// The code for a call whose deadline had passed before its handler could begin.
    pub const EXPIRED: &'static str = "expired";

    /// The code for a reply that is larger than the transport takes.
    pub const TOO_LARGE: &'static str = "too_large";

    /// Makes a remote error; adapters use it to map a wire's own status.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            details: None,
            retryable: false,
        }
    }

    /// The answer to a call with one reply, where only streaming calls are answered.
    pub(crate) fn not_streaming() -> Self {
        let text =
            "this subject answers streaming calls; use `client.stream`, `upload` or `duplex`";
        Self::new("streaming_call", text)
    }

    /// Adds details that the caller can decode.
    #[must_use]
    pub fn with_details(mut self, details: Option<Value>) -> Self {
        self.details = details;
        self
    }

    /// Says whether the caller may try again.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// The code to branch on, such as `unknown_item`.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// A sentence for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The handler's details, undecoded.
    #[must_use]
    pub fn details(&self) -> Option<&Value> {
        self.details.as_ref()
    }

    /// The handler's details, decoded; `None` where there are none or they are of another type.
    #[must_use]
    pub fn details_as<E: DeserializeOwned>(&self) -> Option<E> {
        self.details
            .as_ref()
            .and_then(|details| E::deserialize(details).ok())
    }

    /// Whether the handler says that trying again may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }
}
