use anywire::{App, Context, Inbound, Param, Result, Streaming, controller, handlers, stream_pattern};
use futures::{Stream, StreamExt, stream};

const FOLLOW: Streaming<u32, String> = Streaming::new("shop.{region}.follow");

struct Shop {
    steps: Vec<String>,
}

#[controller]
impl Shop {
    #[stream_pattern(FOLLOW, concurrency = 8, timeout = "1h", name = "following")]
    fn follow(&self, order: u32, Param(region): Param<String>) -> impl Stream<Item = Result<String>> {
        let steps = self.steps.iter();
        stream::iter(steps.map(move |step| Ok(format!("{order} {region} {step}"))))
    }

    #[stream_pattern("shop.refuse")]
    async fn refuse(&self, _: u32) -> Result<impl Stream<Item = Result<String>>> {
        Ok(stream::iter(self.steps.iter().map(|step| Ok(step.clone()))))
    }

    #[stream_pattern("shop.import")]
    async fn import(&self, orders: Inbound<u32>, _: Context) -> Result<usize> {
        Ok(orders.count().await)
    }

    #[stream_pattern("shop.negotiate")]
    fn negotiate(offers: Inbound<u32>) -> impl Stream<Item = Result<u32>> {
        offers.map(|offer| Ok(offer? + 1))
    }
}

#[stream_pattern("free.count")]
fn count(to: u32) -> impl Stream<Item = Result<u32>> {
    stream::iter((1..=to).map(Ok))
}

fn main() {
    let shop = Shop { steps: Vec::new() };
    let app = App::new("shop").url("memory://").controller(shop);
    app.handlers(handlers![count]).check().unwrap();
}
