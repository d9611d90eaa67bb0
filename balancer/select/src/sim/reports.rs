//! What backends would report of themselves, for policies that ask them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::policy::prequal::LatencyByLoad;

/// The reports of all backends, shared between the simulation, which writes them, and a policy, which reads them.
/// A live balancer has nothing like it: its backends are not asked to cooperate.
#[derive(Debug, Clone, Default)]
pub(super) struct Reports(Arc<Mutex<Vec<Report>>>);

/// One backend about itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    /// Requests there now.
    pub(super) in_flight: u32,
    /// Average time that a request takes once it is worked on, weight 0.9 to the past as in C3.
    pub(super) service_ns: f64,
    latencies: LatencyByLoad,
}

impl Reports {
    #[must_use]
    pub(super) fn new(backends: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![Report::default(); backends])))
    }

    /// All reports as they are now.
    pub(super) fn read(&self) -> MutexGuard<'_, Vec<Report>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    /// Notes an answer: requests there when it arrived, itself not counted; from its arrival to its end; and its
    /// service alone.
    pub(super) fn answered(&mut self, in_flight: u32, latency_ns: f64, service_ns: f64) {
        let old = if self.service_ns > 0.0 { self.service_ns } else { service_ns };
        self.service_ns = 0.9 * old + 0.1 * service_ns;
        self.latencies.learn(in_flight, latency_ns);
    }

    /// Prequal's estimate: the median latency of recent requests that arrived at about as many in flight as there
    /// are now; 0 when nothing is known.
    #[must_use]
    pub(super) fn latency_ns(&self) -> f64 {
        self.latencies.latency_ns(self.in_flight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_the_median_at_a_similar_load() {
        let mut report = Report::default();
        assert_eq!(report.latency_ns(), 0.0);
        for _ in 0..16 {
            report.answered(1, 10.0, 10.0);
            report.answered(9, 90.0, 10.0);
        }
        report.in_flight = 2;
        assert_eq!(report.latency_ns(), 10.0);
        report.in_flight = 8;
        assert_eq!(report.latency_ns(), 90.0);
    }
}
