//! A bridge: what comes on one wire goes on another, with all that it carries.

use anywire::{App, Client, Message, Result, event_pattern, handlers};

use crate::shop::wires::on_all_wires;

/// Listens on `near`; what it emits goes where the configuration has events go.
///
/// What was forwarded and whose acknowledgement was lost is forwarded again, under the same id: whoever handles it on the
/// other side knows it by that, as with any event.
#[event_pattern("shop.>", transport = "near")]
async fn across(message: Message, client: Client) -> Result<()> {
    client.forward(message).await?;
    Ok(())
}

/// The bridge. Its configuration names both wires, and where the subject goes.
pub fn app() -> App {
    on_all_wires(App::new("bridge")).handlers(handlers![across])
}
