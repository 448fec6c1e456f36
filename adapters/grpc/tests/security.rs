//! Who is not whom he should be is told within seconds, and by a sentence that says where to look.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use anywire::{Error, ErrorKind, Result, Router, RunningApp};
use anywire_conformance::rig::Authority;
use anywire_conformance::trials;
use support::{address, alone, app, start};
use tempfile::TempDir;

trials![
    [] =>
    a_certificate_that_is_right_is_trusted,
    the_name_that_the_configuration_gives_is_the_one_that_counts,
    a_certificate_that_is_not_right_is_told,
    a_client_without_the_certificate_that_is_asked_for_is_told,
    a_plaintext_peer_that_is_asked_for_tls_is_told,
    a_tls_peer_that_is_asked_in_plaintext_is_told,
    a_file_that_is_missing_is_named_and_not_shown,
];

/// The longest that anybody waits for the news.
const AT_ONCE: Duration = Duration::from_secs(5);

struct House {
    directory: TempDir,
    authority: Authority,
}

impl House {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let authority = Authority::new(directory.path());
        Self {
            directory,
            authority,
        }
    }

    /// A service whose certificate is for `host`, and its port.
    async fn service(&self, host: &str, is_expired: bool, more: &str) -> (RunningApp, u16) {
        let at = address();
        let (cert, key) = self.authority.certify(host, is_expired);
        let config = format!(
            "url = 'grpcs://?listen={at}'\n[transports.main.grpc]\nserver_cert = {cert:?}\nserver_key = {key:?}\n{more}"
        );
        let router = Router::new().on_call("shop.double", double);
        let shop = start("shop", &config, router).await;
        (shop, at.port())
    }

    fn caller(&self, port: u16, more: &str) -> String {
        let ca = self.authority.ca();
        format!("url = 'grpcs://localhost:{port}'\n[transports.main.tls]\nca = {ca:?}\n{more}")
    }
}

async fn double(number: u64) -> Result<u64> {
    Ok(2 * number)
}

async fn ask(config: &str) -> Result<u64, Error> {
    let caller = start("till", config, Router::new()).await;
    let start = Instant::now();
    let call = caller.client();
    let answer = call
        .request::<_, u64>("shop.double", &4)
        .timeout(Duration::from_secs(8))
        .await;
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    caller.shutdown().await.unwrap();
    answer
}

fn assert_config(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("tls.ca"), "{error}");
}

/// Who is asked for a certificate learns only after his own part that it was none: as an alert, or as the end.
fn assert_hung_up(error: &Error) {
    let kinds = [
        ErrorKind::Config,
        ErrorKind::Disconnected,
        ErrorKind::Unavailable,
    ];
    assert!(kinds.contains(&error.kind()), "{error:?}");
}

async fn a_certificate_that_is_right_is_trusted() {
    let house = House::new();
    let (shop, port) = house.service("localhost", false, "").await;
    assert_eq!(ask(&house.caller(port, "")).await.unwrap(), 8);
    shop.shutdown().await.unwrap();
}

async fn the_name_that_the_configuration_gives_is_the_one_that_counts() {
    let house = House::new();
    let (shop, port) = house.service("billing.test", false, "").await;
    let right = house.caller(port, "server_name = 'billing.test'");
    assert_eq!(ask(&right).await.unwrap(), 8);
    assert_config(&ask(&house.caller(port, "")).await.unwrap_err());
    assert_config(
        &ask(&house.caller(port, "server_name = 'stock.test'"))
            .await
            .unwrap_err(),
    );
    shop.shutdown().await.unwrap();
}

async fn a_certificate_that_is_not_right_is_told() {
    let house = House::new();
    let (shop, port) = house.service("localhost", true, "").await;
    assert_config(&ask(&house.caller(port, "")).await.unwrap_err());
    shop.shutdown().await.unwrap();
    // Of an authority that nobody trusts.
    let other = House::new();
    let (shop, port) = other.service("localhost", false, "").await;
    assert_config(&ask(&house.caller(port, "")).await.unwrap_err());
    shop.shutdown().await.unwrap();
}

async fn a_client_without_the_certificate_that_is_asked_for_is_told() {
    let house = House::new();
    let asked = format!("client_ca = {:?}", house.authority.ca());
    let at = address();
    let (cert, key) = house.authority.certify("localhost", false);
    let (client_cert, client_key) = house.authority.certify("till.test", false);
    let ca = house.authority.ca();
    let config = format!(
        "url = 'grpcs://localhost:{}?listen={at}'\n[transports.main.tls]\nca = {ca:?}\ncert = {client_cert:?}\nkey = {client_key:?}\n[transports.main.grpc]\nserver_cert = {cert:?}\nserver_key = {key:?}\n{asked}",
        at.port()
    );
    let router = Router::new().on_call("shop.double", double);
    let shop = start("shop", &config, router).await;
    let with = format!("cert = {client_cert:?}\nkey = {client_key:?}");
    assert_eq!(ask(&house.caller(at.port(), &with)).await.unwrap(), 8);
    let error = ask(&house.caller(at.port(), "")).await.unwrap_err();
    assert_hung_up(&error);
    // One of another house is no better than none.
    let other = House::new();
    let (cert, key) = other.authority.certify("till.test", false);
    let with = format!("cert = {cert:?}\nkey = {key:?}");
    assert_hung_up(&ask(&house.caller(at.port(), &with)).await.unwrap_err());
    shop.shutdown().await.unwrap();
}

async fn a_plaintext_peer_that_is_asked_for_tls_is_told() {
    let house = House::new();
    let at = address();
    let router = Router::new().on_call("shop.double", double);
    let shop = start("shop", &alone(at), router).await;
    assert_config(&ask(&house.caller(at.port(), "")).await.unwrap_err());
    shop.shutdown().await.unwrap();
}

async fn a_tls_peer_that_is_asked_in_plaintext_is_told() {
    let house = House::new();
    let (shop, port) = house.service("localhost", false, "").await;
    let error = ask(&format!("url = 'grpc://localhost:{port}'"))
        .await
        .unwrap_err();
    let is_right = matches!(
        error.kind(),
        ErrorKind::Unavailable | ErrorKind::Disconnected
    );
    assert!(is_right, "{error:?}");
    shop.shutdown().await.unwrap();
}

async fn a_file_that_is_missing_is_named_and_not_shown() {
    let house = House::new();
    let missing = house.directory.path().join("missing.pem");
    let start = async |ca: &Path| {
        let config = format!("url = 'grpcs://localhost:1'\n[transports.main.tls]\nca = {ca:?}");
        app("till", &config).start().await.map(drop)
    };
    let error = start(&missing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("missing.pem"), "{error}");
    // One that is there, and is something else.
    let other = house.directory.path().join("other.pem");
    std::fs::write(&other, "-----BEGIN PRIVATE KEY-----\nopen sesame\n").unwrap();
    let (cert, _) = house.authority.certify("localhost", false);
    let config = format!(
        "url = 'grpcs://?listen={}'\n[transports.main.grpc]\nserver_cert = {cert:?}\nserver_key = {other:?}",
        address()
    );
    let router = Router::new().on_call("shop.double", double);
    let error = app("shop", &config)
        .router(router)
        .start()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        !format!("{error} {error:?}").contains("sesame"),
        "{error:?}"
    );
}
