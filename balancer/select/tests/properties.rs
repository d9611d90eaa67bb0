//! What holds after any sequence of calls, from any number of threads.
#![cfg(not(loom))]
#![allow(
    clippy::disallowed_methods,
    reason = "a starting point for the virtual clock, which then moves by itself"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use select::{Backend, Cluster, Ejection, Health, Limits, Outcome, PolicyKind, Random, Ticket, View};

const SEQUENCES: u64 = 60;
const STEPS: usize = 400;

/// A cluster under random calls, and what must be true of it.
struct Sequence {
    cluster: Cluster,
    open: Vec<Ticket>,
    random: Random,
    now: Instant,
    seed: u64,
}

impl Sequence {
    fn new(policy: PolicyKind, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let now = Instant::now();
        let size = [1, 2, 3, 8, 40, 300][random.below(6)];
        let backends = (0..size).map(|n| Arc::new(Backend::new(&format!("i-{n}"), now))).collect();
        let view = Arc::new(View::new(backends, Ejection::default()));
        Self { cluster: Cluster::new(view, policy, seed), open: Vec::new(), random, now, seed }
    }

    fn step(&mut self) {
        self.now += Duration::from_micros(self.random.below(200_000) as u64);
        match self.random.below(10) {
            0 => self.change(),
            1..=5 => self.pick(),
            _ => self.finish(),
        }
        let counted: u32 = self.cluster.view().backends().iter().map(|b| b.in_flight()).sum();
        assert_eq!(counted as usize, self.open.len(), "seed {}: every ticket counts once", self.seed);
    }

    fn change(&mut self) {
        let view = Arc::clone(self.cluster.view());
        let backend = &view.backends()[self.random.below(view.backends().len())];
        match self.random.below(5) {
            0 => backend.set_draining(true),
            1 => backend.set_draining(false),
            2 => backend.set_up(false),
            3 => backend.set_up(true),
            _ => backend.probed(Duration::from_micros(1 + self.random.below(9000) as u64)),
        }
    }

    fn pick(&mut self) {
        let view = Arc::clone(self.cluster.view());
        let count = view.backends().len();
        let tried: Vec<usize> = (0..self.random.below(3)).map(|_| self.random.below(count)).collect();
        let health: Vec<Health> = view.backends().iter().map(|backend| backend.health(self.now)).collect();
        let untried = |wanted: Health| (0..count).any(|n| health[n] == wanted && !tried.contains(&n));
        let (any_up, any_ejected) = (untried(Health::Up), untried(Health::Ejected));
        match self.cluster.pick_other(&tried, self.now) {
            None => assert!(!any_up && !any_ejected, "seed {}: somebody could have been chosen", self.seed),
            Some(ticket) => {
                let chosen = health[ticket.backend()];
                assert!(!tried.contains(&ticket.backend()), "seed {}: it was tried", self.seed);
                assert!(matches!(chosen, Health::Up | Health::Ejected), "seed {}: {chosen:?}", self.seed);
                self.open.push(ticket);
            }
        }
    }

    fn finish(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let mut ticket = self.open.swap_remove(self.random.below(self.open.len()));
        if self.random.below(3) == 0 {
            ticket.answered(self.now);
        }
        let outcome =
            [Outcome::Success, Outcome::Success, Outcome::Failure, Outcome::Cancelled][self.random.below(4)];
        self.cluster.finish(ticket, outcome, self.now);
    }
}

#[test]
fn any_sequence_counts_every_ticket_once_and_chooses_nobody_who_may_not_be_chosen() {
    for policy in PolicyKind::ALL {
        for seed in 0..SEQUENCES {
            let mut sequence = Sequence::new(policy, seed);
            (0..STEPS).for_each(|_| sequence.step());
            while !sequence.open.is_empty() {
                sequence.finish();
            }
            assert!(sequence.cluster.view().backends().iter().all(|backend| backend.in_flight() == 0));
        }
    }
}

#[test]
fn backend_that_is_down_is_not_chosen_while_another_is_up() {
    for policy in PolicyKind::ALL {
        for seed in 0..SEQUENCES {
            let mut sequence = Sequence::new(policy, seed);
            for _ in 0..STEPS {
                sequence.step();
                let view = Arc::clone(sequence.cluster.view());
                let health = |n: usize| view.backends()[n].health(sequence.now);
                // On trial and busy is not quite up: then an ejected one may be chosen, one that is down never.
                if let Some(ticket) = sequence.cluster.pick(sequence.now) {
                    assert!(
                        !matches!(health(ticket.backend()), Health::Down | Health::Draining),
                        "seed {seed}"
                    );
                    sequence.cluster.finish(ticket, Outcome::Cancelled, sequence.now);
                }
            }
            sequence
                .open
                .drain(..)
                .for_each(|t| sequence.cluster.finish(t, Outcome::Cancelled, sequence.now));
        }
    }
}

#[test]
fn threads_that_fail_succeed_and_cancel_at_once_leave_nothing_in_flight() {
    for policy in PolicyKind::ALL {
        let start = Instant::now();
        let backends = (0..3).map(|n| Arc::new(Backend::new(&format!("i-{n}"), start))).collect();
        let view = Arc::new(View::new(backends, Ejection::default()));
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let view = Arc::clone(&view);
                scope.spawn(move || {
                    let mut cluster = Cluster::new(view, policy, seed);
                    let mut random = Random::new(seed);
                    for step in 0..5000 {
                        let now = start + Duration::from_millis(step);
                        let Some(ticket) = cluster.pick(now) else { continue };
                        let outcome =
                            [Outcome::Success, Outcome::Failure, Outcome::Cancelled][random.below(3)];
                        cluster.finish(ticket, outcome, now);
                    }
                });
            }
        });
        assert!(view.backends().iter().all(|backend| backend.in_flight() == 0), "{}", policy.name());
    }
}

#[test]
fn no_backend_gets_more_than_its_limit_and_none_is_left_out_below_it() {
    for policy in PolicyKind::ALL {
        let mut learnt = false;
        for seed in 0..10 {
            let mut random = Random::new(seed);
            let mut now = Instant::now();
            let size = [1, 3, 8, 40][random.below(4)];
            let backends = (0..size).map(|n| Arc::new(Backend::new(&format!("i-{n}"), now))).collect();
            // An eighth of the deadline is less than the answers below take, so that limits are learnt.
            let limits = Limits { deadline: Duration::from_millis(40), learns: true, in_flight_max: 9 };
            let view = Arc::new(View::new(backends, Ejection::default()).limited(limits));
            let mut cluster = Cluster::new(Arc::clone(&view), policy, seed);
            let limit = |backend: &Backend| backend.limit().expect("limited");
            let mut open = Vec::new();
            for _ in 0..2000 {
                now += Duration::from_micros(random.below(2000) as u64);
                if random.below(5) < 3 {
                    let before: Vec<bool> =
                        view.backends().iter().map(|b| b.in_flight() < limit(b)).collect();
                    match cluster.pick(now) {
                        Some(ticket) => {
                            assert!(
                                before[ticket.backend()],
                                "seed {seed}: {} beyond its limit",
                                policy.name()
                            );
                            open.push(ticket);
                        }
                        None => assert!(!before.contains(&true), "seed {seed}: {} left room", policy.name()),
                    }
                } else if !open.is_empty() {
                    let ticket = open.swap_remove(random.below(open.len()));
                    cluster.finish(ticket, Outcome::Success, now);
                }
            }
            learnt |= view.backends().iter().any(|backend| limit(backend) < 9);
        }
        assert!(learnt, "{}: no limit was learnt", policy.name());
    }
}
