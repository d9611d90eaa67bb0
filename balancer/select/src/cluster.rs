//! A thread's picker over the shared view of one cluster.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::{Backend, Health};
use crate::decision::{Belief, Compared, Decision, Decisions, Why};
use crate::estimate::float;
use crate::policy::{Policy, PolicyKind, Sample};
use crate::random::Random;
use crate::ticket::{Outcome, Ticket, nanoseconds};
use crate::view::View;

/// A cluster is sampled when it has more than this many backends per candidate wanted; else looking at all of them is
/// as cheap.
const SAMPLED_ABOVE: usize = 4;
/// Draws per candidate wanted, before the cluster is looked at as a whole.
const DRAWS: usize = 4;

/// A picker: one per thread and cluster.
pub struct Cluster {
    view: Arc<View>,
    policy: Box<dyn Policy>,
    random: Random,
    /// How many candidates are drawn; `None` looks at all.
    sample: Option<usize>,
    candidates: Vec<u32>,
    /// That of all backends.
    epoch: Option<Instant>,
    latest_ns: u64,
    /// There while choices are recorded.
    decisions: Option<Box<Decisions>>,
}

impl Cluster {
    /// `seed` should differ between threads, or they break ties alike.
    #[must_use]
    pub fn new(view: Arc<View>, policy: PolicyKind, seed: u64) -> Self {
        Self::with_policy(view, policy.build(seed), seed)
    }

    /// A picker with a policy of the caller's own.
    #[must_use]
    pub fn with_policy(view: Arc<View>, policy: Box<dyn Policy>, seed: u64) -> Self {
        let count = view.backends.len();
        let sample = policy.sample(count).filter(|wanted| wanted * SAMPLED_ABOVE < count);
        let candidates = Vec::with_capacity(count);
        let epoch = view.backends.first().map(|backend| backend.epoch());
        Self {
            view,
            policy,
            random: Random::new(!seed),
            sample,
            candidates,
            epoch,
            latest_ns: 0,
            decisions: None,
        }
    }

    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Chooses a backend and counts one request in flight on it until the ticket is finished.
    ///
    /// Only backends that are up are candidates. When none is, those that are merely ejected or on trial are (panic
    /// mode): an ejection is a guess from past requests, and guessing must not turn a bad cluster into an absent one.
    /// What the probe found down, or what drains, is never chosen. One whose ejection is over is on trial: it gets one
    /// request at a time until one succeeds. `None` means that no backend may take a request, or that those that may
    /// are at their limits; the caller asks [`View::wait`] whether the request should wait. A `now` earlier than one
    /// already seen is treated as the latest seen.
    #[must_use = "an unfinished ticket keeps its backend looking busy"]
    #[inline]
    pub fn pick(&mut self, now: Instant) -> Option<Ticket> {
        self.pick_other(&[], now)
    }

    /// Like [`Self::pick`], but never one of `tried` (positions in the view): for sending a request once more.
    #[must_use = "an unfinished ticket keeps its backend looking busy"]
    pub fn pick_other(&mut self, tried: &[usize], now: Instant) -> Option<Ticket> {
        let epoch = self.epoch?;
        let now_ns = self.advance(nanoseconds(epoch, now));
        if let Some(backend) = self.policy.explore(&self.view, now_ns)
            && self.may_take(backend, tried, now_ns)
        {
            self.note(backend, Why::Explored, now_ns);
            if let Some(in_flight_before) = self.enter(backend, now_ns) {
                self.remember();
                return Some(Ticket::new(backend, in_flight_before, now_ns, epoch));
            }
        }
        let panics = self.gather(tried, now_ns);
        let why = if panics { Why::Panic } else { Why::Compared };
        loop {
            let backend = match self.candidates.as_slice() {
                [] => return None,
                [only] => *only as usize,
                several => self.policy.choose(&self.view, several, now_ns),
            };
            self.note(backend, why, now_ns);
            let entered = if panics {
                Some(self.view.backends[backend].enter(now_ns))
            } else {
                self.enter(backend, now_ns)
            };
            if let Some(in_flight_before) = entered {
                self.remember();
                return Some(Ticket::new(backend, in_flight_before, now_ns, epoch));
            }
            self.candidates.retain(|&candidate| candidate as usize != backend);
        }
    }

    /// Counts a request on a backend, unless it is on trial and another thread has just sent it one. Of several
    /// threads one finds nobody there.
    fn enter(&self, backend: usize, now_ns: u64) -> Option<u32> {
        let backend = &self.view.backends[backend];
        let before = backend.enter(now_ns);
        if before > 0 && backend.is_on_trial() {
            backend.leave();
            return None;
        }
        Some(before)
    }

    /// Takes the request off its backend and learns from its outcome; [`Outcome::Cancelled`] leaves no trace.
    pub fn finish(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) {
        let now_ns = self.advance(nanoseconds(ticket.epoch, now));
        let backend = &self.view.backends[ticket.backend()];
        if outcome == Outcome::Cancelled {
            backend.leave();
            return;
        }
        let (left, turn) = backend.leave_to_learn();
        let sample = Sample {
            backend: ticket.backend(),
            latency_ns: ticket.latency_ns(now_ns),
            in_flight_before: ticket.in_flight_before,
            failed: outcome == Outcome::Failure,
        };
        // It found some and left some: those that came meanwhile were in its way as well.
        let others = (f64::from(sample.in_flight_before) + f64::from(left)) / 2.0;
        if let Some(turn) = turn {
            let latency_ns = (!sample.failed).then(|| float(sample.latency_ns));
            backend.learn(turn, latency_ns, others, now_ns);
        }
        self.policy.finished(&sample, now_ns);
        if sample.failed {
            let limit = self.view.ejection.failures_in_row;
            let in_row = backend.failed(ticket.picked_ns);
            if limit > 0 && in_row >= limit {
                self.view.eject(backend, now_ns);
            }
            return;
        }
        if let Some(window_ns) = self.view.window_ns {
            backend.learn_limit(float(sample.latency_ns), sample.in_flight_before, window_ns);
        }
        backend.succeeded(self.view.ejection.time_max, now_ns);
    }

    /// Begins or ends to remember choices, the last [`crate::DECISIONS_MAX`] of them. While it does, each choice also
    /// computes the costs that it has compared; when it does not, a choice costs one look at a flag. Beginning takes
    /// the memory for all.
    pub fn set_recording(&mut self, on: bool) {
        if on != self.decisions.is_some() {
            self.decisions = on.then(|| Box::new(Decisions::new()));
        }
    }

    /// The choices remembered, the oldest first.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().flat_map(|decisions| decisions.iter())
    }

    /// What this picker's policy believes of the backend at this position, with its `cost` last, number by number.
    pub fn believes(&self, backend: usize, now: Instant, tell: &mut dyn FnMut(Belief)) {
        let Some(epoch) = self.epoch else { return };
        let now_ns = self.latest_ns.max(nanoseconds(epoch, now));
        self.policy.believes(&self.view, backend, now_ns, tell);
        if let Some(cost) = self.policy.cost(&self.view, backend, now_ns) {
            tell(Belief::new("cost", "", cost));
        }
    }

    /// Notes what `chosen` was compared with, while choices are recorded. Taken before the request is counted on it.
    fn note(&mut self, chosen: usize, why: Why, now_ns: u64) {
        if self.decisions.is_some() {
            self.compare(chosen, why, now_ns);
        }
    }

    #[cold]
    #[inline(never)]
    fn compare(&mut self, chosen: usize, why: Why, now_ns: u64) {
        let Some(decisions) = &mut self.decisions else { return };
        let alone = [chosen as u32];
        let (why, compared) = match (why, self.candidates.as_slice()) {
            (Why::Explored, _) | (Why::Panic, [_]) => (why, &alone[..]),
            (_, [_]) => (Why::Only, &alone[..]),
            (_, candidates) => (why, self.policy.compared(candidates)),
        };
        let mut decision = Decision::new(now_ns, chosen as u32, why);
        for &backend in compared {
            let cost = self.policy.cost(&self.view, backend as usize, now_ns);
            let in_flight = self.view.backends[backend as usize].in_flight();
            decision.add(Compared { backend, in_flight, cost });
        }
        decisions.note(decision);
    }

    /// What was noted last was done.
    fn remember(&mut self) {
        if let Some(decisions) = &mut self.decisions {
            decisions.remember();
        }
    }

    /// Fills the candidates: enough of those that are up, else all that are. When there are none, those that only a
    /// guess keeps out, and says so.
    fn gather(&mut self, tried: &[usize], now_ns: u64) -> bool {
        if let Some(wanted) = self.sample {
            self.candidates.clear();
            self.draw(wanted, tried, now_ns);
        }
        if self.sample.is_none() || self.candidates.is_empty() {
            self.gather_open(now_ns);
            if !tried.is_empty() {
                self.candidates.retain(|&index| !tried.contains(&(index as usize)));
            }
        }
        if !self.candidates.is_empty() {
            return false;
        }
        let backends = self.view.backends.iter().enumerate().filter(|(index, _)| !tried.contains(index));
        let full = backends.clone().filter(|(_, backend)| backend.may_take(now_ns));
        let panics = full.clone().next().is_none();
        if panics {
            let guessed =
                |backend: &Backend| matches!(backend.health_at(now_ns), Health::Ejected | Health::Up);
            let guessed = backends.filter(|(_, backend)| guessed(backend) && backend.finds_room());
            self.candidates.extend(guessed.map(|(index, _)| index as u32));
        } else {
            let free = full.filter(|(_, backend)| backend.finds_room());
            self.candidates.extend(free.map(|(index, _)| index as u32));
        }
        panics
    }

    /// All that may take a request and have room.
    fn gather_open(&mut self, now_ns: u64) {
        let backends = &self.view.backends;
        // Written by position and cut afterwards: pushing asks each time whether there is memory.
        self.candidates.resize(backends.len(), 0);
        let candidates = self.candidates.as_mut_slice();
        let mut found = 0;
        for (index, backend) in backends.iter().enumerate() {
            if backend.may_take(now_ns) && backend.has_room() {
                candidates[found] = index as u32;
                found += 1;
            }
        }
        self.candidates.truncate(found);
    }

    fn draw(&mut self, wanted: usize, tried: &[usize], now_ns: u64) {
        for _ in 0..wanted * DRAWS {
            let drawn = self.random.below(self.view.backends.len());
            if !self.candidates.contains(&(drawn as u32)) && self.may_take(drawn, tried, now_ns) {
                self.candidates.push(drawn as u32);
                if self.candidates.len() == wanted {
                    return;
                }
            }
        }
    }

    fn may_take(&self, index: usize, tried: &[usize], now_ns: u64) -> bool {
        let backend = &self.view.backends[index];
        backend.may_take(now_ns) && backend.has_room() && !tried.contains(&index)
    }

    fn advance(&mut self, now_ns: u64) -> u64 {
        self.latest_ns = self.latest_ns.max(now_ns);
        self.latest_ns
    }
}
