//! C: where messages go.

use anywire::pattern::publish_subscribe::{Entry, Spec, SubscriptionId};
use anywire::{ErrorKind, MAX_SUBJECT_LEN, Pattern, Subject};

use crate::behaviour::behaviours;
use crate::{Ledger, Test};

behaviours! {
    c01_the_longest_subject_works_and_one_byte_more_does_not: [],
    c02_hostile_names_are_escaped_or_refused_alike_on_both_sides: [],
    c03_a_wildcard_gets_what_matches_and_nothing_else: [Wildcards],
    c03_a_tail_wildcard_gets_what_matches_and_nothing_else: [Wildcards],
    c03_a_leading_wildcard_does_not_meet_reserved_subjects: [Wildcards],
    c04_a_wildcard_is_refused_where_there_is_none: [NoWildcards],
    c05_two_patterns_of_one_group_each_get_a_copy: [Groups, Wildcards],
    c06_messages_with_and_without_a_key_share_a_subject: [],
    c07_a_subject_computed_for_each_message_needs_no_registration: [Wildcards],
}

/// The declared longest subject carries messages; a longer one is refused when it is made.
pub async fn c01_the_longest_subject_works_and_one_byte_more_does_not(test: &Test) {
    let client = test.connect().await;
    let longest = test.capabilities().limits.max_subject.min(MAX_SUBJECT_LEN);
    let stem = test.subject("x").to_string();
    let tail = "x".repeat(longest - stem.len() + 1);
    assert_eq!(test.subject(&tail).as_str().len(), longest);
    let mut subscription = client.subscribe(test.spec("group", &tail)).await;
    client.send(test.message(&tail, "body")).await;
    let delivery = subscription.next().await;
    assert_eq!(delivery.message.subject(), &test.subject(&tail));
    delivery.ack().await;
    let too_long = "x".repeat(MAX_SUBJECT_LEN + 1);
    let refused = Subject::parse(&too_long).expect_err("a subject above the limit");
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    let refused = Pattern::parse(&too_long).expect_err("a pattern above the limit");
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
}

/// Text that a user brought becomes one token, the same on both sides, and comes back; raw it is refused on both.
pub async fn c02_hostile_names_are_escaped_or_refused_alike_on_both_sides(test: &Test) {
    let client = test.connect().await;
    let hostile = [
        "a b",
        "a/b",
        "..",
        "*",
        ">",
        "a.>",
        "#",
        "+",
        "$SYS",
        "\u{1F980}",
        "\r\n",
        "\0",
        "",
        "=2E",
    ];
    for text in hostile {
        if !text.is_empty() && text != "=2E" && text != "$SYS" {
            let raw = format!("{}.{text}", test.subject("t"));
            assert!(
                Subject::parse(&raw).is_err(),
                "the subject {raw:?} was taken"
            );
        }
        let tail = format!("t.{}", Subject::escape(text));
        let mut subscription = client.subscribe(test.spec("group", &tail)).await;
        client.send(test.message(&tail, text)).await;
        let delivery = subscription.next().await;
        let token = delivery
            .message
            .subject()
            .tokens()
            .last()
            .map(Subject::unescape);
        assert_eq!(token.as_deref(), Some(text));
        assert_eq!(delivery.message.payload(), text);
        delivery.ack().await;
        subscription.stop().await;
    }
}

/// `*` is one token.
pub async fn c03_a_wildcard_gets_what_matches_and_nothing_else(test: &Test) {
    let matching = ["shop.eu.placed", "shop.us.placed"];
    let others = [
        "shop.placed",
        "shop.eu.x.placed",
        "shop.eu.paid",
        "shopper.eu.placed",
    ];
    only_matching_arrive(test, "shop.*.placed", &matching, &others).await;
}

/// `>` is one token or more.
pub async fn c03_a_tail_wildcard_gets_what_matches_and_nothing_else(test: &Test) {
    let matching = ["shop.eu", "shop.eu.placed", "shop.eu.x.y"];
    only_matching_arrive(
        test,
        "shop.>",
        &matching,
        &["shop", "shopper.eu", "other.shop.eu"],
    )
    .await;
}

/// What belongs to the framework is not met by a wildcard in first position.
pub async fn c03_a_leading_wildcard_does_not_meet_reserved_subjects(test: &Test) {
    let client = test.connect().await;
    let everything = Pattern::parse("*.dead.>").expect("a legal pattern");
    let reserved = Subject::dead_letters(&test.group("nobody"));
    assert!(!everything.matches(&reserved));
    let control = test.subject("control").to_string().replace('.', "-");
    let control = Subject::parse(&format!("{control}.dead.letter")).expect("a legal subject");
    client
        .declare(&Pattern::parse_any(reserved.as_str()).expect("a legal pattern"))
        .await;
    // A wildcard in first position makes no store of its own on every wire: the control's is there before it.
    client
        .declare(&Pattern::parse(control.as_str()).expect("a legal pattern"))
        .await;
    let id = SubscriptionId::new(test.group("all"), everything);
    let mut subscription = client
        .subscribe(Spec::new(id).with_guarantee(test.guarantee()))
        .await;
    client
        .send(test.message("x", "letter").with_subject(reserved))
        .await;
    client
        .send(test.message("x", "control").with_subject(control))
        .await;
    let delivery = subscription.next().await;
    assert_eq!(delivery.message.payload(), "control");
    delivery.ack().await;
    subscription.stays_quiet().await;
}

/// A pattern is never taken for a literal subject.
pub async fn c04_a_wildcard_is_refused_where_there_is_none(test: &Test) {
    let client = test.connect().await;
    let opened = client.try_subscribe(test.spec("group", "shop.*")).await;
    let refused = opened.expect_err("the wire has no wildcards");
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
}

/// Different patterns that match one message are two subscriptions, in one group too.
pub async fn c05_two_patterns_of_one_group_each_get_a_copy(test: &Test) {
    let client = test.connect().await;
    let specs = [
        test.spec("group", "shop.*.placed"),
        test.spec("group", "shop.>"),
    ];
    let opened = client.subscribe_all(&specs).await;
    let messages = test.messages("shop.eu.placed", 5);
    client.send_all(&messages).await;
    for subscription in opened {
        let mut ledger = Ledger::of(&messages);
        subscription
            .expect("both open")
            .receive_all(&mut ledger)
            .await;
        ledger.balance(0);
    }
}

/// A key is a field, not a condition.
pub async fn c06_messages_with_and_without_a_key_share_a_subject(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let mut messages = test.messages("events", 20);
    for (message, key) in messages
        .iter_mut()
        .zip([None, Some("a"), Some("b"), Some("")].into_iter().cycle())
    {
        if let Some(key) = key {
            *message = message.clone().with_key(key);
        }
    }
    client.send_all(&messages).await;
    let mut ledger = Ledger::of(&messages);
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

/// One subscription meets subjects that nobody knew before.
pub async fn c07_a_subject_computed_for_each_message_needs_no_registration(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client
        .subscribe(test.spec("group", "user.{name}.seen"))
        .await;
    let messages: Vec<_> = (0..50)
        .map(|user| test.message(&format!("user.u{user}.seen"), "seen"))
        .collect();
    client.send_all(&messages).await;
    let mut ledger = Ledger::of(&messages);
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}

async fn only_matching_arrive(test: &Test, pattern: &str, matching: &[&str], others: &[&str]) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", pattern)).await;
    for other in others {
        let _ = client
            .try_send(Entry::new(test.message(other, (*other).to_owned())))
            .await;
    }
    let messages: Vec<_> = matching
        .iter()
        .map(|tail| test.message(tail, (*tail).to_owned()))
        .collect();
    client.send_all(&messages).await;
    let mut ledger = Ledger::of(&messages);
    subscription.receive_all(&mut ledger).await;
    ledger.balance(0);
}
