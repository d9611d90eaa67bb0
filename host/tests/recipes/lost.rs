//! What may get lost while a lab runs: the agent, the views under artifacts/, all of artifacts/.

use std::fs;

use labhost::instance::Instance;

use crate::support::Lab;

/// What must stay the same of an instance that is not replaced.
fn identities(lab: &Lab) -> Vec<(String, String, Option<std::net::Ipv4Addr>)> {
    let identity = |it: Instance| (it.id, it.host_key, it.public_ip);
    lab.instances().into_iter().map(identity).collect()
}

#[test]
fn lab_with_a_killed_agent_comes_back_with_the_same_instances() {
    let lab = Lab::up();
    let before = identities(&lab);
    lab.kill_agent();
    lab.run().expect(0);
    assert_eq!(identities(&lab), before);
    assert!(lab.agent().is_some());
    lab.assert_serves("cluster1");
}

/// Or a `flock`, a shell's substitution or a build server that waits for the end of its descriptors waits for the lab's.
#[test]
fn agent_keeps_nothing_open_of_who_started_it() {
    let lab = Lab::new();
    let path = lab.file("held");
    let held = fs::File::create(&path).unwrap();
    rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty()).unwrap();
    lab.recipe("").expect(0);
    let agent = lab.agent().expect("an agent runs");
    let open = fs::read_dir(format!("/proc/{agent}/fd")).unwrap().flatten();
    let links: Vec<_> = open.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    assert!(!links.is_empty() && !links.contains(&path.canonicalize().unwrap()), "{links:?}");
}

#[test]
fn stop_works_with_a_killed_agent() {
    let lab = Lab::up();
    lab.kill_agent();
    lab.stop().expect(0);
    lab.assert_nothing_left();
}

#[test]
fn deleted_views_are_written_again() {
    let lab = Lab::up();
    let before = identities(&lab);
    for entry in fs::read_dir(lab.artifacts()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_view = name.ends_with(".json")
            || ["ssh_config", "known_hosts", "journal.ndjson"].contains(&name.as_str());
        if is_view {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    lab.run().expect(0);
    assert_eq!(identities(&lab), before);
    assert!(lab.file("artifacts/lb.json").exists() && lab.file("artifacts/run.json").exists());
    lab.stop().expect(0);
    lab.assert_nothing_left();
}

#[test]
fn run_makes_the_lab_anew_when_all_artifacts_were_deleted() {
    let lab = Lab::up();
    fs::remove_dir_all(lab.artifacts()).unwrap();
    lab.run().expect(0);
    lab.assert_exactly(&["app-1", "lb-1"]);
    lab.assert_serves("cluster1");
    lab.stop().expect(0);
    lab.assert_nothing_left();
}

#[test]
fn stop_works_when_all_artifacts_were_deleted() {
    let lab = Lab::up();
    fs::remove_dir_all(lab.artifacts()).unwrap();
    // The agent may be gone by now: it looks for its directory now and then, and ends without it.
    lab.labhost(&["recipes/stop.rhai"])
        .expect(7)
        .expect_says("this would remove")
        .expect_says("the directory");
    lab.stop().expect(0);
    lab.assert_nothing_left();
}

#[test]
fn stop_works_when_artifacts_and_agent_are_gone() {
    let lab = Lab::up();
    fs::remove_dir_all(lab.artifacts()).unwrap();
    lab.kill_agent();
    lab.stop().expect(0);
    lab.assert_nothing_left();
}

#[test]
fn deleted_instance_is_replaced_in_its_slot() {
    let lab = Lab::up();
    let before = lab.instance("app-1").id;
    fs::remove_dir_all(lab.home("app-1")).unwrap();
    lab.run().expect(0).expect_says("1 launched (app-1)");
    lab.assert_exactly(&["app-1", "lb-1"]);
    assert_ne!(lab.instance("app-1").id, before);
    lab.assert_serves("cluster1");
}

#[test]
fn damaged_journal_is_set_aside() {
    let lab = Lab::up();
    let before = identities(&lab);
    lab.write("artifacts/journal.ndjson", "{\"line\":1,\nnot a record\n");
    lab.run().expect(0);
    assert_eq!(identities(&lab), before);
    assert!(lab.read("artifacts/journal.ndjson.damaged").contains("not a record"));
    assert!(lab.journal().iter().any(|record| record.step == "repair"));
    lab.stop().expect(0);
    lab.assert_nothing_left();
}
