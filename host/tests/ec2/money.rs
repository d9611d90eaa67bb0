//! What keeps a lab from costing more than it should.

use crate::{
    fake::Cloud,
    lab::{Lab, WHOLE},
};

#[test]
fn nine_instances_are_the_ceiling() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.set_topology(r#"#{ name: "app", type: "t2.micro", count: 10, cluster: "cluster1" }"#);
    lab.provision().expect(4).says("there would be 10, and the ceiling is 9");
    assert_eq!(cloud.living().len(), 0);
    lab.labhost(&["--provider", "ec2", "--max-instances", "10", "recipes/provision.rhai"]).expect(0);
    assert_eq!(cloud.living().len(), 10);
    lab.stop_clean(&cloud);
}

#[test]
fn instances_of_the_owners_other_labs_count() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    for number in 0..7 {
        let tags = [("labhost:owner", "me"), ("labhost:lab", "other"), ("labhost:expires", "99999999999")];
        cloud.add_foreign(&format!("i-other{number}"), &tags);
    }
    cloud.add_foreign("i-nobody", &[]);
    let words = ["--provider", "ec2", "--owner", "me", "recipes/provision.rhai"];
    lab.labhost(&words).expect(4).says("7 outside this lab there would be 10");
    lab.stop_clean(&cloud);
}

#[test]
fn learner_lab_is_held_to_nine_in_the_whole_account() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    cloud.set_arn("arn:aws:sts::123456789012:assumed-role/voclabs/user1=Test");
    for number in 0..8 {
        cloud.add_foreign(&format!("i-other{number}"), &[]);
    }
    let words = ["--provider", "ec2", "--max-instances", "30", "recipes/provision.rhai"];
    lab.labhost(&words).expect(4).says("a Learner Lab allows 9");
    lab.stop_clean(&cloud);
}

#[test]
fn full_learner_lab_changes_a_type_without_ever_having_ten_instances() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    cloud.set_arn("arn:aws:sts::123456789012:assumed-role/voclabs/user1=Test");
    lab.set_topology(WHOLE);
    lab.provision().expect(0);
    cloud.take_calls();
    lab.set_topology(&WHOLE.replace(r#""t2.large", count: 4"#, r#""t2.medium", count: 4"#));
    let planned = lab.plan().expect(10).says("no room for 4 new").says("there would be 9 instances");
    for part in ["remove   instance large-1 (t2.large", "add      instance large-4 (t2.medium)"] {
        assert_eq!(planned.text().matches(part).count(), 1, "{part:?} is not once in\n{planned}");
    }
    // What the account does not allow is not allowed by an option.
    let words = ["--provider", "ec2", "--max-instances", "13", "recipes/provision.rhai"];
    lab.labhost(&words).expect(0).says("no room for 4 new").says("4 launched");
    let acts: Vec<_> = cloud.take_calls().into_iter().filter(|it| !it.is_dry).map(|it| it.action).collect();
    let at = |action: &str| acts.iter().position(|it| it == action);
    assert!(at("TerminateInstances").is_some() && at("TerminateInstances") < at("RunInstances"), "{acts:?}");
    let types: Vec<_> = cloud.living().into_iter().map(|it| it.kind).collect();
    assert_eq!((types.len(), types.iter().filter(|it| *it == "t2.medium").count()), (9, 4));
    lab.stop_clean(&cloud);
}

#[test]
fn room_is_made_for_as_many_as_need_it() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let before: Vec<_> = lab.instances().into_iter().map(|it| it.id).collect();
    // Two of micro and a large one, of which the first two are to be small: there is room for one.
    let small = crate::lab::SMALL.replace("t2.micro", "t2.small");
    lab.set_topology(&small);
    let words = ["--provider", "ec2", "--max-instances", "4", "recipes/provision.rhai"];
    lab.labhost(&words).expect(0).says(&before[1]).says("app-1: i-").says("drained and terminated app-1");
    assert_eq!(cloud.living().len(), 3);
    // No room is made for what is too much anyway.
    lab.set_topology(&small.replace("t2.small\", count: 2", "t2.nano\", count: 4"));
    let words = ["--provider", "ec2", "--max-instances", "4", "recipes/provision.rhai"];
    lab.labhost(&words).expect(4).says("would be 5, and the ceiling is 4").says("--max-instances 5");
    assert_eq!(cloud.living().len(), 3);
    lab.stop_clean(&cloud);
}

#[test]
fn twenty_instances_are_not_launched_without_a_word() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    for number in 0..18 {
        cloud.add_foreign(&format!("i-other{number}"), &[("labhost:owner", "me")]);
    }
    let words = ["--provider", "ec2", "--owner", "me", "--max-instances", "30", "recipes/provision.rhai"];
    lab.labhost(&words).expect(0).says("with 20 or more is deactivated");
    lab.stop_clean(&cloud);
}

#[test]
fn hourly_limit_holds_and_unknown_prices_are_refused_under_it() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    let limited = ["--provider", "ec2", "--max-hourly", "0.05", "recipes/provision.rhai"];
    lab.labhost(&limited).expect(4).says("would cost 0.1").says("the limit is 0.05");
    lab.set_topology(r#"#{ name: "app", type: "m7i.large", count: 1, cluster: "cluster1" }"#);
    lab.stop_clean(&cloud);
    lab.labhost(&limited).expect(4).says("the price of m7i.large is unknown");
    assert_eq!(cloud.living().len(), 0);
    lab.stop_clean(&cloud);
}

#[test]
fn price_is_shown_by_status_and_in_the_recipe() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.set_topology(WHOLE);
    lab.provision().expect(0);
    lab.labhost(&["status"])
        .expect(0)
        .says("9 instances on ec2")
        .says("about 0.56 dollars per hour")
        .says("prices of");
    lab.write(
        "recipes/cost.rhai",
        "let c = ec2::cost(); ui::info(`${c.instances} ${c.usd_per_hour > 0.5} ${c.note}`);",
    );
    lab.labhost(&["recipes/cost.rhai"]).expect(0).says("9 true it costs about 0.56");
    lab.stop_clean(&cloud);
}

#[test]
fn expired_leftovers_of_the_owner_are_named() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    cloud.add_foreign(
        "i-old",
        &[("labhost:owner", "me"), ("labhost:lab", "abc"), ("labhost:expires", "1700000000")],
    );
    cloud.add_foreign(
        "i-his",
        &[("labhost:owner", "he"), ("labhost:lab", "def"), ("labhost:expires", "1700000000")],
    );
    let ended = lab.labhost(&["--provider", "ec2", "--owner", "me", "recipes/provision.rhai"]).expect(0);
    assert!(ended.text().contains("leftovers: i-old of lab abc"), "{ended}");
    assert!(!ended.text().contains("i-his"), "{ended}");
    lab.stop_clean(&cloud);
}

#[test]
fn extension_moves_the_tag_and_the_guard_on_every_instance() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let ends = || {
        cloud.living().iter().map(|it| it.tags["labhost:expires"].parse::<u64>().unwrap()).collect::<Vec<_>>()
    };
    let before = ends();
    lab.labhost(&["extend", "5h"]).expect(0).says("end by themselves in");
    assert!(ends().iter().zip(before).all(|(after, before)| *after > before + 10_000), "{:?}", ends());
    // On the fake the guard is the local agent's.
    assert!(cloud.guards().iter().all(|at| ends().contains(at)), "{:?} {:?}", cloud.guards(), ends());
    lab.stop_clean(&cloud);
}

#[test]
fn extension_reaches_an_instance_that_is_not_listed_yet() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    cloud.faults().hidden_looks = 3;
    let fleet =
        r#"#{ name: "app", type: "t2.micro", count: 3, cluster: "cluster1", group: "lab-instances" }"#;
    let recipe = format!(r#"import "bootstrap" as bootstrap; ec2::instances({fleet}); ec2::extend("5h");"#);
    lab.write("recipes/longer.rhai", &recipe);
    lab.labhost(&["recipes/longer.rhai"]).expect(0).says("1 launched (app-3)");
    let ends: Vec<_> = cloud.living().iter().map(|it| it.tags["labhost:expires"].clone()).collect();
    assert_eq!(ends.len(), 4);
    assert!(ends.iter().all(|at| *at == ends[0]), "all end together: {ends:?}");
    lab.stop_clean(&cloud);
}

#[test]
fn no_disk_outlives_its_instance_whatever_the_image_says() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    let recipe = lab.read("recipes/provision.rhai");
    lab.write("recipes/provision.rhai", &recipe.replace("ubuntu-22.04", "ami-0lasting"));
    lab.provision().expect(0);
    let living = cloud.living();
    assert!(living.iter().all(|it| it.image == "ami-0lasting"));
    // As at the end of their time, when no labhost is there to look.
    living.iter().for_each(|it| cloud.kill(&it.id));
    let left = cloud.left();
    assert!(left.iter().all(|it| !it.starts_with("volume")), "{left:?}");
    lab.stop_clean(&cloud);
}

#[test]
fn type_of_another_architecture_is_refused_before_launch() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.set_topology(r#"#{ name: "app", type: "t4g.micro", count: 1, cluster: "cluster1" }"#);
    lab.provision().expect(4).says("t4g.micro is not for x86_64").says("t2.micro");
    lab.set_topology(r#"#{ name: "app", type: "t2.mikro", count: 1, cluster: "cluster1" }"#);
    lab.provision().expect(1).says("did you mean `t2.micro`");
    lab.stop_clean(&cloud);
}
