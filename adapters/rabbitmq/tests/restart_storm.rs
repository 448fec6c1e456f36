//! An app and its emits through restarts of the server, with books: what was accepted is handled, and what came twice is
//! counted.
#![allow(clippy::unwrap_used)]

mod support;

use anywire_conformance::rig::Storm;
use anywire_conformance::trials;
use support::{Server, app};

trials![
    [support::SERVER, support::CTL] =>
    nothing_accepted_is_lost_through_six_restarts,
    no_retry_and_no_dead_letter_is_lost_through_restarts,
];

async fn nothing_accepted_is_lost_through_six_restarts() {
    let server = Server::start("").unwrap();
    storm(&server).events(6).await;
}

async fn no_retry_and_no_dead_letter_is_lost_through_restarts() {
    let server = Server::start("").unwrap();
    storm(&server).failures(4).await;
}

/// A queue that appears in the moment of a kill is not the adapter's to save.
fn storm(server: &Server) -> Storm<'_> {
    let storm = Storm::new(server, 800, |name| app(name, &server.url()));
    storm.with_rest(|| server.tool().write_down_queues())
}
