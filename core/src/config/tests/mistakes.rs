//! What is refused, and how that is said.

use super::*;

#[test]
fn an_unknown_key_names_file_line_section_and_the_nearest_key() {
    assert_eq!(
        file_error("url = 'memory://'\n\n[handlers.placed]\nconcurency = 8"),
        "anywire.toml:4: unknown key \"concurency\" in [handlers.placed]; did you mean \"concurrency\"?"
    );
    assert_eq!(
        file_error("grase = '1s'"),
        "anywire.toml:1: unknown key \"grase\" at the top level; did you mean \"grace\"?"
    );
    assert_eq!(
        file_error("[transports.main]\nurl = 'nats://h'\ntls = { ca = 'x', serverName = 'y' }"),
        "anywire.toml:3: unknown key \"serverName\" in [transports.main.tls]; did you mean \"server_name\"?"
    );
    let error = file_error("[transports.main]\nxyzzy = 1");
    assert!(error.contains("known: url, user, user_file"), "{error}");
    let error = file_error("[[subjects]]\nmatch = 'a'\nreplicsa = 3");
    assert!(
        error.starts_with("anywire.toml:3: ") && error.contains("replicas"),
        "{error}"
    );
    assert!(file_error("[defaults]\nretrys = ['1s']").contains("did you mean \"retry\"?"));
}

#[test]
fn a_table_that_is_nearly_a_key_is_no_section() {
    let error = file_error("[transports.main.tsl]\nca = 'x'");
    assert!(error.contains("did you mean \"tls\"?"), "{error}");
    let error = file_error("[transports.main.NATS]\nx = 1");
    assert!(error.contains("unknown key \"NATS\""), "{error}");
}

#[test]
fn a_value_of_the_wrong_kind_names_place_key_and_what_is_expected() {
    assert_eq!(
        file_error("\n[handlers.placed]\nconcurrency = 'many'"),
        "anywire.toml:3: \"concurrency\" in [handlers.placed] must be a whole number from 1 to 1000000"
    );
    for (text, expected) in [
        ("grace = 25", "a duration"),
        ("emit_timeout = '0s'", "above zero"),
        ("retention = '1ms'", "from \"1s\""),
        ("provision = 'maybe'", "\"create\", \"verify\" or \"none\""),
        ("events = 'nats://h'", "name of a transport"),
        ("url = 7", "must be a text"),
        ("transports = 7", "must be a table"),
        (
            "[transports]\nmain = 'nats://h'",
            "[transports.main] must be a table",
        ),
        (
            "[transports.Main]\nurl = 'nats://h'",
            "cannot name a transport",
        ),
        ("subjects = {}", "list of tables"),
        ("subjects = [7]", "must be a table"),
        ("[[subjects]]\nretention = '1d'", "needs a \"match\""),
        ("[[subjects]]\nmatch = 'a..b'", "a pattern"),
        ("[[subjects]]\nmatch = 'a'\nreplicas = 0", "from 1 to 99"),
        ("[[subjects]]\nmatch = 'a'\ndeclare = 1", "true or false"),
        ("[[subjects]]\nmatch = 'a'\nunrouted = 'drop'", "\"refuse\""),
        (
            "[handlers]\nplaced = 8",
            "[handlers.placed] must be a table",
        ),
        ("[defaults]\nconcurrency = 0", "from 1"),
        ("[defaults]\nconcurrency = -1", "from 1"),
        ("[defaults]\nconcurrency = 1.5", "from 1"),
        ("[defaults]\ngroup = ' '", "a name"),
        ("[defaults]\nretry = '1s'", "a list"),
        ("[defaults]\nretry = ['1s', 2]", "a list"),
        ("[defaults]\nretry = ['134217729s']", "2^27 seconds"),
        ("[defaults]\ntimeout = '1'", "a duration"),
        (
            "[defaults]\ntimeout = '99999999999999999999y'",
            "a duration",
        ),
        ("[defaults]\ndelivery = 'exactly_once'", "\"at_least_once\""),
        ("[defaults]\norder = 'strict'", "\"key-in-group\""),
        ("[defaults]\nafter_failure = 'stop'", "\"hold\""),
        ("[defaults]\nstart = 'now'", "\"earliest\""),
        (
            "[defaults]\nstart = '2026-13-01T00:00:00Z'",
            "a time such as",
        ),
        ("[defaults]\nstart = 2026-11-01T00:00:00Z", "a time such as"),
        ("[defaults]\nbroadcast = 'yes'", "true or false"),
        ("[defaults]\ncodec = 'xml'", "\"json\""),
        ("[defaults]\ntransport = 'main'", "`events` or `calls`"),
    ] {
        let error = file_error(text);
        assert!(error.starts_with("anywire.toml:"), "{text}: {error}");
        assert!(error.contains(expected), "{text}: {error}");
    }
    file("[defaults]\nretry = ['134217728s']");
}

#[test]
fn what_is_overridden_must_be_right_too() {
    let error = with_env("grace = 1", &[("ANYWIRE__GRACE", "2s")]).unwrap_err();
    assert!(error.to_string().starts_with("anywire.toml:1: "), "{error}");
}

#[test]
fn broken_toml_names_the_line_and_repeats_no_text() {
    let error = file_error("grace = '1s'\npassword = 'hunter2");
    assert!(
        error.starts_with("anywire.toml:2: not valid TOML"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
    assert!(file_error("grace = '1s'\ngrace = '2s'").starts_with("anywire.toml:2: "));
    assert!(file_error("[handlers.a]\nconcurrency = 99999999999999999999").contains("too large"));
}

#[test]
fn variables_of_ours_are_strict() {
    assert_eq!(
        env_error(&[("ANYWIRE__HANDLERS__PLACED__CONCURENCY", "8")]),
        "ANYWIRE__HANDLERS__PLACED__CONCURENCY: unknown key \"concurency\" in [handlers.placed]; did you mean \"concurrency\"?"
    );
    assert!(env_error(&[("ANYWIRE__GRASE", "8s")]).starts_with("ANYWIRE__GRASE: unknown key"));
    assert!(env_error(&[("ANYWIRE__GRACE", "8")]).starts_with("ANYWIRE__GRACE: \"grace\" must be"));
    assert!(env_error(&[("ANYWIRE__", "8")]).contains("empty"));
    assert!(env_error(&[("ANYWIRE__HANDLERS____CODEC", "8")]).contains("empty"));
    assert!(env_error(&[("ANYWIRE_URL", "")]).starts_with("ANYWIRE_URL: "));
    assert!(env_error(&[("ANYWIRE__TRANSPORTS", "8")]).contains("must be a table"));
}

#[test]
fn two_variables_for_one_key_are_an_error_that_names_both() {
    let pairs = [("ANYWIRE_URL", "nats://a"), ("ANYWIRE__URL", "nats://b")];
    let error = env_error(&pairs);
    assert!(error.contains("ANYWIRE_URL and ANYWIRE__URL"), "{error}");
    let pairs = [
        ("ANYWIRE_URL", "nats://a"),
        ("ANYWIRE__TRANSPORTS__MAIN__URL", "nats://b"),
    ];
    let error = env_error(&pairs);
    assert!(
        pairs.iter().all(|(name, _)| error.contains(name)),
        "{error}"
    );
    let pairs = [
        ("ANYWIRE__DEFAULTS", "8"),
        ("ANYWIRE__DEFAULTS__CONCURRENCY", "8"),
    ];
    let error = env_error(&pairs);
    assert!(
        pairs.iter().all(|(name, _)| error.contains(name)),
        "{error}"
    );
}

#[test]
fn the_short_url_and_the_long_one_of_one_file_are_an_error() {
    let error = file_error("url = 'nats://a'\n[transports.main]\nurl = 'nats://b'");
    assert!(
        error.contains("anywire.toml:1") && error.contains("anywire.toml:3"),
        "{error}"
    );
}

#[test]
fn a_section_of_a_handler_that_does_not_exist_is_an_error() {
    let config = file("[handlers.placd]\nconcurrency = 1");
    assert_eq!(
        config
            .unknown_handlers(&["quote", "placed"])
            .unwrap_err()
            .to_string(),
        "anywire.toml:1: [handlers.placd] is for a handler that does not exist; did you mean \"placed\"?"
    );
    let config = with_env("", &[("ANYWIRE__HANDLERS__GONE__CONCURRENCY", "1")]).unwrap();
    let error = config
        .unknown_handlers(&["placed"])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("ANYWIRE__HANDLERS__GONE__CONCURRENCY: "),
        "{error}"
    );
}

#[test]
fn a_transport_that_is_not_configured_is_an_error() {
    let transport = "[transports.log]\nurl = 'kafka://h'\n";
    for text in [
        "events = 'lgo'",
        "calls = 'lgo'",
        "handlers.placed.transport = 'lgo'",
        "subjects = [{match = 'a', transport = 'lgo'}]",
    ] {
        let error = file_error(&format!("{text}\n{transport}"));
        assert_eq!(
            error,
            "anywire.toml:1: transport \"lgo\" is not configured; did you mean \"log\"?"
        );
    }
    let code = HandlerSettings {
        transport: Some("lgo".to_owned()),
        ..HandlerSettings::default()
    };
    let error = handler_in_code(&file(transport), &code)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("code: transport \"lgo\""), "{error}");
}

#[test]
fn a_file_that_is_named_must_exist() {
    let error = Config::loader()
        .file("/no/such/anywire.toml")
        .load()
        .unwrap_err();
    assert!(
        error.to_string().contains("/no/such/anywire.toml"),
        "{error}"
    );
}
