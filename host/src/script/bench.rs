//! `bench`: load on an address, and what came of it.

use std::{cell::Cell, path::PathBuf, sync::LazyLock};

use rhai::{Array, Dynamic, Engine, EvalAltResult, Map, NativeCallContext, plugin::*};
use serde::Serialize;

use super::{Run, options, run};
use crate::{
    Error, Kind,
    bench::{
        self, Capacity, CapacityOptions, Contender, Limit, Outcome, Progress, Report, Rounds, RoundsOptions,
        Trial, Turn, Verdict,
    },
    error::Context as _,
    files,
    options::{OptionDoc, Options as _},
    ui::Task,
};

type Raw<T> = Result<T, Box<EvalAltResult>>;

/// The options of `bench::compare`: its own and those of the load, whose targets have names already.
static COMPARE: LazyLock<Vec<OptionDoc>> = LazyLock::new(|| with_load(RoundsOptions::OPTIONS, &["name"]));

/// Those of `bench::capacity`: without what it sets itself.
static CAPACITY: LazyLock<Vec<OptionDoc>> =
    LazyLock::new(|| with_load(CapacityOptions::OPTIONS, &["mode", "rate", "requests", "slo"]));

fn with_load(own: &[OptionDoc], without: &[&str]) -> Vec<OptionDoc> {
    let load = bench::Options::OPTIONS.iter().filter(|option| !without.contains(&option.name));
    own.iter().chain(load).copied().collect()
}

pub(super) fn known_options(known: &mut options::Known) {
    known.insert("bench::http", bench::Options::OPTIONS);
    known.insert("bench::http.slo", bench::Slo::OPTIONS);
    known.insert("bench::compare", &COMPARE);
    known.insert("bench::compare.slo", bench::Slo::OPTIONS);
    known.insert("bench::compare.targets", Contender::OPTIONS);
    known.insert("bench::capacity", &CAPACITY);
    known.insert("bench::capacity.slo", bench::Slo::OPTIONS);
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_static_module("bench", rhai::exported_module!(functions).into());
}

fn measure(run: &Run, url: &str, options: &bench::Options) -> Result<Report, Error> {
    let name = options.name.clone().unwrap_or_else(|| url.to_owned());
    let task = begin(run, &name, &format!("{} load", options.mode.name()))?;
    let last = Cell::new((0, 0));
    let progress = |progress: Progress| {
        last.set((progress.done, progress.errors));
        task.tell(&format!("{} requests, {} errors", progress.done, progress.errors));
    };
    let result = run.wait(bench::http(url, options, &progress));
    match &result {
        Ok(_) => task.done(&format!("{} requests, {} errors", last.get().0, last.get().1)),
        Err(error) => task.fail(&error.message),
    }
    let mut report = result?;
    name_backends(run, std::slice::from_mut(&mut report));
    note_objectives(run, &report);
    Ok(report)
}

fn begin<'run>(run: &'run Run, name: &str, what: &str) -> Result<Task<'run>, Error> {
    if run.lab.is_planning() {
        return Err(Error::usage("a benchmark cannot be planned").with_hint("Run the recipe without --plan."));
    }
    Ok(run.ui.task(name, what))
}

/// An address that is no lab's has backends that nobody here can name.
fn name_backends(run: &Run, reports: &mut [Report]) {
    let known = run.wait(run.lab.last_seen()).unwrap_or_default();
    for report in reports {
        report.name_backends(|id| {
            known.iter().find(|instance| instance.id == id).map(|it| (it.name.clone(), it.emulated))
        });
    }
}

fn play(run: &Run, targets: Array, options: Map) -> Result<Rounds, Error> {
    let targets = targets.into_iter().map(contender).collect::<Result<Vec<_>, _>>()?;
    let (own, load) = split(options, RoundsOptions::OPTIONS);
    let own: RoundsOptions = options::decode("bench::compare", own)?;
    let load: bench::Options = options::decode("bench::compare", load)?;
    let task = begin(run, "compare", &format!("{} rounds of {} load", own.rounds, load.mode.name()))?;
    let progress = |turn: Turn<'_>| {
        task.tell(&format!("round {}, {}: {} requests", turn.round, turn.name, turn.progress.done));
    };
    let result = run.wait(bench::rounds(&targets, &load, &own, &progress));
    match &result {
        Ok(rounds) => task.done(&format!("{} rounds count, {} do not", rounds.rounds, rounds.left_out.len())),
        Err(error) => task.fail(&error.message),
    }
    let mut rounds = result?;
    name_backends(run, &mut rounds.reports);
    rounds.reports.iter().for_each(|report| note_objectives(run, report));
    Ok(rounds)
}

fn search(run: &Run, url: &str, options: Map) -> Result<Capacity, Error> {
    let (own, load) = split(options, CapacityOptions::OPTIONS);
    let own: CapacityOptions = options::decode("bench::capacity", own)?;
    let load: bench::Options = options::decode("bench::capacity", load)?;
    let name = load.name.clone().unwrap_or_else(|| url.to_owned());
    let task = begin(run, &name, "capacity")?;
    let progress = |trial: Trial| {
        let rate = trial.rate.map_or_else(|| "a first look".to_owned(), |rate| format!("{rate} per second"));
        match trial.finding {
            None => task.tell(&format!("{rate}: {} requests", trial.done)),
            // A long search is not silent, and one that is interrupted has said what it found.
            Some(finding) => run.ui.note(&format!("{rate}: {}", finding.words())),
        }
    };
    let result = run.wait(bench::capacity(url, &load, &own, &progress));
    match &result {
        Ok(capacity) => task.done(&format!("{} rates tried", capacity.steps.len())),
        Err(error) => task.fail(&error.message),
    }
    let mut capacity = result?;
    name_backends(run, &mut capacity.reports);
    // That the generator was the limit, or that nothing was shown, is no failure of the target.
    if capacity.held.is_none() && capacity.not_held.is_some() {
        run.fall_short(capacity.words.clone());
    }
    Ok(capacity)
}

/// The options that are in `own`, and the others.
fn split(options: Map, own: &[OptionDoc]) -> (Map, Map) {
    options.into_iter().partition(|(key, _)| own.iter().any(|option| option.name == key.as_str()))
}

fn contender(item: Dynamic) -> Result<Contender, Error> {
    if let Ok(url) = item.as_immutable_string_ref() {
        return Ok(Contender { url: url.to_string(), name: None });
    }
    let kind = item.type_name();
    let map = item.try_cast::<Map>().ok_or_else(|| {
        Error::new(Kind::Recipe, format!("bench::compare: a target cannot be of type {kind}"))
            .with_hint("Write for example #{ name: \"a\", url: \"http://127.0.0.1:8080/\" }.")
    })?;
    options::decode("bench::compare.targets", map)
}

/// An objective that is not met fails the recipe when it ends.
fn note_objectives(run: &Run, report: &Report) {
    for objective in report.slo.iter().filter(|objective| objective.outcome == Outcome::NotMet) {
        run.fall_short(format!("{}: {}", report.name, objective.words));
    }
}

/// With `--strict` so does a result that is not worth its name, or that does not show an objective.
fn note_strictly(run: &Run, reports: &[Report]) {
    for report in reports.iter().filter(|_| run.strict) {
        if !matches!(report.verdict, Verdict::Valid | Verdict::Transient) {
            let reasons = report.reasons.join("; ");
            run.fall_short(format!("{}: the result is {}: {reasons}", report.name, report.verdict.name()));
        }
        for objective in report.slo.iter().filter(|objective| objective.outcome == Outcome::NotShown) {
            run.fall_short(format!("{}: {}", report.name, objective.words));
        }
    }
}

/// By way of JSON, whose map keys are texts: Rhai has no others, and status counts are kept by number.
fn to_map(value: &impl Serialize) -> Raw<Dynamic> {
    rhai::serde::to_dynamic(
        serde_json::to_value(value).context(Kind::Internal, || "make a map of a report".to_owned())?,
    )
}

/// The reports in a list of what `bench::http` returned.
fn reports_of(list: Array) -> Result<Vec<Report>, Error> {
    list.into_iter()
        .map(|item| {
            let value = serde_json::to_value(&item).map_err(|cause| cause.to_string())?;
            serde_json::from_value(value).map_err(|cause| cause.to_string())
        })
        .collect::<Result<_, String>>()
        .map_err(|cause| {
            Error::new(Kind::Recipe, format!("the list has an item that is no benchmark report: {cause}"))
                .with_hint(
                    "Give what bench::http returned: bench::table([report]). To measure targets in rounds, \
                     bench::compare needs options: bench::compare(targets, #{ mode: \"closed\" }).",
                )
        })
}

/// What several reports show together.
enum Findings {
    Rounds(Rounds),
    Capacity(Capacity),
}

fn findings_of(map: Map) -> Result<Findings, Error> {
    let is_capacity = map.contains_key("steps");
    let found = serde_json::to_value(Dynamic::from_map(map)).and_then(|value| {
        if is_capacity {
            serde_json::from_value(value).map(Findings::Capacity)
        } else {
            serde_json::from_value(value).map(Findings::Rounds)
        }
    });
    found.map_err(|cause| {
        let message = format!("the map is not what bench::compare or bench::capacity returned: {cause}");
        Error::new(Kind::Recipe, message).with_hint("Give the whole map, or a list of reports.")
    })
}

/// With `--strict`, what was not shown for want of valid results is a failure. A run that was repeated is none.
fn note_findings_strictly(run: &Run, findings: &Findings) {
    match findings {
        _ if !run.strict => {}
        Findings::Rounds(rounds) if rounds.pairs.iter().any(|pair| !pair.has_intervals()) => run.fall_short(
            format!("{}: {} valid rounds are too few for an interval", rounds.baseline, rounds.rounds),
        ),
        Findings::Capacity(capacity) if matches!(capacity.limit, Limit::Generator | Limit::NotShown) => {
            run.fall_short(capacity.words.clone());
        }
        _ => {}
    }
}

fn saved(run: &Run, (json, csv): (PathBuf, PathBuf)) -> Raw<Map> {
    let text = |path: PathBuf| Dynamic::from(run.shown(&path));
    Ok(Map::from([("json".into(), text(json)), ("csv".into(), text(csv))]))
}

/// Benchmarks.
#[export_module]
mod functions {
    use super::*;

    /// Sends a burst of 1000 requests at once to `url` and returns the report, a map: `requests_per_second`,
    /// `latency_ms` and `service_ms` (from when a request was due, and from when it was sent), `interval_ms` (for each
    /// latency the ends of its 95 % interval, `low` and `high`), `counts`, `errors`, `backends`, `verdict`, `reasons`
    /// and more.
    #[rhai_fn(return_raw)]
    pub fn http(context: NativeCallContext, url: &str) -> Raw<Dynamic> {
        http_with(context, url, Map::new())
    }

    /// As `http`, with options: `mode: "closed"` finds what a target can take, `mode: "open", rate: 1000` how long its
    /// users wait at that rate. The report of an open loop also has `open`: `offered_per_second`, `send_lag_ms` (how
    /// late the generator was by itself), `queued_ms`, `unfinished` and `connections`. Both also have `warmup` (`auto`,
    /// `cut_s`, `requests` and `errors` of the start that everything else leaves out) and `little` (`in_flight`,
    /// `rate_times_latency` and their relative `difference`). With `slo` it has `slo`, a list of maps: `name`, `limit`,
    /// `value`, `low` and `high` (the ends of its 95 % interval), `outcome` and `words`. The outcome is `"met"` or
    /// `"not_met"` when all of the interval is on one side of the limit, else `"not_shown"`. That it is met takes a
    /// valid result, that it is not met one that the generator did not limit. After one `"not_met"` the recipe goes on,
    /// and ends with exit code 6.
    #[rhai_fn(name = "http", return_raw)]
    pub fn http_with(context: NativeCallContext, url: &str, options: Map) -> Raw<Dynamic> {
        let run = run(&context)?;
        let options: bench::Options = options::decode("bench::http", options)?;
        to_map(&measure(&run, url, &options)?)
    }

    /// Finds the highest rate of an open loop at which the objectives in `slo` hold for `url`: a closed loop of two
    /// seconds says where to begin, then runs of five seconds (or `duration`; longer where the objectives need more
    /// requests, up to a minute) double or halve the rate, and go to the middle between one that held and one that did
    /// not. A rate holds when every objective is met, and does not when one is not met or the target falls behind.
    /// Returns `#{ name, url, held, not_held, limit, words, steps, reports }`: the two rates between which the capacity
    /// is (`()` for one that is not known), what the search ended at (`"target"`, `"generator"`, `"not_shown"`,
    /// `"rate_max"` or `"steps"`) and the rates tried, each `#{ rate, duration_s, finding, words }`. The recipe goes
    /// on, and ends with exit code 6, when the objectives hold at no rate.
    #[rhai_fn(return_raw)]
    pub fn capacity(context: NativeCallContext, url: &str, options: Map) -> Raw<Dynamic> {
        let run = run(&context)?;
        to_map(&search(&run, url, options)?)
    }

    /// The reports as a table for the terminal.
    #[rhai_fn(return_raw)]
    pub fn table(context: NativeCallContext, reports: Array) -> Raw<String> {
        let _run = run(&context)?;
        Ok(bench::table(&reports_of(reports)?).trim_end().to_owned())
    }

    /// What `bench::compare` measured in rounds, or `bench::capacity` found, as a table for the terminal.
    #[rhai_fn(name = "table", return_raw)]
    pub fn table_of_findings(context: NativeCallContext, findings: Map) -> Raw<String> {
        let _run = run(&context)?;
        let text = match findings_of(findings)? {
            Findings::Rounds(rounds) => bench::rounds_table(&rounds),
            Findings::Capacity(capacity) => bench::capacity_table(&capacity),
        };
        Ok(text.trim_end().to_owned())
    }

    /// Sets reports side by side against the first: ratios of rate, p50 and p99, and a sentence each.
    #[rhai_fn(return_raw)]
    pub fn compare(context: NativeCallContext, reports: Array) -> Raw<Dynamic> {
        let _run = run(&context)?;
        to_map(&bench::compare(&reports_of(reports)?))
    }

    /// Measures targets (URLs, or maps `#{ name, url }`) in turn, round after round, every other round in the opposite
    /// order, and compares each with the first one within the rounds, so that what drifts goes out of the comparison.
    /// Returns `#{ baseline, rounds, left_out, pairs, reports }`: how many rounds count, why the others do not, and for
    /// each further target a map with its ratios, `requests_per_second` (but in an open loop), `mean`, `p50` and `p99`,
    /// and `words`. A ratio is `#{ median, low, high, confidence, differs, rounds }`: its ends are those of an interval
    /// by order statistics, which holds the true median in at least 95 % of all cases and supposes no distribution;
    /// there is none for fewer than six rounds. `differs` is true when 1 is outside.
    #[rhai_fn(name = "compare", return_raw)]
    pub fn compare_in_rounds(context: NativeCallContext, targets: Array, options: Map) -> Raw<Dynamic> {
        let run = run(&context)?;
        to_map(&play(&run, targets, options)?)
    }

    /// Saves reports as artifacts/bench-NAME.json and .csv. Returns `#{ json, csv }`, their paths. With `--strict` the
    /// recipe ends with exit code 6 when one of them is not valid, or does not show whether an objective is met.
    #[rhai_fn(return_raw)]
    pub fn save(context: NativeCallContext, reports: Array, name: &str) -> Raw<Map> {
        let run = run(&context)?;
        files::make_dir(run.lab.dir())?;
        let reports = reports_of(reports)?;
        let paths = bench::save(&reports, run.lab.dir(), name)?;
        note_strictly(&run, &reports);
        saved(&run, paths)
    }

    /// Saves what `bench::compare` measured in rounds, or `bench::capacity` found, likewise: all reports, and what they
    /// show together. With `--strict` the recipe ends with exit code 6 when too few rounds count for an interval, or
    /// when the generator was the limit or nothing was shown.
    #[rhai_fn(name = "save", return_raw)]
    pub fn save_findings(context: NativeCallContext, findings: Map, name: &str) -> Raw<Map> {
        let run = run(&context)?;
        files::make_dir(run.lab.dir())?;
        let findings = findings_of(findings)?;
        let paths = match &findings {
            Findings::Rounds(rounds) => bench::save_rounds(rounds, run.lab.dir(), name)?,
            Findings::Capacity(capacity) => bench::save_capacity(capacity, run.lab.dir(), name)?,
        };
        note_findings_strictly(&run, &findings);
        saved(&run, paths)
    }

    /// Saves a table of a recipe's own as artifacts/bench-NAME.json and .csv: `#{ columns, rows }`, a list of names and
    /// a list of maps as for `ui::table`, and if wanted `notes`, a list of sentences, and `details`, anything. Returns
    /// `#{ json, csv }`, their paths.
    #[rhai_fn(return_raw)]
    pub fn save_table(context: NativeCallContext, table: Map, name: &str) -> Raw<Map> {
        let run = run(&context)?;
        files::make_dir(run.lab.dir())?;
        let table = serde_json::to_value(Dynamic::from_map(table))
            .and_then(serde_json::from_value::<bench::SavedTable>)
            .context(Kind::Recipe, || "bench::save_table".to_owned())?;
        saved(&run, bench::save_table(&table, run.lab.dir(), name)?)
    }
}
