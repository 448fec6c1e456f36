//! Names on the broker: injective, so that two subscriptions never share an object.
//!
//! The names of streams, consumers and queue groups hold no dot, no wildcard, no space and no slash. What may not stand
//! in them is replaced one to one, and what stands for something else is escaped; a name that would be too long for the
//! server's file system is cut and ends with a hash of the whole.

use std::fmt::Write;
use std::hash::Hasher;

use anywire::Pattern;
use anywire::pattern::publish_subscribe::SubscriptionId;
use siphasher::sip128::{Hasher128, SipHasher13};

/// The stream that holds delayed copies and copies for one subscription.
pub(crate) const RETRY_STREAM: &str = "anywire_retry";
/// The subjects of [`RETRY_STREAM`].
pub(crate) const RETRY_SUBJECTS: &str = "anywire.retry.*";
/// The stream that holds dead letters.
pub(crate) const DEAD_STREAM: &str = "anywire_dead";
/// The subjects of [`DEAD_STREAM`].
pub(crate) const DEAD_SUBJECTS: &str = "anywire.dead.*";

/// The longest name that we make: the server turns names into those of directories, which have at most 255 bytes.
const MAX_NAME: usize = 200;
/// What stands between a group and a pattern. An escape is `=` with two digits, so it never reads like this.
const SEPARATOR: &str = "==";

/// The name of the durable consumer of a group's subscription, and of its queue group on core NATS.
pub(crate) fn subscription(subscription: &SubscriptionId) -> String {
    let group = subscription.group.as_deref().unwrap_or_default();
    let pattern = subscription.pattern.wildcards();
    bounded(format!("{}{SEPARATOR}{}", escape(group), escape(pattern)))
}

/// The queue group of all who answer a pattern.
pub(crate) fn calls(pattern: &Pattern) -> String {
    // `=c` is no escape, so that no group's name begins like this.
    bounded(format!("=calls{SEPARATOR}{}", escape(pattern.wildcards())))
}

/// The subject that carries copies to one subscription.
pub(crate) fn retry_subject(subscription_name: &str) -> String {
    format!("anywire.retry.{subscription_name}")
}

/// The name of our stream for all subjects that begin with `token`.
pub(crate) fn stream(token: &str) -> String {
    // The streams of the framework itself are `anywire_...`.
    bounded(format!("anywire-{}", escape(token)))
}

/// Replaces what may not stand in a name. No two texts become the same.
fn escape(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'.' => name.push('~'),
            b'*' => name.push('@'),
            b'>' => name.push('%'),
            b'-' | b'_' => name.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => name.push(char::from(byte)),
            _ => {
                // Writing to a text does not fail.
                let _ = write!(name, "={byte:02X}");
            }
        }
    }
    name
}

fn bounded(mut name: String) -> String {
    if name.len() > MAX_NAME {
        let mut hasher = SipHasher13::new();
        hasher.write(name.as_bytes());
        let hash = hasher.finish128().as_u128();
        // A name is ASCII.
        name.truncate(MAX_NAME - 35);
        // `=h` is no escape, so that no short name reads like this.
        let _ = write!(name, "=h{hash:032x}");
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

    #[test]
    fn names_are_readable() {
        assert_eq!(
            subscription(&id("shop", "shop.*.placed")),
            "shop==shop~@~placed"
        );
        assert_eq!(calls(&Pattern::parse("shop.>").unwrap()), "=calls==shop~%");
        assert_eq!(stream("shop"), "anywire-shop");
        assert_eq!(retry_subject("shop==a"), "anywire.retry.shop==a");
    }

    #[test]
    fn renaming_a_capture_changes_no_name() {
        assert_eq!(
            subscription(&id("g", "a.{x}.b")),
            subscription(&id("g", "a.{y}.b"))
        );
    }

    #[test]
    fn no_stream_of_a_user_is_one_of_ours() {
        for token in ["retry", "dead", "_retry"] {
            assert!(![RETRY_STREAM, DEAD_STREAM].contains(&stream(token).as_str()));
        }
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
        fn escaping_is_injective(one in "[a.*>=~@%_é-]{0,6}", other in "[a.*>=~@%_é-]{0,6}") {
            prop_assert_eq!(escape(&one) == escape(&other), one == other);
        }

        #[test]
        fn two_subscriptions_never_share_a_name(
            g in "[a=@~%.]{0,3}", p in pattern(), h in "[a=@~%.]{0,3}", q in pattern(),
        ) {
            let (one, other) = (id(&g, &p), id(&h, &q));
            prop_assert_eq!(subscription(&one) == subscription(&other), one == other);
            prop_assert_ne!(subscription(&one), calls(&other.pattern));
        }

        #[test]
        fn a_name_is_legal_on_the_server(group in any::<String>(), p in pattern()) {
            let name = subscription(&id(&group, &p));
            prop_assert!(name.len() <= MAX_NAME);
            prop_assert!(!name.contains(['.', '*', '>', '/', '\\', ' ']));
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
