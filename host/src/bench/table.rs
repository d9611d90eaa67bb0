//! Reports as plain text for a terminal: no colours, at most 100 columns.
//!
//! Does not decide what is shown in JSON or CSV.

use std::fmt::Write;

use super::{
    capacity::Capacity,
    report::{Bounds, Intervals, Report, Spec, Summary, is_supported},
    rounds::Rounds,
    schedule::Arrivals,
};

/// The widest line.
const COLUMNS: usize = 100;
const NAME_COLUMNS: usize = 16;
const BACKEND_COLUMNS: usize = 34;
const SAME_MACHINE: &str = "The load came from the machine that it measured, and took CPU time from it.";
/// More backends than this fill screens; they are in the JSON file.
const BACKENDS_SHOWN: usize = 32;

/// Rates, latencies, errors, backends and verdicts of some reports, one below the other.
///
/// Latencies are those of 2xx answers, with the ends of their 95 % intervals below them; what fewer than ten samples
/// lie beyond is not shown. Where requests failed, a further line has those of all requests. An open loop
/// has lines for 2xx answers from their sending, for how late the generator was, and for requests that waited for a
/// connection.
#[must_use]
pub fn table(reports: &[Report]) -> String {
    if reports.is_empty() {
        return String::new();
    }
    let mut text = String::new();
    let mut title = String::new();
    for report in reports {
        let this = describe(report);
        if this != title {
            title = this;
            text += &format!("{title}\n{}\n", header());
        }
        text += &rows(report);
    }
    text += &errors(reports);
    text += &backends(reports);
    text += &verdicts(reports);
    text
}

/// Rounds of a comparison: a line for each run, with the ratios to the first target of its round; the rounds that do
/// not count; and what the others show.
#[must_use]
pub fn rounds_table(rounds: &Rounds) -> String {
    let Some(first) = rounds.reports.first() else { return String::new() };
    let mut text = format!(
        "{}\n{:>5} {:<NAME_COLUMNS$} {:>9}{:>9}{:>9}   {:>8}{:>8}{:>8}  {}\n",
        describe(first),
        "round",
        "target",
        "req/s",
        "p50",
        "p99",
        "x req/s",
        "x p50",
        "x p99",
        "verdict"
    );
    for report in &rounds.reports {
        let is_baseline = |other: &&Report| other.round == report.round && other.name == rounds.baseline;
        let baseline = rounds.reports.iter().find(is_baseline).filter(|_| report.name != rounds.baseline);
        text += &round_row(report, baseline);
    }
    text.push('\n');
    for words in &rounds.left_out {
        text += &wrap("not counted: ", words);
    }
    for pair in &rounds.pairs {
        text += &wrap("", &pair.words);
    }
    if rounds.reports.iter().any(|report| report.client.same_machine) {
        text += &wrap("", SAME_MACHINE);
    }
    text
}

/// A line for each rate that was tried, and between which the capacity is.
#[must_use]
pub fn capacity_table(capacity: &Capacity) -> String {
    let mut text = format!("{:>9} {:>8}  what came of it\n", "rate", "seconds");
    for step in &capacity.steps {
        let finding = step.finding.words();
        let margin = format!("{:>9} {:>8}  ", figure(step.rate), figure(step.duration_s));
        text += &wrap(&margin, &format!("{finding}: {}", step.words));
    }
    text.push('\n');
    text += &wrap("", &capacity.words);
    if capacity.reports.iter().any(|report| report.client.same_machine) {
        text += &wrap("", SAME_MACHINE);
    }
    text
}

fn round_row(report: &Report, baseline: Option<&Report>) -> String {
    let latency = |report: &Report, quantile, read: fn(&Summary) -> f64| {
        let ok = report.latency_ms.ok.as_ref()?;
        is_supported(ok.count, quantile).then(|| read(ok))
    };
    let figures = |report: &Report| {
        let (p50, p99) = (latency(report, 0.5, |ok| ok.p50), latency(report, 0.99, |ok| ok.p99));
        [Some(report.requests_per_second), p50, p99]
    };
    let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
    let [rate, p50, p99] = figures(report).map(shown);
    let mut text = format!(
        "{:>5} {:<NAME_COLUMNS$} {rate:>9}{p50:>9}{p99:>9}   ",
        report.round.unwrap_or_default(),
        cut(&report.name, NAME_COLUMNS)
    );
    let others = baseline.map_or([None; 3], figures);
    for (mine, other) in figures(report).into_iter().zip(others) {
        let ratio = mine.zip(other).filter(|(_, other)| *other > 0.0);
        text +=
            &format!("{:>8}", ratio.map_or_else(String::new, |(mine, other)| format!("{:.3}", mine / other)));
    }
    text + "  " + report.verdict.name() + "\n"
}

fn describe(report: &Report) -> String {
    let spec = &report.spec;
    let method = if spec.method == "GET" { String::new() } else { format!("{} ", spec.method) };
    match (spec.duration_s, spec.requests) {
        (None, _) => format!(
            "burst: {} {method}requests at once, each on its own connection; latency in ms from the start",
            spec.connections
        ),
        (Some(seconds), requests) => {
            let end = requests.map_or(String::new(), |count| format!(" or {count} requests"));
            if let Some(rate) = spec.rate {
                return format!(
                    "open loop: {rate} {method}requests/s due, {}, {seconds} s{end}; \
                     latency in ms from when each was due",
                    arrivals(spec)
                );
            }
            format!(
                "closed loop: {} connections, {method}{seconds} s{end}; latency in ms from the last answer",
                spec.connections
            )
        }
    }
}

fn arrivals(spec: &Spec) -> String {
    match (spec.arrivals.unwrap_or_default(), spec.seed) {
        (Arrivals::Poisson, Some(seed)) => format!("poisson (seed {seed})"),
        (arrivals, _) => arrivals.name().to_owned(),
    }
}

fn header() -> String {
    format!(
        "{:<NAME_COLUMNS$} {:>9} {:>8} {:>7}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "target", "req/s", "ok", "errors", "mean", "p50", "p90", "p95", "p99", "max"
    )
}

fn rows(report: &Report) -> String {
    let counts = &report.counts;
    let mut text = format!(
        "{:<NAME_COLUMNS$} {:>9} {:>8} {:>7}{}\n",
        cut(&report.name, NAME_COLUMNS),
        figure(report.requests_per_second),
        counts.ok,
        counts.errors(),
        latencies(report.latency_ms.ok.as_ref())
    );
    if let Some(intervals) = &report.interval_ms {
        text += &interval_rows(intervals);
    }
    let mut more = |name: &str, count: String, summary: Option<&Summary>| {
        let latencies = latencies(summary);
        text += &format!("{name:<NAME_COLUMNS$} {:>9} {count:>8} {:>7}{latencies}\n", "", "");
    };
    if counts.errors() > 0 {
        more("  with errors", String::new(), report.latency_ms.all.as_ref());
    }
    if let Some(open) = &report.open {
        more("  from sending", String::new(), report.service_ms.as_ref());
        more("  send lag", String::new(), open.send_lag_ms.as_ref());
        if let Some(queued) = &open.queued_ms {
            more("  queued", queued.count.to_string(), Some(queued));
        }
    }
    text
}

/// What is not known for want of samples is a hyphen.
fn latencies(summary: Option<&Summary>) -> String {
    let Some(s) = summary else { return cells([None; 6]) };
    let known = |quantile: f64, value: f64| is_supported(s.count, quantile).then_some(value);
    let quantiles = [known(0.5, s.p50), known(0.9, s.p90), known(0.95, s.p95), known(0.99, s.p99)];
    let [p50, p90, p95, p99] = quantiles;
    cells([Some(s.mean), p50, p90, p95, p99, Some(s.max)])
}

fn cells(values: [Option<f64>; 6]) -> String {
    values.map(|value| format!("{:>9}", value.map_or_else(|| "-".to_owned(), figure))).concat()
}

/// The ends of the intervals, each below the figure that it is of.
fn interval_rows(intervals: &Intervals) -> String {
    let row = |name: &str, end: fn(Bounds) -> Option<f64>| {
        let i = intervals;
        let ends = [i.mean, i.p50, i.p90, i.p95, i.p99].map(|bounds| bounds.and_then(end));
        let [mean, p50, p90, p95, p99] = ends;
        format!("{name:<NAME_COLUMNS$} {:>26}{}\n", "", cells([mean, p50, p90, p95, p99, None]))
    };
    row("  95 % from", |bounds| Some(bounds.low)) + row("  95 % to", |bounds| bounds.high).as_str()
}

fn errors(reports: &[Report]) -> String {
    if reports.iter().all(|report| report.errors.is_empty() && report.stale_keepalive == 0) {
        return String::new();
    }
    let mut text =
        format!("\n{:<NAME_COLUMNS$} {:<22}{:<7}{:>8}  first one\n", "errors of", "kind", "side", "count");
    for report in reports {
        let name = cut(&report.name, NAME_COLUMNS);
        for line in &report.errors {
            let row = format!(
                "{name:<NAME_COLUMNS$} {:<22}{:<7}{:>8}  {}",
                line.kind, line.side, line.count, line.sample
            );
            let _ = writeln!(text, "{}", cut(&row, COLUMNS));
        }
        if report.stale_keepalive > 0 {
            let _ = writeln!(
                text,
                "{name:<NAME_COLUMNS$} {:<22}{:<7}{:>8}  not an error: sent on a new connection",
                "stale_keepalive", "server", report.stale_keepalive
            );
        }
    }
    text
}

fn backends(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports.iter().filter(|report| report.names_backends()) {
        if text.is_empty() {
            text += &format!(
                "\n{:<NAME_COLUMNS$} {:<BACKEND_COLUMNS$}{:>8}{:>10}{:>9}{:>10}{:>10}\n",
                "backends of", "backend", "share", "answers", "errors", "p50", "p99"
            );
        }
        for line in report.backends.iter().take(BACKENDS_SHOWN) {
            text += &format!(
                "{:<NAME_COLUMNS$} {:<BACKEND_COLUMNS$}{:>8}{:>10}{:>9}{:>10}{:>10}\n",
                cut(&report.name, NAME_COLUMNS),
                cut(&line.shown(), BACKEND_COLUMNS - 1),
                format!("{:.1} %", line.share * 100.0),
                line.count,
                line.errors,
                known(line.count, 0.5, line.latency_ms.p50),
                known(line.count, 0.99, line.latency_ms.p99)
            );
        }
        if let Some(more) = report.backends.len().checked_sub(BACKENDS_SHOWN).filter(|more| *more > 0) {
            let _ = writeln!(text, "{:<NAME_COLUMNS$} and {more} more", cut(&report.name, NAME_COLUMNS));
        }
    }
    text
}

fn verdicts(reports: &[Report]) -> String {
    let mut text = "\n".to_owned();
    for report in reports {
        let name = format!("{:<NAME_COLUMNS$} ", cut(&report.name, NAME_COLUMNS));
        let mut words = report.verdict.name().to_owned();
        if !report.reasons.is_empty() {
            words += &format!(": {}", report.reasons.join("; "));
        }
        text += &wrap(&name, &words);
        for objective in &report.slo {
            text += &wrap(&format!("{:<NAME_COLUMNS$} ", "  slo"), &objective.words);
        }
    }
    if reports.iter().flat_map(|report| &report.backends).any(|line| line.emulated) {
        text += &wrap(
            "",
            "Backends are emulated: they hold requests as long as an instance of their type would.",
        );
    }
    if reports.iter().any(|report| report.client.same_machine) {
        text += &wrap("", SAME_MACHINE);
    }
    text
}

/// Breaks words into lines behind a margin; further lines are indented by its width.
fn wrap(margin: &str, words: &str) -> String {
    let indent = " ".repeat(margin.chars().count());
    let (mut text, mut line) = (String::new(), margin.to_owned());
    let mut is_empty = true;
    for word in words.split(' ') {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            let _ = writeln!(text, "{}", line.trim_end());
            line.clone_from(&indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line += &cut(word, COLUMNS - indent.len());
        is_empty = false;
    }
    text + line.trim_end() + "\n"
}

/// At most so many characters; a longer text ends with `~`.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns - 1).chain(['~']).collect()
}

/// A quantile, where there are enough samples for one.
fn known(count: u64, quantile: f64, value: f64) -> String {
    if is_supported(count, quantile) { figure(value) } else { "-".to_owned() }
}

/// Four significant digits, as more would be noise, and never more than eight characters below 10 million.
fn figure(value: f64) -> String {
    let decimals = match value {
        value if value < 9.9995 => 3,
        value if value < 99.995 => 2,
        value if value < 999.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

impl Report {
    /// Whether at least one answer said where it came from.
    fn names_backends(&self) -> bool {
        self.backends.iter().any(|line| line.id != super::record::BACKEND_NONE)
    }
}
