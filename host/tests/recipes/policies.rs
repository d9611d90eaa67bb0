//! recipes/policies.rhai and recipes/experiments/: policies compared in the simulator, and on the lab beside it.

use std::fs;

use serde_json::Value;

use crate::support::Lab;

#[track_caller]
fn json(lab: &Lab, name: &str) -> Value {
    serde_json::from_slice(&fs::read(lab.artifacts().join(name)).unwrap()).unwrap()
}

#[test]
fn policies_are_compared_without_any_instance() {
    let lab = Lab::new();
    let words = ["--policies", "expected-latency,round-robin,oracle", "--seeds", "1", "--duration", "300ms"];
    let ended = lab.labhost(&[&["recipes/policies.rhai"][..], &words].concat()).expect(0);
    let ended =
        ended.expect_says("99th percentile in ms, by load").expect_says("artifacts/bench-policies.html");
    let page = lab.read("artifacts/bench-policies.html");
    assert_eq!(page.matches("<svg ").count(), 4, "{ended}");
    assert!(!page.contains("<script") && !page.contains("http"), "one file that needs no other");
    let rows = json(&lab, "bench-policies.json")["rows"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 3 * 8, "policies and loads");
    assert!(rows.iter().all(|row| row["mean_ms"].as_f64() > Some(0.0)), "{rows:?}");
    lab.assert_nothing_left();
}

#[test]
fn experiment_sets_the_lab_beside_the_simulator_and_leaves_it_as_it_was() {
    let lab = Lab::up();
    let ids = lab.ids();
    let words = ["--only", "E6", "--policies", "expected-latency,round-robin", "--seconds", "0.3"];
    let ended = lab.labhost(&[&["recipes/experiments/run.rhai"][..], &words].concat()).expect(0);
    let ended = ended.expect_says("pairs of policies come in the predicted order");
    let table = json(&lab, "bench-experiments.json");
    let rows = table["rows"].as_array().unwrap();
    let policies: Vec<_> = rows.iter().map(|row| row["policy"].as_str().unwrap()).collect();
    assert_eq!(policies, ["expected-latency", "round-robin"], "{ended}");
    for row in rows {
        for key in ["mean_ms", "predicted_mean_ms", "p99_ms", "predicted_p99_ms", "goodput_per_second"] {
            assert!(row[key].as_f64() > Some(0.0), "{key} of {row}");
        }
        assert!(row["failed_percent"].as_f64() > Some(0.0), "the fault was there: {row}");
        let cpu = row["cpu_percent"].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&cpu), "{row}");
        assert_eq!(row["valid"], cpu <= 60.0, "{row}");
    }
    assert_eq!(lab.ids(), ids);
    let services = fs::read_dir(lab.home("lb-1").join("services")).unwrap().flatten();
    let names: Vec<_> = services.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    assert!(!names.iter().any(|name| name.starts_with("experiment") && !name.contains(".log")), "{names:?}");
    lab.assert_serves("cluster1");
}

#[test]
fn recipe_reads_the_last_choices_of_the_balancer() {
    let lab = Lab::up();
    lab.write(
        "recipes/x.rhai",
        r#"
        import "run" as lab;
        let list = [];
        for attempt in 0..50 {
            bench::http(lab::BALANCER.url("/cluster1"), #{ requests: 20 });
            list = balancer::decisions();
            if !list.is_empty() { break; }
        }
        let last = list[0];
        print(`chosen ${last.chosen == lab::WORKERS[0].id} among ${last.compared.len()} because ${last.why}`);
        "#,
    );
    lab.labhost(&["recipes/x.rhai"]).expect(0).expect_says("chosen true among 1 because only");
    lab.labhost(&["status"]).expect(0).expect_says("estimate ms");
}
