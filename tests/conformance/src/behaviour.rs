//! A behaviour: a test with a name, what it needs, and what it does.

use anywire::{Capabilities, DeliveryCount, Guarantee, OrderScope, Support};
use futures::future::BoxFuture;

use crate::{Harness, Test};

/// One numbered behaviour.
///
/// Its name begins with its id and goes on as a sentence: `d06_out_of_order_acks_are_safe`.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// The name.
    pub name: &'static str,
    /// What must be declared for it to be tested.
    pub needs: &'static [Need],
    /// What it does. It panics where the adapter does not behave.
    pub run: for<'a> fn(&'a Test) -> BoxFuture<'a, ()>,
}

impl Behaviour {
    /// Whether it must run alone, because it breaks the broker that the others use.
    #[must_use]
    pub fn is_serial(&self) -> bool {
        self.needs.contains(&Need::Broker)
    }

    /// Why it is skipped on this adapter; `None` where it is tested.
    #[must_use]
    pub fn skipped(&self, harness: &dyn Harness) -> Option<&'static str> {
        let capabilities = harness.capabilities();
        let unmet = |need: &&Need| !need.is_met(harness, &capabilities);
        self.needs.iter().find(unmet).map(|need| need.reason())
    }
}

/// What a behaviour needs of the adapter or of its harness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// What is not settled comes again: events are at least once, by the harness' configuration.
    AtLeastOnce,
    /// Messages survive without a consumer and across a restart.
    Durable,
    /// Messages do not: what is published before anybody subscribes is gone.
    NotDurable,
    /// Groups that share work.
    Groups,
    /// Order for a single consumer.
    ConsumerOrder,
    /// Order per key across a group.
    KeyOrderInGroup,
    /// A new group may begin with what was published before it.
    Replay,
    /// Nothing is kept of what was delivered.
    NoReplay,
    /// A delivery can be given back for later, by the wire itself.
    ReturnAfter,
    /// A delivery cannot be given back for later by the wire itself.
    NoReturnAfter,
    /// The wire counts deliveries exactly.
    DeliveryCount,
    /// A completed publish is stored.
    Confirm,
    /// A publish to nowhere is told.
    Unroutable,
    /// Repeated ids are dropped.
    Dedup,
    /// Wildcards.
    Wildcards,
    /// No wildcards.
    NoWildcards,
    /// Calls.
    Calls,
    /// Streaming calls.
    Streams,
    /// A call that nobody answers fails at once.
    NoResponder,
    /// Publishing for later.
    Delay,
    /// No publishing for later.
    NoDelay,
    /// The harness can break the broker.
    Broker,
    /// The harness has a native client.
    Raw,
}

impl Need {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::AtLeastOnce,
        Self::Durable,
        Self::NotDurable,
        Self::Groups,
        Self::ConsumerOrder,
        Self::KeyOrderInGroup,
        Self::Replay,
        Self::NoReplay,
        Self::ReturnAfter,
        Self::NoReturnAfter,
        Self::DeliveryCount,
        Self::Confirm,
        Self::Unroutable,
        Self::Dedup,
        Self::Wildcards,
        Self::NoWildcards,
        Self::Calls,
        Self::Streams,
        Self::NoResponder,
        Self::Delay,
        Self::NoDelay,
        Self::Broker,
        Self::Raw,
    ];

    fn is_met(self, harness: &dyn Harness, declared: &Capabilities) -> bool {
        match self {
            Self::AtLeastOnce => harness.app_config().guarantee() == Guarantee::AtLeastOnce,
            Self::Durable => declared.durable.is_supported(),
            Self::NotDurable => !declared.durable.is_supported(),
            Self::Groups => declared.groups.is_supported(),
            Self::ConsumerOrder => {
                matches!(
                    declared.order,
                    OrderScope::Consumer | OrderScope::KeyInGroup
                )
            }
            Self::KeyOrderInGroup => declared.order >= OrderScope::KeyInGroup,
            Self::Replay => declared.replay.is_supported(),
            Self::NoReplay => !declared.replay.is_supported(),
            Self::ReturnAfter => declared.return_after == Support::Native,
            Self::NoReturnAfter => declared.return_after != Support::Native,
            Self::DeliveryCount => declared.delivery_count == DeliveryCount::Exact,
            Self::Confirm => declared.confirm.is_supported(),
            Self::Unroutable => declared.unroutable.is_supported(),
            Self::Dedup => declared.dedup.is_some(),
            Self::Wildcards => declared.wildcards.is_supported(),
            Self::NoWildcards => !declared.wildcards.is_supported(),
            Self::Calls => declared.calls.is_supported(),
            Self::Streams => declared.streams.is_supported(),
            Self::NoResponder => declared.no_responder.is_supported(),
            Self::Delay => declared.delay.is_supported(),
            Self::NoDelay => !declared.delay.is_supported(),
            Self::Broker => harness.broker().is_some(),
            Self::Raw => harness.raw().is_some(),
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::AtLeastOnce => "events are at most once",
            Self::Durable => "durable: no",
            Self::NotDurable => "durable: yes",
            Self::Groups => "groups: no",
            Self::ConsumerOrder => "order: none without a key",
            Self::KeyOrderInGroup => "order: not per key in group",
            Self::Replay => "replay: no",
            Self::NoReplay => "replay: yes",
            Self::ReturnAfter => "return_after: not native",
            Self::NoReturnAfter => "return_after: native",
            Self::DeliveryCount => "delivery_count: not exact",
            Self::Confirm => "confirm: no",
            Self::Unroutable => "unroutable: no",
            Self::Dedup => "dedup: no",
            Self::Wildcards => "wildcards: no",
            Self::NoWildcards => "wildcards: yes",
            Self::Calls => "calls: no",
            Self::Streams => "streams: no",
            Self::NoResponder => "no_responder: no",
            Self::Delay => "delay: no",
            Self::NoDelay => "delay: yes",
            Self::Broker => "the harness cannot break the broker",
            Self::Raw => "the harness has no native client",
        }
    }
}

/// Lists the behaviours of a section, in order, with what they need.
macro_rules! behaviours {
    ($($name:ident: [$($need:ident),*],)*) => {
        /// The behaviours of this section, in order.
        pub const ALL: &[$crate::Behaviour] = &[$($crate::Behaviour {
            name: stringify!($name),
            needs: &[$($crate::Need::$need),*],
            run: |test| Box::pin($name(test)),
        }),*];
    };
}

pub(crate) use behaviours;
