//! Streaming calls as tests use them.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use anywire::pattern::request_reply::CallSpec;
use anywire::pattern::streaming::{
    Duplex, IncomingStreams, Item, ItemSink, ItemSource, Opening, ReceivedStream, Streamer,
    pull_streams,
};
use anywire::pattern::{Batch, Pulled};
use anywire::{Error, RemoteError};
use bytes::Bytes;

use crate::Test;

/// How long something of a stream may take where nothing is broken.
const PATIENCE: Duration = Duration::from_secs(5);

/// The role of a client that opens and accepts streaming calls.
#[derive(Clone, Debug)]
pub struct Streams {
    test: Test,
    streamer: Arc<dyn Streamer>,
}

impl Streams {
    pub(crate) fn new(test: Test, streamer: Arc<dyn Streamer>) -> Self {
        Self { test, streamer }
    }

    /// Opens a streaming call: with a request, or with items to be sent.
    ///
    /// # Errors
    /// What the adapter answers.
    pub async fn open(&self, tail: &str, request: &str, sends: bool) -> Result<Talk, Error> {
        let request = if sends { "" } else { request };
        let opening = Opening {
            message: self.test.message(tail, request.to_owned()),
            deadline: self.test.clock().now() + PATIENCE,
            until: None,
            sends,
        };
        let opening = self.streamer.open(opening);
        let opened = tokio::time::timeout(PATIENCE + Duration::from_secs(1), opening).await;
        let opened = opened.expect("an opening ends by its deadline");
        opened.map(Talk::new)
    }

    /// Accepts streaming calls, whose callers send items or do not.
    pub async fn accept(&self, tail: &str, items: bool) -> Accepting {
        let spec = CallSpec::new(self.test.pattern(tail)).with_items(items);
        let mut accepted = self.streamer.accept(&[spec]).await;
        let incoming = accepted.pop().expect("one result");
        Accepting {
            incoming: incoming.expect("the pattern is served"),
            batch: Batch::new(1),
        }
    }
}

/// A pattern whose streaming calls are accepted.
#[derive(Debug)]
pub struct Accepting {
    incoming: Box<dyn IncomingStreams>,
    batch: Batch<ReceivedStream>,
}

impl Accepting {
    /// The next streaming call; `None` when accepting has ended.
    pub async fn next(&mut self) -> Option<ReceivedStream> {
        loop {
            match pull_streams(self.incoming.as_mut(), &mut self.batch).await {
                Err(error) if error.is_retryable() => {}
                Ok(Pulled::Some) => return self.batch.drain().next(),
                Ok(Pulled::End) | Err(_) => return None,
            }
        }
    }

    /// Accepts the next streaming call.
    pub async fn talk(&mut self) -> Talk {
        let received = self.next().await.expect("a streaming call arrives");
        let accepted = received.door.accept().await;
        Talk::new(accepted.expect("it can be accepted"))
    }

    /// Stops accepting.
    pub async fn stop(&mut self) {
        self.incoming.stop().await.expect("accepting stops");
    }
}

/// One side of a stream.
#[derive(Debug)]
pub struct Talk {
    /// What it sends.
    pub sink: Option<Box<dyn ItemSink>>,
    /// What it reads.
    pub source: Option<Box<dyn ItemSource>>,
}

impl Talk {
    fn new(duplex: Duplex) -> Self {
        Self {
            sink: Some(duplex.sink),
            source: Some(duplex.source),
        }
    }

    /// Sends an item.
    ///
    /// # Errors
    /// What the adapter answers.
    pub async fn send(&mut self, item: impl Into<Bytes>) -> Result<(), Error> {
        let sink = self.sink.as_mut().expect("the sink is there");
        poll_fn(|cx| sink.poll_ready(cx)).await?;
        sink.start_send(Item {
            payload: item.into(),
            content_type: None,
        })?;
        poll_fn(|cx| sink.poll_flush(cx)).await
    }

    /// Ends what it sends.
    ///
    /// # Errors
    /// What the adapter answers.
    pub async fn finish(&mut self, end: Option<RemoteError>) -> Result<(), Error> {
        let sink = self.sink.as_mut().expect("the sink is there");
        poll_fn(|cx| sink.poll_close(cx, end.as_ref())).await
    }

    /// Reads an item.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        let source = self.source.as_mut().expect("the source is there");
        let item = poll_fn(|cx| source.poll_next(cx)).await?;
        Some(item.map(|item| item.payload))
    }

    /// Reads until the end, which must be a good one.
    pub async fn rest(&mut self) -> Vec<Bytes> {
        let mut items = Vec::new();
        while let Some(item) = self.next().await {
            items.push(item.expect("an item, or the end"));
        }
        items
    }
}
