//! Plays every policy under every load with every seed, on all cores, and sums up.
//!
//! It draws nothing; that is `chart` and `page`.

use std::{
    collections::BTreeMap,
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use select::sim::{Ending, Record, Run, quantile, run};
use serde::Serialize;

use super::options::{Checked, Options};
use crate::error::Error;

/// One policy under one load: means over the seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub policy: String,
    /// As the recipe gave it: a share of the capacity, requests per second, or clients.
    pub load: f64,
    /// Of one seed.
    pub requests: u64,
    pub requests_per_second: f64,
    /// Answered in time per second.
    pub goodput_per_second: f64,
    /// Not answered, or too late, 0..100.
    pub failed_percent: f64,
    /// Latencies are those of all requests; one that was not answered counts as the deadline.
    pub mean_ms: f64,
    /// The least and the largest of the seeds.
    pub mean_ms_range: [f64; 2],
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p99_ms_range: [f64; 2],
    pub p999_ms: f64,
    /// By backend, 0..1.
    pub share: BTreeMap<String, f64>,
    /// With `every`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_time: Option<OverTime>,
}

/// What happened in each step of time. Requests count where they arrived.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct OverTime {
    /// The middle of each step, in seconds from the end of the warm-up.
    pub t_s: Vec<f64>,
    /// `None` in a step without requests, as all that follow.
    pub mean_ms: Vec<Option<f64>>,
    pub p99_ms: Vec<Option<f64>>,
    pub failed_percent: Vec<Option<f64>>,
    /// By backend, 0..1.
    pub share: BTreeMap<String, Vec<Option<f64>>>,
}

/// A simulation whose options are checked.
pub struct Study {
    checked: Checked,
}

/// What came of one seed.
struct Sample {
    row: Row,
}

impl Study {
    /// Errors as [`Options`] says.
    pub fn new(options: &Options) -> Result<Self, Error> {
        Ok(Self { checked: options.check()? })
    }

    /// How many simulations it is made of.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.checked.policies.len() * self.checked.loads.len() * self.checked.seeds as usize
    }

    /// Plays all of it; the rows come load by load, policies in the order given. `done` hears how many runs have ended.
    /// `None` when `cancel` was set meanwhile: runs that have begun, of a second at most, are still played to their end.
    #[must_use]
    pub fn play(&self, cancel: &AtomicBool, done: &(dyn Fn(usize) + Sync)) -> Option<Vec<Row>> {
        let (count, next) = (self.runs(), AtomicUsize::new(0));
        let samples: Mutex<Vec<Option<Sample>>> = Mutex::new((0..count).map(|_| None).collect());
        let lock = || samples.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            while !cancel.load(Relaxed) {
                let number = next.fetch_add(1, Relaxed);
                if number >= count {
                    break;
                }
                let sample = self.sample(number);
                let mut samples = lock();
                samples[number] = Some(sample);
                let ended = samples.iter().flatten().count();
                drop(samples);
                done(ended);
            }
        };
        std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(count);
            (0..threads).for_each(|_| {
                scope.spawn(work);
            });
        });
        let samples: Option<Vec<Sample>> = lock().drain(..).collect();
        let samples = samples?;
        Some(samples.chunks(self.checked.seeds as usize).map(mean_of).collect())
    }

    /// The run of this number: by load, then by policy, then by seed.
    fn sample(&self, number: usize) -> Sample {
        let (checked, seeds) = (&self.checked, self.checked.seeds as usize);
        let (pair, seed) = (number / seeds, number % seeds);
        let load = &checked.loads[pair / checked.policies.len()];
        let (policy, contender) = &checked.policies[pair % checked.policies.len()];
        let result = run(&load.scenario, contender, seed as u64 + 1);
        let mut row = sum_up(&result, &checked.names);
        (row.policy, row.load) = (policy.clone(), load.shown);
        row.over_time = checked.every.map(|every| over_time(&result, &checked.names, checked.warm_up, every));
        Sample { row }
    }
}

fn sum_up(run: &Run, names: &[String]) -> Row {
    let summary = run.summary();
    let seconds = run.measured.as_secs_f64();
    let good = run.records.iter().filter(|record| record.ending == Ending::Answered).count();
    let ms = |ns: f64| ns / 1e6;
    Row {
        policy: String::new(),
        load: 0.0,
        requests: summary.requests as u64,
        requests_per_second: summary.requests as f64 / seconds,
        goodput_per_second: good as f64 / seconds,
        failed_percent: 100.0 * summary.failed,
        mean_ms: ms(summary.mean_ns),
        mean_ms_range: [ms(summary.mean_ns); 2],
        p50_ms: ms(summary.p50_ns),
        p90_ms: ms(summary.p90_ns),
        p99_ms: ms(summary.p99_ns),
        p99_ms_range: [ms(summary.p99_ns); 2],
        p999_ms: ms(summary.p999_ns),
        share: names.iter().cloned().zip(shares(run.records.iter(), names.len())).collect(),
        over_time: None,
    }
}

fn shares<'a>(records: impl Iterator<Item = &'a Record>, backends: usize) -> Vec<f64> {
    let (mut counts, mut all) = (vec![0u64; backends], 0u64);
    for record in records {
        all += 1;
        if let Some(count) = counts.get_mut(record.backend as usize) {
            *count += 1;
        }
    }
    counts.iter().map(|&count| count as f64 / all.max(1) as f64).collect()
}

fn over_time(run: &Run, names: &[String], warm_up: Duration, every: Duration) -> OverTime {
    let mut over_time = OverTime::default();
    let (warm_up_ns, every_ns) = (warm_up.as_nanos() as u64, every.as_nanos() as u64);
    let steps = (run.measured.as_nanos() as u64).div_ceil(every_ns);
    let mut rest = run.records.as_slice();
    for step in 0..steps {
        let end_ns = warm_up_ns + (step + 1) * every_ns;
        let (within, later) = rest.split_at(rest.partition_point(|record| record.arrived_ns < end_ns));
        rest = later;
        over_time.t_s.push((step as f64 + 0.5) * every.as_secs_f64());
        let mut latencies: Vec<f64> = within.iter().map(|record| charged_ms(record, run.deadline)).collect();
        latencies.sort_unstable_by(f64::total_cmp);
        let count = latencies.len() as f64;
        let known = |value: f64| (!latencies.is_empty()).then_some(value);
        over_time.mean_ms.push(known(latencies.iter().sum::<f64>() / count));
        over_time.p99_ms.push(known(quantile(&latencies, 0.99)));
        let failed = within.iter().filter(|record| record.ending != Ending::Answered).count();
        over_time.failed_percent.push(known(100.0 * failed as f64 / count));
        for (name, share) in names.iter().zip(shares(within.iter(), names.len())) {
            over_time.share.entry(name.clone()).or_default().push(known(share));
        }
    }
    over_time
}

/// As the simulator's summary has it.
fn charged_ms(record: &Record, deadline: Duration) -> f64 {
    let latency_ns = match record.ending {
        Ending::Answered => record.latency_ns,
        _ => record.latency_ns.max(deadline.as_nanos() as u64),
    };
    latency_ns as f64 / 1e6
}

/// The mean of the seeds of one policy under one load.
fn mean_of(samples: &[Sample]) -> Row {
    let mean =
        |of: &dyn Fn(&Row) -> f64| samples.iter().map(|it| of(&it.row)).sum::<f64>() / samples.len() as f64;
    let range = |of: fn(&Row) -> f64| {
        let values = samples.iter().map(|it| of(&it.row));
        [values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max)]
    };
    let first = &samples[0].row;
    let share = |name: &String| (name.clone(), mean(&|row| row.share[name]));
    Row {
        policy: first.policy.clone(),
        load: first.load,
        requests: first.requests,
        requests_per_second: mean(&|row| row.requests_per_second),
        goodput_per_second: mean(&|row| row.goodput_per_second),
        failed_percent: mean(&|row| row.failed_percent),
        mean_ms: mean(&|row| row.mean_ms),
        mean_ms_range: range(|row| row.mean_ms),
        p50_ms: mean(&|row| row.p50_ms),
        p90_ms: mean(&|row| row.p90_ms),
        p99_ms: mean(&|row| row.p99_ms),
        p99_ms_range: range(|row| row.p99_ms),
        p999_ms: mean(&|row| row.p999_ms),
        share: first.share.keys().map(share).collect(),
        over_time: first.over_time.as_ref().map(|_| mean_over_time(samples)),
    }
}

fn mean_over_time(samples: &[Sample]) -> OverTime {
    let all: Vec<&OverTime> = samples.iter().filter_map(|sample| sample.row.over_time.as_ref()).collect();
    let mean = |of: &dyn Fn(&OverTime) -> Option<f64>| {
        let values: Vec<f64> = all.iter().filter_map(|it| of(it)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let steps = 0..all[0].t_s.len();
    let share =
        |name: &String| (name.clone(), steps.clone().map(|step| mean(&|it| it.share[name][step])).collect());
    OverTime {
        t_s: all[0].t_s.clone(),
        mean_ms: steps.clone().map(|step| mean(&|it| it.mean_ms[step])).collect(),
        p99_ms: steps.clone().map(|step| mean(&|it| it.p99_ms[step])).collect(),
        failed_percent: steps.clone().map(|step| mean(&|it| it.failed_percent[step])).collect(),
        share: all[0].share.keys().map(share).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: serde_json::Value) -> Options {
        serde_json::from_value(json).unwrap()
    }

    fn rows(json: serde_json::Value) -> Vec<Row> {
        let study = Study::new(&options(json)).unwrap();
        study.play(&AtomicBool::new(false), &|_| ()).unwrap()
    }

    /// Two equal backends at half their capacity, for two seconds.
    fn small() -> serde_json::Value {
        serde_json::json!({
            "backends": [{ "name": "a", "count": 2, "order": "queue" }],
            "loads": [0.5], "duration": "2s", "warm_up": "100ms", "seeds": 2,
            "policies": ["round-robin", "ours"],
        })
    }

    fn with(changes: serde_json::Value) -> serde_json::Value {
        let mut json = small();
        json.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        json
    }

    #[test]
    fn rows_come_load_by_load_with_the_policies_in_their_order() {
        let rows = rows(with(serde_json::json!({ "loads": [0.3, 0.6] })));
        let found: Vec<_> = rows.iter().map(|row| (row.load, row.policy.as_str())).collect();
        let expected = [
            (0.3, "round-robin"),
            (0.3, "expected-latency"),
            (0.6, "round-robin"),
            (0.6, "expected-latency"),
        ];
        assert_eq!(found, expected);
        for row in &rows {
            assert!(
                row.p50_ms <= row.mean_ms_range[1] * 2.0
                    && row.p99_ms >= row.p50_ms
                    && row.failed_percent == 0.0
            );
            assert!((row.share.values().sum::<f64>() - 1.0).abs() < 1e-9);
            assert!((row.requests_per_second / (row.load * 400.0) - 1.0).abs() < 0.2, "{row:?}");
        }
        assert!(rows[1].mean_ms < rows[0].mean_ms, "turns pile up where ours does not");
    }

    #[test]
    fn same_options_give_the_same_rows() {
        assert_eq!(rows(small()), rows(small()));
    }

    #[test]
    fn stalled_backend_is_seen_over_time_and_its_requests_are_late() {
        let rows = rows(with(serde_json::json!({
            "every": "500ms", "deadline": "300ms", "failures_in_row": 0,
            "events": [{ "at": "1100ms", "backend": "a-2", "what": "stall" }],
        })));
        let over_time = rows[0].over_time.as_ref().unwrap();
        assert_eq!(over_time.t_s, [0.25, 0.75, 1.25, 1.75]);
        let failed = &over_time.failed_percent;
        assert!(failed[1] < Some(5.0), "{failed:?}");
        // Turns would send it half of all requests, and its limit lets it have a few.
        assert!(failed[2] > Some(5.0) && failed[3] < Some(30.0), "{failed:?}");
        let ours = rows[1].over_time.as_ref().unwrap();
        assert!(
            ours.share["a-2"][0] > Some(0.3) && ours.share["a-2"][3] < Some(0.1),
            "{:?}",
            ours.share["a-2"]
        );
    }

    #[test]
    fn event_may_mean_all_of_a_kind() {
        let all = rows(with(serde_json::json!({
            "deadline": "100ms", "events": [{ "at": "0s", "backend": "a", "what": "stall" }],
        })));
        assert_eq!(all[0].failed_percent, 100.0);
    }

    #[test]
    fn clients_wait_for_their_answers() {
        let rows = rows(with(
            serde_json::json!({ "loads": [], "clients": [2], "work": { "distribution": "constant" } }),
        ));
        // Two clients, two backends, 5 ms each: ours never lets one wait.
        assert!((rows[1].requests_per_second - 400.0).abs() < 2.0, "{:?}", rows[1]);
    }

    #[test]
    fn cancelled_study_gives_nothing() {
        let study = Study::new(&options(small())).unwrap();
        assert_eq!(study.play(&AtomicBool::new(true), &|_| ()), None);
    }

    #[test]
    fn what_cannot_be_simulated_is_named_with_what_to_do() {
        for (changes, message, hint) in [
            (serde_json::json!({ "backends": [] }), "no backends", "count: 4"),
            (serde_json::json!({ "loads": [] }), "one of loads", "shares of the capacity"),
            (serde_json::json!({ "rates": [5] }), "one of loads", "clients"),
            (serde_json::json!({ "loads": [-1] }), "a load of -1", "above 0"),
            (serde_json::json!({ "policies": ["p2d"] }), "no `p2d`", "did you mean `p2c`?"),
            (serde_json::json!({ "policies": ["probe-argmin"] }), "active checks", "probe_interval"),
            (serde_json::json!({ "duration": "2h" }), "duration", "1h"),
            (serde_json::json!({ "duration": "1h", "loads": [0.9] }), "makes", "lower duration"),
            (
                serde_json::json!({ "duration": "10m", "loads": [0.9, 0.9, 0.9], "seeds": 100 }),
                "million",
                "seeds",
            ),
            (serde_json::json!({ "seeds": 0 }), "seeds: 0", "1 to 200"),
            (serde_json::json!({ "every": "1us" }), "every", "steps"),
            (serde_json::json!({ "backends": [{}, {}] }), "two backends", "name"),
            (serde_json::json!({ "backends": [{ "speed": 0 }] }), "speed 0", "stall"),
            (serde_json::json!({ "backends": [{ "order": "lifo" }] }), "lifo", "queue"),
            (serde_json::json!({ "work": { "distribution": "pareto" } }), "pareto", "log-normal"),
            (
                serde_json::json!({ "events": [{ "at": "1s", "backend": "b", "what": "stall" }] }),
                "no `b`",
                "a-1",
            ),
            (
                serde_json::json!({ "events": [{ "at": "1s", "backend": "a", "what": "slow" }] }),
                "no `slow`",
                "speed",
            ),
            (
                serde_json::json!({ "events": [{ "at": "1s", "backend": "a", "what": "speed" }] }),
                "needs",
                "speed",
            ),
        ] {
            let error =
                Study::new(&options(with(changes.clone()))).map(drop).expect_err(&changes.to_string());
            let hint_found = error.hint.clone().unwrap_or_default();
            assert!(error.message.contains(message), "{changes}: {}", error.message);
            assert!(hint_found.contains(hint), "{changes}: {hint_found}");
        }
    }
}
