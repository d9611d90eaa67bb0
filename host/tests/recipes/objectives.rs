//! What a recipe asks of benchmark results, and the exit code when they fall short of it.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
};

use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
use serde_json::Value;

use crate::support::Lab;

/// An address that refuses every connection, and that nobody else can take meanwhile.
fn refusing() -> (OwnedFd, SocketAddr) {
    let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&bound, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = SocketAddr::try_from(getsockname(&bound).unwrap()).unwrap();
    (bound, address)
}

const LOAD: &str = r#"#{ mode: "open", rate: 500, requests: 100, name: "gone", slo: #{ error_rate: 0.01 } }"#;

#[test]
fn recipe_goes_on_and_ends_with_6_when_an_objective_is_not_met() {
    let (_bound, address) = refusing();
    let lab = Lab::new();
    let text = format!(
        "let report = bench::http(\"http://{address}/\", {LOAD});\n\
         print(report.slo[0].outcome);\n\
         print(bench::save([report], \"slo\").json);"
    );
    lab.write("recipes/x.rhai", &text);
    let ended = lab.labhost(&["recipes/x.rhai"]).expect(6);
    assert_eq!(ended.stdout, "not_met\nartifacts/bench-slo.json\n", "{ended}");
    ended.expect_says("error: gone: error rate at most 1 %: not met, 100 %");
    let saved: Value = serde_json::from_str(&lab.read("artifacts/bench-slo.json")).unwrap();
    assert_eq!(saved["reports"][0]["slo"][0]["name"], "error_rate", "{saved}");
    lab.assert_nothing_left();
}

#[test]
fn another_failure_comes_before_an_objective_that_is_not_met() {
    let (_bound, address) = refusing();
    let lab = Lab::new();
    lab.write("recipes/x.rhai", &format!("bench::http(\"http://{address}/\", {LOAD});\nthrow \"other\";"));
    lab.labhost(&["recipes/x.rhai"]).expect(1).expect_says("other").expect_silent_about("not met");
}

#[test]
fn strict_makes_a_saved_result_that_is_not_valid_a_failure() {
    let (_bound, address) = refusing();
    let lab = Lab::new();
    let text = format!(
        "let reports = [1, 2].map(|n| bench::http(\"http://{address}/\", #{{ requests: 5, name: `gone ${{n}}` }}));\n\
         print(bench::save(reports, \"strict\").csv);"
    );
    lab.write("recipes/x.rhai", &text);
    lab.labhost(&["recipes/x.rhai"]).expect(0);
    let ended = lab.labhost(&["recipes/x.rhai", "--strict"]).expect(6);
    assert_eq!(ended.stdout, "artifacts/bench-strict.csv\n", "{ended}");
    let ended = ended.expect_says("2 results fell short").expect_says("gone 1: the result is failed");
    ended.expect_says("gone 2: the result is failed");
}

#[test]
fn misspelt_objective_is_refused_before_anything_is_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let lab = Lab::new();
    lab.write(
        "recipes/x.rhai",
        &format!("bench::http(\"{url}\", #{{ mode: \"closed\", slo: #{{ p9_ms: 5 }} }});"),
    );
    let ended = lab.labhost(&["recipes/x.rhai"]).expect(3);
    ended.expect_says("unknown option `p9_ms` of bench::http.slo").expect_says("did you mean `p9");
    let words = ["recipes/bench.rhai", &url, "--clusters", "x", "--mode", "closed", "--slo"];
    let bench = |slo: &str| lab.labhost(&[&words[..], &[slo]].concat());
    bench("p9_ms=5").expect(3).expect_says("did you mean `p9");
    bench("p99_ms=fast").expect(2).expect_says("p99_ms=fast is no limit; write for example p99_ms=20");
    bench("p99_ms=0").expect(1).expect_says("p99_ms has to be above 0");
    assert!(listener.accept().is_err(), "nobody has connected");
}
