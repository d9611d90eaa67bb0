//! One cluster as all its threads see it: its backends, when one that fails is passed over, and how many requests each
//! may have.
//!
//! Nothing here chooses: pickers do, each by its own policy.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{Backend, Health};
use crate::sync::Mutex;

/// When a backend that fails is passed over. Applies to every policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row that eject; 0 never ejects.
    pub failures_in_row: u32,
    /// Time of the first ejection; it doubles with each that follows.
    pub time_base: Duration,
    pub time_max: Duration,
    /// At most this share of the cluster is ejected at once, in percent. A cluster of one is never ejected.
    pub ejected_percent_max: u32,
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures_in_row: 5,
            time_base: Duration::from_secs(1),
            time_max: Duration::from_secs(30),
            ejected_percent_max: 50,
        }
    }
}

/// Share of the deadline that a backend's requests may take it on average: where they share its cores and their work is
/// exponential, the slowest of a hundred takes about five times that, and it may have waited before.
const WORKING: u32 = 16;
/// Share of the deadline that a request may be expected to wait before a backend has room.
const WAITING: u32 = 8;
/// A request that has waited for this share of the deadline is refused: it could not be answered in time.
const WAITED: u32 = 2;

/// How many requests a cluster's backends may have at once. Applies to every policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// An answer after this is of no use, so that no request waits for long.
    pub deadline: Duration,
    /// Whether each backend may have only what it is found to answer long before the deadline. Where some requests are
    /// long by nature and others are not, what is found is too little.
    pub learns: bool,
    /// What one backend may have at most, whatever is learnt of it.
    pub in_flight_max: u32,
}

/// What all threads share of one cluster.
#[derive(Debug)]
pub struct View {
    pub(crate) backends: Vec<Arc<Backend>>,
    pub(crate) ejection: Ejection,
    deadline: Option<Duration>,
    /// What a backend has may take it this long, where limits are learnt.
    pub(crate) window_ns: Option<f64>,
    /// Held while one thread decides on an ejection, so that two cannot exceed the share together.
    ejecting: Mutex<()>,
}

impl View {
    #[must_use]
    pub fn new(backends: Vec<Arc<Backend>>, ejection: Ejection) -> Self {
        Self { backends, ejection, deadline: None, window_ns: None, ejecting: Mutex::new(()) }
    }

    /// Limits what each backend has at once, so that requests beyond wait in the balancer, for whichever backend has
    /// room first, or are refused at once. Without limits an overloaded backend works on requests whose clients have
    /// gone.
    #[must_use]
    pub fn limited(mut self, limits: Limits) -> Self {
        self.backends.iter().for_each(|backend| backend.set_limit_max(limits.in_flight_max, limits.learns));
        self.deadline = Some(limits.deadline);
        self.window_ns = limits.learns.then(|| (limits.deadline / WORKING).as_nanos() as f64);
        self
    }

    /// Whether a request for which no backend has room now should wait, with `ahead` waiting before it: for how long at
    /// most, or `None` if it is to be refused. That is when no backend may take a request, or when the wait would be
    /// too long by what the backends answer now.
    #[must_use]
    pub fn wait(&self, ahead: usize, now: Instant) -> Option<Duration> {
        let deadline = self.deadline?;
        let up = self.backends.iter().filter(|backend| backend.health(now) == Health::Up);
        let per_ns = up.map(|backend| backend.averages().answers_per_ns()).sum::<f64>();
        let wait_ns = (deadline / WAITING).as_nanos() as f64;
        (ahead as f64 + 1.0 <= per_ns * wait_ns).then_some(deadline / WAITED)
    }

    #[must_use]
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// Whether any backend is up, with room or without.
    #[must_use]
    pub fn is_up(&self, now: Instant) -> bool {
        self.backends.iter().any(|backend| backend.health(now) == Health::Up)
    }

    /// Ejects `backend` unless it is ejected already or too much of the cluster is.
    pub(crate) fn eject(&self, backend: &Backend, now_ns: u64) {
        let _deciding = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        if backend.health_at(now_ns) == Health::Ejected {
            return;
        }
        let ejected = self.backends.iter().filter(|b| b.health_at(now_ns) == Health::Ejected).count();
        let allowed = self.backends.len() * self.ejection.ejected_percent_max as usize / 100;
        if ejected < allowed {
            backend.eject(self.ejection.time_base, self.ejection.time_max, now_ns);
        }
    }
}
