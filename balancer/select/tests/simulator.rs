//! What the simulated world does to requests, on small scenarios that can be worked out by hand.
#![cfg(not(loom))]

use std::time::Duration;

use select::PolicyKind;
use select::sim::{
    Arrivals, Change, Contender, Ending, Load, Order, Probe, Record, Run, Scenario, Sharing, Spec, Step,
    Threads, What, Work, run,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const ROUND_ROBIN: Contender = Contender::Real(PolicyKind::RoundRobin);

/// One request per 10 ms, at 10, 20, ... 1000 ms, each of 1 ms, and no warm-up.
fn calm(backends: usize) -> Scenario {
    let steps = vec![Step { at: Duration::ZERO, per_second: 100.0 }];
    let load = Load::Open { arrivals: Arrivals::Constant, steps };
    let mut scenario =
        Scenario::steady(vec![Spec::queue(1, 1.0); backends], Work::Constant { mean_ns: 1e6 }, load);
    scenario.warm_up = Duration::ZERO;
    scenario.until = SECOND + MS;
    scenario.deadline = 200 * MS;
    scenario
}

fn change(at: Duration, backend: usize, what: What) -> Change {
    Change { at, backend, what }
}

fn count(run: &Run, ending: Ending) -> usize {
    run.records.iter().filter(|record| record.ending == ending).count()
}

fn latencies_ms(records: &[Record]) -> Vec<f64> {
    records.iter().map(|record| record.latency_ns as f64 / 1e6).collect()
}

#[test]
fn quiet_backends_answer_in_the_time_of_the_work() {
    let run = run(&calm(2), &ROUND_ROBIN, 1);
    assert_eq!(run.records.len(), 100);
    assert!(latencies_ms(&run.records).iter().all(|&latency| latency == 1.0));
    assert!((run.share(0, Duration::ZERO, SECOND) - 0.5).abs() < 0.01);
}

#[test]
fn stalled_backend_answers_nobody_until_it_goes_on() {
    let mut scenario = calm(1);
    scenario.changes = vec![change(95 * MS, 0, What::Speed(0.0)), change(405 * MS, 0, What::Speed(1.0))];
    scenario.deadline = 200 * MS;
    let run = run(&scenario, &ROUND_ROBIN, 1);
    // The k-th that arrives during the stall, from 0, ends at 405 + k + 1 ms, 306 - 9 k after it came.
    assert_eq!(count(&run, Ending::TimedOut), 12);
    assert_eq!((run.records[9].ending, run.records[9].latency_ns), (Ending::TimedOut, 200_000_000));
    assert_eq!((run.records[21].ending, run.records[21].latency_ns), (Ending::Answered, 198_000_000));
}

#[test]
fn delay_comes_after_the_work_and_keeps_no_slot() {
    let mut scenario = calm(1);
    scenario.changes =
        vec![change(45 * MS, 0, What::Delay(15 * MS)), change(85 * MS, 0, What::Delay(Duration::ZERO))];
    let run = run(&scenario, &ROUND_ROBIN, 1);
    let latencies = latencies_ms(&run.records);
    // Those of 50 to 80 ms: later by 15 ms, although the next one comes after 10.
    assert_eq!(latencies[3..9], [1.0, 16.0, 16.0, 16.0, 16.0, 1.0]);
}

#[test]
fn failing_backend_fails_its_share_in_a_fraction_of_the_time() {
    let mut scenario = calm(2);
    scenario.ejection.failures_in_row = 0;
    scenario.changes = vec![change(Duration::ZERO, 1, What::Fail { share: 1.0, work: 0.1 })];
    let run = run(&scenario, &ROUND_ROBIN, 1);
    assert_eq!(count(&run, Ending::Failed), 50);
    let failed = run.records.iter().find(|record| record.ending == Ending::Failed);
    assert_eq!(failed.map(|record| (record.latency_ns, record.backend)), Some((100_000, 1)));
    assert_eq!(run.summary().p99_ns, 200e6, "a failure counts as the deadline");
}

#[test]
fn refused_connection_is_tried_elsewhere_and_costs_a_tenth_of_a_millisecond() {
    let mut scenario = calm(2);
    scenario.ejection.failures_in_row = 0;
    scenario.changes = vec![change(Duration::ZERO, 0, What::Crash), change(505 * MS, 0, What::Restart)];
    let run = run(&scenario, &ROUND_ROBIN, 1);
    assert_eq!(count(&run, Ending::Answered), 100);
    let twice = run.records.iter().filter(|record| record.attempts == 2).count();
    assert_eq!(twice, 25);
    assert!(latencies_ms(&run.records).iter().all(|&latency| latency == 1.0 || latency == 1.1));
}

#[test]
fn crash_sends_what_it_held_elsewhere() {
    let mut scenario = calm(2);
    scenario.changes =
        vec![change(10 * MS + MS / 2, 0, What::Crash), change(10 * MS + MS / 2, 1, What::Crash)];
    let crashed = run(&scenario, &ROUND_ROBIN, 1);
    assert_eq!((crashed.records[0].ending, crashed.records[0].attempts), (Ending::Failed, 2));
    scenario.changes.truncate(1);
    let saved = run(&scenario, &Contender::Real(PolicyKind::LeastOutstanding), 1);
    assert_eq!(count(&saved, Ending::Answered), 100);
}

#[test]
fn black_hole_costs_the_time_to_connect() {
    let mut scenario = calm(2);
    scenario.ejection.failures_in_row = 0;
    scenario.retry.timeout_connect = 55 * MS;
    scenario.changes = vec![change(Duration::ZERO, 0, What::BlackHole)];
    let run = run(&scenario, &ROUND_ROBIN, 1);
    assert!(latencies_ms(&run.records).iter().all(|&latency| [1.0, 56.0].contains(&latency)));
}

#[test]
fn probe_takes_a_stalled_backend_out_and_brings_it_back() {
    let mut scenario = calm(2);
    scenario.until = 4 * SECOND;
    scenario.probe = Some(Probe { interval: 100 * MS, timeout: 50 * MS, work_ns: 1.0, rise: 2, fall: 2 });
    scenario.changes = vec![change(SECOND, 0, What::Speed(0.0)), change(2 * SECOND, 0, What::Speed(1.0))];
    let run = run(&scenario, &ROUND_ROBIN, 1);
    assert_eq!(run.share(0, SECOND + 300 * MS, 2 * SECOND), 0.0);
    assert!((run.share(0, 2 * SECOND + 400 * MS, 4 * SECOND) - 0.5).abs() < 0.02);
}

#[test]
fn closed_load_keeps_its_clients_busy() {
    let mut scenario = calm(1);
    scenario.load = Load::Closed { clients: 3, think: Duration::ZERO };
    scenario.until = SECOND;
    let run = run(&scenario, &ROUND_ROBIN, 1);
    assert!((1000..=1003).contains(&run.records.len()), "{}", run.records.len());
    assert!(latencies_ms(&run.records[3..]).iter().all(|&latency| latency == 3.0));
}

#[test]
fn clients_that_are_refused_at_once_ask_again_after_a_round_trip() {
    let mut scenario = calm(1);
    scenario.load = Load::Closed { clients: 3, think: Duration::ZERO };
    scenario.until = SECOND;
    scenario.retry.refused_after = MS;
    scenario.changes = vec![change(Duration::ZERO, 0, What::Drain(true))];
    let run = run(&scenario, &ROUND_ROBIN, 1);
    let refused = run.records.iter().filter(|record| record.ending == Ending::Refused).count();
    assert!((2990..=3003).contains(&refused), "{refused}");
}

#[test]
fn private_threads_see_only_their_own_requests_and_late_ones_learn_of_the_others() {
    let collide = |sharing| {
        let mut scenario = calm(8);
        scenario.backends = vec![Spec::queue(1, 1.0); 8];
        scenario.load = Load::poisson(4000.0);
        scenario.until = 5 * SECOND;
        scenario.deadline = SECOND;
        scenario.threads = Threads { count: 8, sharing };
        run(&scenario, &Contender::Real(PolicyKind::LeastOutstanding), 1).summary().mean_ns
    };
    let (shared, private) = (collide(Sharing::Shared), collide(Sharing::Private));
    let (at_once, soon) = (collide(Sharing::Late(Duration::ZERO)), collide(Sharing::Late(MS)));
    assert!(private > 1.2 * shared, "{private} {shared}");
    assert!(soon > 1.1 * shared && soon < private * 1.5, "{soon} {shared} {private}");
    assert!((at_once / shared - 1.0).abs() < 0.03, "news that takes no time is sharing: {at_once} {shared}");
}

#[test]
fn clairvoyant_answers_before_any_other_and_avoids_what_fails() {
    let mut scenario = calm(4);
    scenario.backends =
        vec![Spec::queue(1, 2.0), Spec::queue(1, 2.0), Spec::queue(1, 1.0), Spec::queue(1, 1.0)];
    scenario.load = Load::poisson(4500.0);
    scenario.until = 5 * SECOND;
    scenario.deadline = 10 * SECOND;
    scenario.changes = vec![change(2 * SECOND, 2, What::Fail { share: 1.0, work: 0.1 })];
    let oracle = run(&scenario, &Contender::Oracle(Order::Arrival), 1);
    assert_eq!(count(&oracle, Ending::Answered), oracle.records.len());
    for kind in PolicyKind::ALL {
        let mean_ns = run(&scenario, &Contender::Real(kind), 1).summary().mean_ns;
        assert!(oracle.summary().mean_ns < mean_ns, "{}: {mean_ns}", kind.name());
    }
}

/// Two backends of two slots with exponential work of 5 ms, 800 requests a second, under a load of so much of that, as
/// it is from each time on.
fn loaded(steps: &[(Duration, f64)]) -> Scenario {
    let steps = steps.iter().map(|&(at, share)| Step { at, per_second: 800.0 * share }).collect();
    let load = Load::Open { arrivals: Arrivals::Poisson, steps };
    let mut scenario =
        Scenario::steady(vec![Spec::shared(2, 1.0); 2], Work::Exponential { mean_ns: 5e6 }, load);
    scenario.due_within(SECOND);
    scenario.until = 15 * SECOND;
    scenario
}

#[test]
fn overloaded_cluster_answers_what_it_can_in_time_and_refuses_the_rest_at_once() {
    for policy in PolicyKind::ALL {
        let run = run(&loaded(&[(Duration::ZERO, 1.5)]), &Contender::Real(policy), 1);
        let answered = run.summary_of(|record| record.ending == Ending::Answered);
        let name = policy.name();
        let per_second = count(&run, Ending::Answered) as f64 / 10.0;
        assert!(per_second > 0.95 * 800.0, "{name}: {per_second}");
        assert!(answered.p99_ns < 5e8, "{name}: {}", answered.p99_ns);
        let refused: Vec<Record> =
            run.records.iter().filter(|record| record.ending == Ending::Refused).copied().collect();
        assert!(latencies_ms(&refused).iter().all(|&latency| latency == 0.0), "{name}");
    }
}

#[test]
fn burst_that_can_be_answered_in_time_waits() {
    // In 150 ms come 240 requests of which 120 can be answered; the backends hold 100 of the rest.
    let burst = [(Duration::ZERO, 0.5), (10 * SECOND, 2.0), (10 * SECOND + 150 * MS, 0.5)];
    let mut scenario = loaded(&burst);
    let refused = |scenario: &Scenario| {
        let run = |seed| run(scenario, &Contender::Real(PolicyKind::default()), seed);
        (1..=10).map(|seed| count(&run(seed), Ending::Refused)).sum::<usize>()
    };
    assert_eq!(refused(&scenario), 0);
    scenario.waiting.as_mut().expect("limits").count_max = 0;
    assert!(refused(&scenario) > 0, "what waits would be refused without a queue");
}

#[test]
fn service_that_takes_its_time_by_nature_is_not_limited() {
    // 200 requests at once, each alone on its slot, that take as long as the deadline allows.
    let steps = vec![Step { at: Duration::ZERO, per_second: 200.0 }];
    let load = Load::Open { arrivals: Arrivals::Poisson, steps };
    let mut scenario =
        Scenario::steady(vec![Spec::shared(1000, 1.0); 2], Work::Normal { mean_ns: 9e8, cv: 0.05 }, load);
    scenario.due_within(1200 * MS);
    let run = run(&scenario, &Contender::Real(PolicyKind::default()), 1);
    assert!(run.records.iter().all(|record| record.ending == Ending::Answered));
}

#[test]
fn empty_caches_are_filled_by_requests() {
    let mut scenario = calm(1);
    scenario.changes = vec![change(95 * MS, 0, What::Cold { times: 5.0, requests: 4 })];
    let run = run(&scenario, &ROUND_ROBIN, 1);
    // The tenth arrives at 100 ms.
    assert_eq!(latencies_ms(&run.records[8..15]), [1.0, 5.0, 4.0, 3.0, 2.0, 1.0, 1.0]);
}
