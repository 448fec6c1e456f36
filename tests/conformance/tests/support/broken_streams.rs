//! Streams with a fault.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use anywire::pattern::request_reply::CallSpec;
use anywire::pattern::streaming::{
    Door, Duplex, IncomingStreams, Item, ItemSink, ItemSource, Opening, ReceivedStream, Streamer,
};
use anywire::pattern::{Batch, PullResult};
use anywire::{Error, RemoteError};
use async_trait::async_trait;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::broken::Fault;

/// The item that is lost, and the one before which a stream ends.
const UNLUCKY: usize = 10;

/// What was dropped and is kept nevertheless.
type Attic = Arc<Mutex<Vec<Box<dyn ItemSource>>>>;

/// A role whose streams have a fault.
#[derive(Debug)]
pub(crate) struct BrokenStreamer {
    inner: Arc<dyn Streamer>,
    fault: Fault,
    attic: Attic,
}

impl BrokenStreamer {
    pub(crate) fn new(inner: Arc<dyn Streamer>, fault: Fault) -> Self {
        Self {
            inner,
            fault,
            attic: Attic::default(),
        }
    }
}

#[async_trait]
impl Streamer for BrokenStreamer {
    fn open(&self, opening: Opening) -> BoxFuture<'static, Result<Duplex, Error>> {
        let (opened, fault) = (self.inner.open(opening), self.fault);
        let attic = Arc::clone(&self.attic);
        Box::pin(async move { Ok(broken(opened.await?, fault, &attic)) })
    }

    async fn accept(&self, specs: &[CallSpec]) -> Vec<Result<Box<dyn IncomingStreams>, Error>> {
        let accepted = self.inner.accept(specs).await;
        let wrapped = accepted.into_iter().map(|incoming| {
            Ok(Box::new(BrokenStreams {
                inner: incoming?,
                fault: self.fault,
                attic: Arc::clone(&self.attic),
                pulled: Batch::new(1),
            }) as Box<dyn IncomingStreams>)
        });
        wrapped.collect()
    }
}

#[derive(Debug)]
struct BrokenStreams {
    inner: Box<dyn IncomingStreams>,
    fault: Fault,
    attic: Attic,
    pulled: Batch<ReceivedStream>,
}

#[async_trait]
impl IncomingStreams for BrokenStreams {
    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Batch<ReceivedStream>,
    ) -> Poll<PullResult> {
        self.pulled.set_room(batch.room());
        let pulled = self.inner.poll_batch(cx, &mut self.pulled);
        for mut stream in self.pulled.drain() {
            stream.door = Box::new(BrokenDoor {
                inner: stream.door,
                fault: self.fault,
                attic: Arc::clone(&self.attic),
            });
            batch.push(stream);
        }
        pulled
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.inner.stop().await
    }
}

#[derive(Debug)]
struct BrokenDoor {
    inner: Box<dyn Door>,
    fault: Fault,
    attic: Attic,
}

#[async_trait]
impl Door for BrokenDoor {
    async fn accept(self: Box<Self>) -> Result<Duplex, Error> {
        Ok(broken(self.inner.accept().await?, self.fault, &self.attic))
    }

    async fn refuse(self: Box<Self>, error: RemoteError) -> Result<(), Error> {
        self.inner.refuse(error).await
    }
}

fn broken(duplex: Duplex, fault: Fault, attic: &Attic) -> Duplex {
    Duplex {
        sink: match fault {
            Fault::IgnoresCredit => Box::new(Flood {
                inner: duplex.sink,
                waiting: VecDeque::new(),
            }),
            _ => duplex.sink,
        },
        source: Box::new(BrokenSource {
            inner: Some(duplex.source),
            fault,
            read: 0,
            attic: Arc::clone(attic),
        }),
    }
}

#[derive(Debug)]
struct BrokenSource {
    inner: Option<Box<dyn ItemSource>>,
    fault: Fault,
    read: usize,
    attic: Attic,
}

impl ItemSource for BrokenSource {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, Error>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let mut next = inner.poll_next(cx);
        if let Poll::Ready(Some(Ok(_))) = next {
            self.read += 1;
            match self.fault {
                Fault::DropsAnItem if self.read == UNLUCKY => next = inner.poll_next(cx),
                Fault::EndsEarly if self.read == UNLUCKY => next = Poll::Ready(None),
                _ => {}
            }
        }
        match next {
            Poll::Ready(Some(Err(_))) if self.fault == Fault::EndsWhereItBreaks => {
                Poll::Ready(None)
            }
            next => next,
        }
    }
}

impl Drop for BrokenSource {
    fn drop(&mut self) {
        if self.fault == Fault::LosesTheCancel {
            self.attic.lock().extend(self.inner.take());
        }
    }
}

/// Takes whatever it is given.
#[derive(Debug)]
struct Flood {
    inner: Box<dyn ItemSink>,
    waiting: VecDeque<Item>,
}

impl Flood {
    fn pour(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while !self.waiting.is_empty() {
            std::task::ready!(self.inner.poll_ready(cx))?;
            if let Some(item) = self.waiting.pop_front() {
                self.inner.start_send(item)?;
            }
        }
        self.inner.poll_flush(cx)
    }
}

impl ItemSink for Flood {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let _ = self.pour(cx)?;
        Poll::Ready(Ok(()))
    }

    fn start_send(&mut self, item: Item) -> Result<(), Error> {
        self.waiting.push_back(item);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let _ = self.pour(cx)?;
        Poll::Ready(Ok(()))
    }

    fn poll_close(
        &mut self,
        cx: &mut Context<'_>,
        end: Option<&RemoteError>,
    ) -> Poll<Result<(), Error>> {
        std::task::ready!(self.pour(cx))?;
        self.inner.poll_close(cx, end)
    }
}
