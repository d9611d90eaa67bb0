//! recipes/shootout.rhai: it measures who is there, and the lab is afterwards as it was before.

use std::{fs, process::Command};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Found, Lab, until};

/// As short as it gets: these tests look at what is made and removed, not at figures.
const SHORT: &[&str] =
    &["recipes/shootout.rhai", "--rounds", "1", "--duration", "100ms", "--connections", "2"];

/// Long enough to be interrupted.
const LONG: &[&str] = &["recipes/shootout.rhai", "--rounds", "100", "--connections", "2"];

/// The contenders that this machine has, in the recipe's order.
fn contenders() -> Vec<&'static str> {
    let is_there = |program: &&str| {
        let line = format!("PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v {program}");
        Command::new("sh").args(["-c", &line]).output().unwrap().status.success()
    };
    let others = ["nginx", "haproxy"].into_iter().filter(is_there);
    ["balancer"].into_iter().chain(others).collect()
}

/// Services, logs aside, and files that a shootout made and that are still there.
fn left_of_shootout(lab: &Lab) -> Vec<String> {
    let in_folder = |name: &str, folder: &str| {
        let entries = fs::read_dir(lab.home(name).join(folder)).into_iter().flatten().flatten();
        entries.map(|it| it.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let folders =
        lab.names().into_iter().flat_map(|name| ["root", "services"].map(|it| in_folder(&name, it)));
    folders.flatten().filter(|name| name.contains("shootout")).collect()
}

/// Processes other than the agent and the services of the topology.
fn strange_processes(lab: &Lab) -> Vec<Found> {
    let known = [" agent --state ", "./worker --listen ", "./balancer --config balancer.json"];
    let mut found = lab.processes();
    found.retain(|it| it.command.contains("shootout") || !known.iter().any(|text| it.command.contains(text)));
    found
}

/// Asserts that nothing of a shootout is left and that the lab serves.
#[track_caller]
fn assert_as_before(lab: &Lab, ids: &[String]) {
    assert_eq!(left_of_shootout(lab), Vec::<String>::new());
    // A connection's last command may just be ending.
    until("no process of the shootout is left", || strange_processes(lab).is_empty().then_some(()));
    assert_eq!(lab.ids(), ids);
    lab.assert_exactly(&["app-1", "lb-1"]);
    lab.assert_serves("cluster1");
}

#[track_caller]
fn saved(lab: &Lab) -> Value {
    let entries = fs::read_dir(lab.artifacts()).unwrap().flatten().map(|it| it.path());
    let mut tables = entries.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("bench-shootout") && name.ends_with(".json")
    });
    let table = tables.next().expect("a table is saved");
    assert_eq!(tables.next(), None);
    serde_json::from_slice(&fs::read(table).unwrap()).unwrap()
}

#[test]
fn shootout_measures_who_is_there_and_leaves_the_lab_as_it_was() {
    let lab = Lab::up();
    let ids = lab.ids();
    let ended = lab.labhost(SHORT).expect(0);
    let table = saved(&lab);
    let rows = table["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["contender"].as_str().unwrap()).collect();
    assert_eq!(names, contenders(), "{ended}");
    for row in rows {
        assert_eq!((row["conns"].as_i64(), row["errors"].as_i64()), (Some(2), Some(0)), "{row}");
        assert!(row["req/s"].as_i64().unwrap() > 0 && row["MB"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["at/s"], rows[0]["at/s"], "latencies are measured at one rate for all");
    }
    assert_as_before(&lab, &ids);
    lab.stop().expect(0);
    lab.assert_nothing_left();
}

#[test]
fn contender_that_is_not_there_is_left_out_and_named() {
    let lab = Lab::up();
    let text = lab.read("recipes/contenders.rhai");
    let without = text.replace("program: \"nginx\"", "program: \"no-such-proxy\"");
    assert_ne!(without, text);
    lab.write("recipes/contenders.rhai", &without);
    let mut words = SHORT.to_vec();
    words.extend(["--only", "balancer,nginx", "--fresh"]);
    let ended = lab.labhost(&words).expect(0);
    ended.expect_says("nginx is not on lb-1").expect_says("apt-get install nginx-light");
    assert_eq!(saved(&lab)["rows"].as_array().unwrap().len(), 1);
}

#[test]
fn interrupted_shootout_is_cleared_by_the_next_run() {
    let lab = Lab::up();
    let ids = lab.ids();
    let run = lab.start(LONG);
    run.wait_for("round 1 of 100");
    assert_ne!(left_of_shootout(&lab), Vec::<String>::new());
    run.signal(Signal::INT);
    run.end().expect(130).expect_says("interrupted");
    lab.run().expect(0);
    assert_as_before(&lab, &ids);
    lab.stop().expect(0);
    lab.assert_nothing_left();
}

#[test]
fn stop_clears_an_interrupted_shootout_whose_agent_was_killed() {
    let lab = Lab::up();
    let run = lab.start(LONG);
    run.wait_for("round 1 of 100");
    lab.kill_agent();
    run.signal(Signal::INT);
    run.end();
    lab.stop().expect(0);
    lab.assert_nothing_left();
}
