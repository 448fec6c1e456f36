use anywire::{Duplex, Inbound, Result, Streaming, Upload, controller};
use futures::{Stream, StreamExt, stream};

const FOLLOW: Streaming<u32, String> = Streaming::new("shop.follow");
const IMPORT: Upload<u32, u64> = Upload::new("shop.import");
const TALK: Duplex<u32, u64> = Duplex::new("shop.talk");

struct Shop;

#[controller]
impl Shop {
    #[stream_pattern(FOLLOW)]
    fn follow(&self, _: u32) -> impl Stream<Item = Result<u32>> {
        stream::iter([Ok(1)])
    }

    #[stream_pattern(IMPORT)]
    async fn import(&self, _: Inbound<u32>) -> Result<String> {
        Ok(String::new())
    }

    #[stream_pattern(TALK)]
    fn talk(&self, offers: Inbound<u64>) -> impl Stream<Item = Result<u64>> {
        offers.map(|offer| Ok(offer?))
    }
}

fn main() {}
