//! Properties: of merging, and of keeping secrets.

use proptest::prelude::*;

use super::*;

const CANARY: &str = "CaNaRy7";

/// One layer's text, which may or may not set a handler's concurrency.
fn section(path: &str, value: Option<usize>) -> String {
    match value {
        Some(value) => format!("{path}.concurrency = {value}\n"),
        None => String::new(),
    }
}

proptest! {
    #[test]
    fn the_strongest_layer_that_says_something_wins(
        layers in proptest::array::uniform6(proptest::option::of(1_usize..1000)),
    ) {
        let [defaults, code, file, later, env, force] = layers;
        let mut variables = Vec::new();
        if let Some(value) = env {
            variables.push(("ANYWIRE__HANDLERS__PLACED__CONCURRENCY".to_owned(), value.to_string()));
        }
        let config = Config::loader()
            .toml("a.toml", section("defaults", defaults) + &section("handlers.placed", file))
            .toml("b.toml", section("handlers.placed", later))
            .env(variables)
            .force(section("handlers.placed", force))
            .load()
            .unwrap();
        let code_settings = HandlerSettings { concurrency: code, ..HandlerSettings::default() };
        let handler = handler_in_code(&config, &code_settings).unwrap();
        let expected = force.or(env).or(later).or(file).or(code).or(defaults);
        prop_assert_eq!(handler.concurrency, expected.unwrap_or(64));
        let origin = match (force, env, later, file, code, defaults) {
            (Some(_), ..) => "force",
            (_, Some(_), ..) => "ANYWIRE__HANDLERS__PLACED__CONCURRENCY",
            (_, _, Some(_), ..) => "b.toml:1",
            (.., Some(_), _, _) => if defaults.is_some() { "a.toml:2" } else { "a.toml:1" },
            (.., Some(_), _) => "code",
            (.., Some(_)) => "a.toml:1",
            _ => "default",
        };
        prop_assert_eq!(handler.origin("concurrency").to_string(), origin);
    }

    #[test]
    fn a_credential_is_that_of_the_strongest_layer_not_below_the_url(
        urls in proptest::array::uniform3(any::<bool>()),
        tokens in proptest::array::uniform3(any::<bool>()),
    ) {
        let text = |layer: usize| {
            let mut text = String::new();
            if urls[layer] {
                text.push_str(&format!("url = 'nats://h{layer}'\n"));
            }
            if tokens[layer] {
                text.push_str(&format!("transports.main.token = 't{layer}'\n"));
            }
            text
        };
        let config = Config::loader().toml("a", text(0)).toml("b", text(1)).force(text(2)).load();
        let config = config.unwrap();
        let url = (0..3).rev().find(|layer| urls[*layer]);
        prop_assume!(url.is_some());
        let token = (url.unwrap()..3).rev().find(|layer| tokens[*layer]);
        let main = config.transport("main", "shop").unwrap();
        prop_assert_eq!(main.address(), format!("nats://h{}", url.unwrap()));
        let token = token.map(|layer| format!("t{layer}"));
        prop_assert_eq!(main.token.as_ref().map(crate::Secret::expose), token.as_deref());
    }

    #[test]
    fn no_text_makes_the_loader_panic(text in "[a-z.=\\[\\]{}'\" 0-9\\n]{0,80}") {
        let _ = Config::from_toml(&text);
    }

    #[test]
    fn no_variable_makes_the_loader_panic(name in "[A-Z_]{0,20}", value in ".{0,20}") {
        let _ = Config::loader().env([(format!("ANYWIRE__{name}"), value)]).load();
    }
}

#[test]
fn a_secret_is_in_no_error_and_in_nothing_printed() {
    for (path, value) in PLACES {
        for broken in BREAKAGES {
            for as_variable in [false, true] {
                let seen = with_canary(path, &value.replace('$', CANARY), broken, as_variable);
                assert!(!seen.contains(CANARY), "{path} = {value}: {seen}");
            }
        }
    }
}

fn with_canary(path: &str, value: &str, broken: &str, as_variable: bool) -> String {
    let mut loader = Config::loader();
    let mut variables = Vec::new();
    if as_variable {
        let name = path.to_uppercase().replace('.', "__");
        variables.push((format!("ANYWIRE__{name}"), value.to_owned()));
    } else {
        let value = toml::Value::from(value);
        loader = loader.toml("anywire.toml", format!("{path} = {value}\n"));
    }
    if !["url", "transports.main.url"].contains(&path) {
        loader = loader.toml("url.toml", "url = 'nats://h'");
    }
    let loader = loader.env(variables).toml("broken.toml", broken);
    format!("{loader:?}") + &everything_visible(loader.load())
}

/// Where a secret may stand, rightly or by mistake; `$` is the secret.
const PLACES: [(&str, &str); 22] = [
    ("url", "nats://user:$@h"),
    ("url", "nats://$@h"),
    ("url", "nats://user:$/x@h"),
    ("url", "nats://user:%zz$@h"),
    ("url", "nats//user:$@h"),
    ("url", "$"),
    ("url", "nats://h:99999?password=$"),
    ("url", "nats://h?token=$"),
    ("transports.main.url", "nats://user:$@h:x"),
    ("transports.main.user", "$"),
    ("transports.main.password", "$"),
    ("transports.main.token", "$"),
    ("transports.main.pasword", "$"),
    ("transports.main.nats.password", "$"),
    ("transports.main.nats.url", "nats://u:$@h"),
    ("transports.main.tls", "$"),
    ("transports.main.allow_plaintext", "$"),
    ("transports.main.stream_heartbeat", "$"),
    ("events", "nats://u:$@h"),
    ("grace", "$"),
    ("defaults.retry", "$"),
    ("handlers.placed.transport", "nats://u:$@h"),
];

const BREAKAGES: [&str; 5] = [
    "",
    "grase = 1",
    "transports.main.password = 7",
    "transports.main.tls.ca = 7",
    "events = 'nowhere'",
];

/// All that a program, a log or a person may see of a configuration.
fn everything_visible(config: Result<Config, Error>) -> String {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Section {
        #[allow(dead_code)]
        password: Option<u32>,
    }
    let config = match config {
        Ok(config) => config,
        Err(error) => return format!("{error} {error:?}"),
    };
    let mut seen = format!(
        "{config:?} {} {:?}",
        config.effective(),
        config.address("main")
    );
    for adapters in [&[["nats"].as_slice()], &[["kafka"].as_slice()]] {
        match config.resolve("main", "shop", adapters) {
            Ok(main) => {
                seen += &format!("{main:?} {} ", main.address());
                seen += &format!("{:?}", main.section::<Section>());
            }
            Err(error) => seen += &format!("{error} {error:?}"),
        }
    }
    let handler = handler_in_code(&config, &HandlerSettings::default());
    seen + &format!("{handler:?} {:?}", config.unknown_handlers(&[]))
}
