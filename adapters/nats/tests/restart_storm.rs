//! An app and its emits through restarts of the server, with books: what was accepted is handled, and what came twice is
//! counted.
#![allow(clippy::unwrap_used)]

mod support;

use anywire_conformance::rig::Storm;
use anywire_conformance::trials;
use support::{Server, app};

trials![
    [support::SERVER] =>
    nothing_accepted_is_lost_through_twenty_restarts,
    no_retry_and_no_dead_letter_is_lost_through_restarts,
];

async fn nothing_accepted_is_lost_through_twenty_restarts() {
    let server = Server::start("").unwrap();
    storm(&server).events(20).await;
}

async fn no_retry_and_no_dead_letter_is_lost_through_restarts() {
    let server = Server::start("").unwrap();
    storm(&server).failures(6).await;
}

fn storm(server: &Server) -> Storm<'_> {
    Storm::new(server, 1_400, |name| app(name, &server.url()))
}
