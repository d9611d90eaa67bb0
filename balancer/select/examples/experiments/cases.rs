//! What is tried: steady loads. Numbers and expectations follow the plan E0 to E13.

use std::time::Duration;

use select::sim::{Arrivals, Load, Probe, Run, Scenario, Sharing, Spec, Step, Threads, Work};

use crate::faults;

/// Work of a request on a backend of speed 1: what the lab's emulated workers do at least.
pub(crate) const WORK_NS: f64 = 5e6;
/// Requests per run that count.
const REQUESTS: f64 = 60_000.0;

/// A number that a case is about, from one run.
pub(crate) type Column = (&'static str, Box<dyn Fn(&Run) -> f64>);

pub(crate) struct Case {
    pub experiment: &'static str,
    pub name: String,
    pub scenario: Scenario,
    /// Requests that arrive in here are summed up.
    pub window: (Duration, Duration),
    pub columns: Vec<Column>,
    /// Seeds per seed that was asked for; more where a case looks at a few requests only.
    pub seeds_times: u64,
}

impl Case {
    pub(crate) fn new(experiment: &'static str, name: String, scenario: Scenario) -> Self {
        let window = (scenario.warm_up, scenario.until);
        Self { experiment, name, scenario, window, columns: Vec::new(), seeds_times: 1 }
    }

    pub(crate) fn window_ns(&self) -> (u64, u64) {
        (self.window.0.as_nanos() as u64, self.window.1.as_nanos() as u64)
    }
}

pub(crate) fn all() -> Vec<Case> {
    let steady = [equal(), two_sizes(), unequal(), delayed(), low_rate(), threads(), closed(), tails()];
    let mut cases: Vec<Case> = steady.into_iter().flatten().chain(faults::all()).collect();
    let number = |case: &Case| case.experiment[1..].parse::<u32>().unwrap_or(u32::MAX);
    cases.sort_by_key(number);
    cases
}

pub(crate) fn exponential() -> Work {
    Work::Exponential { mean_ns: WORK_NS }
}

/// Normal with a deviation as large as the mean, cut at 0: Prequal's query cost.
pub(crate) fn normal() -> Work {
    Work::Normal { mean_ns: WORK_NS, cv: 1.0 }
}

/// A load of so much of the capacity, with active probes.
pub(crate) fn loaded(backends: Vec<Spec>, work: Work, utilisation: f64) -> Scenario {
    let mut scenario = Scenario::steady(backends, work, Load::poisson(0.0));
    let per_second = scenario.capacity_per_second() * utilisation;
    scenario.load = Load::poisson(per_second);
    scenario.until = scenario.warm_up + Duration::from_secs_f64(REQUESTS / per_second);
    // As the policy that goes by probes has them where it comes from; a probe costs what a request does.
    scenario.probe = Some(Probe {
        interval: Duration::from_millis(2500),
        timeout: Duration::from_secs(1),
        work_ns: work.mean_ns(),
        rise: 2,
        fall: 3,
    });
    scenario
}

/// The lab's fleet when nothing is throttled: two cores against one.
pub(crate) fn fleet() -> Vec<Spec> {
    [vec![Spec::shared(2, 1.0); 4], vec![Spec::shared(1, 1.0); 4]].concat()
}

/// Single slots, four of them `ratio` times as quick as the other four.
fn quick_and_slow(ratio: f64) -> Vec<Spec> {
    [vec![Spec::shared(1, ratio); 4], vec![Spec::shared(1, 1.0); 4]].concat()
}

/// E0: four equal, healthy backends. Expected: like least-outstanding.
fn equal() -> Vec<Case> {
    let models = [
        ("2 shared slots, normal", Spec::shared(2, 1.0), normal()),
        ("1 slot in order, exponential", Spec::queue(1, 1.0), exponential()),
        ("4 slots in order, constant", Spec::queue(4, 1.0), Work::Constant { mean_ns: WORK_NS }),
        (
            "1 shared slot, 1:100",
            Spec::shared(1, 1.0),
            Work::Bimodal { mean_ns: WORK_NS, one_in: 100, ratio: 100.0 },
        ),
    ];
    let mut cases = Vec::new();
    for (name, spec, work) in models {
        for percent in [10, 30, 50, 70, 90] {
            let scenario = loaded(vec![spec; 4], work, f64::from(percent) / 100.0);
            cases.push(Case::new("E0", format!("4 of {name}, {percent} %"), scenario));
        }
    }
    cases
}

/// E1: the lab's fleet. Expected: round-robin ends at 0.67, ours has the lowest mean and closes 80 % of the gap.
fn two_sizes() -> Vec<Case> {
    let case = |percent: u32| {
        let scenario = loaded(fleet(), normal(), f64::from(percent) / 100.0);
        Case::new("E1", format!("4 of 2 slots + 4 of 1 slot, {percent} %"), scenario)
    };
    [30, 40, 50, 60, 70, 80, 90, 95].map(case).into()
}

/// E2: very unequal backends. Expected: the better of two ends at 0.67, 0.37 and 0.22; scans keep up beyond 0.95.
fn unequal() -> Vec<Case> {
    let mut cases = Vec::new();
    for (ratio, percents) in [(6.0, [25, 50, 75, 95]), (10.0, [15, 50, 75, 95]), (20.0, [8, 50, 75, 95])] {
        for percent in percents {
            let scenario = loaded(quick_and_slow(ratio), normal(), f64::from(percent) / 100.0);
            cases.push(Case::new("E2", format!("4 + 4, {ratio} times as quick, {percent} %"), scenario));
        }
    }
    cases
}

/// E3: two of four answer 5 ms later, whatever their load. Expected: the better of two sends 1/6 there, so that its
/// p99 is theirs; ours stays at the quick ones' p99.
fn delayed() -> Vec<Case> {
    // Latency rather than load: many slots, 0.3 ms of work, stretched to 5.3 ms.
    let specs = |slow: usize| {
        [vec![Spec::shared(64, 1.0); 4 - slow], vec![Spec::shared(64, 0.3 / 5.3); slow]].concat()
    };
    let case = |slow: usize| {
        let work = Work::LogNormal { mean_ns: 0.3e6, cv: 0.3 };
        let mut scenario = loaded(specs(slow), work, 0.5);
        scenario.load = Load::poisson(2000.0);
        scenario.until = scenario.warm_up + Duration::from_secs(30);
        Case::new("E3", format!("{slow} of 4 later by 5 ms, 2000/s"), scenario)
    };
    [0, 1, 2].map(case).into()
}

/// E8: hardly any requests. Expected: a backend that has healed is found within 3 s.
fn low_rate() -> Vec<Case> {
    [1.0, 5.0, 20.0].map(faults::healed_at_low_rate).into()
}

/// E9: threads that share everything, nothing, or learn late. Expected: sharing keeps p99 flat.
fn threads() -> Vec<Case> {
    let mut cases = Vec::new();
    let late = |ms| (format!("{ms} ms late"), Sharing::Late(Duration::from_millis(ms)));
    let sharings = [
        ("shared".to_owned(), Sharing::Shared),
        late(1),
        late(10),
        late(100),
        ("private".to_owned(), Sharing::Private),
    ];
    for (name, sharing) in sharings {
        for count in if name == "shared" { vec![2, 8] } else { vec![2, 4, 8] } {
            let mut scenario = loaded(fleet(), normal(), 0.7);
            scenario.threads = Threads { count, sharing };
            cases.push(Case::new("E9", format!("{count} threads, {name}, 70 %"), scenario));
        }
    }
    cases
}

/// E10: the fleet of E1 under a closed load. Expected: the same ranking with smaller gaps.
fn closed() -> Vec<Case> {
    let case = |clients: usize| {
        let mut scenario = loaded(fleet(), normal(), 0.7);
        scenario.load = Load::Closed { clients, think: Duration::ZERO };
        Case::new("E10", format!("{clients} clients in a closed loop"), scenario)
    };
    let open = |percent: u32, arrivals, name: &str| {
        let mut scenario = loaded(fleet(), normal(), f64::from(percent) / 100.0);
        if let Load::Open { arrivals: kind, .. } = &mut scenario.load {
            *kind = arrivals;
        }
        Case::new("E10", format!("open loop, {name}, {percent} %"), scenario)
    };
    vec![
        case(8),
        case(16),
        case(48),
        open(65, Arrivals::Poisson, "Poisson"),
        open(65, Arrivals::Constant, "even"),
    ]
}

/// E12: how heavy the tail of the work is. Expected: the margin grows with the ratio and shrinks with the tail.
fn tails() -> Vec<Case> {
    let mut cases = Vec::new();
    for ratio in [2.0, 6.0] {
        for cv in [0.5, 1.0, 2.0, 4.0] {
            let work = Work::LogNormal { mean_ns: WORK_NS, cv };
            let scenario = loaded(quick_and_slow(ratio), work, 0.6);
            cases.push(Case::new("E12", format!("{ratio} times as quick, CV {cv}, 60 %"), scenario));
        }
    }
    cases
}

pub(crate) fn step(at: Duration, per_second: f64) -> Step {
    Step { at, per_second }
}
