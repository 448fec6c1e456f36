//! The app: handlers, adapters and configuration, made into a running service.

mod connect;
mod description;
mod health;
mod plan;
mod running;
#[cfg(feature = "signals")]
mod signals;
mod start;

use std::fmt;
use std::sync::Arc;

pub use description::{DescribedSubscription, Description};
pub use health::{HandlerHealth, Health, TransportHealth};
pub use running::RunningApp;

use crate::clock::{Clock, TokioClock};
use crate::config::Config;
use crate::extract::StateMap;
use crate::layer::Layer;
use crate::router::{Controller, Router};
use crate::testing::Recorder;
use crate::transport::Adapter;
use crate::{Client, Error, memory};

/// A service: its handlers, and the adapters that may carry its messages. Which one does is configuration.
///
/// ```
/// use anywire::{App, Result, Router};
///
/// async fn welcome(name: String) -> Result<()> {
///     println!("welcome, {name}");
///     Ok(())
/// }
///
/// fn app() -> Result<App> {
///     Ok(App::new("greeter").router(Router::new().on_event("user.created", welcome)))
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let running = app()?.start().await?; // or `.run().await`, until SIGTERM or Ctrl-C
/// running.client().emit("user.created", "Ada").await?;
/// running.shutdown().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "an app does nothing until `run` or `start`"]
pub struct App {
    name: String,
    adapters: Vec<Arc<dyn Adapter>>,
    router: Router,
    layers: Vec<Arc<dyn Layer>>,
    states: StateMap,
    config: Option<Config>,
    forced: Vec<String>,
    clock: Arc<dyn Clock>,
    test: Option<TestKit>,
}

/// What the testing kit puts into an app.
pub(crate) struct TestKit {
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) waiting: Arc<std::sync::atomic::AtomicUsize>,
}

impl App {
    /// An app without handlers. Its name is the default group, so all instances of a service share it.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            adapters: Vec::new(),
            router: Router::new(),
            layers: Vec::new(),
            states: StateMap::default(),
            config: None,
            forced: Vec::new(),
            clock: Arc::new(TokioClock),
            test: None,
        }
    }

    /// Makes a wire available under its schemes. Memory always is.
    pub fn adapter(mut self, adapter: impl Adapter) -> Self {
        self.adapters.push(Arc::new(adapter));
        self
    }

    /// Mounts the handlers of a controller.
    pub fn controller(mut self, controller: impl Controller) -> Self {
        self.router = self.router.controller(controller);
        self
    }

    /// Mounts annotated functions: `.handlers(handlers![welcome])`.
    pub fn handlers(self, handlers: Router) -> Self {
        self.router(handlers)
    }

    /// Mounts a router.
    pub fn router(mut self, router: Router) -> Self {
        self.router = self.router.merge(router);
        self
    }

    /// Gives handlers a value, which they take as [`State<T>`](crate::State). One for each type.
    pub fn state<T: Clone + Send + Sync + 'static>(mut self, value: T) -> Self {
        self.states.insert(value);
        self
    }

    /// Wraps all handlers in a layer, outside of those of their routers. The first one declared is the outermost.
    pub fn layer(mut self, layer: impl Layer) -> Self {
        self.layers.push(Arc::new(layer));
        self
    }

    /// Uses this configuration instead of the process' own file and environment.
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// Adds a layer of configuration, as TOML, that nothing overrides.
    pub fn force(mut self, toml: impl Into<String>) -> Self {
        self.forced.push(toml.into());
        self
    }

    /// Forces the main transport's URL, whatever the configuration says.
    pub fn url(self, url: &str) -> Self {
        let quoted = toml::Value::from(url);
        self.force(format!("url = {quoted}"))
    }

    /// Runs the framework's timers on this clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The app's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks everything that can be checked without a connection: patterns, configuration, capabilities. For CI.
    ///
    /// ```
    /// use anywire::{App, Ignore, Param, Result, Router};
    ///
    /// async fn placed(_: Ignore, Param(_region): Param<String>) -> Result<()> {
    ///     Ok(())
    /// }
    /// let app = App::new("shop").router(Router::new().on_event("shop.placed", placed));
    /// assert!(app.check().unwrap_err().to_string().contains("captures"));
    /// ```
    ///
    /// # Errors
    /// The first thing that would stop the start.
    pub fn check(&self) -> Result<(), Error> {
        self.plan().map(drop)
    }

    /// Handlers, subscriptions, and the broker's objects and permissions that they need, without connecting.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn describe(&self) -> Result<Description, Error> {
        Ok(Description::new(&self.plan()?))
    }

    /// Starts the app and returns when all its handlers are ready. Beside another server, or in a test.
    ///
    /// # Errors
    /// `Config` and `Unsupported` for what [`check`](Self::check) finds, `Denied` where a broker refuses us. A broker that
    /// cannot be reached is waited for, as long as `connect_timeout` says.
    ///
    /// # Cancel safety
    /// Dropping the future stops what was started.
    pub async fn start(self) -> Result<RunningApp, Error> {
        start::start(self).await
    }

    /// Starts the app and runs it until SIGTERM or Ctrl-C, then lets it drain. A second signal exits at once.
    ///
    /// # Errors
    /// As [`start`](Self::start), and where the shutdown failed.
    #[cfg(feature = "signals")]
    pub async fn run(self) -> Result<(), Error> {
        use futures::future::{Either, select};
        // Listening comes first: from the first handler on, a signal drains.
        let mut signals = signals::Signals::listen()?;
        let started = {
            let signal = std::pin::pin!(signals.next());
            match select(std::pin::pin!(self.start()), signal).await {
                Either::Left((started, _)) => started?,
                Either::Right((name, _)) => {
                    tracing::info!(signal = name, "stopped before the start was complete");
                    return Ok(());
                }
            }
        };
        started.run_until(signals).await
    }

    pub(crate) async fn connect(self) -> Result<Client, Error> {
        let plan = self.plan_sender()?;
        Ok(Client::new(connect::client_core(&plan).await?))
    }

    pub(crate) fn for_test(
        mut self,
        kit: TestKit,
        adapter: memory::MemoryAdapter,
        config: Config,
    ) -> Self {
        self.adapters
            .retain(|adapter| !adapter.schemes().contains(&memory::SCHEME));
        self.forced.clear();
        self.test = Some(kit);
        self.adapter(adapter).config(config)
    }

    pub(crate) fn take_config(&self) -> Result<Config, Error> {
        let mut config = match &self.config {
            Some(config) => config.clone(),
            None => Config::load()?,
        };
        for text in &self.forced {
            config = config.forced(text)?;
        }
        Ok(config)
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("name", &self.name)
            .field("adapters", &self.adapters)
            .field("router", &self.router)
            .finish_non_exhaustive()
    }
}
