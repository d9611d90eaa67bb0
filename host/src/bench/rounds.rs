//! Measures several targets in turn, round after round, and compares them within each round.
//!
//! What drifts slowly on a machine or a network is alike for all targets of a round, and goes out of their ratio. The
//! order turns round from one round to the next (ABBA), so that none is always the first. A round with a result that is
//! not valid is named and not counted, and played again while there are rounds left for that.
//!
//! Does not measure several targets at the same time, and does not compare results of other runs: see
//! [`super::compare()`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Progress, http,
    judge::Verdict,
    options::{Mode, Options, Warmup, wrong},
    ratio::{ROUNDS_FOR_INTERVAL, Ratio},
    report::{Report, Summary, is_supported},
};
use crate::{error::Error, options_map};

options_map! {
    /// The options of `bench::compare` besides those of `bench::http`.
    #[derive(PartialEq, Serialize)]
    #[serde(default)]
    pub struct RoundsOptions {
        /// How many rounds are to count, 1 to 100, by default 6: the least for which there is an interval. 12 make it
        /// narrower. Up to half as many more are played in place of rounds that are not valid.
        pub rounds: u64,
    }
}

options_map! {
    /// One of the targets that `bench::compare` measures.
    #[derive(PartialEq, Serialize)]
    pub struct Contender {
        /// Where the load goes.
        pub url: String,
        /// What it is called; by default as `bench::http` does.
        #[serde(default)]
        pub name: Option<String>,
    }
}

impl Default for RoundsOptions {
    fn default() -> Self {
        Self { rounds: ROUNDS_FOR_INTERVAL }
    }
}

/// More are no better known.
const ROUNDS_MAX: u64 = 100;
/// Rounds of more take so long that they are not alike within.
const CONTENDERS_MAX: usize = 16;
/// Rounds that all count take no longer than a recipe may by default.
const LOAD_MAX: Duration = Duration::from_secs(3600);

/// What some rounds showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    /// The target that the others are compared with.
    pub baseline: String,
    /// How many rounds count.
    pub rounds: u64,
    /// Each round that does not, and why.
    pub left_out: Vec<String>,
    /// One for each target but the first.
    pub pairs: Vec<Ratios>,
    /// Of all rounds, in the order in which they were measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<Report>,
}

/// A target's figures divided by the baseline's within each round. Absent where a figure is not known; an open loop has
/// no rate here, as it is the one that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratios {
    pub name: String,
    pub requests_per_second: Option<Ratio>,
    /// Of 2xx answers, as are the next two.
    pub mean: Option<Ratio>,
    pub p50: Option<Ratio>,
    pub p99: Option<Ratio>,
    /// All of this in a sentence.
    pub words: String,
}

impl Ratios {
    /// Whether there is an interval for at least one figure.
    #[must_use]
    pub fn has_intervals(&self) -> bool {
        let all = [&self.requests_per_second, &self.mean, &self.p50, &self.p99];
        all.into_iter().flatten().any(|ratio| ratio.low.is_some())
    }
}

/// Which target of which round is measured, and how far that is.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'name> {
    pub name: &'name str,
    /// From 1.
    pub round: u64,
    pub progress: Progress,
}

/// Plays rounds until enough of them count, each with one run of `load` against every contender.
///
/// Errors as [`http`]; besides, of kind `recipe`, for fewer than two contenders, two of one name, and rounds that take
/// longer than an hour. Dropping the future ends the run as that of [`http`] does.
pub async fn rounds(
    contenders: &[Contender],
    load: &Options,
    options: &RoundsOptions,
    progress: &dyn Fn(Turn<'_>),
) -> Result<Rounds, Error> {
    check(contenders, load, options)?;
    let mut played: Vec<Vec<Report>> = Vec::new();
    let mut reports = Vec::new();
    let attempts_max = options.rounds + options.rounds.div_ceil(2);
    for round in 1..=attempts_max {
        let mut these: Vec<Option<Report>> = contenders.iter().map(|_| None).collect();
        // A round that is played again takes the order of the one that it stands for.
        let counted = played.iter().filter(|round| doubts(round).is_empty()).count() as u64;
        for index in order(counted + 1, contenders.len()) {
            let report = measure(&contenders[index], load, round, progress).await?;
            reports.push(report.clone());
            these[index] = Some(report);
        }
        played.push(these.into_iter().flatten().collect());
        if played.iter().filter(|round| doubts(round).is_empty()).count() as u64 == options.rounds {
            break;
        }
    }
    Ok(Rounds { reports, ..compared(&played) })
}

/// The order of a round (from 1, of those that count) turns round each time.
fn order(round: u64, contenders: usize) -> Vec<usize> {
    let forward = 0..contenders;
    if round.is_multiple_of(2) { forward.rev().collect() } else { forward.collect() }
}

async fn measure(
    contender: &Contender,
    load: &Options,
    round: u64,
    progress: &dyn Fn(Turn<'_>),
) -> Result<Report, Error> {
    let options = Options { name: contender.name.clone(), ..load.clone() };
    let name = contender.name.as_deref().unwrap_or(&contender.url);
    let told = |of_run| progress(Turn { name, round, progress: of_run });
    let report = http(&contender.url, &options, &told).await?;
    Ok(Report { round: Some(round), ..report })
}

fn check(contenders: &[Contender], load: &Options, options: &RoundsOptions) -> Result<(), Error> {
    if !(1..=ROUNDS_MAX).contains(&options.rounds) {
        return Err(wrong(format!("rounds: {} is out of range", options.rounds))
            .with_hint(format!("rounds may be 1 to {ROUNDS_MAX}")));
    }
    if !(2..=CONTENDERS_MAX).contains(&contenders.len()) {
        return Err(wrong(format!("{} targets cannot be compared", contenders.len()))
            .with_hint(format!("give a list of 2 to {CONTENDERS_MAX}: [#{{ name: \"a\", url: .. }}, ..]")));
    }
    let names: Vec<_> = contenders.iter().map(|it| it.name.as_deref().unwrap_or(&it.url)).collect();
    if let Some(twice) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        return Err(
            wrong(format!("two targets are called {}", twice.1)).with_hint("give each a name of its own")
        );
    }
    load.check()?;
    let warmup = match load.warmup_used() {
        Warmup::Fixed(span) => span.0,
        Warmup::Auto(_) => Duration::ZERO,
    };
    let measured = match (load.mode, load.requests, load.rate) {
        (_, Some(requests), Some(rate)) => {
            Duration::try_from_secs_f64(requests as f64 / rate).unwrap_or(Duration::MAX)
        }
        (Mode::Burst, ..) | (_, Some(_), None) => Duration::ZERO,
        _ => load.duration_used(),
    };
    let runs = u32::try_from(options.rounds).unwrap_or(u32::MAX).saturating_mul(contenders.len() as u32);
    let whole = warmup.saturating_add(measured).saturating_mul(runs);
    if whole > LOAD_MAX {
        return Err(wrong(format!("so many rounds take {} s", whole.as_secs())).with_hint(
            "an hour of load is the most: take fewer rounds, fewer targets or a shorter duration",
        ));
    }
    Ok(())
}

/// Why a round does not count; nothing when it does.
fn doubts(round: &[Report]) -> Vec<String> {
    let is_bad = |report: &&Report| !matches!(report.verdict, Verdict::Valid | Verdict::Transient);
    let words = |report: &Report| {
        let why = report.reasons.first().map_or_else(String::new, |reason| format!(": {reason}"));
        format!("the result of {} is {}{why}", report.name, report.verdict.name())
    };
    round.iter().filter(is_bad).map(words).collect()
}

/// Rounds whose reports are in the order of the contenders.
fn compared(played: &[Vec<Report>]) -> Rounds {
    let left_out = played.iter().enumerate().filter_map(|(index, round)| {
        let doubts = doubts(round);
        (!doubts.is_empty()).then(|| format!("round {}: {}", index + 1, doubts.join("; ")))
    });
    let counted: Vec<_> = played.iter().filter(|round| doubts(round).is_empty()).collect();
    let names: Vec<_> = played.first().into_iter().flatten().map(|report| report.name.clone()).collect();
    Rounds {
        baseline: names.first().cloned().unwrap_or_default(),
        rounds: counted.len() as u64,
        left_out: left_out.collect(),
        pairs: (1..names.len()).map(|index| ratios(&names, index, &counted)).collect(),
        reports: Vec::new(),
    }
}

fn ratios(names: &[String], index: usize, counted: &[&Vec<Report>]) -> Ratios {
    let of = |read: &dyn Fn(&Report) -> Option<f64>| {
        let ratio = |round: &&Vec<Report>| Some(read(&round[index])? / read(&round[0])?);
        Ratio::of(
            counted.iter().filter_map(ratio).filter(|ratio| ratio.is_finite() && *ratio > 0.0).collect(),
        )
    };
    let latency = |quantile: f64, read: fn(&Summary) -> f64| {
        of(&move |report| {
            let ok = report.latency_ms.ok.as_ref()?;
            is_supported(ok.count, quantile).then(|| read(ok))
        })
    };
    let mut ratios = Ratios {
        name: names[index].clone(),
        // The rate of an open loop says what was asked, not what could be had.
        requests_per_second: of(&|report| (report.mode != Mode::Open).then_some(report.requests_per_second)),
        mean: latency(0.5, |ok| ok.mean),
        p50: latency(0.5, |ok| ok.p50),
        p99: latency(0.99, |ok| ok.p99),
        words: String::new(),
    };
    ratios.words = words(&ratios, &names[0], counted.len());
    ratios
}

fn words(ratios: &Ratios, baseline: &str, rounds: usize) -> String {
    let Ratios { name, requests_per_second, mean, p50, p99, .. } = ratios;
    let figures =
        [("requests per second", requests_per_second), ("mean latency", mean), ("p50", p50), ("p99", p99)];
    let known: Vec<_> = figures.iter().filter_map(|(what, ratio)| Some((what, ratio.as_ref()?))).collect();
    let said = |(what, ratio): &(&&str, &Ratio)| {
        let (median, interval) = ratio.shown();
        format!("{median} x the {what}{interval}")
    };
    let rounds_shown = if rounds == 1 { "1 round".to_owned() } else { format!("{rounds} rounds") };
    if known.is_empty() {
        return format!("{name} and {baseline} have no figures to compare in {rounds_shown}");
    }
    if known.iter().all(|(_, ratio)| ratio.low.is_none()) {
        let all: Vec<_> = known.iter().map(said).collect();
        return format!(
            "{name} has {} of {baseline} in {rounds_shown}, of which no interval can be made: \
             no difference is shown",
            all.join(", ")
        );
    }
    let (shown, others): (Vec<_>, Vec<_>) = known.iter().partition(|(_, ratio)| ratio.differs);
    let shown: Vec<_> = shown.into_iter().map(said).collect();
    let others: Vec<_> = others
        .into_iter()
        .map(|(what, ratio)| {
            let (median, interval) = ratio.shown();
            format!("{what} ({median}{interval})")
        })
        .collect();
    let mut parts = Vec::new();
    if !shown.is_empty() {
        parts.push(format!("{name} has {} of {baseline}", shown.join(", ")));
    }
    if !others.is_empty() {
        let who = if shown.is_empty() { format!(" between {name} and {baseline}") } else { String::new() };
        parts.push(format!("no difference{who} is shown in {}", others.join(", ")));
    }
    let confidence = known.iter().filter_map(|(_, ratio)| ratio.confidence).fold(1.0, f64::min);
    parts.push(format!("medians of {rounds_shown}, {:.1} % intervals", confidence * 100.0));
    parts.join("; ")
}
