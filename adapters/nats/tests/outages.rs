//! A server that is absent, killed, frozen or cut off: what was accepted is handled, everything ends by its deadline, and
//! nothing stays behind.
#![allow(clippy::unwrap_used)]

mod support;

use anywire_conformance::rig::Outage;
use support::{Server, configured};

anywire_conformance::outages![[support::SERVER] => outage, outage];

async fn outage() -> Outage {
    let broker = Server::start("").unwrap().behind_a_proxy().await;
    let url = format!("nats://{}", broker.proxy.address());
    Outage::new(broker, move |name, config| {
        configured(name, &format!("url = {url:?}\n{config}"))
    })
}
