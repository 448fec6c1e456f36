//! Handlers of streaming calls, and what tells of their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anywire::{HandlerError, Inbound, Result, Router};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};

pub fn count(to: u64) -> impl Stream<Item = Result<u64>> {
    stream::iter((1..=to).map(Ok))
}

pub async fn sum(mut numbers: Inbound<u64>) -> Result<u64> {
    let mut sum = 0;
    while let Some(number) = numbers.next().await {
        sum += number?;
    }
    Ok(sum)
}

pub fn double(numbers: Inbound<u64>) -> impl Stream<Item = Result<u64>> {
    numbers.map(|number| Ok(number? * 2))
}

#[derive(Debug, PartialEq, Serialize, Deserialize, HandlerError)]
pub enum ShopError {
    #[handler_error(message = "no order {order}")]
    Unknown { order: u64 },
    #[handler_error(message = "it was lost")]
    Lost,
}

pub async fn follow(
    order: u64,
) -> Result<impl Stream<Item = Result<String, ShopError>>, ShopError> {
    if order == 0 {
        return Err(ShopError::Unknown { order });
    }
    let steps = ["packed", "sent"].map(|step| Ok(step.to_owned()));
    Ok(stream::iter(steps).chain(stream::iter([Err(ShopError::Lost)])))
}

pub fn router() -> Router {
    Router::new()
        .on_stream("math.count", count)
        .on_stream("math.sum", sum)
        .on_stream("math.double", double)
        .on_stream("shop.follow", follow)
}

/// Tells when it is dropped.
pub struct Ended(pub Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts the handlers that run.
#[derive(Clone, Default)]
pub struct Running(Arc<AtomicUsize>);

/// One of them.
pub struct Run(Running);

impl Running {
    pub fn begin(&self) -> Run {
        self.0.fetch_add(1, Ordering::Relaxed);
        Run(self.clone())
    }

    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A handler whose stream never has an item.
    pub fn waiting(
        &self,
    ) -> impl Fn(u64) -> BoxStream<'static, Result<u64>> + Send + Sync + 'static {
        let running = self.clone();
        move |_| {
            let run = running.begin();
            stream::pending().map(move |item| (&run, item).1).boxed()
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
