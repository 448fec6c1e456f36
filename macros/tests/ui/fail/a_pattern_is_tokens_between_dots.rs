#![allow(unused_variables)]

use anywire::{Ignore, controller};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("")]
    async fn a(&self, _: Ignore) {}

    #[event_pattern("shop..placed")]
    async fn b(&self, _: Ignore) {}

    #[event_pattern("shop.>.placed")]
    async fn c(&self, _: Ignore) {}

    #[event_pattern("shop placed")]
    async fn d(&self, _: Ignore) {}

    #[event_pattern("shop.{region")]
    async fn e(&self, _: Ignore) {}

    #[event_pattern("shop.{}")]
    async fn f(&self, _: Ignore) {}

    #[event_pattern("shop.{id}.{id}")]
    async fn g(&self, _: Ignore) {}

    #[event_pattern("shop.eu*")]
    async fn h(&self, _: Ignore) {}

    #[event_pattern("anywire.retry.shop")]
    async fn i(&self, _: Ignore) {}
}

fn main() {}
