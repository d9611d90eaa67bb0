//! `labhost-service` for systemd, run for real with a stand-in for systemctl: what it does with definitions, and what
//! it asks systemd for. That systemd then does it is proven elsewhere, on real machines.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

/// Writes down what it is asked, and remembers which unit is active.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >>"$STANDIN/calls"
verb=$1
for last; do :; done
case $verb in
start | restart) echo active >"$STANDIN/$last" ;;
is-active)
    [ "$(cat "$STANDIN/$last" 2>/dev/null)" = active ]
    exit
    ;;
enable)
    case $* in
    *--now*) [ -e "$STANDIN/broken" ] || echo active >"$STANDIN/$last" ;;
    esac
    ;;
stop | disable) echo inactive >"$STANDIN/$last" ;;
kill) [ ! -e "$STANDIN/takes-over" ] || cp "$STANDIN/takes-over" "$STANDIN/main" ;;
show)
    state=$(cat "$STANDIN/$last" 2>/dev/null || echo inactive)
    case $* in
    *MainPID\ --value*) cat "$STANDIN/main" 2>/dev/null || echo 99999999 ;;
    *--value*) echo "$state" ;;
    *) printf 'ActiveState=%s\nSubState=x\nMainPID=42\nExecMainStatus=0\nExecMainCode=0\nNRestarts=3\nStateChangeTimestamp=Tue 2023-11-14 22:13:20 UTC\n' "$state" ;;
    esac ;;
esac
"#;

/// A machine's folders, with the script and stand-ins in `bin`.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/provider/ec2/labhost-service.sh");
        // As user data brings it, without comments.
        let is_code = |line: &&str| !line.trim_start().starts_with("# ");
        let script = fs::read_to_string(source).unwrap();
        let mut script: String = script.lines().filter(is_code).flat_map(|line| [line, "\n"]).collect();
        for (from, to) in [
            ("/etc/labhost", "etc/labhost"),
            ("/etc/systemd/system", "etc/systemd"),
            ("/etc/ssh", "etc/ssh"),
            ("/usr/local/sbin", "sbin"),
            ("/var/lib", "var/lib"),
            ("@HOME@", "home"),
        ] {
            script = script.replace(from, machine.path(to).to_str().unwrap());
        }
        script = script.replace("@LOGIN@", "ubuntu").replace("$(id -u)", "0");
        for folder in ["bin", "etc/systemd", "etc/ssh", "home", "var/lib"] {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        machine.program("labhost-service", &script);
        machine.program("systemctl", SYSTEMCTL);
        machine.program("journalctl", "#!/bin/sh\necho \"journal $*\"\n");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, words: &[&str], input: &str) -> Output {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(self.path("bin/labhost-service"));
        command.args(words).env("PATH", path).env("STANDIN", self.folder.path());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that takes no input may have ended before it is written.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn ok(&self, words: &[&str], input: &str) -> Value {
        let output = self.run(words, input);
        assert!(output.status.success(), "{words:?}: {output:?}");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|cause| panic!("{words:?}: {cause}: {output:?}"))
    }

    #[track_caller]
    fn refused(&self, words: &[&str], input: &str, code: i32) -> String {
        let output = self.run(words, input);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// What systemctl was asked since the last time, apart from questions.
    fn asked(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.path("calls"));
        calls.lines().filter(|line| !line.starts_with("show")).map(str::to_owned).collect()
    }

    #[track_caller]
    fn apply(&self, definition: &Value) -> (bool, Vec<String>) {
        let answer = self.ok(&["apply", "web"], &definition.to_string());
        assert_eq!(answer["service"]["state"], "running", "{answer}");
        (answer["changed"].as_bool().unwrap(), self.asked())
    }
}

fn definition() -> Value {
    json!({ "exec": "./web --say 'it''s'", "env": { "A": "x 'y' $z" }, "hash": "h1", "reload_hash": "r1", "stop_timeout": "1m30s" })
}

#[test]
fn definitions_start_restart_reload_or_change_nothing() {
    let machine = Machine::new();
    let restart = [
        "daemon-reload",
        "reset-failed labhost-web.service",
        "enable --quiet labhost-web.service",
        "restart labhost-web.service",
    ];
    assert_eq!(machine.apply(&definition()), (true, restart.map(str::to_owned).to_vec()));
    assert_eq!(machine.apply(&definition()), (false, vec![]));
    let mut next = definition();
    next["reload_hash"] = json!("r2");
    assert_eq!(machine.apply(&next), (true, vec!["reload labhost-web.service".to_owned()]));
    next["hash"] = json!("h2");
    assert!(machine.apply(&next).1.contains(&"restart labhost-web.service".to_owned()));
    next["env"] = json!({ "A": "other" });
    assert!(machine.apply(&next).1.contains(&"restart labhost-web.service".to_owned()));
    machine.ok(&["stop", "web"], "");
    assert!(
        machine.apply(&next).1.contains(&"restart labhost-web.service".to_owned()),
        "a stopped one is started"
    );
}

#[test]
fn successor_takes_over_or_the_service_goes_on_as_it_was() {
    let machine = Machine::new();
    let replace = ["kill --signal=USR2 --kill-who=main labhost-web.service".to_owned()];
    let mut next = definition();
    next["handover"] = json!(true);
    machine.apply(&next);
    fs::write(machine.path("takes-over"), "99999998").unwrap();
    next["hash"] = json!("h2");
    assert_eq!(machine.apply(&next), (true, replace.to_vec()), "a new program");
    assert_eq!(machine.apply(&next), (false, vec![]));
    fs::write(machine.path("takes-over"), "99999997").unwrap();
    machine.ok(&["restart", "web"], "");
    assert!(machine.asked().contains(&replace[0]));

    // Its main process stays the same.
    next["hash"] = json!("h3");
    let said = machine.refused(&["apply", "web"], &next.to_string(), 1);
    assert!(said.contains("service web goes on as it was"), "{said}");
    assert_eq!(machine.asked(), replace);
    fs::write(machine.path("takes-over"), "99999996").unwrap();
    assert_eq!(machine.apply(&next), (true, replace.to_vec()), "it is tried again");

    // A running process starts its own command line again, and not another one.
    next["exec"] = json!("./web --other");
    assert!(machine.apply(&next).1.contains(&"restart labhost-web.service".to_owned()));
    machine.ok(&["stop", "web"], "");
    machine.asked();
    machine.ok(&["restart", "web"], "");
    assert!(machine.asked().contains(&"restart labhost-web.service".to_owned()), "nobody could hand over");
}

#[test]
fn interrupted_apply_is_done_again() {
    let machine = Machine::new();
    machine.apply(&definition());
    machine.program("systemctl", "#!/bin/sh\ncase $1 in restart) exit 1 ;; show) echo active ;; esac\n");
    let mut next = definition();
    next["hash"] = json!("h2");
    machine.refused(&["apply", "web"], &next.to_string(), 1);
    machine.program("systemctl", SYSTEMCTL);
    assert!(machine.apply(&next).0);
}

#[test]
fn unit_is_hardened_and_runs_the_command_unchanged() {
    let machine = Machine::new();
    machine.apply(&definition());
    let unit = fs::read_to_string(machine.path("etc/systemd/labhost-web.service")).unwrap();
    for line in [
        "DynamicUser=yes",
        "SupplementaryGroups=ubuntu",
        "AmbientCapabilities=CAP_NET_BIND_SERVICE",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "KillMode=control-group",
        "Restart=always",
        "TimeoutStopSec=1m30s",
        "LimitNOFILE=65536",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ] {
        assert!(unit.lines().any(|it| it == line), "{line} is not in\n{unit}");
    }
    // The script that the unit starts, with another program in place of the service.
    fs::write(machine.path("web"), "#!/bin/sh\nprintf '%s|%s|%s' \"$1\" \"$2\" \"$A\"\n").unwrap();
    fs::set_permissions(machine.path("web"), fs::Permissions::from_mode(0o755)).unwrap();
    let script = machine.path("etc/labhost/web.sh");
    let output = Command::new("/bin/sh").arg(script).current_dir(machine.folder.path()).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "--say|its|x 'y' $z",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn status_is_as_the_interface_says() {
    let machine = Machine::new();
    machine.apply(&definition());
    let status = machine.ok(&["status", "web"], "");
    let expected = json!({
        "name": "web", "state": "running", "pid": 42, "exit_status": null, "restarts": 3, "since_s": 1_700_000_000, "hash": "h1"
    });
    assert_eq!(status, expected);
    assert_eq!(machine.ok(&["status"], ""), json!([expected]));
    fs::write(machine.path("labhost-web.service"), "failed").unwrap();
    assert_eq!(machine.ok(&["status", "web"], "")["state"], "failed");
    fs::write(machine.path("labhost-web.service"), "activating").unwrap();
    assert_eq!(machine.ok(&["status", "web"], "")["state"], "starting");
    assert_eq!(machine.ok(&["remove", "web"], ""), json!({ "removed": "web" }));
    assert_eq!(machine.ok(&["status"], ""), json!([]));
    assert_eq!(machine.ok(&["remove", "web"], ""), json!({ "removed": "web" }), "none is no error");
}

#[test]
fn uploaded_files_appear_in_the_services_own_directory() {
    let machine = Machine::new();
    fs::create_dir_all(machine.path("var/lib/labhost/web")).unwrap();
    fs::write(machine.path("home/worker"), "program").unwrap();
    fs::write(machine.path("var/lib/labhost/web/own"), "its own").unwrap();
    fs::write(machine.path("home/own"), "another").unwrap();
    let linked = |machine: &Machine| machine.run(&["link", "web"], "").status.success();
    assert!(linked(&machine));
    let read = |name: &str| fs::read_to_string(machine.path("var/lib/labhost/web").join(name)).ok();
    assert_eq!(read("worker").as_deref(), Some("program"));
    assert_eq!(read("own").as_deref(), Some("its own"), "what the service wrote is not replaced");
    fs::remove_file(machine.path("home/worker")).unwrap();
    assert!(linked(&machine));
    assert!(fs::symlink_metadata(machine.path("var/lib/labhost/web/worker")).is_err(), "dead links go");
}

#[test]
fn host_key_and_deadline_are_replaced() {
    let machine = Machine::new();
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(machine.path("new"))
        .status()
        .expect("ssh-keygen must be installed (apt-get install openssh-client)");
    assert!(made.success());
    let secret = fs::read_to_string(machine.path("new")).unwrap();
    assert_eq!(machine.ok(&["host-key"], &secret), json!({}));
    let key = machine.path("etc/ssh/ssh_host_ed25519_key");
    assert_eq!(fs::read_to_string(&key).unwrap(), secret);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let public = fs::read_to_string(machine.path("etc/ssh/ssh_host_ed25519_key.pub")).unwrap();
    assert!(fs::read_to_string(machine.path("new.pub")).unwrap().starts_with(public.trim()));
    assert_eq!(machine.asked(), ["reload ssh"]);
    machine.refused(&["host-key"], "nonsense", 1);
    assert_eq!(fs::read_to_string(&key).unwrap(), secret, "a key that is none changes nothing");
    assert_eq!(machine.ok(&["expires", "1700000000"], ""), json!({}));
    assert_eq!(fs::read_to_string(machine.path("etc/labhost/expires")).unwrap(), "1700000000\n");
}

#[test]
fn guard_is_started_when_it_does_not_run_and_refused_when_it_cannot() {
    let machine = Machine::new();
    fs::create_dir_all(machine.path("sbin")).unwrap();
    let script = machine.path("sbin/labhost-ttl");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    machine.ok(&["expires", "1700000000"], "");

    fs::write(machine.path("broken"), "").unwrap();
    assert!(machine.refused(&["guard"], "", 1).contains("labhost-ttl.timer is not active"));
    fs::remove_file(machine.path("broken")).unwrap();
    machine.asked();
    let asked = ["daemon-reload", "enable --quiet --now labhost-ttl.timer"];
    assert_eq!(machine.ok(&["guard"], ""), json!({ "expires_at_s": 1_700_000_000 }));
    let calls = machine.asked();
    assert!(asked.iter().all(|call| calls.iter().any(|it| it == call)), "{calls:?}");
    machine.ok(&["guard"], "");
    assert!(
        machine.asked().iter().all(|call| call.starts_with("is-active")),
        "a guard that runs is left alone"
    );

    fs::write(machine.path("etc/labhost/expires"), "never\n").unwrap();
    assert!(machine.refused(&["guard"], "", 1).contains("is no deadline"));
    fs::remove_file(machine.path("etc/labhost/expires")).unwrap();
    assert!(machine.refused(&["guard"], "", 1).contains("there is no deadline"));
    machine.ok(&["expires", "1700000000"], "");
    fs::remove_file(&script).unwrap();
    assert!(machine.refused(&["guard"], "", 1).contains("labhost-ttl is not there"));
}

#[test]
fn wrong_command_lines_and_definitions_are_refused() {
    let machine = Machine::new();
    for words in [
        &[][..],
        &["start"],
        &["dance", "web"],
        &["start", "../web"],
        &["start", "-x"],
        &["start", "a", "b"],
        &["start", &"a".repeat(41)],
        &["expires", "soon"],
        &["host-key", "x"],
    ] {
        machine.refused(words, "", 2);
    }
    machine.refused(&["start", "none"], "", 1);
    for text in [
        "",
        "[]",
        "{",
        r#"{"exec": ""}"#,
        r#"{"exec": "x", "usr": 1}"#,
        r#"{"exec": "x", "restart": "maybe"}"#,
    ] {
        assert!(machine.refused(&["apply", "web"], text, 1).contains("apply service web"), "{text}");
    }
    machine.apply(&definition());
    let output = machine.run(&["logs", "web", "-n", "5", "-f"], "");
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        shown,
        "journal --unit=labhost-web.service --lines=5 --output=cat --no-pager --quiet --follow\n"
    );
    machine.refused(&["logs", "web", "-n"], "", 2);
    machine.refused(&["logs", "web", "--x"], "", 2);
}
