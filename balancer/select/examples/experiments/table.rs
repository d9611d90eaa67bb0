//! Tables as text.

use std::fmt::Write;

use select::PolicyKind;
use select::sim::{Contender, Order};

use crate::cases::Case;
use crate::measure::{Measured, interval, mean, mean_at};

/// A gap between round-robin and the clairvoyant below this share of the clairvoyant is not worth closing.
const GAP_MIN: f64 = 0.1;
/// Round-robin is taken for unstable when its mean is this many times the clairvoyant's.
const UNSTABLE: f64 = 10.0;

fn ours(contender: &Contender) -> bool {
    *contender == Contender::Real(PolicyKind::default())
}

fn is_rival(measured: &Measured) -> bool {
    matches!(measured.contender, Contender::Real(_)) && !ours(&measured.contender)
}

fn find(all: &[Measured], contender: Contender) -> Option<&Measured> {
    all.iter().find(|measured| measured.contender == contender)
}

/// Share of the gap between round-robin and the clairvoyant that `of` closes; `None` when there is no gap worth
/// the name, or round-robin does not keep up.
fn gap(all: &[Measured], of: &Measured, by: fn(&Measured) -> &[f64]) -> Option<f64> {
    let slow = mean(by(find(all, Contender::Real(PolicyKind::RoundRobin))?));
    let best = mean(by(find(all, Contender::Oracle(Order::Arrival))?));
    let gap = slow - best;
    (gap > GAP_MIN * best && slow < UNSTABLE * best).then(|| (slow - mean(by(of))) / gap)
}

fn mean_ms(measured: &Measured) -> &[f64] {
    &measured.mean_ms
}

fn p99_ms(measured: &Measured) -> &[f64] {
    &measured.p99_ms
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.0} %", 100.0 * value))
}

pub(crate) fn of_case(case: &Case, all: &[Measured]) -> String {
    let mut text = format!("## {}: {}\n", case.experiment, case.name);
    let _ = write!(
        text,
        "{:<22}{:>9}{:>19}{:>9}{:>9}{:>19}{:>9}{:>9}{:>7}{:>7}",
        "policy", "mean ms", "95 %", "p50", "p99", "95 %", "p99.9", "failed", "gap", "p99"
    );
    case.columns.iter().for_each(|(name, _)| {
        let _ = write!(text, "{name:>16}");
    });
    text.push('\n');
    let mut ranked: Vec<&Measured> = all.iter().collect();
    ranked.sort_by(|a, b| mean(&a.mean_ms).total_cmp(&mean(&b.mean_ms)));
    for measured in ranked {
        row(&mut text, all, measured);
    }
    text
}

fn row(text: &mut String, all: &[Measured], measured: &Measured) {
    let of = |values: &[f64]| interval(values.len(), |seeds| mean_at(values, seeds));
    let range = |(low, high): (f64, f64)| format!("{low:.3}..{high:.3}");
    let mark = if ours(&measured.contender) {
        " *"
    } else if measured.contender.is_mark() {
        " ="
    } else {
        ""
    };
    let _ = write!(
        text,
        "{:<22}{:>9.3}{:>19}{:>9.3}{:>9.2}{:>19}{:>9.2}{:>8.2}%{:>7}{:>7}",
        format!("{}{mark}", measured.contender.name()),
        mean(&measured.mean_ms),
        range(of(&measured.mean_ms)),
        mean(&measured.p50_ms),
        mean(&measured.p99_ms),
        range(of(&measured.p99_ms)),
        mean(&measured.p999_ms),
        100.0 * mean(&measured.failed),
        percent(gap(all, measured, mean_ms)),
        percent(gap(all, measured, p99_ms)),
    );
    measured.extra.iter().for_each(|values| {
        let _ = write!(text, "{:>16.3}", mean(values));
    });
    text.push('\n');
}

/// How the default policy stands in one case.
pub(crate) struct Verdict {
    experiment: &'static str,
    name: String,
    gap: (Option<f64>, Option<f64>),
    /// Its measure over that of the best rival, with an interval, and who that is; of the mean and of p99.
    against: [(f64, (f64, f64), String); 2],
    failed: f64,
}

pub(crate) fn verdict(case: &Case, all: &[Measured]) -> Option<Verdict> {
    let own = all.iter().find(|measured| ours(&measured.contender))?;
    let against = |by: fn(&Measured) -> &[f64]| {
        let best = all.iter().filter(|m| is_rival(m)).min_by(|a, b| mean(by(a)).total_cmp(&mean(by(b))))?;
        let ratio = |seeds: &[usize]| mean_at(by(own), seeds) / mean_at(by(best), seeds);
        let everyone: Vec<usize> = (0..by(own).len()).collect();
        Some((ratio(&everyone), interval(everyone.len(), ratio), best.contender.name()))
    };
    Some(Verdict {
        experiment: case.experiment,
        name: case.name.clone(),
        gap: (gap(all, own, mean_ms), gap(all, own, p99_ms)),
        against: [against(mean_ms)?, against(p99_ms)?],
        failed: mean(&own.failed),
    })
}

pub(crate) fn of_verdicts(verdicts: &[Verdict]) -> String {
    let mut text =
        String::from("# The default policy in each case: gap closed, and against the best rival\n");
    let _ = writeln!(
        text,
        "{:<4}{:<46}{:>8}{:>8}   {:<44}{:<44}{:>8}",
        "", "case", "gap", "p99", "mean / best", "p99 / best", "failed"
    );
    for verdict in verdicts {
        let [mean, p99] = &verdict.against;
        let side = |(ratio, (low, high), name): &(f64, (f64, f64), String)| {
            let flag = if *ratio > 1.02 { "!" } else { " " };
            format!("{ratio:.3}{flag}({low:.3}..{high:.3}) {name}")
        };
        let _ = writeln!(
            text,
            "{:<4}{:<46}{:>8}{:>8}   {:<44}{:<44}{:>7.2}%",
            verdict.experiment,
            verdict.name,
            percent(verdict.gap.0),
            percent(verdict.gap.1),
            side(mean),
            side(p99),
            100.0 * verdict.failed
        );
    }
    text
}
