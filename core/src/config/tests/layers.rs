//! Which layer wins.

use std::time::Duration;

use super::*;
use crate::config::Origin;
use crate::pattern::publish_subscribe::{Guarantee, Provision};
use crate::{Codec, Subject};

#[test]
fn without_any_layer_the_defaults_hold() {
    let config = Config::default();
    assert_eq!(config.grace(), Duration::from_secs(25));
    assert_eq!(config.connect_timeout(), None);
    assert_eq!(config.request_timeout(), Duration::from_secs(10));
    assert_eq!(config.emit_timeout(), Duration::from_secs(10));
    assert_eq!(config.retention(), Duration::from_secs(7 * 86_400));
    assert_eq!(
        config.dead_letter_retention(),
        Duration::from_secs(30 * 86_400)
    );
    assert_eq!(config.provision(), Provision::Create);
    assert_eq!(config.codec(), Codec::Json);
    assert_eq!(config.events_transport(), "main");
    assert_eq!(config.calls_transport(), "main");
}

#[test]
fn each_layer_beats_the_one_below() {
    let code = HandlerSettings {
        concurrency: Some(3),
        ..HandlerSettings::default()
    };
    let load = |text: &str, env: &[(&str, &str)], force: &str| {
        let loader = Config::loader().toml("anywire.toml", text);
        let config = loader.env(variables(env)).force(force).load().unwrap();
        let handler = handler_in_code(&config, &code).unwrap();
        (
            handler.concurrency,
            handler.origin("concurrency").to_string(),
        )
    };
    let defaults = "[defaults]\nconcurrency = 2\n";
    let both = format!("{defaults}[handlers.placed]\nconcurrency = 4");
    let env = [("ANYWIRE__HANDLERS__PLACED__CONCURRENCY", "5")];
    assert_eq!(placed(&Config::default()).concurrency, 64);
    assert_eq!(placed(&file(defaults)).concurrency, 2);
    assert_eq!(load(defaults, &[], ""), (3, "code".to_owned()));
    assert_eq!(load(&both, &[], ""), (4, "anywire.toml:4".to_owned()));
    assert_eq!(load(&both, &env, ""), (5, env[0].0.to_owned()));
    let force = "[handlers.placed]\nconcurrency = 6";
    assert_eq!(load(&both, &env, force), (6, "force".to_owned()));
}

#[test]
fn a_variable_for_the_defaults_stays_below_the_code() {
    let config = with_env("", &[("ANYWIRE__DEFAULTS__RETRY", r#"["1s"]"#)]).unwrap();
    assert_eq!(placed(&config).retry, [Duration::from_secs(1)]);
    let code = HandlerSettings {
        retry: Some(Vec::new()),
        ..HandlerSettings::default()
    };
    assert!(handler_in_code(&config, &code).unwrap().retry.is_empty());
}

#[test]
fn a_later_file_beats_an_earlier_one() {
    let loader = Config::loader().toml("a.toml", "grace = '1s'\nretention = '1d'");
    let config = loader.toml("b.toml", "grace = '2s'").load().unwrap();
    assert_eq!(config.grace(), Duration::from_secs(2));
    assert_eq!(config.retention(), Duration::from_secs(86_400));
}

#[test]
fn every_top_level_key_is_read() {
    let config = file(
        "grace = '1s'\nconnect_timeout = '2s'\nrequest_timeout = '3s'\nemit_timeout = '4s'\nretention = '5s'\ndead_letter_retention = '6s'\nprovision = 'verify'\nevents = 'log'\ncalls = 'rpc'\n[transports.log]\nurl = 'kafka://h'\n[transports.rpc]\nurl = 'grpc://h'\n[defaults]\ncodec = 'json'",
    );
    let seconds = [
        config.grace(),
        config.connect_timeout().unwrap(),
        config.request_timeout(),
        config.emit_timeout(),
        config.retention(),
        config.dead_letter_retention(),
    ];
    assert_eq!(seconds.map(|value| value.as_secs()), [1, 2, 3, 4, 5, 6]);
    assert_eq!(config.provision(), Provision::Verify);
    assert_eq!(config.events_transport(), "log");
    assert_eq!(config.calls_transport(), "rpc");
    assert_eq!(
        placed(&config).origin("provision").to_string(),
        "anywire.toml:7"
    );
}

#[test]
fn a_variable_reaches_a_handler_whatever_the_case_of_its_name() {
    let env = [("ANYWIRE__HANDLERS__ORDERPLACED__CONCURRENCY", "8")];
    let config = with_env("[handlers.orderPlaced]\ngroup = 'g'", &env).unwrap();
    let code = HandlerSettings::default();
    let handler = config.handler("orderPlaced", &pattern("a"), &code, "shop");
    let handler = handler.unwrap();
    assert_eq!(
        (handler.concurrency, handler.group.as_deref()),
        (8, Some("g"))
    );
    config.unknown_handlers(&["orderPlaced"]).unwrap();
}

#[test]
fn a_variable_is_toml_where_it_can_be_and_else_a_text() {
    let config = with_env(
        "",
        &[
            ("ANYWIRE_URL", "nats://h"),
            ("ANYWIRE__TRANSPORTS__MAIN__PASSWORD", "12345"),
            ("ANYWIRE__TRANSPORTS__MAIN__TLS", r#"{ca = "/ca.pem"}"#),
            ("ANYWIRE__TRANSPORTS__MAIN__TLS__SERVER_NAME", "true"),
            ("ANYWIRE__TRANSPORTS__MAIN__NATS__INBOX", r#""quoted""#),
            (
                "ANYWIRE__SUBJECTS",
                r#"[{match = "a.>", retention = "1d"}]"#,
            ),
            ("ANYWIRE_TEST_NATS_URL", "not ours"),
            ("ANYWIRE_CONFIGURATION", "not ours"),
        ],
    );
    let config = config.unwrap();
    let main = config.transport("main", "shop").unwrap();
    assert_eq!(main.password.unwrap().expose(), "12345");
    assert_eq!(main.tls.ca.unwrap().to_str(), Some("/ca.pem"));
    assert_eq!(main.tls.server_name.as_deref(), Some("true"));
    assert_eq!(main.section["inbox"].as_str(), Some("quoted"));
    assert_eq!(config.rules().len(), 1);
}

#[test]
fn the_rules_of_a_stronger_layer_are_tried_first() {
    let rule = |pattern: &str| format!("[[subjects]]\nmatch = '{pattern}'\n");
    let loader = Config::loader().toml("a.toml", rule("a") + &rule("b"));
    let loader = loader
        .force(rule("d"))
        .env(variables(&[("ANYWIRE__SUBJECTS", r#"[{match = "c"}]"#)]));
    let config = loader.load().unwrap();
    let patterns: Vec<&str> = config
        .rules()
        .iter()
        .map(|rule| rule.pattern.as_str())
        .collect();
    assert_eq!(patterns, ["d", "c", "a", "b"]);
    let later = Config::loader().base(config).toml("e.toml", rule("e"));
    let config = later.load().unwrap();
    let patterns = config.rules().iter().map(|rule| rule.pattern.as_str());
    assert_eq!(patterns.collect::<Vec<_>>(), ["d", "c", "e", "a", "b"]);
}

#[test]
fn a_subject_gets_its_first_rule_over_the_defaults() {
    let config = file(
        "retention = '2d'\nevents = 'log'\n[defaults]\ndelivery = 'at_most_once'\n[transports.log]\nurl = 'kafka://h'\n[[subjects]]\nmatch = 'audit.>'\ntransport = 'main'\ndelivery = 'at_least_once'\nretention = '1d'\nreplicas = 3\nunrouted = 'ignore'\ndeclare = true\nkafka = { partitions = 12 }\n[[subjects]]\nmatch = '>'\nunrouted = 'warn'",
    );
    let subject = |text: &str| config.subject(&Subject::parse(text).unwrap()).to_owned();
    let audit = Subject::parse("audit.eu").unwrap();
    let audit = config.subject(&audit);
    assert_eq!(audit.transport, "main");
    assert_eq!(audit.guarantee, Guarantee::AtLeastOnce);
    assert_eq!(audit.retention, Duration::from_secs(86_400));
    assert_eq!(format!("{:?}", audit.unrouted), "Ignore");
    let rule = audit.rule.unwrap();
    assert_eq!((rule.replicas, rule.declare), (Some(3), true));
    assert_eq!(rule.native["kafka"]["partitions"].as_integer(), Some(12));
    let other = subject("shop.placed");
    assert_eq!(other.transport, "log");
    assert_eq!(other.guarantee, Guarantee::AtMostOnce);
    assert_eq!(other.retention, Duration::from_secs(2 * 86_400));
    assert_eq!(format!("{:?}", other.unrouted), "Warn");
}

#[test]
fn calls_follow_the_rules_too() {
    let config = file(
        "calls = 'rpc'\n[transports.rpc]\nurl = 'grpc://h'\n[transports.billing]\nurl = 'grpc://b'\n[[subjects]]\nmatch = 'billing.>'\ntransport = 'billing'",
    );
    let transport = |text: &str| {
        config
            .call_transport(&Subject::parse(text).unwrap())
            .to_owned()
    };
    assert_eq!(transport("billing.charge"), "billing");
    assert_eq!(transport("shop.quote"), "rpc");
}

#[test]
fn a_rule_beats_an_emit_but_does_not_weaken_it() {
    use Guarantee::{AtLeastOnce, AtMostOnce};
    let config = file(
        "[[subjects]]\nmatch = 'a'\ndelivery = 'at_least_once'\n[[subjects]]\nmatch = 'b'\ndelivery = 'at_most_once'",
    );
    let of = |subject: &str, code| {
        let subject = Subject::parse(subject).unwrap();
        config.subject(&subject).guarantee_of(code)
    };
    assert_eq!(of("a", Some(AtMostOnce)).unwrap(), AtLeastOnce);
    assert_eq!(of("b", None).unwrap(), AtMostOnce);
    assert_eq!(of("c", Some(AtMostOnce)).unwrap(), AtMostOnce);
    assert_eq!(of("c", None).unwrap(), AtLeastOnce);
    let error = of("b", Some(AtLeastOnce)).unwrap_err().to_string();
    assert!(error.contains("rule for \"b\""), "{error}");
}

#[test]
fn a_configuration_nests_in_the_settings_of_a_user() {
    #[derive(Debug, serde::Deserialize)]
    struct Settings {
        port: u16,
        messaging: Config,
    }
    let json =
        r#"{"port": 80, "messaging": {"grace": "3s", "handlers": {"placed": {"concurrency": 2}}}}"#;
    let settings: Settings = serde_json::from_str(json).unwrap();
    assert_eq!(settings.port, 80);
    assert_eq!(settings.messaging.grace(), Duration::from_secs(3));
    let handler = placed(&settings.messaging);
    assert_eq!(handler.origin("concurrency"), &Origin::Settings);
    let loader = Config::loader().base(settings.messaging);
    let env = variables(&[("ANYWIRE__GRACE", "4s"), ("ANYWIRE_URL", "memory://")]);
    assert_eq!(
        loader.env(env).load().unwrap().grace(),
        Duration::from_secs(4)
    );
    let toml = toml::from_str::<Settings>("port = 1\n[messaging]\ngrase = '3s'");
    assert!(
        toml.unwrap_err()
            .to_string()
            .contains("did you mean \"grace\"?")
    );
}

#[test]
fn what_is_forced_later_beats_what_was_forced_before() {
    let config = file("grace = '1s'").forced("grace = '2s'").unwrap();
    let config = config.forced("grace = '3s'").unwrap();
    assert_eq!(config.grace(), Duration::from_secs(3));
    assert!(
        config
            .forced("grace = 3")
            .unwrap_err()
            .to_string()
            .starts_with("force: ")
    );
}

#[test]
fn what_is_printed_names_every_value_and_its_origin() {
    let config = with_env(
        "url = 'nats://u:hunter2@h'\n[transports.main]\ntoken_file = '/token'\ntls = { ca = '/ca' }\n[transports.main.nats]\ninbox = 'x'\njwt = 'hunter2'\n[handlers.placed]\ngroup = 'g'\n[[subjects]]\nmatch = 'a'\nkafka = {partitions = 2}",
        &[("ANYWIRE__GRACE", "1s")],
    );
    let printed = config.unwrap().effective().to_string();
    for line in [
        "events = \"main\"  # default",
        "grace = \"1s\"  # ANYWIRE__GRACE",
        "transports.main.url = \"nats://[secret]@h\"  # anywire.toml:1",
        "transports.main.token_file = \"/token\"  # anywire.toml:3",
        "transports.main.tls.ca = \"/ca\"  # anywire.toml:4",
        "transports.main.nats.inbox = \"x\"  # anywire.toml:6",
        "transports.main.nats.jwt = \"[secret]\"  # anywire.toml:7",
        "defaults.concurrency = 64  # default",
        "subjects[0].match = \"a\"  # anywire.toml:11",
        "subjects[0].kafka = { partitions = 2 }  # anywire.toml:10",
        "handlers.placed.group = \"g\"  # anywire.toml:9",
    ] {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line}\nis not in\n{printed}"
        );
    }
}
