//! Each candidate in its turn.

use super::Policy;
use crate::random::Random;
use crate::view::View;

/// Takes the candidates one after the other, each thread from a place of its own. Ignores load and latency, so
/// a slow backend gets as much as a quick one; it is here to compare with.
#[derive(Debug)]
pub(crate) struct RoundRobin {
    random: Random,
    last: Option<u32>,
}

impl RoundRobin {
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), last: None }
    }
}

impl Policy for RoundRobin {
    fn choose(&mut self, _view: &View, candidates: &[u32], _now_ns: u64) -> usize {
        let next = match self.last {
            None => candidates[self.random.below(candidates.len())],
            Some(last) => *candidates.iter().find(|&&c| c > last).unwrap_or(&candidates[0]),
        };
        self.last = Some(next);
        next as usize
    }
}
