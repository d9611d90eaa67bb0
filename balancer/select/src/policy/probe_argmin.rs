//! The candidate whose probes were answered soonest.

use super::Policy;
use crate::decision::Belief;
use crate::view::View;

/// Takes the candidate with the smallest average of active probes' latency ([`crate::Backend::probed`]) and ignores
/// what is in flight: between two probes one backend gets everything. The first one wins a tie, and a backend that
/// was never probed. It is here to compare with: balancers written for courses often work like this.
#[derive(Debug, Default)]
pub(crate) struct ProbeArgmin;

impl Policy for ProbeArgmin {
    fn choose(&mut self, view: &View, candidates: &[u32], _now_ns: u64) -> usize {
        let latency = |index: u32| view.backends()[index as usize].probe_latency_ns();
        let best = candidates.iter().copied().min_by(|&a, &b| latency(a).total_cmp(&latency(b)));
        best.unwrap_or(candidates[0]) as usize
    }

    fn cost(&self, view: &View, backend: usize, _now_ns: u64) -> Option<f64> {
        Some(view.backends()[backend].probe_latency_ns())
    }

    fn believes(&self, view: &View, backend: usize, _now_ns: u64, tell: &mut dyn FnMut(Belief)) {
        tell(Belief::new("probe_latency", "ms", view.backends()[backend].probe_latency_ns() / 1e6));
    }
}
