//! `bench`: load on an address, and what came of it.

use std::{cell::Cell, path::PathBuf};

use rhai::{Array, Dynamic, Engine, EvalAltResult, Map, NativeCallContext, plugin::*};
use serde::Serialize;

use super::{Run, options, run};
use crate::{
    Error, Kind,
    bench::{self, Outcome, Progress, Report, Verdict},
    error::Context as _,
    files,
    options::Options as _,
    ui::Task,
};

type Raw<T> = Result<T, Box<EvalAltResult>>;

pub(super) fn known_options(known: &mut options::Known) {
    known.insert("bench::http", bench::Options::OPTIONS);
    known.insert("bench::http.slo", bench::Slo::OPTIONS);
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
                .with_hint("Give what bench::http returned: bench::table([report]).")
        })
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

    /// The reports as a table for the terminal.
    #[rhai_fn(return_raw)]
    pub fn table(context: NativeCallContext, reports: Array) -> Raw<String> {
        let _run = run(&context)?;
        Ok(bench::table(&reports_of(reports)?).trim_end().to_owned())
    }

    /// Sets reports side by side against the first: ratios of rate, p50 and p99, and a sentence each.
    #[rhai_fn(return_raw)]
    pub fn compare(context: NativeCallContext, reports: Array) -> Raw<Dynamic> {
        let _run = run(&context)?;
        to_map(&bench::compare(&reports_of(reports)?))
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
