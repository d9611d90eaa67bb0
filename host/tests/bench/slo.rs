//! Objectives: what a recipe asks of a result, and what the result says of it.

use labhost::bench::{Objective, Outcome, Slo};

use super::*;

const ALL_FAILED: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

/// 1000 requests in half a second, with an objective.
fn asked(slo: Slo) -> Options {
    Options { slo: Some(slo), ..open(1000) }
}

#[track_caller]
fn only(report: &Report) -> &Objective {
    let [objective] = report.slo.as_slice() else { panic!("{:?}", report.slo) };
    objective
}

#[tokio::test]
async fn a_target_that_only_fails_meets_nothing() {
    let server = Server::answering(ALL_FAILED);
    for slo in [
        Slo { p99_ms: Some(60_000.0), ..Slo::default() },
        Slo { p50_ms: Some(60_000.0), ..Slo::default() },
        Slo { error_rate: Some(0.5), ..Slo::default() },
        Slo { requests_per_second: Some(1.0), ..Slo::default() },
    ] {
        let report = run(&server.url(), &asked(slo)).await;
        assert_eq!(only(&report).outcome, Outcome::NotMet, "{report:?}");
        let row = bench::csv(std::slice::from_ref(&report)).lines().nth(1).unwrap().to_owned();
        assert!(row.ends_with(",not_met,"), "{row}");
        // Words may be broken into two lines.
        let table = bench::table(&[report]).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(table.contains("slo ") && table.contains(": not met"), "{table}");
    }
}

#[tokio::test]
async fn what_is_met_needs_a_valid_result() {
    // Half a second is too short for that, whatever the machine does.
    let slo = Slo { p50_ms: Some(60_000.0), ..Slo::default() };
    let report = run(&Server::answering(HELLO).url(), &asked(slo)).await;
    let objective = only(&report);
    assert!(report.verdict != Verdict::Valid && objective.outcome == Outcome::NotShown, "{report:?}");
    // On a busy machine the interval may have no end, which is reason enough.
    assert!(objective.high.is_none() || objective.words.contains(report.verdict.name()), "{objective:?}");
}

#[tokio::test]
async fn without_objectives_a_report_says_nothing_of_them() {
    let report = run(&Server::answering(HELLO).url(), &open(100)).await;
    let json = serde_json::to_value(&report).unwrap();
    assert!(report.slo.is_empty() && json.get("slo").is_none(), "{json}");
}
