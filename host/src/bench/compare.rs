//! Sets reports side by side: how many times the first one's rate and latencies each other has.
//!
//! Plain ratios. Makes no claim that a difference is more than chance; one run of each cannot show that, see
//! [`super::rounds()`].

use serde::{Deserialize, Serialize};

use super::{
    judge::Verdict,
    options::Mode,
    report::{Report, Summary},
};

/// Reports compared with the first one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The name of the first report; empty when there is none.
    pub baseline: String,
    /// One for each further report.
    pub pairs: Vec<Pair>,
}

/// One report against the baseline. A ratio is the other's figure divided by the baseline's; absent when one of the
/// two has no such figure or it is zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    pub name: String,
    pub requests_per_second: Option<f64>,
    /// Of 2xx answers.
    pub p50: Option<f64>,
    /// Of 2xx answers.
    pub p99: Option<f64>,
    /// The ratios in a sentence.
    pub words: String,
}

/// Compares each report with the first one.
#[must_use]
pub fn compare(reports: &[Report]) -> Comparison {
    let Some((first, others)) = reports.split_first() else {
        return Comparison { baseline: String::new(), pairs: Vec::new() };
    };
    Comparison {
        baseline: first.name.clone(),
        pairs: others.iter().map(|other| pair(first, other)).collect(),
    }
}

fn pair(first: &Report, other: &Report) -> Pair {
    let latency = |read: fn(&Summary) -> f64| {
        ratio(first.latency_ms.ok.as_ref().map(read)?, other.latency_ms.ok.as_ref().map(read)?)
    };
    let mut pair = Pair {
        name: other.name.clone(),
        requests_per_second: ratio(first.requests_per_second, other.requests_per_second),
        p50: latency(|summary| summary.p50),
        p99: latency(|summary| summary.p99),
        words: String::new(),
    };
    pair.words = words(first, other, &pair);
    pair
}

fn ratio(first: f64, other: f64) -> Option<f64> {
    (first > 0.0 && other > 0.0).then(|| (other / first * 1e4).round() / 1e4)
}

fn words(first: &Report, other: &Report, pair: &Pair) -> String {
    let parts = [("requests per second", pair.requests_per_second), ("p50", pair.p50), ("p99", pair.p99)];
    // The rate of an open loop says what was asked, not what could be had.
    let parts = if first.mode == Mode::Open && other.mode == Mode::Open { &parts[1..] } else { &parts };
    let known: Vec<_> =
        parts.iter().filter_map(|(what, ratio)| Some(format!("{:.2} times the {what}", (*ratio)?))).collect();
    let mut words = match known.as_slice() {
        [] => format!("{} and {} have no figures to compare", other.name, first.name),
        known => format!("{} has {} of {}", other.name, known.join(", "), first.name),
    };
    if !is_asked_alike(first, other) {
        words += "; they were not asked in the same way";
    }
    for report in [first, other] {
        if !matches!(report.verdict, Verdict::Valid | Verdict::Transient) {
            words += &format!("; the result of {} is {}", report.name, report.verdict.name());
        }
    }
    if first.counts.errors() + other.counts.errors() > 0 {
        words += "; failed requests are left out of the latencies";
    }
    words
}

/// What makes figures comparable; the seed is not needed for it.
fn is_asked_alike(first: &Report, other: &Report) -> bool {
    let of = |report: &Report| {
        let spec = &report.spec;
        (report.mode, spec.connections, spec.rate, spec.arrivals, spec.keepalive)
    };
    of(first) == of(other)
}
