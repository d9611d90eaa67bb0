//! Any candidate.

use super::Policy;
use crate::random::Random as Generator;
use crate::view::View;

/// Takes each candidate with the same chance. Ignores load and latency; it is here to compare with.
#[derive(Debug)]
pub(crate) struct Random {
    random: Generator,
}

impl Random {
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Generator::new(seed) }
    }
}

impl Policy for Random {
    fn sample(&self, _backends: usize) -> Option<usize> {
        Some(1)
    }

    fn choose(&mut self, _view: &View, candidates: &[u32], _now_ns: u64) -> usize {
        candidates[self.random.below(candidates.len())] as usize
    }
}
