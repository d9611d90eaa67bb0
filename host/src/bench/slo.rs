//! Service level objectives: what a recipe asks of a result, and whether the result shows it.
//!
//! Pure. An objective is met or not when the whole 95 % interval of its figure is on one side of the limit, and not
//! shown when the limit is inside. Whether an objective that is not met ends a recipe is not decided here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    interval::{Batches, Reach},
    judge::Verdict,
    options::wrong,
    record::Series,
};
use crate::{error::Error, options_map};

options_map! {
    /// The option `slo` of `bench::http`: limits that the result is held against. Each may be left out, but not all.
    #[derive(Default, PartialEq, Serialize)]
    #[serde(default)]
    pub struct Slo {
        /// Half of all requests have a 2xx answer within so many milliseconds. Here and in the next four a request that
        /// fails counts as later than any limit, so that failures cannot improve a latency.
        pub p50_ms: Option<f64>,
        /// 90 % have one.
        pub p90_ms: Option<f64>,
        /// 95 % have one.
        pub p95_ms: Option<f64>,
        /// 99 % have one; it takes at least 1000 requests to show that.
        pub p99_ms: Option<f64>,
        /// 99.9 % have one; it takes at least 10000 requests to show that.
        pub p999_ms: Option<f64>,
        /// At most this part of all requests fails, above 0 and below 1 (0.001 is one of a thousand): timeouts, broken
        /// answers and statuses other than 2xx. No failures in n requests show a limit of about 4 / n.
        pub error_rate: Option<f64>,
        /// At least so many 2xx answers come per second. An open loop brings no more than its `rate`.
        pub requests_per_second: Option<f64>,
    }
}

/// What a result says of an objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Met,
    NotMet,
    /// The interval reaches over the limit, there are too few requests for one, or the run is not worth it.
    NotShown,
}

/// One objective, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// The key of the option.
    pub name: String,
    pub limit: f64,
    /// The figure that is held against the limit; absent when more requests failed than the objective permits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The ends of its 95 % interval, where the requests bound it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    pub outcome: Outcome,
    /// All of this in words.
    pub words: String,
}

/// What a run gives to judge by.
pub(super) struct Evidence<'run> {
    pub(super) verdict: Verdict,
    pub(super) batches: Option<&'run Batches>,
    /// Latencies of 2xx answers.
    pub(super) ok: &'run Series,
    pub(super) failed: u64,
    pub(super) requests_per_second: f64,
    pub(super) window: Duration,
}

/// The share of requests that each percentile is of.
const PERCENTILES: [(&str, f64); 5] =
    [("p50_ms", 0.5), ("p90_ms", 0.9), ("p95_ms", 0.95), ("p99_ms", 0.99), ("p999_ms", 0.999)];

impl Slo {
    fn percentiles(&self) -> [Option<f64>; 5] {
        [self.p50_ms, self.p90_ms, self.p95_ms, self.p99_ms, self.p999_ms]
    }

    /// The most telling percentile that a limit is given for (0..1).
    pub(super) fn quantile_max(&self) -> Option<f64> {
        let limits = self.percentiles();
        PERCENTILES.iter().zip(limits).rev().find(|(_, limit)| limit.is_some()).map(|((_, part), _)| *part)
    }

    /// `rate` is that of an open loop.
    pub(super) fn check(&self, rate: Option<f64>) -> Result<(), Error> {
        if *self == Self::default() {
            return Err(wrong("slo names no objective")
                .with_hint("write for example slo: #{ p99_ms: 20, error_rate: 0.001 }"));
        }
        let names = PERCENTILES.iter().map(|(name, _)| *name).chain(["requests_per_second"]);
        for (name, limit) in names.zip(self.percentiles().into_iter().chain([self.requests_per_second])) {
            if limit.is_some_and(|limit| !(limit.is_finite() && limit > 0.0)) {
                return Err(wrong(format!("slo.{name}: {} is out of range", limit.unwrap_or_default()))
                    .with_hint(format!("{name} has to be above 0")));
            }
        }
        match (self.error_rate, self.requests_per_second, rate) {
            (Some(limit), ..) if !(limit > 0.0 && limit < 1.0) => {
                Err(wrong(format!("slo.error_rate: {limit} is out of range")).with_hint(
                    "error_rate is above 0 and below 1, for example 0.001; no run can show that nothing ever fails",
                ))
            }
            (_, Some(wanted), Some(rate)) if wanted > rate => {
                Err(wrong(format!("slo.requests_per_second: {wanted} cannot be reached at a rate of {rate}"))
                    .with_hint("an open loop brings no more than its rate: ask for less, or raise rate"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn judge(&self, evidence: &Evidence<'_>) -> Vec<Objective> {
        let percentiles = PERCENTILES.iter().zip(self.percentiles());
        let latencies = percentiles
            .filter_map(|((name, part), limit)| Some(Finding::latency(name, *part, limit?, evidence)));
        let errors = self.error_rate.map(|limit| Finding::error_rate(limit, evidence));
        let rate = self.requests_per_second.map(|limit| Finding::rate(limit, evidence));
        latencies.chain(errors).chain(rate).map(|finding| finding.objective(evidence.verdict)).collect()
    }
}

/// A figure beside its limit.
struct Finding {
    name: &'static str,
    /// The objective in words.
    asked: String,
    unit: &'static str,
    limit: f64,
    /// The limit is the least permitted, and not the most.
    is_floor: bool,
    value: Option<f64>,
    reach: Option<Reach>,
}

impl Finding {
    fn latency(name: &'static str, part: f64, limit: f64, evidence: &Evidence<'_>) -> Self {
        let (ok, failed) = (evidence.ok.count() as f64, evidence.failed as f64);
        // Of those with an answer, so many are within the percentile of all.
        let part_of_ok = part * (ok + failed) / ok.max(1.0);
        Self {
            name,
            asked: format!("{} at most {limit} ms", name.trim_end_matches("_ms")),
            unit: " ms",
            limit,
            is_floor: false,
            value: (ok > 0.0 && part_of_ok <= 1.0).then(|| millis(evidence.ok.quantile(part_of_ok))),
            reach: evidence
                .batches
                .and_then(|batches| batches.quantile_of_all(part))
                .map(|reach| Reach { low: reach.low / 1e6, high: reach.high / 1e6 }),
        }
    }

    fn error_rate(limit: f64, evidence: &Evidence<'_>) -> Self {
        let sent = evidence.ok.count() + evidence.failed;
        let percent = |part: f64| part * 100.0;
        Self {
            name: "error_rate",
            asked: format!("error rate at most {} %", trimmed(percent(limit))),
            unit: "",
            limit,
            is_floor: false,
            value: (sent > 0).then(|| evidence.failed as f64 / sent as f64),
            reach: evidence.batches.and_then(Batches::error_rate),
        }
    }

    fn rate(limit: f64, evidence: &Evidence<'_>) -> Self {
        let (value, window_s) = (evidence.requests_per_second, evidence.window.as_secs_f64());
        let reach = |batches: &Batches| {
            let reach = batches.count_reach() / window_s.max(1e-9);
            Reach { low: value - reach, high: value + reach }
        };
        Self {
            name: "requests_per_second",
            asked: format!("at least {limit} requests/s"),
            unit: "",
            limit,
            is_floor: true,
            value: Some(value),
            reach: evidence.batches.map(reach),
        }
    }

    /// By the interval alone.
    fn outcome(&self) -> Outcome {
        match self.reach {
            None => Outcome::NotShown,
            Some(Reach { high, .. }) if !self.is_floor && high <= self.limit => Outcome::Met,
            Some(Reach { low, .. }) if !self.is_floor && low > self.limit => Outcome::NotMet,
            Some(Reach { low, .. }) if self.is_floor && low >= self.limit => Outcome::Met,
            Some(Reach { high, .. }) if self.is_floor && high < self.limit => Outcome::NotMet,
            Some(_) => Outcome::NotShown,
        }
    }

    /// That an objective is met takes a valid run. That it is not takes one that this machine did not limit.
    fn objective(self, verdict: Verdict) -> Objective {
        let by_interval = self.outcome();
        let is_believed = match by_interval {
            Outcome::Met => verdict == Verdict::Valid,
            Outcome::NotMet => verdict != Verdict::ClientLimited,
            Outcome::NotShown => true,
        };
        let outcome = if is_believed { by_interval } else { Outcome::NotShown };
        let mut words = format!("{}: {}, {}", self.asked, outcome.words(), self.found());
        if !is_believed {
            words += &format!("; the result is {}", verdict.name());
        }
        let finite = |read: fn(&Reach) -> f64| {
            self.reach.as_ref().map(read).filter(|end| end.is_finite()).map(rounded)
        };
        Objective {
            name: self.name.to_owned(),
            limit: self.limit,
            value: self.value.map(rounded),
            low: finite(|reach| reach.low),
            high: finite(|reach| reach.high),
            outcome,
            words,
        }
    }

    fn found(&self) -> String {
        let shown = |value: f64| match self.name {
            "error_rate" => format!("{} %", trimmed(value * 100.0)),
            _ => trimmed(value),
        };
        let value = self.value.map_or_else(
            || "more requests failed than it permits".to_owned(),
            |value| shown(value) + self.unit,
        );
        let interval = match self.reach {
            None => "too few requests for an interval".to_owned(),
            Some(Reach { low, .. }) if low.is_infinite() => return value,
            Some(Reach { low, high }) if high.is_infinite() => format!("95 %: {} or more", shown(low)),
            Some(Reach { low, high }) => format!("95 %: {} to {}", shown(low), shown(high)),
        };
        format!("{value} ({interval})")
    }
}

impl Outcome {
    /// As reports print it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "not met",
            Self::NotShown => "not shown",
        }
    }

    /// Of several objectives together.
    #[must_use]
    pub fn of(objectives: &[Objective]) -> Option<Self> {
        let has = |outcome| objectives.iter().any(|objective| objective.outcome == outcome);
        [Self::NotMet, Self::NotShown, Self::Met].into_iter().find(|outcome| has(*outcome))
    }

    /// The word in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "not_met",
            Self::NotShown => "not_shown",
        }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn rounded(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
}

/// Four significant digits without needless zeros.
fn trimmed(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { 3 - value.abs().log10().floor() as i32 };
    let text = format!("{value:.*}", usize::try_from(digits.clamp(0, 9)).unwrap_or(0));
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{schedule::SplitMix64, timeline::Timeline};

    const LENGTH: Duration = Duration::from_secs(10);

    /// A run of ten seconds whose `n`-th request has this latency in milliseconds, or fails.
    fn judged(
        slo: &str,
        requests: u32,
        verdict: Verdict,
        latency_ms: impl Fn(u32) -> Option<f64>,
    ) -> Objective {
        let (mut timeline, mut ok) = (Timeline::new(LENGTH), Series::new());
        for n in 0..requests {
            let latency = latency_ms(n).map(|millis| Duration::from_secs_f64(millis / 1e3));
            timeline.record(LENGTH * n / requests, latency);
            latency.into_iter().for_each(|latency| ok.record(latency));
        }
        let batches = Batches::new(&timeline.blocks);
        let evidence = Evidence {
            verdict,
            batches: batches.as_ref(),
            ok: &ok,
            failed: u64::from(requests) - ok.count(),
            requests_per_second: ok.count() as f64 / LENGTH.as_secs_f64(),
            window: LENGTH,
        };
        let slo: Slo = serde_json::from_str(slo).unwrap();
        slo.check(None).unwrap();
        slo.judge(&evidence).remove(0)
    }

    /// Between 0 and 10 ms, all equally likely: p99 is 9.9 ms.
    fn even(n: u32) -> Option<f64> {
        Some(SplitMix64::new(u64::from(n)).unit() * 10.0)
    }

    #[track_caller]
    fn check(found: &Objective, outcome: Outcome, word: &str) {
        assert_eq!(found.outcome, outcome, "{found:?}");
        assert!(found.words.contains(word), "{word} is missing in {}", found.words);
    }

    #[test]
    fn the_interval_decides_and_not_the_figure() {
        let p90 = |limit: f64| judged(&format!("{{\"p90_ms\": {limit}}}"), 10_000, Verdict::Valid, even);
        check(&p90(9.3), Outcome::Met, "p90 at most 9.3 ms: met");
        check(&p90(8.7), Outcome::NotMet, "not met");
        check(&p90(9.02), Outcome::NotShown, "not shown");
        let found = p90(9.3);
        assert!(found.low.unwrap() < 9.0 && found.high.unwrap() > 9.0, "{found:?}");
    }

    #[test]
    fn few_requests_show_little() {
        let p99 = |requests, limit: f64| {
            judged(&format!("{{\"p99_ms\": {limit}}}"), requests, Verdict::Valid, even)
        };
        check(&p99(999, 50.0), Outcome::NotShown, "or more");
        check(&p99(1000, 50.0), Outcome::Met, "");
        check(&p99(999, 5.0), Outcome::NotMet, "");
        check(&p99(60, 5.0), Outcome::NotShown, "too few requests");
        check(&p99(20, 5.0), Outcome::NotShown, "too few requests");
    }

    #[test]
    fn failures_count_as_late() {
        let with_failures = |every: u32| move |n: u32| (!n.is_multiple_of(every)).then_some(1.0);
        let p99 = |every| judged(r#"{"p99_ms": 20}"#, 10_000, Verdict::Valid, with_failures(every));
        check(&p99(500), Outcome::Met, "1 ms");
        check(&p99(100), Outcome::NotShown, "");
        check(&p99(20), Outcome::NotMet, "not met, more requests failed than it permits");
        assert_eq!(p99(20).value, None);
        check(&judged(r#"{"p50_ms": 20}"#, 10_000, Verdict::Failed, |_| None), Outcome::NotMet, "failed");
    }

    #[test]
    fn an_error_rate_has_an_interval_even_without_errors() {
        let rate = |limit: f64, every: u32| {
            judged(&format!("{{\"error_rate\": {limit}}}"), 10_000, Verdict::Valid, move |n| {
                (n % every != every - 1).then_some(1.0)
            })
        };
        check(
            &rate(0.001, 100_000),
            Outcome::Met,
            "error rate at most 0.1 %: met, 0 % (95 %: 0 % to 0.04279 %)",
        );
        check(&rate(0.0001, 100_000), Outcome::NotShown, "");
        check(&rate(0.01, 50), Outcome::NotMet, "2 %");
        check(&rate(0.021, 50), Outcome::NotShown, "");
    }

    #[test]
    fn errors_that_come_together_leave_more_doubt() {
        let found = |is_bad: fn(u32) -> bool| {
            judged(r#"{"error_rate": 0.03}"#, 10_000, Verdict::Valid, move |n| (!is_bad(n)).then_some(1.0))
        };
        check(&found(|n| n.is_multiple_of(50)), Outcome::Met, "");
        check(&found(|n| n / 200 == 30), Outcome::NotShown, "");
    }

    #[test]
    fn a_rate_is_a_floor() {
        let rate = |limit: f64| {
            judged(&format!("{{\"requests_per_second\": {limit}}}"), 10_000, Verdict::Valid, even)
        };
        check(&rate(990.0), Outcome::Met, "at least 990 requests/s: met, 1000");
        check(&rate(1010.0), Outcome::NotMet, "");
        // Slow throughout one half of the time: what the next ten seconds bring is less sure.
        let uneven = |n: u32| (n < 5000 || n.is_multiple_of(2)).then_some(1.0);
        check(
            &judged(r#"{"requests_per_second": 745}"#, 10_000, Verdict::Valid, uneven),
            Outcome::NotShown,
            "750",
        );
    }

    #[test]
    fn a_run_that_is_not_valid_shows_only_what_speaks_against_the_target() {
        let p99 = |verdict, limit: f64| judged(&format!("{{\"p99_ms\": {limit}}}"), 10_000, verdict, even);
        for verdict in
            [Verdict::ClientLimited, Verdict::Overloaded, Verdict::TooShort, Verdict::NotStationary]
        {
            check(&p99(verdict, 50.0), Outcome::NotShown, &format!("the result is {}", verdict.name()));
        }
        check(&p99(Verdict::Overloaded, 5.0), Outcome::NotMet, "");
        check(&p99(Verdict::ClientLimited, 5.0), Outcome::NotShown, "client_limited");
    }

    #[test]
    fn the_worst_objective_speaks_for_all() {
        let objective =
            |outcome| Objective { outcome, ..judged(r#"{"p50_ms": 20}"#, 100, Verdict::Valid, even) };
        let of =
            |outcomes: &[Outcome]| Outcome::of(&outcomes.iter().copied().map(objective).collect::<Vec<_>>());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[Outcome::Met, Outcome::NotShown]), Some(Outcome::NotShown));
        assert_eq!(of(&[Outcome::NotMet, Outcome::NotShown, Outcome::Met]), Some(Outcome::NotMet));
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        let check = |json: &str, rate, word: &str| {
            let error = serde_json::from_str::<Slo>(json).unwrap().check(rate).expect_err(json);
            assert!(error.message.contains(word) && error.hint.is_some(), "{json}: {}", error.message);
        };
        check("{}", None, "no objective");
        check(r#"{"p99_ms": 0}"#, None, "slo.p99_ms");
        check(r#"{"requests_per_second": -1}"#, None, "slo.requests_per_second");
        check(r#"{"error_rate": 0}"#, None, "slo.error_rate");
        check(r#"{"error_rate": 1}"#, None, "slo.error_rate");
        check(r#"{"requests_per_second": 900}"#, Some(800.0), "rate of 800");
        assert!(serde_json::from_str::<Slo>(r#"{"p98_ms": 1}"#).is_err());
    }

    #[test]
    fn figures_have_four_digits() {
        let shown = [0.0, 0.042_794, 9.3, 12.345_6, 1000.0, 123_456.7].map(trimmed);
        assert_eq!(shown, ["0", "0.04279", "9.3", "12.35", "1000", "123457"]);
    }
}
