//! What is tried: things that change during the run.

use std::time::Duration;

use select::sim::{Arrivals, Change, Credits, Ending, Load, Run, Scenario, Spec, What, Work};

use crate::cases::{Case, Column, WORK_NS, fleet, loaded, normal, step};

const SECOND: Duration = Duration::from_secs(1);
const ONSET: Duration = Duration::from_secs(10);

pub(crate) fn all() -> Vec<Case> {
    let mut cases = vec![slowed()];
    cases.extend(silent());
    cases.extend(quick_errors());
    cases.push(newcomer());
    cases.extend(newcomers());
    cases.extend(overload());
    cases.extend(credits());
    cases
}

fn column(name: &'static str, value: impl Fn(&Run) -> f64 + 'static) -> Column {
    (name, Box::new(value))
}

fn change(at: Duration, backend: usize, what: What) -> Change {
    Change { at, backend, what }
}

/// The mean latency of eight equal backends of two shared slots at 70 %, the normal latency of E4 and E5.
const NORMAL: Duration = Duration::from_micros(5500);

/// Requests from `from` to `to` that went to `backend`, over the share that is fair.
fn share_over(fair: f64, backend: usize, from: Duration, to: Duration) -> impl Fn(&Run) -> f64 {
    move |run| run.share(backend, from, to) / fair
}

/// E4: one of eight becomes ten times slower for 30 s. Expected: two to four normal latencies later it gets less than
/// twice its fair share, and 3 s after it has healed it is back within 10 % of it.
fn slowed() -> Case {
    let mut scenario = loaded(vec![Spec::shared(2, 1.0); 8], normal(), 0.7);
    let healed = ONSET + 30 * SECOND;
    scenario.until = healed + 10 * SECOND;
    scenario.due_within(5 * SECOND);
    scenario.changes = vec![change(ONSET, 7, What::Speed(0.1)), change(healed, 7, What::Speed(1.0))];
    let fair_slow = 0.1 / 7.1;
    let mut case = Case::new("E4", "1 of 8 slower 10 times for 30 s, 70 %".to_owned(), scenario);
    case.window = (ONSET, healed);
    case.seeds_times = 10;
    case.columns = vec![
        column("share 2-4 lat.", share_over(fair_slow, 7, ONSET + 2 * NORMAL, ONSET + 4 * NORMAL)),
        column("share 4-8 lat.", share_over(fair_slow, 7, ONSET + 4 * NORMAL, ONSET + 8 * NORMAL)),
        column("share 1-30 s", share_over(fair_slow, 7, ONSET + SECOND, healed)),
        column("healed +1 s", share_over(0.125, 7, healed + SECOND, healed + SECOND * 3 / 2)),
        column("healed +3 s", share_over(0.125, 7, healed + 3 * SECOND, healed + 4 * SECOND)),
        // What a share that is not back costs.
        column("p99 over before", move |run| {
            p99(run, healed + 3 * SECOND, healed + 10 * SECOND) / p99(run, ONSET / 2, ONSET)
        }),
    ];
    case
}

fn p99(run: &Run, from: Duration, to: Duration) -> f64 {
    let (from, to) = (from.as_nanos() as u64, to.as_nanos() as u64);
    run.summary_of(|r| (from..to).contains(&r.arrived_ns)).p99_ns
}

/// E5: one of eight stops answering, or cannot be connected to. Expected: it costs what is there at the onset and one
/// request per step of the back-off.
fn silent() -> Vec<Case> {
    let case = |name: &str, what: What| {
        let mut scenario = loaded(vec![Spec::shared(2, 1.0); 8], normal(), 0.7);
        scenario.until = ONSET + 20 * SECOND;
        scenario.due_within(2 * SECOND);
        scenario.changes = vec![change(ONSET, 7, what)];
        let mut case = Case::new("E5", format!("1 of 8 {name}, 70 %"), scenario);
        case.window = (ONSET, ONSET + 20 * SECOND);
        let slow = |run: &Run, from: Duration| {
            let late = |ns: u64| ns > 20 * NORMAL.as_nanos() as u64;
            let after = run.records.iter().filter(|r| u128::from(r.arrived_ns) >= from.as_nanos());
            after.filter(|r| r.ending != Ending::Answered || late(r.latency_ns)).count() as f64
        };
        case.columns = vec![
            column("late or lost", move |run| slow(run, ONSET)),
            column("after 100 ms", move |run| slow(run, ONSET + SECOND / 10)),
        ];
        case
    };
    vec![case("accepts and never answers", What::Speed(0.0)), case("drops connections", What::BlackHole)]
}

/// E6: one of four answers 503 in a tenth of the time. Expected: under 1 % errors after 200 ms. Beside it what is
/// left when nobody ever sends it a request; the oracle alone is not told of that.
fn quick_errors() -> Vec<Case> {
    let of = |name: String, what: What, ejects: bool| {
        let mut scenario = loaded(vec![Spec::shared(2, 1.0); 4], normal(), 0.6);
        scenario.until = ONSET + 20 * SECOND;
        scenario.due_within(SECOND);
        scenario.changes = vec![change(ONSET, 3, what)];
        if !ejects {
            scenario.ejection.failures_in_row = 0;
        }
        let mut case = Case::new("E6", name, scenario);
        case.window = (ONSET + SECOND / 5, ONSET + 20 * SECOND);
        let errors = |from: Duration, to: Duration| {
            move |run: &Run| {
                let (from, to) = (from.as_nanos() as u64, to.as_nanos() as u64);
                100.0 * run.summary_of(|r| (from..to).contains(&r.arrived_ns)).failed
            }
        };
        case.columns = vec![
            column("err % 0-200 ms", errors(ONSET, ONSET + SECOND / 5)),
            column("err % later", errors(ONSET + SECOND / 5, ONSET + 20 * SECOND)),
        ];
        case
    };
    let case = |share: f64, ejects: bool| {
        let with = if ejects { "with" } else { "without" };
        let name = format!("1 of 4 fails {:.0} % at once, {with} ejection, 60 %", 100.0 * share);
        of(name, What::Fail { share, work: 0.1 }, ejects)
    };
    let absent = of("1 of 4 is known to fail, 60 %".to_owned(), What::Drain(true), true);
    vec![case(1.0, true), case(1.0, false), case(0.3, true), case(0.3, false), absent]
}

/// E7: a fifth backend joins, five times slower for its first 10 s. Expected: p99 grows by less than 20 %.
fn newcomer() -> Case {
    let mut scenario = loaded(vec![Spec::shared(2, 1.0); 5], normal(), 0.5);
    scenario.until = ONSET + 15 * SECOND;
    scenario.changes = vec![
        change(Duration::ZERO, 4, What::Drain(true)),
        change(ONSET, 4, What::Speed(0.2)),
        change(ONSET, 4, What::Drain(false)),
        change(2 * ONSET, 4, What::Speed(1.0)),
    ];
    let mut case = Case::new("E7", "a fifth joins, 5 times slower for 10 s".to_owned(), scenario);
    case.window = (ONSET, 2 * ONSET);
    case.columns = vec![
        column("p99 over before", move |run| p99(run, ONSET, 2 * ONSET) / p99(run, ONSET / 2, ONSET)),
        column("share warm", |run| run.share(4, 2 * ONSET + 3 * SECOND, 2 * ONSET + 5 * SECOND) / 0.2),
    ];
    case
}

/// Speeds from a tenth to all of it, evenly over 10 s: code that is compiled as it runs, pools that are filled.
fn warming(backend: usize) -> Vec<Change> {
    let step = |tenth: u32| {
        let speed = What::Speed(0.1 + 0.09 * f64::from(tenth));
        change(ONSET + tenth * SECOND, backend, speed)
    };
    (0..=10).map(step).collect()
}

/// E7, what a slow start is for: a fifth backend joins or comes back, warm or cold. The load is a share of what all
/// five do. Expected: the first answers tell enough, so that no policy with a slow start does better.
fn newcomers() -> Vec<Case> {
    let joins = [change(Duration::ZERO, 4, What::Drain(true)), change(ONSET, 4, What::Drain(false))];
    let returns = [change(SECOND, 4, What::Crash), change(ONSET, 4, What::Restart)];
    let caches = vec![change(ONSET, 4, What::Cold { times: 10.0, requests: 1000 })];
    let mut cases = Vec::new();
    // The one that comes back must be found up by two probes first.
    for (comes, how, unused) in [("joins", joins, Duration::ZERO), ("returns", returns, 5 * SECOND)] {
        for (warm, changes) in
            [("warm", Vec::new()), ("warm in 10 s", warming(4)), ("warm in 1000", caches.clone())]
        {
            for percent in [50, 70] {
                let mut scenario =
                    loaded(vec![Spec::shared(2, 1.0); 5], normal(), f64::from(percent) / 100.0);
                scenario.until = ONSET + 20 * SECOND;
                scenario.due_within(5 * SECOND);
                scenario.changes = how.iter().chain(&changes).copied().collect();
                let mut case = Case::new("E7", format!("a fifth {comes}, {warm}, {percent} %"), scenario);
                case.window = (ONSET, ONSET + 10 * SECOND);
                let (first, then) = (ONSET + unused, ONSET + unused + SECOND);
                case.columns = vec![
                    column("share first 1 s", share_over(0.2, 4, first, then)),
                    column("share next 4 s", share_over(0.2, 4, then, then + 4 * SECOND)),
                ];
                cases.push(case);
            }
        }
    }
    cases
}

/// E8, a case: one of four was ten times slower and heals.
pub(crate) fn healed_at_low_rate(per_second: f64) -> Case {
    let healed = Duration::from_secs(120);
    let mut scenario = loaded(vec![Spec::shared(2, 1.0); 4], normal(), 0.5);
    scenario.load = Load::poisson(per_second);
    scenario.until = healed + 60 * SECOND;
    scenario.changes = vec![change(10 * SECOND, 3, What::Speed(0.1)), change(healed, 3, What::Speed(1.0))];
    let mut case = Case::new("E8", format!("1 of 4 slower 10 times heals, {per_second}/s"), scenario);
    case.window = (20 * SECOND, healed);
    case.seeds_times = 10;
    case.columns = vec![
        column("share slow", |run| run.share(3, 20 * SECOND, Duration::from_secs(120)) / 0.25),
        column("healed +3 s", move |run| run.share(3, healed + 3 * SECOND, healed + 10 * SECOND) / 0.25),
        column("healed +30 s", move |run| run.share(3, healed + 30 * SECOND, healed + 60 * SECOND) / 0.25),
    ];
    case
}

/// E11: the fleet from 75 to 174 % of its capacity, nine steps of 10/9, answers wanted within a second. Expected:
/// goodput at 95 % of what is possible, p99 of what is answered at half the deadline.
fn overload() -> Vec<Case> {
    let case = |power: i32| {
        let factor = 0.75 * (10f64 / 9.0).powi(power);
        let mut scenario = loaded(fleet(), normal(), factor);
        scenario.due_within(SECOND);
        scenario.until = scenario.warm_up + 20 * SECOND;
        let (capacity, offered) = (scenario.capacity_per_second(), scenario.capacity_per_second() * factor);
        let mut case = Case::new("E11", format!("offered {:.0} %, deadline 1 s", 100.0 * factor), scenario);
        let good = |run: &Run| run.records.iter().filter(|r| r.ending == Ending::Answered).count() as f64;
        case.columns = vec![
            column("goodput", move |run| good(run) / run.measured.as_secs_f64() / offered.min(capacity)),
            column("p99 accepted", |run| run.summary_of(|r| r.ending == Ending::Answered).p99_ns / 1e6),
            column("refused %", |run| {
                let refused = run.records.iter().filter(|r| r.ending == Ending::Refused).count();
                100.0 * refused as f64 / run.records.len() as f64
            }),
            column("timed out %", |run| {
                let late = run.records.iter().filter(|r| r.ending == Ending::TimedOut).count();
                100.0 * late as f64 / run.records.len() as f64
            }),
        ];
        case
    };
    (0..9).map(case).collect()
}

/// E13: credits run out in mid-run, first those of the weak backends, then those of the strong. Expected: ours has
/// found the new shares within 2 s; weighted round-robin with yesterday's weights does not keep up.
fn credits() -> Vec<Case> {
    let burst = |balance: Duration, earned: f64| Some(Credits { balance, earned, max: 3600 * SECOND });
    let weak = Spec { credits: burst(4 * SECOND, 0.1), ..Spec::shared(1, 1.0) };
    let strong = Spec { credits: burst(16 * SECOND, 0.6), ..Spec::shared(2, 1.0) };
    let case = |name: &str, weak: Spec, strong: Spec, per_second: f64| {
        let mut scenario: Scenario =
            loaded([vec![strong; 4], vec![weak; 4]].concat(), Work::Exponential { mean_ns: WORK_NS }, 0.5);
        let steps = vec![step(Duration::ZERO, per_second)];
        scenario.load = Load::Open { arrivals: Arrivals::Poisson, steps };
        scenario.until = 60 * SECOND;
        scenario.due_within(2 * SECOND);
        Case::new("E13", name.to_owned(), scenario)
    };
    let never = Spec { credits: None, ..strong };
    // What is left: 8 + 0.4 cores when the weak are throttled, 2.4 + 0.4 when all are.
    vec![
        case("weak ones run out of credits, 1200/s", weak, never, 1200.0),
        case("all run out of credits, 450/s", weak, strong, 450.0),
    ]
}
