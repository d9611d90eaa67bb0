//! Policies that know more than a balancer does: the true capacities, or what backends report.

use super::reports::Reports;
use crate::policy::prequal::{HotLine, Probed, choose};
use crate::policy::{Policy, Sample};
use crate::random::Random;
use crate::view::View;

/// Smooth weighted round-robin as in nginx (`ngx_http_upstream_get_peer`): each time every backend gains its weight,
/// the one that has most is taken and loses the sum.
#[derive(Debug)]
pub(crate) struct WeightedRoundRobin {
    weights: Vec<f64>,
    current: Vec<f64>,
}

impl WeightedRoundRobin {
    #[must_use]
    pub(crate) fn new(weights: Vec<f64>) -> Self {
        let current = vec![0.0; weights.len()];
        Self { weights, current }
    }
}

impl Policy for WeightedRoundRobin {
    fn choose(&mut self, _view: &View, candidates: &[u32], _now_ns: u64) -> usize {
        let mut best = candidates[0] as usize;
        let mut total = 0.0;
        for &candidate in candidates {
            let candidate = candidate as usize;
            self.current[candidate] += self.weights[candidate];
            total += self.weights[candidate];
            if self.current[candidate] > self.current[best] {
                best = candidate;
            }
        }
        self.current[best] -= total;
        best
    }
}

/// Probes per request, the paper's default.
const PROBES: usize = 3;
/// Answers to probes that are kept.
const POOL_MAX: usize = 16;
/// How long an answer is of use.
const PROBE_AGE_MAX_NS: u64 = 1_000_000_000;
/// With fewer usable answers the choice is random.
const POOL_MIN: usize = 2;
/// Times that one answer is used. The paper derives it from the pool, the number of backends and the rates, for more
/// backends than the pool holds; for fewer there is no formula, and 1 to 3 are what implementations settle at.
const USES_MAX: u32 = 2;

/// Prequal with its probes (Wydrowski and others, NSDI 2024), asynchronous: each request sends three probes to
/// backends drawn without replacement, and chooses by the hot-cold rule among at most 16 answers of earlier ones.
/// One answer is removed per request, the oldest and the worst in turn; one that was used counts one more in flight.
///
/// Probes are answered at once here, which favours it.
#[derive(Debug)]
pub(crate) struct Prequal {
    reports: Reports,
    random: Random,
    hot: HotLine,
    pool: Vec<Answer>,
    deck: Vec<usize>,
    removes_oldest: bool,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    probed: Probed,
    at_ns: u64,
    uses: u32,
}

impl Prequal {
    #[must_use]
    pub(crate) fn new(backends: usize, hot_quantile: f64, reports: Reports, seed: u64) -> Self {
        Self {
            reports,
            random: Random::new(seed),
            hot: HotLine::new(hot_quantile),
            pool: Vec::new(),
            deck: (0..backends).collect(),
            removes_oldest: true,
        }
    }

    fn probe(&mut self, now_ns: u64) {
        let reports = self.reports.read();
        for drawn in 0..PROBES.min(self.deck.len()) {
            let other = drawn + self.random.below(self.deck.len() - drawn);
            self.deck.swap(drawn, other);
            let backend = self.deck[drawn];
            let report = &reports[backend];
            self.hot.see(report.in_flight);
            let probed = Probed { backend, in_flight: report.in_flight, latency_ns: report.latency_ns() };
            self.pool.push(Answer { probed, at_ns: now_ns, uses: 0 });
        }
        let surplus = self.pool.len().saturating_sub(POOL_MAX);
        self.pool.drain(..surplus);
    }

    /// The worst answer is the one that the rule would take last.
    fn remove_one(&mut self, hot_above: u32) {
        if self.pool.len() <= POOL_MIN {
            return;
        }
        let worst = if self.removes_oldest {
            0
        } else {
            let badness = |answer: &Answer| {
                let hot = answer.probed.in_flight > hot_above;
                (hot, if hot { f64::from(answer.probed.in_flight) } else { answer.probed.latency_ns })
            };
            let by = |&a: &usize, &b: &usize| {
                badness(&self.pool[a])
                    .partial_cmp(&badness(&self.pool[b]))
                    .unwrap_or(std::cmp::Ordering::Equal)
            };
            (0..self.pool.len()).max_by(by).unwrap_or(0)
        };
        self.pool.remove(worst);
        self.removes_oldest = !self.removes_oldest;
    }
}

impl Policy for Prequal {
    fn choose(&mut self, _view: &View, candidates: &[u32], now_ns: u64) -> usize {
        let hot_above = self.hot.above();
        self.pool.retain(|answer| answer.uses < USES_MAX && now_ns - answer.at_ns <= PROBE_AGE_MAX_NS);
        let usable = |answer: &&Answer| candidates.binary_search(&(answer.probed.backend as u32)).is_ok();
        let count = self.pool.iter().filter(usable).count();
        let chosen = if count < POOL_MIN {
            None
        } else {
            choose(self.pool.iter().filter(usable).map(|answer| answer.probed), hot_above)
        };
        let chosen = chosen.unwrap_or_else(|| candidates[self.random.below(candidates.len())] as usize);
        // Every answer of that backend is out of date by one request, and the one that was used is used up by one.
        let mut used = false;
        for answer in self.pool.iter_mut().filter(|answer| answer.probed.backend == chosen) {
            answer.probed.in_flight += 1;
            answer.uses += u32::from(!std::mem::replace(&mut used, true));
        }
        self.remove_one(hot_above);
        self.probe(now_ns);
        chosen
    }
}

/// Weight of a sample in C3's averages, as in Elasticsearch's implementation (`ResponseCollectorService.java`).
const C3_WEIGHT: f64 = 0.3;

/// C3 (Suresh and others, NSDI 2015), ranked as in Elasticsearch: R - 1/mu + q^3/mu with q = 1 + outstanding x
/// clients + the average of the reported queue, R the average of the response time and 1/mu the service time that
/// the backend reports. The lowest is taken; chance decides between equals. Its rate control is left out.
#[derive(Debug)]
pub(crate) struct C3 {
    reports: Reports,
    random: Random,
    clients: f64,
    averages: Vec<Averages>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Averages {
    response_ns: f64,
    queue: f64,
    service_ns: f64,
}

impl Averages {
    fn learn(&mut self, response_ns: f64, queue: f64, service_ns: f64) {
        let known = self.service_ns > 0.0;
        let weight = if known { C3_WEIGHT } else { 1.0 };
        self.response_ns += (response_ns - self.response_ns) * weight;
        self.queue += (queue - self.queue) * weight;
        self.service_ns = service_ns;
    }

    fn rank(&self, outstanding: f64, clients: f64) -> f64 {
        // The queue is a whole number there.
        let queue = 1.0 + outstanding * clients + self.queue.floor();
        self.response_ns - self.service_ns + queue.powi(3) * self.service_ns
    }
}

impl C3 {
    #[must_use]
    pub(crate) fn new(backends: usize, clients: usize, reports: Reports, seed: u64) -> Self {
        let averages = vec![Averages::default(); backends];
        Self { reports, random: Random::new(seed), clients: clients as f64, averages }
    }
}

impl Policy for C3 {
    fn choose(&mut self, view: &View, candidates: &[u32], _now_ns: u64) -> usize {
        let (mut best, mut least, mut ties) = (candidates[0] as usize, f64::INFINITY, 0);
        for &candidate in candidates {
            let candidate = candidate as usize;
            let outstanding = f64::from(view.backends()[candidate].in_flight());
            let rank = self.averages[candidate].rank(outstanding, self.clients);
            if rank < least {
                (best, least, ties) = (candidate, rank, 1);
            } else if rank == least {
                ties += 1;
                if self.random.below(ties) == 0 {
                    best = candidate;
                }
            }
        }
        best
    }

    fn finished(&mut self, sample: &Sample, _now_ns: u64) {
        if sample.failed {
            return;
        }
        let (queue, service_ns) = {
            let report = &self.reports.read()[sample.backend];
            (f64::from(report.in_flight), report.service_ns)
        };
        self.averages[sample.backend].learn(sample.latency_ns as f64, queue, service_ns);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::view::Ejection;

    fn view() -> View {
        View::new(Vec::new(), Ejection::default())
    }

    #[test]
    fn weights_are_served_smoothly() {
        let mut policy = WeightedRoundRobin::new(vec![5.0, 1.0, 1.0]);
        let picks: Vec<usize> = (0..7).map(|_| policy.choose(&view(), &[0, 1, 2], 0)).collect();
        // nginx's own example for weights 5, 1, 1: a a b a c a a.
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn c3_counts_the_queue_in_the_third_power() {
        let mut averages = Averages::default();
        averages.learn(10.0, 2.0, 4.0);
        averages.learn(20.0, 4.0, 5.0);
        // R = 10 + 0.3 * 10 = 13, queue = floor(2.6) = 2, 1/mu = 5: 13 - 5 + (1 + 1 + 2)^3 * 5.
        assert_eq!(averages.rank(1.0, 1.0), 328.0);
        assert_eq!(averages.rank(1.0, 2.0), 13.0 - 5.0 + 125.0 * 5.0);
    }

    #[test]
    fn prequal_chooses_among_the_answers_of_earlier_probes() {
        let reports = Reports::new(3);
        for (backend, latency) in [(0, 30.0), (1, 10.0), (2, 20.0)] {
            reports.read()[backend].answered(0, latency, latency);
        }
        let mut policy = Prequal::new(3, 0.84, reports, 1);
        let empty = Arc::new(view());
        let _ = policy.choose(&empty, &[0, 1, 2], 0);
        assert_eq!(policy.choose(&empty, &[0, 1, 2], 1), 1, "the lowest latency, all of them being cold");
        assert_eq!(policy.choose(&empty, &[0, 2], 2), 2, "the lowest latency among the candidates");
        assert!(policy.pool.len() <= POOL_MAX);
    }
}
