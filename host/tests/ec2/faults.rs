//! What AWS may do to a run.

use crate::{
    fake::Cloud,
    lab::{Lab, SMALL},
};
use std::time::Duration;

fn cloud_and_lab() -> (Cloud, Lab) {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    (cloud, lab)
}

/// A launch fails with `code`: exit 4 with what to do; nothing is left running, and the next run succeeds.
#[track_caller]
fn check_refused_launch(code: &str, times: u32, hint: &str) {
    let (cloud, lab) = cloud_and_lab();
    cloud.fail("RunInstances", code, times);
    lab.provision().expect(4).says(code).says(hint);
    assert_eq!(cloud.living().len(), 0);
    lab.provision().expect(0);
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn slow_machines_are_waited_for() {
    let (cloud, lab) = cloud_and_lab();
    {
        let mut faults = cloud.faults();
        (faults.pending_looks, faults.shutting_down_looks) = (6, 6);
    }
    lab.provision().expect(0);
    lab.stop_clean(&cloud);
}

#[test]
fn what_aws_does_not_know_yet_is_waited_for() {
    let (cloud, lab) = cloud_and_lab();
    {
        let mut faults = cloud.faults();
        (faults.hidden_looks, faults.hidden_groups) = (6, 2);
    }
    lab.provision().expect(0);
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn run_again_at_once_does_not_launch_what_is_not_listed_yet() {
    let (cloud, lab) = cloud_and_lab();
    cloud.faults().hidden_looks = 5;
    // Killed right after the first launch was recorded.
    let text = lab.provision_killed("after:10").text();
    assert_eq!(cloud.living().len(), 2, "{text}");
    lab.provision().expect(0);
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn lost_answer_of_a_launch_launches_once() {
    let (cloud, lab) = cloud_and_lab();
    cloud.lose_answer("RunInstances");
    lab.provision().expect(0);
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn token_of_terminated_instances_is_followed_by_the_next_generation() {
    let (cloud, lab) = cloud_and_lab();
    // The launch is carried out and recorded by AWS alone; then somebody terminates what it made.
    lab.provision_killed("before:10").expect_killed();
    for it in cloud.living() {
        cloud.kill(&it.id);
    }
    lab.provision().expect(0);
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn full_zone_is_followed_by_the_next() {
    let (cloud, lab) = cloud_and_lab();
    cloud.fail("RunInstances", "InsufficientInstanceCapacity", 2);
    lab.provision().expect(0).says("trying the next zone");
    let zones: Vec<_> = cloud.living().iter().map(|it| it.subnet.clone()).collect();
    assert_eq!(zones[0], "subnet-0c", "two zones were full: {zones:?}");
    lab.stop_clean(&cloud);
}

#[test]
fn full_region_is_said() {
    check_refused_launch("InsufficientInstanceCapacity", 3, "no room for this type in any zone");
}

#[test]
fn used_up_quota_is_said() {
    check_refused_launch("InstanceLimitExceeded", 1, "quota");
    check_refused_launch("VcpuLimitExceeded", 1, "quota");
}

#[test]
fn missing_permission_is_said() {
    check_refused_launch("UnauthorizedOperation", 1, "permissions");
}

#[test]
fn throttled_calls_are_repeated() {
    let (cloud, lab) = cloud_and_lab();
    cloud.fail("RunInstances", "RequestLimitExceeded", 2);
    cloud.fail("DescribeInstances", "RequestLimitExceeded", 1);
    lab.provision().expect(0);
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn credentials_may_expire_after_any_call() {
    let (cloud, lab) = cloud_and_lab();
    for calls in [0, 1, 3, 5, 7, 9, 11, 13] {
        cloud.faults().expires_after = Some(calls);
        let ended = lab.provision();
        cloud.faults().expires_after = None;
        if ended.code == Some(0) {
            break;
        }
        ended.expect(4).says("ExpiredToken").says("Renew");
    }
    lab.provision().expect(0);
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn credentials_that_expire_during_teardown_leave_it_to_be_repeated() {
    let (cloud, lab) = cloud_and_lab();
    // The first six calls find out what there is; a refusal there is no teardown yet.
    for calls in 6..14 {
        lab.provision().expect(0);
        cloud.faults().expires_after = Some(calls);
        let ended = lab.stop();
        cloud.faults().expires_after = None;
        ended.expect(8).says("ExpiredToken");
        assert!(lab.file("artifacts/journal.ndjson").exists(), "the state is kept");
        lab.stop_clean(&cloud);
    }
}

#[test]
fn partial_launch_is_completed_by_the_next_run() {
    let (cloud, lab) = cloud_and_lab();
    cloud.faults().is_launch_partial = true;
    lab.provision().expect(4).says("made 1 of 2 instances");
    assert_eq!(cloud.living().len(), 1);
    lab.provision().expect(0).says("1 kept, 1 launched (app-2)");
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn instance_that_dies_while_booting_is_replaced_by_the_next_run() {
    let (cloud, lab) = cloud_and_lab();
    cloud.faults().dies_at_boot = true;
    lab.provision().expect(5).says("it has ended").says("Instance initiated shutdown");
    lab.provision().expect(0).says("1 launched (app-1)");
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn late_ssh_is_waited_for() {
    let (cloud, lab) = cloud_and_lab();
    lab.set_topology(SMALL);
    cloud.faults().ssh_late = Some(Duration::from_secs(3));
    lab.run().expect(0);
    lab.stop_clean(&cloud);
}

#[test]
fn host_that_nobody_can_log_in_to_is_shown_with_its_console() {
    let (cloud, lab) = cloud_and_lab();
    lab.write(
        "recipes/login.rhai",
        "import \"provision\" as provision; ec2::wait(provision::HOSTS, #{ timeout: \"1500ms\" });",
    );
    cloud.faults().ssh_late = Some(Duration::from_secs(600));
    lab.labhost(&["--provider", "ec2", "recipes/login.rhai"]).expect(5).says("no console output");
    cloud.faults().console = Some("Booting\nKernel panic - not syncing".to_owned());
    lab.labhost(&["--provider", "ec2", "recipes/login.rhai"]).expect(5).says("Kernel panic");
    lab.stop_clean(&cloud);
}

#[test]
fn stopped_instances_are_started_again() {
    let (cloud, lab) = cloud_and_lab();
    lab.provision().expect(0);
    cloud.with(|world| {
        for it in &mut world.machines {
            it.life = crate::fake::Life::Stopped;
        }
    });
    lab.provision().expect(0).says("which were stopped").says("2 kept");
    lab.stop_clean(&cloud);
}

#[test]
fn endpoint_that_is_not_there_is_said() {
    let cloud = Cloud::start();
    let mut lab = Lab::new(&cloud);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    lab.env.push(("AWS_ENDPOINT_URL".to_owned(), format!("http://{closed}")));
    lab.provision().expect(5).says("could not be reached");
}
