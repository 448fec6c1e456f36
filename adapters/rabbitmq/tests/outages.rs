//! A server that is absent, killed, frozen or cut off: what was accepted is handled, everything ends by its deadline, and
//! nothing stays behind.
#![allow(clippy::unwrap_used)]

mod support;

use anywire::{Ignore, Result, Router};
use anywire_conformance::rig::Outage;
use support::{Server, Tool, configured};

anywire_conformance::outages![[support::SERVER, support::CTL] => outage, at_rest];

async fn outage() -> Outage {
    start().await.0
}

async fn start() -> (Outage, Tool) {
    let server = Server::start("").unwrap();
    let tool = server.tool();
    let broker = server.behind_a_proxy().await;
    let url = format!("amqp://{}", broker.proxy.address());
    let outage = Outage::new(broker, move |name, config| {
        configured(name, &format!("url = {url:?}\n{config}"))
    });
    (outage, tool)
}

/// A broker that knows the queue of the tests and has written it down.
async fn at_rest() -> Outage {
    let (outage, tool) = start().await;
    let router = Router::new().on_event("shop.placed", async |_: Ignore| -> Result<()> { Ok(()) });
    let service = outage.app("shop").router(router);
    service.start().await.unwrap().shutdown().await.unwrap();
    tool.write_down_queues();
    outage
}
