//! The candidate with the fewest requests in flight.

use super::Policy;
use crate::random::Random;
use crate::view::View;

/// Looks at every candidate, from a random start, and takes one with the fewest requests in flight; ties are
/// broken evenly at random.
#[derive(Debug)]
pub(crate) struct LeastOutstanding {
    random: Random,
}

impl LeastOutstanding {
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed) }
    }
}

impl Policy for LeastOutstanding {
    fn choose(&mut self, view: &View, candidates: &[u32], _now_ns: u64) -> usize {
        let start = self.random.below(candidates.len());
        let mut best = candidates[start];
        let (mut fewest, mut ties) = (u32::MAX, 0);
        for &candidate in candidates[start..].iter().chain(&candidates[..start]) {
            let in_flight = view.backends()[candidate as usize].in_flight();
            if in_flight < fewest {
                (best, fewest, ties) = (candidate, in_flight, 1);
            } else if in_flight == fewest {
                ties += 1;
                if self.random.below(ties) == 0 {
                    best = candidate;
                }
            }
        }
        best as usize
    }

    fn cost(&self, view: &View, backend: usize, _now_ns: u64) -> Option<f64> {
        Some(view.backends()[backend].in_flight().into())
    }
}
