//! O: calls.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anywire::{ErrorKind, Message, RemoteError};
use futures::future::join_all;
use tokio::time::timeout;

use crate::behaviour::behaviours;
use crate::ledger::headers;
use crate::{Calls, Test};

/// How long a call may take where nothing is broken.
const PATIENCE: Duration = Duration::from_secs(5);

behaviours! {
    o01_every_caller_gets_its_own_answer: [Calls],
    o02_replies_find_their_client: [Calls],
    o02_servers_share_the_calls: [Calls],
    o03_calls_and_events_do_not_mix: [Calls],
    o04_a_call_ends_at_its_deadline_and_a_late_reply_is_dropped: [Calls],
    o05_an_error_travels_back_as_an_error: [Calls],
    o06_a_call_that_nobody_answers_fails_at_once: [NoResponder],
    o06_a_server_that_stopped_is_nobody: [NoResponder],
    o07_a_caller_that_gives_up_leaves_nothing_behind: [Calls],
    o08_a_server_that_vanishes_leaves_one_result_by_the_deadline: [Calls],
    o09_a_second_reply_is_an_error_and_reaches_nobody: [Calls],
    o10_a_call_whose_connection_is_lost_ends: [Calls, Broker],
    o11_many_abandoned_calls_leave_a_working_client: [Calls],
    o12_the_server_is_told_how_much_time_is_left: [Calls],
    o13_request_and_reply_survive_as_they_are: [Calls],
}

/// Many calls at once, answered out of order: each gets the answer to its own question.
pub async fn o01_every_caller_gets_its_own_answer(test: &Test) {
    let (server, client) = (test.connect().await, test.connect().await);
    let calls = server.serve("ask").await;
    let serving = tokio::spawn(answer_in_pairs(calls));
    let asked = (0..test.profile().messages().min(1_000)).map(async |number| {
        let question = test.message("ask", number.to_string());
        let answer = client.request(question, PATIENCE).await.expect("an answer");
        assert_eq!(*answer.payload(), format!("answer to {number}"));
    });
    join_all(asked).await;
    server.close().await;
    serving.await.expect("the server ends");
}

/// Three clients ask the same server: no reply goes astray.
pub async fn o02_replies_find_their_client(test: &Test) {
    let server = test.connect().await;
    let serving = tokio::spawn(answer_in_pairs(server.serve("ask").await));
    let clients = join_all((0..3).map(|_| test.connect())).await;
    let asked = clients.iter().enumerate().map(async |(who, client)| {
        let asked = (0..40).map(async |number| {
            let question = test.message("ask", format!("{who}-{number}"));
            let answer = client.request(question, PATIENCE).await.expect("an answer");
            assert_eq!(*answer.payload(), format!("answer to {who}-{number}"));
        });
        join_all(asked).await;
    });
    join_all(asked).await;
    server.close().await;
    serving.await.expect("the server ends");
}

/// Each call is answered by one of those who serve the pattern, whatever app they belong to.
pub async fn o02_servers_share_the_calls(test: &Test) {
    let (one, two, client) = (
        test.connect().await,
        test.connect().await,
        test.connect().await,
    );
    let serving: Vec<_> = [one.serve("ask").await, two.serve("ask").await]
        .into_iter()
        .map(|calls| tokio::spawn(answer_each(calls)))
        .collect();
    let questions: Vec<_> = test.messages("ask", 60);
    let asked = questions
        .iter()
        .map(|question| client.request(question.clone(), PATIENCE));
    for answer in join_all(asked).await {
        answer.expect("an answer");
    }
    one.close().await;
    two.close().await;
    let mut answered = Vec::new();
    for server in serving {
        answered.extend(server.await.expect("the server ends"));
    }
    let different: HashSet<_> = answered.iter().collect();
    assert_eq!(
        (answered.len(), different.len()),
        (60, 60),
        "each call is run once"
    );
}

/// A subscription sees no calls, a server no events.
pub async fn o03_calls_and_events_do_not_mix(test: &Test) {
    let client = test.connect().await;
    let mut subscription = client.subscribe(test.spec("group", "events")).await;
    let serving = tokio::spawn(answer_each(client.serve("ask").await));
    client.send(test.message("events", "event")).await;
    let question = test.message("ask", "question");
    client.request(question, PATIENCE).await.expect("an answer");
    let delivery = subscription.next().await;
    assert_eq!(delivery.message.payload(), "event");
    delivery.ack().await;
    subscription.stays_quiet().await;
    client.close().await;
    assert_eq!(serving.await.expect("the server ends").len(), 1);
}

/// The deadline is kept, the error says so, and the reply that comes later reaches nobody.
pub async fn o04_a_call_ends_at_its_deadline_and_a_late_reply_is_dropped(test: &Test) {
    let (server, client) = (test.connect().await, test.connect().await);
    let mut calls = server.serve("ask").await;
    let start = Instant::now();
    let question = test.message("ask", "slow");
    let asked = client.request(question, Duration::from_millis(300));
    let (answer, slow) = futures::future::join(asked, calls.next()).await;
    let took = start.elapsed();
    assert_eq!(
        answer.expect_err("nobody answered").kind(),
        ErrorKind::Timeout
    );
    assert!((300..1_300).contains(&took.as_millis()), "it took {took:?}");
    let slow = slow.expect("the call arrives");
    let _ = calls.answer(&slow, "too late").await;
    let question = test.message("ask", "next");
    let asked = client.request(question, PATIENCE);
    let answering = async {
        let call = calls.next().await.expect("the next call arrives");
        assert_eq!(
            call.message.payload(),
            "next",
            "the abandoned call was sent twice"
        );
        calls
            .answer(&call, "in time")
            .await
            .expect("the answer is taken");
    };
    let (answer, ()) = futures::future::join(asked, answering).await;
    assert_eq!(answer.expect("an answer").payload(), "in time");
}

/// Code, message and details arrive; the transport takes an error for a reply like any other.
pub async fn o05_an_error_travels_back_as_an_error(test: &Test) {
    let (server, client) = (test.connect().await, test.connect().await);
    let mut calls = server.serve("ask").await;
    let question = test.message("ask", "impossible");
    let asked = client.request(question, PATIENCE);
    let answering = async {
        let call = calls.next().await.expect("the call arrives");
        let body = br#"{"code":"out_of_stock","message":"none left","retryable":true}"#;
        let reply = Message::new(call.message.subject().clone(), &body[..]);
        let reply = reply.with_error_code("out_of_stock");
        calls
            .reply(&call, reply)
            .await
            .expect("the answer is taken");
    };
    let (answer, ()) = futures::future::join(asked, answering).await;
    let answer = answer.expect("an error is an answer to a transport");
    assert_eq!(answer.error_code(), Some("out_of_stock"));
    let error: RemoteError = anywire::Codec::Json
        .decode(answer.payload())
        .expect("an error as JSON");
    assert_eq!((error.code(), error.is_retryable()), ("out_of_stock", true));
}

/// Where the wire can tell, the caller does not wait.
pub async fn o06_a_call_that_nobody_answers_fails_at_once(test: &Test) {
    let client = test.connect().await;
    let start = Instant::now();
    let answer = client
        .request(test.message("nobody", "hello?"), PATIENCE)
        .await;
    let error = answer.expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::NoRoute, "{error}");
    assert!(start.elapsed() < PATIENCE / 2, "it waited for its deadline");
}

/// After the last server stopped, callers are told so.
pub async fn o06_a_server_that_stopped_is_nobody(test: &Test) {
    let (server, client) = (test.connect().await, test.connect().await);
    let mut calls = server.serve("ask").await;
    let question = test.message("ask", "hello?");
    let asked = client.request(question, PATIENCE);
    let answering = async {
        let call = calls.next().await.expect("the call arrives");
        calls
            .answer(&call, "yes")
            .await
            .expect("the answer is taken");
    };
    let (answer, ()) = futures::future::join(asked, answering).await;
    answer.expect("an answer");
    calls.stop().await;
    let answer = client
        .request(test.message("ask", "hello?"), PATIENCE)
        .await;
    assert_eq!(
        answer.expect_err("nobody listens").kind(),
        ErrorKind::NoRoute
    );
}

/// The future is dropped, the reply comes anyway and harms nobody.
pub async fn o07_a_caller_that_gives_up_leaves_nothing_behind(test: &Test) {
    let (server, client) = (test.connect().await, test.connect().await);
    let mut calls = server.serve("ask").await;
    let given_up = client.request(test.message("ask", "given up"), PATIENCE);
    let call = tokio::select! {
        _ = given_up => panic!("nobody has answered"),
        call = calls.next() => call.expect("the call arrives"),
    };
    let _ = calls.answer(&call, "for nobody").await;
    let asked = client.request(test.message("ask", "next"), PATIENCE);
    let answering = async {
        let call = calls.next().await.expect("the next call arrives");
        calls
            .answer(&call, "for next")
            .await
            .expect("the answer is taken");
    };
    let (answer, ()) = futures::future::join(asked, answering).await;
    assert_eq!(answer.expect("an answer").payload(), "for next");
}

/// At most once: the call is not run again by another server, and ends with one error by its deadline.
pub async fn o08_a_server_that_vanishes_leaves_one_result_by_the_deadline(test: &Test) {
    let (doomed, client) = (test.connect_loose().await, test.connect().await);
    let mut calls = doomed.serve("ask").await;
    let start = Instant::now();
    let asked = client.request(test.message("ask", "doomed"), Duration::from_secs(1));
    let crash = async {
        let call = calls.next().await.expect("the call arrives");
        let second = test.connect().await.serve("ask").await;
        drop((call, calls, doomed));
        second
    };
    let (answer, mut second) = futures::future::join(asked, crash).await;
    answer.expect_err("the server is gone");
    assert!(start.elapsed() < Duration::from_secs(2));
    let again = timeout(test.quiet(), second.next()).await;
    assert!(again.is_err(), "the call was run twice");
}

/// One reply wins; a second settlement of the same call is refused.
pub async fn o09_a_second_reply_is_an_error_and_reaches_nobody(test: &Test) {
    let (server, client) = (test.connect().await, test.connect().await);
    let mut calls = server.serve("ask").await;
    for expected in ["first", "second"] {
        let asked = client.request(test.message("ask", expected), PATIENCE);
        let answering = async {
            let call = calls.next().await.expect("the call arrives");
            calls
                .answer(&call, expected)
                .await
                .expect("the answer is taken");
            // What matters is that it reaches nobody; whether the wire can tell is its own affair.
            let _ = calls.answer(&call, "once more").await;
        };
        let (answer, ()) = futures::future::join(asked, answering).await;
        assert_eq!(answer.expect("an answer").payload(), expected);
    }
}

/// With the reply, on the new connection, or with an error; never later than its deadline, and the next one works.
pub async fn o10_a_call_whose_connection_is_lost_ends(test: &Test) {
    let (server, client) = (test.connect().await, test.connect().await);
    let mut calls = server.serve("ask").await;
    let asked = client.request(test.message("ask", "cut off"), PATIENCE);
    let cut = async {
        let call = calls.next().await.expect("the call arrives");
        test.broker()
            .kill_connections()
            .await
            .expect("the connections are killed");
        let _ = calls.answer(&call, "late").await;
    };
    // That it ends by its deadline is asserted by the connection.
    let (_, ()) = futures::future::join(asked, cut).await;
    let serving = tokio::spawn(answer_each(calls));
    let end = Instant::now() + 2 * PATIENCE;
    while client
        .request(test.message("ask", "next"), Duration::from_secs(1))
        .await
        .is_err()
    {
        assert!(Instant::now() < end, "calls did not recover");
    }
    server.close().await;
    serving.await.expect("the server ends");
}

/// Thousands of calls that end at their deadlines; then one that is answered. (The runner looks for tasks that stayed.)
pub async fn o11_many_abandoned_calls_leave_a_working_client(test: &Test) {
    let (server, client) = (test.connect().await, test.connect().await);
    let calls = server.serve("ask").await;
    let abandoned = (0..test.profile().pick(200, 2_000, 10_000))
        .map(|_| client.request(test.message("ask", "abandoned"), Duration::from_millis(50)));
    for answer in join_all(abandoned).await {
        let kind = answer.expect_err("nobody answers").kind();
        assert!(
            matches!(kind, ErrorKind::Timeout | ErrorKind::Overloaded),
            "{kind}"
        );
    }
    let serving = tokio::spawn(answer_each(calls));
    let answer = client
        .request(test.message("ask", "answered"), PATIENCE)
        .await;
    assert_eq!(answer.expect("an answer").payload(), "answer to answered");
    server.close().await;
    serving.await.expect("the server ends");
}

/// What travels is how long the caller still waits, not a time of day.
pub async fn o12_the_server_is_told_how_much_time_is_left(test: &Test) {
    let (server, client) = (test.connect().await, test.connect().await);
    let mut calls = server.serve("ask").await;
    let asked = client.request(test.message("ask", "how long?"), Duration::from_secs(3));
    let answering = async {
        let call = calls.next().await.expect("the call arrives");
        let left = call
            .deadline
            .map(|at| at.saturating_duration_since(test.clock().now()));
        calls
            .answer(&call, "so long")
            .await
            .expect("the answer is taken");
        left.expect("the caller's deadline is known")
    };
    let (answer, left) = futures::future::join(asked, answering).await;
    answer.expect("an answer");
    let expected = Duration::from_secs(1)..=Duration::from_millis(3_100);
    assert!(expected.contains(&left), "{left:?} are left of 3 s");
}

/// Payload, headers and content type of both, whole.
pub async fn o13_request_and_reply_survive_as_they_are(test: &Test) {
    let (server, client) = (test.connect().await, test.connect().await);
    let mut calls = server.serve("ask.*").await;
    let request = test
        .message("ask.eu", vec![0, 255, 13, 10])
        .with_content_type(anywire::ContentType::CBOR);
    let asked = client.request(request.clone(), PATIENCE);
    let answering = async {
        let call = calls.next().await.expect("the call arrives");
        let reply = Message::new(call.message.subject().clone(), vec![1, 0, 2])
            .with_headers(test.headers(&[("tag", "b"), ("tag", "a")]))
            .with_content_type(anywire::ContentType::MSGPACK);
        calls
            .reply(&call, reply.clone())
            .await
            .expect("the answer is taken");
        (call, reply)
    };
    let (answer, (call, reply)) = futures::future::join(asked, answering).await;
    let answer = answer.expect("an answer");
    assert_eq!(call.message.subject(), request.subject());
    assert_eq!(call.message.payload(), request.payload());
    assert_eq!(headers(&call.message), headers(&request));
    assert_eq!(call.message.content_type(), request.content_type());
    assert_eq!(answer.payload(), reply.payload());
    assert_eq!(headers(&answer), headers(&reply));
    assert_eq!(answer.content_type(), reply.content_type());
    assert_eq!(answer.error_code(), None);
}

/// Answers calls two by two, the later one first, until serving ends.
async fn answer_in_pairs(mut calls: Calls) {
    while let Some(first) = calls.next().await {
        let second = timeout(Duration::from_millis(20), calls.next()).await;
        for call in second.ok().flatten().iter().chain([&first]) {
            calls
                .answer(call, &answer_to(call))
                .await
                .expect("the answer is taken");
        }
    }
}

/// Answers calls one by one until serving ends; gives the payloads.
async fn answer_each(mut calls: Calls) -> Vec<bytes::Bytes> {
    let mut answered = Vec::new();
    while let Some(call) = calls.next().await {
        calls
            .answer(&call, &answer_to(&call))
            .await
            .expect("the answer is taken");
        answered.push(call.message.payload().clone());
    }
    answered
}

fn answer_to(call: &anywire::pattern::request_reply::ReceivedCall) -> String {
    format!(
        "answer to {}",
        String::from_utf8_lossy(call.message.payload())
    )
}
