//! Connecting the transports of a plan.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::plan::{Plan, PlannedWire};
use crate::client::{ClientCore, SubjectRoute, Wire, Wires};
use crate::clock::Clock;
use crate::telemetry::ClientMetrics;
use crate::transport::Transport;
use crate::{Error, ErrorKind};

/// The waits between tries to reach a broker at start.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_secs(5);

/// Connects all transports; closes those that are connected where one fails.
pub(crate) async fn client_core(plan: &Plan) -> Result<Arc<ClientCore>, Error> {
    let mut wires = Vec::with_capacity(plan.wires.len());
    for planned in &plan.wires {
        match connect(planned, &plan.clock, plan.config.connect_timeout()).await {
            Ok(transport) => {
                wires.push(Arc::new(Wire::new(planned.config.name.clone(), transport)))
            }
            Err(error) => {
                for wire in wires {
                    let _ = wire.transport.close(Duration::from_secs(1)).await;
                }
                return Err(error);
            }
        }
    }
    let config = &plan.config;
    let default = SubjectRoute {
        wire: plan.wire_named(config.events_transport()),
        calls: plan.wire_named(config.calls_transport()),
        guarantee: config.guarantee(),
        rule: None,
        unrouted: crate::config::Unrouted::default(),
        retention: config.retention(),
    };
    let rules = config.rules().iter().map(|rule| {
        let wire = rule.transport.as_deref().map(|name| plan.wire_named(name));
        let route = SubjectRoute {
            wire: wire.unwrap_or(default.wire),
            calls: wire.unwrap_or(default.calls),
            guarantee: rule.guarantee.unwrap_or(default.guarantee),
            rule: rule.guarantee,
            unrouted: rule.unrouted.unwrap_or(default.unrouted),
            retention: rule.retention.unwrap_or(default.retention),
        };
        (rule.pattern.clone(), route)
    });
    Ok(Arc::new(ClientCore {
        app: plan.app.clone(),
        codec: config.codec(),
        clock: Arc::clone(&plan.clock),
        wires: Wires::new(wires, rules.collect(), default.clone()),
        emit_timeout: config.emit_timeout(),
        request_timeout: config.request_timeout(),
        dead_letter_retention: config.dead_letter_retention(),
        metrics: ClientMetrics::new(&plan.app),
        recorder: plan.recorder.clone(),
        closed: AtomicBool::new(false),
    }))
}

/// Waits for a broker that cannot be reached, with jittered back-off, and says so.
async fn connect(
    wire: &PlannedWire,
    clock: &Arc<dyn Clock>,
    limit: Option<Duration>,
) -> Result<Arc<dyn Transport>, Error> {
    let start = clock.now();
    let mut wait = FIRST_WAIT;
    loop {
        let error = match wire
            .adapter
            .connect(wire.config.clone(), Arc::clone(clock))
            .await
        {
            Ok(transport) => return Ok(transport),
            Err(error) => error.with_context("transport", &wire.config.name),
        };
        let passed = clock.now().saturating_duration_since(start);
        if error.kind() != ErrorKind::Unavailable
            || limit.is_some_and(|limit| passed + wait > limit)
        {
            return Err(error.with_operation("connect"));
        }
        tracing::warn!(transport = %wire.config.name, %error, "the broker cannot be reached; waiting for it");
        clock
            .sleep_until(clock.now() + wait.mul_f64(0.5 + crate::random::fraction() / 2.0))
            .await;
        wait = (wait * 2).min(LAST_WAIT);
    }
}
