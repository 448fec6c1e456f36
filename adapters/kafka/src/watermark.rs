//! The contiguous watermark of a partition: how far its consumers' group may say that it is.
//!
//! Offsets are taken in the order of the log and done in any order; the position moves past what is done from the
//! beginning on, and never past what is not. Plain data: whoever holds it locks it.

use std::collections::VecDeque;

/// The offsets of a partition that were taken, from the first that is not done.
#[derive(Debug, Default)]
pub(crate) struct Watermark {
    taken: VecDeque<Taken>,
    /// The ticket of the first that is in `taken`.
    first: u64,
    /// Where the group is, once anything was taken.
    position: Option<i64>,
    /// The last position that was sent to the broker.
    sent: Option<i64>,
}

#[derive(Debug)]
struct Taken {
    offset: i64,
    /// How many must still say that they are done with it.
    open: u32,
}

/// Names an offset that was taken, for as long as the watermark lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

impl Ticket {
    /// Of what needs no watermark.
    pub(crate) const NONE: Self = Self(u64::MAX);
}

impl Watermark {
    /// Takes the next offset, which is done when `shares` have said so. `None` where it was taken before: a log is read
    /// forward.
    pub(crate) fn take(&mut self, offset: i64, shares: u32) -> Option<Ticket> {
        let last = self.taken.back().map(|taken| taken.offset);
        // What was done last stands right below the position.
        let next = last.map(|last| last + 1).or(self.position);
        if next.is_some_and(|next| offset < next) {
            return None;
        }
        let ticket = Ticket(self.first + self.taken.len() as u64);
        self.taken.push_back(Taken {
            offset,
            open: shares,
        });
        if self.position.is_none() || last.is_none() {
            self.position = Some(offset);
        }
        self.advance();
        Some(ticket)
    }

    /// One of those who share an offset is done with it. `false` where there is nothing left to be done.
    pub(crate) fn done(&mut self, ticket: Ticket) -> bool {
        let at = ticket.0.checked_sub(self.first);
        let at = at.and_then(|at| usize::try_from(at).ok());
        let Some(taken) = at.and_then(|at| self.taken.get_mut(at)) else {
            return false;
        };
        if taken.open == 0 {
            return false;
        }
        taken.open -= 1;
        self.advance();
        true
    }

    fn advance(&mut self) {
        while let Some(taken) = self.taken.front() {
            self.position = Some(taken.offset);
            if taken.open > 0 {
                return;
            }
            self.position = Some(taken.offset + 1);
            self.first += 1;
            self.taken.pop_front();
        }
    }

    /// How many offsets there are from the first that is not done to the last that was taken.
    pub(crate) fn span(&self) -> usize {
        self.taken.len()
    }

    /// Where the group is; `None` before anything was taken.
    pub(crate) fn position(&self) -> Option<i64> {
        self.position
    }

    /// The position, where the broker has not been told of it.
    pub(crate) fn unsent(&self) -> Option<i64> {
        self.position
            .filter(|position| self.sent != Some(*position))
    }

    /// The broker was told of a position.
    pub(crate) fn note_sent(&mut self, position: i64) {
        self.sent = Some(position);
    }

    /// The broker did not take it.
    pub(crate) fn forget_sent(&mut self) {
        self.sent = None;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_position_waits_for_what_is_not_done() {
        let mut watermark = Watermark::default();
        let tickets = [5, 6, 9].map(|offset| watermark.take(offset, 1).unwrap());
        assert_eq!(watermark.unsent(), Some(5));
        assert!(watermark.done(tickets[1]));
        assert_eq!(watermark.unsent(), Some(5));
        assert!(watermark.done(tickets[0]));
        assert_eq!(
            watermark.unsent(),
            Some(9),
            "what is missing in between was never there"
        );
        assert!(watermark.done(tickets[2]));
        assert_eq!((watermark.unsent(), watermark.span()), (Some(10), 0));
    }

    #[test]
    fn nothing_is_done_twice_or_taken_twice() {
        let mut watermark = Watermark::default();
        let ticket = watermark.take(1, 1).unwrap();
        assert!(watermark.take(1, 1).is_none());
        assert!(watermark.done(ticket));
        assert!(!watermark.done(ticket));
        assert!(watermark.take(1, 1).is_none());
        assert!(watermark.take(0, 1).is_none());
        assert!(watermark.take(2, 1).is_some());
    }

    #[test]
    fn who_shares_an_offset_is_waited_for() {
        let mut watermark = Watermark::default();
        let ticket = watermark.take(0, 2).unwrap();
        watermark.done(ticket);
        assert_eq!(watermark.unsent(), Some(0));
        watermark.done(ticket);
        assert_eq!(watermark.unsent(), Some(1));
        watermark.take(1, 0);
        assert_eq!(watermark.unsent(), Some(2), "what concerns nobody is done");
    }

    #[test]
    fn what_was_sent_is_not_sent_again_unless_it_failed() {
        let mut watermark = Watermark::default();
        watermark.take(0, 0);
        watermark.note_sent(1);
        assert_eq!(watermark.unsent(), None);
        watermark.forget_sent();
        assert_eq!(watermark.unsent(), Some(1));
    }

    /// What may happen to a partition.
    #[derive(Clone, Debug)]
    enum Step {
        /// A record comes, so far behind the last one, for so many subscriptions.
        Take {
            gap: i64,
            shares: u32,
        },
        /// One of the open shares is done: which, of all that are open.
        Done(prop::sample::Index),
        /// One fails and is handled again: it stays open.
        Fail(prop::sample::Index),
        Commit,
        CommitFails,
        /// The partition goes away and comes back, from what was committed.
        Rebalance,
    }

    /// The naive model: each record of the log with its open shares, looked through each time.
    #[derive(Default)]
    struct Model {
        records: Vec<(i64, u32)>,
    }

    impl Model {
        fn position(&self) -> Option<i64> {
            let open = self.records.iter().find(|(_, open)| *open > 0);
            let last = self.records.last().map(|(offset, _)| offset + 1);
            open.map(|(offset, _)| *offset).or(last)
        }

        fn open(&self) -> Vec<usize> {
            let open = self.records.iter().enumerate();
            let open = open.filter(|(_, (_, open))| *open > 0);
            open.map(|(at, _)| at).collect()
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..4_i64, 0..3_u32).prop_map(|(gap, shares)| Step::Take { gap, shares }),
            6 => any::<prop::sample::Index>().prop_map(Step::Done),
            1 => any::<prop::sample::Index>().prop_map(Step::Fail),
            1 => Just(Step::Commit),
            1 => Just(Step::CommitFails),
            1 => Just(Step::Rebalance),
        ]
    }

    proptest! {
        #[test]
        fn it_is_where_a_naive_model_is(steps in prop::collection::vec(step(), 0..120)) {
            let (mut watermark, mut model) = (Watermark::default(), Model::default());
            let (mut tickets, mut end, mut committed) = (Vec::new(), 0_i64, 0_i64);
            for step in steps {
                match step {
                    Step::Take { gap, shares } => {
                        end += gap;
                        tickets.push(watermark.take(end, shares).unwrap());
                        model.records.push((end, shares));
                    }
                    Step::Done(which) => {
                        let open = model.open();
                        if !open.is_empty() {
                            let at = *which.get(&open);
                            prop_assert!(watermark.done(tickets[at]));
                            model.records[at].1 -= 1;
                        }
                    }
                    Step::Fail(which) => {
                        let open = model.open();
                        if !open.is_empty() {
                            let offset = model.records[*which.get(&open)].0;
                            prop_assert!(watermark.take(offset, 1).is_none(), "it is here already");
                        }
                    }
                    Step::Commit => {
                        if let Some(position) = watermark.unsent() {
                            prop_assert!(position >= committed, "a commit went back");
                            committed = position;
                            watermark.note_sent(position);
                        }
                    }
                    Step::CommitFails => watermark.forget_sent(),
                    Step::Rebalance => {
                        let stale = tickets.pop();
                        watermark = Watermark::default();
                        model = Model::default();
                        tickets.clear();
                        // Read again from there: whatever was not committed comes again.
                        end = committed - 1;
                        if let Some(stale) = stale {
                            prop_assert!(!watermark.done(stale));
                        }
                    }
                }
                let told = watermark.unsent().or(watermark.sent);
                prop_assert_eq!(told, model.position());
                let open = model.records.iter().position(|(_, open)| *open > 0);
                let span = open.map_or(0, |open| model.records.len() - open);
                prop_assert_eq!(watermark.span(), span);
            }
        }
    }
}
