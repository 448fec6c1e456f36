//! Calls: straight from the caller to whoever serves the pattern, and back.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use async_trait::async_trait;

use super::publisher::too_large;
use super::service::{Offered, Service, Ticket};
use super::transport::{Connection, End, closed};
use crate::clock::Sleep;
use crate::pattern::request_reply::{
    CallSpec, IncomingCalls, ReceivedCall, Replier, Reply, Requester, Responder,
};
use crate::pattern::{Batch, Progress, PullResult, Pulled};
use crate::{Error, ErrorKind, Message, Subject};

/// The role that calls. A caller's future is its reply address.
#[derive(Debug)]
pub(super) struct MemoryRequester {
    connection: Arc<Connection>,
}

impl MemoryRequester {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }
}

impl Requester for MemoryRequester {
    fn request(&self, message: Message, deadline: Instant) -> Progress<Result<Message, Error>> {
        match Call::make(&self.connection, message, deadline) {
            Ok(Made::Sent(call)) => Progress::pending(call),
            Ok(Made::Full(service, message)) => {
                let connection = Arc::clone(&self.connection);
                Progress::pending(wait_and_call(connection, service, message, deadline))
            }
            Err(error) => Progress::Done(Err(error)),
        }
    }
}

/// What became of an attempt to make a call.
enum Made {
    Sent(Call),
    /// The service has all the calls that it takes; the request comes back.
    Full(Arc<Service>, Message),
}

/// Waits until the service takes the call, then for its answer.
async fn wait_and_call(
    connection: Arc<Connection>,
    mut full: Arc<Service>,
    message: Message,
    deadline: Instant,
) -> Result<Message, Error> {
    let subject = message.subject().clone();
    let mut message = Some(message);
    let mut timer = connection.clock.sleep_until(deadline);
    let call = {
        let mut closing = pin!(connection.closed());
        loop {
            let service = full;
            let turn = service.room.enter();
            let made = poll_fn(|cx| {
                turn.watch(cx.waker());
                let Some(request) = message.take() else {
                    return Poll::Pending;
                };
                match Call::make(&connection, request, deadline)? {
                    Made::Full(full, request) if Arc::ptr_eq(&full, &service) => {
                        message = Some(request);
                    }
                    made => return Poll::Ready(Ok(made)),
                }
                if closing.as_mut().poll(cx).is_ready() {
                    Poll::Ready(Err(closed()))
                } else {
                    let late = Pin::new(&mut timer).poll(cx);
                    late.map(|()| Err(overloaded(&subject)))
                }
            })
            .await;
            drop(turn);
            match made? {
                Made::Sent(call) => break call,
                Made::Full(other, request) => (full, message) = (other, Some(request)),
            }
        }
    };
    call.await
}

/// A call that waits for its answer.
struct Call {
    connection: Arc<Connection>,
    service: Arc<Service>,
    ticket: Ticket,
    deadline: Instant,
    /// Armed once the answer turns out not to be there yet.
    timer: Option<Sleep>,
    ended: bool,
}

impl Call {
    fn make(
        connection: &Arc<Connection>,
        message: Message,
        deadline: Instant,
    ) -> Result<Made, Error> {
        connection.check_open()?;
        let broker = &connection.broker.0;
        let limit = broker.config().max_payload;
        if let Some(error) = too_large(&message, limit) {
            return Err(error);
        }
        let Some(service) = broker.calls.find(message.subject()) else {
            return Err(no_responder(message.subject()));
        };
        let subject = message.subject().clone();
        match service.offer(message, deadline, connection.client) {
            Offered::Taken(ticket) => Ok(Made::Sent(Self {
                connection: Arc::clone(connection),
                service,
                ticket,
                deadline,
                timer: None,
                ended: false,
            })),
            Offered::Full(message) => Ok(Made::Full(service, message)),
            // The last who served it left a moment ago.
            Offered::Gone => Err(no_responder(&subject)),
        }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Error>> {
        if let Some(answer) = self.service.answer(self.ticket, cx.waker()) {
            return Poll::Ready(answer);
        }
        let clock = &self.connection.clock;
        let timer = self
            .timer
            .get_or_insert_with(|| clock.sleep_until(self.deadline));
        if Pin::new(timer).poll(cx).is_pending() {
            return Poll::Pending;
        }
        let answer = self.service.abandon(self.ticket);
        Poll::Ready(answer.unwrap_or_else(|| Err(late())))
    }
}

impl Future for Call {
    type Output = Result<Message, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.poll_answer(cx);
        self.ended = answer.is_ready();
        answer
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            drop(self.service.abandon(self.ticket));
        }
    }
}

/// The role that answers calls.
#[derive(Debug)]
pub(super) struct MemoryResponder {
    connection: Arc<Connection>,
}

impl MemoryResponder {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    fn open(&self, spec: &CallSpec) -> Result<Box<dyn IncomingCalls>, Error> {
        let CallSpec {
            pattern,
            window,
            // An opening tells whether there will be some.
            items: _,
        } = spec;
        self.connection.check_open()?;
        let (service, server) = self.connection.broker.0.calls.serve(pattern, *window);
        let server = Server::tied(Arc::clone(&self.connection), service, server);
        // A close that came between the check and the tie ended everybody but us.
        self.connection.check_open()?;
        Ok(Box::new(MemoryCalls { server }))
    }
}

#[async_trait]
impl Responder for MemoryResponder {
    async fn serve(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingCalls>, Error>> {
        specs.iter().map(|spec| self.open(spec)).collect()
    }
}

/// The calls that one server takes.
#[derive(Debug)]
struct MemoryCalls {
    server: Arc<Server>,
}

#[async_trait]
impl IncomingCalls for MemoryCalls {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedCall>,
    ) -> Poll<PullResult> {
        match self.server.service.take(self.server.number, cx, batch) {
            None => Poll::Ready(Ok(Pulled::End)),
            Some(true) => Poll::Ready(Ok(Pulled::Some)),
            Some(false) => Poll::Pending,
        }
    }

    fn replier(&self) -> Arc<dyn Replier> {
        Arc::clone(&self.server) as Arc<dyn Replier>
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.server.stop();
        if Arc::strong_count(&self.server) == 1 {
            // No replier is left, so nobody can answer what was pulled.
            self.server.service.desert(self.server.number);
        }
        Ok(())
    }
}

impl Drop for MemoryCalls {
    fn drop(&mut self) {
        self.server.stop();
    }
}

/// A server's place at its service, shared by those who pull and those who reply. With the last of them the calls that
/// it left unanswered fail at their callers.
#[derive(Debug)]
struct Server {
    connection: Arc<Connection>,
    service: Arc<Service>,
    number: usize,
    tie: usize,
}

impl Server {
    fn tied(connection: Arc<Connection>, service: Arc<Service>, number: usize) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let tie = connection.tie(Weak::clone(this) as Weak<dyn End>);
            Self {
                connection,
                service,
                number,
                tie,
            }
        })
    }

    fn stop(&self) {
        let calls = &self.connection.broker.0.calls;
        calls.retire(&self.service, self.number);
    }
}

impl Replier for Server {
    fn reply(&self, reply: Reply) -> Progress<Result<(), Error>> {
        let Reply {
            tag,
            // The tag names the caller: no address that a request holds is ever followed.
            reply_to: _,
            correlation_id: _,
            message,
        } = reply;
        if let Err(error) = self.connection.check_open() {
            return Progress::Done(Err(error));
        }
        let limit = self.connection.broker.0.config().max_payload;
        Progress::Done(match too_large(&message, limit) {
            Some(error) => Err(error),
            None => self.service.reply(self.number, tag, message),
        })
    }
}

impl End for Server {
    fn end(&self) {
        self.stop();
        self.service.desert(self.number);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.connection.untie(self.tie);
        self.service.leave(self.number);
    }
}

/// The error for a call that nobody serves.
fn no_responder(subject: &Subject) -> Error {
    let message = "nobody answers this subject; start its handler first";
    Error::new(ErrorKind::NoRoute, message).with_context("subject", subject)
}

fn overloaded(subject: &Subject) -> Error {
    let message =
        "no server had room for the call by its deadline; add servers, or raise their concurrency";
    Error::new(ErrorKind::Overloaded, message).with_context("subject", subject)
}

fn late() -> Error {
    let message = "no reply came by the deadline; allow more time, or look at the handler";
    Error::new(ErrorKind::Timeout, message)
}
