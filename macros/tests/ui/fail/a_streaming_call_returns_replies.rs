use anywire::{Ignore, Result, controller, stream_pattern};
use futures::{Stream, stream};

struct Opaque;

struct Shop;

#[controller]
impl Shop {
    #[stream_pattern("shop.numbers")]
    fn numbers(&self, _: Ignore) -> u32 {
        1
    }

    #[stream_pattern("shop.opaque")]
    async fn opaque(&self, _: Ignore) -> Result<Opaque> {
        Ok(Opaque)
    }

    #[stream_pattern("shop.takes")]
    fn takes(&self, _: Opaque) -> impl Stream<Item = Result<u32>> {
        stream::iter([Ok(1)])
    }
}

#[stream_pattern("shop.free")]
fn free(_: Ignore) -> impl Stream<Item = u32> {
    stream::iter([1])
}

fn main() {}
