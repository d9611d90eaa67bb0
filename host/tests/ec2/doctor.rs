//! `labhost doctor` with this provider: tries every call, and changes nothing.

use std::collections::BTreeSet;

use crate::{
    fake::{Cloud, Life},
    lab::{Ended, Lab},
};

fn examine(lab: &Lab) -> Ended {
    lab.labhost(&["--provider", "ec2", "doctor"])
}

/// The table's line about a call.
#[track_caller]
fn line<'a>(ended: &'a Ended, call: &str) -> &'a str {
    let found = ended.stdout.lines().find(|line| line.split_whitespace().next() == Some(call));
    found.unwrap_or_else(|| panic!("{call} is not in\n{ended}"))
}

/// The calls since the last time; asserts that none has changed anything.
#[track_caller]
fn tried(cloud: &Cloud) -> BTreeSet<String> {
    let calls = cloud.take_calls();
    for call in &calls {
        let reads = call.action.starts_with("Describe") || call.action.starts_with("Get");
        assert!(reads != call.is_dry, "{call:?}");
    }
    calls.into_iter().map(|call| call.action).collect()
}

/// Instances, groups and keys, word for word.
fn everything(cloud: &Cloud) -> String {
    cloud.with(|world| format!("{:?}\n{:?}\n{:?}", world.machines, world.groups, world.keys))
}

#[test]
fn every_call_of_a_labs_life_is_tried_and_nothing_is_changed() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    cloud.with(|world| world.machines[0].life = Life::Stopped);
    lab.provision().expect(0).says("starting ");
    lab.labhost(&["--provider", "ec2", "extend", "3h"]).expect(0);
    let mut used: BTreeSet<String> = cloud.take_calls().into_iter().map(|call| call.action).collect();
    let before = everything(&cloud);

    let ended = examine(&lab).expect(0).says("this account permits all").says("account 123456789012");
    let tried = tried(&cloud);
    assert_eq!(everything(&cloud), before);
    for call in &tried {
        assert!(line(&ended, call).contains("permitted"), "{call}: {ended}");
    }

    lab.stop_clean(&cloud);
    used.extend(cloud.take_calls().into_iter().map(|call| call.action));
    let untried: Vec<_> = used.difference(&tried).collect();
    assert!(untried.is_empty(), "{untried:?}");
}

#[test]
fn doctor_without_a_lab_says_what_cannot_be_tried_yet() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    let ended = examine(&lab).expect(0).says("nothing is refused").says("ask again");
    for call in ["RunInstances", "ImportKeyPair", "CreateSecurityGroup", "DescribeTags"] {
        assert!(line(&ended, call).contains("permitted"), "{call}: {ended}");
    }
    for call in ["TerminateInstances", "DeleteSecurityGroup", "CreateTags"] {
        assert!(line(&ended, call).contains("unclear"), "{call}: {ended}");
    }
    tried(&cloud);
    assert_eq!(cloud.left(), Vec::<String>::new());
    assert!(!lab.file("artifacts").exists(), "nothing is written");
}

#[test]
fn doctor_names_the_calls_that_are_refused() {
    const REFUSED: [&str; 3] = ["TerminateInstances", "DescribeVolumes", "CreateSecurityGroup"];
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    for action in REFUSED {
        cloud.fail(action, "UnauthorizedOperation", 1);
    }
    let ended = examine(&lab)
        .expect(4)
        .says("refused: DescribeVolumes, TerminateInstances, CreateSecurityGroup")
        .says("TerminateInstances: DryRun: planned: UnauthorizedOperation")
        .says("README lists the permissions");
    for call in REFUSED {
        assert!(line(&ended, call).contains("REFUSED"), "{call}: {ended}");
    }
    assert!(line(&ended, "RunInstances").contains("permitted"), "{ended}");
    lab.stop_clean(&cloud);
}

#[test]
fn doctor_without_credentials_says_how_to_get_some() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    cloud.fail("GetCallerIdentity", "ExpiredToken", 1);
    examine(&lab).expect(4).says("this machine can run labs").says("Renew them");
}
