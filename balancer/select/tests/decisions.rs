//! What a picker tells of its choices, and that telling changes none.
#![cfg(not(loom))]
#![allow(
    clippy::disallowed_methods,
    reason = "a starting point for the virtual clock, which moves by itself"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use select::{Backend, Cluster, DECISIONS_MAX, Ejection, Outcome, PolicyKind, View, Why};

const MS: Duration = Duration::from_millis(1);

fn cluster(size: usize, policy: PolicyKind, start: Instant) -> Cluster {
    let backends = (0..size).map(|n| Arc::new(Backend::new(&format!("i-{n}"), start))).collect();
    Cluster::new(Arc::new(View::new(backends, Ejection::default())), policy, 7)
}

/// Requests one after the other, two of them in flight at a time; backend `n` takes `n + 1` ms. Returns where they
/// went.
fn play(cluster: &mut Cluster, start: Instant, count: u32, recording: bool) -> Vec<usize> {
    cluster.set_recording(recording);
    let mut open = Vec::new();
    let mut went = Vec::new();
    for step in 1..=count {
        let now = start + step * 10 * MS;
        let ticket = cluster.pick(now).expect("all are up");
        went.push(ticket.backend());
        open.push(ticket);
        if open.len() > 2 {
            let ticket = open.remove(0);
            let took = MS * (ticket.backend() as u32 + 1);
            cluster.finish(ticket, Outcome::Success, now + took);
        }
    }
    went
}

#[test]
fn recording_changes_no_choice_of_any_policy() {
    for policy in PolicyKind::ALL {
        for size in [3, 40] {
            let start = Instant::now();
            let plain = play(&mut cluster(size, policy, start), start, 300, false);
            let recorded = play(&mut cluster(size, policy, start), start, 300, true);
            assert_eq!(plain, recorded, "{} of {size}", policy.name());
        }
    }
}

#[test]
fn chosen_one_is_among_the_compared_and_cost_least() {
    let start = Instant::now();
    // Prequal orders hot and cold ones by different numbers, least-time takes turns below 20 ms.
    for (policy, band) in [
        (PolicyKind::ExpectedLatency, 1.05),
        (PolicyKind::LeastOutstanding, 1.0),
        (PolicyKind::TwoChoices, 1.0),
        (PolicyKind::TwoChoicesPeakEwma, 1.0),
        (PolicyKind::EnvoyPeakEwma, 1.0),
        (PolicyKind::LeastTime, 1.0),
    ] {
        let mut cluster = cluster(6, policy, start);
        let went = play(&mut cluster, start, 200, true);
        let decisions: Vec<_> = cluster.decisions().copied().collect();
        assert_eq!(decisions.len(), DECISIONS_MAX, "{}", policy.name());
        for (decision, &went) in decisions.iter().zip(&went[went.len() - DECISIONS_MAX..]) {
            assert_eq!(decision.chosen as usize, went, "{}", policy.name());
            if decision.why == Why::Explored {
                continue;
            }
            let cost = |of: &select::Compared| of.cost.expect("it has one");
            let chosen = decision.compared().iter().find(|one| one.backend == decision.chosen);
            let chosen = chosen.unwrap_or_else(|| panic!("{}: {decision:?}", policy.name()));
            let least = decision.compared().iter().map(cost).fold(f64::INFINITY, f64::min);
            assert!(cost(chosen) <= least * band + 1e-9, "{}: {decision:?}", policy.name());
        }
    }
}

#[test]
fn drawn_candidates_alone_are_shown_as_compared() {
    let start = Instant::now();
    for policy in [PolicyKind::TwoChoices, PolicyKind::TwoChoicesPeakEwma, PolicyKind::EnvoyPeakEwma] {
        let mut cluster = cluster(6, policy, start);
        play(&mut cluster, start, 100, true);
        assert!(cluster.decisions().all(|decision| decision.candidates == 2), "{}", policy.name());
    }
}

#[test]
fn reason_is_told_when_there_was_nothing_to_compare() {
    let start = Instant::now();
    let mut cluster = cluster(2, PolicyKind::default(), start);
    cluster.set_recording(true);
    let first = cluster.pick_other(&[1], start + MS).expect("one is left");
    let view = Arc::clone(cluster.view());
    cluster.finish(first, Outcome::Success, start + 2 * MS);
    view.backends()[0].set_draining(true);
    for step in 0..5 {
        let ticket = cluster.pick(start + (10 + step) * MS).expect("up");
        cluster.finish(ticket, Outcome::Failure, start + (10 + step) * MS);
    }
    // Ejected after five failures: half of two may be, and the other drains.
    let ticket = cluster.pick(start + 20 * MS).expect("in panic mode");
    cluster.finish(ticket, Outcome::Cancelled, start + 20 * MS);
    let reasons: Vec<_> = cluster.decisions().map(|decision| decision.why).collect();
    assert_eq!((reasons[0], *reasons.last().expect("some")), (Why::Only, Why::Panic));
    cluster.set_recording(false);
    assert_eq!(cluster.decisions().count(), 0);
}

#[test]
fn expected_latency_tells_its_estimate_and_what_makes_it_doubt() {
    let start = Instant::now();
    let mut cluster = cluster(2, PolicyKind::ExpectedLatency, start);
    for step in 1..=50u32 {
        let ticket = cluster.pick(start + step * 10 * MS).expect("up");
        let slow = ticket.backend() == 1;
        let outcome = if slow && step.is_multiple_of(7) { Outcome::Failure } else { Outcome::Success };
        cluster.finish(ticket, outcome, start + step * 10 * MS + 2 * MS);
    }
    let told = |cluster: &Cluster, backend, now| {
        let mut all = Vec::new();
        cluster.believes(backend, now, &mut |belief| all.push((belief.name, belief.unit, belief.value)));
        all
    };
    let now = start + 600 * MS;
    let names: Vec<_> = told(&cluster, 0, now).iter().map(|&(name, unit, _)| (name, unit)).collect();
    let expected =
        [("latency_per_request", "ms"), ("silence_factor", ""), ("failing_share", ""), ("cost", "")];
    assert_eq!(names, expected);
    let value = |cluster: &Cluster, name: &str, now| {
        told(cluster, 0, now).iter().find(|belief| belief.0 == name).expect("told").2
    };
    assert!((value(&cluster, "latency_per_request", now) - 2.0).abs() < 0.1);
    assert_eq!(value(&cluster, "silence_factor", now), 1.0);
    // A request in flight that nothing is heard of for 100 times the usual distance of answers.
    let open = cluster.pick_other(&[1], now).expect("up");
    let silence = value(&cluster, "silence_factor", now + 200 * MS);
    assert!((8.0..12.0).contains(&silence), "{silence}");
    assert!(value(&cluster, "cost", now + 200 * MS) > 5.0 * value(&cluster, "cost", now));
    cluster.finish(open, Outcome::Cancelled, now + 200 * MS);
}
