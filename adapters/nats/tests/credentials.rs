//! Who is let in, by what, and over which wire.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anywire::clock::TokioClock;
use anywire::config::Config;
use anywire::transport::{Adapter, Transport};
use anywire::{Error, ErrorKind};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use support::Server;
use support::trials::tests_with_a_server;
use tempfile::TempDir;

tests_with_a_server![
    a_certificate_is_checked_against_our_authority_and_our_name,
    an_expired_certificate_is_refused,
    a_server_may_ask_for_our_certificate,
    a_plaintext_server_that_is_asked_for_tls_is_refused,
    a_password_and_a_token_let_in_and_wrong_ones_do_not,
    an_nkey_lets_in_and_another_does_not,
    the_first_server_may_be_absent_where_there_is_another,
];

/// How long a refusal may take.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn connect(config: &str) -> Result<Arc<dyn Transport>, Error> {
    let adapter = anywire_nats::adapter();
    let config = Config::from_toml(config)?;
    let config = config.resolve("main", "shop", &[adapter.schemes()])?;
    adapter.check(&config)?;
    adapter.connect(config, Arc::new(TokioClock)).await
}

async fn is_let_in(config: &str) {
    let transport = connect(config).await.unwrap();
    transport.close(Duration::from_secs(1)).await.unwrap();
}

async fn is_refused(config: &str, kind: ErrorKind) -> Error {
    let start = Instant::now();
    let error = connect(config).await.expect_err("it is refused");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(start.elapsed() < AT_ONCE, "it took {:?}", start.elapsed());
    assert!(
        !format!("{error} {error:?}").contains("CANARY"),
        "{error:?}"
    );
    error
}

/// Certificates in a folder, all of one authority.
struct Certificates {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        Self { folder, authority }
    }

    /// A certificate for `host`, and its key.
    fn issue(&self, host: &str, valid: bool) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        if !valid {
            params.not_after = date_time_ymd(2001, 1, 1);
            params.not_before = date_time_ymd(2000, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let file = |end: &str| self.folder.path().join(format!("{host}-{valid}.{end}"));
        let (certificate_file, key_file) = (file("pem"), file("key"));
        std::fs::write(&certificate_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        (certificate_file, key_file)
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}

/// A server that speaks TLS as `host`; `verify` makes it ask for the client's certificate.
fn tls_server(certificates: &Certificates, host: &str, valid: bool, verify: bool) -> Server {
    let (certificate, key) = certificates.issue(host, valid);
    let ca = certificates.ca();
    let config = format!(
        "tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {ca:?}, verify: {verify} }}"
    );
    Server::start(&config).unwrap()
}

fn tls(host: &str, server: &Server, keys: &[(&str, &Path)]) -> String {
    let port = server.address().port();
    let keys: Vec<_> = keys
        .iter()
        .map(|(name, path)| format!("{name} = {path:?}"))
        .collect();
    let keys = keys.join(", ");
    format!("[transports.main]\nurl = \"tls://{host}:{port}\"\ntls = {{ {keys} }}")
}

async fn a_certificate_is_checked_against_our_authority_and_our_name() {
    let certificates = Certificates::new();
    let ca = certificates.ca();
    let server = tls_server(&certificates, "localhost", true, false);
    is_let_in(&tls("localhost", &server, &[("ca", &ca)])).await;
    is_refused(
        &tls("127.0.0.1", &server, &[("ca", &ca)]),
        ErrorKind::Config,
    )
    .await;
    let others = Certificates::new();
    is_refused(
        &tls("localhost", &server, &[("ca", &others.ca())]),
        ErrorKind::Config,
    )
    .await;
}

async fn an_expired_certificate_is_refused() {
    let certificates = Certificates::new();
    let ca = certificates.ca();
    let server = tls_server(&certificates, "localhost", false, false);
    is_refused(
        &tls("localhost", &server, &[("ca", &ca)]),
        ErrorKind::Config,
    )
    .await;
}

async fn a_server_may_ask_for_our_certificate() {
    let certificates = Certificates::new();
    let ca = certificates.ca();
    let server = tls_server(&certificates, "localhost", true, true);
    let (cert, key) = certificates.issue("shop", true);
    let all = [("ca", ca.as_path()), ("cert", &cert), ("key", &key)];
    is_let_in(&tls("localhost", &server, &all)).await;
    let start = Instant::now();
    let refused = connect(&tls("localhost", &server, &[("ca", &ca)])).await;
    refused.expect_err("it is refused");
    assert!(start.elapsed() < AT_ONCE);
    let halves = tls("localhost", &server, &[("ca", &ca), ("cert", &cert)]);
    let error = is_refused(&halves, ErrorKind::Config).await;
    assert!(error.to_string().contains("tls.key"), "{error}");
}

async fn a_plaintext_server_that_is_asked_for_tls_is_refused() {
    let certificates = Certificates::new();
    let server = Server::start("").unwrap();
    let config = tls("localhost", &server, &[("ca", &certificates.ca())]);
    is_refused(&config, ErrorKind::Config).await;
}

async fn a_password_and_a_token_let_in_and_wrong_ones_do_not() {
    let by_password = "authorization { user: shop, password: right }";
    let server = Server::start(by_password).unwrap();
    let address = server.address();
    is_let_in(&format!("url = \"nats://shop:right@{address}\"")).await;
    is_refused(
        &format!("url = \"nats://shop:CANARY@{address}\""),
        ErrorKind::Denied,
    )
    .await;
    is_refused(&format!("url = \"nats://{address}\""), ErrorKind::Denied).await;
    let server = Server::start("authorization { token: right }").unwrap();
    let with = |token: &str| {
        format!(
            "[transports.main]\nurl = \"{}\"\ntoken = \"{token}\"",
            server.url()
        )
    };
    is_let_in(&with("right")).await;
    is_refused(&with("CANARY"), ErrorKind::Denied).await;
}

async fn an_nkey_lets_in_and_another_does_not() {
    let (known, stranger) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let config = format!(
        "authorization {{ users: [ {{ nkey: {} }} ] }}",
        known.public_key()
    );
    let server = Server::start(&config).unwrap();
    let folder = TempDir::new().unwrap();
    let with = |name: &str, seed: String| {
        let file = folder.path().join(name);
        std::fs::write(&file, format!("{seed}\n")).unwrap();
        format!(
            "url = \"{}\"\n[transports.main.nats]\nnkey_file = {file:?}",
            server.url()
        )
    };
    is_let_in(&with("known", known.seed().unwrap())).await;
    is_refused(
        &with("stranger", stranger.seed().unwrap()),
        ErrorKind::Denied,
    )
    .await;
    is_refused(&with("broken", "CANARY".to_owned()), ErrorKind::Denied).await;
}

async fn the_first_server_may_be_absent_where_there_is_another() {
    let gone = Server::start("").unwrap();
    let absent = gone.address();
    drop(gone);
    let server = Server::start("").unwrap();
    is_let_in(&format!("url = \"nats://{absent},{}\"", server.address())).await;
    is_refused(
        &format!("url = \"nats://{absent}\""),
        ErrorKind::Unavailable,
    )
    .await;
}
