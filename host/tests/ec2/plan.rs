//! `--plan`: says what would change, and changes nothing.

use crate::{
    fake::{Cloud, World},
    lab::{Lab, WHOLE},
};

/// No call that changes something was made for real.
#[track_caller]
fn assert_only_tried(cloud: &Cloud) {
    for call in cloud.take_calls() {
        let reads = call.action.starts_with("Describe") || call.action.starts_with("Get");
        assert!(reads || call.is_dry, "{call:?}");
    }
}

#[test]
fn plan_of_a_new_lab_names_everything_and_exits_10() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.set_topology(WHOLE);
    let ended = lab.labhost(&["--provider", "ec2", "--plan", "recipes/run.rhai"]).expect(10);
    for part in [
        "add      key pair lab",
        "add      security group lab-lb (2 rules)",
        "add      instance large-4 (t2.large)",
        "add      instance lb-1 (t2.large)",
        "there would be 9 instances with 14 vCPU",
        "0.56 dollars per hour",
        "1.13 dollars for 2h",
        "would upload worker on 8 hosts",
    ] {
        assert!(ended.text().contains(part), "{part:?} is not in\n{ended}");
    }
    assert_only_tried(&cloud);
    assert!(!lab.file("artifacts").exists(), "nothing is written");
}

#[test]
fn plan_without_changes_exits_0_and_one_with_changes_names_them() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    cloud.take_calls();
    let journal = lab.read("artifacts/journal.ndjson");
    lab.plan().expect(0).says("keep     instance app-2").says("keep     security group lab-lb");
    lab.set_topology(
        r#"#{ name: "app", type: "t2.small", count: 1, cluster: "cluster1" }, #{ name: "lb", type: "t2.large", count: 1, role: "balancer" }"#,
    );
    let words = ["--my-ip", "203.0.113.9", "--plan", "recipes/provision.rhai"];
    let ended = lab.labhost(&words).expect(10);
    for part in [
        "change   security group lab-lb: + port 22 from 203.0.113.9/32",
        "- port 22 from 198.51.100.7/32",
        "add      instance app-1 (t2.small)",
        "remove   instance app-1 (t2.micro",
        "remove   instance app-2 (t2.micro",
    ] {
        assert!(ended.text().contains(part), "{part:?} is not in\n{ended}");
    }
    assert_only_tried(&cloud);
    assert_eq!(journal, lab.read("artifacts/journal.ndjson"));
    lab.stop_clean(&cloud);
}

#[test]
fn plan_goes_on_where_a_teardown_stopped() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    cloud.with(|world| {
        let lb = world.groups.iter().find(|it| it.name.ends_with("-lab-lb")).unwrap().id.clone();
        world.groups.retain(|it| it.id != lb);
        world.groups.iter_mut().for_each(|it| it.rules.retain(|rule| !rule.source.ends_with(&lb)));
    });
    cloud.take_calls();
    lab.plan()
        .expect(10)
        .says("add      security group lab-lb")
        .says("change   security group lab-instances: + port 8000 from new lab-lb");
    assert_only_tried(&cloud);
    lab.stop_clean(&cloud);
}

/// The rule of the recipes by which workers give each other a program; a lab of an older version has none.
#[test]
fn plan_and_run_open_the_port_between_workers() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let port = labhost::ssh::COPY_PORT.to_string();
    let own = |world: &mut World| {
        let group = world.groups.iter_mut().find(|it| it.name.ends_with("-lab-instances")).unwrap();
        let source = format!("group {}", group.id);
        let before = group.rules.len();
        group.rules.retain(|rule| !(rule.from == port && rule.to == port && rule.source == source));
        before - group.rules.len()
    };
    assert_eq!(cloud.with(own), 1, "one port, to the group itself");
    cloud.take_calls();
    lab.plan().expect(10).says(&format!("change   security group lab-instances: + port {port} from sg-"));
    assert_only_tried(&cloud);
    lab.provision().expect(0);
    lab.plan().expect(0);
    assert_eq!(cloud.with(own), 1);
    lab.stop_clean(&cloud);
}

#[test]
fn plan_of_a_teardown_names_what_goes() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    cloud.take_calls();
    lab.labhost(&["--plan", "recipes/stop.rhai", "--confirm"]).expect(10).says("remove   security group sg-");
    assert_only_tried(&cloud);
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
    lab.labhost(&["--provider", "ec2", "--plan", "recipes/stop.rhai"]).expect(0);
}

#[test]
fn plan_finds_a_missing_permission() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    cloud.fail("RunInstances", "UnauthorizedOperation", 1);
    lab.plan().expect(4).says("UnauthorizedOperation");
    assert_only_tried(&cloud);
}
