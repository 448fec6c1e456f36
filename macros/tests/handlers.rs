//! What the attributes write, running: on the testing kit, as a user's own tests would.

#![allow(clippy::unwrap_used)]

use anywire::testing::TestApp;
use anywire::{
    App, Call, Client, Event, HandlerError, Ignore, Param, Params, Result, controller,
    event_pattern, handlers,
};
use serde::{Deserialize, Serialize};

const QUOTE: Call<String, u32, ShopError> = Call::new("shop.quote");
const PLACED: Event<u32> = Event::new("shop.{region}.placed");

#[derive(Debug, PartialEq, Serialize, Deserialize, HandlerError)]
enum ShopError {
    #[handler_error(message = "no item {sku}")]
    UnknownItem { sku: String },
    #[handler_error(transient, code = "busy", message = "try again in {0} s")]
    Overloaded(u32),
}

#[derive(Params)]
struct Place {
    region: String,
    shelf: u32,
}

struct Shop {
    price: u32,
}

#[controller]
impl Shop {
    /// Quotes the price of an item.
    #[message_pattern(QUOTE, timeout = "2s")]
    async fn quote(&self, sku: String) -> Result<u32, ShopError> {
        match sku.as_str() {
            "apple" => Ok(self.price),
            "busy" => Err(ShopError::Overloaded(3)),
            _ => Err(ShopError::UnknownItem { sku }),
        }
    }

    #[event_pattern(PLACED, name = "place", group = "billing")]
    async fn placed(
        &self,
        amount: u32,
        Param(region): Param<String>,
        client: Client,
    ) -> Result<()> {
        let due = amount * self.price;
        client.emit("billing.charge", &(region, due)).await?;
        Ok(())
    }
}

#[event_pattern("stock.{region}.{shelf}.moved")]
async fn moved(_: Ignore, Params(place): Params<Place>, client: Client) -> Result<()> {
    let found = (place.region, place.shelf);
    client.emit("stock.found", &found).await?;
    Ok(())
}

async fn start() -> TestApp {
    let app = App::new("shop")
        .controller(Shop { price: 5 })
        .handlers(handlers![moved]);
    TestApp::start(app).await.unwrap()
}

#[tokio::test]
async fn a_method_answers_calls_with_typed_errors() {
    let test = start().await;
    let client = test.client();
    assert_eq!(client.request(QUOTE, &"apple".to_owned()).await.unwrap(), 5);

    let error = client.request(QUOTE, &"pear".to_owned()).await.unwrap_err();
    let unknown = ShopError::UnknownItem { sku: "pear".into() };
    assert_eq!(error.remote_as::<ShopError>(), Some(unknown));
    assert!(error.to_string().contains("no item pear"), "{error}");
    assert!(!error.is_retryable());

    let error = client.request(QUOTE, &"busy".to_owned()).await.unwrap_err();
    assert_eq!(
        error.remote_as::<ShopError>(),
        Some(ShopError::Overloaded(3))
    );
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_method_handles_events_with_what_it_asks_for() {
    let test = start().await;
    test.emit(PLACED.with("region", "eu.west"), &4)
        .await
        .unwrap();
    assert_eq!(test.handled("place"), 1);
    let charged: Vec<(String, u32)> = test.emitted("billing.charge");
    assert_eq!(charged, [("eu.west".to_owned(), 20)]);
}

#[tokio::test]
async fn a_function_reads_captures_by_name() {
    let test = start().await;
    test.emit("stock.eu.7.moved", "anything").await.unwrap();
    let found: Vec<(String, u32)> = test.emitted("stock.found");
    assert_eq!(found, [("eu".to_owned(), 7)]);

    test.emit("stock.eu.top.moved", "anything").await.unwrap();
    assert_eq!(test.dead_lettered("moved"), 1);
}

#[test]
fn the_description_holds_name_doc_and_options() {
    let app = App::new("shop")
        .controller(Shop { price: 5 })
        .url("memory://");
    let description = app.describe().unwrap();
    let found = |name: &str| {
        description
            .handlers
            .iter()
            .find(|it| it.name == name)
            .unwrap()
    };
    assert_eq!(found("quote").doc, "Quotes the price of an item.");
    assert_eq!(found("place").group.as_deref(), Some("billing"));
    assert!(found("quote").reply_type.ends_with("u32"));
}
