//! Q: publishing for later.

use std::time::{Duration, Instant, SystemTime};

use anywire::pattern::publish_subscribe::Entry;
use anywire::{Client, ErrorKind, Guarantee, Route};

use crate::behaviour::behaviours;
use crate::{Sightings, Teller, Test};

behaviours! {
    q01_a_delayed_message_comes_in_time_and_not_before: [Delay],
    q01_events_for_later_come_in_the_order_of_their_time: [Delay],
    q01_a_calendar_time_is_kept_and_one_that_has_passed_is_at_once: [Delay],
    q01_an_event_for_later_outlives_a_restart_of_the_broker: [Delay, Durable, Broker],
    q02_a_delay_is_refused_where_there_is_none: [NoDelay],
    q02_an_emit_for_later_is_refused_where_there_is_no_delay: [NoDelay],
    q02_an_event_that_may_be_lost_is_not_kept_for_later: [Delay],
    q02_an_event_does_not_wait_for_longer_than_it_is_kept: [Delay],
}

/// How much later than its time an event may come.
fn tolerance(test: &Test) -> Duration {
    Duration::from_secs(2) + test.patience()
}

/// What is emitted first, so that somebody moves what waits: who is late moves all that is due at once.
const WARM_UP: &str = "warm-up";

/// Which event, and when it came.
type Came = (String, Instant);

/// A handler of `events` that says what came and when.
fn handler(test: &Test, tell: Teller<Came>) -> Route {
    let note = move |name: String| {
        let tell = tell.clone();
        async move { tell.tell((name, Instant::now())).await }
    };
    Route::event(test.pattern("events"), note).name("note")
}

/// The next one must be this, in its time.
async fn comes(
    test: &Test,
    seen: &mut Sightings<Came>,
    event: &str,
    start: Instant,
    delay: Duration,
) {
    let (name, at) = seen.next().await;
    let waited = at.duration_since(start);
    assert_eq!(name, event, "after {waited:?}");
    assert!(
        waited >= delay && waited < delay + tolerance(test),
        "{event} was to come after {delay:?}, and came after {waited:?}"
    );
}

/// All of these must come, each in its time: in that order, and once, unless the wire's movers were being put in order meanwhile.
async fn all_come(test: &Test, seen: &mut Sightings<Came>, start: Instant, delays: &[(&str, u64)]) {
    let mut came: Vec<Came> = Vec::new();
    while came.len() < delays.len() {
        let (name, at) = seen.next().await;
        let is_repeated = name == WARM_UP || came.iter().any(|(known, _)| *known == name);
        assert!(
            !is_repeated || !test.patience().is_zero(),
            "{name} came twice"
        );
        if !is_repeated {
            came.push((name, at));
        }
    }
    let mut is_late = false;
    for (name, seconds) in delays {
        let (_, at) = came
            .iter()
            .find(|(known, _)| known == name)
            .expect("it came");
        let (waited, delay) = (at.duration_since(start), Duration::from_secs(*seconds));
        assert!(
            waited >= delay && waited < delay + tolerance(test),
            "{name} was to come after {delay:?}, and came after {waited:?}"
        );
        is_late |= waited > delay + Duration::from_millis(500);
    }
    if test.patience().is_zero() || !is_late {
        let due = |name: &str| {
            delays
                .iter()
                .find(|(known, _)| *known == name)
                .map(|due| due.1)
        };
        assert!(came.is_sorted_by_key(|(name, _)| due(name)), "{came:?}");
    }
    if test.patience().is_zero() {
        seen.stay_quiet().await;
    }
}

/// Not before its time, not long after it, and others pass it.
pub async fn q01_a_delayed_message_comes_in_time_and_not_before(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let delay = Duration::from_secs(1);
    let (late, start) = (test.message("events", "late"), Instant::now());
    let due = test.clock().now() + delay;
    let entry = Entry::new(late.clone()).with_not_before(Some(due));
    client
        .try_send(entry)
        .await
        .expect("the delayed message is accepted");
    client.send(test.message("events", "prompt")).await;
    let prompt = subscription.next().await;
    assert_eq!(prompt.message.payload(), "prompt");
    prompt.ack().await;
    let delivery = subscription.next().await;
    let waited = start.elapsed();
    crate::assert_intact(&late, &delivery.message);
    assert!(
        waited >= delay && waited < delay + tolerance(test),
        "it came after {waited:?}"
    );
    delivery.ack().await;
}

/// One that has less to wait does not wait behind one that has more, whichever was emitted first; and what is for later is for
/// each group.
pub async fn q01_events_for_later_come_in_the_order_of_their_time(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let (tell_others, mut others) = test.sightings();
    let app = test.start("app", handler(test, tell)).await;
    let other = test.start("other", handler(test, tell_others)).await;
    let client = app.client();
    let emit = client.emit(test.subject("events"), WARM_UP);
    emit.after(Duration::from_millis(100))
        .await
        .expect("stored");
    for seen in [&mut seen, &mut others] {
        assert_eq!(seen.next().await.0, WARM_UP);
    }
    let start = Instant::now();
    for (name, seconds) in [("last", 7), ("second", 5), ("first", 3)] {
        let emit = client.emit(test.subject("events"), name);
        let emit = emit.after(Duration::from_secs(seconds)).key("one");
        emit.await.expect("the event is stored");
    }
    let several = ["third".to_owned(), "fourth".to_owned()];
    let all = client.emit_all(test.subject("events"), &several);
    all.after(Duration::from_secs(6))
        .await
        .expect("all are stored");
    // The emits themselves take some time, in which the clock of the later ones does not run yet.
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "an emit for later waits for nobody"
    );
    let delays = [
        ("first", 3),
        ("second", 5),
        ("third", 6),
        ("fourth", 6),
        ("last", 7),
    ];
    for seen in [&mut seen, &mut others] {
        all_come(test, seen, start, &delays).await;
    }
    app.shutdown().await.expect("it stops");
    other.shutdown().await.expect("it stops");
}

/// By the emitter's clock.
pub async fn q01_a_calendar_time_is_kept_and_one_that_has_passed_is_at_once(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let app = test.start("app", handler(test, tell)).await;
    let client = app.client();
    let (start, now) = (Instant::now(), test.clock().wall());
    let emit =
        |name: &'static str, time: SystemTime| client.emit(test.subject("events"), name).at(time);
    let soon = Duration::from_secs(2);
    emit("later", now + soon)
        .await
        .expect("the event is stored");
    emit("past", now - soon).await.expect("the event is stored");
    comes(test, &mut seen, "past", start, Duration::ZERO).await;
    comes(test, &mut seen, "later", start, soon).await;
    app.shutdown().await.expect("it stops");
}

/// Neither lost nor early; late only by what the outage took.
pub async fn q01_an_event_for_later_outlives_a_restart_of_the_broker(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let app = test.start("app", handler(test, tell)).await;
    let client = app.client();
    // What the broker makes for a delay is there before the outage.
    let emit = |name: &'static str, delay| client.emit(test.subject("events"), name).after(delay);
    emit("first", Duration::from_secs(1))
        .await
        .expect("the event is stored");
    assert_eq!(seen.next().await.0, "first");
    let (delay, start) = (Duration::from_secs(12), Instant::now());
    emit("late", delay).await.expect("the event is stored");
    test.broker().stop().await.expect("the broker stops");
    test.broker().start().await.expect("the broker starts");
    let control = client.emit(test.subject("events"), "control");
    let patience = test.profile().deadline() / 2;
    control.timeout(patience).await.expect("the broker is back");
    let wait = delay + test.gap() + patience;
    let (mut late, mut back) = (None, None);
    while late.is_none() || back.is_none() {
        // What was not settled for good before the outage may come again.
        match seen.next_within(wait).await {
            Some((name, at)) if name == "late" => late = late.or(Some(at)),
            Some((name, at)) if name == "control" => back = back.or(Some(at)),
            Some(_) => {}
            None => panic!("both were to come within {wait:?}; late: {late:?}, control: {back:?}"),
        }
    }
    let (Some(at), Some(back)) = (late, back) else {
        return;
    };
    let due = start + delay;
    assert!(at >= due, "it came {:?} early", due - at);
    let latest = due.max(back) + tolerance(test);
    assert!(at < latest, "it came {:?} late", at - due);
    app.shutdown().await.expect("it stops");
}

/// Never an immediate delivery instead.
pub async fn q02_a_delay_is_refused_where_there_is_none(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let due = test.clock().now() + Duration::from_secs(60);
    let entry = Entry::new(test.message("events", "late")).with_not_before(Some(due));
    let refused = client.try_send(entry).await.expect_err("there is no delay");
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    client.send(test.message("events", "control")).await;
    let delivery = subscription.next().await;
    assert_eq!(delivery.message.payload(), "control");
    delivery.ack().await;
    subscription.stays_quiet().await;
}

/// Through a client, before anything is sent.
pub async fn q02_an_emit_for_later_is_refused_where_there_is_no_delay(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let app = test.start("app", handler(test, tell)).await;
    let client = app.client();
    let past = test.clock().wall() - Duration::from_secs(60);
    let emit = || client.emit(test.subject("events"), "late");
    for emit in [
        emit().after(Duration::from_secs(60)),
        emit().after(Duration::ZERO),
        emit().at(past),
    ] {
        let refused = emit.await.expect_err("there is no delay");
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    }
    let several = ["late".to_owned()];
    let all = client.emit_all(test.subject("events"), &several);
    let refused = all
        .after(Duration::from_secs(60))
        .await
        .expect_err("there is no delay");
    let kinds = refused
        .results()
        .iter()
        .map(|result| result.as_ref().err().map(anywire::Error::kind));
    assert_eq!(kinds.collect::<Vec<_>>(), [Some(ErrorKind::Unsupported)]);
    emit_control(&client, test, &mut seen).await;
    app.shutdown().await.expect("it stops");
}

/// What nobody stores nobody can keep, on any wire.
pub async fn q02_an_event_that_may_be_lost_is_not_kept_for_later(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let app = test.start("app", handler(test, tell)).await;
    let client = app.client();
    let emit = client.emit(test.subject("events"), "late");
    let emit = emit.guarantee(Guarantee::AtMostOnce);
    let refused = emit.after(Duration::from_secs(1)).await;
    let refused = refused.expect_err("it may be lost");
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    emit_control(&client, test, &mut seen).await;
    app.shutdown().await.expect("it stops");
}

/// It would be gone before its time.
pub async fn q02_an_event_does_not_wait_for_longer_than_it_is_kept(test: &Test) {
    let (tell, mut seen) = test.sightings();
    let app = test.start("app", handler(test, tell)).await;
    let client = app.client();
    for days in [7, 2_000, u64::MAX / 86_400] {
        let emit = client.emit(test.subject("events"), "late");
        let refused = emit.after(Duration::from_secs(days * 86_400)).await;
        let refused = refused.expect_err("it would be gone before its time");
        assert_eq!(refused.kind(), ErrorKind::Config, "{refused}");
    }
    emit_control(&client, test, &mut seen).await;
    app.shutdown().await.expect("it stops");
}

/// An event comes, and nothing else does.
async fn emit_control(client: &Client, test: &Test, seen: &mut Sightings<Came>) {
    let control = client.emit(test.subject("events"), "control");
    control.await.expect("the event is stored");
    assert_eq!(seen.next().await.0, "control");
    seen.stay_quiet().await;
}
