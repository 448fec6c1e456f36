//! The suite must be able to fail: transports that misbehave on purpose, each caught by a behaviour with a name.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use anywire_conformance::{Behaviour, Harness, Profile, behaviours, check};
use support::broken::Fault;
use support::{Frozen, Wrapped};

/// Asserts that a healthy transport shows the behaviour and one with this fault does not.
fn caught(fault: Fault, by: &[&str]) {
    for name in by {
        let behaviour = named(name);
        let healthy: Arc<dyn Harness> = Arc::new(Frozen(Wrapped::new("healthy", Fault::None)));
        check(&healthy, behaviour, Profile::Smoke).unwrap();
        let broken: Arc<dyn Harness> = Arc::new(Frozen(Wrapped::new("broken", fault)));
        let Err(report) = check(&broken, behaviour, Profile::Smoke) else {
            panic!("{fault:?} was not caught by {name}");
        };
        println!("{fault:?} was caught by {name}: {report}");
    }
}

fn named(name: &str) -> &'static Behaviour {
    let found = behaviours().find(|behaviour| behaviour.name == name);
    found.unwrap_or_else(|| panic!("there is no behaviour {name}"))
}

#[test]
fn dropping_one_in_a_hundred_is_caught() {
    caught(
        Fault::DropsOneInAHundred,
        &["a01_every_published_message_arrives_once_intact"],
    );
}

#[test]
fn delivering_twice_is_caught() {
    caught(
        Fault::DeliversTwice,
        &["a01_every_published_message_arrives_once_intact"],
    );
}

#[test]
fn acking_early_is_caught() {
    caught(
        Fault::AcksEarly,
        &[
            "d02_dropping_a_delivery_does_not_ack_it",
            "d11_what_a_crashed_consumer_held_goes_to_another",
        ],
    );
}

#[test]
fn ignoring_the_group_is_caught() {
    caught(
        Fault::IgnoresTheGroup,
        &["a05_the_members_of_a_group_share_the_load"],
    );
}

#[test]
fn ignoring_the_window_is_caught() {
    caught(
        Fault::IgnoresTheWindow,
        &[
            "d09_a_window_of_one_stops_and_waits",
            "j02_the_window_is_a_hard_limit",
        ],
    );
}

#[test]
fn swapping_two_messages_is_caught() {
    caught(
        Fault::SwapsTwoMessages,
        &["f03_the_order_of_a_batch_is_the_order_of_its_entries"],
    );
}

#[test]
fn losing_headers_is_caught() {
    caught(Fault::LosesHeaders, &["b06_headers_survive"]);
}

#[test]
fn ignoring_the_deadline_is_caught() {
    caught(
        Fault::IgnoresTheDeadline,
        &["o04_a_call_ends_at_its_deadline_and_a_late_reply_is_dropped"],
    );
}

#[test]
fn ignoring_the_delay_is_caught() {
    caught(
        Fault::IgnoresTheDelay,
        &[
            "q01_a_delayed_message_comes_in_time_and_not_before",
            "q01_a_calendar_time_is_kept_and_one_that_has_passed_is_at_once",
        ],
    );
}

#[test]
fn ignoring_the_start_is_caught() {
    caught(
        Fault::IgnoresTheStart,
        &[
            "g01_a_new_group_begins_where_it_is_told",
            "g01_a_new_group_begins_at_a_time_or_a_position",
            "g10_a_private_copy_seeks_within_what_is_kept_and_no_further",
        ],
    );
}

#[test]
fn ignoring_the_end_is_caught() {
    caught(Fault::IgnoresTheEnd, &["g11_a_bounded_read_ends_by_itself"]);
}

#[test]
fn moving_no_group_is_caught() {
    caught(
        Fault::ResetsNothing,
        &["g12_a_group_is_moved_while_nobody_is_at_work"],
    );
}

#[test]
fn moving_a_group_at_work_is_caught() {
    caught(
        Fault::ResetsGroupsAtWork,
        &["g12_a_group_is_moved_while_nobody_is_at_work"],
    );
}

#[test]
fn reporting_unknown_as_accepted_is_caught() {
    caught(
        Fault::ReportsUnknownAsAccepted,
        &[
            "h09_a_publish_to_a_frozen_broker_is_unknown_at_its_deadline",
            "m05_a_frozen_broker_thaws_without_loss",
        ],
    );
}

#[test]
fn hiding_that_nobody_listens_is_caught() {
    caught(
        Fault::HidesThatNobodyListens,
        &["l03_a_message_that_no_store_took_is_an_error_of_its_own"],
    );
}

#[test]
fn settling_a_stale_tag_is_caught() {
    caught(
        Fault::SettlesAStaleTag,
        &[
            "d03_the_first_settlement_wins_and_later_ones_are_stale",
            "d03_a_stale_tag_settles_nothing_else",
        ],
    );
}

#[test]
fn redelivering_to_the_wrong_subscription_is_caught() {
    caught(
        Fault::RedeliversToTheWrongSubscription,
        &["e01_a_returned_message_comes_again_to_its_own_subscription"],
    );
}

#[test]
fn mixing_up_replies_is_caught() {
    caught(
        Fault::MixesUpReplies,
        &[
            "o01_every_caller_gets_its_own_answer",
            "o02_replies_find_their_client",
        ],
    );
}

#[test]
fn leaving_a_task_behind_is_caught() {
    caught(
        Fault::LeavesATaskBehind,
        &["a01_every_published_message_arrives_once_intact"],
    );
}

#[test]
fn dropping_an_item_of_a_stream_is_caught() {
    caught(
        Fault::DropsAnItem,
        &["p01_items_arrive_whole_and_in_order_and_then_the_end"],
    );
}

#[test]
fn ending_a_stream_early_is_caught() {
    caught(
        Fault::EndsEarly,
        &["p01_items_arrive_whole_and_in_order_and_then_the_end"],
    );
}

#[test]
fn ending_a_stream_where_it_breaks_is_caught() {
    caught(
        Fault::EndsWhereItBreaks,
        &[
            "p03_an_error_comes_after_all_items_before_it",
            "p03_a_sender_that_goes_is_no_clean_end",
            "p05_a_side_that_vanishes_is_missed",
        ],
    );
}

#[test]
fn ignoring_the_credit_of_a_stream_is_caught() {
    caught(
        Fault::IgnoresCredit,
        &["p02_a_reader_that_takes_nothing_bounds_its_sender"],
    );
}

#[test]
fn losing_the_cancel_of_a_stream_is_caught() {
    caught(
        Fault::LosesTheCancel,
        &[
            "p03_a_reader_that_goes_stops_its_sender_within_a_second",
            "p07_streams_that_are_left_leave_a_working_client",
        ],
    );
}
