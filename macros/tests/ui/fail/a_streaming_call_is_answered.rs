use anywire::{Ignore, Inbound, Result, controller, stream_pattern};
use futures::{Stream, stream};

struct Shop;

#[controller]
impl Shop {
    #[stream_pattern("shop.follow")]
    fn follow(&self, _: Ignore) {}

    #[stream_pattern("shop.count")]
    async fn count(&self, _: Inbound<u32>) {}
}

#[stream_pattern("shop.retry", retry = ["1s"])]
fn retried(_: Ignore) -> impl Stream<Item = Result<u32>> {
    stream::iter([Ok(1)])
}

#[stream_pattern("shop.borrowed")]
fn borrowed(name: &str) -> impl Stream<Item = Result<u32>> {
    let _ = name;
    stream::iter([Ok(1)])
}

fn main() {}
