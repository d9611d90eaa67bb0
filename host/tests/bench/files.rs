//! Reports as tables, files and ratios.

use super::*;

/// A good burst with a name that is awkward to print, one that fails, a closed and an open loop.
async fn four_reports() -> Vec<Report> {
    let good = Server::answering("HTTP/1.1 200 OK\r\nX-Instance-Id: a,\"b\"\r\nContent-Length: 0\r\n\r\n");
    let bad = Server::closing_after("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort");
    let named = |name: &str, options| Options { name: Some(name.to_owned()), ..options };
    let awkward = "a, \"quoted\" name that is far too long for its column";
    vec![
        run(&good.url(), &named(awkward, burst(20))).await,
        run(&bad.url(), &named("bad", burst(20))).await,
        run(&good.url(), &named("loop", closed(2, 40))).await,
        run(&good.url(), &named("rate", open(40))).await,
    ]
}

#[tokio::test]
async fn a_table_is_plain_and_fits_100_columns() {
    let table = bench::table(&four_reports().await);
    assert!(table.lines().all(|line| line.len() <= 100 && line.trim_end() == line), "{table}");
    assert!(table.chars().all(|c| c == '\n' || c == ' ' || c.is_ascii_graphic()), "{table}");
    let words =
        ["p99", "eof_in_body", "100.0 %", "transient", "too_short", "failed", "burst:", "closed loop:"];
    for word in words.into_iter().chain(["open loop: 2000 requests/s", "from sending", "send lag"]) {
        assert!(table.contains(word), "{word} is missing in\n{table}");
    }
    assert_eq!(bench::table(&[]), "");
}

/// Splits a line of CSV (RFC 4180) that has no line breaks in its fields.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut is_quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                fields.last_mut().unwrap().push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            c => fields.last_mut().unwrap().push(c),
        }
    }
    fields
}

#[tokio::test]
async fn saved_files_hold_the_reports() {
    let reports = four_reports().await;
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("artifacts");
    bench::save(&reports[..1], &dir, "x-1").unwrap();
    let (json, csv) = bench::save(&reports, &dir, "x-1").unwrap();
    assert_eq!((&json, &csv), (&dir.join("bench-x-1.json"), &dir.join("bench-x-1.csv")));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "no temporary file stays");

    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(document["schema"], 1);
    let read: Vec<Report> = serde_json::from_value(document["reports"].clone()).unwrap();
    assert_eq!(read, reports);

    let text = std::fs::read_to_string(csv).unwrap();
    let rows: Vec<_> = text.lines().map(fields).collect();
    assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{text}");
    // A header, four targets, and a backend of each good one.
    assert_eq!(rows.len(), 1 + 4 + 3, "{text}");
    assert_eq!(rows[1][1], reports[0].name);
    assert_eq!((rows[2][0].as_str(), rows[2][5].as_str()), ("backend", "a,\"b\""));
    let of_open = |column: &str| rows[6][rows[0].iter().position(|name| name == column).unwrap()].clone();
    assert_eq!((of_open("mode").as_str(), of_open("offered_per_second").as_str()), ("open", "2000"));
    assert!(!of_open("service_p99_ms").is_empty() && !of_open("send_lag_p99_ms").is_empty(), "{text}");
}

#[tokio::test]
async fn a_name_cannot_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "../x", "a/b", "a b", "ü"] {
        let error = bench::save(&[], dir.path(), name).unwrap_err();
        assert_eq!(error.kind, labhost::Kind::Recipe, "{name:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn comparison_states_ratios_to_the_first() {
    let mut reports = four_reports().await;
    let mut twice = reports[0].clone();
    twice.requests_per_second *= 2.0;
    twice.latency_ms.ok.as_mut().unwrap().p99 *= 3.0;
    reports.push(twice);
    let comparison = bench::compare(&reports);
    assert_eq!((&comparison.baseline, comparison.pairs.len()), (&reports[0].name, 4));
    let last = &comparison.pairs[3];
    assert_eq!((last.requests_per_second, last.p50, last.p99), (Some(2.0), Some(1.0), Some(3.0)));
    assert!(last.words.contains("2.00 times the requests per second"), "{}", last.words);
    assert_eq!(comparison.pairs[0].p99, None);
    assert!(comparison.pairs[1].words.contains("not asked in the same way"));
    assert!(comparison.pairs[0].words.contains("the result of bad is failed"));
    // What an open loop reaches is what was asked for.
    let words = &bench::compare(&[reports[3].clone(), reports[3].clone()]).pairs[0].words;
    assert!(words.contains("1.00 times the p99") && !words.contains("requests per second"), "{words}");
    assert!(bench::compare(&[]).pairs.is_empty());
}
