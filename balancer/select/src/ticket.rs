//! One request in flight, from the choice of its backend to its end.
//!
//! Nothing here counts it or learns from it; [`crate::Cluster`] does.

use std::time::{Duration, Instant};

/// How a request ended, as far as its backend is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A complete answer that is not the backend's fault, whatever its status.
    Success,
    /// No answer, a broken one, or one that says that the backend is unwell.
    Failure,
    /// Given up for a reason that says nothing about the backend, such as a client that went away.
    Cancelled,
}

/// One request in flight on one backend. It must come back through [`crate::Cluster::finish`].
#[derive(Debug)]
#[must_use = "an unfinished ticket keeps its backend looking busy"]
pub struct Ticket {
    backend: u32,
    pub(crate) in_flight_before: u32,
    pub(crate) picked_ns: u64,
    /// [`UNANSWERED`] until an answer is noted.
    answered_ns: u64,
    pub(crate) epoch: Instant,
}

/// Later than any time.
const UNANSWERED: u64 = u64::MAX;

impl Ticket {
    pub(crate) fn new(backend: usize, in_flight_before: u32, picked_ns: u64, epoch: Instant) -> Self {
        Self { backend: backend as u32, in_flight_before, picked_ns, answered_ns: UNANSWERED, epoch }
    }

    /// Position of the backend in [`crate::View::backends`].
    #[must_use]
    pub fn backend(&self) -> usize {
        self.backend as usize
    }

    /// Notes that a long answer has begun. Its latency is measured up to here: how fast the rest moves depends on
    /// the client as well, and a slow client must not look like a slow backend. The first note counts.
    pub fn answered(&mut self, now: Instant) {
        if self.answered_ns == UNANSWERED {
            self.answered_ns = nanoseconds(self.epoch, now);
        }
    }

    /// From the choice to the answer, or to `now` if no answer was noted.
    #[must_use]
    pub fn latency(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.latency_ns(nanoseconds(self.epoch, now)))
    }

    pub(crate) fn latency_ns(&self, now_ns: u64) -> u64 {
        let ended_ns = if self.answered_ns == UNANSWERED { now_ns } else { self.answered_ns };
        ended_ns.saturating_sub(self.picked_ns)
    }
}

/// Times are counted in nanoseconds from an epoch: subtracting two `Instant`s takes 5 ns, so it is done once a call.
pub(crate) fn nanoseconds(epoch: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(epoch).as_nanos() as u64
}
