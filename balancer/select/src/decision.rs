//! What a choice was made of: what a policy believes of a backend, and the last choices with the costs compared.

/// Choices that are remembered.
pub const DECISIONS_MAX: usize = 64;
/// Candidates remembered of one choice: as many as the default policy looks at in one scan.
pub const COMPARED_MAX: usize = 32;

/// One number that a policy holds about one backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Belief {
    /// Lower case with underscores.
    pub name: &'static str,
    /// The unit of `value`, such as `ms`; empty for a share, a factor or a count.
    pub unit: &'static str,
    pub value: f64,
}

impl Belief {
    #[must_use]
    pub fn new(name: &'static str, unit: &'static str, value: f64) -> Self {
        Self { name, unit, value }
    }
}

/// Why a backend was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The policy preferred it to the others that it compared.
    Compared,
    /// No other might take the request.
    Only,
    /// To learn about it.
    Explored,
    /// No backend is up, so that one was taken among those that only a guess keeps out.
    Panic,
}

impl Why {
    /// The word used in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Compared => "compared",
            Self::Only => "only",
            Self::Explored => "explored",
            Self::Panic => "panic",
        }
    }
}

/// One candidate of a choice, as it was at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Compared {
    /// Position in the view.
    pub backend: u32,
    /// Without the request that was to be placed.
    pub in_flight: u32,
    /// In the policy's own unit: only the order within one choice means something. `None` for a policy that
    /// compares nothing.
    pub cost: Option<f64>,
}

/// One choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Since the epoch of the view's backends, in nanoseconds.
    pub at_ns: u64,
    /// Position in the view.
    pub chosen: u32,
    pub why: Why,
    /// How many candidates were compared; the first [`COMPARED_MAX`] are remembered.
    pub candidates: u32,
    compared: [Compared; COMPARED_MAX],
}

impl Decision {
    pub(crate) fn new(at_ns: u64, chosen: u32, why: Why) -> Self {
        Self { at_ns, chosen, why, candidates: 0, compared: [Compared::default(); COMPARED_MAX] }
    }

    pub(crate) fn add(&mut self, compared: Compared) {
        if let Some(place) = self.compared.get_mut(self.candidates as usize) {
            *place = compared;
        }
        self.candidates += 1;
    }

    #[must_use]
    pub fn compared(&self) -> &[Compared] {
        &self.compared[..(self.candidates as usize).min(COMPARED_MAX)]
    }
}

/// The last [`DECISIONS_MAX`] choices of one picker. Its memory is taken when it is made: adding allocates nothing.
#[derive(Debug)]
pub(crate) struct Decisions {
    ring: Vec<Decision>,
    /// Where the next one goes once the ring is full.
    next: usize,
    /// A choice whose request is not yet counted on its backend.
    noted: Option<Decision>,
}

impl Decisions {
    pub(crate) fn new() -> Self {
        Self { ring: Vec::with_capacity(DECISIONS_MAX), next: 0, noted: None }
    }

    pub(crate) fn note(&mut self, decision: Decision) {
        self.noted = Some(decision);
    }

    /// Adds what was noted last.
    #[cold]
    #[inline(never)]
    pub(crate) fn remember(&mut self) {
        let Some(decision) = self.noted.take() else { return };
        if self.ring.len() < DECISIONS_MAX {
            self.ring.push(decision);
        } else {
            self.ring[self.next] = decision;
            self.next = (self.next + 1) % DECISIONS_MAX;
        }
    }

    /// The oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Decision> {
        self.ring[self.next..].iter().chain(&self.ring[..self.next])
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ring_keeps_the_last_ones_in_order_in_the_memory_it_began_with() {
        let mut decisions = Decisions::new();
        let capacity = decisions.ring.capacity();
        for at_ns in 0..200 {
            decisions.note(Decision::new(at_ns, 0, Why::Only));
            decisions.remember();
        }
        let times: Vec<u64> = decisions.iter().map(|decision| decision.at_ns).collect();
        assert_eq!(times, (200 - DECISIONS_MAX as u64..200).collect::<Vec<_>>());
        assert_eq!(decisions.ring.capacity(), capacity);
    }

    #[test]
    fn candidates_beyond_what_is_remembered_are_counted() {
        let mut decision = Decision::new(0, 0, Why::Compared);
        for backend in 0..100 {
            decision.add(Compared { backend, in_flight: 0, cost: Some(1.0) });
        }
        assert_eq!((decision.candidates, decision.compared().len()), (100, COMPARED_MAX));
        assert_eq!(decision.compared()[31].backend, 31);
    }
}
