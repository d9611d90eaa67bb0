//! Host keys: brought by user data, insisted on, and replaced at the first login.

use crate::{fake::Cloud, lab::Lab};

/// The public key that user data brought to an instance.
fn brought(user_data: &str) -> String {
    let line = user_data.lines().find_map(|line| line.strip_prefix("  ed25519_public: "));
    line.unwrap().to_owned()
}

#[test]
fn host_key_is_replaced_at_the_first_login_and_then_alone_is_pinned() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let first: Vec<_> = cloud.living().iter().map(|it| brought(&it.user_data)).collect();
    let known = lab.read("artifacts/known_hosts");
    assert!(first.iter().all(|key| known.contains(key.as_str())), "before the first login both are pinned");
    assert_eq!(known.lines().count(), 6);
    lab.run().expect(0);
    let known = lab.read("artifacts/known_hosts");
    assert!(first.iter().all(|key| !known.contains(key.as_str())), "{known}");
    assert_eq!(known.lines().count(), 3);
    let mut keys: Vec<_> = known.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 3, "every instance has a key of its own");
    lab.labhost(&["ssh", "app-1", "echo", "in"]).expect(0).says("in");
    // A key that was never asked for again does not come back.
    lab.run().expect(0);
    assert_eq!(lab.read("artifacts/known_hosts"), known);
    for secret in lab.secrets() {
        assert!(secret.is_empty(), "the secrets of keys in place are forgotten");
    }
    lab.stop_clean(&cloud);
}

#[test]
fn other_host_key_is_refused() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    lab.make_key("intruder");
    let id = lab.instances()[0].id.clone();
    cloud.set_host_key(&id, &lab.read("intruder"));
    lab.run().expect(5).says("host key changed");
    lab.stop_clean(&cloud);
}

#[test]
fn login_interrupted_before_it_is_recorded_is_repeated() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let backup = lab.file("backup");
    copy(&lab.file("artifacts/ec2"), &backup);
    lab.run().expect(0);
    // As if labhost had been killed after the instances took their keys and before it wrote so.
    std::fs::remove_dir_all(lab.file("artifacts/ec2")).unwrap();
    std::fs::rename(&backup, lab.file("artifacts/ec2")).unwrap();
    lab.run().expect(0);
    assert_eq!(lab.read("artifacts/known_hosts").lines().count(), 3);
    lab.stop_clean(&cloud);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn instance_that_would_never_end_by_itself_is_named_at_the_first_login() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    let ids: Vec<_> = lab.instances().into_iter().map(|it| it.id).collect();
    let program = cloud.service_program();
    let real = program.with_extension("real");
    std::fs::rename(&program, &real).unwrap();
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != guard ] || {{ echo 'labhost-ttl.timer is not active' >&2; exit 1; }}\nexec {} \"$@\"\n",
        real.display()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::metadata(&real).unwrap().permissions()).unwrap();
    let ended = lab.run().expect(5).says("would never end by itself").says("labhost-ttl.timer is not active");
    assert!(ids.iter().any(|id| ended.text().contains(id.as_str())), "{ended}");
    assert_eq!(cloud.living().len(), 3, "nothing is terminated");
    // It is looked at again until it is so.
    lab.run().expect(5).says("would never end by itself");
    std::fs::rename(&real, &program).unwrap();
    lab.run().expect(0);
    lab.stop_clean(&cloud);
}

#[test]
fn user_data_and_tags_are_as_promised() {
    let cloud = Cloud::start();
    let lab = Lab::new(&cloud);
    lab.provision().expect(0);
    for it in cloud.living() {
        assert!(it.user_data.starts_with("#cloud-config\n") && it.user_data.contains("labhost-ttl.timer"));
        for key in [
            "Name",
            "labhost:lab",
            "labhost:fleet",
            "labhost:slots",
            "labhost:expires",
            "labhost:owner",
            "labhost:version",
        ] {
            assert!(it.tags.contains_key(key), "{key} is missing in {:?}", it.tags);
        }
    }
    let app: Vec<_> = cloud.living().into_iter().filter(|it| it.tags["labhost:fleet"] == "app").collect();
    assert_eq!(app[0].tags["Cluster"], "cluster1");
    assert_eq!(app[0].tags["labhost:owner"], "arn:aws:iam::123456789012:user/student");
    lab.stop_clean(&cloud);
}
