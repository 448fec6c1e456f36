//! The shop's handlers, on the testing kit: the app is the one that the program runs.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashSet;
use std::io::Cursor;

use anywire::memory::{self, MemoryBroker};
use anywire::testing::TestApp;
use anywire::{App, Bytes, Client, ContentType, Failure, Ignore, Message, Raw, Result, Router};
use anywire_examples::shop::orders::{
    Answer, CHARGE, CHARGED, Charge, FOLLOW, IMPORT, Item, NEGOTIATE, Offer, Order, PLACED, QUOTE,
    Quote, RESERVE, RESERVED, Reserve, Reserved, ShopError, Step,
};
use anywire_examples::shop::summary::Summary;
use anywire_examples::shop::{app, customer, lines};
use futures::TryStreamExt;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

async fn shop() -> TestApp {
    TestApp::start(app().unwrap()).await.unwrap()
}

fn order(id: &str, quantity: i64) -> Order {
    Order {
        id: id.into(),
        customer: "c-1".into(),
        region: "eu.north".into(),
        item: "mug".into(),
        quantity,
    }
}

fn charge(order: &str) -> Charge {
    Charge {
        order: order.into(),
        customer: "c-1".into(),
        cents: 890,
    }
}

#[tokio::test]
async fn a_quote_is_a_price_or_a_typed_error() {
    let test = shop().await;
    let ask = async |item: &str, quantity| {
        let item = Item {
            item: item.into(),
            quantity,
        };
        test.client().request(QUOTE, &item).await
    };
    assert_eq!(ask("mug", 3).await.unwrap(), Quote { cents: 2_670 });
    let error = ask("unicorn", 1).await.unwrap_err();
    let unknown = ShopError::UnknownItem {
        item: "unicorn".into(),
    };
    assert_eq!(error.remote_as(), Some(unknown));
    for quantity in [0, -1, i64::MAX, i64::MIN] {
        let error = ask("mug", quantity).await.unwrap_err();
        assert_eq!(error.as_remote().unwrap().code(), "bad_quantity");
    }
}

#[tokio::test]
async fn an_order_goes_to_billing_and_to_the_warehouse_of_its_region() {
    let test = shop().await;
    let placed = order("o-1", 2);
    test.emit_with(|client| {
        client
            .emit(PLACED.with("region", &placed.region), &placed)
            .key("c-1")
    })
    .await
    .unwrap();
    assert_eq!(test.emitted(CHARGE)[0].cents, 1_780);
    let reserve = Reserve {
        order: "o-1".into(),
        region: "eu.north".into(),
        item: "mug".into(),
        quantity: 2,
    };
    assert_eq!(test.emitted(RESERVE), [reserve]);
    let reserved = Reserved {
        order: "o-1".into(),
    };
    assert_eq!(test.emitted(RESERVED), [reserved]);
    let mut keys = test.outcomes();
    keys.retain(|it| ["placed", "charge", "reserve"].contains(&it.handler.as_str()));
    assert!(
        keys.iter()
            .all(|it| it.message.key().unwrap().as_bytes() == b"c-1"),
        "{keys:?}"
    );
}

#[tokio::test]
async fn a_declined_card_is_tried_three_times() {
    let test = shop().await;
    for number in 0..500 {
        test.emit(CHARGE, &charge(&format!("o-{number}")))
            .await
            .unwrap();
    }
    let (charged, dead) = (test.handled("charge"), test.dead_letters("shop"));
    assert_eq!(charged + dead.len(), 500);
    assert!(!dead.is_empty(), "the card network is too good");
    for letter in dead {
        let trail = letter.trail().unwrap();
        assert_eq!(trail.attempt, 3);
        assert_eq!(trail.error.as_deref(), Some("the card was declined"));
    }
    let attempts: Vec<u32> = test.emitted(CHARGED).iter().map(|it| it.attempts).collect();
    for tried in 1..=3 {
        assert!(attempts.contains(&tried), "none was charged at {tried}");
    }
}

#[tokio::test]
async fn a_message_that_comes_twice_is_charged_once() {
    let test = shop().await;
    let mut number = 0;
    // One that is declined at first: were it charged again, it would be declined again.
    let order = loop {
        let order = format!("o-{number}");
        test.emit(CHARGE, &charge(&order)).await.unwrap();
        match test.emitted(CHARGED).last() {
            Some(last) if last.order == order && last.attempts > 1 => break order,
            _ => number += 1,
        }
    };
    test.emit(CHARGE, &charge(&order)).await.unwrap();
    let last = test.emitted(CHARGED).pop().unwrap();
    assert_eq!((last.order, last.attempts), (order, 1));
}

#[tokio::test]
async fn what_no_warehouse_holds_is_not_tried_again() {
    let test = shop().await;
    let placed = order("o-1", 501);
    test.emit(PLACED.with("region", "eu"), &placed)
        .await
        .unwrap();
    assert_eq!(
        (test.retried("reserve"), test.dead_lettered("reserve")),
        (0, 1)
    );
    assert_eq!(test.handled("charge"), 1);
}

#[tokio::test]
async fn an_undecodable_line_is_a_dead_letter_as_it_came() {
    let test = shop().await;
    let line = Raw(Bytes::from_static(b"{\"id\": \"o-1\xff"));
    test.emit_with(|client| {
        client
            .emit("shop.eu.placed", &line)
            .content_type(ContentType::JSON)
    })
    .await
    .unwrap();
    assert_eq!(test.handled("placed"), 0);
    let dead = test.dead_letters("shop");
    assert_eq!((dead.len(), dead[0].payload()), (1, &line.0));
}

async fn steps_of(test: &TestApp, order: &str) -> Result<Vec<Step>, anywire::Error> {
    let steps = test.client().stream(FOLLOW, &order.to_owned()).await?;
    steps.try_collect().await
}

#[tokio::test]
async fn an_order_is_followed_to_its_end() {
    let test = shop().await;
    for (id, quantity) in [("o-1", 2), ("o-2", 501)] {
        let placed = order(id, quantity);
        let emit = test.emit(PLACED.with("region", "eu"), &placed);
        emit.await.unwrap();
    }
    let steps = steps_of(&test, "o-1").await.unwrap();
    assert_eq!(steps[0], Step::Taken);
    assert!(steps.contains(&Step::Charged { attempts: 1 }), "{steps:?}");
    assert!(steps.contains(&Step::Reserved), "{steps:?}");
    let steps = steps_of(&test, "o-2").await.unwrap();
    let reason = "more than the warehouse holds".to_owned();
    assert!(steps.contains(&Step::Failed { reason }), "{steps:?}");
}

#[tokio::test]
async fn steps_are_told_as_they_are_taken() {
    let test = shop().await;
    test.emit(CHARGE, &charge("o-1")).await.unwrap();
    let order = "o-1".to_owned();
    let mut steps = test.client().stream(FOLLOW, &order).await.unwrap();
    assert_eq!(steps.next().await.unwrap().unwrap(), Step::Taken);
    let charged = steps.next().await.unwrap().unwrap();
    assert!(matches!(charged, Step::Charged { .. }), "{charged:?}");
    // What comes twice is told once.
    for _ in 0..2 {
        test.emit(
            RESERVED,
            &Reserved {
                order: order.clone(),
            },
        )
        .await
        .unwrap();
    }
    assert_eq!(steps.next().await.unwrap().unwrap(), Step::Reserved);
    assert!(steps.next().await.is_none());
}

#[tokio::test]
async fn an_order_that_nobody_placed_is_refused_and_may_be_asked_for_again() {
    let test = shop().await;
    let error = steps_of(&test, "o-9").await.unwrap_err();
    let order = "o-9".to_owned();
    assert_eq!(error.remote_as(), Some(ShopError::UnknownOrder { order }));
    assert!(error.is_retryable());
}

#[tokio::test]
async fn what_is_imported_is_placed_or_refused() {
    let test = shop().await;
    let mut import = test.client().upload(IMPORT).await.unwrap();
    for number in 0..100 {
        let quantity = i64::from(number % 10 != 0);
        import
            .send(&order(&format!("o-{number}"), quantity))
            .await
            .unwrap();
    }
    let imported = import.finish().await.unwrap();
    assert_eq!(imported.placed, 90);
    assert_eq!(imported.refused["bad_quantity"], 10);
    assert_eq!(test.emitted(PLACED).len(), 90);
}

#[tokio::test]
async fn offers_are_answered_until_there_is_a_deal() {
    let test = shop().await;
    let (mut offers, mut answers) = test.client().duplex(NEGOTIATE).await.unwrap();
    let offer = |cents| Offer {
        item: order("o-1", 10).item(),
        cents,
    };
    for (cents, answer) in [
        (5_000, Answer::Asking { cents: 8_900 }),
        (8_500, Answer::Asking { cents: 8_722 }),
        (8_550, Answer::Deal { cents: 8_550 }),
    ] {
        offers.send(&offer(cents)).await.unwrap();
        assert_eq!(answers.next().await.unwrap().unwrap(), answer);
    }
    assert!(
        answers.next().await.is_none(),
        "after a deal there is nothing"
    );

    let (mut offers, mut answers) = test.client().duplex(NEGOTIATE).await.unwrap();
    let mut unknown = offer(1);
    unknown.item.item = "unicorn".into();
    offers.send(&unknown).await.unwrap();
    let error = answers.next().await.unwrap().unwrap_err();
    assert_eq!(error.as_remote().unwrap().code(), "unknown_item");
}

/// As `shop serve` and `shop order`, which have a broker in common and nothing else.
#[tokio::test]
async fn a_customer_with_a_client_of_its_own_keeps_the_same_books() {
    let broker = MemoryBroker::new();
    let on_broker = |app: App| app.adapter(memory::adapter_on(&broker)).url("memory://");
    let shop = on_broker(app().unwrap()).start().await.unwrap();
    let client = Client::connect(on_broker(App::new("customer"))).await;
    let client = client.unwrap();
    let mut input = String::from("no order\n");
    for number in 0..300 {
        let mut order = order(&format!("o-{number}"), 1 + number * 2);
        order.customer = format!("c-{number}");
        input.push_str(&serde_json::to_string(&order).unwrap());
        input.push('\n');
    }
    let lines = lines::read(Cursor::new(input));
    let stop = CancellationToken::new();
    let summary = customer::run(&client, lines, &stop, |_| {}).await.unwrap();
    client.close().await.unwrap();
    shop.shutdown().await.unwrap();
    assert_eq!(summary.problems(), [""; 0]);
    assert_eq!((summary.placed, summary.undecodable), (300, 1));
    assert!(summary.retried > 0 && !summary.dead.is_empty());
    // An order may leave two dead letters: it is neither charged nor reserved.
    let letters = broker.dead_letters("shop");
    let about = |letter: &Message| serde_json::from_slice::<Value>(letter.payload()).ok();
    let orders: HashSet<_> = letters
        .iter()
        .filter_map(|letter| Some(about(letter)?["order"].to_string()))
        .collect();
    assert_eq!(orders.len() as u64, summary.dead.values().sum::<u64>());
}

/// What a customer makes of a service that is not the shop.
async fn customer_of(service: Router) -> Result<Summary> {
    let app = App::new("shop").router(service).url("memory://");
    let app = app.start().await?;
    let mut input = serde_json::to_string(&order("o-1", 1)).unwrap();
    input.push_str("\nno order\n");
    let lines = lines::read(Cursor::new(input));
    let stop = CancellationToken::new();
    let summary = customer::run(&app.client(), lines, &stop, |_| {}).await;
    app.shutdown().await?;
    summary
}

async fn quote(_: Item) -> Result<Quote, ShopError> {
    Ok(Quote { cents: 1 })
}

#[tokio::test(start_paused = true)]
async fn a_customer_misses_what_the_service_loses() {
    let loses = |_: Ignore| async { Err::<(), _>(Failure::discard("oops")) };
    let service = Router::new().on_call(QUOTE, quote);
    let summary = customer_of(service.on_event("shop.*.placed", loses)).await;
    let summary = summary.unwrap();
    assert_eq!(summary.placed, 1);
    let problems = summary.problems().join("; ");
    assert!(problems.contains("o-1"), "{problems}");
    assert!(
        problems.contains("1 undecodable lines sent, but 0"),
        "{problems}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_customer_says_which_lines_could_not_be_sent() {
    let summary = customer_of(Router::new().on_call(QUOTE, quote)).await;
    let summary = summary.unwrap();
    assert_eq!(summary.unsent["NoRoute"], 2);
    assert!(!summary.problems().is_empty());
}

#[tokio::test]
async fn a_customer_without_a_shop_says_so() {
    let error = customer_of(Router::new()).await.unwrap_err();
    assert!(error.message().contains("shop serve"), "{error}");
}
