//! A visit: the three kinds of streaming calls, as a customer makes them.
//!
//! A list of orders is imported, each of those that were placed is followed to its end, and a price is negotiated.

use std::collections::BTreeMap;
use std::fmt;

use anywire::{Client, Error, Result};
use futures::{StreamExt, stream};

use super::customer::{PATIENCE, Patience};
use super::orders::{Answer, FOLLOW, IMPORT, Imported, Item, NEGOTIATE, Offer, Order, Step};
use super::summary::{reasons, row, total};

/// How many orders are imported: more than may lie between us and a shop that takes none.
const ORDERS: u64 = 300;
/// How many are followed at once.
const FOLLOWED: usize = 64;
/// What is offered first, in cents, and how much more each time.
const FIRST_OFFER: u64 = 60_000;
const RAISE: u64 = 2_000;

/// What came of a visit.
#[derive(Clone, Debug, Default)]
pub struct Visit {
    /// What the shop says of the import.
    pub imported: Imported,
    /// Orders that were followed until they were charged and reserved.
    pub fulfilled: u64,
    /// Orders that were followed until a part of them was a dead letter, by reason.
    pub dead: BTreeMap<String, u64>,
    /// Orders that could not be followed to their end, by reason.
    pub lost: BTreeMap<String, u64>,
    /// What the shop says of an order that nobody has placed.
    pub unknown: Option<String>,
    /// The price that was agreed upon.
    pub deal: Option<u64>,
    /// The offers that it took.
    pub offers: u64,
}

/// Imports, follows and negotiates.
///
/// # Errors
/// Where the shop cannot be reached, or breaks off an import or a negotiation more often than we have patience for. What
/// goes wrong with single orders is in the visit.
pub async fn run(client: &Client) -> Result<Visit> {
    let mut visit = Visit::default();
    // A streaming call is never made again by itself: the shop would see its orders twice. We may do that, as the shop
    // knows an order that comes twice by its id.
    let patience = Patience::new();
    visit.imported = patience.keep_trying(|| Box::pin(import(client))).await?;

    let placed = orders().filter(is_sold);
    let patience = Patience::new();
    let following = placed.map(|order| {
        let patience = &patience;
        async move {
            patience
                .keep_trying(|| Box::pin(follow(client, &order.id)))
                .await
        }
    });
    let mut following = stream::iter(following).buffer_unordered(FOLLOWED);
    while let Some(end) = following.next().await {
        visit.note(end);
    }
    drop(following);

    // Refused before there is a stream. The code is what to branch on; `error.remote_as::<ShopError>()` is the whole.
    let refused = client.stream(FOLLOW, &"nobody's".to_owned()).await.err();
    visit.unknown = refused.map(|error| reason(&error));

    let patience = Patience::new();
    let (deal, offers) = patience.keep_trying(|| Box::pin(negotiate(client))).await?;
    (visit.deal, visit.offers) = (deal, offers);
    Ok(visit)
}

/// Many requests, one reply.
async fn import(client: &Client) -> Result<Imported, Error> {
    let mut import = client.upload(IMPORT).await?;
    for order in orders() {
        // This waits when the shop is behind: what lies between us is bounded.
        import.send(&order).await?;
    }
    // Dropped before this, the import would be given up, and the shop told so.
    import.finish().await
}

/// One request, many replies. What comes last is how the order ended.
async fn follow(client: &Client, order: &String) -> Result<Option<Step>, Error> {
    let mut steps = client.stream(FOLLOW, order).idle_timeout(PATIENCE).await?;
    let mut last = None;
    while let Some(step) = steps.next().await {
        // A shop that dies is an error here. An end is one that the shop has sent.
        last = Some(step?);
    }
    Ok(last)
}

/// Many requests, many replies: what is said next depends on what was answered.
async fn negotiate(client: &Client) -> Result<(Option<u64>, u64), Error> {
    let (mut offers, mut answers) = client.duplex(NEGOTIATE).await?;
    let item = Item {
        item: "teapot".to_owned(),
        quantity: 20,
    };
    let (mut cents, mut made) = (FIRST_OFFER, 0);
    loop {
        let item = item.clone();
        offers.send(&Offer { item, cents }).await?;
        made += 1;
        match answers.next().await.transpose()? {
            Some(Answer::Asking { .. }) => cents += RAISE,
            Some(Answer::Deal { cents }) => return Ok((Some(cents), made)),
            None => return Ok((None, made)),
        }
    }
}

/// What is imported, the same in every run. Some of it the shop does not have, some is more than the warehouse has.
fn orders() -> impl Iterator<Item = Order> {
    (0..ORDERS).map(|number| Order {
        id: format!("visit-{number:03}"),
        customer: format!("v-{}", number % 40),
        region: "eu".to_owned(),
        item: match number % 30 {
            29 => "unicorn".to_owned(),
            _ => "mug".to_owned(),
        },
        quantity: match number % 60 {
            50 => 0,
            40 => 600,
            _ => 2,
        },
    })
}

fn is_sold(order: &Order) -> bool {
    order.item == "mug" && order.quantity > 0
}

fn reason(error: &Error) -> String {
    match error.as_remote() {
        Some(remote) => remote.code().to_owned(),
        None => format!("{:?}", error.kind()),
    }
}

impl Visit {
    fn note(&mut self, end: Result<Option<Step>, Error>) {
        let mut lost = |reason: &str| *self.lost.entry(reason.to_owned()).or_default() += 1;
        match end {
            Ok(Some(Step::Charged { .. } | Step::Reserved)) => self.fulfilled += 1,
            Ok(Some(Step::Failed { reason })) => *self.dead.entry(reason).or_default() += 1,
            Ok(Some(Step::Taken) | None) => lost("ended too early"),
            Err(error) => lost(&reason(&error)),
        }
    }

    /// What went wrong, a sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Imported { placed, refused } = &self.imported;
        let known = placed + total(refused);
        if known != ORDERS {
            problems.push(format!(
                "{ORDERS} orders imported, but {known} accounted for"
            ));
        }
        let ended = self.fulfilled + total(&self.dead);
        if *placed != ended {
            let lost = reasons(&self.lost);
            problems.push(format!("{placed} orders placed, but {ended} ended: {lost}"));
        }
        if self.unknown.as_deref() != Some("unknown_order") {
            let unknown = &self.unknown;
            problems.push(format!("an order that nobody has placed: {unknown:?}"));
        }
        if self.deal.is_none() {
            problems.push("there was no deal".to_owned());
        }
        problems
    }
}

impl fmt::Display for Visit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Imported { placed, refused } = &self.imported;
        writeln!(f, "{:>7} orders imported", placed + total(refused))?;
        row(f, *placed, "placed", "")?;
        row(f, total(refused), "refused", &reasons(refused))?;
        let followed = self.fulfilled + total(&self.dead) + total(&self.lost);
        writeln!(f, "{followed:>7} orders followed")?;
        row(f, self.fulfilled, "charged and reserved", "")?;
        row(f, total(&self.dead), "dead-lettered", &reasons(&self.dead))?;
        row(f, total(&self.lost), "lost", &reasons(&self.lost))?;
        let offers = self.offers;
        match self.deal {
            Some(cents) => {
                let (whole, rest) = (cents / 100, cents % 100);
                writeln!(f, "{offers:>7} offers, and a deal at {whole}.{rest:02}")?;
            }
            None => writeln!(f, "{offers:>7} offers, and no deal")?,
        }
        let problems = self.problems();
        if problems.is_empty() {
            return f.write_str("every order was followed to its end");
        }
        write!(f, "the visit went wrong: {}", problems.join("; "))
    }
}
