//! `kill -9` at every line of the journal: the next run adopts what there is.

use crate::{
    fake::{Cloud, faults::Strike},
    lab::Lab,
};

/// A run is killed when AWS has carried out its first launch and before it has the answer; what was launched is not
/// listed for a while.
fn launch_whose_answer_nobody_got(cloud: &Cloud) -> Lab {
    cloud.forbid_duplicates();
    let lab = Lab::new(cloud);
    cloud.faults().hidden_looks = 5;
    let strike = |victim| {
        let action = Some("RunInstances");
        cloud.faults().strike = Some(Strike { victim, action, calls: 0, is_carried_out: true });
    };
    lab.labhost_watched(&["--provider", "ec2", "recipes/provision.rhai"], None, strike).expect_killed();
    assert_eq!(cloud.living().len(), 2);
    cloud.faults().hidden_looks = 0;
    lab
}

#[test]
fn killed_before_the_answer_is_taken_up_although_nothing_is_listed() {
    let cloud = Cloud::start();
    let lab = launch_whose_answer_nobody_got(&cloud);
    lab.provision().expect(0);
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn member_that_ends_after_a_lost_answer_is_launched_again_alone() {
    let cloud = Cloud::start();
    let lab = launch_whose_answer_nobody_got(&cloud);
    let (gone, stays) = (cloud.living()[0].id.clone(), cloud.living()[1].id.clone());
    cloud.kill(&gone);
    lab.provision().expect(0);
    assert!(cloud.living().iter().any(|it| it.id == stays));
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn killed_before_the_answer_is_waited_for_by_another_topology() {
    let cloud = Cloud::start();
    let lab = launch_whose_answer_nobody_got(&cloud);
    lab.set_topology(r#"#{ name: "app", type: "t2.micro", count: 1, cluster: "cluster1" }"#);
    lab.provision().expect(0).says("AWS does not list a launch of app yet").says("1 kept");
    assert_eq!(cloud.living().len(), 1);
    lab.stop_clean(&cloud);
}

#[test]
fn killed_before_the_answer_is_taken_into_a_larger_fleet() {
    let cloud = Cloud::start();
    let lab = launch_whose_answer_nobody_got(&cloud);
    let before: Vec<_> = cloud.living().iter().map(|it| it.id.clone()).collect();
    lab.set_topology(r#"#{ name: "app", type: "t2.micro", count: 3, cluster: "cluster1" }"#);
    lab.provision().expect(0).says("2 kept, 1 launched (app-3)");
    let after = cloud.living();
    assert_eq!((before.len(), after.len()), (2, 3));
    assert!(before.iter().all(|id| after.iter().any(|it| it.id == *id)), "both are kept");
    lab.stop_clean(&cloud);
}

#[test]
fn killed_before_the_answer_is_removed_by_stop_although_nothing_is_listed() {
    let cloud = Cloud::start();
    let lab = launch_whose_answer_nobody_got(&cloud);
    lab.stop().expect(0).says("AWS does not list a launch of app yet");
    assert_eq!(cloud.left(), Vec::<String>::new());
}

/// Kills a run of the instances before and after each line of its journal, and runs it again; in the end there is
/// each member once, and `stop` leaves nothing.
#[test]
fn killed_at_any_line_is_taken_up_by_the_next_run() {
    let cloud = Cloud::start();
    for when in ["before", "after"] {
        // Lab, start, then key, two groups and two launches with their ends.
        for line in 1..=12 {
            let lab = Lab::new(&cloud);
            lab.provision_killed(&format!("{when}:{line}")).expect_killed();
            lab.provision().expect(0);
            let mut names: Vec<_> = lab.instances().into_iter().map(|it| it.name).collect();
            names.sort();
            assert_eq!(names, ["app-1", "app-2", "lb-1"], "killed {when} {line}");
            assert_eq!(cloud.living().len(), 3, "killed {when} {line}");
            lab.stop_clean(&cloud);
        }
    }
}

#[test]
fn killed_run_is_removed_by_stop_alone() {
    let cloud = Cloud::start();
    for line in [4, 6, 8, 10, 12] {
        let lab = Lab::new(&cloud);
        lab.provision_killed(&format!("before:{line}")).expect_killed();
        lab.stop_clean(&cloud);
    }
}

#[test]
fn killed_teardown_is_finished_by_the_next() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    lab.stop_killed("before:2").expect_killed();
    lab.stop_clean(&cloud);
}

#[test]
fn interrupted_run_is_taken_up_by_the_next() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    cloud.faults().pending_looks = 1000;
    lab.provision_interrupted_when(|| cloud.living().len() == 3)
        .expect(130)
        .says("3 instances exist")
        .says("dollars per hour");
    cloud.with(|world| world.machines.iter_mut().for_each(|it| it.looks = 0));
    cloud.faults().pending_looks = 0;
    lab.provision().expect(0).says("2 kept");
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}
