//! Who is not let in, or does not trust the server, is told within seconds and once; and no secret is in what he is told.
#![allow(clippy::unwrap_used)]

#[path = "support/keys.rs"]
mod keys;
mod support;

use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant, SystemTime};

use anywire::{Error, ErrorKind, Router};
use anywire_conformance::proxy::Proxy;
use anywire_conformance::rig::{Authority, Seen, refusal, until};
use anywire_conformance::trials;
use keys::Operator;
use support::{Server, configured, shop};
use tempfile::TempDir;
use tracing_subscriber::filter::LevelFilter;

trials![
    [support::SERVER] =>
    a_wrong_password_or_token_is_told_once,
    an_nkey_that_nobody_knows_or_nobody_can_read_is_told_once,
    expired_credentials_are_told_once,
    credentials_that_expire_at_work_are_tried_again_without_haste,
    a_server_whose_certificate_is_right_is_trusted,
    a_certificate_that_is_not_right_is_told_once,
    a_client_without_the_certificate_that_is_asked_for_is_told_once,
    a_plaintext_server_that_is_asked_for_tls_is_told_once,
];

/// Part of every secret of these tests.
const SECRET: &str = "canary";

/// What was logged by anybody in this process.
struct Log;

static LOGGED: Mutex<Vec<u8>> = Mutex::new(Vec::new());

impl Log {
    fn listen() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            tracing_subscriber::fmt()
                .with_max_level(LevelFilter::TRACE)
                .with_writer(|| Self)
                .init();
        });
    }

    fn text() -> String {
        String::from_utf8_lossy(&LOGGED.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGGED.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn assert_holds_no_secret(what: &str, text: &str, secret: &str) {
    assert!(!text.contains(secret), "{what} holds a secret");
}

/// Starts an app that must not come up; `config` holds `ADDRESS` for the server's.
async fn refused(server: &Server, config: &str, secret: &str) -> Error {
    Log::listen();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let config = config.replace("ADDRESS", &proxy.address().to_string());
    let app = configured("shop", &config)
        .router(Router::new().on_event("shop.placed", Seen::default().handler()));
    let (error, told) = refusal(app, &proxy).await;
    assert_holds_no_secret("the app or its error", &told, secret);
    let log = Log::text();
    assert!(log.contains("connecting to server"), "nothing is heard");
    assert_holds_no_secret("the log", &log, secret);
    error
}

async fn a_wrong_password_or_token_is_told_once() {
    let cases = [
        (
            "authorization { user: shop, password: right }",
            "url = 'nats://shop:canary-1@ADDRESS'",
        ),
        (
            "authorization { user: shop, password: right }",
            "url = 'nats://ADDRESS'",
        ),
        (
            "authorization { token: right }",
            "[transports.main]\nurl = 'nats://ADDRESS'\ntoken = 'canary-2'",
        ),
    ];
    for (accounts, config) in cases {
        let server = Server::start(accounts).unwrap();
        let error = refused(&server, config, SECRET).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        assert!(error.to_string().contains("credentials"), "{error}");
    }
}

async fn an_nkey_that_nobody_knows_or_nobody_can_read_is_told_once() {
    let known = nkeys::KeyPair::new_user().public_key();
    let accounts = format!("authorization {{ users: [ {{ nkey: {known} }} ] }}");
    let server = Server::start(&accounts).unwrap();
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    for (seed, kind) in [
        (seed.as_str(), ErrorKind::Denied),
        ("SUCANARYBROKEN", ErrorKind::Denied),
    ] {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("seed");
        std::fs::write(&file, seed).unwrap();
        let config =
            format!("url = 'nats://ADDRESS'\n[transports.main.nats]\nnkey_file = {file:?}");
        let error = refused(&server, &config, seed).await;
        assert_eq!(error.kind(), kind, "{error:?}");
    }
}

fn with_credentials(file: &Path) -> String {
    format!("url = 'nats://ADDRESS'\n[transports.main.nats]\ncredentials_file = {file:?}")
}

async fn expired_credentials_are_told_once() {
    let operator = Operator::new();
    let server = Server::start(&operator.config).unwrap();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("user.creds");
    let seed = operator.credentials(&file, SystemTime::now() - Duration::from_secs(60));
    let error = refused(&server, &with_credentials(&file), &seed).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    // Of another operator.
    let seed = Operator::new().credentials(&file, SystemTime::now() + Duration::from_secs(60));
    let error = refused(&server, &with_credentials(&file), &seed).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    std::fs::write(&file, "no canary is in what is no file of credentials").unwrap();
    let error = refused(&server, &with_credentials(&file), SECRET).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("user.creds"), "{error}");
}

async fn credentials_that_expire_at_work_are_tried_again_without_haste() {
    Log::listen();
    let operator = Operator::new();
    let server = Server::start(&operator.config).unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("user.creds");
    let seed = operator.credentials(&file, SystemTime::now() + Duration::from_secs(3));
    let seen = Seen::default();
    let config = with_credentials(&file).replace("ADDRESS", &proxy.address().to_string());
    let app = shop(configured("shop", &config), &seen).await;
    app.client().emit("shop.placed", &1).await.unwrap();
    until("an event", || seen.has_all([1])).await;
    until("the end of the credentials", || !app.health().is_ok()).await;

    let (start, before) = (Instant::now(), proxy.counters().accepted);
    until("attempts", || proxy.counters().accepted >= before + 20).await;
    assert!(
        start.elapsed() > Duration::from_secs(1),
        "in haste: {:?}",
        start.elapsed()
    );
    let emit = app.client();
    let emit = emit.emit("shop.placed", &2).timeout(Duration::from_secs(1));
    let error = emit.await.unwrap_err();
    assert_holds_no_secret("the error", &format!("{error:?}"), &seed);
    assert_holds_no_secret("the log", &Log::text(), &seed);
    app.shutdown().await.unwrap();
}

fn tls_server(authority: &Authority, host: &str, is_expired: bool, more: &str) -> Server {
    let (certificate, key) = authority.certify(host, is_expired);
    let tls = format!("tls {{ cert_file: {certificate:?}, key_file: {key:?}, {more} }}");
    Server::start(&tls).unwrap()
}

async fn a_server_whose_certificate_is_right_is_trusted() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new(directory.path());
    let verify = format!("ca_file: {:?}, verify: true", authority.ca());
    let (certificate, key) = authority.certify("client.example", false);
    let own = format!(", cert = {certificate:?}, key = {key:?}");
    for (more, own) in [("", ""), (verify.as_str(), own.as_str())] {
        let server = tls_server(&authority, "127.0.0.1", false, more);
        let config = format!(
            "[transports.main]\nurl = 'tls://{}'\ntls = {{ ca = {:?}{own} }}",
            server.address(),
            authority.ca(),
        );
        let seen = Seen::default();
        let app = shop(configured("shop", &config), &seen).await;
        app.client().emit("shop.placed", &1).await.unwrap();
        until("an event", || seen.has_all([1])).await;
        app.shutdown().await.unwrap();
    }
}

async fn a_certificate_that_is_not_right_is_told_once() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new(directory.path());
    let trusting = format!(
        "[transports.main]\nurl = 'tls://shop:canary@ADDRESS'\ntls = {{ ca = {:?} }}",
        authority.ca()
    );
    let cases = [
        ("other.example", false, trusting.as_str()),
        ("127.0.0.1", true, trusting.as_str()),
        ("127.0.0.1", false, "url = 'tls://shop:canary@ADDRESS'"),
    ];
    for (host, is_expired, config) in cases {
        let server = tls_server(&authority, host, is_expired, "");
        let error = refused(&server, config, SECRET).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

async fn a_client_without_the_certificate_that_is_asked_for_is_told_once() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new(directory.path());
    let verify = format!("ca_file: {:?}, verify: true", authority.ca());
    let server = tls_server(&authority, "127.0.0.1", false, &verify);
    let config = format!(
        "[transports.main]\nurl = 'tls://shop:canary@ADDRESS'\ntls = {{ ca = {:?} }}",
        authority.ca()
    );
    let error = refused(&server, &config, SECRET).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
}

async fn a_plaintext_server_that_is_asked_for_tls_is_told_once() {
    let server = Server::start("").unwrap();
    let directory = TempDir::new().unwrap();
    let authority = Authority::new(directory.path());
    for config in [
        "url = 'tls://shop:canary@ADDRESS'".to_owned(),
        format!(
            "[transports.main]\nurl = 'nats://shop:canary@ADDRESS'\ntls = {{ ca = {:?} }}",
            authority.ca()
        ),
    ] {
        let error = refused(&server, &config, SECRET).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains("TLS"), "{error}");
    }
}
