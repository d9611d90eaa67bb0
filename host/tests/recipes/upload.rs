//! An upload that fails leaves the old file or none, never a part of the new one, and can be repeated.

use std::{fs, path::Path};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::{Lab, Running};

const MIB: u64 = 1 << 20;

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The largest file that commands on the lab's hosts may write, which stands for a full disk.
fn limit_files(lab: &Lab, bytes: Option<u64>) {
    let agent = Pid::from_raw(lab.agent().expect("an agent runs").try_into().unwrap());
    prlimit(agent, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
}

#[test]
fn upload_that_does_not_fit_leaves_the_old_program() {
    let lab = Lab::with_host();
    let old = "#!/bin/sh\necho old\n";
    lab.write("old", old);
    lab.recipe("host.upload(\"old\", \"bin/tool\");").expect(0);
    fs::write(lab.file("new"), vec![b'x'; 3 * MIB as usize]).unwrap();

    limit_files(&lab, Some(MIB));
    let failed = lab.recipe("host.upload(\"new\", \"bin/tool\");").expect(5);
    failed
        .expect_says("upload new to app-1: larger than the host's file size limit")
        .expect_says("recipes/x.rhai:2:6");
    let folder = lab.home("app-1").join("root/bin");
    assert_eq!(names(&folder), ["tool"]);
    assert_eq!(fs::read_to_string(folder.join("tool")).unwrap(), old);

    limit_files(&lab, None);
    lab.recipe("host.upload(\"new\", \"bin/tool\");").expect(0).expect_says("1 changed");
    assert_eq!(names(&folder), ["tool"]);
    assert_eq!(fs::metadata(folder.join("tool")).unwrap().len(), 3 * MIB);
}

#[test]
fn first_upload_that_does_not_fit_leaves_nothing() {
    let lab = Lab::with_host();
    fs::write(lab.file("new"), vec![b'x'; 3 * MIB as usize]).unwrap();
    limit_files(&lab, Some(MIB));
    // Nothing is started from what has arrived.
    let text = "host.upload(\"new\", \"tool\"); host.service(#{ name: \"tool\", exec: \"./tool\" });";
    lab.recipe(text).expect(5);
    let home = lab.home("app-1");
    assert!(
        names(&home.join("root")).iter().all(|name| !name.contains("tool") && !name.starts_with(".labhost"))
    );
    assert!(!home.join("services/tool.json").exists());
}

#[test]
fn upload_to_an_impossible_place_is_refused() {
    let lab = Lab::with_host();
    lab.write("new", "new");
    lab.recipe("host.write(\"file\", \"text\");").expect(0);
    let root = lab.home("app-1").join("root");
    let before = names(&root);
    for (text, says) in [
        ("host.upload(\"new\", \"file/tool\");", "cannot create directory"),
        ("host.upload(\"new\", \"folder/\");", "names no file"),
        ("host.upload(\"new\", \".\");", "is a directory there"),
        ("host.upload(\"recipes\", \"x\");", "it is a directory"),
    ] {
        let ended = lab.recipe(text);
        assert!([1, 5].contains(&ended.code), "{ended}");
        ended.expect_says(says).expect_says("recipes/x.rhai:2:6");
    }
    assert_eq!(names(&root), before);
}

#[test]
fn file_comes_back_as_it_went() {
    let lab = Lab::with_host();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    fs::write(lab.file("a file"), &bytes).unwrap();
    let text = "let up = host.upload(\"a file\", \"sub folder/it's\"); print(up.changed);\n\
                print(host.upload(\"a file\", \"sub folder/it's\").changed);\n\
                host.download(\"sub folder/it's\", \"artifacts/back\");";
    let ended = lab.recipe(text).expect(0);
    assert_eq!(ended.stdout, "true\nfalse\n");
    assert_eq!(fs::read(lab.file("artifacts/back")).unwrap(), bytes);
    fs::remove_file(lab.file("artifacts/back")).unwrap();
}

#[test]
fn over_a_slow_uplink_a_program_is_sent_once() {
    let lab = Lab::new();
    let content: Vec<u8> = (0..3 * MIB as u32).map(|n| (n >> 7) as u8).collect();
    fs::write(lab.file("tool"), &content).unwrap();
    lab.write(
        "recipes/x.rhai",
        r#"ec2::key_pair(#{ name: "lab" });
        let hosts = ec2::wait(ec2::instances(#{ name: "app", type: "t2.micro", count: 3 }));
        print(hosts.upload("tool", "bin/tool").filter(|one| one.changed).len());"#,
    );
    let mut command = lab.command(&["recipes/x.rhai"]);
    // Each host would take 2.5 s, which is more than copying costs.
    command.env("LABHOST_LOCAL_UPLINK_MBIT", "10");
    let ended = Running::start(command).end().expect(0);
    assert_eq!(ended.stdout, "3\n");
    ended.expect_says("upload bin/tool: 3 changed (2 copied from app-");
    for name in ["app-1", "app-2", "app-3"] {
        let folder = lab.home(name).join("root/bin");
        assert_eq!(names(&folder), ["tool"]);
        assert!(fs::read(folder.join("tool")).unwrap() == content);
    }
    lab.labhost(&["recipes/x.rhai"]).expect(0).expect_says("upload bin/tool: 0 changed, 3 as it should be");
}
