//! The candidate that is expected to answer first.

use std::time::{Duration, Instant};

use super::Policy;
use crate::cluster::View;
use crate::random::Random;

/// Costs within this share of the smallest are equal: what differs less is noise, and following noise sends
/// every thread to one backend.
const TIE_BAND: f64 = 0.05;
/// How long a thread's copy of the cluster's median is used before it is taken anew; the estimates behind it
/// change with a time constant of a second.
const MEDIAN_PERIOD: Duration = Duration::from_millis(20);
/// The median while nothing is known, in nanoseconds. With one value for all, the policy is least-outstanding.
const MEDIAN_UNKNOWN_NS: f64 = 1e6;

/// Shortest expected latency: the backend's average of latency per request in flight, times the requests that
/// would be in flight, plus what its recent failures make likely.
///
/// Among costs within 5 % of the smallest it takes the fewest in flight, then chance. Compare peak-EWMA (Finagle,
/// tower), whose sample already contains the queue that its cost multiplies by again.
#[derive(Debug)]
pub struct ExpectedLatency {
    random: Random,
    median_ns: f64,
    median_at: Option<Instant>,
    /// Cost and requests in flight per candidate, kept to avoid an allocation per choice.
    costs: Vec<(f64, u32)>,
    known: Vec<f64>,
}

impl ExpectedLatency {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            median_ns: MEDIAN_UNKNOWN_NS,
            median_at: None,
            costs: Vec::new(),
            known: Vec::new(),
        }
    }

    fn refresh_median(&mut self, view: &View, now: Instant) {
        if self.median_at.is_some_and(|at| now.saturating_duration_since(at) < MEDIAN_PERIOD) {
            return;
        }
        self.known.clear();
        let estimates = view.backends().iter().map(|backend| backend.estimate(now).latency_per_request_ns);
        self.known.extend(estimates.filter(|&latency| latency > 0.0));
        if self.known.is_empty() {
            return;
        }
        let middle = (self.known.len() - 1) / 2;
        let (_, median, _) = self.known.select_nth_unstable_by(middle, f64::total_cmp);
        self.median_ns = *median;
        self.median_at = Some(now);
    }

    fn weigh(&mut self, view: &View, candidates: &[u32], now: Instant) -> f64 {
        let mut least = f64::INFINITY;
        self.costs.clear();
        // All backends count from one epoch, so the time is converted once.
        let now_ns = view.backends()[candidates[0] as usize].nanoseconds(now);
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
    fn choose(&mut self, view: &View, candidates: &[u32], now: Instant) -> usize {
        self.refresh_median(view, now);
        let bound = self.weigh(view, candidates, now) * (1.0 + TIE_BAND);
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
