//! What holds for a handler.

use std::time::Duration;

use super::*;
use crate::config::{AfterFailure, Origin};
use crate::pattern::publish_subscribe::{Guarantee, Order, Provision, Start};

const LOG: &str = "[transports.log]\nurl = 'kafka://h'\n";

fn call(config: &Config, code: &HandlerSettings) -> Result<crate::config::CallHandler, Error> {
    config.call("quote", &pattern("shop.quote"), code)
}

#[test]
fn the_defaults_of_a_handler() {
    let handler = placed(&Config::default());
    assert_eq!(handler.group.as_deref(), Some("shop"));
    assert_eq!(handler.timeout, Duration::from_secs(60));
    assert_eq!(handler.retry.len(), 6);
    assert_eq!(handler.guarantee, Guarantee::AtLeastOnce);
    assert_eq!(handler.order, Order::Key);
    assert_eq!(handler.after_failure, AfterFailure::Pass);
    assert_eq!(handler.start, Start::Earliest);
    assert_eq!(handler.transport, "main");
    assert_eq!(handler.provision, Provision::Create);
    assert_eq!(handler.retention, Duration::from_secs(7 * 86_400));
    assert_eq!(handler.origin("timeout"), &Origin::Default);
}

#[test]
fn a_start_is_a_time_or_a_position_too() {
    let start = |text: &str| {
        let handler = placed(&file(&format!("[handlers.placed]\nstart = '{text}'\n")));
        let printed = handler.to_string();
        assert!(
            printed.contains(&format!("handlers.placed.start = \"{text}\"")),
            "{printed}"
        );
        handler.start
    };
    let time = humantime::parse_rfc3339("2026-11-01T00:00:00Z").unwrap();
    assert_eq!(start("2026-11-01T00:00:00Z"), Start::At(time));
    let position = "orders.placed/2/4711@1700000000000";
    assert_eq!(start(position), Start::Position(position.parse().unwrap()));
}

#[test]
fn every_key_of_a_handler_is_read() {
    let handler = placed(&file(&format!(
        "{LOG}[handlers.placed]\ngroup = 'billing'\nconcurrency = 1\ntimeout = '2s'\nretry = ['3s']\ndelivery = 'at_most_once'\norder = 'key-in-group'\nafter_failure = 'hold'\nstart = 'latest'\ntransport = 'log'\nprovision = 'none'\ncodec = 'json'\n"
    )));
    assert_eq!(handler.group.as_deref(), Some("billing"));
    assert_eq!(handler.concurrency, 1);
    assert_eq!(handler.timeout, Duration::from_secs(2));
    assert_eq!(handler.retry, [Duration::from_secs(3)]);
    assert_eq!(handler.guarantee, Guarantee::AtMostOnce);
    assert_eq!(handler.order, Order::KeyInGroup);
    assert_eq!(handler.after_failure, AfterFailure::Hold);
    assert_eq!(handler.start, Start::Latest);
    assert_eq!(handler.transport, "log");
    assert_eq!(handler.provision, Provision::None);
    assert_eq!(handler.origin("delivery").to_string(), "anywire.toml:8");
    let printed = handler.to_string();
    assert!(printed.contains("handlers.placed.delivery = \"at_most_once\"  # anywire.toml:8\n"));
    assert!(printed.contains("handlers.placed.retry = [\"3s\"]  # anywire.toml:7\n"));
    assert!(printed.contains("handlers.placed.retention = \"7days\"  # default\n"));
}

#[test]
fn a_rule_that_covers_the_pattern_applies_and_the_section_beats_it() {
    let rule = "[[subjects]]\nmatch = 'shop.>'\ntransport = 'log'\nretention = '1d'\ndelivery = 'at_least_once'\n";
    let code = HandlerSettings {
        transport: Some("main".to_owned()),
        guarantee: Some(Guarantee::AtMostOnce),
        ..HandlerSettings::default()
    };
    let config = file(&format!("{LOG}{rule}"));
    let handler = handler_in_code(&config, &code).unwrap();
    assert_eq!(handler.transport, "log");
    assert_eq!(handler.guarantee, Guarantee::AtLeastOnce);
    assert_eq!(handler.retention, Duration::from_secs(86_400));
    assert_eq!(handler.origin("transport").to_string(), "anywire.toml:5");
    let own = "[handlers.placed]\ntransport = 'main'\n";
    let config = file(&format!("{LOG}{rule}{own}"));
    assert_eq!(handler_in_code(&config, &code).unwrap().transport, "main");
    let env = [("ANYWIRE__SUBJECTS", "[{match = '>', transport = 'log'}]")];
    let config = with_env(&format!("{LOG}{own}"), &env).unwrap();
    assert_eq!(
        placed(&config).transport,
        "log",
        "the environment beats the file"
    );
}

#[test]
fn a_rule_that_only_overlaps_with_another_transport_or_delivery_is_an_error() {
    for (key, value) in [("transport", "log"), ("delivery", "at_most_once")] {
        let rule = format!("{LOG}[[subjects]]\nmatch = 'shop.eu.>'\n{key} = '{value}'\n");
        let error = placed_error(&file(&rule));
        assert!(error.starts_with("anywire.toml:3: "), "{error}");
        for part in ["shop.eu.>", "shop.{region}.placed", "\"placed\"", key] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let mine = if key == "transport" {
            "main"
        } else {
            "at_least_once"
        };
        placed(&file(&format!("{rule}[handlers.placed]\n{key} = '{mine}'")));
    }
    placed(&file("[[subjects]]\nmatch = 'shop.eu.>'\nretention = '1d'"));
    placed(&file(
        "[[subjects]]\nmatch = 'shop.eu.>'\ntransport = 'main'",
    ));
    let shadowed =
        "[[subjects]]\nmatch = 'shop.>'\n[[subjects]]\nmatch = 'shop.eu.>'\ntransport = 'log'";
    placed(&file(&format!("{LOG}{shadowed}")));
}

#[test]
fn configuration_may_strengthen_delivery_and_order_but_not_weaken_them() {
    let code = HandlerSettings {
        guarantee: Some(Guarantee::AtLeastOnce),
        order: Some(Order::Key),
        ..HandlerSettings::default()
    };
    let error = |config: &Config| handler_in_code(config, &code).unwrap_err().to_string();
    assert_eq!(
        error(&file("[handlers.placed]\ndelivery = 'at_most_once'")),
        "anywire.toml:2: delivery = \"at_most_once\" for handler \"placed\" is weaker than delivery = \"at_least_once\" in its code; configuration may only strengthen it"
    );
    let env = [("ANYWIRE__HANDLERS__PLACED__ORDER", "none")];
    let config = with_env("", &env).unwrap();
    assert!(error(&config).starts_with("ANYWIRE__HANDLERS__PLACED__ORDER: order = \"none\""));
    let ruled = file("[[subjects]]\nmatch = 'shop.>'\ndelivery = 'at_most_once'");
    assert!(error(&ruled).starts_with("anywire.toml:3: "));
    let stronger = file("[handlers.placed]\norder = 'key-in-group'");
    let handler = handler_in_code(&stronger, &code).unwrap();
    assert_eq!(handler.order, Order::KeyInGroup);
    let forced = Config::default()
        .forced("handlers.placed.order = 'none'")
        .unwrap();
    assert_eq!(handler_in_code(&forced, &code).unwrap().order, Order::None);
    assert_eq!(
        placed(&file("handlers.placed.order = 'none'")).order,
        Order::None
    );
    assert_eq!(
        handler_in_code(&file("defaults.order = 'none'"), &code)
            .unwrap()
            .order,
        Order::Key
    );
}

#[test]
fn a_copy_for_every_instance_has_no_group_and_starts_at_the_newest() {
    let handler = placed(&file("handlers.placed.broadcast = true"));
    assert_eq!((handler.group, handler.start), (None, Start::Latest));
    let error = placed_error(&file("[handlers.placed]\nbroadcast = true\ngroup = 'g'"));
    assert!(
        error.contains("anywire.toml:2") && error.contains("anywire.toml:3"),
        "{error}"
    );
    let code = HandlerSettings {
        group: Some("g".to_owned()),
        ..HandlerSettings::default()
    };
    let config = file("handlers.placed.broadcast = true");
    let error = handler_in_code(&config, &code).unwrap_err().to_string();
    assert!(
        error.contains("(code)") && error.contains("(anywire.toml:1)"),
        "{error}"
    );
}

#[test]
fn the_handler_decides_over_a_default_group_or_a_default_broadcast() {
    let handler = placed(&file(
        "defaults.group = 'g'\nhandlers.placed.broadcast = true",
    ));
    assert_eq!(handler.group, None);
    let handler = placed(&file(
        "defaults.broadcast = true\nhandlers.placed.group = 'g'",
    ));
    assert_eq!(handler.group.as_deref(), Some("g"));
    assert!(
        placed_error(&file("[defaults]\nbroadcast = true\ngroup = 'g'")).contains("remove one")
    );
}

#[test]
fn holding_a_key_for_more_than_two_minutes_is_an_error() {
    let error = placed_error(&file("handlers.placed.after_failure = 'hold'"));
    assert!(
        error.starts_with("anywire.toml:1: ") && error.contains("(default)"),
        "{error}"
    );
    let long = "handlers.placed.after_failure = 'hold'\nhandlers.placed.retry = ['119s', '1001ms']";
    let error = placed_error(&file(long));
    assert!(
        error.contains("(anywire.toml:2)") && error.contains("2m 1ms"),
        "{error}"
    );
    placed(&file(&long.replace("1001ms", "1000ms")));
}

#[test]
fn code_is_checked_as_configuration_is() {
    for (code, expected) in [
        (
            HandlerSettings {
                concurrency: Some(0),
                ..Default::default()
            },
            "\"concurrency\"",
        ),
        (
            HandlerSettings {
                group: Some(String::new()),
                ..Default::default()
            },
            "\"group\"",
        ),
        (
            HandlerSettings {
                timeout: Some(Duration::ZERO),
                ..Default::default()
            },
            "\"timeout\"",
        ),
        (
            HandlerSettings {
                retry: Some(vec![Duration::MAX]),
                ..Default::default()
            },
            "\"retry\"",
        ),
    ] {
        let error = handler_in_code(&Config::default(), &code)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("code: ") && error.contains(expected),
            "{error}"
        );
        assert!(error.contains("handler \"placed\""), "{error}");
    }
}

#[test]
fn a_call_uses_the_transport_of_calls() {
    let text = format!("calls = 'log'\n{LOG}[handlers.quote]\nconcurrency = 2");
    let handler = call(&file(&text), &HandlerSettings::default()).unwrap();
    assert_eq!(
        (handler.transport.as_str(), handler.concurrency),
        ("log", 2)
    );
    assert_eq!(handler.timeout, Duration::from_secs(60));
    assert_eq!(handler.origin("transport").to_string(), "anywire.toml:1");
    let ruled = format!("{LOG}[[subjects]]\nmatch = 'shop.*'\ntransport = 'log'");
    assert_eq!(
        call(&file(&ruled), &HandlerSettings::default())
            .unwrap()
            .transport,
        "log"
    );
}

#[test]
fn what_means_nothing_for_a_call_is_an_error() {
    let error = call(
        &file("handlers.quote.retry = ['1s']"),
        &HandlerSettings::default(),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "anywire.toml:1: \"retry\" means nothing for handler \"quote\", which answers calls; remove it"
    );
    let code = HandlerSettings {
        group: Some("g".to_owned()),
        ..Default::default()
    };
    assert!(call(&Config::default(), &code).is_err());
    call(
        &file("defaults.retry = ['1s']"),
        &HandlerSettings::default(),
    )
    .unwrap();
}
