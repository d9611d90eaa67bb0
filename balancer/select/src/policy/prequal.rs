//! Prequal's rule on what the balancer itself sees.

use super::{Policy, Sample};
use crate::decision::Belief;
use crate::random::Random;
use crate::view::View;

/// Latencies remembered per backend and class of load; their median is the estimate.
const REMEMBERED: usize = 16;
/// Classes of load: 0, 1, 2-3, 4-7, ... 64 and more requests in flight.
const CLASSES: usize = 8;
/// Requests in flight seen lately, of which a quantile divides cold from hot.
const SEEN_MAX: usize = 128;
/// Quantile between cold and hot: 2^-0.25, the paper's default.
pub(crate) const HOT_QUANTILE: f64 = 0.84;
/// Backends looked at per choice: the paper's pool of probes.
const POOL: usize = 16;

/// Prequal (Wydrowski and others, NSDI 2024), its rule without its probes: one balancer sees all traffic and knows
/// the requests in flight and the latency at similar load of every backend, which Prequal must ask for. A backend is
/// hot when it has more in flight than a quantile of what was seen lately. Of the cold ones the one with the lowest
/// latency is taken; when all are hot, the one with the fewest in flight.
///
/// Knows nothing of failures except that it learns from successes only.
#[derive(Debug)]
pub(crate) struct Prequal {
    random: Random,
    hot: HotLine,
    latencies: Vec<LatencyByLoad>,
}

/// What the rule compares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Probed {
    pub(crate) backend: usize,
    pub(crate) in_flight: u32,
    pub(crate) latency_ns: f64,
}

/// The hot-cold lexicographic rule.
pub(crate) fn choose(probed: impl Iterator<Item = Probed>, hot_above: u32) -> Option<usize> {
    let order = |probed: &Probed| {
        let hot = probed.in_flight > hot_above;
        (hot, if hot { f64::from(probed.in_flight) } else { probed.latency_ns })
    };
    let best = probed.min_by(|a, b| {
        let ((a_hot, a_rank), (b_hot, b_rank)) = (order(a), order(b));
        a_hot.cmp(&b_hot).then(a_rank.total_cmp(&b_rank))
    });
    best.map(|best| best.backend)
}

/// A quantile of the requests in flight that were seen lately.
#[derive(Debug)]
pub(crate) struct HotLine {
    quantile: f64,
    seen: Vec<u32>,
    oldest: usize,
    sorted: Vec<u32>,
    /// What [`Self::above`] said last.
    latest: u32,
}

impl HotLine {
    pub(crate) fn new(quantile: f64) -> Self {
        Self { quantile, seen: Vec::new(), oldest: 0, sorted: Vec::new(), latest: u32::MAX }
    }

    pub(crate) fn see(&mut self, in_flight: u32) {
        if self.seen.len() < SEEN_MAX {
            self.seen.push(in_flight);
        } else {
            self.seen[self.oldest] = in_flight;
            self.oldest = (self.oldest + 1) % SEEN_MAX;
        }
    }

    pub(crate) fn above(&mut self) -> u32 {
        if self.seen.is_empty() {
            return u32::MAX;
        }
        self.sorted.clear();
        self.sorted.extend_from_slice(&self.seen);
        let rank = (self.quantile * self.sorted.len() as f64).ceil() as usize;
        self.latest = *self.sorted.select_nth_unstable(rank.saturating_sub(1)).1;
        self.latest
    }
}

/// Median of recent latencies by class of load.
#[derive(Debug, Clone, Default)]
pub(crate) struct LatencyByLoad {
    classes: [Class; CLASSES],
}

#[derive(Debug, Clone, Copy, Default)]
struct Class {
    recent: [f64; REMEMBERED],
    count: usize,
    median_ns: f64,
}

fn class(in_flight: u32) -> usize {
    ((u32::BITS - in_flight.leading_zeros()) as usize).min(CLASSES - 1)
}

impl LatencyByLoad {
    /// Notes the latency of a request that found `in_flight` others.
    pub(crate) fn learn(&mut self, in_flight: u32, latency_ns: f64) {
        let class = &mut self.classes[class(in_flight)];
        class.recent[class.count % REMEMBERED] = latency_ns;
        class.count += 1;
        let known = class.count.min(REMEMBERED);
        let mut sorted = class.recent;
        class.median_ns = *sorted[..known].select_nth_unstable_by((known - 1) / 2, f64::total_cmp).1;
    }

    /// The median at the nearest class that is known; 0 when none is.
    pub(crate) fn latency_ns(&self, in_flight: u32) -> f64 {
        let wanted = class(in_flight);
        let known = (0..CLASSES).filter(|&class| self.classes[class].count > 0);
        known.min_by_key(|class| class.abs_diff(wanted)).map_or(0.0, |class| self.classes[class].median_ns)
    }
}

impl Prequal {
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), hot: HotLine::new(HOT_QUANTILE), latencies: Vec::new() }
    }
}

impl Policy for Prequal {
    fn sample(&self, backends: usize) -> Option<usize> {
        (backends > POOL).then_some(POOL)
    }

    fn choose(&mut self, view: &View, candidates: &[u32], _now_ns: u64) -> usize {
        self.latencies.resize(view.backends().len(), LatencyByLoad::default());
        let start = self.random.below(candidates.len());
        let pool = candidates[start..].iter().chain(&candidates[..start]);
        let hot_above = self.hot.above();
        let (hot, latencies) = (&mut self.hot, &self.latencies);
        let probed = pool.map(|&index| {
            let backend = index as usize;
            let in_flight = view.backends()[backend].in_flight();
            hot.see(in_flight);
            Probed { backend, in_flight, latency_ns: latencies[backend].latency_ns(in_flight) }
        });
        choose(probed, hot_above).unwrap_or(candidates[0] as usize)
    }

    fn finished(&mut self, sample: &Sample, _now_ns: u64) {
        if let (false, Some(latencies)) = (sample.failed, self.latencies.get_mut(sample.backend)) {
            latencies.learn(sample.in_flight_before, sample.latency_ns as f64);
        }
    }

    /// The latency, which orders the cold ones; hot ones are ordered by what they have in flight.
    fn cost(&self, view: &View, backend: usize, _now_ns: u64) -> Option<f64> {
        Some(self.latencies.get(backend)?.latency_ns(view.backends()[backend].in_flight()))
    }

    fn believes(&self, view: &View, backend: usize, _now_ns: u64, tell: &mut dyn FnMut(Belief)) {
        let Some(latencies) = self.latencies.get(backend) else { return };
        let in_flight = view.backends()[backend].in_flight();
        tell(Belief::new("latency_at_this_load", "ms", latencies.latency_ns(in_flight) / 1e6));
        tell(Belief::new("hot", "", f64::from(u8::from(in_flight > self.hot.latest))));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn probed(backend: usize, in_flight: u32, latency_ns: f64) -> Probed {
        Probed { backend, in_flight, latency_ns }
    }

    #[test]
    fn lowest_latency_among_the_cold_else_fewest_in_flight() {
        let pool = [probed(0, 2, 9.0), probed(1, 3, 5.0), probed(2, 7, 1.0)];
        assert_eq!(choose(pool.into_iter(), 4), Some(1));
        assert_eq!(choose(pool.into_iter(), 1), Some(0));
        assert_eq!(choose(pool.into_iter(), 7), Some(2));
    }

    #[test]
    fn hot_line_is_the_quantile_of_what_was_seen() {
        let mut hot = HotLine::new(0.6);
        assert_eq!(hot.above(), u32::MAX);
        (1..=10).for_each(|in_flight| hot.see(in_flight));
        assert_eq!(hot.above(), 6);
    }

    #[test]
    fn latency_is_the_median_of_the_nearest_class() {
        let mut latency = LatencyByLoad::default();
        assert_eq!(latency.latency_ns(3), 0.0);
        for sample in [10.0, 30.0, 20.0] {
            latency.learn(2, sample);
        }
        latency.learn(40, 500.0);
        assert_eq!(latency.latency_ns(3), 20.0);
        assert_eq!(latency.latency_ns(100), 500.0);
    }
}
