//! One subscriber's or server's part in the work of a desk, shared by those who pull and those who answer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use anywire::Error;
use anywire::pattern::Tag;
use parking_lot::Mutex;

use crate::desk::{Answer, Desk, Purpose, Taken};
use crate::pipe::Cutter;
use crate::server::Hub;
use crate::streams::Openings;
use crate::transport::Connection;

/// The part.
pub(crate) struct Part {
    connection: Arc<Connection>,
    hub: Arc<Hub>,
    desk: Arc<Desk>,
    number: usize,
    window: usize,
    is_stopped: AtomicBool,
    has_left: AtomicBool,
    /// Ends the streams that were accepted here.
    cutters: Mutex<Vec<Cutter>>,
    tie: usize,
}

impl Part {
    /// Opens parts: all of them before anybody comes to our door, who would be told that nobody listens.
    pub(crate) async fn open(
        connection: &Arc<Connection>,
        wanted: impl Iterator<Item = (Purpose, usize)>,
    ) -> Vec<Result<Arc<Self>, Error>> {
        let parts = wanted.map(|(purpose, window)| Self::place(connection, purpose, window));
        let parts: Vec<_> = parts.collect();
        let mut opened = Vec::with_capacity(parts.len());
        for part in parts {
            opened.push(match part {
                Ok(part) => connection.listen().await.map(|()| part),
                Err(error) => Err(error),
            });
        }
        opened
    }

    fn place(
        connection: &Arc<Connection>,
        purpose: Purpose,
        window: usize,
    ) -> Result<Arc<Self>, Error> {
        connection.check_open()?;
        let hub = Arc::clone(connection.home()?);
        let bound = match purpose.is_fleeting() {
            true => connection.config.buffer,
            false => connection.config.backlog,
        };
        let (desk, number) = hub.board.open(purpose, bound, connection.clock.now())?;
        let part = Arc::new_cyclic(|this| Self {
            connection: Arc::clone(connection),
            hub,
            desk,
            number,
            window,
            is_stopped: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
            cutters: Mutex::default(),
            tie: connection.tie(std::sync::Weak::clone(this)),
        });
        // A close that came between the check and the tie ended everybody but us.
        connection.check_open()?;
        Ok(part)
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.desk
    }

    pub(crate) fn openings(&self) -> &Openings {
        &self.hub.board.openings
    }

    pub(crate) fn max_payload(&self) -> usize {
        self.connection.config.max_payload
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// At most `room` requests; `None` once it was stopped.
    pub(crate) fn poll_take(&self, cx: &Context<'_>, room: usize) -> Poll<Option<Vec<Taken>>> {
        self.desk.poll_take(self.number, cx, room, self.window)
    }

    pub(crate) fn answer(&self, tag: Tag, answer: Answer) -> Result<(), Error> {
        self.desk.answer(self.number, tag, answer)
    }

    pub(crate) fn give_back(&self, tag: Tag) -> Result<(), Error> {
        self.desk.give_back(self.number, tag)
    }

    /// A stream that was accepted ends with us.
    pub(crate) fn keep(&self, cutter: Cutter) {
        let mut cutters = self.cutters.lock();
        if cutters.len() == cutters.capacity() {
            cutters.retain(|cutter| !cutter.is_over());
        }
        cutters.push(cutter);
    }

    /// Takes no more requests. Those that it holds may still be answered.
    pub(crate) fn stop(&self) {
        if !self.is_stopped.swap(true, Ordering::AcqRel) {
            self.hub.board.stop(&self.desk, self.number);
        }
    }

    /// Ends it: what it holds goes back.
    pub(crate) fn end(&self) {
        self.stop();
        // Another may have our number at the desk by now.
        if !self.has_left.swap(true, Ordering::AcqRel) {
            let now = self.connection.clock.now();
            self.hub.board.leave(&self.desk, self.number, now);
        }
        for cutter in std::mem::take(&mut *self.cutters.lock()) {
            cutter.cut();
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.connection.untie(self.tie);
        self.end();
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("desk", &self.desk)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}
