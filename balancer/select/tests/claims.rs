//! What each policy promises, as claims on a virtual clock: no test here reads the time or sleeps.
#![cfg(not(loom))]
#![allow(
    clippy::disallowed_methods,
    reason = "a starting point for the virtual clock, which then moves by itself"
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use select::{Backend, Cluster, Ejection, Health, Outcome, PolicyKind, Ticket, View};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// How a simulated backend answers: service time with `slots` at work, and what every n-th request ends as.
#[derive(Clone, Copy)]
struct Behaviour {
    service: Duration,
    slots: usize,
    fails_every: Option<u64>,
}

fn answers_in(service: Duration) -> Behaviour {
    Behaviour { service, slots: 1, fails_every: None }
}

fn fails_in(service: Duration) -> Behaviour {
    Behaviour { service, slots: 1, fails_every: Some(1) }
}

/// A cluster with simulated backends: arrivals at even distances, each backend a queue in order of arrival.
struct Simulation {
    cluster: Cluster,
    behaviours: Vec<Behaviour>,
    free_at: Vec<Vec<Instant>>,
    served: Vec<u64>,
    failed: Vec<u64>,
    now: Instant,
}

impl Simulation {
    fn new(policy: PolicyKind, behaviours: &[Behaviour]) -> Self {
        Self::with_ejection(policy, behaviours, Ejection { failures_in_row: 0, ..Ejection::default() })
    }

    fn with_ejection(policy: PolicyKind, behaviours: &[Behaviour], ejection: Ejection) -> Self {
        let start = Instant::now();
        let backends =
            (0..behaviours.len()).map(|n| Arc::new(Backend::new(&format!("i-{n}"), start))).collect();
        let view = Arc::new(View::new(backends, ejection));
        Self {
            cluster: Cluster::new(view, policy, 7),
            behaviours: behaviours.to_vec(),
            free_at: behaviours.iter().map(|b| vec![start; b.slots]).collect(),
            served: vec![0; behaviours.len()],
            failed: vec![0; behaviours.len()],
            now: start,
        }
    }

    /// Runs `count` requests that arrive `apart` and returns the latency of each.
    fn run(&mut self, count: u64, apart: Duration) -> Vec<Duration> {
        let mut open: BinaryHeap<Reverse<(Instant, u64)>> = BinaryHeap::new();
        let mut tickets: std::collections::HashMap<u64, (Ticket, Outcome)> = std::collections::HashMap::new();
        let mut latencies = Vec::new();
        for number in 0..count {
            self.now += apart;
            while open.peek().is_some_and(|Reverse((due, _))| *due <= self.now) {
                let Reverse((due, id)) = open.pop().expect("peeked");
                let (ticket, outcome) = tickets.remove(&id).expect("open");
                self.cluster.finish(ticket, outcome, due);
            }
            let ticket = self.cluster.pick(self.now).expect("a backend is up");
            let (due, outcome) = self.serve(ticket.backend());
            latencies.push(due - self.now);
            open.push(Reverse((due, number)));
            tickets.insert(number, (ticket, outcome));
        }
        for (_, (ticket, outcome)) in tickets {
            self.cluster.finish(ticket, outcome, self.now);
        }
        latencies
    }

    fn serve(&mut self, backend: usize) -> (Instant, Outcome) {
        let behaviour = self.behaviours[backend];
        self.served[backend] += 1;
        let slot = self.free_at[backend].iter_mut().min().expect("at least one slot");
        *slot = self.now.max(*slot) + behaviour.service;
        let fails = behaviour.fails_every.is_some_and(|n| self.served[backend].is_multiple_of(n));
        self.failed[backend] += u64::from(fails);
        (*slot, if fails { Outcome::Failure } else { Outcome::Success })
    }

    fn share(&self, backend: usize) -> f64 {
        self.served[backend] as f64 / self.served.iter().sum::<u64>() as f64
    }
}

fn backends(count: usize, ejection: Ejection, policy: PolicyKind) -> (Cluster, Instant) {
    let start = Instant::now();
    let backends = (0..count).map(|n| Arc::new(Backend::new(&format!("i-{n}"), start))).collect();
    (Cluster::new(Arc::new(View::new(backends, ejection)), policy, 3), start)
}

fn fail_in_a_row(cluster: &mut Cluster, backend: usize, times: u32, now: Instant) {
    let count = cluster.view().backends().len();
    let others: Vec<usize> = (0..count).filter(|&other| other != backend).collect();
    for _ in 0..times {
        let ticket = cluster.pick_other(&others, now).expect("not ejected yet");
        cluster.finish(ticket, Outcome::Failure, now + MS);
    }
}

#[test]
fn round_robin_gives_every_backend_the_same_share() {
    let mut simulation =
        Simulation::new(PolicyKind::RoundRobin, &[answers_in(MS), answers_in(MS), answers_in(9 * MS)]);
    simulation.run(300, 4 * MS);
    assert_eq!(simulation.served, [100, 100, 100]);
}

#[test]
fn least_outstanding_breaks_ties_evenly() {
    let (mut cluster, now) = backends(4, Ejection::default(), PolicyKind::LeastOutstanding);
    let mut counts = [0u32; 4];
    for _ in 0..4000 {
        let ticket = cluster.pick(now).expect("all are up");
        counts[ticket.backend()] += 1;
        cluster.finish(ticket, Outcome::Cancelled, now);
    }
    assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
}

#[test]
fn least_outstanding_never_picks_a_busier_backend() {
    let (mut cluster, now) = backends(5, Ejection::default(), PolicyKind::LeastOutstanding);
    let mut open = Vec::new();
    for _ in 0..50 {
        open.push(cluster.pick(now).expect("all are up"));
        let counts: Vec<u32> = cluster.view().backends().iter().map(|b| b.in_flight()).collect();
        let (least, most) = (counts.iter().min(), counts.iter().max());
        assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{counts:?}");
    }
    for ticket in open {
        cluster.finish(ticket, Outcome::Cancelled, now);
    }
}

#[test]
fn slow_backend_gets_fewer_requests() {
    let quick = answers_in(MS);
    let mut simulation =
        Simulation::new(PolicyKind::ExpectedLatency, &[quick, quick, quick, answers_in(10 * MS)]);
    simulation.run(5000, MS / 2);
    assert!(simulation.share(3) < 0.05, "{:?}", simulation.served);
}

#[test]
fn half_the_capacity_gets_about_half_the_requests_near_saturation() {
    let strong = Behaviour { slots: 2, ..answers_in(MS) };
    let mut simulation =
        Simulation::new(PolicyKind::ExpectedLatency, &[strong, strong, answers_in(MS), answers_in(MS)]);
    // Six slots of 1 ms serve 6000 a second; 90 % of that arrives.
    let latencies = simulation.run(20_000, Duration::from_micros(185));
    let weak = simulation.share(2) + simulation.share(3);
    assert!((0.25..0.42).contains(&weak), "{:?}", simulation.served);
    assert!(latencies.iter().max() < Some(&(30 * MS)), "no queue grows without bound");
}

#[test]
fn fast_errors_attract_no_traffic() {
    let good = answers_in(5 * MS);
    let mut simulation = Simulation::new(PolicyKind::ExpectedLatency, &[good, good, good, fails_in(MS / 10)]);
    simulation.run(20_000, 3 * MS);
    assert!(simulation.share(3) < 0.01, "{:?}", simulation.served);
}

#[test]
fn fast_errors_of_half_the_requests_attract_no_traffic_either() {
    let good = answers_in(5 * MS);
    let sick = Behaviour { fails_every: Some(2), ..answers_in(MS / 10) };
    let mut simulation = Simulation::new(PolicyKind::ExpectedLatency, &[good, good, good, sick]);
    simulation.run(20_000, 3 * MS);
    let errors = simulation.failed[3] as f64 / 20_000.0;
    assert!(errors < 0.01, "{errors}: {:?}", simulation.served);
}

#[test]
fn ejection_keeps_any_policy_away_from_a_backend_that_only_fails() {
    for policy in PolicyKind::ALL {
        let good = answers_in(5 * MS);
        let behaviours = [good, good, good, fails_in(MS / 10)];
        let mut simulation = Simulation::with_ejection(policy, &behaviours, Ejection::default());
        simulation.run(20_000, 3 * MS);
        assert!(simulation.share(3) < 0.01, "{policy:?}: {:?}", simulation.served);
    }
}

#[test]
fn new_backend_is_neither_flooded_nor_starved() {
    for policy in [PolicyKind::ExpectedLatency, PolicyKind::LeastOutstanding] {
        let quick = answers_in(2 * MS);
        let mut simulation = Simulation::new(policy, &[quick; 4]);
        simulation.cluster.view().backends()[3].set_draining(true);
        simulation.run(1000, MS);
        assert_eq!(simulation.served[3], 0);
        simulation.cluster.view().backends()[3].set_draining(false);
        simulation.served = vec![0; 4];
        simulation.run(1000, MS);
        assert!((0.15..0.40).contains(&simulation.share(3)), "{policy:?}: {:?}", simulation.served);
    }
}

#[test]
fn backend_that_was_slow_is_tried_again_within_a_minute() {
    let mut simulation = Simulation::new(PolicyKind::ExpectedLatency, &[answers_in(MS), answers_in(20 * MS)]);
    simulation.run(1000, 5 * MS);
    simulation.behaviours[1] = answers_in(MS);
    simulation.run(12_000, 5 * MS);
    simulation.served = vec![0; 2];
    simulation.run(1000, 5 * MS);
    assert!(simulation.share(1) > 0.3, "{:?}", simulation.served);
}

#[test]
fn cancelled_request_leaves_no_trace() {
    for policy in PolicyKind::ALL {
        let (mut cluster, now) = backends(2, Ejection::default(), policy);
        let before: Vec<_> = cluster.view().backends().iter().map(|b| b.estimate(now)).collect();
        for _ in 0..20 {
            let ticket = cluster.pick(now).expect("all are up");
            cluster.finish(ticket, Outcome::Cancelled, now);
        }
        for (backend, before) in cluster.view().backends().iter().zip(before) {
            assert_eq!((backend.in_flight(), backend.estimate(now)), (0, before));
            assert_eq!(backend.health(now), Health::Up);
        }
    }
}

#[test]
fn request_counts_from_the_decision_until_it_is_finished() {
    let (mut cluster, now) = backends(1, Ejection::default(), PolicyKind::RoundRobin);
    let ticket = cluster.pick(now).expect("up");
    assert_eq!(cluster.view().backends()[0].in_flight(), 1);
    cluster.finish(ticket, Outcome::Success, now + MS);
    assert_eq!(cluster.view().backends()[0].in_flight(), 0);
}

#[test]
fn slow_client_of_a_long_answer_does_not_make_its_backend_slow() {
    let (mut cluster, start) = backends(1, Ejection::default(), PolicyKind::ExpectedLatency);
    let mut ticket = cluster.pick(start).expect("up");
    ticket.answered(start + 2 * MS);
    ticket.answered(start + SECOND);
    cluster.finish(ticket, Outcome::Success, start + 60 * SECOND);
    let estimate = cluster.view().backends()[0].estimate(start + 60 * SECOND);
    assert_eq!(estimate.latency_per_request_ns, 2e6);
}

#[test]
fn failures_in_a_row_eject_and_the_time_doubles() {
    let (mut cluster, start) = backends(4, Ejection::default(), PolicyKind::RoundRobin);
    fail_in_a_row(&mut cluster, 2, 5, start);
    let health = |cluster: &Cluster, now| cluster.view().backends()[2].health(now);
    assert_eq!(health(&cluster, start + 2 * MS), Health::Ejected);
    let back = start + SECOND + 2 * MS;
    assert_eq!(health(&cluster, back), Health::Up);
    fail_in_a_row(&mut cluster, 2, 1, back);
    assert_eq!(health(&cluster, back + SECOND), Health::Ejected, "one failure is enough, for two seconds");
    assert_eq!(health(&cluster, back + 3 * SECOND), Health::Up);
}

#[test]
fn success_between_failures_prevents_an_ejection() {
    let (mut cluster, start) = backends(2, Ejection::default(), PolicyKind::RoundRobin);
    for _ in 0..10 {
        fail_in_a_row(&mut cluster, 0, 4, start);
        let ticket = cluster.pick_other(&[1], start).expect("up");
        cluster.finish(ticket, Outcome::Success, start);
    }
    assert_eq!(cluster.view().backends()[0].health(start), Health::Up);
}

#[test]
fn at_most_half_of_a_cluster_is_ejected() {
    let (mut cluster, start) = backends(4, Ejection::default(), PolicyKind::RoundRobin);
    for backend in 0..4 {
        fail_in_a_row(&mut cluster, backend, 5, start);
    }
    let later = start + 2 * MS;
    let ejected = cluster.view().backends().iter().filter(|b| b.health(later) == Health::Ejected).count();
    assert_eq!(ejected, 2);
}

#[test]
fn single_backend_is_never_ejected() {
    let (mut cluster, start) = backends(1, Ejection::default(), PolicyKind::RoundRobin);
    fail_in_a_row(&mut cluster, 0, 50, start);
    assert_eq!(cluster.view().backends()[0].health(start + 2 * MS), Health::Up);
}

#[test]
fn ejected_backends_serve_when_nothing_else_is_up() {
    let (mut cluster, start) = backends(2, Ejection::default(), PolicyKind::ExpectedLatency);
    fail_in_a_row(&mut cluster, 0, 5, start);
    cluster.view().backends()[1].set_up(false);
    let now = start + 2 * MS;
    assert_eq!(cluster.view().backends()[0].health(now), Health::Ejected);
    let ticket = cluster.pick(now).expect("panic mode");
    assert_eq!(ticket.backend(), 0);
    cluster.finish(ticket, Outcome::Cancelled, now);
}

#[test]
fn nobody_is_picked_when_all_are_down_or_draining() {
    for policy in PolicyKind::ALL {
        let (mut cluster, now) = backends(2, Ejection::default(), policy);
        cluster.view().backends()[0].set_up(false);
        cluster.view().backends()[1].set_draining(true);
        assert!(cluster.pick(now).is_none());
    }
}

#[test]
fn backend_that_comes_back_starts_with_a_clean_record() {
    let (mut cluster, start) = backends(2, Ejection::default(), PolicyKind::ExpectedLatency);
    fail_in_a_row(&mut cluster, 0, 5, start);
    let backend = Arc::clone(&cluster.view().backends()[0]);
    backend.set_up(false);
    backend.set_up(true);
    assert_eq!(backend.health(start + 2 * MS), Health::Up);
    assert_eq!(backend.estimate(start).failing, 0.0);
}

#[test]
fn tried_backends_are_not_picked_again() {
    for policy in PolicyKind::ALL {
        let (mut cluster, now) = backends(3, Ejection::default(), policy);
        for _ in 0..20 {
            let ticket = cluster.pick_other(&[0, 2], now).expect("one is left");
            assert_eq!(ticket.backend(), 1);
            cluster.finish(ticket, Outcome::Cancelled, now);
        }
        assert!(cluster.pick_other(&[0, 1, 2], now).is_none());
    }
}

#[test]
fn earlier_now_is_treated_as_the_latest_seen() {
    let (mut cluster, start) = backends(1, Ejection::default(), PolicyKind::ExpectedLatency);
    let first = cluster.pick(start + SECOND).expect("up");
    let second = cluster.pick(start).expect("up");
    assert_eq!(second.latency(start + 2 * SECOND), SECOND);
    cluster.finish(first, Outcome::Success, start);
    cluster.finish(second, Outcome::Success, start);
}

#[test]
fn threads_share_one_view_of_requests_in_flight() {
    let (cluster, now) = backends(2, Ejection::default(), PolicyKind::LeastOutstanding);
    let view = Arc::clone(cluster.view());
    let threads: Vec<_> = (0..4)
        .map(|seed| {
            let view = Arc::clone(&view);
            std::thread::spawn(move || {
                let mut picker = Cluster::new(view, PolicyKind::LeastOutstanding, seed);
                for _ in 0..10_000 {
                    let ticket = picker.pick(now).expect("up");
                    picker.finish(ticket, Outcome::Success, now + MS);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no thread panics");
    }
    assert!(view.backends().iter().all(|backend| backend.in_flight() == 0));
}

#[test]
fn threads_begin_at_different_backends() {
    let (cluster, start) = backends(8, Ejection::default(), PolicyKind::default());
    let firsts: std::collections::HashSet<usize> = (0..32u64)
        .map(|thread| {
            let view = Arc::new(View::new(cluster.view().backends().to_vec(), Ejection::default()));
            let mut picker = Cluster::new(view, PolicyKind::default(), thread.wrapping_mul(0x9e37_79b9));
            let ticket = picker.pick(start).expect("up");
            let backend = ticket.backend();
            picker.finish(ticket, Outcome::Cancelled, start);
            backend
        })
        .collect();
    assert!(firsts.len() > 4, "{firsts:?}");
}

#[test]
fn every_policy_is_found_by_its_name() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
    }
    assert_eq!("ours".parse(), Ok(PolicyKind::default()));
    let unknown = "fastest".parse::<PolicyKind>().expect_err("no such policy").to_string();
    assert!(unknown.contains("least-outstanding"), "{unknown}");
}

#[test]
fn backend_on_trial_gets_one_request_at_a_time_until_one_succeeds() {
    for policy in PolicyKind::ALL {
        let (mut cluster, start) = backends(3, Ejection::default(), policy);
        fail_in_a_row(&mut cluster, 2, 5, start);
        let now = start + SECOND + 2 * MS;
        let trial = cluster.pick_other(&[0, 1], now).expect("its ejection is over");
        for _ in 0..50 {
            let ticket = cluster.pick(now).expect("others are up");
            assert_ne!(ticket.backend(), 2, "{}", policy.name());
            cluster.finish(ticket, Outcome::Cancelled, now);
        }
        cluster.finish(trial, Outcome::Success, now);
        let tickets: Vec<_> = (0..2).map(|_| cluster.pick_other(&[0, 1], now).expect("trusted")).collect();
        tickets.into_iter().for_each(|ticket| cluster.finish(ticket, Outcome::Cancelled, now));
    }
}

#[test]
fn cluster_whose_only_backend_fails_is_not_throttled() {
    let (mut cluster, start) = backends(1, Ejection::default(), PolicyKind::default());
    fail_in_a_row(&mut cluster, 0, 50, start);
    let tickets: Vec<_> = (0..10).map(|_| cluster.pick(start).expect("there is no other")).collect();
    tickets.into_iter().for_each(|ticket| cluster.finish(ticket, Outcome::Cancelled, start));
}

#[test]
fn silent_backend_is_left_before_its_first_late_answer() {
    let (mut cluster, start) = backends(4, Ejection::default(), PolicyKind::default());
    let mut now = start;
    for _ in 0..400 {
        let ticket = cluster.pick(now).expect("all are up");
        now += MS / 4;
        cluster.finish(ticket, Outcome::Success, now);
    }
    // Backend 0 says nothing from here on. It has one request, the others answer after a quarter of a millisecond.
    let _silent = cluster.pick_other(&[1, 2, 3], now).expect("up");
    now += 4 * MS;
    // Two on each of the others cost more than one more on a backend that has one, unless that one is overdue.
    let mut busy = Vec::new();
    for _ in 0..6 {
        busy.push(cluster.pick(now).expect("up"));
    }
    assert!(busy.iter().all(|ticket| ticket.backend() != 0));
    busy.into_iter().for_each(|ticket| cluster.finish(ticket, Outcome::Cancelled, now));
}

#[test]
fn large_cluster_is_sampled_and_its_down_backends_are_never_drawn() {
    for policy in [PolicyKind::default(), PolicyKind::TwoChoices, PolicyKind::Random, PolicyKind::Prequal] {
        let (mut cluster, now) = backends(1000, Ejection::default(), policy);
        for backend in (0..1000).filter(|backend| backend % 10 != 0) {
            cluster.view().backends()[backend].set_up(false);
        }
        let mut seen = vec![false; 1000];
        for _ in 0..5000 {
            let ticket = cluster.pick_other(&[0, 10], now).expect("98 are left");
            seen[ticket.backend()] = true;
            cluster.finish(ticket, Outcome::Cancelled, now);
        }
        let count = seen.iter().filter(|&&seen| seen).count();
        assert!(
            seen.iter().enumerate().all(|(n, &seen)| !seen || (n % 10 == 0 && n > 10)),
            "{}",
            policy.name()
        );
        assert!(count > 90, "{}: {count} of 98", policy.name());
        for backend in (0..1000).filter(|&backend| backend != 500) {
            cluster.view().backends()[backend].set_up(false);
        }
        let ticket = cluster.pick(now).expect("the only one is found");
        assert_eq!(ticket.backend(), 500);
        cluster.finish(ticket, Outcome::Cancelled, now);
    }
}
