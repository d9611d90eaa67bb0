//! Several labhosts at once: in one lab only one may act, in two labs they do not meet.

use std::{collections::BTreeSet, net::Ipv4Addr};

use labhost::identity::lab_id;

use crate::support::Lab;

#[test]
fn second_run_in_a_lab_is_refused_and_names_the_first() {
    let lab = Lab::with_host();
    lab.write_recipe("print(\"holding\"); sleep(3600);");
    let first = lab.start(&["recipes/x.rhai"]);
    first.wait_for("holding");
    for words in [&["recipes/run.rhai"][..], &["recipes/stop.rhai", "--confirm"], &["extend", "1h"]] {
        let second = lab.labhost(words).expect(9);
        second.expect_says("`labhost recipes/x.rhai`").expect_says(&format!("process {} on", first.pid()));
    }
    lab.labhost(&["status"]).expect(0).expect_says("app-1");
    assert_eq!(lab.names(), ["app-1"]);
}

#[test]
fn two_labs_run_side_by_side() {
    let (one, other) = (Lab::new(), Lab::new());
    let (first, second) = (one.start(&["recipes/run.rhai"]), other.start(&["recipes/run.rhai"]));
    first.end().expect(0);
    second.end().expect(0);
    let addresses =
        |lab: &Lab| lab.instances().into_iter().map(|it| it.public_ip.unwrap()).collect::<BTreeSet<_>>();
    assert!(addresses(&one).is_disjoint(&addresses(&other)));
    one.stop().expect(0);
    one.assert_nothing_left();
    other.assert_exactly(&["app-1", "lb-1"]);
    other.assert_serves("cluster1");
}

/// A folder for a second lab in this one's, whose addresses are looked for in the block of `address` first.
fn folder_with_the_same_block(lab: &Lab, address: Ipv4Addr) -> String {
    let root = lab.file("").canonicalize().unwrap();
    let block = |name: &String| u32::from_str_radix(&lab_id(&root.join(name)), 16).unwrap() % 254 + 1;
    let mut names = (0..).map(|number| format!("second-{number}"));
    names.find(|name| block(name) == u32::from(address.octets()[2])).expect("one of 254 has it")
}

#[test]
fn lab_whose_agent_is_dead_keeps_its_addresses() {
    let lab = Lab::with_host();
    let address = lab.instance("app-1").public_ip.unwrap();
    let second = folder_with_the_same_block(&lab, address);
    lab.kill_agent();
    lab.labhost(&["recipes/x.rhai", "--state", &second]).expect(0);
    lab.labhost(&["recipes/x.rhai"]).expect(0);
    assert_eq!(lab.instance("app-1").public_ip, Some(address));
    lab.labhost(&["recipes/stop.rhai", "--confirm", "--state", &second]).expect(0);
}

#[test]
fn one_folder_may_hold_several_labs() {
    let lab = Lab::with_host();
    lab.labhost(&["recipes/run.rhai", "--state", "second"]).expect(0);
    let listed = lab.labhost(&["status", "--state", "second"]).expect(0);
    listed.expect_says("lb-1").expect_says("app-1");
    assert_eq!(lab.names(), ["app-1"]);
    lab.labhost(&["recipes/stop.rhai", "--confirm", "--state", "second"]).expect(0);
    assert!(!lab.file("second").exists());
    lab.labhost(&["status"]).expect(0).expect_says("app-1");
}
