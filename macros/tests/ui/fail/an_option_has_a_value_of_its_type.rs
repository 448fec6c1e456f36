#![allow(unused_variables)]

use anywire::{Ignore, Result, controller};

struct Shop;

#[controller]
impl Shop {
    #[event_pattern("a", concurrency = "x")]
    async fn a(&self, _: Ignore) {}

    #[event_pattern("b", concurrency = 0)]
    async fn b(&self, _: Ignore) {}

    #[event_pattern("c", concurrency = -1)]
    async fn c(&self, _: Ignore) {}

    #[event_pattern("d", concurrency)]
    async fn d(&self, _: Ignore) {}

    #[event_pattern("e", timeout = 2)]
    async fn e(&self, _: Ignore) {}

    #[event_pattern("f", timeout = "2 parsecs")]
    async fn f(&self, _: Ignore) {}

    #[event_pattern("g", timeout = "0s")]
    async fn g(&self, _: Ignore) {}

    #[event_pattern("h", retry = "1s")]
    async fn h(&self, _: Ignore) {}

    #[event_pattern("i", retry = ["1s", "soon"])]
    async fn i(&self, _: Ignore) {}

    #[event_pattern("j", order = "keys")]
    async fn j(&self, _: Ignore) {}

    #[event_pattern("k", order = key)]
    async fn k(&self, _: Ignore) {}

    #[event_pattern("l", delivery = "exactly_once")]
    async fn l(&self, _: Ignore) {}

    #[event_pattern("m", group = 7)]
    async fn m(&self, _: Ignore) {}

    #[event_pattern("n", group = "")]
    async fn n(&self, _: Ignore) {}

    #[event_pattern("o", broadcast = "yes")]
    async fn o(&self, _: Ignore) {}
}

fn main() {
    let _ = anywire::Router::new().controller(Shop);
}
