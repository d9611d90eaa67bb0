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
