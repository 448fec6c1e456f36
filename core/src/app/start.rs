//! Starting: connect, declare, serve, subscribe, run. Any failure rolls back what was begun.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use smol_str::SmolStr;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::plan::{Plan, PlannedHandler, Settings};
use super::running::{Member, RunningApp};
use super::{App, connect};
use crate::client::{Client, ClientCore, Wire};
use crate::config;
use crate::context::Scope;
use crate::engine::{
    CallWork, Crew, EventSettings, EventWork, Invoke, Schedule, StreamWork, copies,
};
use crate::extract::StateMap;
use crate::pattern::publish_subscribe::{Incoming, Provision, Spec, Store};
use crate::pattern::request_reply::{CallSpec, IncomingCalls};
use crate::pattern::streaming::IncomingStreams;
use crate::router::HandlerKind;
use crate::{Error, ErrorKind};

/// What the handlers of a start share.
struct Starter {
    core: Arc<ClientCore>,
    states: Arc<StateMap>,
    stopping: CancellationToken,
    abandoned: CancellationToken,
    waiting: Arc<AtomicUsize>,
    workers: usize,
}

/// The sources of a start, by the handler's place in the plan.
#[derive(Default)]
struct Sources {
    events: HashMap<usize, Box<dyn Incoming>>,
    calls: HashMap<usize, Box<dyn IncomingCalls>>,
    streams: HashMap<usize, Box<dyn IncomingStreams>>,
}

pub(super) async fn start(app: App) -> Result<RunningApp, Error> {
    let plan = app.plan()?;
    let core = connect::client_core(&plan).await?;
    let mut sources = Sources::default();
    if let Err(error) = open(&plan, &core, &mut sources).await {
        roll_back(&core, sources).await;
        return Err(error.with_operation("start"));
    }
    let starter = Starter {
        states: Arc::new(app.states),
        stopping: CancellationToken::new(),
        abandoned: CancellationToken::new(),
        waiting: app.test.map(|kit| kit.waiting).unwrap_or_default(),
        workers: tokio::runtime::Handle::current().metrics().num_workers(),
        core: Arc::clone(&core),
    };
    let mut workers = JoinSet::new();
    let mut members = Vec::with_capacity(plan.handlers.len());
    let grace = plan.config.grace();
    for (index, handler) in plan.handlers.into_iter().enumerate() {
        members.push(starter.run(handler, index, &mut sources, &mut workers));
    }
    tracing::info!(app = core.app, handlers = members.len(), "started");
    Ok(RunningApp::new(
        Client::new(core),
        members,
        workers,
        starter.stopping,
        starter.abandoned,
        grace,
    ))
}

async fn open(plan: &Plan, core: &Arc<ClientCore>, sources: &mut Sources) -> Result<(), Error> {
    for (index, wire) in core.wires.iter().enumerate() {
        let of_wire = || {
            plan.handlers
                .iter()
                .enumerate()
                .filter(move |(_, handler)| handler.wire == index)
        };
        declare(plan, core, index, wire).await?;
        let of_kind = |kind| -> Vec<(usize, CallSpec)> {
            of_wire()
                .filter(|(_, h)| h.info.kind == kind)
                .filter_map(|(at, h)| Some((at, h.call_spec()?)))
                .collect()
        };
        // Events first: a wire that stores nothing opens its door with the first source, and a call that finds nobody behind it is told
        // so and goes elsewhere, while an event would be lost.
        let events: Vec<(usize, Spec)> = of_wire()
            .filter_map(|(at, h)| Some((at, h.spec()?)))
            .collect();
        subscribe(plan, wire, &events, sources).await?;
        serve(plan, wire, &of_kind(HandlerKind::Call), sources).await?;
        accept(plan, wire, &of_kind(HandlerKind::Stream), sources).await?;
        report_unclaimed(&plan.app, wire, &events).await;
    }
    Ok(())
}

/// A dead letter always has a place: its store is there before the first delivery.
async fn declare(plan: &Plan, core: &ClientCore, index: usize, wire: &Wire) -> Result<(), Error> {
    let mut groups: Vec<(SmolStr, Provision)> = Vec::new();
    for handler in plan.handlers.iter().filter(|handler| handler.wire == index) {
        let Some(event) = handler.event() else {
            continue;
        };
        let group = dead_group(handler, &plan.app);
        if !handler.info.pattern.is_dead_letters()
            && !groups.iter().any(|(known, _)| *known == group)
        {
            groups.push((group, event.provision));
        }
    }
    let retention = core.dead_letter_retention;
    let dead = groups
        .iter()
        .map(|(group, provision)| copies::dead_letter_store(retention, *provision, group));
    let mut stores = dead.collect::<Result<Vec<Store>, Error>>()?;
    for rule in plan.config.rules().iter().filter(|rule| rule.declare) {
        let transport = rule
            .transport
            .as_deref()
            .unwrap_or(plan.config.events_transport());
        if transport == wire.name {
            let retention = rule.retention.unwrap_or(plan.config.retention());
            stores.push(Store {
                pattern: rule.pattern.clone(),
                retention,
                provision: plan.config.provision(),
            });
        }
    }
    if stores.is_empty() {
        return Ok(());
    }
    let declared = wire.subscriber.declare(&stores).await;
    let first = declared.into_iter().find_map(Result::err);
    first.map_or(Ok(()), |error| {
        Err(error.with_context("transport", &wire.name))
    })
}

async fn serve(
    plan: &Plan,
    wire: &Wire,
    calls: &[(usize, CallSpec)],
    sources: &mut Sources,
) -> Result<(), Error> {
    if calls.is_empty() {
        return Ok(());
    }
    let Some(responder) = wire.transport.responder() else {
        let message = "the transport declares calls but serves none";
        return Err(
            Error::new(ErrorKind::Unsupported, message).with_context("transport", &wire.name)
        );
    };
    let specs: Vec<CallSpec> = calls.iter().map(|(_, spec)| spec.clone()).collect();
    let served = responder.serve(&specs).await;
    let opened = collect(plan, calls.iter().map(|(at, _)| *at), served, wire)?;
    sources.calls.extend(opened);
    Ok(())
}

async fn accept(
    plan: &Plan,
    wire: &Wire,
    streams: &[(usize, CallSpec)],
    sources: &mut Sources,
) -> Result<(), Error> {
    if streams.is_empty() {
        return Ok(());
    }
    let Some(streamer) = &wire.streamer else {
        let message = "the transport declares streaming calls but accepts none";
        return Err(
            Error::new(ErrorKind::Unsupported, message).with_context("transport", &wire.name)
        );
    };
    let specs: Vec<CallSpec> = streams.iter().map(|(_, spec)| spec.clone()).collect();
    let accepted = streamer.accept(&specs).await;
    let opened = collect(plan, streams.iter().map(|(at, _)| *at), accepted, wire)?;
    sources.streams.extend(opened);
    Ok(())
}

async fn subscribe(
    plan: &Plan,
    wire: &Wire,
    events: &[(usize, Spec)],
    sources: &mut Sources,
) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    let specs: Vec<Spec> = events.iter().map(|(_, spec)| spec.clone()).collect();
    let opened = wire.subscriber.subscribe(&specs).await;
    sources.events.extend(collect(
        plan,
        events.iter().map(|(at, _)| *at),
        opened,
        wire,
    )?);
    Ok(())
}

/// Pairs results with their handlers; the first failure names its handler.
fn collect<T>(
    plan: &Plan,
    handlers: impl Iterator<Item = usize>,
    results: Vec<Result<T, Error>>,
    wire: &Wire,
) -> Result<Vec<(usize, T)>, Error> {
    let mut results = results.into_iter();
    let missing = || {
        Err(Error::new(
            ErrorKind::Unavailable,
            "the adapter gave no result",
        ))
    };
    handlers
        .map(|at| match results.next().unwrap_or_else(missing) {
            Ok(source) => Ok((at, source)),
            Err(error) => {
                let handler = &plan.handlers[at].info.name;
                Err(error
                    .with_context("handler", handler)
                    .with_context("transport", &wire.name))
            }
        })
        .collect()
}

/// Subscriptions of our groups that no handler claims any more still fill up: say so.
async fn report_unclaimed(app: &str, wire: &Wire, events: &[(usize, Spec)]) {
    let mut groups: Vec<&str> = events
        .iter()
        .filter_map(|(_, spec)| spec.subscription.group.as_deref())
        .chain([app])
        .collect();
    groups.sort_unstable();
    groups.dedup();
    for group in groups {
        let stored = match wire.subscriber.stored(group).await {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(transport = %wire.name, %group, %error, "the broker's subscriptions could not be listed");
                continue;
            }
        };
        for stored in stored {
            if !events
                .iter()
                .any(|(_, spec)| spec.subscription == stored.subscription)
            {
                let (subscription, backlog) = (&stored.subscription, stored.backlog);
                tracing::warn!(transport = %wire.name, %subscription, backlog, "no handler claims this subscription");
            }
        }
    }
}

async fn roll_back(core: &ClientCore, sources: Sources) {
    for mut source in sources.events.into_values() {
        let _ = source.stop().await;
    }
    for mut source in sources.calls.into_values() {
        let _ = source.stop().await;
    }
    for mut source in sources.streams.into_values() {
        let _ = source.stop().await;
    }
    let _ = core.wires.close(std::time::Duration::from_secs(1)).await;
}

/// Whose dead letters a handler fills: its group's; the app's, for a broadcast subscription.
fn dead_group(handler: &PlannedHandler, app: &str) -> SmolStr {
    handler.info.group.as_deref().unwrap_or(app).into()
}

impl Starter {
    fn run(
        &self,
        handler: PlannedHandler,
        index: usize,
        sources: &mut Sources,
        workers: &mut JoinSet<()>,
    ) -> Box<dyn Member> {
        let (timeout, codec) = match &handler.settings {
            Settings::Event(event) => (event.timeout, event.codec),
            Settings::Call(call) | Settings::Stream(call) => (call.timeout, call.codec),
        };
        let scope = Arc::new(Scope {
            info: Arc::clone(&handler.info),
            client: Arc::clone(&self.core),
            states: Arc::clone(&self.states),
            codec,
            abandoned: self.abandoned.clone(),
        });
        let (concurrency, window) = (handler.concurrency(), handler.window());
        let dead_group = dead_group(&handler, &self.core.app);
        let subscription = handler.subscription();
        let invoke = Invoke::new(scope, handler.erased, handler.layers, timeout);
        if let (Settings::Event(event), Some(source)) =
            (&handler.settings, sources.events.remove(&index))
        {
            let wire = self.core.wires.at(handler.wire);
            let settings = EventSettings {
                schedule: schedule(event, &subscription.pattern, wire),
                order: event.order,
                subscription,
                dead_group,
            };
            let settler = source.settler();
            let (stopping, waiting) = (self.stopping.clone(), Arc::clone(&self.waiting));
            let work = EventWork::new(
                invoke,
                settings,
                Arc::clone(wire),
                settler,
                stopping,
                waiting,
            );
            let crew = Crew::new(Arc::new(work), source, concurrency, window, self.workers);
            crew.workers()
                .into_iter()
                .for_each(|worker| drop(workers.spawn(worker)));
            return Box::new(crew);
        }
        if let Some(source) = sources.streams.remove(&index) {
            let work = StreamWork::new(invoke, handler.takes_items);
            let crew = Crew::new(Arc::new(work), source, concurrency, window, self.workers);
            crew.workers()
                .into_iter()
                .for_each(|worker| drop(workers.spawn(worker)));
            return Box::new(crew);
        }
        let source = sources.calls.remove(&index);
        let replier = source.as_ref().map(|source| source.replier());
        let (Some(source), Some(replier)) = (source, replier) else {
            unreachable!("every handler of the plan was opened")
        };
        let max_reply = self
            .core
            .wires
            .at(handler.wire)
            .capabilities
            .limits
            .max_payload;
        let crew = Crew::new(
            Arc::new(CallWork::new(invoke, replier, max_reply)),
            source,
            concurrency,
            window,
            self.workers,
        );
        crew.workers()
            .into_iter()
            .for_each(|worker| drop(workers.spawn(worker)));
        Box::new(crew)
    }
}

fn schedule(event: &config::Handler, pattern: &crate::Pattern, wire: &Wire) -> Schedule {
    Schedule {
        steps: event.retry.clone(),
        after_failure: event.after_failure,
        guarantee: event.guarantee,
        broadcast: event.group.is_none(),
        dead_letters: pattern.is_dead_letters(),
        delays: wire.capabilities.delay.is_supported(),
    }
}
