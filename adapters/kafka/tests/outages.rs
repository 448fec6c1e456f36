//! A broker that is absent, killed, frozen or cut off: what was accepted is handled, everything ends by its deadline, and
//! nothing stays behind.
#![allow(clippy::unwrap_used)]

mod support;

use anywire_conformance::rig::Outage;
use support::{Server, configured};
use tokio::sync::Mutex;

anywire_conformance::outages![[support::SERVER] => outage, outage];

/// One broker at a time: each is a Java machine of its own, and a few would hardly answer.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn outage() -> Outage {
    let alone = ALONE.lock().await;
    let server = Server::start("").await.unwrap();
    let url = server.url();
    Outage::new(server.broker, move |name, config| {
        // The next one begins when this one is over.
        let _held = &alone;
        configured(name, &format!("url = {url:?}\n{config}"))
    })
}
