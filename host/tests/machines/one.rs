//! One machine, from its user data to its own end.

use std::process::{Command, Output};

use crate::{
    fake::{Cloud, Life},
    isolate::isolated,
    lab::Lab,
    nspawn::Machines,
    wait_for,
};

/// In the balancer's group, whose port 80 is open.
const ONE: &str = r#"#{ name: "app", type: "t2.micro", count: 1, role: "balancer" },"#;

/// A worker on port 80, and a service that says what it is told.
const RECIPE: &str = r#"
import "provision" as provision;
let programs = build::programs(["worker"]);
let host = ec2::wait(provision::HOSTS)[0];
host.upload(programs.worker, "worker");
let web = host.service(#{
    name: "web",
    exec: "./worker --listen 0.0.0.0:80 --cluster cluster1 --instance-id {id}",
    ready: "/",
});
host.upload("bell.sh", "bell.sh");
host.upload("note.txt", "note.txt");
let bell = host.service(#{ name: "bell", exec: "/bin/sh bell.sh", files: ["bell.sh"], reload_files: ["note.txt"] });
ui::info(`changed: web ${web.changed}, bell ${bell.changed}`);
"#;

const BELL: &str = "\
trap 'echo reads $(cat note.txt)' HUP
trap 'echo ends; exit 0' TERM
echo begins with $(cat note.txt)
while :; do sleep 0.1; done
";

struct One {
    cloud: Cloud,
    lab: Lab,
}

impl One {
    fn new() -> Self {
        let cloud = Cloud::on(Box::new(Machines::new()));
        let lab = Lab::on_machines(&cloud, &Machines::caller());
        lab.set_topology(ONE);
        lab.write("recipes/one.rhai", RECIPE);
        lab.write("bell.sh", BELL);
        lab.write("note.txt", "one\n");
        Self { cloud, lab }
    }

    #[track_caller]
    fn run(&self) -> String {
        self.lab.labhost(&["--provider", "ec2", "recipes/one.rhai"]).expect(0).text()
    }

    /// OpenSSH's client with labhost's configuration and nothing else.
    fn ssh(&self, line: &str) -> Output {
        Command::new("ssh")
            .arg("-F")
            .arg(self.lab.file("artifacts/ssh_config"))
            .args(["-o", "BatchMode=yes", "app-1", line])
            .output()
            .expect("ssh starts")
    }

    #[track_caller]
    fn says(&self, line: &str) -> String {
        let output = self.ssh(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn life(&self) -> Life {
        self.cloud.living();
        self.cloud.with(|world| world.machines.last().unwrap().life)
    }

    fn id(&self) -> String {
        self.cloud.with(|world| world.machines.last().unwrap().id.clone())
    }

    /// The process of a service.
    #[track_caller]
    fn pid(&self, service: &str) -> String {
        self.says(&format!("systemctl show --property=MainPID --value labhost-{service}"))
    }

    #[track_caller]
    fn deadline(&self) -> u64 {
        self.says("cat /etc/labhost/expires").parse().unwrap()
    }

    /// Whether the worker answers at the instance's public address.
    fn answers(&self) -> bool {
        let address = self.lab.instances()[0].public_ip.unwrap();
        let mut command = Command::new("curl");
        command.args(["--silent", "--fail", "--max-time", "2"]).arg(format!("http://{address}/cluster1"));
        let output = command.output().expect("curl starts");
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains(&self.id())
    }
}

#[test]
fn user_data_services_and_deadline_work_on_a_real_system() {
    isolated("one::user_data_services_and_deadline_work_on_a_real_system", || {
        let one = One::new();
        first_login(&one);
        services(&one);
        reboot(&one);
        end_at_its_time(&one);
        one.lab.stop_clean(&one.cloud);
    });
}

/// Strictly with the host key of the user data, which labhost then replaces.
fn first_login(one: &One) {
    one.lab.provision().expect(0);
    let user_data = one.cloud.living()[0].user_data.clone();
    let brought = user_data.lines().find_map(|line| line.strip_prefix("  ed25519_public: ")).unwrap();
    let read = "sudo cat /etc/ssh/ssh_host_ed25519_key.pub";
    wait_for("the first login", || one.ssh("true").status.success().then_some(()));
    assert!(brought.starts_with(&one.says(read)), "the machine has the key that it was given");
    unguarded(one);
    assert!(one.run().contains("changed: web true, bell true"));
    assert_eq!(one.says("systemctl is-active labhost-ttl.timer"), "active");
    let own = one.says(read);
    assert!(!brought.starts_with(&own), "it was replaced");
    let known = one.lab.read("artifacts/known_hosts");
    assert!(known.lines().count() == 1 && known.contains(&own), "{known}");
}

/// A machine that would never end by itself is refused, and one whose timer can be started has it started.
fn unguarded(one: &One) {
    let (unit, away) = ("/etc/systemd/system/labhost-ttl.timer", "/root/labhost-ttl.timer");
    one.says(&format!("sudo sh -c 'systemctl stop labhost-ttl.timer; mv {unit} {away}'"));
    let refused = one.lab.labhost(&["--provider", "ec2", "recipes/one.rhai"]).expect(5);
    refused.says(&one.id()).says("would never end by itself").says("labhost-ttl.timer is not active");
    assert_eq!(one.life(), Life::Running);
    one.says(&format!("sudo mv {away} {unit}"));
}

fn services(one: &One) {
    assert!(one.answers(), "port 80 answers");
    let pid = one.pid("web");
    let status = one.says(&format!("cat /proc/{pid}/status"));
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let uid: u32 = field("Uid:").parse().unwrap();
    assert!((61184..=65519).contains(&uid), "a dynamic user, not {uid}");
    // Bit 10 is CAP_NET_BIND_SERVICE.
    assert_eq!(
        (field("CapEff:").as_str(), field("CapBnd:").as_str()),
        ("0000000000000400", "0000000000000400")
    );
    assert_eq!(field("NoNewPrivs:"), "1");

    assert!(one.run().contains("changed: web false, bell false"));
    assert_eq!(one.pid("web"), pid, "it was left alone");
    let bell = one.pid("bell");
    one.lab.write("note.txt", "two\n");
    assert!(one.run().contains("changed: web false, bell true"));
    assert_eq!(one.pid("bell"), bell, "it was only told to read again");
    let said = || one.lab.labhost(&["logs", "app-1", "bell"]).expect(0).stdout;
    wait_for("the reload", || said().contains("reads two").then_some(()));
    assert!(said().contains("begins with one"));

    one.says(&format!("sudo kill -KILL {pid}"));
    wait_for("a new process", || (one.answers() && one.pid("web") != pid).then_some(()));
    let status: serde_json::Value = serde_json::from_str(&one.says("labhost-service status web")).unwrap();
    assert_eq!(
        (status["state"].as_str(), status["restarts"].as_u64()),
        (Some("running"), Some(1)),
        "{status}"
    );
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(status["since_s"].as_u64().unwrap().abs_diff(now_s) < 600, "{status}");

    let stopped: serde_json::Value = serde_json::from_str(&one.says("labhost-service stop bell")).unwrap();
    assert_eq!(stopped["state"], "stopped", "{stopped}");
    assert!(said().contains("ends"), "it could end in peace");
    assert!(one.run().contains("changed: web false, bell true"), "a stopped one is started");
    one.lab.write("bell.sh", &format!("{BELL}# another\n"));
    assert!(one.run().contains("changed: web false, bell true"));
    assert_eq!(one.says("labhost-service remove bell"), r#"{"removed":"bell"}"#);
    assert!(!one.ssh("systemctl cat labhost-bell").status.success());
}

/// Services come back by themselves, and the host key stays.
fn reboot(one: &One) {
    let boot = "cat /proc/sys/kernel/random/boot_id; systemctl show --property=UserspaceTimestampMonotonic";
    let before = one.says(boot);
    one.ssh("sudo systemctl reboot");
    let known = one.lab.read("artifacts/known_hosts");
    wait_for("the reboot", || {
        let output = one.ssh(boot);
        (output.status.success() && String::from_utf8_lossy(&output.stdout).trim() != before).then_some(())
    });
    wait_for("the worker after the reboot", || one.answers().then_some(()));
    assert_eq!(one.lab.read("artifacts/known_hosts"), known);
    assert!(one.run().contains("changed: web false, bell true"));
}

/// The timer powers the machine off, which terminates the instance.
fn end_at_its_time(one: &One) {
    let before = one.deadline();
    one.lab.labhost(&["extend", "3h"]).expect(0);
    let after = one.deadline();
    assert!((before + 1800..before + 5400).contains(&after), "two hours became three: {before}, {after}");
    let tags = one.cloud.living()[0].tags.clone();
    assert_eq!(tags["labhost:expires"], after.to_string(), "the tag says the same");
    one.lab.labhost(&["extend", "1s"]).expect(0);
    wait_for("its end", || (one.life() == Life::Terminated).then_some(()));
    let reason = one.cloud.with(|world| world.machines.last().unwrap().reason.clone());
    assert!(reason.contains("Instance initiated shutdown"), "{reason}");
}

#[test]
fn deadline_holds_over_a_stop_and_a_start() {
    isolated("one::deadline_holds_over_a_stop_and_a_start", || {
        let one = One::new();
        one.run();
        let (id, deadline) = (one.id(), one.deadline());
        let before = one.lab.instances()[0].public_ip;
        one.cloud.stop_instance(&id);
        wait_for("the stop", || (one.life() == Life::Stopped).then_some(()));
        let text = one.run();
        assert!(text.contains("which were stopped") && text.contains("1 kept"), "{text}");
        assert_ne!(one.lab.instances()[0].public_ip, before, "it has another address, as on EC2");
        assert!(one.answers() && one.deadline() == deadline);

        // Its time passes while it is stopped; then it ends soon after its start.
        one.lab.labhost(&["extend", "15s"]).expect(0);
        one.cloud.stop_instance(&id);
        wait_for("the second stop", || (one.life() == Life::Stopped).then_some(()));
        let over = one.cloud.with(|world| world.machines[0].tags["labhost:expires"].parse::<u64>().unwrap());
        let now_s = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        wait_for("its time", || (now_s() > over).then_some(()));
        one.cloud.start_instance(&id);
        wait_for("its end", || (one.life() == Life::Terminated).then_some(()));
        one.lab.stop_clean(&one.cloud);
    });
}
