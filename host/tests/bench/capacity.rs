//! The search for a capacity: that it tries what it says, and says no more than it measured. How it searches is tested
//! without sockets, beside its code.

use labhost::bench::{Capacity, CapacityOptions, Finding, Limit, Outcome, Slo};

use super::*;

async fn capacity(server: &Server, options: &CapacityOptions) -> Capacity {
    let load = Options { connections: Some(4), duration: Some(span("1100ms")), ..Options::default() };
    let url = server.url();
    let found = bench::capacity(&url, &load, options, &|_| {});
    timeout(DEADLINE, found).await.expect("ends in time").unwrap()
}

/// A limit that no machine exceeds.
fn generous() -> Option<Slo> {
    Some(Slo { p50_ms: Some(60_000.0), ..Slo::default() })
}

#[tokio::test]
async fn a_target_that_only_fails_has_no_capacity() {
    let server = Server::answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    let options = CapacityOptions { slo: generous(), rate_min: 500.0, ..CapacityOptions::default() };
    let found = capacity(&server, &options).await;
    assert_eq!((found.held, found.not_held, found.limit), (None, Some(500.0), Limit::Target));
    assert!(found.words.contains("held at no rate, 500 requests/s being the lowest"), "{}", found.words);
    let table = bench::capacity_table(&found);
    assert!(table.contains("did not hold: p50 at most 60000 ms: not met"), "{table}");
    assert!(table.lines().all(|line| line.len() <= 100 && line.trim_end() == line), "{table}");
}

#[tokio::test]
async fn each_step_is_a_run_that_shows_what_is_said_of_it() {
    let options =
        CapacityOptions { slo: generous(), rate_min: 1000.0, rate_max: 1000.0, ..CapacityOptions::default() };
    let found = capacity(&Server::answering(HELLO), &options).await;
    assert_eq!(found.steps.len(), found.reports.len());
    for (step, report) in found.steps.iter().zip(&found.reports) {
        assert_eq!((report.spec.rate, report.mode), (Some(step.rate), Mode::Open));
        let is_met = Outcome::of(&report.slo) == Some(Outcome::Met);
        assert_eq!(step.finding == Finding::Held, is_met && report.verdict == Verdict::Valid, "{report:?}");
        // A busy machine may be the limit; the target is not.
        assert!(step.finding != Finding::NotHeld || report.verdict == Verdict::Overloaded, "{report:?}");
    }
    let last = found.steps.last().unwrap().finding;
    let (held, limit) =
        if last == Finding::Held { (Some(1000.0), Limit::RateMax) } else { (None, found.limit) };
    assert_eq!((found.held, found.limit), (held, limit), "{found:?}");
    let dir = tempfile::tempdir().unwrap();
    let (json, _) = bench::save_capacity(&found, dir.path(), "capacity").unwrap();
    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let saved: Capacity = serde_json::from_value(document["capacity"].clone()).unwrap();
    assert_eq!((saved.words, saved.steps), (found.words, found.steps));
}
