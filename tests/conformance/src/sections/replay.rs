//! G: going back, and reading what was.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anywire::{
    Client, ErrorKind, Guarantee, Ignore, Position, Route, RunningApp, Start, Subscription, Until,
};

use crate::Test;
use crate::behaviour::behaviours;

behaviours! {
    g01_a_new_group_begins_at_a_time_or_a_position: [Replay],
    g10_a_private_copy_seeks_within_what_is_kept_and_no_further: [Replay],
    g11_a_bounded_read_ends_by_itself: [Replay],
    g12_a_group_is_moved_while_nobody_is_at_work: [Replay],
    g13_going_back_is_refused_where_nothing_is_kept: [NoReplay],
}

/// How many events there are before the mark, and after it.
const SOME: u32 = 12;
/// Longer than the steps of any wire's clock.
const TICK: Duration = Duration::from_millis(30);

/// An app, and events before and after a point in time.
struct Past {
    app: RunningApp,
    client: Client,
    /// After the first half, before the second.
    mark: SystemTime,
    /// The positions of the second half.
    positions: Vec<Position>,
}

/// What the first half and the second half are numbered.
const FIRST: std::ops::Range<u32> = 0..SOME;
const SECOND: std::ops::Range<u32> = SOME..2 * SOME;

async fn emit(test: &Test, client: &Client, numbers: std::ops::Range<u32>) {
    for number in numbers {
        // The keys spread them over the parts that a wire may have.
        let emit = client.emit(test.subject("events"), &number);
        emit.key(format!("key-{number}")).await.expect("accepted");
    }
}

async fn past(test: &Test) -> Past {
    let app = test.app("app").start().await.expect("the app starts");
    let client = app.client();
    let first = client
        .subscribe(test.pattern("events"))
        .group(test.group("first"));
    let mut first: Subscription<u32> = first.await.expect("it opens");
    emit(test, &client, FIRST).await;
    tokio::time::sleep(TICK).await;
    let mark = SystemTime::now();
    tokio::time::sleep(TICK).await;
    emit(test, &client, SECOND).await;
    let mut positions = vec![None; 2 * SOME as usize];
    while positions.iter().any(Option::is_none) {
        let delivery = next(test, &mut first).await.expect("all come");
        positions[*delivery as usize] =
            Some(delivery.position().expect("it stands somewhere").clone());
        delivery.ack().await.expect("it is acked");
    }
    first.stop().await.expect("it stops");
    let positions = positions
        .into_iter()
        .flatten()
        .skip(SOME as usize)
        .collect();
    Past {
        app,
        client,
        mark,
        positions,
    }
}

/// The next delivery; `None` where the subscription has ended.
async fn next(test: &Test, subscription: &mut Subscription<u32>) -> Option<anywire::Delivery<u32>> {
    loop {
        let next = tokio::time::timeout(test.gap(), subscription.next()).await;
        match next.expect("something comes, or it ends") {
            Some(Err(error)) if error.is_retryable() => {}
            next => return next.map(|next| next.expect("a delivery")),
        }
    }
}

/// All of these come, and then nothing else does.
async fn gets(test: &Test, subscription: &mut Subscription<u32>, wanted: std::ops::Range<u32>) {
    let mut missing: BTreeSet<u32> = wanted.clone().collect();
    while !missing.is_empty() {
        let next = tokio::time::timeout(test.gap(), subscription.next()).await;
        let Ok(next) = next else {
            panic!("of {wanted:?} these did not come: {missing:?}");
        };
        let number = next.expect("it goes on").expect("a delivery");
        let number = number.take().await.expect("it is acked");
        assert!(wanted.contains(&number), "{number} is none of {wanted:?}");
        missing.remove(&number);
    }
    let more = tokio::time::timeout(test.quiet(), subscription.next()).await;
    if let Ok(Some(Ok(more))) = more {
        assert!(wanted.contains(&*more), "{} is none of {wanted:?}", *more);
        more.ack().await.expect("it is acked");
    }
}

/// A time or a position of a wire with parts names the begin of each of them.
pub async fn g01_a_new_group_begins_at_a_time_or_a_position(test: &Test) {
    let past = past(test).await;
    let open = async |group: &str, start: Start| {
        let subscribe = past.client.subscribe::<u32>(test.pattern("events"));
        let subscribe = subscribe.group(test.group(group)).start(start);
        subscribe.await.expect("it opens")
    };
    let mut at = open("at", Start::At(past.mark)).await;
    gets(test, &mut at, SECOND).await;
    let mut before = open("before", Start::At(UNIX_EPOCH)).await;
    gets(test, &mut before, FIRST.start..SECOND.end).await;
    let mut after = open("after", Start::At(past.mark + Duration::from_secs(86_400))).await;
    // As text, as in a configuration.
    let text = past.positions[0].to_string();
    let position = text.parse().expect("it is what was written down");
    let mut from = open("from", position).await;
    gets(test, &mut from, SECOND).await;
    emit(test, &past.client, SECOND.end..SECOND.end + 3).await;
    gets(test, &mut after, SECOND.end..SECOND.end + 3).await;
    // A group that is known goes on where it is.
    at.stop().await.expect("it stops");
    let mut again = open("at", Start::Earliest).await;
    gets(test, &mut again, SECOND.end..SECOND.end + 3).await;
    let foreign = Position::new("nowhere at all", 0, 1);
    let subscribe = past.client.subscribe::<u32>(test.pattern("events"));
    let refused = subscribe.group(test.group("foreign")).start(foreign).await;
    let refused = refused.expect_err("that is no place of this wire");
    assert_eq!(refused.kind(), ErrorKind::Config, "{refused}");
    past.app.shutdown().await.expect("it stops");
}

/// Beyond either end is that end. A group does not.
pub async fn g10_a_private_copy_seeks_within_what_is_kept_and_no_further(test: &Test) {
    let past = past(test).await;
    let subscribe = || past.client.subscribe::<u32>(test.pattern("events"));
    let mut copy = subscribe().await.expect("it opens");
    let far = past.mark + Duration::from_secs(400 * 365 * 86_400);
    let last = &past.positions[SOME as usize - 1];
    let beyond = Position::new(last.place(), last.part(), last.number() + 1_000_000).with_time(far);
    let before = Position::new(last.place(), last.part(), 0).with_time(UNIX_EPOCH);
    let all = FIRST.start..SECOND.end;
    let places = [
        (Start::Earliest, all.clone()),
        (Start::At(past.mark), SECOND),
        (Start::At(UNIX_EPOCH), all.clone()),
        (Start::Position(past.positions[0].clone()), SECOND),
        (Start::Position(before), all),
    ];
    for (start, wanted) in places {
        copy.seek(start).await.expect("it goes there");
        gets(test, &mut copy, wanted).await;
    }
    let mut news = SECOND.end..SECOND.end;
    for start in [Start::Latest, Start::At(far), Start::Position(beyond)] {
        copy.seek(start).await.expect("it goes there");
        news = news.end..news.end + 3;
        emit(test, &past.client, news.clone()).await;
        gets(test, &mut copy, news.clone()).await;
    }
    // What was handed out before is still ours to settle, and comes no second time for it.
    copy.seek(Start::At(past.mark))
        .await
        .expect("it goes there");
    let held = next(test, &mut copy).await.expect("the first");
    copy.seek(Start::Latest).await.expect("it goes there");
    let _ = held.ack().await;
    let mut member = subscribe()
        .group(test.group("first"))
        .await
        .expect("it opens");
    let refused = member
        .seek(Start::Earliest)
        .await
        .expect_err("it is not its own");
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    past.app.shutdown().await.expect("it stops");
}

/// With what was stored when it was opened; at once where there is nothing.
pub async fn g11_a_bounded_read_ends_by_itself(test: &Test) {
    let past = past(test).await;
    let read = async |tail: &str, start: Start| {
        let read = past.client.subscribe::<u32>(test.pattern(tail));
        read.start(start).until(Until::Now).await.expect("it opens")
    };
    let mut empty = past
        .client
        .subscribe::<u32>(test.pattern("empty"))
        .await
        .expect("it opens");
    assert!(
        next(test, &mut read("empty", Start::Earliest).await)
            .await
            .is_none()
    );
    let far = past.mark + Duration::from_secs(86_400);
    for start in [Start::Latest, Start::At(far)] {
        assert!(next(test, &mut read("events", start).await).await.is_none());
    }
    let starts = [
        (Start::Earliest, FIRST.start..SECOND.end),
        (Start::At(past.mark), SECOND),
        (Start::Position(past.positions[0].clone()), SECOND),
    ];
    let mut news = SECOND.end;
    for (start, wanted) in starts {
        let from = start.to_string();
        let mut read = read("events", start).await;
        // Not of its time.
        emit(test, &past.client, news..news + 2).await;
        let mut came = BTreeSet::new();
        while let Some(delivery) = next(test, &mut read).await {
            came.insert(delivery.take().await.expect("it is acked"));
        }
        assert_eq!(came, (wanted.start..news).collect(), "from {from}");
        news += 2;
    }
    // It was alive all the time.
    past.client
        .emit(test.subject("empty"), &7)
        .await
        .expect("accepted");
    assert_eq!(*next(test, &mut empty).await.expect("it goes on"), 7);
    past.app.shutdown().await.expect("it stops");
}

/// Refused while somebody is: he would go on where he is.
pub async fn g12_a_group_is_moved_while_nobody_is_at_work(test: &Test) {
    let past = past(test).await;
    let (group, pattern) = (test.group("first"), test.pattern("events").to_string());
    let reset = |start: Start| past.client.reset_group(&group, &pattern, start);
    let join = || {
        past.client
            .subscribe::<u32>(test.pattern("events"))
            .group(group.clone())
    };
    let moves = [
        (Start::At(past.mark), SECOND),
        (Start::Earliest, FIRST.start..SECOND.end),
        (Start::Position(past.positions[0].clone()), SECOND),
    ];
    for (start, wanted) in moves {
        moved(test, &reset, start).await;
        let mut member = join().await.expect("it opens");
        gets(test, &mut member, wanted).await;
        let refused = reset(Start::Earliest)
            .await
            .expect_err("somebody is at work");
        assert_eq!(refused.kind(), ErrorKind::Rejected, "{refused}");
        member.stop().await.expect("it stops");
    }
    emit(test, &past.client, SECOND.end..SECOND.end + 3).await;
    moved(test, &reset, Start::Latest).await;
    let mut member = join().await.expect("it opens");
    emit(test, &past.client, SECOND.end + 3..SECOND.end + 5).await;
    gets(test, &mut member, SECOND.end + 3..SECOND.end + 5).await;
    let nobody = test.group("nobody");
    let refused = past
        .client
        .reset_group(&nobody, &pattern, Start::Earliest)
        .await;
    let refused = refused.expect_err("there is no such group");
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    past.app.shutdown().await.expect("it stops");
}

/// Who has left may be missed a moment later.
async fn moved<F>(test: &Test, reset: impl Fn(Start) -> F, start: Start)
where
    F: Future<Output = Result<(), anywire::Error>>,
{
    let since = std::time::Instant::now();
    loop {
        match reset(start.clone()).await {
            Err(error) if error.kind() == ErrorKind::Rejected && since.elapsed() < test.gap() => {
                tokio::task::yield_now().await;
            }
            ended => return ended.expect("the group is moved"),
        }
    }
}

/// With the reason, and nothing begins anywhere else instead.
pub async fn g13_going_back_is_refused_where_nothing_is_kept(test: &Test) {
    let app = test.app("app").start().await.expect("the app starts");
    let client = app.client();
    let subscribe = || client.subscribe::<u32>(test.pattern("events"));
    let mut copy = subscribe().await.expect("it opens");
    let group = test.group("group");
    let member = subscribe().group(group.clone()).await.expect("it opens");
    member.stop().await.expect("it stops");
    let pattern = test.pattern("events").to_string();
    let refused = [
        subscribe().start(Start::At(UNIX_EPOCH)).await.err(),
        subscribe().start(Position::new("a", 0, 1)).await.err(),
        subscribe().until(Until::Now).await.err(),
        copy.seek(Start::Earliest).await.err(),
        client
            .reset_group(&group, &pattern, Start::Earliest)
            .await
            .err(),
    ];
    for (at, refused) in refused.into_iter().enumerate() {
        let refused = refused.unwrap_or_else(|| panic!("the {at}. way back is there"));
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{at}: {refused}");
    }
    let route = Route::event(test.pattern("events"), async |_: Ignore| {
        Ok::<(), anywire::Failure>(())
    });
    let route = route
        .name("late")
        .start(Start::At(UNIX_EPOCH))
        .guarantee(Guarantee::AtMostOnce);
    let late = test
        .app("late")
        .router(anywire::Router::new().route(route))
        .start()
        .await;
    let refused = late.expect_err("there is nothing to start from");
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    emit(test, &client, 0..1).await;
    assert_eq!(*next(test, &mut copy).await.expect("it goes on"), 0);
    app.shutdown().await.expect("it stops");
}
