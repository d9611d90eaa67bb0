//! The whole way: run, use, run again, stop.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    fake::{Call, Cloud},
    lab::{Lab, WHOLE},
};

/// How often each action was called.
fn counted(calls: &[Call]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for call in calls {
        *counts.entry(call.action.as_str()).or_insert(0) += 1;
    }
    counts
}

fn show(what: &str, counts: &BTreeMap<&str, usize>) {
    println!("{what}: {} calls: {counts:?}", counts.values().sum::<usize>());
}

#[test]
fn nine_instances_from_run_to_stop_with_few_calls() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.set_topology(WHOLE);
    lab.run().expect(0).says("The lab is up").says("dollars per hour");
    assert_eq!(cloud.living().len(), 9);
    let calls = cloud.take_calls();
    let counts = counted(&calls);
    show("run of nine", &counts);
    assert_eq!(counts["RunInstances"], 3, "one call for each fleet");
    assert!(counts["DescribeInstances"] <= 8, "no call for each instance: {counts:?}");
    assert!(calls.len() <= 22, "{counts:?}");

    lab.labhost(&["recipes/bench.rhai", "--requests", "200"]).expect(0);
    cloud.take_calls();

    let ids: Vec<_> = lab.instances().into_iter().map(|it| it.id).collect();
    lab.run().expect(0).says("4 kept");
    assert_eq!(ids, lab.instances().into_iter().map(|it| it.id).collect::<Vec<_>>());
    let calls = cloud.take_calls();
    show("re-run", &counted(&calls));
    let reads = |call: &Call| call.action.starts_with("Describe") || call.action.starts_with("Get");
    assert!(calls.iter().all(reads), "nothing is changed: {:?}", counted(&calls));
    assert!(calls.len() <= 11, "{:?}", counted(&calls));

    lab.stop_clean(&cloud);
    let calls = cloud.take_calls();
    show("stop", &counted(&calls));
    assert_eq!(counted(&calls)["TerminateInstances"], 1);
    lab.stop().expect(0).says("nothing to do");
    assert!(lab.file("artifacts/bench-burst.json").exists());
}

#[test]
fn small_pages_hide_nothing_from_run_and_stop() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.set_topology(WHOLE);
    {
        let mut faults = cloud.faults();
        (faults.items_per_page, faults.lingering_interfaces) = (Some(2), 2);
    }
    lab.run().expect(0).says("The lab is up");
    assert_eq!(cloud.living().len(), 9);
    lab.run().expect(0).says("4 kept");
    assert_eq!(cloud.living().len(), 9);
    lab.stop().expect(0).says("is held by network interface eni-");
    assert_eq!((cloud.left(), cloud.unread()), (Vec::new(), 0));
    let subnets = cloud.with(|world| {
        let used: BTreeSet<_> = world.machines.iter().map(|it| it.subnet.clone()).collect();
        used.len()
    });
    assert_eq!(subnets, 3, "also the zone on the second page is used");
}

/// With the lab's files lost, everything comes from listings.
#[test]
fn pages_of_one_hide_nothing_from_a_teardown_without_files() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    cloud.faults().items_per_page = Some(1);
    lab.provision().expect(0);
    lab.lose_state();
    lab.stop_clean(&cloud);
    assert_eq!(cloud.unread(), 0);
}

#[test]
fn changed_topology_replaces_and_prunes() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.run().expect(0);
    lab.set_topology(
        r#"#{ name: "small", type: "t2.small", count: 1, cluster: "cluster1" }, #{ name: "lb", type: "t2.large", count: 1, role: "balancer" }"#,
    );
    lab.run().expect(0).says("--prune removes it");
    assert_eq!(cloud.living().len(), 4);
    lab.labhost(&["--prune", "recipes/run.rhai"]).expect(0).says("drained and terminated");
    let fleets: Vec<_> = cloud.living().iter().map(|it| it.tags["labhost:fleet"].clone()).collect();
    assert_eq!(fleets.len(), 2, "{fleets:?}");
    lab.stop_clean(&cloud);
}

/// Not a test: prints what a run takes on the fake and on this machine. `cargo test ... -- --ignored --nocapture figures`
#[test]
#[ignore = "prints figures and judges nothing"]
fn figures_of_a_run_on_the_fake_and_on_this_machine() {
    let cloud = Cloud::start();
    for round in 1..=3 {
        for provider in ["local", "ec2"] {
            let lab = Lab::new(&cloud);
            lab.set_topology(WHOLE);
            let mut words = vec!["--provider", provider];
            let mut times = Vec::new();
            for recipe in
                [&["recipes/run.rhai"][..], &["recipes/run.rhai"], &["recipes/stop.rhai", "--confirm"]]
            {
                words.truncate(2);
                words.extend_from_slice(recipe);
                let begun = std::time::Instant::now();
                lab.labhost(&words).expect(0);
                times.push(begun.elapsed().as_secs_f64());
            }
            println!(
                "round {round}, {provider}: run {:.2} s, re-run {:.2} s, stop {:.2} s",
                times[0], times[1], times[2]
            );
        }
    }
}
