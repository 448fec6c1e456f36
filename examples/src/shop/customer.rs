//! The customer: asks for a quote, places the order, and listens for what becomes of it.
//!
//! It needs a [`Client`] and nothing else, so it runs in the service's own process on memory just as it does at the other
//! end of a broker.

use std::time::Duration;

use anywire::{
    Bytes, Client, ContentType, Delivery, Error, ErrorKind, FromPayload, Message, MessageId, Raw,
    Result, Subject, Subscription,
};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::ledger::{Ledger, Part};
use super::lines::{Line, Lines};
use super::orders::{About, CHARGED, Charged, Item, Order, PLACED, QUOTE, RESERVED, Reserved};
use super::summary::Summary;

/// How many quotes are asked for at once.
const QUOTES: usize = 64;
/// How many deliveries are taken at once from what the service tells.
const WINDOW: usize = 256;
/// How long nothing may be heard of what was placed before the rest is taken for lost.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// How often the progress is shown.
const TICK: Duration = Duration::from_millis(100);

/// Places the orders in `lines` and waits until each of them has ended. When `stop` fires it reads no more, and waits for
/// what it has placed.
///
/// # Errors
/// Where the shop cannot be reached. What goes wrong with single orders is in the summary.
pub async fn run(
    client: &Client,
    lines: Lines,
    stop: &CancellationToken,
    progress: impl Fn(&Summary),
) -> Result<Summary> {
    // First listen, then speak: what is told before somebody listens is not heard.
    let news = News::listen(client).await?;
    ask_for_the_shop(client).await?;

    let begun = Instant::now();
    let ledger = Mutex::new(Ledger::default());
    {
        let desk = Desk {
            client,
            ledger: &ledger,
            asking: Patience::new(),
            placing: Patience::new(),
        };
        let mut placing = std::pin::pin!(desk.place_all(lines, stop));
        let mut following = std::pin::pin!(news.follow(&ledger));
        let mut watch = Watch::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut all_sent = false;
        loop {
            // Both go on at the same time: were nobody listening while we wait for room in the shop's queue, the shop
            // would soon wait for room in ours.
            tokio::select! {
                () = &mut placing, if !all_sent => {
                    all_sent = true;
                    ledger.lock().all_sent();
                    if ledger.lock().is_over() {
                        break;
                    }
                }
                ended = &mut following => {
                    ended?;
                    break;
                }
                _ = ticks.tick() => {
                    let ledger = ledger.lock();
                    progress(ledger.summary());
                    if watch.has_seen_nothing_since(ledger.told(), PATIENCE) {
                        break;
                    }
                }
            }
        }
    }
    let mut summary = ledger.into_inner().close(begun.elapsed());
    summary.stopped = stop.is_cancelled();
    Ok(summary)
}

/// One call before all others, to fail with one sentence instead of thousands.
async fn ask_for_the_shop(client: &Client) -> Result<()> {
    let item = Item {
        item: "teapot".to_owned(),
        quantity: 1,
    };
    let begun = Instant::now();
    let answer = loop {
        match client.request(QUOTE, &item).await {
            // One that has just died holds its calls, on a wire that has not noticed yet.
            Err(error) if error.kind() == ErrorKind::Timeout && begun.elapsed() < PATIENCE => {}
            answer => break answer,
        }
    };
    match answer {
        Err(error) if error.kind() == ErrorKind::NoRoute => Err(Error::new(
            ErrorKind::NoRoute,
            "no shop answers; start one with `shop serve`",
        )
        .with_source(error)
        .into()),
        answer => answer.map(drop).map_err(Into::into),
    }
}

/// Where orders are written and sent.
struct Desk<'a> {
    client: &'a Client,
    ledger: &'a Mutex<Ledger>,
    asking: Patience,
    placing: Patience,
}

/// What is to be done with a line.
enum Quoted {
    Order(Order),
    Undecodable(Bytes),
    Nothing,
}

impl Desk<'_> {
    async fn place_all(&self, mut lines: Lines, stop: &CancellationToken) {
        let lines = stream::poll_fn(move |cx| lines.poll_recv(cx)).take_until(stop.cancelled());
        let lines = lines.filter_map(|line| async {
            line.map_err(|error| self.ledger.lock().cut(&error.to_string()))
                .ok()
        });
        // Quotes are asked for many at a time, but come out in the order of the lines, so that the orders of one customer
        // are placed in the order in which they stand.
        let quoted = lines.map(|line| self.quote(line)).buffered(QUOTES);
        let mut quoted = std::pin::pin!(quoted);
        while let Some(line) = quoted.next().await {
            match line {
                Quoted::Order(order) => self.place(&order).await,
                Quoted::Undecodable(line) => self.send_as_it_came(line).await,
                Quoted::Nothing => {}
            }
        }
    }

    async fn quote(&self, line: Line) -> Quoted {
        self.ledger.lock().read();
        let Line::Text(line) = line else {
            self.ledger.lock().too_long();
            return Quoted::Nothing;
        };
        if line.trim_ascii().is_empty() {
            self.ledger.lock().blank();
            return Quoted::Nothing;
        }
        let Ok(order) = serde_json::from_slice::<Order>(&line) else {
            return Quoted::Undecodable(line);
        };
        let asked = Instant::now();
        let ask = || self.client.request(QUOTE, &order.item());
        let answer = self.asking.keep_trying(ask).await;
        let mut ledger = self.ledger.lock();
        ledger.quoted(asked.elapsed());
        match answer {
            Ok(_) => return Quoted::Order(order),
            // The code is what to branch on; `error.remote_as::<ShopError>()` is the whole error.
            Err(error) => match error.as_remote() {
                Some(remote) => ledger.refused(remote.code()),
                None => ledger.unsent(&reason(&error)),
            },
        }
        Quoted::Nothing
    }

    async fn place(&self, order: &Order) {
        // The books come first: the end of an order may be told before its emit returns.
        if !self.ledger.lock().place(&order.id) {
            return;
        }
        // One id for all attempts: where the first one arrived after all, a broker can drop the second.
        let id = MessageId::random();
        let emit = || {
            let subject = PLACED.with("region", &order.region);
            let emit = self.client.emit(subject, order).id(id.clone());
            emit.key(order.customer.clone())
        };
        let emitted = self.placing.keep_trying(emit).await;
        if let Some(error) = not_sent(emitted) {
            self.ledger.lock().not_placed(&order.id, &reason(&error));
        }
    }

    /// A line that we cannot read may be one that the shop can, so we do not judge it. Where it cannot either, the line is
    /// in its dead letters, for somebody to look at, under the id that we give it here.
    async fn send_as_it_came(&self, line: Bytes) {
        let id = MessageId::random();
        let name = id.to_string();
        let line = Raw(line);
        self.ledger.lock().send_undecodable(&name);
        let emit = || {
            // The contract says that an order is sent here, and this is none: the subject as text takes any payload.
            let emit = self.client.emit("shop.unknown.placed", &line);
            emit.id(id.clone()).content_type(ContentType::JSON)
        };
        let emitted = self.placing.keep_trying(emit).await;
        if let Some(error) = not_sent(emitted) {
            self.ledger.lock().not_sent(&name, &reason(&error));
        }
    }
}

/// For a broker or a shop that is restarted under us. It ends when nothing has gone well for long.
pub(super) struct Patience {
    last: Mutex<Instant>,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self {
            last: Mutex::new(Instant::now()),
        }
    }

    /// Does what is safe to do twice until it goes well, is refused, or the patience is at its end.
    pub(super) async fn keep_trying<T, A>(&self, attempt: impl Fn() -> A) -> Result<T, Error>
    where
        A: IntoFuture<Output = Result<T, Error>>,
    {
        loop {
            match attempt().await {
                Err(error) if self.may_pass(&error) => sleep(AGAIN).await,
                ended => {
                    if ended.is_ok() {
                        *self.last.lock() = Instant::now();
                    }
                    return ended;
                }
            }
        }
    }

    fn may_pass(&self, error: &Error) -> bool {
        error.is_retryable() && self.last.lock().elapsed() < PATIENCE
    }
}

/// The error of an emit that did surely not happen.
fn not_sent<T>(emitted: Result<T, Error>) -> Option<Error> {
    let error = emitted.err()?;
    (error.kind() != ErrorKind::OutcomeUnknown).then_some(error)
}

fn reason(error: &Error) -> String {
    format!("{:?}", error.kind())
}

/// What the service tells of our orders: private copies of its events and of its dead letters. They leave nothing behind
/// in a broker, and take nothing from anybody.
struct News {
    charged: Subscription<Charged>,
    reserved: Subscription<Reserved>,
    dead: Subscription<Message>,
}

impl News {
    async fn listen(client: &Client) -> Result<Self, Error> {
        let dead = Subject::dead_letters("shop").to_string();
        Ok(Self {
            charged: client.subscribe(CHARGED).window(WINDOW).await?,
            reserved: client.subscribe(RESERVED).window(WINDOW).await?,
            dead: client.subscribe(&dead).window(WINDOW).await?,
        })
    }

    /// Keeps the books until all orders have ended.
    async fn follow(mut self, ledger: &Mutex<Ledger>) -> Result<(), Error> {
        while !ledger.lock().is_over() {
            tokio::select! {
                Some(charged) = self.charged.next() => {
                    note(charged, |charged| {
                        ledger.lock().done(&charged.order, Part::Charge, charged.attempts);
                    })
                    .await?;
                }
                Some(reserved) = self.reserved.next() => {
                    note(reserved, |reserved| {
                        ledger.lock().done(&reserved.order, Part::Reserve, 1);
                    })
                    .await?;
                }
                Some(letter) = self.dead.next() => {
                    note(letter, |letter| bury(letter, &mut ledger.lock())).await?;
                }
                else => return Err(Error::new(ErrorKind::Closed, "the shop's news have ended")),
            }
        }
        Ok(())
    }
}

/// Writes what was delivered into the books, then acknowledges it. Where the acknowledgement is lost it comes again, and the
/// books know it already. One that cannot be read, and a connection that is lost for a while, are no reason to stop
/// listening.
async fn note<P>(
    delivery: Result<Delivery<P>, Error>,
    write: impl FnOnce(&P),
) -> Result<(), Error> {
    let noted = match delivery {
        Ok(delivery) => {
            write(&delivery);
            delivery.ack().await
        }
        Err(error) if error.kind() == ErrorKind::Codec => Ok(()),
        Err(error) => Err(error),
    };
    match noted {
        Err(error) if !error.is_retryable() && error.kind() != ErrorKind::Stale => Err(error),
        _ => Ok(()),
    }
}

/// Writes a dead letter into the books. Its trail tells which handler failed it, how often, and with what.
fn bury(letter: &Message, ledger: &mut Ledger) {
    let Some(trail) = letter.trail() else {
        return;
    };
    let reason = trail.error.as_deref().unwrap_or("no reason given");
    if let Some(id) = letter.id()
        && ledger.dead_undecodable(&id.to_string(), kind_of_defect(reason))
    {
        return;
    }
    let Ok(about) = About::from_payload(letter) else {
        return;
    };
    let mut dead = |part| ledger.dead(&about.order, part, trail.attempt, reason);
    match trail.handler.as_deref() {
        Some("charge") => dead(Part::Charge),
        Some("reserve") => dead(Part::Reserve),
        // It did not come so far that others could end it.
        _ => {
            dead(Part::Charge);
            dead(Part::Reserve);
        }
    }
}

/// What is wrong with a line, without its place and its values, which differ in each: ``missing field `item` `` of
/// ``undecodable: the payload cannot be read from JSON: missing field `item` at line 1 column 9``.
fn kind_of_defect(reason: &str) -> &str {
    let defect = reason.split_once("JSON: ").map_or(reason, |(_, rest)| rest);
    let ends = [" at line ", " from index ", ": "];
    let end = ends.iter().filter_map(|end| defect.find(end)).min();
    end.and_then(|end| defect.get(..end)).unwrap_or(defect)
}

/// Sees that something goes on.
struct Watch {
    told: Option<u64>,
    since: Instant,
}

impl Watch {
    fn new() -> Self {
        Self {
            told: None,
            since: Instant::now(),
        }
    }

    /// `None` is a time when there is nothing to wait for.
    fn has_seen_nothing_since(&mut self, told: Option<u64>, patience: Duration) -> bool {
        if told.is_none() || told != self.told {
            *self = Self {
                told,
                since: Instant::now(),
            };
        }
        self.since.elapsed() >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defects_of_one_kind_are_counted_together() {
        let json = "undecodable: the payload cannot be read from JSON: ";
        for (reason, kind) in [
            (
                "missing field `item` at line 1 column 40",
                "missing field `item`",
            ),
            (
                "invalid utf-8 sequence of 1 bytes from index 66",
                "invalid utf-8 sequence of 1 bytes",
            ),
            ("a value does not fit: \"two\"", "a value does not fit"),
            ("anything else", "anything else"),
        ] {
            assert_eq!(kind_of_defect(&format!("{json}{reason}")), kind);
            assert_eq!(kind_of_defect(reason), kind);
        }
    }
}
