//! Keys, groups and labs that meet others of the same name, in an account that several people share.

use crate::{fake::Cloud, lab::Lab};

#[test]
fn two_labs_do_not_meet() {
    let cloud = Cloud::start();
    let (one, other) = (Lab::new(&cloud), Lab::new(&cloud));
    one.provision().expect(0);
    other.provision().expect(0);
    assert_eq!(cloud.living().len(), 6);
    one.stop().expect(0);
    assert_eq!(cloud.living().len(), 3);
    assert_eq!(other.instances().len(), 3);
    other.stop_clean(&cloud);
}

#[test]
fn rules_follow_the_caller_to_another_network() {
    let cloud = Cloud::start();
    let mut lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let sources = |cloud: &Cloud| -> Vec<String> {
        let all = |world: &mut crate::fake::World| {
            world
                .groups
                .iter()
                .flat_map(|group| &group.rules)
                .map(|rule| format!("{} {}", rule.from, rule.source))
                .collect()
        };
        cloud.with(all)
    };
    let before = sources(&cloud);
    assert_eq!(before.iter().filter(|it| it.ends_with("cidr 198.51.100.7/32")).count(), 3, "{before:?}");
    assert!(before.iter().any(|it| it.starts_with("8000 group sg-")), "{before:?}");
    let follows = |lab: &mut Lab, words: &[&str], now: &str, was: &str| {
        lab.env.push(("LABHOST_MY_IP".to_owned(), now.to_owned()));
        lab.labhost(words).expect(0).says(&format!("this machine is now {now}, no longer {was}"));
        let after = sources(&cloud);
        assert_eq!(after.len(), before.len());
        let here = format!("cidr {now}/32");
        assert_eq!(after.iter().filter(|it| it.ends_with(&here)).count(), 3, "{after:?}");
    };
    follows(&mut lab, &["recipes/provision.rhai"], "203.0.113.9", "198.51.100.7");
    follows(&mut lab, &["ssh", "app-1", "true"], "203.0.113.10", "203.0.113.9");
    follows(&mut lab, &["extend", "3h"], "203.0.113.11", "203.0.113.10");
    lab.write("recipes/look.rhai", r#"ec2::list()[0].exec("true");"#);
    follows(&mut lab, &["recipes/look.rhai"], "203.0.113.13", "203.0.113.11");
    lab.stop_clean(&cloud);
}

#[test]
fn status_changes_nothing_also_from_another_network() {
    let cloud = Cloud::start();
    let mut lab = Lab::new(&cloud);
    lab.provision().expect(0);
    cloud.take_calls();
    lab.env.push(("LABHOST_MY_IP".to_owned(), "203.0.113.9".to_owned()));
    lab.labhost(&["status"]).expect(0).says("3 instances on ec2");
    let calls = cloud.take_calls();
    assert!(
        calls.iter().all(|it| it.action.starts_with("Describe") || it.action.starts_with("Get")),
        "{calls:?}"
    );
    // As where the groups let only another address in.
    cloud.set_ssh(false);
    lab.labhost(&["status"]).expect(0).says("no instance accepts a login").says("`labhost ssh HOST`");
    cloud.set_ssh(true);
    lab.stop_clean(&cloud);
}

#[test]
fn foreign_group_of_the_same_name_is_left_alone() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    cloud.add_foreign_group(&format!("labhost-{}-lab-lb", lab.tag()), None);
    lab.provision().expect(4).says("InvalidGroup.Duplicate").says("left alone");
    lab.stop_clean(&cloud);
}

#[test]
fn foreign_key_of_the_same_name_is_used_only_when_it_is_the_same() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    let name = format!("labhost-{}-lab", lab.tag());
    cloud.add_foreign_key(
        &name,
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPgmNc8kBk4mxSxZNAQvDs2OVYxjtyJgm8hXUzZRB5pb",
    );
    lab.provision().expect(4).says("InvalidKeyPair.Duplicate").says("left alone");
    let ours = cloud.public_half(&lab.file("artifacts/keys/lab"));
    cloud.with(|world| world.keys[0].public = ours);
    lab.provision().expect(0).says("exists already and is the same");
    lab.stop_clean(&cloud);
    assert_eq!(cloud.with(|world| world.keys.len()), 1, "it is not ours to remove");
}

#[test]
fn adopted_key_is_used_and_never_removed() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.make_key("labsuser.pem");
    let public = cloud.public_half(&lab.file("labsuser.pem"));
    cloud.add_foreign_key("vockey", &public);
    let bootstrap = lab.read("recipes/bootstrap.rhai");
    let adopted = bootstrap.replace(r#"#{ name: "lab" }"#, r#"#{ name: "vockey", adopt: "labsuser.pem" }"#);
    assert_ne!(bootstrap, adopted);
    lab.write("recipes/bootstrap.rhai", &adopted);
    lab.run().expect(0);
    lab.labhost(&["ssh", "app-1", "echo", "in"]).expect(0).says("in");
    lab.stop_clean(&cloud);
    assert_eq!(cloud.with(|world| world.keys[0].name.clone()), "vockey");
    lab.make_key("other.pem");
    lab.write("recipes/bootstrap.rhai", &adopted.replace("labsuser.pem", "other.pem"));
    lab.provision().expect(4).says("the given private key is not its own");
    lab.stop_clean(&cloud);
}

#[test]
fn lab_stays_with_its_provider() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    lab.labhost(&["--provider", "local", "recipes/provision.rhai"])
        .expect(2)
        .says("runs on ec2, not on local");
    lab.labhost(&["status"]).expect(0).says("3 instances on ec2");
    lab.labhost(&["recipes/stop.rhai", "--confirm"]).expect(0);
    assert_eq!(cloud.left(), Vec::<String>::new());
}

#[test]
fn local_lab_asks_aws_nothing() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.labhost(&["recipes/provision.rhai"]).expect(0);
    lab.labhost(&["recipes/stop.rhai", "--confirm"]).expect(0);
    lab.labhost(&["recipes/stop.rhai", "--confirm"]).expect(0).says("ec2 was not looked at");
    assert_eq!(cloud.take_calls(), []);
}

#[test]
fn missing_credentials_are_said_before_anything_is_done() {
    let cloud = Cloud::start();
    let mut lab = Lab::new(&cloud);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        lab.env.push((name.to_owned(), String::new()));
    }
    lab.provision().expect(4).says("AWS credentials").says("aws sso login");
    assert_eq!(cloud.take_calls(), []);
    // The folder is still free for another provider.
    lab.labhost(&["recipes/provision.rhai"]).expect(0);
    lab.labhost(&["recipes/stop.rhai", "--confirm"]).expect(0);
}
