//! Nothing goes round SSH: with a host's SSH server closed, every call on it fails, though its services go on.

use labhost::provider::local::Local;

use crate::support::Lab;

fn set_ssh(local: &Local, is_open: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(local.set_ssh(is_open)).unwrap();
}

/// Each call on a host of its own, all at the same time: connecting is tried for a while. Prints what each said, and
/// ends with the first failure.
const CALLS: &str = r#"
let calls = [
    |host| host.exec("touch reached"),
    |host| host.upload("recipes/x.rhai", "reached"),
    |host| host.download("reached", "artifacts/reached"),
    |host| host.write("reached", "text"),
    |host| host.service(#{ name: "web", exec: "sleep 60" }),
    |host| host.logs("web"),
    |host| host.wait_http("/", #{ timeout: "1s" }),
];
let failures = ec2::list().par(|host| {
    let failure = #{ kind: "none", message: `call ${host.slot} got through` };
    try { calls[host.slot - 1].call(host); } catch (e) { failure = e; }
    failure
});
for failure in failures { print(`${failure.kind}: ${failure.message}`); }
throw failures[0];
"#;

#[test]
fn every_call_fails_while_ssh_is_closed() {
    let lab = Lab::new();
    let fleet = "ec2::key_pair(#{ name: \"lab\" }); ec2::wait(ec2::instances(#{ name: \"app\", type: \"t2.micro\", count: 7 }));";
    lab.write("recipes/x.rhai", fleet);
    lab.labhost(&["recipes/x.rhai"]).expect(0);
    lab.write("recipes/y.rhai", CALLS);
    set_ssh(&lab.provider(), false);
    let ended = lab.labhost(&["recipes/y.rhai"]).expect(5);
    let said: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(said.len(), 7, "{ended}");
    for (slot, line) in (1..).zip(&said) {
        assert!(line.starts_with(&format!("host: connect to app-{slot} (")), "{ended}");
    }
    for instance in lab.instances() {
        let home = lab.artifacts().join("local").join(&instance.id);
        assert!(!home.join("root/reached").exists() && !home.join("services/web.json").exists());
    }
    assert!(!lab.file("artifacts/reached").exists());
    set_ssh(&lab.provider(), true);
    lab.write("recipes/y.rhai", "print(ec2::list().exec(\"echo open again\")[6].stdout);");
    lab.labhost(&["recipes/y.rhai"]).expect(0).expect_says("open again");
}
