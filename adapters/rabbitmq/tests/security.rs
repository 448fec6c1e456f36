//! Who is not let in, or does not trust the server, is told within seconds and once; and no secret is in what he is told.
#![allow(clippy::unwrap_used)]

mod support;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anywire::{Error, ErrorKind, Router};
use anywire_conformance::proxy::Proxy;
use anywire_conformance::rig::{Authority, Seen, free_port, refusal, until};
use anywire_conformance::trials;
use support::{Server, configured, shop};
use tempfile::TempDir;

trials![
    [support::SERVER, support::CTL] =>
    a_server_whose_certificate_is_right_is_trusted_and_another_is_told_once,
    a_certificate_that_has_expired_is_told_once,
    a_client_shows_its_certificate_and_may_be_known_by_it_alone,
];

/// Part of every secret of these tests that is not a key.
const SECRET: &str = "canary";

/// A server with TLS, and who certified it.
struct Secured {
    server: Server,
    authority: Authority,
    address: SocketAddr,
}

impl Secured {
    /// `more` is added to the configuration, `plugins` are switched on.
    fn start(is_expired: bool, plugins: &str, more: &str) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut authority = None;
        let server = Server::prepared(|data| {
            let made = Authority::new(data);
            let (certificate, key) = made.certify("127.0.0.1", is_expired);
            std::fs::write(data.join("enabled_plugins"), format!("[{plugins}].\n")).unwrap();
            let config = format!(
                "listeners.ssl.1 = {address}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
                 ssl_options.keyfile = {}\n{more}",
                made.ca().display(),
                certificate.display(),
                key.display(),
            );
            authority = Some(made);
            config
        })?;
        Ok(Self {
            server,
            authority: authority.unwrap(),
            address,
        })
    }

    /// A configuration that trusts it; `tls` is added to its TLS settings.
    fn trusting(&self, url: &str, tls: &str) -> String {
        let ca = self.authority.ca();
        format!("[transports.main]\nurl = '{url}'\ntls = {{ ca = {ca:?}{tls} }}")
    }

    /// A certificate for a client, as TLS settings.
    fn own(&self, name: &str) -> String {
        own(self.authority.certify(name, false))
    }

    async fn serves(&self, config: &str) {
        let config = config.replace("ADDRESS", &self.address.to_string());
        let seen = Seen::default();
        let app = shop(configured("shop", &config), &seen).await;
        app.client().emit("shop.placed", &1).await.unwrap();
        until("an event", || seen.has_all([1])).await;
        app.shutdown().await.unwrap();
    }

    /// Starts an app that must not come up; `config` holds `ADDRESS` for the server's.
    async fn refuses(&self, config: &str) -> Error {
        let proxy = Proxy::start(self.address).await.unwrap();
        let config = config.replace("ADDRESS", &proxy.address().to_string());
        let app = configured("shop", &config)
            .router(Router::new().on_event("shop.placed", Seen::default().handler()));
        let (error, told) = refusal(app, &proxy).await;
        assert_holds_no_secret(&told);
        error
    }
}

fn own((certificate, key): (PathBuf, PathBuf)) -> String {
    format!(", cert = {certificate:?}, key = {key:?}")
}

fn assert_holds_no_secret(told: &str) {
    assert!(!told.contains(SECRET), "a secret is told");
    assert!(!told.contains("PRIVATE KEY"), "a key is told");
}

async fn a_server_whose_certificate_is_right_is_trusted_and_another_is_told_once() {
    let secured = Secured::start(false, "", "").unwrap();
    secured
        .serves(&secured.trusting("amqps://ADDRESS", ""))
        .await;
    let url = "amqps://shop:canary@ADDRESS";
    let elsewhere = TempDir::new().unwrap();
    let other = Authority::new(elsewhere.path());
    for config in [
        // Another's name, another's authority, and nobody's.
        secured.trusting(url, ", server_name = 'other.example'"),
        format!(
            "[transports.main]\nurl = '{url}'\ntls = {{ ca = {:?} }}",
            other.ca()
        ),
        format!("url = '{url}'"),
    ] {
        let error = secured.refuses(&config).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    // It is the server's own address here, which speaks no TLS.
    let plain = secured.trusting(
        &format!("amqp://shop:canary@{}", secured.server.address()),
        "",
    );
    let error = secured.refuses(&plain).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    let error = secured.refuses(&secured.trusting(url, "")).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
}

async fn a_certificate_that_has_expired_is_told_once() {
    let secured = Secured::start(true, "", "").unwrap();
    let config = secured.trusting("amqps://shop:canary@ADDRESS", "");
    let error = secured.refuses(&config).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

async fn a_client_shows_its_certificate_and_may_be_known_by_it_alone() {
    let secured = Secured::start(
        false,
        "rabbitmq_auth_mechanism_ssl",
        "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n\
         auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\n\
         ssl_cert_login_from = common_name",
    )
    .unwrap();
    let tool = secured.server.tool();
    // Whoever comes with this password is not let in.
    tool.run(&["add_user", "shop.example", "canary"]);
    tool.run(&["set_permissions", "shop.example", ".*", ".*", ".*"]);
    let known = secured.own("shop.example");
    secured
        .serves(&secured.trusting("amqps://ADDRESS", &known))
        .await;

    let without = secured.trusting("amqps://shop:canary@ADDRESS", "");
    let error = secured.refuses(&without).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");

    let elsewhere = TempDir::new().unwrap();
    let stranger = own(Authority::new(elsewhere.path()).certify("shop.example", false));
    let stranger = secured.trusting("amqps://shop:canary@ADDRESS", &stranger);
    let error = secured.refuses(&stranger).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");

    tool.run(&["delete_user", "guest"]);
    let external = "\n[transports.main.rabbitmq]\nauth = 'external'";
    let by_certificate = secured.trusting("amqps://ADDRESS", &known) + external;
    secured.serves(&by_certificate).await;
    let unknown = secured.trusting("amqps://ADDRESS", &secured.own("nobody.example")) + external;
    let error = secured.refuses(&unknown).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
}
