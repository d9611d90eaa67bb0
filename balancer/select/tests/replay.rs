//! A trace of live decisions, replayed on a virtual clock, chooses the same.
#![cfg(not(loom))]
#![allow(clippy::disallowed_methods, reason = "the point is to decide by a real clock once")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use select::sim::{Told, Trace};
use select::{Backend, Cluster, Ejection, Outcome, PolicyKind, Random, Ticket, View};

const BACKENDS: usize = 5;
const SEEDS: [u64; 2] = [11, 12];

/// Pickers of two threads that decide by the real clock, and the trace of what they are told.
struct Live {
    trace: Trace,
    clusters: Vec<Cluster>,
    epoch: Instant,
    open: Vec<(usize, Ticket)>,
    random: Random,
}

impl Live {
    fn new(policy: PolicyKind) -> Self {
        let epoch = Instant::now();
        let backends = (0..BACKENDS).map(|n| Arc::new(Backend::new(&format!("i-{n}"), epoch))).collect();
        let ejection = Ejection::default();
        let view = Arc::new(View::new(backends, ejection));
        let clusters = SEEDS.map(|seed| Cluster::new(Arc::clone(&view), policy, seed)).into();
        let trace = Trace { backends: BACKENDS, policy, ejection, seeds: SEEDS.into(), events: Vec::new() };
        Self { trace, clusters, epoch, open: Vec::new(), random: Random::new(4) }
    }

    fn now(&self) -> (Instant, u64) {
        let now = Instant::now();
        (now, (now - self.epoch).as_nanos() as u64)
    }

    fn pick(&mut self) {
        let thread = self.random.below(SEEDS.len());
        let tried = if self.random.below(10) == 0 { vec![self.random.below(BACKENDS)] } else { Vec::new() };
        let (now, at_ns) = self.now();
        let ticket = self.clusters[thread].pick_other(&tried, now);
        let chosen = ticket.as_ref().map(Ticket::backend);
        if let Some(ticket) = ticket {
            self.open.push((self.trace.events.len(), ticket));
        }
        self.trace.events.push(Told::Pick { thread, at_ns, tried, chosen });
    }

    fn finish(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let (pick, mut ticket) = self.open.swap_remove(self.random.below(self.open.len()));
        let outcome = match self.random.below(20) {
            0 => Outcome::Failure,
            1 => Outcome::Cancelled,
            _ => Outcome::Success,
        };
        let (thread, (now, at_ns)) = (self.random.below(SEEDS.len()), self.now());
        if self.random.below(4) == 0 {
            ticket.answered(now);
            self.trace.events.push(Told::Answered { pick, at_ns });
        }
        self.clusters[thread].finish(ticket, outcome, now);
        self.trace.events.push(Told::Finish { thread, at_ns, pick, outcome });
    }

    fn change(&mut self) {
        let (backend, flag) = (self.random.below(BACKENDS), self.random.below(4) > 0);
        let told = match self.random.below(3) {
            0 => Told::Up { backend, up: flag },
            1 => Told::Draining { backend, draining: !flag },
            _ => Told::Probed { backend, latency: Duration::from_micros(self.random.below(900) as u64 + 1) },
        };
        let target = &self.clusters[0].view().backends()[backend];
        match told {
            Told::Up { up, .. } => target.set_up(up),
            Told::Draining { draining, .. } => target.set_draining(draining),
            Told::Probed { latency, .. } => target.probed(latency),
            _ => {}
        }
        self.trace.events.push(told);
    }

    fn record(mut self, steps: usize) -> Trace {
        for _ in 0..steps {
            match self.random.below(100) {
                0 => self.change(),
                1..=50 => self.pick(),
                _ => self.finish(),
            }
        }
        for (_, ticket) in self.open.drain(..) {
            self.clusters[0].finish(ticket, Outcome::Cancelled, self.epoch);
        }
        self.trace
    }
}

#[test]
fn replayed_trace_of_live_decisions_chooses_the_same() {
    for policy in PolicyKind::ALL {
        let trace = Live::new(policy).record(20_000);
        let picks = trace.events.iter().filter(|told| matches!(told, Told::Pick { .. })).count();
        assert!(picks > 5000);
        assert_eq!(trace.replay(), Ok(()), "{}", policy.name());
    }
}

#[test]
fn trace_that_was_changed_does_not_choose_the_same() {
    let mut trace = Live::new(PolicyKind::LeastOutstanding).record(2000);
    trace.seeds[0] += 1;
    let difference = trace.replay().expect_err("another seed breaks ties otherwise");
    assert!(difference.to_string().contains("when replayed"));
}
