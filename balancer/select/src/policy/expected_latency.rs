//! The candidate on which one more request costs least.

use super::Policy;
use crate::backend::Backend;
use crate::decision::Belief;
use crate::estimate::{Averages, STALE_NS};
use crate::price::{fourth_power, fourth_root, price};
use crate::view::View;

/// Costs within this share of the smallest are equal: what differs less is noise, and following noise sends
/// every thread to one backend.
const TIE_BAND: f64 = 0.05;
/// How often a thread takes the cluster's median anew and looks for what is worth exploring.
const REVIEW_NS: u64 = 20_000_000;
/// Latency per request while nothing is known. With one value for all, the policy is least-outstanding.
const UNKNOWN_NS: f64 = 1e6;
/// Exploring may cost this share of what requests cost otherwise: one in a hundred, as p99 must not see it.
const EXPLORE: f64 = 0.01;
/// Candidates that are looked at in a cluster too large to look at all: the best of eight is close to the best of
/// all (Mitzenmacher, 2001), and costs what a choice of eight costs.
const SAMPLE: usize = 8;
/// Clusters up to this size are looked at as a whole.
const SCAN_MAX: usize = 32;

/// Takes the candidate with the smallest `(in flight + 1) x latency^(3/4) x silence + failures`, where latency is the
/// backend's average latency per request in flight, silence is how long it has said nothing over ten times
/// the usual distance of its answers (at least 1), and failures is the share of its requests that failed lately times
/// what a failure costs. Among costs within 5 % of the smallest it takes the fewest in flight, and equals in turn: where
/// all requests take the same, turns in order are the best there is.
///
/// - The sample is divided by the requests in flight and the cost multiplied by them, so the queue counts once.
/// - By Little's law the usual distance of the answers of q requests of latency q x l is l: a backend that stalls is
///   left as soon as it is overdue, before its first late answer, and costs more the longer that lasts.
/// - A backend that nothing was heard of for a second and that has nothing in flight is sent a request when its
///   latency, compared with the least, is within 1 % of what was spent since its last one. It is how a slow one is
///   found to have healed.
/// - Unknown backends cost what the median does: neither starved nor flooded.
#[derive(Debug)]
pub(crate) struct ExpectedLatency {
    /// Position in the view whose turn it is among equals.
    next: u32,
    /// Price of an unknown backend.
    median: f64,
    review_ns: u64,
    /// Choices so far, and when each backend was last chosen, in choices: the budget of exploration.
    choices: u64,
    chosen: Vec<u64>,
    explore: Option<usize>,
    /// What [`weigh`] says of each candidate, kept to avoid an allocation per choice.
    costs: Vec<(f64, u32)>,
    known: Vec<f64>,
}

impl ExpectedLatency {
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            next: seed as u32,
            median: price(UNKNOWN_NS),
            review_ns: 0,
            choices: 0,
            chosen: Vec::new(),
            explore: None,
            costs: Vec::new(),
            known: Vec::new(),
        }
    }

    /// The fourth power of the least cost of the candidates; leaves all of them in the first of `costs`.
    fn least(&mut self, view: &View, candidates: &[u32], now_ns: u64) -> f64 {
        if self.costs.len() < candidates.len() {
            self.costs.resize(candidates.len(), (0.0, 0));
        }
        let (backends, median) = (view.backends(), self.median);
        // Bits of numbers that are not negative are ordered as the numbers are, and compared sooner.
        let mut least = u64::MAX;
        for (&candidate, kept) in candidates.iter().zip(&mut self.costs) {
            let cost = weigh(&backends[candidate as usize], median, now_ns);
            least = least.min(cost.0.to_bits());
            *kept = cost;
        }
        f64::from_bits(least)
    }

    /// The candidate with the fewest requests in flight among those that cost at most `bound`; of equal ones the next
    /// after the latest choice. The order is put into one number, so that no branch has to be guessed.
    fn fewest(&self, candidates: &[u32], bound: f64) -> u32 {
        let mut least = u64::MAX;
        for (&(cost, in_flight), &candidate) in self.costs.iter().zip(candidates) {
            let turn = candidate.wrapping_sub(self.next);
            let key = (u64::from(in_flight) << 32) | u64::from(turn);
            least = least.min(if cost <= bound { key } else { u64::MAX });
        }
        assert!(least != u64::MAX, "one of the candidates costs the least");
        self.next.wrapping_add(least as u32)
    }

    /// Takes the median anew and looks for a backend that is worth exploring.
    #[cold]
    #[inline(never)]
    fn review(&mut self, view: &View, now_ns: u64) {
        self.review_ns = now_ns + REVIEW_NS;
        self.chosen.resize(view.backends().len(), 0);
        let latency_ns = |backend: &Backend| backend.averages().latency_per_request_ns();
        self.known.clear();
        self.known.extend(view.backends().iter().map(|b| latency_ns(b)).filter(|&ns| ns > 0.0));
        if self.known.is_empty() {
            return;
        }
        let middle = (self.known.len() - 1) / 2;
        self.median = price(*self.known.select_nth_unstable_by(middle, f64::total_cmp).1);
        let least_ns = self.known.iter().copied().fold(f64::INFINITY, f64::min);
        let (mut best, mut most, mut stale) = (None, 0.0, 0u32);
        for (index, backend) in view.backends().iter().enumerate() {
            if backend.in_flight() > 0 || backend.averages().age_ns(now_ns) < STALE_NS {
                continue;
            }
            stale += 1;
            let ratio = (latency_ns(backend) / least_ns).max(1.0);
            let saved = (self.choices - self.chosen[index]) as f64 / ratio;
            if saved > most {
                (best, most) = (Some(index), saved);
            }
        }
        self.explore = best.filter(|_| most * EXPLORE >= f64::from(stale));
    }
}

/// The fourth power of the cost of one more request, an unknown backend having the `median` price, and the requests in
/// flight.
fn weigh(backend: &Backend, median: f64, now_ns: u64) -> (f64, u32) {
    let (averages, in_flight) = (backend.averages(), backend.in_flight());
    let cost = averages.price() * fourth_power(f64::from(in_flight) + 1.0);
    if cost.to_bits() != 0 && averages.is_calm(now_ns) {
        (cost, in_flight)
    } else {
        (doubt(averages, in_flight, median, now_ns), in_flight)
    }
}

/// What [`weigh`] says of a backend that is not calm. Apart and cold, so that the usual candidate costs one branch that
/// can be guessed.
#[cold]
#[inline(never)]
fn doubt(averages: &Averages, in_flight: u32, median: f64, now_ns: u64) -> f64 {
    let price = match averages.price() {
        0.0 => median,
        price => price,
    };
    let silence = if in_flight > 0 { averages.silence(now_ns) } else { 1.0 };
    let cost = price * fourth_power((f64::from(in_flight) + 1.0) * silence);
    if averages.fails() { fourth_power(fourth_root(cost) + averages.failure_worth(now_ns)) } else { cost }
}

impl Policy for ExpectedLatency {
    fn sample(&self, backends: usize) -> Option<usize> {
        (backends > SCAN_MAX).then_some(SAMPLE)
    }

    fn explore(&mut self, view: &View, now_ns: u64) -> Option<usize> {
        self.choices += 1;
        if now_ns >= self.review_ns {
            self.review(view, now_ns);
        }
        let explored = self.explore.take()?;
        self.chosen[explored] = self.choices;
        Some(explored)
    }

    fn choose(&mut self, view: &View, candidates: &[u32], now_ns: u64) -> usize {
        let backends = view.backends().len() as u32;
        if self.next > backends {
            self.next %= backends; // It is the seed, so that threads and balancers begin at different backends.
        }
        let bound = self.least(view, candidates, now_ns) * fourth_power(1.0 + TIE_BAND);
        let best = self.fewest(candidates, bound);
        self.next = best + 1;
        if let Some(chosen) = self.chosen.get_mut(best as usize) {
            *chosen = self.choices;
        }
        best as usize
    }

    fn cost(&self, view: &View, backend: usize, now_ns: u64) -> Option<f64> {
        Some(fourth_root(weigh(&view.backends()[backend], self.median, now_ns).0))
    }

    fn believes(&self, view: &View, backend: usize, now_ns: u64, tell: &mut dyn FnMut(Belief)) {
        let backend = &view.backends()[backend];
        let averages = backend.averages();
        let latency_ns = averages.latency_per_request_ns();
        if latency_ns > 0.0 {
            tell(Belief::new("latency_per_request", "ms", latency_ns / 1e6));
        }
        let silence = if backend.in_flight() > 0 { averages.silence(now_ns) } else { 1.0 };
        tell(Belief::new("silence_factor", "", silence));
        tell(Belief::new("failing_share", "", averages.failing_at(now_ns)));
    }
}
