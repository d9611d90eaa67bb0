//! `stop`: everything of the lab and nothing else, however often and whatever was lost.

use crate::{
    fake::{Cloud, Life},
    lab::Lab,
};

#[test]
fn lost_state_does_not_matter() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    lab.lose_state();
    lab.stop_clean(&cloud);
}

#[test]
fn run_with_lost_state_replaces_what_nobody_can_log_in_to() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let before: Vec<_> = cloud.living().iter().map(|it| it.id.clone()).collect();
    lab.lose_state();
    lab.provision().expect(0).says("its private half was lost").says("host key was lost");
    let after: Vec<_> = cloud.living().iter().map(|it| it.id.clone()).collect();
    assert_eq!(after.len(), 3);
    assert!(after.iter().all(|id| !before.contains(id)), "{before:?} {after:?}");
    lab.stop_clean(&cloud);
}

/// Makes the endpoint deny one instance, and the lab lose patience soon. Returns its id.
fn forget_the_first(cloud: &Cloud, lab: &mut Lab) -> String {
    lab.env.push(("LABHOST_EC2_PACE".to_owned(), "0.003".to_owned()));
    cloud.with(|world| {
        world.machines[0].forgotten_calls = u32::MAX;
        world.machines[0].id.clone()
    })
}

#[test]
fn instance_that_aws_does_not_know_keeps_no_other_alive() {
    let cloud = Cloud::start();
    let mut lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let forgotten = forget_the_first(&cloud, &mut lab);
    lab.stop().expect(8).says(&format!("terminate {forgotten}: still there"));
    let living: Vec<_> = cloud.living().into_iter().map(|it| it.id).collect();
    assert_eq!(living, [forgotten], "the others are terminated");
    cloud.with(|world| world.machines[0].forgotten_calls = 0);
    lab.stop_clean(&cloud);
}

#[test]
fn instances_are_not_gone_because_aws_does_not_know_one_of_them() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.set_topology(r#"#{ name: "app", type: "t2.micro", count: 2, cluster: "cluster1" },"#);
    lab.provision().expect(0);
    cloud.faults().shutting_down_looks = 12;
    cloud.with(|world| {
        world.machines[0].forgotten_looks = 1;
        world.machines[1].forgotten_looks = 2;
    });
    lab.set_topology(r#"#{ name: "other", type: "t2.micro", count: 1, cluster: "cluster1" },"#);
    lab.labhost(&["--provider", "ec2", "--prune", "recipes/provision.rhai"]).expect(0).says("terminated");
    let lives = cloud.with(|world| world.machines.iter().take(2).map(|it| it.life).collect::<Vec<_>>());
    assert_eq!(lives, [Life::Terminated; 2], "all that are to go are waited for");
    lab.stop_clean(&cloud);
}

#[test]
fn instance_that_is_listed_late_is_removed_also_when_the_state_is_lost() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    // More looks than a teardown makes that does not look again.
    cloud.with(|world| world.machines.iter_mut().for_each(|it| it.hidden = 8));
    lab.lose_state();
    lab.stop_clean(&cloud);
}

#[test]
fn more_instances_are_removed_than_one_filter_can_name() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    let tag = lab.tag();
    // Nobody's but in the ledger: so many real ones would only take time.
    for number in 0..201 {
        cloud.add_foreign(&format!("i-many{number}"), &[("labhost:lab", &tag)]);
    }
    cloud.with(|world| world.machines.iter_mut().for_each(|it| drop(it.tags.remove("foreign"))));
    lab.stop_clean(&cloud);
}

#[test]
fn what_still_holds_a_group_is_named_and_waited_for() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    cloud.faults().lingering_interfaces = 4;
    lab.provision().expect(0);
    let ended = lab.stop().expect(0).says("is held by network interface eni-");
    assert!(ended.text().contains("at most"), "{ended}");
    assert_eq!(cloud.left(), Vec::<String>::new());
}

#[test]
fn group_that_stays_held_makes_the_teardown_incomplete() {
    let cloud = Cloud::start();
    let mut lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let id =
        cloud.with(|world| world.groups.iter().find(|it| it.name.ends_with("-lab-lb")).unwrap().id.clone());
    cloud.add_foreign_group("somebody", Some(&id));
    lab.env.push(("LABHOST_EC2_PACE".to_owned(), "0.003".to_owned()));
    lab.stop()
        .expect(8)
        .says(&format!("({id}) is held by a rule of security group sg-somebody"))
        .says("1 left");
    assert_eq!(cloud.left(), [format!("group labhost-{}-lab-lb", lab.tag())]);
    cloud.with(|world| world.groups.retain(|it| it.name != "somebody"));
    lab.stop_clean(&cloud);
}

#[test]
fn failure_on_the_way_hides_nothing_that_is_known_to_be_left() {
    let cloud = Cloud::start();
    let mut lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let forgotten = forget_the_first(&cloud, &mut lab);
    // The first look is for what is to be removed, the second for what is left.
    cloud.fail_later("DescribeTags", "UnauthorizedOperation", 1, 1);
    lab.stop().expect(8).says(&forgotten).says("look for what has the lab's tag").says("README lists");
    cloud.with(|world| world.machines[0].forgotten_calls = 0);
    lab.stop_clean(&cloud);
}

#[test]
fn rule_that_cannot_be_revoked_keeps_nothing_else() {
    let cloud = Cloud::start();
    let mut lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let id =
        cloud.with(|world| world.groups.iter().find(|it| it.name.ends_with("-lab-lb")).unwrap().id.clone());
    lab.env.push(("LABHOST_EC2_PACE".to_owned(), "0.003".to_owned()));
    cloud.fail("RevokeSecurityGroupIngress", "UnauthorizedOperation", 1);
    lab.stop().expect(8).says(&id).says("close security group lab-instances");
    assert_eq!(cloud.with(|world| world.keys.len()), 0, "the key pair is removed all the same");
    lab.stop_clean(&cloud);
}

#[test]
fn disk_that_was_left_behind_is_deleted_and_named_where_that_is_not_allowed() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let disk = cloud.with(|world| {
        world.machines[0].disk_stays = true;
        world.machines[0].volume.clone()
    });
    cloud.fail("DeleteVolume", "UnauthorizedOperation", 1);
    lab.stop().expect(8).says(&format!("delete disk {disk}")).says("README lists the permissions");
    assert_eq!(cloud.left(), [format!("volume {disk}")]);
    lab.stop_clean(&cloud);
}

#[test]
fn bootstrap_can_be_kept_and_used_again() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let groups =
        |cloud: &Cloud| cloud.with(|world| world.groups.iter().map(|it| it.id.clone()).collect::<Vec<_>>());
    let before = groups(&cloud);
    let ended =
        lab.labhost(&["--provider", "ec2", "recipes/stop.rhai", "--confirm", "--keep-bootstrap"]).expect(0);
    assert!(ended.text().contains("instance i-") && !ended.text().contains("\n  key pair"), "{ended}");
    assert_eq!(cloud.living().len(), 0);
    assert_eq!((groups(&cloud), cloud.with(|world| world.keys.len())), (before.clone(), 1));
    lab.provision().expect(0);
    assert_eq!(groups(&cloud), before);
    lab.stop_clean(&cloud);
}

#[test]
fn another_folders_lab_is_removed_by_its_tag() {
    let cloud = Cloud::start();
    let (gone, here) = (Lab::new(&cloud), Lab::new(&cloud));
    gone.provision().expect(0);
    here.provision().expect(0);
    let tag = gone.tag();
    drop(gone);
    here.labhost(&["recipes/stop.rhai", "--confirm", "--lab", &tag]).expect(0);
    assert_eq!(cloud.living().len(), 3, "this folder's own lab stays");
    assert!(cloud.living().iter().all(|it| it.tags["labhost:lab"] == here.tag()));
    here.stop_clean(&cloud);
}

#[test]
fn confirmation_is_needed_and_foreign_things_stay() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    cloud.add_foreign("i-foreign", &[("Name", "labhost-large")]);
    lab.provision().expect(0);
    lab.labhost(&["recipes/stop.rhai"])
        .expect(7)
        .says("instance i-")
        .says("key pair key-")
        .says("volume vol-");
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
    lab.stop().expect(0).says("nothing to do");
    let foreign = cloud.with(|world| world.machines.iter().find(|it| it.id == "i-foreign").unwrap().life);
    assert_eq!(foreign, Life::Running);
}

#[test]
fn instance_ended_by_hand_is_replaced() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    cloud.kill(&lab.instances()[0].id);
    lab.provision().expect(0).says("1 kept, 1 launched (app-1)");
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}
