#![deny(warnings)]

use std::time::Duration;

use anywire::{Ignore, Result, Router, controller};

const GROUP: &str = "billing";
const WORKERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(3);
const STEPS: [Duration; 2] = [PATIENCE; 2];

struct Shop;

#[controller]
impl Shop {
    #[event_pattern(
        "shop.placed",
        name = "place",
        group = "billing",
        broadcast = false,
        concurrency = 32,
        timeout = "1m 30s",
        retry = ["200ms", "1s", "10us"],
        delivery = "at_least_once",
        order = "key-in-group",
        after_failure = "hold",
        start = "latest",
        transport = "log",
    )]
    async fn placed(&self, _: Ignore) -> Result<()> {
        Ok(())
    }

    #[event_pattern("shop.moved", broadcast, delivery = "at_most_once", order = "none", after_failure = "pass", start = "2026-11-01T00:00:00Z")]
    async fn moved(&self, _: Ignore) -> Result<()> {
        Ok(())
    }

    #[event_pattern("shop.sent", broadcast = true, order = "key", start = "earliest", retry = [])]
    async fn sent(&self, _: Ignore) -> Result<()> {
        Ok(())
    }

    #[event_pattern("shop.paid", group = GROUP, concurrency = WORKERS, timeout = PATIENCE, retry = STEPS)]
    async fn paid(&self, _: Ignore) -> Result<()> {
        Ok(())
    }

    #[message_pattern("shop.quote", name = "price", concurrency = 1, timeout = "2s", transport = "rpc")]
    async fn quote(&self, _: Ignore) -> Result<u32> {
        Ok(1)
    }
}

fn main() {
    let shown = format!("{:?}", Router::new().controller(Shop));
    assert!(shown.contains("\"place\"") && shown.contains("\"price\""), "{shown}");
}
