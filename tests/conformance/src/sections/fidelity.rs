//! B: payloads and headers arrive as they were sent.

use anywire::pattern::publish_subscribe::{Entry, Published};
use anywire::{ContentType, ErrorKind, Headers, Message};
use bytes::Bytes;
use rand::Rng;

use crate::behaviour::behaviours;
use crate::{Foreign, PUBLISH_TIMEOUT, Test, assert_intact};

behaviours! {
    b01_an_empty_payload_arrives_empty: [],
    b02_any_bytes_survive: [],
    b03_json_text_is_not_touched: [],
    b04_large_payloads_survive: [],
    b05_a_payload_above_the_limit_is_a_typed_error: [],
    b06_headers_survive: [],
    b07_an_illegal_header_is_refused_before_it_is_sent: [],
    b08_header_values_of_any_bytes_survive: [],
    b09_repeated_headers_keep_their_values_in_order: [],
    b10_foreign_headers_do_not_break_consumption: [Raw],
    b11_a_foreign_message_is_delivered: [Raw],
    b12_the_fields_of_a_message_survive: [],
    b13_the_frameworks_headers_stay_out_of_sight: [],
    b14_the_native_message_is_reached_by_its_type_alone: [],
}

/// Zero bytes are zero bytes, not an absence.
pub async fn b01_an_empty_payload_arrives_empty(test: &Test) {
    round_trip(test, [test.message("events", "")]).await;
}

/// Every byte value, text that is not UTF-8, zeros, and noise.
pub async fn b02_any_bytes_survive(test: &Test) {
    let mut noise = vec![0; 1000];
    test.rng().fill_bytes(&mut noise);
    let payloads = [
        (0..=255).collect(),
        vec![0],
        vec![0xC3, 0x28],
        b"a\0b\r\n".to_vec(),
        noise,
    ];
    round_trip(
        test,
        payloads.map(|payload| test.message("events", payload)),
    )
    .await;
}

/// JSON is bytes to a transport: spaces, order and numbers stay.
pub async fn b03_json_text_is_not_touched(test: &Test) {
    let text = "{ \"b\" : 1.50,\n\t\"a\": \"\\u00e9\" }\n";
    let message = test
        .message("events", text)
        .with_content_type(ContentType::JSON);
    round_trip(test, [message]).await;
}

/// 64 KiB, and the largest that is declared.
pub async fn b04_large_payloads_survive(test: &Test) {
    let declared = test.capabilities().limits.max_payload;
    // Beyond this it is memory that is tested, not the wire.
    let largest = declared.min(8 * 1024 * 1024);
    let mut rng = test.rng();
    let payloads = [64 * 1024, largest].map(|size| {
        let mut payload = vec![0; size];
        rng.fill_bytes(&mut payload);
        test.message("events", payload)
    });
    round_trip(test, payloads).await;
}

/// One byte more than is declared is refused for good, and the client goes on working.
pub async fn b05_a_payload_above_the_limit_is_a_typed_error(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let oversized = vec![0; test.capabilities().limits.max_payload + 1];
    let entry = Entry::new(test.message("events", oversized));
    let mut outcomes = client.try_publish([entry], PUBLISH_TIMEOUT).await;
    let Some(Published::Rejected(error)) = outcomes.pop() else {
        panic!("rejected, not {outcomes:?}");
    };
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(!error.is_retryable());
    client.send(test.message("events", "small")).await;
    let delivery = subscription.next().await;
    assert_eq!(delivery.message.payload(), "small");
    delivery.ack().await;
}

/// Ten headers with values that wires like to mangle, and every printable character.
pub async fn b06_headers_survive(test: &Test) {
    let printable: String = (' '..='~').collect();
    let headers = test.headers(&[
        ("slashes", "a/b\\c//"),
        ("dots.in-name_too", "..a."),
        ("quotes", "\"'`"),
        ("spaces", " leading, and trailing "),
        ("emoji", "\u{1F980} \u{e9}"),
        ("empty", ""),
        ("colon", "a: b"),
        ("percent", "%20 =41 =2E"),
        ("MixedCase", "kept"),
        ("printable", &printable),
    ]);
    let longest = "n".repeat(anywire::MAX_HEADER_NAME);
    let named = test.headers(&[(&longest, "long name")]);
    let message = || test.message("events", "body");
    round_trip(
        test,
        [
            message().with_headers(headers),
            message().with_headers(named),
        ],
    )
    .await;
}

/// A name that a wire could not carry never leaves the program.
pub async fn b07_an_illegal_header_is_refused_before_it_is_sent(test: &Test) {
    let mut headers = Headers::new();
    let too_long = "n".repeat(anywire::MAX_HEADER_NAME + 1);
    for name in [
        "",
        "a b",
        "a\r\nb",
        "a:b",
        "\u{e9}",
        "anywire-id",
        too_long.as_str(),
    ] {
        let refused = headers.append(name, "value");
        assert!(refused.is_err(), "the header name {name:?} was taken");
    }
    assert!(headers.is_empty());
    // Values are bytes; what a text wire cannot carry is escaped, so that no value ends a header early.
    for value in ["a\r\nInjected: yes", "nul\0", "\n"] {
        headers.append("value", value).expect("any value is legal");
    }
    round_trip(test, [test.message("events", "body").with_headers(headers)]).await;
}

/// Bytes that are not text survive in a header, natively or escaped.
pub async fn b08_header_values_of_any_bytes_survive(test: &Test) {
    let mut headers = Headers::new();
    let all: Vec<u8> = (0..=255).collect();
    headers
        .append("all", all.as_slice())
        .expect("any value is legal");
    headers
        .append("broken", &[0xC3, 0x28, 0xFF][..])
        .expect("any value is legal");
    round_trip(test, [test.message("events", "body").with_headers(headers)]).await;
}

/// A name may come several times; its values keep their order.
pub async fn b09_repeated_headers_keep_their_values_in_order(test: &Test) {
    let headers = test.headers(&[("tag", "b"), ("other", "x"), ("tag", "a"), ("tag", "b")]);
    round_trip(test, [test.message("events", "body").with_headers(headers)]).await;
}

/// Headers that only a foreign program would write: the message is delivered, and they are there.
pub async fn b10_foreign_headers_do_not_break_consumption(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let foreign = Foreign::new("foreign")
        .with_header("x-death", "reason=expired")
        .with_header("Nested-Thing", "{\"a\":[1,2]}")
        .with_header("anywire-attempt", "4000000000")
        .with_header("anywire-due", "not a time");
    let published = test.raw().publish(&test.subject("events"), foreign).await;
    published.expect("the native client publishes");
    let delivery = subscription.next().await;
    let headers = delivery.message.headers();
    assert_eq!(headers.get_str("x-death"), Some("reason=expired"));
    assert_eq!(headers.get_str("nested-thing"), Some("{\"a\":[1,2]}"));
    let attempts = delivery.message.trail().map_or(0, |trail| trail.attempt);
    assert!(
        attempts <= 1_000,
        "a forged count of {attempts} attempts is believed"
    );
    delivery.ack().await;
    subscription.stays_quiet().await;
}

/// A message from a program that knows nothing of us is a message.
pub async fn b11_a_foreign_message_is_delivered(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let published = test
        .raw()
        .publish(&test.subject("events"), Foreign::new("{\"n\":1}"))
        .await;
    published.expect("the native client publishes");
    let delivery = subscription.next().await;
    assert_eq!(delivery.message.payload(), "{\"n\":1}");
    assert_eq!(delivery.message.subject(), &test.subject("events"));
    assert!(delivery.message.trail().is_none());
    delivery.ack().await;
    subscription.stays_quiet().await;
}

/// Id, key, content type, correlation id and time are fields on every wire.
pub async fn b12_the_fields_of_a_message_survive(test: &Test) {
    let time = std::time::SystemTime::now();
    let message = test
        .message("events", "body")
        .with_id("an id of the user's own")
        .with_key("customer \u{e9} 17")
        .with_content_type(ContentType::MSGPACK)
        .with_correlation_id("conversation 4")
        .with_timestamp(time);
    let bytes_as_key = test
        .message("events", "body")
        .with_key(Bytes::from_static(&[0, 255, 10]));
    let arrived = round_trip(test, [message, bytes_as_key]).await;
    let stamp = arrived[0].timestamp().expect("the time survives");
    let apart = stamp
        .duration_since(time)
        .unwrap_or_else(|early| early.duration());
    assert!(apart.as_secs() < 60, "the time is {apart:?} off");
}

/// What the framework adds is not among the user's headers, and what only a failed message has is not there.
pub async fn b13_the_frameworks_headers_stay_out_of_sight(test: &Test) {
    let message = test
        .message("events", "body")
        .with_key("key")
        .with_headers(Headers::new());
    let arrived = round_trip(test, [message]).await;
    assert!(
        arrived[0].headers().is_empty(),
        "{:?}",
        arrived[0].headers()
    );
    assert!(arrived[0].trail().is_none());
    assert_eq!(arrived[0].reply_to(), None);
    assert_eq!(arrived[0].error_code(), None);
}

/// Asking for the vendor's message by a wrong type gives nothing.
pub async fn b14_the_native_message_is_reached_by_its_type_alone(test: &Test) {
    struct Nobodys;
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    client.send(test.message("events", "body")).await;
    let delivery = subscription.next().await;
    let native = delivery.native.as_ref();
    assert!(
        native
            .and_then(|native| native.downcast_ref::<Nobodys>())
            .is_none()
    );
    delivery.ack().await;
}

/// Publishes messages and asserts that they arrive in full, with nothing changed.
async fn round_trip(test: &Test, messages: impl IntoIterator<Item = Message>) -> Vec<Message> {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let mut arrived = Vec::new();
    for sent in messages {
        client.send(sent.clone()).await;
        let delivery = subscription.next().await;
        assert_intact(&sent, &delivery.message);
        delivery.ack().await;
        arrived.push(delivery.message);
    }
    arrived
}
