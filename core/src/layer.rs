//! Layers: middleware around handlers.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::Failure;
use crate::context::Context;
use crate::handler::{Erased, Output, Rejection, no_future};

/// Middleware on the receiving side: sees each delivery on its way in and its outcome on the way out.
///
/// Layers run in the order of their declaration on the way in and in the reverse order on the way out; an app's are
/// outside of a router's, and those outside of a route's. A layer is called once for each attempt.
///
/// ```
/// use anywire::{Context, Failure, Layer, Next, Output};
///
/// struct Timed;
///
/// #[anywire::async_trait]
/// impl Layer for Timed {
///     async fn call(&self, context: Context, next: Next) -> Result<Output, Failure> {
///         let start = std::time::Instant::now();
///         let result = next.run(context).await;
///         println!("{:?}", start.elapsed());
///         result
///     }
/// }
/// ```
#[async_trait]
pub trait Layer: Send + Sync + 'static {
    /// Handles a delivery, by calling `next` or by not doing so.
    ///
    /// # Errors
    /// What the delivery fails with.
    async fn call(&self, context: Context, next: Next) -> Result<Output, Failure>;
}

/// What is inside of a layer: further layers, and then the handler.
#[derive(Clone)]
pub struct Next {
    layers: Arc<[Arc<dyn Layer>]>,
    at: usize,
    handler: Erased,
}

impl Next {
    pub(crate) fn new(layers: Arc<[Arc<dyn Layer>]>, handler: Erased) -> Self {
        Self {
            layers,
            at: 0,
            handler,
        }
    }

    /// Runs the rest.
    ///
    /// # Errors
    /// What the handler, or a layer inside, fails with. An undecodable payload is a permanent failure with the code
    /// `invalid_payload`.
    pub async fn run(mut self, context: Context) -> Result<Output, Failure> {
        let Some(layer) = self.layers.get(self.at).cloned() else {
            let mut future = no_future();
            (self.handler)(&context, &mut future).map_err(rejected)?;
            return future.await;
        };
        self.at += 1;
        layer.call(context, self).await
    }
}

impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next")
            .field("layers", &(self.layers.len() - self.at))
            .finish_non_exhaustive()
    }
}

/// What a rejection is to a layer, and to the caller of a call.
pub(crate) fn rejected(rejection: Rejection) -> Failure {
    match rejection {
        Rejection::Undecodable(error) => Failure::undecodable(error),
        Rejection::Failed(failure) => failure,
    }
}

#[cfg(feature = "tower")]
pub use bridge::{Dispatch, DispatchError, Dispatcher, TowerLayer};

#[cfg(feature = "tower")]
mod bridge {
    use std::future::poll_fn;
    use std::task::{Context as TaskContext, Poll};

    use futures::future::BoxFuture;
    use parking_lot::Mutex;
    use tower_service::Service;

    use super::{Context, Failure, Layer, Next, Output, async_trait, fmt};

    type BoxError = Box<dyn std::error::Error + Send + Sync>;

    /// Lets a `tower` layer wrap handlers: timeouts, limits, load shedding and whatever else speaks `Service`.
    ///
    /// The service is made once and cloned for each delivery, so that its state is shared. It must call its inner
    /// service at most once for each request.
    pub struct TowerLayer<S>(Mutex<S>);

    impl<S> TowerLayer<S> {
        /// Wraps handlers in `layer`.
        pub fn new<L: tower_layer::Layer<Dispatcher, Service = S>>(layer: L) -> Self {
            Self(Mutex::new(layer.layer(Dispatcher)))
        }
    }

    impl<S> fmt::Debug for TowerLayer<S> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("TowerLayer")
        }
    }

    #[async_trait]
    impl<S> Layer for TowerLayer<S>
    where
        S: Service<Dispatch, Response = Output, Future: Send, Error: Into<BoxError>>
            + Clone
            + Send
            + 'static,
    {
        async fn call(&self, context: Context, next: Next) -> Result<Output, Failure> {
            let mut service = self.0.lock().clone();
            let answer = async {
                poll_fn(|cx| service.poll_ready(cx)).await?;
                service.call(Dispatch { context, next }).await
            };
            answer
                .await
                .map_err(|error| match error.into().downcast::<DispatchError>() {
                    Ok(failed) => failed.0,
                    Err(error) => Failure::transient(error.to_string()),
                })
        }
    }

    /// A delivery on its way through a `tower` service.
    #[derive(Debug)]
    pub struct Dispatch {
        /// The delivery.
        pub context: Context,
        next: Next,
    }

    /// The innermost service of a [`TowerLayer`].
    #[derive(Clone, Copy, Debug)]
    pub struct Dispatcher;

    impl Service<Dispatch> for Dispatcher {
        type Response = Output;
        type Error = DispatchError;
        type Future = BoxFuture<'static, Result<Output, DispatchError>>;

        fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), DispatchError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, dispatch: Dispatch) -> Self::Future {
            Box::pin(async move {
                dispatch
                    .next
                    .run(dispatch.context)
                    .await
                    .map_err(DispatchError)
            })
        }
    }

    /// A handler's failure, as the standard error that `tower` wants.
    #[derive(Debug)]
    pub struct DispatchError(Failure);

    impl fmt::Display for DispatchError {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    impl std::error::Error for DispatchError {}
}
