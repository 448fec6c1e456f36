//! What a message emitted by a handler inherits from the delivery that caused it.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

use crate::context::Context;
use crate::message::Guard;
use crate::{Codec, Message, MessageId};

/// Headers that a trace consists of. They are carried along untouched.
const TRACE_HEADERS: [&str; 3] = ["traceparent", "tracestate", "baggage"];

/// The longest trace header that is carried along: what W3C gives a baggage.
const MAX_TRACE_HEADER: usize = 8192;

/// The most different emits of one delivery whose repetitions are told apart. Beyond it ids are random.
const MAX_ORDINALS: usize = 4096;

/// The delivery that a handler's client descends from.
#[derive(Debug)]
pub(crate) struct Cause {
    id: Option<MessageId>,
    subscription: String,
    trace: Vec<(&'static str, Bytes)>,
    guard: Option<Guard>,
    codec: Codec,
    ordinals: Mutex<HashMap<u128, u32>>,
}

impl Cause {
    pub(crate) fn new(context: &Context) -> Self {
        let info = &context.scope.info;
        let headers = context.headers();
        let trace = TRACE_HEADERS
            .into_iter()
            .filter_map(|name| Some((name, headers.get(name)?.clone())))
            .filter(|(_, value)| value.len() <= MAX_TRACE_HEADER)
            .collect();
        Self {
            id: context.id().cloned(),
            subscription: format!(
                "{}/{}",
                info.group.as_deref().unwrap_or_default(),
                info.pattern.wildcards()
            ),
            trace,
            guard: context.message.guard().cloned(),
            codec: context.scope.codec,
            ordinals: Mutex::default(),
        }
    }

    /// How the handler's client encodes.
    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    /// Gives `message` the trace, the guard and an id that a redelivery would give it again.
    pub(crate) fn mark(&self, message: &mut Message) {
        for (name, value) in &self.trace {
            if !message.headers().contains(name) {
                message.headers_mut().append_foreign(name, value.clone());
            }
        }
        message.set_guard(self.guard.clone());
        if message.id().is_none()
            && let Some(id) = self.derive(message)
        {
            message.set_id(id);
        }
    }

    /// An id from the incoming id, the subscription, the subject, the key, the payload, and how many of the same were
    /// emitted before.
    fn derive(&self, message: &Message) -> Option<MessageId> {
        let mut hasher = SipHasher13::new();
        let mut write = |part: &[u8]| {
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part);
        };
        write(self.id.as_ref()?.to_string().as_bytes());
        write(self.subscription.as_bytes());
        write(message.subject().as_str().as_bytes());
        write(message.key().map_or(&[], |key| key.as_bytes()));
        write(message.payload());
        let same = hasher.finish128().as_u128();
        let ordinal = {
            let mut ordinals = self.ordinals.lock();
            if ordinals.len() == MAX_ORDINALS && !ordinals.contains_key(&same) {
                return None;
            }
            let next = ordinals.entry(same).or_default();
            *next += 1;
            *next
        };
        hasher.write(&ordinal.to_le_bytes());
        Some(MessageId::from_bytes(
            hasher.finish128().as_u128().to_be_bytes(),
        ))
    }
}
