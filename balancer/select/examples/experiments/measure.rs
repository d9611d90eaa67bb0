//! Runs one case under one policy with many seeds.

use select::Random;
use select::sim::{Contender, run};

use crate::cases::Case;

/// Resamples behind an interval.
const RESAMPLES: usize = 1000;

/// One policy in one case; each list has a value per seed.
pub(crate) struct Measured {
    pub contender: Contender,
    pub requests: usize,
    pub mean_ms: Vec<f64>,
    pub p50_ms: Vec<f64>,
    pub p99_ms: Vec<f64>,
    pub p999_ms: Vec<f64>,
    pub failed: Vec<f64>,
    /// By the case's own columns.
    pub extra: Vec<Vec<f64>>,
}

pub(crate) fn measure(case: &Case, contender: &Contender, seeds: u64) -> Measured {
    let mut measured = Measured {
        contender: *contender,
        requests: 0,
        mean_ms: Vec::new(),
        p50_ms: Vec::new(),
        p99_ms: Vec::new(),
        p999_ms: Vec::new(),
        failed: Vec::new(),
        extra: vec![Vec::new(); case.columns.len()],
    };
    for seed in 1..=seeds * case.seeds_times {
        let run = run(&case.scenario, contender, seed);
        let (from, to) = case.window_ns();
        let summary = run.summary_of(|record| (from..to).contains(&record.arrived_ns));
        measured.requests += run.records.len();
        measured.mean_ms.push(summary.mean_ns / 1e6);
        measured.p50_ms.push(summary.p50_ns / 1e6);
        measured.p99_ms.push(summary.p99_ns / 1e6);
        measured.p999_ms.push(summary.p999_ns / 1e6);
        measured.failed.push(summary.failed);
        for (values, (_, column)) in measured.extra.iter_mut().zip(&case.columns) {
            values.push(column(&run));
        }
    }
    measured
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// 95 % interval of a statistic of the seeds: percentiles of it over resampled seeds (Efron, 1979). Policies that
/// are compared are given the same seeds in each resample, as they saw the same requests.
pub(crate) fn interval(seeds: usize, statistic: impl Fn(&[usize]) -> f64) -> (f64, f64) {
    let mut random = Random::new(1);
    let mut values: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let chosen: Vec<usize> = (0..seeds).map(|_| random.below(seeds)).collect();
            statistic(&chosen)
        })
        .collect();
    values.sort_unstable_by(f64::total_cmp);
    (values[RESAMPLES * 25 / 1000], values[RESAMPLES * 975 / 1000 - 1])
}

pub(crate) fn mean_at(values: &[f64], seeds: &[usize]) -> f64 {
    seeds.iter().map(|&seed| values[seed]).sum::<f64>() / seeds.len() as f64
}
