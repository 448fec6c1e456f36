//! What a broker refuses, by the library's own stand-in for one.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use anywire::{Client, ErrorKind, Router};
use anywire_conformance::rig::{Seen, until};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Answer};
use support::app;

type Mock = MockCluster<'static, DefaultProducerContext>;

/// A stand-in with the topics of an app, which it would not create, and its address.
fn mock() -> (Mock, String) {
    let mock = MockCluster::new(1).unwrap();
    for topic in ["shop.placed", "anywire.dead.shop"] {
        mock.create_topic(topic, 2, 1).unwrap();
    }
    let url = format!("kafka://{}", mock.bootstrap_servers());
    (mock, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_not_ours_to_join_stops_the_start() {
    let (mock, url) = mock();
    mock.request_errors(
        Api::JoinGroup,
        &[Answer::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 1000],
    );
    let router = Router::new().on_event("shop.placed", Seen::default().handler());
    let started = app("shop", &url).router(router).start().await;
    let error = started.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("shop.placed"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_refuses_for_a_moment_is_stored_in_the_end() {
    let (mock, url) = mock();
    let seen = Seen::default();
    let router = Router::new().on_event("shop.placed", seen.handler());
    let app = app("shop", &url).router(router).start().await.unwrap();
    mock.request_errors(
        Api::Produce,
        &[
            Answer::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            Answer::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        ],
    );
    app.client().emit("shop.placed", &1).await.unwrap();
    until("the event", || seen.has_all([1])).await;
    app.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emit_without_permission_is_denied() {
    let (mock, url) = mock();
    let client = Client::connect(app("shop", &url)).await.unwrap();
    mock.request_errors(
        Api::Produce,
        &[Answer::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 100],
    );
    let emit = client.emit("shop.placed", &1);
    let error = emit.timeout(Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    client.close().await.unwrap();
}
