//! Signs of life for deliveries that take long: buffered ones, and those whose handlers run.

use std::sync::Arc;

use anywire::transport::Status;

use crate::transport::Connection;

/// Renews what a client holds, three times within the time that the server allows, until the client is gone.
pub(crate) fn keep(connection: &Arc<Connection>) {
    let every = connection.config.ack_wait / 3;
    let clock = Arc::clone(&connection.clock);
    let mut status = connection.health.status.subscribe();
    let connection = Arc::downgrade(connection);
    tokio::spawn(async move {
        loop {
            let next = clock.now() + every;
            tokio::select! {
                () = clock.sleep_until(next) => {}
                // Ends with the close, and with the last who could tell.
                _ = status.wait_for(|status| *status == Status::Closed) => return,
            }
            let Some(connection) = connection.upgrade() else {
                return;
            };
            let since = next - every;
            for end in connection.ends() {
                end.renew(since);
            }
        }
    });
}
