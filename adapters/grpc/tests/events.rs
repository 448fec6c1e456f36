//! Events at least once on gRPC: the sender is the store. An emit ends when its handlers have, and what they fail comes back to it.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anywire::transport::Status;
use anywire::{App, Config, ErrorKind, Failure, Guarantee, Result, Route, Router, RunningApp};
use anywire_conformance::rig::{Seen, soon, until, until_async};
use anywire_conformance::trials;
use support::{Gate, address, alone, app, caller, groups, is_serving, start};
use tokio::sync::Notify;

trials![
    [] =>
    an_emit_ends_when_its_handler_has,
    a_failure_comes_back_with_who_has_failed_it,
    what_cannot_be_decoded_comes_back,
    an_attempt_that_fails_is_tried_again_in_place,
    a_schedule_that_this_wire_cannot_keep_stops_the_start,
    an_event_that_nobody_takes_is_told,
    several_groups_each_get_an_event_and_only_the_failed_again,
    a_group_that_does_not_listen_is_not_missed,
    the_instances_of_a_group_share_its_events,
    an_instance_that_stops_hands_its_events_to_another,
    what_was_begun_is_sent_again_where_it_must_not_be_lost_and_nowhere_else,
    an_emit_waits_for_a_peer_that_comes_in_time,
    an_event_for_a_group_that_is_stopping_waits_for_its_next_instance,
    no_accepted_event_is_lost_while_a_group_starts_and_stops,
    a_group_whose_listener_may_be_out_of_reach_is_missed,
    who_has_left_does_not_take_another_along,
    a_dead_letter_is_heard_in_its_own_program,
    a_handler_that_waits_longer_than_the_emit_leaves_its_outcome_unknown,
];

/// An instance of a group.
async fn charging(at: SocketAddr, seen: &Seen) -> RunningApp {
    let router = Router::new().on_event("shop.placed", seen.handler());
    start("billing", &alone(at), router).await
}

async fn an_emit_ends_when_its_handler_has() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&begun), Arc::clone(&go));
    let handler = move |_: u64| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
        async move {
            tell.notify_one();
            wait.notified().await;
            Ok::<_, Failure>(())
        }
    };
    let router = Router::new().on_event("shop.placed", handler);
    let shop = start("shop", &alone(address()), router).await;
    let client = shop.client();
    let emitting = tokio::spawn(async move { client.emit("shop.placed", &1).await });
    soon("the handler", begun.notified()).await;
    assert!(
        !emitting.is_finished(),
        "it was accepted before it was handled"
    );
    go.notify_one();
    soon("the receipt", emitting).await.unwrap().unwrap();
    shop.shutdown().await.unwrap();
}

async fn a_failure_comes_back_with_who_has_failed_it() {
    let refuse = async |_: u64| -> Result<()> { Err(Failure::permanent("no funds")) };
    let router = Router::new().route(Route::event("shop.placed", refuse).name("charge"));
    let shop = start("billing", &alone(address()), router).await;
    let error = shop.client().emit("shop.placed", &1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error:?}");
    assert_eq!(error.context("handler"), Some("charge"));
    let text = error.to_string();
    assert!(
        text.contains("no funds") && text.contains("billing"),
        "{text}"
    );
    shop.shutdown().await.unwrap();
}

async fn what_cannot_be_decoded_comes_back() {
    let seen = Seen::default();
    let router = Router::new().on_event("shop.placed", seen.handler());
    let shop = start("shop", &alone(address()), router).await;
    let error = shop
        .client()
        .emit("shop.placed", "three mugs")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error:?}");
    assert_eq!(seen.count(), 0);
    shop.shutdown().await.unwrap();
}

async fn an_attempt_that_fails_is_tried_again_in_place() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&attempts);
    let handler = move |_: u64| {
        let attempt = counting.fetch_add(1, Ordering::SeqCst);
        async move {
            match attempt {
                2 => Ok(()),
                _ => Err(Failure::transient("not yet")),
            }
        }
    };
    let router = Router::new().on_event("shop.placed", handler);
    let shop = start("shop", &alone(address()), router).await;
    shop.client().emit("shop.placed", &1).await.unwrap();
    assert_eq!(attempts.load(Ordering::SeqCst), 3);
    shop.shutdown().await.unwrap();
}

async fn a_schedule_that_this_wire_cannot_keep_stops_the_start() {
    let url = format!("url = 'grpc://?listen={}'", address());
    let router = || {
        Router::new().route(Route::event("shop.placed", Seen::default().handler()).name("placed"))
    };
    let error = app("shop", &url)
        .router(router())
        .start()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = error.to_string();
    assert!(
        text.contains("placed") && text.contains("retr") && text.contains("main"),
        "{text}"
    );
    // Who only calls has nowhere to be reached.
    let error = app(
        "shop",
        &format!("{}\n[defaults]\nretry = ['1s']", caller(&[address()])),
    );
    let error = error.router(router()).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("?listen="), "{error}");
}

async fn an_event_that_nobody_takes_is_told() {
    let router = Router::new().on_event("shop.placed", Seen::default().handler());
    let shop = start("shop", &alone(address()), router).await;
    let error = shop.client().emit("shop.cancelled", &1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error:?}");
    shop.shutdown().await.unwrap();
}

async fn several_groups_each_get_an_event_and_only_the_failed_again() {
    let (billing, stock) = (address(), address());
    let (charged, reserved) = (Seen::default(), Seen::default());
    let is_open = Arc::new(AtomicBool::new(false));
    let (opened, reserve) = (Arc::clone(&is_open), reserved.handler());
    let reserve = move |number: u64| {
        let done = opened.load(Ordering::SeqCst).then(|| reserve(number));
        async move { done.ok_or_else(|| Failure::permanent("closed"))?.await }
    };
    let one = charging(billing, &charged).await;
    let other = Router::new().on_event("shop.placed", reserve);
    let other = start("stock", &alone(stock), other).await;
    let shop = groups(&[("billing", &[billing]), ("stock", &[stock])]);
    let shop = start("shop", &shop, Router::new()).await;
    let client = shop.client();
    let error = client
        .emit("shop.placed", &1)
        .id("order-1")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error:?}");
    assert_eq!(error.context("group"), Some("stock"));
    is_open.store(true, Ordering::SeqCst);
    client.emit("shop.placed", &1).id("order-1").await.unwrap();
    assert_eq!((charged.count(), reserved.count()), (1, 1));
    // Another event goes to both.
    client.emit("shop.placed", &2).await.unwrap();
    assert_eq!((charged.count(), reserved.count()), (2, 2));
    for app in [shop, one, other] {
        app.shutdown().await.unwrap();
    }
}

async fn a_group_that_does_not_listen_is_not_missed() {
    let (billing, stock) = (address(), address());
    let charged = Seen::default();
    let one = charging(billing, &charged).await;
    let other = Router::new().on_event("shop.counted", Seen::default().handler());
    let other = start("stock", &alone(stock), other).await;
    let shop = groups(&[("billing", &[billing]), ("stock", &[stock])]);
    let shop = start("shop", &shop, Router::new()).await;
    shop.client().emit("shop.placed", &1).await.unwrap();
    assert_eq!(charged.count(), 1);
    let error = shop.client().emit("shop.lost", &1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error:?}");
    for app in [shop, one, other] {
        app.shutdown().await.unwrap();
    }
}

async fn the_instances_of_a_group_share_its_events() {
    let (here, there) = (address(), address());
    let (one, other) = (Seen::default(), Seen::default());
    let (first, second) = (charging(here, &one).await, charging(there, &other).await);
    let shop = start("shop", &caller(&[here, there]), Router::new()).await;
    let numbers: Vec<u64> = (0..200).collect();
    // Both connections are there before it is looked at who gets what.
    let status = shop.client().transport("main").unwrap().status();
    until("both connections", || *status.borrow() == Status::Connected).await;
    shop.client()
        .emit_all("shop.placed", &numbers)
        .await
        .unwrap();
    assert_eq!(one.count() + other.count(), 200);
    assert!(
        one.count() > 50 && other.count() > 50,
        "{} and {}",
        one.count(),
        other.count()
    );
    for app in [shop, first, second] {
        app.shutdown().await.unwrap();
    }
}

async fn an_instance_that_stops_hands_its_events_to_another() {
    let (here, there) = (address(), address());
    let (one, other) = (Seen::default(), Seen::default());
    let (first, second) = (charging(here, &one).await, charging(there, &other).await);
    let shop = start("shop", &caller(&[here, there]), Router::new()).await;
    let client = shop.client();
    let emitting = tokio::spawn(async move {
        for number in 0..2_000_u64 {
            client.emit("shop.placed", &number).await.unwrap();
        }
    });
    until("traffic", || one.count() > 100).await;
    first.shutdown().await.unwrap();
    soon("the rest", emitting).await.unwrap();
    let mut all = one.distinct();
    all.extend(other.distinct());
    all.sort_unstable();
    assert_eq!(all, (0..2_000).collect::<Vec<_>>());
    for app in [shop, second] {
        app.shutdown().await.unwrap();
    }
}

async fn what_was_begun_is_sent_again_where_it_must_not_be_lost_and_nowhere_else() {
    for (guarantee, again) in [(Guarantee::AtMostOnce, 0), (Guarantee::AtLeastOnce, 1)] {
        let (here, there) = (address(), address());
        let begun = Arc::new(Notify::new());
        let tell = Arc::clone(&begun);
        let never = move |_: u64| {
            tell.notify_one();
            std::future::pending::<Result<()>>()
        };
        let config = format!("grace = '100ms'\n{}", alone(here));
        let first = Router::new().on_event("shop.placed", never);
        let first = start("billing", &config, first).await;
        let shop = start("shop", &caller(&[here, there]), Router::new()).await;
        let client = shop.client();
        let emit = async move { client.emit("shop.placed", &1).guarantee(guarantee).await };
        let emitting = tokio::spawn(emit);
        soon("the handler", begun.notified()).await;
        let seen = Seen::default();
        let second = charging(there, &seen).await;
        let status = shop.client().transport("main").unwrap().status();
        until("both connections", || *status.borrow() == Status::Connected).await;
        let error = first.shutdown().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
        let emitted = soon("its end", emitting).await.unwrap();
        assert_eq!(seen.count(), again, "{emitted:?}");
        if let Err(error) = emitted {
            assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}");
            assert_eq!(again, 0);
        }
        for app in [shop, second] {
            app.shutdown().await.unwrap();
        }
    }
}

async fn an_emit_waits_for_a_peer_that_comes_in_time() {
    let at = address();
    let shop = start("shop", &caller(&[at]), Router::new()).await;
    let client = shop.client();
    let error = client
        .request::<_, u64>("shop.quote", &1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let emitting = tokio::spawn(async move { client.emit("shop.placed", &1).await });
    let seen = Seen::default();
    let router = Router::new().on_event("shop.placed", seen.handler());
    let billing = start("billing", &alone(at), router).await;
    soon("the receipt", emitting).await.unwrap().unwrap();
    assert_eq!(seen.count(), 1);
    for app in [shop, billing] {
        app.shutdown().await.unwrap();
    }
}

async fn an_event_for_a_group_that_is_stopping_waits_for_its_next_instance() {
    let (billing, stock) = (address(), address());
    let (charged, reserved) = (Seen::default(), Seen::default());
    let one = charging(billing, &charged).await;
    // It has something to do, while it stops.
    let gate = Gate::new();
    let stocked = || Router::new().on_event("shop.placed", reserved.handler());
    let other = stocked().on_call("stock.count", gate.handler());
    let other = start("stock", &alone(stock), other).await;
    let shop = groups(&[("billing", &[billing]), ("stock", &[stock])]);
    let shop = start("shop", &shop, Router::new()).await;
    let till = start("till", &caller(&[stock]), Router::new()).await;
    assert!(is_serving(&till).await);

    let client = till.client();
    let counting = tokio::spawn(async move { client.request::<_, u64>("stock.count", &7).await });
    gate.reached_by(1).await;
    let stopping = tokio::spawn(other.shutdown());
    until_async("the news of it", async || !is_serving(&till).await).await;
    let client = shop.client();
    let emitting = tokio::spawn(async move { client.emit("shop.placed", &1).await });
    until("the other group", || charged.count() == 1).await;
    gate.open(1);
    assert_eq!(soon("the count", counting).await.unwrap().unwrap(), 7);
    soon("the end", stopping).await.unwrap().unwrap();
    let other = start("stock", &alone(stock), stocked()).await;
    soon("the receipt", emitting).await.unwrap().unwrap();
    assert_eq!((charged.count(), reserved.count()), (1, 1));
    for app in [shop, till, one, other] {
        app.shutdown().await.unwrap();
    }
}

async fn no_accepted_event_is_lost_while_a_group_starts_and_stops() {
    let (billing, stock) = (address(), address());
    let (charged, reserved) = (Seen::default(), Seen::default());
    let one = charging(billing, &charged).await;
    let stocked = async || {
        let router =
            Router::new().on_call("stock.count", async |number: u64| Ok::<_, Failure>(number));
        let router = router.on_event("shop.placed", reserved.handler());
        start("stock", &alone(stock), router).await
    };
    let mut other = stocked().await;
    let shop = groups(&[("billing", &[billing]), ("stock", &[stock])]);
    let shop = start("shop", &shop, Router::new()).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let emitting = (0..4_u64).map(|lane| {
        let (client, is_over) = (shop.client(), Arc::clone(&is_over));
        tokio::spawn(async move {
            let mut accepted = Vec::new();
            for number in (lane..).step_by(4) {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                client.emit("shop.placed", &number).await.unwrap();
                accepted.push(number);
            }
            accepted
        })
    });
    let emitting: Vec<_> = emitting.collect();
    for _ in 0..10 {
        let before = reserved.count();
        until("traffic", || reserved.count() > before + 50).await;
        other.shutdown().await.unwrap();
        other = stocked().await;
    }
    is_over.store(true, Ordering::SeqCst);
    let mut accepted = Vec::new();
    for lane in emitting {
        accepted.extend(soon("its end", lane).await.unwrap());
    }
    let (charged, reserved) = (charged.distinct(), reserved.distinct());
    accepted.retain(|number| !charged.contains(number) || !reserved.contains(number));
    assert!(accepted.is_empty(), "lost: {accepted:?}");
    for app in [shop, one, other] {
        app.shutdown().await.unwrap();
    }
}

async fn a_group_whose_listener_may_be_out_of_reach_is_missed() {
    let (billing, stock, away) = (address(), address(), address());
    let charged = Seen::default();
    let one = charging(billing, &charged).await;
    // An instance of an older version, and a newer one that cannot be reached.
    let other = Router::new().on_event("shop.counted", Seen::default().handler());
    let other = start("stock", &alone(stock), other).await;
    let shop = groups(&[("billing", &[billing]), ("stock", &[stock, away])]);
    let shop = start("shop", &shop, Router::new()).await;
    let client = shop.client();
    let emit = client
        .emit("shop.placed", &1)
        .timeout(Duration::from_millis(500));
    let error = emit.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert_eq!(error.context("group"), Some("stock"));
    for app in [shop, one, other] {
        app.shutdown().await.unwrap();
    }
}

async fn who_has_left_does_not_take_another_along() {
    let at = address();
    let adapter = anywire_grpc::adapter();
    let member = async |name| {
        let app = App::new(name).adapter(adapter.clone());
        let app = app.config(Config::from_toml(&alone(at)).unwrap());
        app.start().await.unwrap()
    };
    let listen = async |app: &RunningApp| {
        let client = app.client();
        let events = client.subscribe::<u64>("shop.placed").group("billing");
        events.await.unwrap()
    };
    let (one, two, three) = (
        member("one").await,
        member("two").await,
        member("three").await,
    );
    let (first, second) = (listen(&one).await, listen(&two).await);
    // Its transport is closed, and it is still there when the next one comes.
    two.shutdown().await.unwrap();
    let mut third = listen(&three).await;
    drop(second);
    drop(first);
    let client = three.client();
    let emitting = tokio::spawn(async move { client.emit("shop.placed", &7).await });
    let event = soon("the event", third.next()).await.unwrap().unwrap();
    assert_eq!(event.take().await.unwrap(), 7);
    soon("the receipt", emitting).await.unwrap().unwrap();
    drop(third);
    for app in [one, three] {
        app.shutdown().await.unwrap();
    }
}

async fn a_dead_letter_is_heard_in_its_own_program() {
    let refuse = async |_: u64| -> Result<()> { Err(Failure::permanent("no funds")) };
    let router = Router::new().on_event("shop.placed", refuse);
    let shop = start("billing", &alone(address()), router).await;
    let client = shop.client();
    let letters = client
        .subscribe::<u64>("anywire.dead.billing")
        .group("watch");
    let mut letters = letters.await.unwrap();
    client.emit("shop.placed", &7).await.unwrap_err();
    let letter = soon("the letter", letters.next()).await.unwrap().unwrap();
    assert_eq!(letter.message().trail().unwrap().attempt, 1);
    assert_eq!(letter.take().await.unwrap(), 7);
    drop(letters);
    shop.shutdown().await.unwrap();
}

async fn a_handler_that_waits_longer_than_the_emit_leaves_its_outcome_unknown() {
    let never = async |_: u64| -> Result<()> { std::future::pending().await };
    let router = Router::new().on_event("shop.placed", never);
    let config = format!("{}\ntimeout = '2s'", alone(address()));
    let shop = start("shop", &config, router).await;
    let client = shop.client();
    let emit = client
        .emit("shop.placed", &1)
        .timeout(Duration::from_millis(200));
    let error = soon("an end", emit.into_future()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error:?}");
    shop.shutdown().await.unwrap();
}
