//! The board: how far each order is, for those who follow one.

use std::collections::HashMap;

use anywire::{FromPayload, Message, Result, controller};
use futures::{Stream, stream};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::orders::{
    About, CHARGE, CHARGED, Charge, Charged, FOLLOW, RESERVED, Reserved, ShopError, Step,
};

/// Knows how far each order is.
///
/// Which instance of the shop answers a call is the wire's to say, so each of them has a board of its own, and each board
/// is told everything: its event handlers are `broadcast`. It knows what happened since it is there. A real shop asks its
/// database for what was before.
#[derive(Debug, Default)]
pub struct Board {
    orders: Mutex<HashMap<String, watch::Sender<History>>>,
}

/// The steps of one order.
#[derive(Debug)]
struct History {
    steps: Vec<Step>,
}

#[controller]
impl Board {
    /// Follows an order to its end.
    ///
    /// An `async fn` that returns a `Result` of a stream may refuse before there is one: the caller gets the `ShopError`
    /// instead of a stream. Each step is sent as soon as it is taken, and no sooner than the caller takes it. A caller
    /// who goes away stops the stream, and nothing of it is left.
    #[stream_pattern(FOLLOW)]
    async fn follow(
        &self,
        order: String,
    ) -> Result<impl Stream<Item = Result<Step, ShopError>>, ShopError> {
        let history = self.orders.lock().get(&order).map(watch::Sender::subscribe);
        let history = history.ok_or(ShopError::UnknownOrder { order })?;
        Ok(stream::unfold(
            (history, 0),
            |(mut history, told)| async move {
                let is_due = |history: &History| told < history.steps.len() || history.is_over();
                let step = history
                    .wait_for(is_due)
                    .await
                    .ok()?
                    .steps
                    .get(told)?
                    .clone();
                Some((Ok(step), (history, told + 1)))
            },
        ))
    }

    /// An order that is to be charged was taken.
    #[event_pattern(CHARGE, broadcast)]
    async fn taken(&self, charge: Charge) -> Result<()> {
        self.note(charge.order, Step::Taken);
        Ok(())
    }

    /// An order is paid.
    #[event_pattern(CHARGED, broadcast)]
    async fn charged(&self, charged: Charged) -> Result<()> {
        let attempts = charged.attempts;
        self.note(charged.order, Step::Charged { attempts });
        Ok(())
    }

    /// An order is set aside.
    #[event_pattern(RESERVED, broadcast)]
    async fn reserved(&self, reserved: Reserved) -> Result<()> {
        self.note(reserved.order, Step::Reserved);
        Ok(())
    }

    /// A part of an order is a dead letter. Dead letters are messages like others, and have a trail of what happened.
    #[event_pattern("anywire.dead.shop", broadcast)]
    async fn failed(&self, letter: Message) -> Result<()> {
        let (Some(trail), Ok(about)) = (letter.trail(), About::from_payload(&letter)) else {
            // A line that no order can be read from.
            return Ok(());
        };
        let reason = trail.error.clone().unwrap_or_default();
        self.note(about.order, Step::Failed { reason });
        Ok(())
    }

    fn note(&self, order: String, step: Step) {
        let mut orders = self.orders.lock();
        let history = orders.entry(order).or_insert_with(History::begin);
        history.send_if_modified(|history| history.add(step));
    }
}

impl History {
    /// What is told of an order may come in any order, but it was taken first.
    fn begin() -> watch::Sender<Self> {
        watch::Sender::new(Self {
            steps: vec![Step::Taken],
        })
    }

    /// Whether it was news: events may come twice.
    fn add(&mut self, step: Step) -> bool {
        let kind = std::mem::discriminant(&step);
        let is_news = !self.is_over() && !self.has(|it| std::mem::discriminant(it) == kind);
        if is_news {
            self.steps.push(step);
        }
        is_news
    }

    fn is_over(&self) -> bool {
        let is_paid = self.has(|it| matches!(it, Step::Charged { .. }));
        let is_there = self.has(|it| *it == Step::Reserved);
        (is_paid && is_there) || self.has(|it| matches!(it, Step::Failed { .. }))
    }

    fn has(&self, is_it: impl Fn(&Step) -> bool) -> bool {
        self.steps.iter().any(is_it)
    }
}
