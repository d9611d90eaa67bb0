//! Editing the topology of a running lab, under load: what changed is changed, nothing else, and no request fails.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::support::{BALANCER, Ended, Lab, WORKER};

const TWO: &str = r#"#{ name: "app", type: "t2.micro", count: 2, cluster: "cluster1" }"#;
const SMALL: &str = r#"#{ name: "app", type: "t2.small", count: 1, cluster: "cluster1" }"#;
const THIRD: &str = r#"#{ name: "third", type: "t2.nano", count: 1, cluster: "cluster3" }"#;
const MORE: &str = r#"#{ name: "more", type: "t2.medium", count: 1, cluster: "cluster1" }"#;

/// Runs closed-loop benchmarks of cluster1, one after the other, until dropped; each must be without a failed request.
/// Returns how many there were.
fn load(lab: &Lab, is_over: &AtomicBool) -> usize {
    let words = "recipes/bench.rhai --mode closed --connections 4 --duration 2s --clusters cluster1";
    let words: Vec<_> = words.split(' ').collect();
    let mut runs = 0;
    while !is_over.load(Ordering::Relaxed) {
        let ended = lab.labhost(&words).expect(0);
        let saved: Value = serde_json::from_str(&lab.read("artifacts/bench-closed.json")).unwrap();
        let counts = &saved["reports"][0]["counts"];
        assert_eq!(
            counts["ok"], counts["scheduled"],
            "requests failed: {}\n{ended}",
            saved["reports"][0]["errors"]
        );
        assert!(counts["ok"].as_u64() > Some(0), "{counts}");
        runs += 1;
    }
    runs
}

/// Does `edits` while requests are sent.
fn under_load(lab: &Lab, edits: impl FnOnce()) {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(lab, &is_over));
        let over = Over(&is_over);
        edits();
        drop(over);
        assert!(loading.join().expect("all requests are answered") > 0);
    });
}

#[track_caller]
fn edit(lab: &Lab, fleets: &[&str]) -> Ended {
    lab.set_topology(fleets);
    lab.run().expect(0)
}

/// The state of each backend of a cluster, by id.
#[track_caller]
fn backends(lab: &Lab, cluster: &str) -> Vec<String> {
    let status = crate::support::get(&lab.url("/status")).json();
    let list = status["clusters"][cluster]["backends"].as_array().cloned().unwrap_or_default();
    let mut ids: Vec<_> = list
        .iter()
        .filter(|it| it["state"] != "draining")
        .map(|it| it["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

#[track_caller]
fn assert_backends(lab: &Lab, cluster: &str, names: &[&str]) {
    let mut ids: Vec<_> = names.iter().map(|name| lab.instance(name).id).collect();
    ids.sort();
    assert_eq!(backends(lab, cluster), ids);
}

#[test]
fn count_goes_up_and_down_without_a_failed_request() {
    let lab = Lab::up();
    let first = lab.instance("app-1").id;
    under_load(&lab, || {
        edit(&lab, &[TWO, BALANCER]).expect_says("app (t2.micro): 1 kept, 1 launched (app-2)");
        lab.assert_exactly(&["app-1", "app-2", "lb-1"]);
        assert_backends(&lab, "cluster1", &["app-1", "app-2"]);
        let second = lab.instance("app-2").id;
        let said = edit(&lab, &[WORKER, BALANCER])
            .expect_says(&format!("app-2: {second} will be drained and terminated"));
        said.expect_says("the recipe asks for 1")
            .expect_says(&format!("drained and terminated app-2 ({second})"));
        lab.assert_exactly(&["app-1", "lb-1"]);
        assert_eq!(lab.instance("app-1").id, first);
        assert_backends(&lab, "cluster1", &["app-1"]);
    });
}

#[test]
fn changed_type_is_replaced_without_a_failed_request() {
    let lab = Lab::up();
    let (old, lb) = (lab.instance("app-1").id, lab.instance("lb-1").id);
    under_load(&lab, || {
        let said = edit(&lab, &[SMALL, BALANCER]).expect_says("type changed from t2.micro to t2.small");
        said.expect_says(&format!("drained and terminated app-1 ({old})"));
    });
    lab.assert_exactly(&["app-1", "lb-1"]);
    let new = lab.instance("app-1");
    assert_eq!((new.instance_type.as_str(), new.slot), ("t2.small", 1));
    assert_ne!(new.id, old);
    assert_eq!(lab.instance("lb-1").id, lb);
    // The new one was made, and the balancer told, before the old one went.
    let last =
        |step: &str| lab.steps().iter().rposition(|it| it == step).unwrap_or_else(|| panic!("no {step}"));
    assert!(last("launch") < last("write") && last("write") < last("terminate"), "{:?}", lab.steps());
    assert_backends(&lab, "cluster1", &["app-1"]);
    lab.assert_serves("cluster1");
}

#[test]
fn clusters_and_fleets_come_and_go_without_a_failed_request() {
    let lab = Lab::up();
    let first = lab.instance("app-1").id;
    under_load(&lab, || {
        edit(&lab, &[WORKER, THIRD, BALANCER]).expect_says("1 launched (third-1)");
        lab.assert_serves("cluster3");
        edit(&lab, &[WORKER, MORE, THIRD, BALANCER]);
        lab.assert_exactly(&["app-1", "more-1", "third-1", "lb-1"]);
        assert_backends(&lab, "cluster1", &["app-1", "more-1"]);

        let said = edit(&lab, &[WORKER, BALANCER]);
        let said = said.expect_says("fleet more (1 running) is no longer in the recipe; --prune removes it");
        said.expect_says("fleet third (1 running) is no longer in the recipe");
        lab.assert_exactly(&["app-1", "more-1", "third-1", "lb-1"]);
        assert_backends(&lab, "cluster1", &["app-1"]);

        let said = lab.labhost(&["recipes/run.rhai", "--prune"]).expect(0);
        said.expect_says("drained and terminated").expect_says("more-1").expect_says("third-1");
        lab.assert_exactly(&["app-1", "lb-1"]);
    });
    assert_eq!(lab.instance("app-1").id, first);
    lab.assert_serves("cluster1");
}

#[test]
fn changed_work_restarts_the_workers_in_place() {
    let lab = Lab::up();
    let ids = lab.ids();
    let topology = lab.read("recipes/topology.rhai");
    lab.write("recipes/topology.rhai", &topology.replace("\"1ms\"", "\"2ms\""));
    lab.run().expect(0).expect_says("service worker: 1 started or changed");
    assert_eq!(lab.ids(), ids);
    assert!(lab.processes().iter().any(|it| it.command.contains("--work 2ms")));
    lab.assert_serves("cluster1");
}

#[test]
fn full_lab_makes_room_for_what_replaces_its_members() {
    let lab = Lab::up();
    let (old, lb) = (lab.instance("app-1").id, lab.instance("lb-1").id);
    lab.set_topology(&[SMALL, BALANCER]);
    let said = format!("app-1 (t2.micro, {old})");
    let full = ["recipes/run.rhai", "--max-instances", "2"];
    lab.labhost(&[&full[..], &["--plan"]].concat()).expect(10).expect_says("no room").expect_says(&said);
    assert_eq!(lab.instance("app-1").id, old);
    lab.labhost(&full).expect(0).expect_says("no room").expect_says(&said);
    lab.assert_exactly(&["app-1", "lb-1"]);
    assert_eq!((lab.instance("app-1").instance_type, lab.instance("lb-1").id), ("t2.small".to_owned(), lb));
    let last = |step: &str| lab.steps().iter().rposition(|it| it == step);
    assert!(last("terminate").is_some() && last("terminate") < last("launch"), "{:?}", lab.steps());
    lab.assert_serves("cluster1");
}

#[test]
fn ceiling_refuses_a_launch_and_changes_nothing() {
    let lab = Lab::up();
    let ids = lab.ids();
    lab.set_topology(&[TWO, BALANCER]);
    let refused = lab.labhost(&["recipes/run.rhai", "--max-instances", "2"]).expect(4);
    refused.expect_says("the ceiling is 2").expect_says("--max-instances 3");
    assert_eq!(lab.ids(), ids);
    lab.assert_serves("cluster1");
}
