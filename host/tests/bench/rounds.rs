//! Targets compared in rounds: their order, what counts, and what the ratios are of.

use labhost::bench::{Contender, Rounds, RoundsOptions};

use super::*;

/// Enough for a median, and each on its own connection.
const REQUESTS: u64 = 20;

fn contender(name: &str, server: &Server) -> Contender {
    Contender { url: server.url(), name: Some(name.to_owned()) }
}

async fn play(contenders: &[Contender], rounds: u64) -> Rounds {
    let (load, options) = (burst(REQUESTS), RoundsOptions { rounds });
    let played = bench::rounds(contenders, &load, &options, &|_| {});
    timeout(DEADLINE, played).await.expect("ends in time").unwrap()
}

#[tokio::test]
async fn ratios_are_those_within_each_round() {
    let (quick, slow) = (Server::answering(HELLO), Server::fifo(10));
    let found = play(&[contender("quick", &quick), contender("slow", &slow)], 6).await;
    let order: Vec<_> = found.reports.iter().map(|report| report.name.as_str()).collect();
    assert_eq!(order[..6], ["quick", "slow", "slow", "quick", "quick", "slow"]);
    assert_eq!((found.baseline.as_str(), found.rounds, found.reports.len()), ("quick", 6, 12));
    assert!(found.left_out.is_empty(), "{found:?}");
    let [pair] = found.pairs.as_slice() else { panic!("{found:?}") };
    let rate = pair.requests_per_second.as_ref().unwrap();
    for (round, ratio) in (1..).zip(&rate.rounds) {
        let of = |name: &str| {
            let is_it = |report: &&Report| report.round == Some(round) && report.name == name;
            found.reports.iter().find(is_it).unwrap().requests_per_second
        };
        assert!((of("slow") / of("quick") - ratio).abs() < 1e-4, "round {round} of {found:?}");
    }
    // The slow one needs 200 ms for what the quick one has time for in each of six rounds.
    assert!(rate.differs && rate.high.unwrap() < 1.0 && rate.confidence.unwrap() > 0.95, "{rate:?}");
    assert!(pair.words.starts_with("slow has 0."), "{}", pair.words);
    assert_eq!(pair.p99, None, "20 answers have no p99");
}

#[tokio::test]
async fn a_round_that_is_not_valid_is_named_and_played_again() {
    let moody = Server::start(|index, mut stream| async move {
        let bad = (REQUESTS..2 * REQUESTS).contains(&(index as u64));
        let bad = bad.then_some("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n");
        while read_request(&mut stream).await {
            if stream.write_all(bad.unwrap_or(HELLO).as_bytes()).await.is_err() {
                return;
            }
        }
    });
    let steady = Server::answering(HELLO);
    let found = play(&[contender("steady", &steady), contender("moody", &moody)], 6).await;
    assert_eq!((found.rounds, found.reports.len()), (6, 14));
    assert_eq!(found.left_out, ["round 2: the result of moody is failed: no request was answered with 2xx"]);
    assert_eq!(found.pairs[0].p50.as_ref().unwrap().rounds.len(), 6);
    let table = bench::rounds_table(&found);
    assert!(table.contains("not counted: round 2"), "{table}");
    assert!(table.lines().all(|line| line.len() <= 100 && line.trim_end() == line), "{table}");
}

#[tokio::test]
async fn rounds_end_though_none_is_valid() {
    let (good, bad) = (Server::answering(HELLO), Server::closing_after(""));
    let found = play(&[contender("good", &good), contender("bad", &bad)], 2).await;
    assert_eq!((found.rounds, found.left_out.len(), found.reports.len()), (0, 3, 6));
    assert!(found.pairs[0].words.contains("no figures to compare"), "{found:?}");
}

#[tokio::test]
async fn saved_rounds_can_be_read_again() {
    let (one, other) = (Server::answering(HELLO), Server::answering(HELLO));
    let found = play(&[contender("one", &one), contender("other", &other)], 2).await;
    assert!(found.pairs[0].words.contains("no interval can be made"), "{}", found.pairs[0].words);
    let dir = tempfile::tempdir().unwrap();
    let (json, csv) = bench::save_rounds(&found, dir.path(), "rounds").unwrap();
    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let read: Vec<Report> = serde_json::from_value(document["reports"].clone()).unwrap();
    let rounds: Rounds = serde_json::from_value(document["comparison"].clone()).unwrap();
    assert_eq!(Rounds { reports: read, ..rounds }, found);
    let text = std::fs::read_to_string(csv).unwrap();
    let last: Vec<_> =
        text.lines().filter(|row| row.starts_with("target,")).map(|row| row.rsplit(',').next()).collect();
    assert_eq!(last, [Some("1"), Some("1"), Some("2"), Some("2")], "{text}");
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused() {
    let one = || Contender { url: "http://127.0.0.1:1/".to_owned(), name: Some("one".to_owned()) };
    let two = || [one(), Contender { name: Some("two".to_owned()), ..one() }];
    let long = Options { mode: Mode::Closed, duration: Some(span("10m")), ..Options::default() };
    let slow = Options { mode: Mode::Open, rate: Some(1.0), requests: Some(600), ..Options::default() };
    let cases: [(&[Contender], Options, u64, &str); 5] = [
        (&[one()], burst(1), 6, "1 targets cannot be compared"),
        (&[one(), one()], burst(1), 6, "two targets are called one"),
        (&two(), burst(1), 0, "rounds: 0 is out of range"),
        (&two(), long, 6, "so many rounds take 7200 s"),
        (&two(), slow, 100, "so many rounds take 120000 s"),
    ];
    for (contenders, load, rounds, words) in cases {
        let error = bench::rounds(contenders, &load, &RoundsOptions { rounds }, &|_| {}).await.unwrap_err();
        assert!(error.message.contains(words) && error.hint.is_some(), "{error}");
    }
}
