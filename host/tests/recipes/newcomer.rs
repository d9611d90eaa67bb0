//! What a newcomer does: run, look, benchmark, run again, stop.

use std::fs;

use serde_json::Value;

use crate::support::{BALANCER, Lab, WORKER, get};

const SECOND: &str = r#"#{ name: "small", type: "t2.small", count: 1, cluster: "cluster2" }"#;

fn lab_with_two_clusters() -> Lab {
    let lab = Lab::new();
    lab.set_topology(&[WORKER, SECOND, BALANCER]);
    lab
}

#[test]
fn lab_is_run_used_benchmarked_and_stopped() {
    let lab = lab_with_two_clusters();
    let run = lab.run().expect(0);
    let address = lab.instance("lb-1").public_ip.unwrap();
    for line in [
        format!("2 workers behind http://{address}:8080"),
        format!("curl http://{address}:8080/cluster1"),
        format!("labhost recipes/bench.rhai {address}"),
        "labhost recipes/stop.rhai --confirm".to_owned(),
        "It ends by itself in ".to_owned(),
    ] {
        assert!(run.stdout.contains(&line), "{line:?} is missing\n{run}");
    }
    look_around(&lab);
    benchmark(&lab, &address.to_string());
    run_again(&lab);
    stop(&lab);
}

fn look_around(lab: &Lab) {
    lab.assert_serves("cluster1");
    lab.assert_serves("cluster2");
    let missing = get(&lab.url("/cluster3"));
    assert_eq!(missing.status, 404, "{missing:?}");
    let answer = get(&lab.url("/cluster1"));
    let id = lab.instance("app-1").id;
    assert!(answer.head.to_lowercase().contains(&format!("x-instance-id: {id}")), "{answer:?}");
    let status = get(&lab.url("/status"));
    assert_eq!(status.status, 200, "{status:?}");
    let backends = &status.json()["clusters"]["cluster1"]["backends"];
    assert_eq!(
        (&backends[0]["id"], &backends[0]["state"]),
        (&Value::from(id), &Value::from("up")),
        "{backends}"
    );
    let shown = lab.labhost(&["status"]).expect(0);
    shown.expect_says("app-1").expect_says("small-1").expect_says("lb-1").expect_says(&lab.url(""));
}

fn benchmark(lab: &Lab, address: &str) {
    for (mode, options) in [
        ("burst", &["--requests", "50"][..]),
        ("closed", &["--mode", "closed", "--connections", "4", "--duration", "300ms"]),
        ("open", &["--rate", "200", "--duration", "300ms"]),
    ] {
        // By the lab's own balancer, by address, and by URL.
        for place in [&[][..], &[address], &[lab.url("").as_str()]] {
            let words = [&["recipes/bench.rhai"], place, options].concat();
            let ended = lab.labhost(&words).expect(0);
            for word in ["cluster1", "cluster2", "p50", "p99", &lab.instance("app-1").id] {
                assert!(ended.stdout.contains(word), "{word} is missing\n{ended}");
            }
        }
        check_results(lab, mode);
    }
}

fn check_results(lab: &Lab, mode: &str) {
    let saved: Value = serde_json::from_str(&lab.read(&format!("artifacts/bench-{mode}.json"))).unwrap();
    let reports = saved["reports"].as_array().unwrap();
    for (report, name) in reports.iter().zip(["app-1", "small-1"]) {
        let (counts, backends) = (&report["counts"], report["backends"].as_array().unwrap());
        assert_eq!(counts["ok"], counts["scheduled"], "{counts}");
        assert_eq!(backends.len(), 1, "{backends:?}");
        assert_eq!(backends[0]["id"], lab.instance(name).id, "{backends:?}");
        assert_eq!(backends[0]["count"], counts["ok"], "{backends:?}");
        assert_eq!(backends[0]["share"], 1.0, "{backends:?}");
    }
    if mode == "burst" {
        assert_eq!(reports[0]["counts"]["ok"], 50);
    }
    let csv = lab.read(&format!("artifacts/bench-{mode}.csv"));
    assert!(csv.starts_with("row,target,") && csv.lines().count() == 5, "{csv}");
}

fn run_again(lab: &Lab) {
    let (before, ids) = (lab.journal(), lab.ids());
    let pids = |lab: &Lab| lab.processes().into_iter().map(|it| it.pid).collect::<Vec<_>>();
    let running = pids(lab);
    lab.run().expect(0).expect_silent_about("launched (").expect_says("1 kept");
    assert_eq!(lab.ids(), ids);
    assert_eq!(pids(lab), running, "a process was started or ended");
    let fresh = &lab.journal()[before.len()..];
    assert!(fresh.iter().all(|record| record.step != "launch" && record.step != "terminate"), "{fresh:?}");
}

fn stop(lab: &Lab) {
    let (ids, files) = (lab.ids(), entries(lab));
    let refused = lab.labhost(&["recipes/stop.rhai"]).expect(7).expect_says("--confirm");
    for id in &ids {
        assert!(refused.stdout.contains(id), "{id} is missing\n{refused}");
    }
    assert_eq!((lab.ids(), entries(lab)), (ids, files), "something was removed without --confirm");
    lab.assert_serves("cluster1");
    lab.stop().expect(0).expect_says("removed");
    lab.assert_nothing_left();
    let files = |mode| [".csv", ".json"].map(|end| format!("bench-{mode}{end}"));
    let results = ["burst", "closed", "open"].map(files).concat();
    assert_eq!(entries(lab), results);
    lab.stop().expect(0).expect_says("nothing to do");
    lab.labhost(&["recipes/stop.rhai"]).expect(0).expect_says("nothing to do");
    assert_eq!(entries(lab), results);
}

/// Names of what lies under artifacts/, sorted.
fn entries(lab: &Lab) -> Vec<String> {
    let found = fs::read_dir(lab.artifacts()).unwrap().flatten();
    let mut names: Vec<_> = found.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn stop_before_any_run_has_nothing_to_do() {
    let lab = Lab::new();
    lab.stop().expect(0).expect_says("nothing to do");
    lab.assert_nothing_left();
}

#[test]
fn keys_can_be_kept_for_the_next_run() {
    let lab = Lab::new();
    lab.labhost(&["recipes/bootstrap.rhai"]).expect(0);
    let key = lab.read("artifacts/keys/lab");
    lab.labhost(&["recipes/stop.rhai", "--confirm", "--keep-bootstrap"]).expect(0);
    assert_eq!(entries(&lab), ["keys"]);
    assert_eq!(lab.processes(), []);
    lab.labhost(&["recipes/provision.rhai"]).expect(0);
    assert_eq!(lab.read("artifacts/keys/lab"), key);
    lab.stop().expect(0);
    lab.assert_nothing_left();
}

#[test]
fn parts_of_the_way_can_be_gone_one_by_one() {
    let lab = Lab::new();
    lab.labhost(&["recipes/bootstrap.rhai"]).expect(0);
    lab.labhost(&["recipes/provision.rhai"]).expect(0);
    lab.assert_exactly(&["app-1", "lb-1"]);
    let ids = lab.ids();
    lab.run().expect(0);
    assert_eq!(lab.ids(), ids);
    lab.assert_serves("cluster1");
}
