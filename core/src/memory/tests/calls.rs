//! Calls: answers, deadlines, those who leave, and nothing left behind.

use super::*;
use crate::clock::Clock;
use crate::pattern::request_reply::{CallSpec, IncomingCalls, ReceivedCall, Replier, Reply};
use crate::pattern::{Pulled, pull_calls};

impl Rig {
    async fn serve(&self, pattern: &str, window: usize) -> Box<dyn IncomingCalls> {
        let spec = CallSpec::new(parse(pattern)).with_window(window);
        let responder = self.transport.responder().unwrap();
        responder.serve(&[spec]).await.remove(0).unwrap()
    }

    fn call(&self, subject: &str, payload: &str) -> Progress<Result<Message, Error>> {
        let deadline = self.clock.now() + PATIENCE;
        let requester = self.transport.requester().unwrap();
        requester.request(message(subject, payload), deadline)
    }

    fn pending(&self) -> usize {
        self.broker.load(self.clock.now()).unsettled
    }
}

async fn take_calls(incoming: &mut dyn IncomingCalls, room: usize) -> Vec<ReceivedCall> {
    let mut batch = Batch::new(room);
    let pulled = futures::future::poll_immediate(pull_calls(incoming, &mut batch)).await;
    pulled.transpose().unwrap();
    batch.drain().collect()
}

fn reply(replier: &Arc<dyn Replier>, tag: Tag, payload: &str) -> Result<(), Error> {
    let reply = Reply {
        tag,
        reply_to: Some("a.b".into()),
        correlation_id: None,
        message: message("shop.quote", payload),
    };
    let Progress::Done(result) = replier.reply(reply) else {
        panic!("replying has to wait");
    };
    result
}

fn kind(result: Result<Message, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn a_call_gets_its_own_reply() {
    let rig = Rig::new().await;
    let mut incoming = rig.serve("shop.*", 8).await;
    let replier = incoming.replier();
    let (first, second) = (rig.call("shop.quote", "1"), rig.call("shop.quote", "2"));
    let taken = take_calls(&mut *incoming, 9).await;
    assert_eq!(taken.len(), 2);
    assert_eq!(taken[0].deadline, Some(rig.clock.now() + PATIENCE));
    for call in taken.iter().rev() {
        let payload = std::str::from_utf8(call.message.payload()).unwrap();
        reply(&replier, call.tag, &format!("re {payload}")).unwrap();
    }
    assert_eq!(first.wait().await.unwrap().payload(), "re 1");
    assert_eq!(second.wait().await.unwrap().payload(), "re 2");
    assert_eq!(rig.pending(), 0);
}

#[tokio::test]
async fn a_call_that_nobody_serves_fails_at_once() {
    let rig = Rig::new().await;
    let Progress::Done(Err(error)) = rig.call("shop.quote", "1") else {
        panic!("the call waits");
    };
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    assert!(error.to_string().contains("shop.quote"), "{error}");
    drop(rig.serve("shop.quote", 8).await);
    let gone = rig.call("shop.quote", "1").wait().await;
    assert_eq!(kind(gone), ErrorKind::NoRoute);
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_a_late_reply_is_stale() {
    let rig = Rig::new().await;
    let mut incoming = rig.serve("shop.quote", 8).await;
    let call = tokio::spawn(rig.call("shop.quote", "1").wait());
    tokio::task::yield_now().await;
    let taken = take_calls(&mut *incoming, 9).await;
    assert!(rig.clock.advance_to_next());
    assert_eq!(kind(call.await.unwrap()), ErrorKind::Timeout);
    assert_eq!(rig.pending(), 0);
    let late = reply(&incoming.replier(), taken[0].tag, "late").unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Stale);
}

#[tokio::test]
async fn a_second_reply_and_a_strangers_reply_are_stale() {
    let rig = Rig::new().await;
    let mut incoming = rig.serve("shop.quote", 8).await;
    let stranger = rig.serve("shop.other", 8).await.replier();
    let rival = rig.serve("shop.quote", 8).await.replier();
    let call = rig.call("shop.quote", "1");
    let taken = take_calls(&mut *incoming, 9).await;
    for replier in [stranger, rival] {
        let error = reply(&replier, taken[0].tag, "forged").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale);
    }
    let replier = incoming.replier();
    reply(&replier, taken[0].tag, "first").unwrap();
    let second = reply(&replier, taken[0].tag, "second").unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Stale);
    assert_eq!(call.wait().await.unwrap().payload(), "first");
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_nothing_behind() {
    let rig = Rig::new().await;
    let mut incoming = rig.serve("shop.quote", 8).await;
    let (queued, running) = (rig.call("shop.quote", "1"), rig.call("shop.quote", "2"));
    drop(queued);
    let taken = take_calls(&mut *incoming, 9).await;
    assert_eq!(taken.len(), 1, "nobody waits for the first");
    drop(running);
    assert_eq!(rig.pending(), 0);
    assert_eq!(rig.clock.next_timer(), None);
}

#[tokio::test]
async fn the_window_bounds_the_calls_that_run_and_a_reply_wakes_the_server() {
    let rig = Rig::new().await;
    let mut incoming = rig.serve("shop.quote", 1).await;
    let replier = incoming.replier();
    let first = rig.call("shop.quote", "1");
    let taken = take_calls(&mut *incoming, 9).await;
    let _second = rig.call("shop.quote", "2");
    assert_eq!(take_calls(&mut *incoming, 9).await.len(), 0);
    let server = tokio::spawn(async move {
        let mut batch = Batch::new(1);
        pull_calls(&mut *incoming, &mut batch).await.unwrap();
        batch.len()
    });
    tokio::task::yield_now().await;
    assert!(!server.is_finished());
    reply(&replier, taken[0].tag, "re").unwrap();
    assert_eq!(server.await.unwrap(), 1);
    first.wait().await.unwrap();
}

#[tokio::test]
async fn a_call_waits_for_room_and_is_overloaded_at_its_deadline() {
    let rig = Rig::new().await;
    let mut incoming = rig.serve("shop.quote", 1).await;
    let _queued = rig.call("shop.quote", "1");
    let waiting = tokio::spawn(rig.call("shop.quote", "2").wait());
    tokio::task::yield_now().await;
    assert!(rig.clock.advance_to_next());
    assert_eq!(kind(waiting.await.unwrap()), ErrorKind::Overloaded);

    let waiting = tokio::spawn(rig.call("shop.quote", "3").wait());
    tokio::task::yield_now().await;
    let replier = incoming.replier();
    for _ in 0..2 {
        let taken = take_calls(&mut *incoming, 1).await;
        reply(&replier, taken[0].tag, "re").unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(waiting.await.unwrap().unwrap().payload(), "re");
}

#[tokio::test]
async fn a_server_that_vanishes_fails_its_calls_at_once() {
    let rig = Rig::new().await;
    let mut incoming = rig.serve("shop.quote", 8).await;
    let replier = incoming.replier();
    let running = rig.call("shop.quote", "1");
    assert_eq!(take_calls(&mut *incoming, 9).await.len(), 1);
    let queued = rig.call("shop.quote", "2");
    drop(incoming);
    assert_eq!(kind(queued.wait().await), ErrorKind::NoRoute);
    drop(replier);
    assert_eq!(kind(running.wait().await), ErrorKind::Disconnected);
    assert_eq!(rig.pending(), 0);
}

#[tokio::test]
async fn a_stopped_server_answers_what_it_has_and_leaves_the_rest_to_the_others() {
    let rig = Rig::new().await;
    let (mut stopped, mut stays) = (
        rig.serve("shop.quote", 8).await,
        rig.serve("shop.quote", 8).await,
    );
    let replier = stopped.replier();
    let first = rig.call("shop.quote", "1");
    let taken = take_calls(&mut *stopped, 1).await;
    let second = rig.call("shop.quote", "2");
    stopped.stop().await.unwrap();
    assert_eq!(
        pull_calls(&mut *stopped, &mut Batch::new(1)).await.unwrap(),
        Pulled::End
    );
    reply(&replier, taken[0].tag, "re 1").unwrap();
    let rest = take_calls(&mut *stays, 9).await;
    reply(&stays.replier(), rest[0].tag, "re 2").unwrap();
    assert_eq!(first.wait().await.unwrap().payload(), "re 1");
    assert_eq!(second.wait().await.unwrap().payload(), "re 2");
}

#[tokio::test]
async fn a_close_ends_a_clients_calls_and_its_servers() {
    let rig = Rig::new().await;
    let other = connect(&rig.broker, &rig.clock).await;
    let spec = CallSpec::new(parse("far.away"));
    let mut far = other
        .responder()
        .unwrap()
        .serve(&[spec])
        .await
        .remove(0)
        .unwrap();
    let mut near = rig.serve("shop.quote", 8).await;
    let mine = rig.call("far.away", "1");
    assert_eq!(take_calls(&mut *far, 9).await.len(), 1);
    let deadline = rig.clock.now() + PATIENCE;
    let theirs = other.requester().unwrap();
    let theirs = theirs.request(message("shop.quote", "2"), deadline);
    assert_eq!(take_calls(&mut *near, 9).await.len(), 1);
    rig.transport.close(PATIENCE).await.unwrap();
    assert_eq!(kind(mine.wait().await), ErrorKind::Closed);
    assert_eq!(kind(theirs.wait().await), ErrorKind::Disconnected);
    assert_eq!(
        kind(rig.call("far.away", "3").wait().await),
        ErrorKind::Closed
    );
    assert_eq!(
        pull_calls(&mut *near, &mut Batch::new(1)).await.unwrap(),
        Pulled::End
    );
}

#[tokio::test]
async fn an_oversized_request_or_reply_is_refused_and_the_call_can_still_be_answered() {
    let rig = Rig::with(MemoryConfig::default().with_max_payload(4)).await;
    let mut incoming = rig.serve("shop.quote", 8).await;
    let large = rig.call("shop.quote", "12345").wait().await;
    assert_eq!(kind(large), ErrorKind::TooLarge);
    let call = rig.call("shop.quote", "1234");
    let taken = take_calls(&mut *incoming, 9).await;
    let replier = incoming.replier();
    let error = reply(&replier, taken[0].tag, "12345").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    reply(&replier, taken[0].tag, "re").unwrap();
    assert_eq!(call.wait().await.unwrap().payload(), "re");
}

#[tokio::test]
async fn a_caller_that_gives_up_frees_its_place_in_the_window() {
    let rig = Rig::new().await;
    let mut incoming = rig.serve("shop.quote", 1).await;
    let first = rig.call("shop.quote", "1");
    assert_eq!(take_calls(&mut *incoming, 9).await.len(), 1);
    let _second = rig.call("shop.quote", "2");
    assert_eq!(take_calls(&mut *incoming, 9).await.len(), 0);
    drop(first);
    assert_eq!(take_calls(&mut *incoming, 9).await.len(), 1);
}
