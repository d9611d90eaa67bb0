//! The candidate that is expected to answer first.

use super::Policy;
use crate::cluster::View;
use crate::random::Random;

/// Costs within this share of the smallest are equal: what differs less is noise, and following noise sends
/// every thread to one backend.
const TIE_BAND: f64 = 0.05;
/// How long a thread's copy of the cluster's median is used before it is taken anew; the estimates behind it
/// change with a time constant of a second.
const MEDIAN_PERIOD_NS: u64 = 20_000_000;
/// The median while nothing is known, in nanoseconds. With one value for all, the policy is least-outstanding.
const MEDIAN_UNKNOWN_NS: f64 = 1e6;

/// Shortest expected latency: the backend's average of latency per request in flight, times the requests that
/// would be in flight, plus what its recent failures make likely.
///
/// Among costs within 5 % of the smallest it takes the fewest in flight, then chance. Compare peak-EWMA (Finagle,
/// tower), whose sample already contains the queue that its cost multiplies by again.
#[derive(Debug)]
pub(crate) struct ExpectedLatency {
    random: Random,
    median_ns: f64,
    /// When the median is due to be taken anew.
    median_due_ns: u64,
    /// Cost and requests in flight per candidate, kept to avoid an allocation per choice.
    costs: Vec<(f64, u32)>,
    known: Vec<f64>,
}

impl ExpectedLatency {
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            median_ns: MEDIAN_UNKNOWN_NS,
            median_due_ns: 0,
            costs: Vec::new(),
            known: Vec::new(),
        }
    }

    fn refresh_median(&mut self, view: &View, now_ns: u64) {
        if now_ns < self.median_due_ns {
            return;
        }
        self.known.clear();
        let estimates =
            view.backends().iter().map(|backend| backend.averages().read(now_ns).latency_per_request_ns);
        self.known.extend(estimates.filter(|&latency| latency > 0.0));
        if self.known.is_empty() {
            return;
        }
        let middle = (self.known.len() - 1) / 2;
        let (_, median, _) = self.known.select_nth_unstable_by(middle, f64::total_cmp);
        self.median_ns = *median;
        self.median_due_ns = now_ns + MEDIAN_PERIOD_NS;
    }

    fn weigh(&mut self, view: &View, candidates: &[u32], now_ns: u64) -> f64 {
        let mut least = f64::INFINITY;
        self.costs.clear();
        for &candidate in candidates {
            let backend = &view.backends()[candidate as usize];
            let in_flight = backend.in_flight();
            let cost = backend.averages().read(now_ns).cost_ns(in_flight, self.median_ns);
            least = least.min(cost);
            self.costs.push((cost, in_flight));
        }
        least
    }
}

impl Policy for ExpectedLatency {
    fn choose(&mut self, view: &View, candidates: &[u32], now_ns: u64) -> usize {
        self.refresh_median(view, now_ns);
        let bound = self.weigh(view, candidates, now_ns) * (1.0 + TIE_BAND);
        let (mut best, mut fewest, mut ties) = (candidates[0], u32::MAX, 0);
        for (&candidate, &(cost, in_flight)) in candidates.iter().zip(&self.costs) {
            if cost > bound || in_flight > fewest {
                continue;
            }
            ties = if in_flight < fewest { 1 } else { ties + 1 };
            fewest = in_flight;
            if self.random.below(ties) == 0 {
                best = candidate;
            }
        }
        best as usize
    }
}
