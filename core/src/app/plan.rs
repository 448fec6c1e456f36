//! What an app would start: everything resolved and checked, nothing connected.

use std::collections::HashMap;
use std::sync::Arc;

use super::App;
use crate::config::{self, AfterFailure, Config, TransportConfig};
use crate::handler::Erased;
use crate::layer::Layer;
use crate::memory;
use crate::pattern::publish_subscribe::{Guarantee, Spec, SubscriptionId};
use crate::pattern::request_reply::CallSpec;
use crate::router::{HandlerInfo, HandlerKind, Route};
use crate::transport::Adapter;
use crate::{Capabilities, Error, ErrorKind, Order, OrderScope, Support};

/// How many deliveries a handler may hold for each that may run.
const HELD_PER_SLOT: usize = 4;

/// A start, resolved.
pub(crate) struct Plan {
    pub(crate) app: String,
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn crate::clock::Clock>,
    pub(crate) wires: Vec<PlannedWire>,
    pub(crate) handlers: Vec<PlannedHandler>,
    pub(crate) recorder: Option<Arc<crate::testing::Recorder>>,
}

/// A transport that is used.
pub(crate) struct PlannedWire {
    pub(crate) adapter: Arc<dyn Adapter>,
    pub(crate) config: TransportConfig,
    pub(crate) capabilities: Capabilities,
}

/// A handler with its settings.
pub(crate) struct PlannedHandler {
    pub(crate) info: Arc<HandlerInfo>,
    pub(crate) wire: usize,
    pub(crate) settings: Settings,
    pub(crate) erased: Erased,
    pub(crate) layers: Vec<Arc<dyn Layer>>,
    /// Whether it takes the items of its caller.
    pub(crate) takes_items: bool,
}

/// What a handler is told.
pub(crate) enum Settings {
    Event(config::Handler),
    Call(config::CallHandler),
    Stream(config::CallHandler),
}

impl App {
    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        let mut plan = self.plan_sender()?;
        let mut names: HashMap<&str, &Route> = HashMap::new();
        for route in &self.router.routes {
            if let Some(other) = names.insert(&route.name, route) {
                return Err(duplicate_name(route, other));
            }
            let handler = self.plan_handler(&mut plan, route)?;
            plan.handlers.push(handler);
        }
        let names: Vec<&str> = names.into_keys().collect();
        plan.config.unknown_handlers(&names)?;
        check_identities(&plan)?;
        check_kinds(&plan)?;
        Ok(plan)
    }

    /// The plan of a program that only sends.
    pub(crate) fn plan_sender(&self) -> Result<Plan, Error> {
        if self.name.is_empty() || self.name.len() > 64 {
            return Err(Error::config(
                "an app's name has 1 to 64 bytes; it is the default group",
            ));
        }
        let config = self.take_config()?;
        let mut plan = Plan {
            app: self.name.clone(),
            clock: Arc::clone(&self.clock),
            wires: Vec::new(),
            handlers: Vec::new(),
            recorder: self.test.as_ref().map(|kit| Arc::clone(&kit.recorder)),
            config,
        };
        let mut names = vec![
            plan.config.events_transport().to_owned(),
            plan.config.calls_transport().to_owned(),
        ];
        names.extend(
            plan.config
                .rules()
                .iter()
                .filter_map(|rule| rule.transport.clone()),
        );
        for name in names {
            self.plan_wire(&mut plan, &name)?;
        }
        Ok(plan)
    }

    fn plan_wire(&self, plan: &mut Plan, name: &str) -> Result<usize, Error> {
        if let Some(index) = plan.wires.iter().position(|wire| wire.config.name == name) {
            return Ok(index);
        }
        let mut adapters = self.adapters.clone();
        if !adapters
            .iter()
            .any(|adapter| adapter.schemes().contains(&memory::SCHEME))
        {
            adapters.push(Arc::new(memory::adapter()));
        }
        let schemes: Vec<&[&str]> = adapters
            .iter()
            .map(|adapter| adapter.schemes() as _)
            .collect();
        let config = plan.config.resolve(name, &plan.app, &schemes)?;
        let adapter = adapters
            .iter()
            .find(|adapter| adapter.schemes().contains(&config.scheme.as_str()));
        let adapter =
            adapter.ok_or_else(|| config::unknown_scheme(&config.scheme, &schemes.concat()))?;
        adapter.check(&config)?;
        let capabilities = adapter.capabilities(&config);
        plan.wires.push(PlannedWire {
            adapter: Arc::clone(adapter),
            config,
            capabilities,
        });
        Ok(plan.wires.len() - 1)
    }

    fn plan_handler(&self, plan: &mut Plan, route: &Route) -> Result<PlannedHandler, Error> {
        let named = |error: Error| error.with_context("handler", &route.name);
        let pattern = match &route.pattern {
            Ok(pattern) => pattern.clone(),
            Err(error) => return Err(named(Error::new(error.kind(), error.to_string()))),
        };
        if let Some(missing) = route.needs.missing_captures(&pattern) {
            return Err(Error::config(format!("handler `{}` {missing}", route.name)));
        }
        if let Some(missing) = route.needs.missing_state(&self.states) {
            let remedy = format!(
                "give it to `App::state` before the start, or drop the argument `State<{missing}>`"
            );
            return Err(Error::config(format!(
                "handler `{}` takes a state that the app lacks; {remedy}",
                route.name
            )));
        }
        let settings = match route.kind {
            HandlerKind::Event => {
                let event = plan
                    .config
                    .handler(&route.name, &pattern, &route.settings, &plan.app);
                Settings::Event(event.map_err(named)?)
            }
            HandlerKind::Call => Settings::Call(
                plan.config
                    .call(&route.name, &pattern, &route.settings)
                    .map_err(named)?,
            ),
            HandlerKind::Stream => Settings::Stream(
                plan.config
                    .stream(&route.name, &pattern, &route.settings)
                    .map_err(named)?,
            ),
        };
        let (transport, group) = match &settings {
            Settings::Event(event) => (event.transport.clone(), event.group.clone()),
            Settings::Call(call) | Settings::Stream(call) => (call.transport.clone(), None),
        };
        let wire = self.plan_wire(plan, &transport).map_err(named)?;
        let info = HandlerInfo {
            name: route.name.clone(),
            kind: route.kind,
            pattern,
            group,
            doc: route.doc.clone(),
            payload_type: route.payload_type,
            reply_type: route.reply_type,
            error_type: route.error_type,
            transport,
        };
        let layers = self.layers.iter().chain(&route.layers).cloned().collect();
        let erased = Arc::clone(&route.erased);
        let handler = PlannedHandler {
            info: Arc::new(info),
            wire,
            settings,
            erased,
            layers,
            takes_items: route.takes_items,
        };
        check_capabilities(&handler, &plan.wires[wire])?;
        Ok(handler)
    }
}

impl PlannedHandler {
    pub(crate) fn event(&self) -> Option<&config::Handler> {
        match &self.settings {
            Settings::Event(event) => Some(event),
            Settings::Call(_) | Settings::Stream(_) => None,
        }
    }

    pub(crate) fn concurrency(&self) -> usize {
        match &self.settings {
            Settings::Event(event) => event.concurrency,
            Settings::Call(call) | Settings::Stream(call) => call.concurrency,
        }
    }

    /// The most deliveries it may hold.
    pub(crate) fn window(&self) -> usize {
        self.concurrency().saturating_mul(HELD_PER_SLOT)
    }

    pub(crate) fn subscription(&self) -> SubscriptionId {
        SubscriptionId {
            group: self.info.group.as_deref().map(Into::into),
            pattern: self.info.pattern.clone(),
        }
    }

    /// What its subscription asks of the wire; `None` for a call.
    pub(crate) fn spec(&self) -> Option<Spec> {
        let event = self.event()?;
        let spec = Spec::new(self.subscription())
            .with_guarantee(event.guarantee)
            .with_order(event.order)
            .with_start(event.start.clone())
            .with_window(self.window())
            .with_provision(event.provision)
            .with_retention(event.retention);
        Some(spec)
    }

    /// What its serving asks of the wire; `None` for an event.
    pub(crate) fn call_spec(&self) -> Option<CallSpec> {
        let is_call = self.event().is_none();
        is_call.then(|| {
            CallSpec::new(self.info.pattern.clone())
                .with_window(self.window())
                .with_items(self.takes_items)
        })
    }
}

impl Plan {
    pub(crate) fn wire_named(&self, name: &str) -> usize {
        self.wires
            .iter()
            .position(|wire| wire.config.name == name)
            .unwrap_or(0)
    }
}

fn duplicate_name(route: &Route, other: &Route) -> Error {
    let pattern = |route: &Route| {
        route
            .pattern
            .as_ref()
            .map_or_else(|_| "?".to_owned(), ToString::to_string)
    };
    Error::config(format!(
        "two handlers are called `{}`, of `{}` and of `{}`; give one another name with `name = \"...\"`",
        route.name,
        pattern(other),
        pattern(route)
    ))
}

/// A need that the transport lacks stops the start: never a silent downgrade.
fn check_capabilities(handler: &PlannedHandler, wire: &PlannedWire) -> Result<(), Error> {
    let capabilities = &wire.capabilities;
    let lacks = |need: &str| {
        let (name, transport, scheme) =
            (&handler.info.name, &wire.config.name, &wire.config.scheme);
        let message = format!(
            "handler `{name}` needs {need}, which transport `{transport}` ({scheme}) does not have"
        );
        Err(Error::new(ErrorKind::Unsupported, message))
    };
    let missing = |support: Support| !support.is_supported();
    if !handler.info.pattern.is_literal() && missing(capabilities.wildcards) {
        return lacks(&format!("wildcards, for `{}`", handler.info.pattern));
    }
    let Some(event) = handler.event() else {
        return match handler.info.kind {
            HandlerKind::Stream if missing(capabilities.streams) => lacks("streaming calls"),
            HandlerKind::Call if missing(capabilities.calls) => lacks("calls"),
            _ => Ok(()),
        };
    };
    if event.group.is_some() && missing(capabilities.groups) {
        return lacks("groups");
    }
    let forgets = missing(capabilities.replay) || event.guarantee == Guarantee::AtMostOnce;
    if event.start.needs_history() && forgets {
        return lacks(&format!("a history, for `start = \"{}\"`", event.start));
    }
    if event.order == Order::KeyInGroup && capabilities.order < OrderScope::KeyInGroup {
        return lacks("order = \"key-in-group\"");
    }
    let later = event.retry.iter().any(|step| step.as_secs_f64() > 1.0);
    if later
        // At most once, nothing is retried.
        && event.guarantee == Guarantee::AtLeastOnce
        && event.group.is_some()
        && event.after_failure == AfterFailure::Pass
        && missing(capabilities.delay)
    {
        return lacks("retries later than 1s (set `retry` to steps of at most 1s)");
    }
    Ok(())
}

/// (group, pattern) names a subscription on the broker: two handlers of one would steal each other's messages.
fn check_identities(plan: &Plan) -> Result<(), Error> {
    let mut seen: HashMap<(usize, SubscriptionId), &str> = HashMap::new();
    for handler in plan
        .handlers
        .iter()
        .filter(|handler| handler.info.group.is_some())
    {
        let identity = (handler.wire, handler.subscription());
        if let Some(other) = seen.insert(identity, &handler.info.name) {
            return Err(Error::config(format!(
                "handlers `{other}` and `{}` are one subscription, `{}`, and would share its messages; give one a group of its own",
                handler.info.name,
                handler.subscription()
            )));
        }
    }
    Ok(())
}

/// A subject is for one kind of handlers, and a call has one handler in an app.
fn check_kinds(plan: &Plan) -> Result<(), Error> {
    for (index, one) in plan.handlers.iter().enumerate() {
        for other in &plan.handlers[index + 1..] {
            let both_events =
                one.info.kind == HandlerKind::Event && other.info.kind == HandlerKind::Event;
            if both_events
                || one.wire != other.wire
                || !one.info.pattern.overlaps(&other.info.pattern)
            {
                continue;
            }
            let (a, b) = (&one.info, &other.info);
            let why = if a.kind == b.kind {
                "both answer calls to some subjects; narrow one of the patterns"
            } else {
                "a subject is for events, for calls or for streaming calls; rename one of the patterns"
            };
            return Err(Error::config(format!(
                "handlers `{}` (`{}`) and `{}` (`{}`) overlap: {why}",
                a.name, a.pattern, b.name, b.pattern
            )));
        }
    }
    Ok(())
}
