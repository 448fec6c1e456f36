//! URLs, credentials, sections.

use super::*;
use crate::config::TransportConfig;

const NATS: &[&str] = &["nats", "tls"];
const KAFKA: &[&str] = &["kafka"];
const MEMORY: &[&str] = &["memory"];

fn main(config: &Config) -> TransportConfig {
    config.transport("main", "shop").unwrap()
}

fn secret(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn the_short_url_is_the_one_of_main() {
    let config = file(
        "url = 'nats://u:p%40@h1:4222,h2/path?x=y'\n[transports.main]\nallow_plaintext = true",
    );
    let main = main(&config);
    assert_eq!((main.name.as_str(), main.app.as_str()), ("main", "shop"));
    assert_eq!(main.scheme, "nats");
    assert_eq!(main.endpoints.len(), 2);
    assert_eq!(main.path, "path");
    assert_eq!(main.parameters, [("x".to_owned(), "y".to_owned())]);
    assert_eq!(main.user.as_deref(), Some("u"));
    assert_eq!(main.password.as_ref().unwrap().expose(), "p@");
    assert!(main.allow_plaintext);
    assert_eq!(main.address(), "nats://[secret]@h1:4222,h2/path?x=y");
    assert_eq!(config.address("main"), Some(main.address()));
    assert_eq!(config.transports().collect::<Vec<_>>(), ["main"]);
}

#[test]
fn a_url_of_a_stronger_layer_leaves_no_credentials_behind() {
    let text = "url = 'nats://u:p@h'\n[transports.main]\ntoken = 't'\nallow_plaintext = true\ntls = { ca = '/ca', cert = '/c', key = '/k', server_name = 's' }";
    for name in ["ANYWIRE_URL", "ANYWIRE__TRANSPORTS__MAIN__URL"] {
        let main = main(&with_env(text, &[(name, "kafka://k")]).unwrap());
        assert_eq!(main.scheme, "kafka");
        assert!(main.user.is_none() && main.password.is_none() && main.token.is_none());
        assert_eq!(main.tls, Default::default());
        assert!(!main.allow_plaintext);
    }
    let loader = Config::loader().toml("a.toml", text);
    let later = loader.toml("b.toml", "url = 'kafka://k'").load().unwrap();
    assert!(main(&later).token.is_none());
}

#[test]
fn credentials_of_the_url_s_own_layer_or_of_a_stronger_one_stay() {
    let env = [
        ("ANYWIRE_URL", "kafka://k"),
        ("ANYWIRE__TRANSPORTS__MAIN__PASSWORD", "new"),
    ];
    let config = with_env("url = 'nats://u:p@h'", &env).unwrap();
    assert_eq!(main(&config).password.unwrap().expose(), "new");
    assert!(main(&config).user.is_none());
    let config = with_env("url = 'nats://u:p@h'", &env[1..]).unwrap();
    assert_eq!(main(&config).password.unwrap().expose(), "new");
    assert_eq!(main(&config).user.as_deref(), Some("u"));
}

#[test]
fn a_credential_that_is_said_twice_in_one_layer_is_an_error() {
    let config = file("url = 'nats://u:p@h'\n[transports.main]\npassword = 'x'");
    let error = config.transport("main", "shop").unwrap_err().to_string();
    assert!(
        error.contains("anywire.toml:1") && error.contains("anywire.toml:3"),
        "{error}"
    );
    let error =
        file_error("[transports.main]\nurl = 'nats://h'\npassword = 'x'\npassword_file = 'y'");
    assert!(
        error.contains("\"password_file\"") && error.contains("\"password\""),
        "{error}"
    );
    let stronger = [
        ("ANYWIRE__TRANSPORTS__MAIN__PASSWORD_ENV", "PASSWORD"),
        ("PASSWORD", "z"),
    ];
    let config = with_env(
        "[transports.main]\nurl = 'nats://h'\npassword = 'x'",
        &stronger,
    );
    assert_eq!(main(&config.unwrap()).password.unwrap().expose(), "z");
}

#[test]
fn secrets_come_from_files_and_variables() {
    let password = secret("hunter2\r\n");
    let path = password.path().display();
    let text = format!(
        "[transports.main]\nurl = 'nats://h'\nuser_env = 'NATS_USER'\npassword_file = '{path}'\ntoken_env = 'NATS_TOKEN'"
    );
    let env = [("NATS_USER", "shop"), ("NATS_TOKEN", "t\n")];
    let main = main(&with_env(&text, &env).unwrap());
    assert_eq!(main.user.as_deref(), Some("shop"));
    assert_eq!(main.password.unwrap().expose(), "hunter2");
    assert_eq!(main.token.unwrap().expose(), "t\n");
}

#[test]
fn a_secret_that_is_missing_names_the_place() {
    let empty = secret("\n");
    let path = empty.path().display().to_string();
    for (key, value, expected) in [
        ("password_file", "/no/such/file", "/no/such/file"),
        ("password_file", path.as_str(), "is empty"),
        ("password_env", "NATS_PASSWORD", "NATS_PASSWORD is not set"),
    ] {
        let text = format!("[transports.main]\nurl = 'nats://h'\n{key} = '{value}'");
        let config = with_env(&text, &[]).unwrap();
        let error = config.transport("main", "shop").unwrap_err().to_string();
        assert!(
            error.starts_with("anywire.toml:3: ") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn without_a_url_main_is_memory_only_where_nothing_else_is_registered() {
    let config = Config::default();
    let resolve = |adapters: &[&[&str]]| config.resolve("main", "shop", adapters);
    assert_eq!(resolve(&[]).unwrap().scheme, "memory");
    assert_eq!(resolve(&[MEMORY]).unwrap().scheme, "memory");
    let error = resolve(&[MEMORY, NATS]).unwrap_err().to_string();
    assert!(
        error.contains("set ANYWIRE_URL, or memory:// on purpose"),
        "{error}"
    );
    let config = file("transports.main.token = 't'");
    let error = config
        .resolve("main", "shop", &[MEMORY])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("anywire.toml:1: ") && error.contains("ANYWIRE_URL"),
        "{error}"
    );
    let on_purpose = file("url = 'memory://'");
    let main = on_purpose.resolve("main", "shop", &[MEMORY, NATS]).unwrap();
    assert_eq!(main.scheme, "memory");
    assert!(file_error("[transports.log]\ntoken = 't'").contains("[transports.log] has no url"));
}

#[test]
fn a_scheme_without_an_adapter_is_an_error() {
    let config = file("url = 'nat://h'");
    let error = config
        .resolve("main", "shop", &[MEMORY, &["nats"]])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "scheme `nat` has no adapter; registered: memory, nats (did you mean `nats`?) (transport: main, at: anywire.toml:1)"
    );
}

#[test]
fn a_section_goes_to_the_adapter_of_the_url_and_to_no_other() {
    let sections = "[transports.main.nats]\ninbox = 'x'\n[transports.main.kafka]\nlinger = '5ms'\n";
    let config = file(&format!("url = 'tls://h'\n{sections}"));
    let adapters = [MEMORY, NATS, KAFKA];
    let main = config.resolve("main", "shop", &adapters).unwrap();
    assert_eq!(main.section.keys().collect::<Vec<_>>(), ["inbox"]);
    let twice = file(&format!(
        "url = 'tls://h'\n{sections}[transports.main.tls]\nca = '/x'"
    ));
    let main = twice.resolve("main", "shop", &adapters).unwrap();
    assert!(
        main.tls.ca.is_some(),
        "tls is a key of ours, whatever an adapter's scheme"
    );
    let main = file(sections)
        .forced("url = 'kafka://h'")
        .unwrap()
        .transport("main", "shop");
    assert_eq!(main.unwrap().section["linger"].as_str(), Some("5ms"));
}

#[test]
fn an_error_in_a_section_names_its_line() {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Section {
        #[allow(dead_code)]
        linger: Option<u32>,
    }
    let section = |text: &str| {
        let config = file(&format!(
            "url = 'kafka://h'\n[transports.main.kafka]\n{text}"
        ));
        main(&config).section::<Section>().unwrap_err().to_string()
    };
    assert_eq!(
        section("\nlingr = 5"),
        "anywire.toml:4: unknown key \"lingr\" in [transports.main.kafka]; did you mean \"linger\"?"
    );
    let error = section("linger = 'hunter2'");
    assert!(
        error.starts_with("anywire.toml:3: \"linger\"") && !error.contains("hunter2"),
        "{error}"
    );
}

#[test]
fn single_keys_of_a_section_come_from_stronger_layers() {
    let text = "url = 'kafka://h'\n[transports.main.kafka]\nlinger = '5ms'\nacks = 1\n[transports.main.kafka.deep]\na = 1\nb = 2";
    let env = [
        ("ANYWIRE__TRANSPORTS__MAIN__KAFKA__LINGER", "1ms"),
        ("ANYWIRE__TRANSPORTS__MAIN__KAFKA__DEEP__B", "3"),
    ];
    let section = main(&with_env(text, &env).unwrap()).section;
    let expected = "acks = 1\nlinger = '1ms'\n[deep]\na = 1\nb = 3";
    assert_eq!(section, toml::from_str(expected).unwrap());
}

#[test]
fn for_tests_every_transport_is_memory() {
    let config = file(
        "url = 'nats://h'\nevents = 'log'\n[transports.log]\nurl = 'kafka://h'\npassword_file = '/none'",
    );
    let config = config.on_memory().forced("grace = '1s'").unwrap();
    for name in ["main", "log"] {
        assert_eq!(config.transport(name, "shop").unwrap().scheme, "memory");
        assert_eq!(
            config.resolve(name, "shop", &[NATS]).unwrap().scheme,
            "memory"
        );
        assert_eq!(config.address(name).as_deref(), Some("memory://"));
    }
    assert!(config.transport("lgo", "shop").is_err());
}

#[test]
fn an_adapter_sees_the_rules() {
    let config = file("url = 'kafka://h'\n[[subjects]]\nmatch = 'a'\nkafka = { partitions = 3 }");
    let main = config.transport("main", "shop").unwrap();
    assert_eq!(
        main.subjects[0].native["kafka"]["partitions"].as_integer(),
        Some(3)
    );
}
