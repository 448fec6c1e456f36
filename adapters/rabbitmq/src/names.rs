//! Names on the broker: injective, so that two subscriptions never share an object.
//!
//! The name of a queue is free text of at most 255 bytes. All names of ours begin with that of the exchange, which holds
//! neither `/` nor `~`; what follows says what the queue is for. A name that would be too long is cut and ends with a hash
//! of the whole.

use std::fmt::Write;
use std::hash::Hasher;

use anywire::Pattern;
use anywire::pattern::publish_subscribe::SubscriptionId;
use siphasher::sip128::{Hasher128, SipHasher13};

/// The longest name that the broker takes, in bytes: that of an AMQP short string.
pub(crate) const MAX_NAME: usize = 255;
/// What an exchange's name is followed by in the name of an inbox.
const INBOX: &str = "~inbox/";
/// `#` and 32 digits. No pattern, and no escaped group, holds a `#`.
const HASH: usize = 33;

/// The names that belong to one exchange.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    exchange: String,
}

impl Names {
    pub(crate) fn new(exchange: &str) -> Self {
        Self {
            exchange: exchange.to_owned(),
        }
    }

    /// The exchange of all events.
    pub(crate) fn exchange(&self) -> &str {
        &self.exchange
    }

    /// The exchange of all calls: a subscription never gets a copy of one.
    pub(crate) fn calls_exchange(&self) -> String {
        format!("{}~calls", self.exchange)
    }

    /// The queue of a group's subscription. All who read the dead letters of a group read the one queue that holds them.
    pub(crate) fn subscription(&self, subscription: &SubscriptionId) -> String {
        let pattern = &subscription.pattern;
        if pattern.is_dead_letters() && pattern.is_literal() {
            return self.dead_letters(pattern);
        }
        let group = escape(subscription.group.as_deref().unwrap_or_default());
        bounded(format!("{}/{group}/{}", self.exchange, pattern.wildcards()))
    }

    /// The queue of a group's subscription that may lose messages.
    pub(crate) fn fleeting(&self, subscription: &SubscriptionId) -> String {
        let group = escape(subscription.group.as_deref().unwrap_or_default());
        let pattern = subscription.pattern.wildcards();
        bounded(format!("{}~fleeting/{group}/{pattern}", self.exchange))
    }

    /// The queue of one instance's own copies.
    pub(crate) fn private(&self, unique: u128) -> String {
        format!("{}~private/{unique:032x}", self.exchange)
    }

    /// The queue of the frames of one client's streams.
    pub(crate) fn inbox(&self, unique: u128) -> String {
        format!("{}{INBOX}{unique:032x}", self.exchange)
    }

    /// Whether a queue's name is that of an inbox, of whatever exchange.
    pub(crate) fn is_inbox(queue: &str) -> bool {
        let unique = queue.split_once(INBOX).map(|(_, unique)| unique);
        unique.is_some_and(|it| it.len() == 32 && it.bytes().all(|digit| digit.is_ascii_hexdigit()))
    }

    /// The queue that keeps what matches `pattern` before anybody subscribes; for dead letters, the one where they are.
    pub(crate) fn store(&self, pattern: &Pattern) -> String {
        if pattern.is_dead_letters() && pattern.is_literal() {
            return self.dead_letters(pattern);
        }
        bounded(format!("{}~store/{}", self.exchange, pattern.wildcards()))
    }

    /// The queue that says that `queue` is to have what a store holds.
    pub(crate) fn claim(&self, queue: &str) -> String {
        bounded(format!("{}~claim/{queue}", self.exchange))
    }

    fn dead_letters(&self, pattern: &Pattern) -> String {
        let of = pattern.wildcards();
        let rest = of.strip_prefix("anywire").unwrap_or(of);
        bounded(format!("{}{rest}", self.exchange))
    }

    /// The queue of all who answer a pattern.
    pub(crate) fn calls(&self, pattern: &Pattern) -> String {
        bounded(format!("{}~calls/{}", self.exchange, pattern.wildcards()))
    }

    /// The queue where messages for `queue` wait for 2^`step` seconds.
    pub(crate) fn delay_for(&self, step: u32, queue: &str) -> String {
        bounded(format!("{}~delay/{step}/{queue}", self.exchange))
    }

    /// The queue, and the exchange before it, where events wait for 2^`step` seconds.
    pub(crate) fn rung(&self, step: u32) -> String {
        format!("{}~ladder/{step}", self.exchange)
    }

    /// The exchange to which events come whose time has come, and the queue that takes each of them, too, and keeps none.
    pub(crate) fn ladders_end(&self) -> String {
        format!("{}~ladder/end", self.exchange)
    }
}

/// The binding key of a pattern on a topic exchange. `>` stands for one token or more, `#` alone also for none.
pub(crate) fn binding(pattern: &Pattern) -> String {
    let key = pattern.wildcards();
    match key.strip_suffix('>') {
        Some(start) => format!("{start}*.#"),
        None => key.to_owned(),
    }
}

/// Replaces what divides the parts of a name.
fn escape(group: &str) -> String {
    let mut escaped = String::with_capacity(group.len());
    for char in group.chars() {
        match char {
            '/' | '%' | '#' => {
                // Writing to a text does not fail.
                let _ = write!(escaped, "%{:02X}", u32::from(char));
            }
            _ => escaped.push(char),
        }
    }
    escaped
}

fn bounded(mut name: String) -> String {
    if name.len() > MAX_NAME {
        let mut hasher = SipHasher13::new();
        hasher.write(name.as_bytes());
        let hash = hasher.finish128().as_u128();
        let mut end = MAX_NAME - HASH;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        let _ = write!(name, "#{hash:032x}");
    }
    name
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn id(group: &str, pattern: &str) -> SubscriptionId {
        SubscriptionId::new(group, Pattern::parse_any(pattern).unwrap())
    }

    fn names() -> Names {
        Names::new("anywire")
    }

    #[test]
    fn names_are_readable() {
        let names = names();
        let placed = id("shop", "shop.*.placed");
        assert_eq!(names.subscription(&placed), "anywire/shop/shop.*.placed");
        assert_eq!(
            names.fleeting(&placed),
            "anywire~fleeting/shop/shop.*.placed"
        );
        assert_eq!(
            names.calls(&Pattern::parse("shop.>").unwrap()),
            "anywire~calls/shop.>"
        );
        assert_eq!(
            names.delay_for(3, "anywire/shop/a"),
            "anywire~delay/3/anywire/shop/a"
        );
    }

    #[test]
    fn all_who_read_dead_letters_read_one_queue() {
        let names = names();
        let pattern = Pattern::parse_any("anywire.dead.shop").unwrap();
        assert_eq!(names.store(&pattern), "anywire.dead.shop");
        for group in ["ops", "audit"] {
            let reader = id(group, "anywire.dead.shop");
            assert_eq!(names.subscription(&reader), "anywire.dead.shop");
        }
        assert_ne!(
            names.subscription(&id("ops", "anywire.dead.*")),
            names.subscription(&id("audit", "anywire.dead.*"))
        );
    }

    #[test]
    fn a_tail_takes_one_token_or_more() {
        let key = |pattern| binding(&Pattern::parse_any(pattern).unwrap());
        assert_eq!(key("shop.>"), "shop.*.#");
        assert_eq!(key(">"), "*.#");
        assert_eq!(key("shop.{region}.placed"), "shop.*.placed");
    }

    fn pattern() -> impl Strategy<Value = String> {
        let token = prop_oneof![
            "[a-c=@~%:_-]{1,4}".prop_map(|token| token),
            Just("*".to_owned()),
            "[a-z]{40,90}".prop_map(|token| token),
        ];
        (prop::collection::vec(token, 1..4), any::<bool>()).prop_filter_map(
            "too long",
            |(mut tokens, tail)| {
                if tail {
                    tokens.push(">".to_owned());
                }
                let text = tokens.join(".");
                (text.len() <= 255).then_some(text)
            },
        )
    }

    proptest! {
        #[test]
        fn two_subscriptions_never_share_a_name(
            g in "[a=/%#.~]{0,3}", p in pattern(), h in "[a=/%#.~]{0,3}", q in pattern(),
        ) {
            let (one, other) = (id(&g, &p), id(&h, &q));
            let names = names();
            prop_assert_eq!(names.subscription(&one) == names.subscription(&other), one == other);
            prop_assert_ne!(names.subscription(&one), names.fleeting(&other));
            prop_assert_ne!(names.subscription(&one), names.calls(&other.pattern));
            prop_assert_ne!(names.subscription(&one), names.store(&other.pattern));
            prop_assert_ne!(names.subscription(&one), names.delay_for(1, &names.subscription(&other)));
        }

        #[test]
        fn a_name_is_legal_on_the_broker(group in any::<String>(), p in pattern()) {
            let names = names();
            let name = names.subscription(&id(&group, &p));
            prop_assert!(name.len() <= MAX_NAME && !name.starts_with("amq."));
            prop_assert!(names.delay_for(27, &name).len() <= MAX_NAME);
        }
    }
}
