//! Who serves what.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::broker::Shared;
use super::service::Service;
use crate::{Pattern, Subject};

/// How many subjects' services are remembered.
const ROUTES: usize = 1024;

/// Finds the service that answers a subject.
pub(super) struct Switchboard {
    shared: Arc<Shared>,
    turn: AtomicUsize,
    lines: RwLock<Lines>,
}

#[derive(Default)]
struct Lines {
    services: HashMap<Pattern, Arc<Service>>,
    /// Every service that may still have calls, those that nobody serves any more included.
    known: Vec<Weak<Service>>,
    routes: FxHashMap<Subject, SmallVec<[Arc<Service>; 1]>>,
}

impl Switchboard {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            turn: AtomicUsize::new(0),
            lines: RwLock::default(),
        }
    }

    /// A service that answers the subject; where there are several, one after the other.
    pub(super) fn find(&self, subject: &Subject) -> Option<Arc<Service>> {
        let lines = self.lines.read();
        if let Some(services) = lines.routes.get(subject) {
            return self.choose(services);
        }
        drop(lines);
        let mut lines = self.lines.write();
        lines.learn(subject);
        self.choose(lines.routes.get(subject)?)
    }

    fn choose(&self, services: &[Arc<Service>]) -> Option<Arc<Service>> {
        let turn = match services.len() {
            0 | 1 => 0,
            several => self.turn.fetch_add(1, Ordering::Relaxed) % several,
        };
        services.get(turn).map(Arc::clone)
    }

    /// Adds a server to the pattern's service.
    pub(super) fn serve(&self, pattern: &Pattern, window: usize) -> (Arc<Service>, usize) {
        let mut lines = self.lines.write();
        let service = match lines.services.get(pattern) {
            Some(service) => Arc::clone(service),
            None => {
                let service = Arc::new(Service::new(pattern.clone(), Arc::clone(&self.shared)));
                lines.known.retain(|known| known.strong_count() > 0);
                lines.known.push(Arc::downgrade(&service));
                lines.services.insert(pattern.clone(), Arc::clone(&service));
                lines.routes.clear();
                service
            }
        };
        let server = service.join(window);
        (service, server)
    }

    /// Stops a server from taking calls. With the last one the service is gone, and who waits for it is told.
    pub(super) fn retire(&self, service: &Arc<Service>, server: usize) {
        let mut lines = self.lines.write();
        let is_last = service.end(server);
        if is_last {
            lines
                .services
                .retain(|_, found| !Arc::ptr_eq(found, service));
            lines.routes.clear();
        }
        drop(lines);
        if is_last {
            service.turn_away();
        }
    }

    /// Ends the calls of a client whose transport was closed.
    pub(super) fn hang_up(&self, client: u64) {
        for service in self.known() {
            service.hang_up(client);
        }
    }

    /// How many calls have no answer yet, or one that the caller has not picked up.
    pub(super) fn pending(&self) -> usize {
        self.known().iter().map(|service| service.pending()).sum()
    }

    fn known(&self) -> Vec<Arc<Service>> {
        let lines = self.lines.read();
        lines.known.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Lines {
    fn learn(&mut self, subject: &Subject) {
        if self.routes.len() >= ROUTES {
            self.routes.clear();
        }
        let services = self.services.iter();
        let services = services.filter(|(pattern, _)| pattern.matches(subject));
        let services = services.map(|(_, service)| Arc::clone(service)).collect();
        self.routes.insert(subject.clone(), services);
    }
}

impl fmt::Debug for Switchboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Switchboard")
    }
}
