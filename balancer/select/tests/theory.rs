//! The simulator against queueing theory: where a formula is known, the simulation gives its numbers.
#![cfg(not(loom))]

use std::time::Duration;

use select::PolicyKind;
use select::sim::{Contender, Load, Run, Scenario, Spec, Work, run};

const MEAN_NS: f64 = 1e6;
const ANYONE: Contender = Contender::Real(PolicyKind::Random);

/// About 800,000 requests.
fn steady(backends: Vec<Spec>, work: Work, utilisation: f64) -> Scenario {
    let mut scenario = Scenario::steady(backends, work, Load::poisson(0.0));
    let per_second = scenario.capacity_per_second() * utilisation;
    scenario.load = Load::poisson(per_second);
    scenario.until = scenario.warm_up + Duration::from_secs_f64(800_000.0 / per_second);
    scenario
}

#[track_caller]
fn check(what: &str, simulated: f64, theory: f64, tolerance: f64) {
    let off = simulated / theory - 1.0;
    assert!(off.abs() < tolerance, "{what}: {simulated} instead of {theory}, {:+.1} %", 100.0 * off);
}

fn at(backends: Vec<Spec>, work: Work, utilisation: f64) -> Run {
    run(&steady(backends, work, utilisation), &ANYONE, 1)
}

#[test]
fn one_exponential_slot_in_order_of_arrival() {
    // M/M/1: the time in the system is exponential with mean s / (1 - rho).
    for utilisation in [0.3, 0.7] {
        let summary =
            at(vec![Spec::queue(1, 1.0)], Work::Exponential { mean_ns: MEAN_NS }, utilisation).summary();
        let mean = MEAN_NS / (1.0 - utilisation);
        check("mean", summary.mean_ns, mean, 0.02);
        check("p50", summary.p50_ns, mean * 2f64.ln(), 0.02);
        check("p99", summary.p99_ns, mean * 100f64.ln(), 0.04);
    }
}

/// Erlang's C: the probability of waiting with `slots` slots at `load` erlangs.
fn erlang_c(slots: u32, load: f64) -> f64 {
    let mut blocked = 1.0;
    for slot in 1..=slots {
        blocked = load * blocked / (f64::from(slot) + load * blocked);
    }
    let free = 1.0 - load / f64::from(slots);
    blocked / (free + blocked * (1.0 - free))
}

#[test]
fn four_exponential_slots_in_order_of_arrival() {
    // M/M/c: wait = C(c, a) / (c - a) of a service; the tail of the time in the system from its two exponentials.
    let (slots, utilisation) = (4, 0.8);
    let load = f64::from(slots) * utilisation;
    let waits = erlang_c(slots, load);
    assert!((waits - 0.5964).abs() < 1e-4, "Erlang C(4, 3.2) is 0.5964, not {waits}");
    let summary =
        at(vec![Spec::queue(slots, 1.0)], Work::Exponential { mean_ns: MEAN_NS }, utilisation).summary();
    let rate = f64::from(slots) - load;
    check("mean", summary.mean_ns, MEAN_NS * (1.0 + waits / rate), 0.02);
    // P(T > t) = e^-t (1 + waits (1 - e^-(rate - 1) t) / (rate - 1)) in units of the service.
    let tail = |t: f64| (-t).exp() * (1.0 + waits * (1.0 - (-(rate - 1.0) * t).exp()) / (rate - 1.0));
    check("beyond p50", tail(summary.p50_ns / MEAN_NS), 0.5, 0.02);
    check("beyond p99", tail(summary.p99_ns / MEAN_NS), 0.01, 0.06);
}

#[test]
fn one_constant_slot_in_order_of_arrival() {
    // M/D/1: wait = rho / (2 (1 - rho)) services. At rho = 0.5, P(wait <= t) for t < 1 is (1 - rho) e^(rho t).
    let summary = at(vec![Spec::queue(1, 1.0)], Work::Constant { mean_ns: MEAN_NS }, 0.8).summary();
    check("mean at 0.8", summary.mean_ns, MEAN_NS * 3.0, 0.02);
    let half = at(vec![Spec::queue(1, 1.0)], Work::Constant { mean_ns: MEAN_NS }, 0.5);
    check("mean at 0.5", half.summary().mean_ns, MEAN_NS * 1.5, 0.02);
    let within = |services: f64| {
        let bound = (MEAN_NS * (1.0 + services)) as u64;
        half.records.iter().filter(|r| r.latency_ns <= bound).count() as f64 / half.records.len() as f64
    };
    check("no wait", within(1e-5), 0.5, 0.01);
    check("wait of half a service", within(0.5), 0.5 * 0.25f64.exp(), 0.01);
}

#[test]
fn shared_slot_does_not_mind_how_work_is_distributed() {
    // M/G/1 processor sharing: mean = s / (1 - rho) whatever the distribution.
    for work in [
        Work::Constant { mean_ns: MEAN_NS },
        Work::LogNormal { mean_ns: MEAN_NS, cv: 2.0 },
        Work::Bimodal { mean_ns: MEAN_NS, one_in: 100, ratio: 100.0 },
    ] {
        let summary = at(vec![Spec::shared(1, 1.0)], work, 0.6).summary();
        check(&format!("{work:?}"), summary.mean_ns, MEAN_NS / 0.4, 0.04);
    }
}

#[test]
fn clairvoyant_over_equal_single_slots_is_one_queue_of_many_slots() {
    let scenario = steady(vec![Spec::queue(1, 1.0); 4], Work::Exponential { mean_ns: MEAN_NS }, 0.8);
    let summary = run(&scenario, &Contender::Oracle(select::sim::Order::Arrival), 1).summary();
    check("mean", summary.mean_ns, MEAN_NS * (1.0 + erlang_c(4, 3.2) / 0.8), 0.02);
}

/// Four strong and four weak backends with one slot; strong ones are `ratio` times as quick.
fn mixed(ratio: f64) -> Vec<Spec> {
    [vec![Spec::queue(1, ratio); 4], vec![Spec::queue(1, 1.0); 4]].concat()
}

/// Requests that wait or are served at the end, over those that arrived, in a run that cannot keep up or can.
fn left_over(contender: Contender, backends: Vec<Spec>, utilisation: f64) -> f64 {
    let mut scenario = steady(backends, Work::Exponential { mean_ns: MEAN_NS }, utilisation);
    scenario.warm_up = Duration::ZERO;
    scenario.until = Duration::from_secs_f64(200_000.0 / (scenario.capacity_per_second() * utilisation));
    let end_ns = scenario.until.as_nanos() as u64;
    let run = run(&scenario, &contender, 3);
    let open = run.records.iter().filter(|r| r.arrived_ns + r.latency_ns > end_ns).count();
    open as f64 / run.records.len() as f64
}

#[track_caller]
fn check_limit(kind: PolicyKind, ratio: f64, limit: f64) {
    let contender = Contender::Real(kind);
    let (below, above) = (limit - 0.03, limit + 0.06);
    let (stable, unstable) =
        (left_over(contender, mixed(ratio), below), left_over(contender, mixed(ratio), above));
    assert!(stable < 0.004, "{} keeps up at {below:.2} with r = {ratio}: {stable}", kind.name());
    assert!(unstable > 0.008, "{} does not keep up at {above:.2} with r = {ratio}: {unstable}", kind.name());
}

#[test]
fn policies_stop_keeping_up_where_arithmetic_says() {
    // A weak backend is full when its forced share of the arrivals exceeds its capacity: 1/8 each for round-robin;
    // all four together C(4,2)/C(8,2) = 3/14 for the better of two.
    check_limit(PolicyKind::RoundRobin, 6.0, 8.0 / 28.0);
    check_limit(PolicyKind::RoundRobin, 2.0, 8.0 / 12.0);
    check_limit(PolicyKind::TwoChoices, 6.0, 14.0 / 3.0 * 4.0 / 28.0);
    check_limit(PolicyKind::TwoChoices, 20.0, 14.0 / 3.0 * 4.0 / 84.0);
    check_limit(PolicyKind::TwoChoicesPeakEwma, 20.0, 14.0 / 3.0 * 4.0 / 84.0);
}

#[test]
fn looking_at_all_keeps_up_to_nearly_all_of_the_capacity() {
    for kind in [PolicyKind::LeastOutstanding, PolicyKind::ExpectedLatency] {
        for ratio in [6.0, 20.0] {
            let left = left_over(Contender::Real(kind), mixed(ratio), 0.93);
            assert!(left < 0.004, "{} at r = {ratio}: {left}", kind.name());
        }
    }
}

#[test]
fn same_seed_gives_the_same_run_and_another_one_another() {
    let scenario = steady(mixed(2.0), Work::Exponential { mean_ns: MEAN_NS }, 0.5);
    let contender = Contender::Real(PolicyKind::default());
    let runs: Vec<_> = [5, 5, 6].iter().map(|&seed| run(&scenario, &contender, seed).records).collect();
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[test]
fn requests_are_the_same_whatever_the_policy() {
    let scenario = steady(mixed(2.0), Work::Exponential { mean_ns: MEAN_NS }, 0.5);
    let arrivals = |contender| -> Vec<u64> {
        run(&scenario, &contender, 9).records.iter().map(|record| record.arrived_ns).collect()
    };
    assert_eq!(arrivals(ANYONE), arrivals(Contender::Real(PolicyKind::TwoChoices)));
}
