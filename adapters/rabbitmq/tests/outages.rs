//! A server that is absent, killed, frozen or cut off: what was accepted is handled, everything ends by its deadline, and
//! nothing stays behind.
#![allow(clippy::unwrap_used)]

mod support;

use anywire::{Ignore, Result, Router};
use anywire_conformance::rig::Outage;
use anywire_conformance::trials;
use support::{Server, Tool, configured};

trials![
    [support::SERVER, support::CTL] =>
    a_killed_server_that_comes_back_has_lost_nothing,
    a_frozen_server_holds_nobody_beyond_his_deadline,
    a_silent_network_holds_nobody_beyond_his_deadline,
    connections_that_break_in_the_middle_of_frames_lose_nothing,
    an_emit_without_a_server_says_so_at_its_deadline,
    an_app_that_is_there_first_comes_up_with_its_server,
    an_app_shuts_down_within_its_grace_while_the_server_does_not_answer,
];

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

async fn a_killed_server_that_comes_back_has_lost_nothing() {
    at_rest().await.killed().await;
}

async fn a_frozen_server_holds_nobody_beyond_his_deadline() {
    outage().await.frozen().await;
}

async fn a_silent_network_holds_nobody_beyond_his_deadline() {
    outage().await.cut().await;
}

async fn connections_that_break_in_the_middle_of_frames_lose_nothing() {
    outage().await.broken_frames(40).await;
}

async fn an_emit_without_a_server_says_so_at_its_deadline() {
    at_rest().await.emit_without_broker().await;
}

async fn an_app_that_is_there_first_comes_up_with_its_server() {
    outage().await.absent_at_start().await;
}

async fn an_app_shuts_down_within_its_grace_while_the_server_does_not_answer() {
    at_rest().await.shutdown_without_broker().await;
}
