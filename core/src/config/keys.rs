//! The keys of each section, said once: name, type, kind.

use std::path::PathBuf;
use std::time::Duration;

use super::kind;
use super::origin::{Origin, Said, merge};
use super::tree::Node;
use super::{AfterFailure, HandlerSettings, Unrouted};
use crate::pattern::publish_subscribe::{Guarantee, Order, Provision, Start};
use crate::{Codec, Error, Pattern};

/// A key that is said: its name, its value as it may be shown, its origin.
pub(super) type Shown<'a> = (&'static str, String, &'a Origin);

/// A section whose keys are all known.
pub(super) trait Keys {
    /// Their names.
    const NAMES: &'static [&'static str];

    /// Reads `key` if it is one of these, and tells whether it is.
    fn read(&mut self, key: &str, node: &Node, path: &str) -> Result<bool, Error>;

    /// Puts what `high` says over what this says, each key by the strength of its layer.
    fn merge(&mut self, high: &Self);

    /// What is said, in the order of the keys.
    fn said(&self) -> Vec<Shown<'_>>;
}

macro_rules! keys {
    ($(#[$doc:meta])* $name:ident { $($field:ident $key:literal: $type:ty = $kind:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Default)]
        pub(super) struct $name {
            $(pub(super) $field: Option<Said<$type>>,)*
        }

        impl Keys for $name {
            const NAMES: &'static [&'static str] = &[$($key),*];

            fn read(&mut self, key: &str, node: &Node, path: &str) -> Result<bool, Error> {
                match key {
                    $($key => self.$field = Some($kind.read(node, key, path)?),)*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            fn merge(&mut self, high: &Self) {
                $(merge(&mut self.$field, &high.$field);)*
            }

            fn said(&self) -> Vec<Shown<'_>> {
                let mut said: Vec<Shown<'_>> = Vec::new();
                $(if let Some(value) = &self.$field {
                    said.push(($key, ($kind.show)(&value.value), &value.origin));
                })*
                said
            }
        }
    };
}

keys! {
    /// The top level, without its sections.
    TopKeys {
        events "events": String = kind::TRANSPORT,
        calls "calls": String = kind::TRANSPORT,
        grace "grace": Duration = kind::GRACE,
        connect_timeout "connect_timeout": Duration = kind::TIMEOUT,
        request_timeout "request_timeout": Duration = kind::TIMEOUT,
        emit_timeout "emit_timeout": Duration = kind::TIMEOUT,
        retention "retention": Duration = kind::RETENTION,
        dead_letter_retention "dead_letter_retention": Duration = kind::RETENTION,
        provision "provision": Provision = kind::PROVISION,
    }
}

keys! {
    /// `[defaults]` and `[handlers.NAME]`.
    HandlerKeys {
        group "group": String = kind::GROUP,
        broadcast "broadcast": bool = kind::FLAG,
        concurrency "concurrency": usize = kind::CONCURRENCY,
        timeout "timeout": Duration = kind::TIMEOUT,
        retry "retry": Vec<Duration> = kind::RETRY,
        guarantee "delivery": Guarantee = kind::GUARANTEE,
        order "order": Order = kind::ORDER,
        after_failure "after_failure": AfterFailure = kind::AFTER_FAILURE,
        start "start": Start = kind::START,
        transport "transport": String = kind::TRANSPORT,
        provision "provision": Provision = kind::PROVISION,
        codec "codec": Codec = kind::CODEC,
    }
}

keys! {
    /// `[[subjects]]`, without the tables for single wires.
    SubjectKeys {
        pattern "match": Pattern = kind::PATTERN,
        transport "transport": String = kind::TRANSPORT,
        guarantee "delivery": Guarantee = kind::GUARANTEE,
        retention "retention": Duration = kind::RETENTION,
        replicas "replicas": u32 = kind::REPLICAS,
        unrouted "unrouted": Unrouted = kind::UNROUTED,
        declare "declare": bool = kind::FLAG,
    }
}

keys! {
    /// `tls` of a transport.
    TlsKeys {
        ca "ca": PathBuf = kind::PATH,
        cert "cert": PathBuf = kind::PATH,
        key "key": PathBuf = kind::PATH,
        server_name "server_name": String = kind::TEXT,
    }
}

impl HandlerKeys {
    /// Takes what the code of `owner` says.
    ///
    /// # Errors
    /// `Config`, for a value that configuration would refuse too.
    pub(super) fn in_code(settings: &HandlerSettings, owner: &str) -> Result<Self, Error> {
        let HandlerSettings {
            group,
            broadcast,
            concurrency,
            timeout,
            retry,
            guarantee,
            order,
            after_failure,
            start,
            transport,
            provision,
            codec,
        } = settings;
        Ok(Self {
            group: kind::GROUP.code(group.as_ref(), "group", owner)?,
            broadcast: kind::FLAG.code(broadcast.as_ref(), "broadcast", owner)?,
            concurrency: kind::CONCURRENCY.code(concurrency.as_ref(), "concurrency", owner)?,
            timeout: kind::TIMEOUT.code(timeout.as_ref(), "timeout", owner)?,
            retry: kind::RETRY.code(retry.as_ref(), "retry", owner)?,
            guarantee: kind::GUARANTEE.code(guarantee.as_ref(), "delivery", owner)?,
            order: kind::ORDER.code(order.as_ref(), "order", owner)?,
            after_failure: kind::AFTER_FAILURE.code(
                after_failure.as_ref(),
                "after_failure",
                owner,
            )?,
            start: kind::START.code(start.as_ref(), "start", owner)?,
            transport: kind::TRANSPORT.code(transport.as_ref(), "transport", owner)?,
            provision: kind::PROVISION.code(provision.as_ref(), "provision", owner)?,
            codec: kind::CODEC.code(codec.as_ref(), "codec", owner)?,
        })
    }

    /// What holds where `self` lies over `low`, whatever the strength of the layers.
    pub(super) fn over(self, low: Self) -> Self {
        Self {
            group: self.group.or(low.group),
            broadcast: self.broadcast.or(low.broadcast),
            concurrency: self.concurrency.or(low.concurrency),
            timeout: self.timeout.or(low.timeout),
            retry: self.retry.or(low.retry),
            guarantee: self.guarantee.or(low.guarantee),
            order: self.order.or(low.order),
            after_failure: self.after_failure.or(low.after_failure),
            start: self.start.or(low.start),
            transport: self.transport.or(low.transport),
            provision: self.provision.or(low.provision),
            codec: self.codec.or(low.codec),
        }
    }
}
