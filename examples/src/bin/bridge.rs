//! Moves `shop.>` from one wire to another, as it is: id, key, headers, content type and payload.
//!
//! Both wires are named in `anywire.toml`, or in the file that `ANYWIRE_CONFIG` names:
//!
//! ```toml
//! events = "far"
//! calls = "near"
//!
//! [transports.near]
//! url = "nats://127.0.0.1:14222"
//!
//! [transports.far]
//! url = "kafka://127.0.0.1:14092"
//! ```
//!
//! Run it with `cargo run -p anywire-examples --features nats,kafka --bin bridge`.

use anywire::Result;

#[tokio::main]
async fn main() -> Result<()> {
    anywire_examples::bridge::app().run().await?;
    Ok(())
}
