//! Writes reports to files: JSON with everything, CSV with one row per target and per backend.
//!
//! Does not read them back.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    capacity::Capacity,
    compare::{Comparison, compare},
    options::wrong,
    report::{BackendLine, Bounds, Report, SCHEMA, Summary},
    rounds::Rounds,
    slo::Outcome,
};
use crate::error::{Context, Error, Kind};

/// The CSV's columns. `row` is `target` or `backend`; a backend's row has its target's name, url, mode and verdict,
/// and leaves empty what is known of the whole only. `count` is all requests of a target (`scheduled`), or all
/// answers of a backend; `share` is 0..1; latencies are those of 2xx answers for a target and of all answers for a
/// backend, in milliseconds. What follows `max_ms` is of targets only, `offered_per_second` to `queued` of open loops,
/// `p50_low_ms` to `p99_high_ms` the ends of 95 % intervals, `slo` is `met`, `not_met` or `not_shown`, where an
/// objective was given, and `round` the round of a comparison.
const COLUMNS: &str = "row,target,url,mode,verdict,backend,count,share,requests_per_second,ok,errors,http_error,\
transport_error,timeout,unsent,min_ms,mean_ms,p50_ms,p90_ms,p95_ms,p99_ms,max_ms,\
service_p50_ms,service_p99_ms,offered_per_second,send_lag_p99_ms,queued,\
p50_low_ms,p50_high_ms,p99_low_ms,p99_high_ms,slo,round";

/// Longer names would not fit into a file name with prefix and suffix on every file system.
const NAME_BYTES_MAX: usize = 100;

/// The JSON file.
#[derive(Serialize)]
struct Document<'reports> {
    schema: u32,
    reports: &'reports [Report],
    /// What they show together, under its own name.
    #[serde(flatten)]
    findings: Findings,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Findings {
    Comparison(Comparison),
    #[serde(rename = "comparison")]
    Rounds(Rounds),
    Capacity(Capacity),
}

/// One line of column names, then for each report one row and one for each of its backends.
///
/// Columns: `row` (`target` or `backend`), `target`, `url`, `mode`, `verdict`, `backend`, `count`, `share`,
/// `requests_per_second`, `ok`, `errors`, `http_error`, `transport_error`, `timeout`, `unsent`, `min_ms` to `max_ms`,
/// `service_p50_ms`, `service_p99_ms`, `offered_per_second`, `send_lag_p99_ms`, `queued`, the ends of 95 % intervals,
/// `p50_low_ms`, `p50_high_ms`, `p99_low_ms` and `p99_high_ms`, `slo` and `round`. Fields are quoted after RFC 4180;
/// lines end with LF.
#[must_use]
pub fn csv(reports: &[Report]) -> String {
    let mut text = format!("{COLUMNS}\n");
    for report in reports {
        text += &target_row(report);
        for line in &report.backends {
            text += &backend_row(report, line);
        }
    }
    text
}

/// Writes `bench-NAME.json` and `bench-NAME.csv` into `dir` (made if need be), replacing older ones; gives their
/// paths. Each is written under another name first, so that a reader never sees half a file.
///
/// Errors: of kind `recipe` when `name` is not letters, digits, `.`, `_` and `-`; `internal` when a
/// file cannot be written.
pub fn save(reports: &[Report], dir: &Path, name: &str) -> Result<(PathBuf, PathBuf), Error> {
    let document = Document { schema: SCHEMA, reports, findings: Findings::Comparison(compare(reports)) };
    write(&document, &csv(reports), dir, name)
}

/// As [`save()`], for what was measured in rounds: every report of every round, and the comparison within them.
pub fn save_rounds(rounds: &Rounds, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf), Error> {
    let findings = Findings::Rounds(Rounds { reports: Vec::new(), ..rounds.clone() });
    let document = Document { schema: SCHEMA, reports: &rounds.reports, findings };
    write(&document, &csv(&rounds.reports), dir, name)
}

/// As [`save()`], for a capacity: the report of every rate that was tried, and the bracket.
pub fn save_capacity(capacity: &Capacity, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf), Error> {
    let findings = Findings::Capacity(Capacity { reports: Vec::new(), ..capacity.clone() });
    let document = Document { schema: SCHEMA, reports: &capacity.reports, findings };
    write(&document, &csv(&capacity.reports), dir, name)
}

/// As [`save()`], for a table of a recipe's own: JSON with all of it, CSV with its columns in their order.
pub fn save_table(table: &SavedTable, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf), Error> {
    write(table, &table_csv(table), dir, name)
}

/// What [`save_table`] writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTable {
    pub columns: Vec<String>,
    pub rows: Vec<BTreeMap<String, Value>>,
    /// What the reader of the table has to know, in words.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Anything else, such as the single measurements.
    #[serde(default)]
    pub details: Value,
}

fn table_csv(table: &SavedTable) -> String {
    let line = |fields: Vec<String>| {
        let fields: Vec<_> = fields.iter().map(|field| quoted(field)).collect();
        fields.join(",") + "\n"
    };
    let field = |value: Option<&Value>| match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let rows = table.rows.iter().map(|row| table.columns.iter().map(|key| field(row.get(key))).collect());
    std::iter::once(table.columns.clone()).chain(rows).map(line).collect()
}

fn write(document: &impl Serialize, csv: &str, dir: &Path, name: &str) -> Result<(PathBuf, PathBuf), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(wrong(format!("{name:?} cannot be part of a file name"))
            .with_hint("use 1 to 100 letters, digits, dots, underscores and hyphens"));
    }
    let mut json =
        serde_json::to_string_pretty(document).context(Kind::Internal, || "write JSON".to_owned())?;
    json.push('\n');
    fs::create_dir_all(dir).context(Kind::Internal, || format!("create {}", dir.display()))?;
    let (json_path, csv_path) =
        (dir.join(format!("bench-{name}.json")), dir.join(format!("bench-{name}.csv")));
    replace(&json_path, json.as_bytes())?;
    replace(&csv_path, csv.as_bytes())?;
    Ok((json_path, csv_path))
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.context(Kind::Internal, || format!("write {}", path.display()))
}

fn target_row(report: &Report) -> String {
    let counts = &report.counts;
    let numbers = [
        report.requests_per_second.to_string(),
        counts.ok.to_string(),
        counts.errors().to_string(),
        counts.http_error.to_string(),
        counts.transport_error.to_string(),
        counts.timeout.to_string(),
        counts.unsent.to_string(),
    ];
    let latency = report.latency_ms.ok.map_or_else(Default::default, latency_fields);
    row(report, "target", ["", &counts.scheduled.to_string(), ""], &numbers, &latency, &last_fields(report))
}

/// The last columns.
fn last_fields(report: &Report) -> [String; 11] {
    let text = |number: Option<f64>| number.map_or(String::new(), |number| number.to_string());
    let (service, open) = (report.service_ms, report.open);
    let (p50, p99) = report.interval_ms.map_or((None, None), |intervals| (intervals.p50, intervals.p99));
    let low = |bounds: Option<Bounds>| text(bounds.map(|bounds| bounds.low));
    let high = |bounds: Option<Bounds>| text(bounds.and_then(|bounds| bounds.high));
    [
        text(service.map(|service| service.p50)),
        text(service.map(|service| service.p99)),
        text(open.map(|open| open.offered_per_second)),
        text(open.and_then(|open| open.send_lag_ms).map(|lag| lag.p99)),
        open.map_or(String::new(), |open| open.queued_ms.map_or(0, |queued| queued.count).to_string()),
        low(p50),
        high(p50),
        low(p99),
        high(p99),
        Outcome::of(&report.slo).map_or("", Outcome::name).to_owned(),
        report.round.map_or(String::new(), |round| round.to_string()),
    ]
}

fn backend_row(report: &Report, line: &BackendLine) -> String {
    let mut numbers: [String; 7] = Default::default();
    numbers[1] = (line.count - line.errors).to_string();
    numbers[2] = line.errors.to_string();
    let mut latency: [String; 7] = Default::default();
    latency[2] = line.latency_ms.p50.to_string();
    latency[5] = line.latency_ms.p99.to_string();
    let of = [&line.id, &line.count.to_string(), &line.share.to_string()];
    row(report, "backend", of.map(String::as_str), &numbers, &latency, &Default::default())
}

fn latency_fields(s: Summary) -> [String; 7] {
    [s.min, s.mean, s.p50, s.p90, s.p95, s.p99, s.max].map(|value| value.to_string())
}

fn row(
    report: &Report,
    kind: &str,
    of: [&str; 3],
    numbers: &[String; 7],
    latency: &[String; 7],
    last: &[String; 11],
) -> String {
    let first = [kind, &report.name, &report.url, report.mode.name(), report.verdict.name()];
    let words = first.into_iter().chain(of);
    let numbers = numbers.iter().chain(latency).chain(last).map(String::as_str);
    let mut text = String::new();
    for (index, field) in words.chain(numbers).enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{}", quoted(field));
    }
    text + "\n"
}

/// RFC 4180: a field with a comma, a quote or a line break stands in quotes.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_becomes_csv_with_its_columns_in_order() {
        let table: SavedTable = serde_json::from_value(json!({
            "columns": ["who", "req/s", "note"],
            "rows": [{ "req/s": 5, "who": "a, b" }, { "who": "c", "note": null, "more": 1 }],
        }))
        .unwrap();
        assert_eq!(table_csv(&table), "who,req/s,note\n\"a, b\",5,\nc,,\n");
        assert!(
            serde_json::from_value::<SavedTable>(json!({ "columns": [], "rows": [], "colums": 1 })).is_err()
        );
    }
}
