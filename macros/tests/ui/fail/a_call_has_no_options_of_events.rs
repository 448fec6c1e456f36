#![allow(unused_variables)]

use anywire::{Ignore, Result, controller};

struct Shop;

#[controller]
impl Shop {
    #[message_pattern("a", retry = ["1s"])]
    async fn a(&self, _: Ignore) -> Result<u32> {
        Ok(1)
    }

    #[message_pattern("b", group = "billing")]
    async fn b(&self, _: Ignore) -> Result<u32> {
        Ok(1)
    }

    #[message_pattern("c", broadcast)]
    async fn c(&self, _: Ignore) -> Result<u32> {
        Ok(1)
    }

    #[message_pattern("d", delivery = "at_least_once")]
    async fn d(&self, _: Ignore) -> Result<u32> {
        Ok(1)
    }

    #[message_pattern("e", order = "key")]
    async fn e(&self, _: Ignore) -> Result<u32> {
        Ok(1)
    }

    #[message_pattern("f", start = "latest")]
    async fn f(&self, _: Ignore) -> Result<u32> {
        Ok(1)
    }

    #[message_pattern("g", after_failure = "hold")]
    async fn g(&self, _: Ignore) -> Result<u32> {
        Ok(1)
    }
}

fn main() {}
