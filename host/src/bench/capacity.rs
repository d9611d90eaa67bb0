//! Finds the highest rate of an open loop at which objectives hold: tries rates, as [`super::search`] says, and gives
//! the two between which it is.
//!
//! A rate held when its run shows every objective met, and did not when the run shows one not met, or when the target
//! fell behind: then its latencies grow as long as the load lasts. Every run is long enough for the most telling
//! objective. Does not claim more than it measured: an end of the bracket that is not known is said to be so.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Progress, http,
    judge::{OK_MIN, Verdict},
    options::{DURATION_MAX, Mode, Options, RATE_MAX, RATE_MIN, Warmup, wrong},
    report::Report,
    search::{Bounds, Finding, Search, Try},
    slo::{Outcome, Slo},
};
use crate::{error::Error, options_map, units::Span};

options_map! {
    /// The options of `bench::capacity` besides those of `bench::http`.
    #[derive(PartialEq, Serialize)]
    #[serde(default)]
    pub struct CapacityOptions {
        /// What has to hold; needed. All but `requests_per_second`, which is what is searched.
        pub slo: Option<Slo>,
        /// The lowest rate that is tried, by default 1 request per second.
        pub rate_min: f64,
        /// The highest rate that is tried, by default 250000.
        pub rate_max: f64,
        /// The search ends when the rate that did not hold is at most this part above the one that held, 0.01 to 1; by
        /// default 0.05.
        pub precision: f64,
        /// At most so many runs, 1 to 50, by default 16. A rate of which nothing is shown has a second one, twice as
        /// long.
        pub steps: u64,
    }
}

impl Default for CapacityOptions {
    fn default() -> Self {
        Self { slo: None, rate_min: 1.0, rate_max: RATE_MAX, precision: 0.05, steps: 16 }
    }
}

/// More runs take hours, and bisecting needs far fewer.
const STEPS_MAX: u64 = 50;
/// How long a rate is tried unless the recipe says more.
const STEP: Duration = Duration::from_secs(5);
/// A run is as long as its objectives need, but not longer than this unless the recipe says so.
const STEP_LONGEST: Duration = Duration::from_secs(60);
/// So many requests beyond a percentile, twice what an interval needs.
const BEYOND: f64 = 20.0;
/// So many times the requests that show an error rate when none fails.
const ERROR_RATE_MARGIN: f64 = 2.0;
/// So many times the answers of a valid result: a Poisson schedule has fewer by chance, and some are warm-up.
const ENOUGH: f64 = 1.5;
/// A first look at what the target takes, by which the search begins: half of it.
const LOOK: Duration = Duration::from_secs(2);

/// Between which rates a target's capacity is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    pub name: String,
    pub url: String,
    /// The highest rate, in requests per second, at which all objectives were met; absent when they were at none.
    pub held: Option<f64>,
    /// The lowest rate at which one was not; absent when there was none.
    pub not_held: Option<f64>,
    /// What the search ended at: the `target`, the `generator`, `not_shown` (what was measured decides nothing above
    /// `held`), `rate_max` or `steps`.
    pub limit: Limit,
    /// All of this in a sentence.
    pub words: String,
    /// In the order tried.
    pub steps: Vec<Step>,
    /// Of the steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<Report>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    Target,
    Generator,
    NotShown,
    RateMax,
    Steps,
}

/// One rate that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub rate: f64,
    pub duration_s: f64,
    pub finding: Finding,
    /// Its objectives, or why the run decides nothing.
    pub words: String,
}

/// How far the search is.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// The rate that is tried; none during the first look.
    pub rate: Option<f64>,
    /// How many requests of this run have ended.
    pub done: u64,
    /// What came of it, at its end.
    pub finding: Option<Finding>,
}

impl Trial {
    fn of(rate: Option<f64>, done: u64) -> Self {
        Self { rate, done, finding: None }
    }
}

/// Searches the capacity of the target at `url` under `load`, whose mode and rate are set here.
///
/// Errors as [`http`]; besides, of kind `recipe`, for options without objectives and bounds that make no sense.
/// Dropping the future ends the run as that of [`http`] does.
pub async fn capacity(
    url: &str,
    load: &Options,
    options: &CapacityOptions,
    progress: &dyn Fn(Trial),
) -> Result<Capacity, Error> {
    let slo = check(options)?;
    let first = look(url, load, progress).await?;
    let mut search = Search::new(Bounds {
        start: first.requests_per_second / 2.0,
        min: options.rate_min,
        max: options.rate_max,
        precision: options.precision,
        steps: options.steps,
    });
    let (mut steps, mut reports) = (Vec::new(), Vec::new());
    while let Some(next) = search.next() {
        let run = run_options(load, slo, next);
        let told = |of_run: Progress| progress(Trial::of(Some(next.rate), of_run.done));
        let report = http(url, &run, &told).await?;
        let finding = find(&report);
        search.record(next, finding);
        let trial = Trial::of(Some(next.rate), report.counts.scheduled);
        progress(Trial { finding: Some(finding), ..trial });
        let duration_s = run.duration_used().as_secs_f64();
        steps.push(Step { rate: next.rate, duration_s, finding, words: step_words(&report) });
        reports.push(report);
    }
    let bracket = Bracket::of(&steps, options);
    let words = bracket.words(&first.name);
    let Bracket { held, not_held, limit, .. } = bracket;
    Ok(Capacity { name: first.name, url: url.to_owned(), held, not_held, limit, words, steps, reports })
}

/// A closed loop for a moment: about the most that the target takes.
async fn look(url: &str, load: &Options, progress: &dyn Fn(Trial)) -> Result<Report, Error> {
    let options = Options {
        mode: Mode::Closed,
        arrivals: None,
        seed: None,
        requests: None,
        connections: load.connections.map(|connections| connections.min(LOOK_CONNECTIONS)),
        duration: Some(Span(LOOK)),
        warmup: Some(Warmup::NONE),
        ..load.clone()
    };
    http(url, &options, &|of_run: Progress| progress(Trial::of(None, of_run.done))).await
}

/// As many as a closed loop has by default.
const LOOK_CONNECTIONS: u64 = 64;

fn check(options: &CapacityOptions) -> Result<&Slo, Error> {
    let slo = options.slo.as_ref().ok_or_else(|| {
        wrong("a capacity needs objectives")
            .with_hint("say what has to hold, for example slo: #{ p99_ms: 20 }")
    })?;
    slo.check(None)?;
    if slo.requests_per_second.is_some() {
        return Err(wrong("slo.requests_per_second has no meaning in a search for the highest rate")
            .with_hint("leave it out, and say rate_min for the least that is tried"));
    }
    let CapacityOptions { rate_min, rate_max, precision, steps, .. } = options;
    let rates = RATE_MIN..=RATE_MAX;
    if !rates.contains(rate_min) || !rates.contains(rate_max) || rate_min > rate_max {
        return Err(wrong(format!("rate_min: {rate_min} and rate_max: {rate_max} make no range"))
            .with_hint(format!("rates may be {RATE_MIN} to {RATE_MAX}, and rate_min the lower one")));
    }
    if !(0.01..=1.0).contains(precision) {
        return Err(wrong(format!("precision: {precision} is out of range"))
            .with_hint("precision may be 0.01 to 1, for example 0.05 for 5 %"));
    }
    if !(1..=STEPS_MAX).contains(steps) {
        return Err(wrong(format!("steps: {steps} is out of range"))
            .with_hint(format!("steps may be 1 to {STEPS_MAX}")));
    }
    Ok(slo)
}

fn run_options(load: &Options, slo: &Slo, next: Try) -> Options {
    let wished = load.duration.map_or(STEP, |span| span.0);
    let needed = Duration::try_from_secs_f64(requests_needed(slo) / next.rate).unwrap_or(STEP_LONGEST);
    let duration = wished.max(needed.min(STEP_LONGEST)) * if next.is_second { 2 } else { 1 };
    let duration = duration.min(DURATION_MAX);
    // Chance that made one run undecided shall not do so again.
    let seed = load.seed_used() + u64::from(next.is_second);
    Options {
        mode: Mode::Open,
        rate: Some(next.rate),
        requests: None,
        seed: Some(seed),
        duration: Some(Span(duration)),
        slo: Some(slo.clone()),
        ..load.clone()
    }
}

fn requests_needed(slo: &Slo) -> f64 {
    let beyond = slo.quantile_max().map_or(0.0, |quantile| BEYOND / (1.0 - quantile));
    // See `Slo::error_rate`: no failures in n requests show a limit of about 4 / n.
    let errors = slo.error_rate.map_or(0.0, |limit| ERROR_RATE_MARGIN * 4.3 / limit);
    beyond.max(errors).max(ENOUGH * OK_MIN as f64)
}

fn find(report: &Report) -> Finding {
    match (report.verdict, Outcome::of(&report.slo)) {
        (_, Some(Outcome::Met)) => Finding::Held,
        (Verdict::ClientLimited, _) => Finding::ClientLimited,
        (Verdict::Overloaded | Verdict::Failed, _) | (_, Some(Outcome::NotMet)) => Finding::NotHeld,
        _ => Finding::NotShown,
    }
}

fn step_words(report: &Report) -> String {
    let reasons = report.reasons.first().filter(|_| report.verdict != Verdict::Valid);
    let objectives = report.slo.iter().map(|objective| objective.words.as_str());
    objectives.chain(reasons.map(String::as_str)).collect::<Vec<_>>().join("; ")
}

/// What the steps say together.
struct Bracket {
    held: Option<f64>,
    not_held: Option<f64>,
    /// The lowest rate above `held` that decides nothing twice, and whether by the generator's fault.
    unknown: Option<(f64, bool)>,
    limit: Limit,
    lowest: f64,
}

impl Bracket {
    fn of(steps: &[Step], options: &CapacityOptions) -> Self {
        let rates = |finding| steps.iter().filter(move |step| step.finding == finding).map(|step| step.rate);
        let held = rates(Finding::Held).reduce(f64::max);
        let not_held = rates(Finding::NotHeld).reduce(f64::min);
        let nothing = [(Finding::NotShown, false), (Finding::ClientLimited, true)];
        let unknown = nothing
            .into_iter()
            .flat_map(|(finding, is_generator)| rates(finding).map(move |rate| (rate, is_generator)))
            .filter(|(rate, _)| {
                held.is_none_or(|held| *rate > held) && not_held.is_none_or(|not| *rate < not)
            })
            .min_by(|one, other| one.0.total_cmp(&other.0));
        let is_close = |upper: f64| {
            held.map_or(upper <= options.rate_min, |held| upper <= held * (1.0 + options.precision))
        };
        let limit = match (unknown, not_held) {
            (Some((_, true)), _) => Limit::Generator,
            (Some((_, false)), _) => Limit::NotShown,
            (None, Some(not_held)) if is_close(not_held) => Limit::Target,
            (None, None) if held.is_some_and(|held| held >= options.rate_max) => Limit::RateMax,
            (None, _) if steps.len() as u64 >= options.steps => Limit::Steps,
            (None, _) => Limit::Target,
        };
        let lowest = steps.iter().map(|step| step.rate).fold(f64::INFINITY, f64::min);
        Self { held, not_held, unknown, limit, lowest }
    }

    fn words(&self, name: &str) -> String {
        let Some(held) = self.held else {
            let why = match self.limit {
                Limit::Generator => ": the generator was the limit",
                Limit::NotShown => ": nothing was shown",
                Limit::Steps => "; the steps did not suffice for lower ones",
                _ => "",
            };
            return format!(
                "{name}: the objectives held at no rate, {} requests/s being the lowest{why}",
                self.lowest
            );
        };
        let unknown = self.unknown.map_or(String::new(), |(rate, is_generator)| {
            let why = if is_generator { "the generator was the limit" } else { "neither was shown" };
            format!("; at {rate} {why}")
        });
        let end = match self.limit {
            Limit::RateMax => ", the highest rate that was to be tried",
            Limit::Steps => "; the steps did not suffice for more",
            _ => "",
        };
        match self.not_held {
            Some(not_held) => format!(
                "{name} keeps the objectives at {held} requests/s and not at {not_held}: its capacity is \
                 between{unknown}{end}"
            ),
            None => format!(
                "{name} keeps the objectives at {held} requests/s: its capacity is that or more{unknown}{end}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bracket(steps: &[(f64, Finding)]) -> Bracket {
        let step = |(rate, finding): &(f64, Finding)| Step {
            rate: *rate,
            duration_s: 5.0,
            finding: *finding,
            words: String::new(),
        };
        let options = CapacityOptions { rate_max: 2000.0, steps: 5, ..CapacityOptions::default() };
        Bracket::of(&steps.iter().map(step).collect::<Vec<_>>(), &options)
    }

    #[track_caller]
    fn check(steps: &[(f64, Finding)], limit: Limit, words: &str) {
        let found = bracket(steps);
        assert_eq!(found.limit, limit);
        assert!(found.words("a").contains(words), "{}", found.words("a"));
    }

    #[test]
    fn a_capacity_is_said_as_a_bracket() {
        use Finding::{ClientLimited, Held, NotHeld, NotShown};
        let between = "a keeps the objectives at 800 requests/s and not at 830: its capacity is between";
        check(&[(400.0, Held), (830.0, NotHeld), (800.0, Held)], Limit::Target, between);
        check(
            &[(800.0, Held), (1600.0, ClientLimited), (1600.0, ClientLimited)],
            Limit::Generator,
            "at 800 requests/s: its capacity is that or more; at 1600 the generator was the limit",
        );
        check(
            &[(800.0, Held), (900.0, NotHeld), (830.0, NotShown), (830.0, NotShown)],
            Limit::NotShown,
            "and not at 900: its capacity is between; at 830 neither was shown",
        );
        check(&[(1000.0, Held), (2000.0, Held)], Limit::RateMax, "the highest rate that was to be tried");
        check(
            &[(100.0, Held), (200.0, Held), (400.0, Held), (800.0, Held), (1600.0, NotHeld)],
            Limit::Steps,
            "the steps did not suffice",
        );
        check(
            &[(2.0, NotHeld), (1.0, NotHeld)],
            Limit::Target,
            "held at no rate, 1 requests/s being the lowest",
        );
        let halved = [1600.0, 800.0, 400.0, 200.0, 100.0].map(|rate| (rate, NotHeld));
        check(&halved, Limit::Steps, "the steps did not suffice for lower ones");
    }

    #[test]
    fn a_rate_that_was_decided_in_the_end_is_not_unknown() {
        let found = bracket(&[(400.0, Finding::NotShown), (400.0, Finding::Held), (410.0, Finding::NotHeld)]);
        assert!(found.unknown.is_none() && found.limit == Limit::Target);
    }

    #[test]
    fn a_step_is_long_enough_for_its_objectives() {
        let slo = |text: &str| serde_json::from_str::<Slo>(text).unwrap();
        let seconds = |text: &str, rate, is_second| {
            run_options(&Options::default(), &slo(text), Try { rate, is_second })
                .duration_used()
                .as_secs_f64()
        };
        assert_eq!(seconds(r#"{"p50_ms": 5}"#, 1000.0, false), 5.0);
        assert_eq!(seconds(r#"{"p99_ms": 5}"#, 100.0, false).round(), 20.0);
        assert_eq!(seconds(r#"{"p99_ms": 5}"#, 100.0, true).round(), 40.0);
        assert_eq!(seconds(r#"{"p50_ms": 5, "error_rate": 0.001}"#, 500.0, false).round(), 17.0);
        assert_eq!(seconds(r#"{"p999_ms": 5}"#, 10.0, false), 60.0);
        // Long enough to be valid at all.
        assert_eq!(seconds(r#"{"p50_ms": 5}"#, 50.0, false).round(), 30.0);
        let longest = Options { duration: Some(Span(DURATION_MAX)), ..Options::default() };
        let second = run_options(&longest, &slo(r#"{"p50_ms": 5}"#), Try { rate: 10.0, is_second: true });
        assert_eq!(second.duration_used(), DURATION_MAX);
    }

    #[test]
    fn a_search_without_sense_is_refused() {
        let check = |json: &str, word: &str| {
            let options: CapacityOptions = serde_json::from_str(json).unwrap();
            let error = super::check(&options).expect_err(json);
            assert!(error.message.contains(word) && error.hint.is_some(), "{json}: {}", error.message);
        };
        check("{}", "needs objectives");
        check(r#"{"slo": {}}"#, "no objective");
        check(r#"{"slo": {"requests_per_second": 5}}"#, "requests_per_second");
        check(r#"{"slo": {"p99_ms": 5}, "rate_min": 5, "rate_max": 4}"#, "no range");
        check(r#"{"slo": {"p99_ms": 5}, "precision": 0}"#, "precision");
        check(r#"{"slo": {"p99_ms": 5}, "steps": 51}"#, "steps");
    }
}
