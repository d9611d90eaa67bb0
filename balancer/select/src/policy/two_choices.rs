//! The better of two candidates.

use super::{Policy, Sample};
use crate::decision::Belief;
use crate::random::Random;
use crate::view::View;

/// Two different candidates, evenly at random (Mitzenmacher, 2001: the power of two choices).
pub(super) fn draw_two(candidates: &[u32], random: &mut Random) -> (usize, usize) {
    let first = random.below(candidates.len());
    let other = random.below(candidates.len() - 1);
    let second = if other < first { other } else { other + 1 };
    (candidates[first] as usize, candidates[second] as usize)
}

/// Draws two candidates and takes the one with fewer requests in flight; the first of two equal ones.
#[derive(Debug)]
pub(crate) struct TwoChoices {
    random: Random,
    /// The two that were compared last.
    drawn: [u32; 2],
}

impl TwoChoices {
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), drawn: [0; 2] }
    }
}

impl Policy for TwoChoices {
    fn sample(&self, _backends: usize) -> Option<usize> {
        Some(2)
    }

    fn choose(&mut self, view: &View, candidates: &[u32], _now_ns: u64) -> usize {
        let (first, second) = draw_two(candidates, &mut self.random);
        self.drawn = [first as u32, second as u32];
        let in_flight = |index: usize| view.backends()[index].in_flight();
        if in_flight(first) <= in_flight(second) { first } else { second }
    }

    fn compared<'a>(&'a self, _candidates: &'a [u32]) -> &'a [u32] {
        &self.drawn
    }

    fn cost(&self, view: &View, backend: usize, _now_ns: u64) -> Option<f64> {
        Some(view.backends()[backend].in_flight().into())
    }
}

/// Time constant of the estimate, the default of Finagle and linkerd.
const DECAY_NS: f64 = 10e9;
/// Estimate of a backend that has not answered yet, as in linkerd.
const UNKNOWN_NS: f64 = 30e6;

/// Draws two candidates and takes the one with the lower peak-EWMA cost, as the `tower` crate 0.5 computes it
/// (`tower/src/load/peak_ewma.rs`), itself after Finagle: a sample above the estimate replaces it, one below is
/// averaged in with weight 1 - exp(-dt/10 s), and *reading* the cost averages a zero in.
///
/// Each thread has estimates of its own, as each instance of tower's balancer has; requests in flight are shared.
#[derive(Debug)]
pub(crate) struct TwoChoicesPeakEwma {
    random: Random,
    estimates: Vec<PeakEwma>,
    /// The two that were compared last.
    drawn: [u32; 2],
}

#[derive(Debug, Clone, Copy)]
pub(super) struct PeakEwma {
    rtt_ns: f64,
    updated_ns: u64,
}

impl PeakEwma {
    pub(super) fn new(now_ns: u64) -> Self {
        Self { rtt_ns: UNKNOWN_NS, updated_ns: now_ns }
    }

    /// `RttEstimate::update` of tower.
    pub(super) fn update(&mut self, rtt_ns: f64, now_ns: u64) -> f64 {
        self.rtt_ns = if self.rtt_ns < rtt_ns {
            rtt_ns
        } else {
            let decay = (-(now_ns.saturating_sub(self.updated_ns) as f64) / DECAY_NS).exp();
            self.rtt_ns * decay + rtt_ns * (1.0 - decay)
        };
        self.updated_ns = now_ns;
        self.rtt_ns
    }

    /// `PeakEwma::load` of tower.
    pub(super) fn load(&mut self, in_flight: u32, now_ns: u64) -> f64 {
        self.update(0.0, now_ns) * f64::from(in_flight + 1)
    }
}

impl TwoChoicesPeakEwma {
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), estimates: Vec::new(), drawn: [0; 2] }
    }

    fn load(&mut self, view: &View, index: usize, now_ns: u64) -> f64 {
        self.estimates[index].load(view.backends()[index].in_flight(), now_ns)
    }
}

impl Policy for TwoChoicesPeakEwma {
    fn sample(&self, _backends: usize) -> Option<usize> {
        Some(2)
    }

    fn choose(&mut self, view: &View, candidates: &[u32], now_ns: u64) -> usize {
        self.estimates.resize(view.backends().len(), PeakEwma::new(now_ns));
        let (first, second) = draw_two(candidates, &mut self.random);
        self.drawn = [first as u32, second as u32];
        if self.load(view, first, now_ns) <= self.load(view, second, now_ns) { first } else { second }
    }

    fn finished(&mut self, sample: &Sample, now_ns: u64) {
        if let Some(estimate) = self.estimates.get_mut(sample.backend) {
            estimate.update(sample.latency_ns as f64, now_ns);
        }
    }

    fn compared<'a>(&'a self, _candidates: &'a [u32]) -> &'a [u32] {
        &self.drawn
    }

    fn cost(&self, view: &View, backend: usize, now_ns: u64) -> Option<f64> {
        let mut copy = *self.estimates.get(backend)?;
        Some(copy.load(view.backends()[backend].in_flight(), now_ns))
    }

    fn believes(&self, _view: &View, backend: usize, now_ns: u64, tell: &mut dyn FnMut(Belief)) {
        if let Some(&(mut copy)) = self.estimates.get(backend) {
            tell(Belief::new("peak_ewma", "ms", copy.update(0.0, now_ns) / 1e6));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn two_different_candidates_are_drawn_evenly() {
        let mut random = Random::new(3);
        let mut counts = [0u32; 12];
        for _ in 0..6000 {
            let (first, second) = draw_two(&[1, 4, 9], &mut random);
            assert_ne!(first, second);
            counts[first] += 1;
            counts[second] += 1;
        }
        assert!([1, 4, 9].iter().all(|&n: &usize| (3800..4200).contains(&counts[n])), "{counts:?}");
    }

    #[test]
    fn peak_is_taken_at_once_and_forgotten_with_ten_seconds() {
        let mut estimate = PeakEwma::new(0);
        assert_eq!(estimate.update(100e6, SECOND_NS), 100e6);
        // Ten seconds later 20 ms has weight 1 - 1/e: 100/e + 20 (1 - 1/e) = 49.430 ms.
        assert!((estimate.update(20e6, 11 * SECOND_NS) - 49.430_355e6).abs() < 1.0);
        // Reading lets it fall, and the cost counts the requests in flight and the new one.
        let cost = estimate.load(3, 21 * SECOND_NS);
        assert!((cost - 4.0 * 49.430_355e6 / std::f64::consts::E).abs() < 10.0, "{cost}");
    }

    /// What tower's cost says: it shows its number in its debug format only.
    fn number(cost: tower::load::peak_ewma::Cost) -> f64 {
        let shown = format!("{cost:?}");
        shown.trim_start_matches("Cost(").trim_end_matches(')').parse().expect("a number")
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn cost_is_that_of_the_tower_crate_in_any_sequence() {
        use tower::Service;
        use tower::load::{CompleteOnResponse, Load};

        // Requests end when they are told to.
        let service = tower::service_fn(|answer: tokio::sync::oneshot::Receiver<()>| answer);
        let (decay_ns, unknown) = (DECAY_NS, std::time::Duration::from_nanos(UNKNOWN_NS as u64));
        let mut theirs =
            tower::load::PeakEwma::new(service, unknown, decay_ns, CompleteOnResponse::default());
        let mut ours = PeakEwma::new(0);
        let (mut random, mut now_ns, mut open) = (Random::new(8), 0, Vec::new());
        for _ in 0..3000 {
            let step_ns = 1_000_000 * random.below(200) as u64;
            now_ns += step_ns;
            tokio::time::advance(std::time::Duration::from_nanos(step_ns)).await;
            match random.below(3) {
                0 => {
                    let (end, ended) = tokio::sync::oneshot::channel();
                    open.push((now_ns, end, theirs.call(ended)));
                }
                1 if !open.is_empty() => {
                    let (sent_ns, end, answer) = open.swap_remove(random.below(open.len()));
                    end.send(()).expect("waited for");
                    answer.await.expect("answered");
                    ours.update((now_ns - sent_ns) as f64, now_ns);
                }
                _ => {
                    let (theirs, ours) = (number(theirs.load()), ours.load(open.len() as u32, now_ns));
                    assert!((theirs / ours - 1.0).abs() < 1e-9, "{theirs} {ours} at {now_ns} ns");
                }
            }
        }
    }
}
