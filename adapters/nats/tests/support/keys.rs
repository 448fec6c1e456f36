//! Signed credentials, made for one test.

#![allow(dead_code, reason = "each test program uses its part")]

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator with a system account and one account for an app, as a server's configuration knows them.
pub(crate) struct Operator {
    account: KeyPair,
    /// The server's configuration.
    pub(crate) config: String,
}

impl Operator {
    pub(crate) fn new() -> Self {
        let (operator, system, account) = (
            KeyPair::new_operator(),
            KeyPair::new_account(),
            KeyPair::new_account(),
        );
        let no_limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        let system_limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        });
        let account_of = |key: &KeyPair, limits: &Value| {
            let claims = json!({ "type": "account", "version": 2, "limits": limits });
            token(&operator, key, &claims, None)
        };
        let own =
            json!({ "type": "operator", "version": 2, "system_account": system.public_key() });
        let config = format!(
            "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}\n",
            token(&operator, &operator, &own, None),
            system.public_key(),
            account_of(&system, &system_limits),
            account.public_key(),
            account_of(&account, &no_limits),
        );
        Self { account, config }
    }

    /// Writes a credentials file for a user of the account, and gives what must stay secret of it.
    pub(crate) fn credentials(&self, file: &Path, expires: SystemTime) -> String {
        let user = KeyPair::new_user();
        let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        let token = token(&self.account, &user, &claims, Some(expires));
        let seed = user.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(file, text).unwrap();
        seed
    }
}

fn token(issuer: &KeyPair, subject: &KeyPair, nats: &Value, expires: Option<SystemTime>) -> String {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let mut claims = json!({
        "jti": "test", "name": "test", "iat": seconds(long_ago),
        "iss": issuer.public_key(), "sub": subject.public_key(), "nats": nats,
    });
    if let Some(expires) = expires {
        claims["exp"] = json!(seconds(expires));
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
