//! The local provider as its users meet it: through the library, the real agent process and OpenSSH's client.
//!
//! Every lab is removed when its test ends, however it ends.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, SystemTime},
};

use labhost::provider::{Instance, Launch, Provider, State, epoch_s, local::Local};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command, time::Instant};

/// Nothing here takes longer unless it hangs; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

struct Lab {
    directory: tempfile::TempDir,
    local: Local,
}

impl Lab {
    /// A started lab with a login key, in a path with blanks that is longer than a socket's may be.
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let local =
            Local::new(&state_in(directory.path()), Path::new(env!("CARGO_BIN_EXE_labhost"))).unwrap();
        let lab = Self { directory, local };
        lab.make_key("key");
        lab.local.start().await.unwrap();
        let public_key = fs::read_to_string(lab.file("key.pub")).unwrap();
        lab.local.ensure_key("lab", &public_key).await.unwrap();
        lab
    }

    /// A started lab with one instance.
    async fn with_instance() -> (Self, Instance) {
        let lab = Self::start().await;
        let instance = lab.launch(&[1]).await.remove(0);
        (lab, instance)
    }

    fn make_key(&self, name: &str) {
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(self.file(name))
            .status()
            .expect("ssh-keygen must be installed (apt-get install openssh-client)");
        assert!(made.success());
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn state(&self) -> PathBuf {
        state_in(self.directory.path())
    }

    fn home(&self, instance: &Instance) -> PathBuf {
        self.state().join("local").join(&instance.id).join("root")
    }

    async fn launch(&self, slots: &[u32]) -> Vec<Instance> {
        self.local.launch(&launch(&format!("token-{slots:?}"), slots)).await.unwrap()
    }

    /// OpenSSH's client with the host key pinned, `options` before the destination and `line` to run.
    fn ssh(&self, instance: &Instance, options: &[&str], line: &str) -> Command {
        let address = instance.public_ip.unwrap();
        let known_hosts = self.file(&format!("known_hosts-{}", instance.id));
        fs::write(&known_hosts, format!("[{address}]:{} {}\n", instance.ssh_port, instance.host_key))
            .unwrap();
        let mut command = Command::new("ssh");
        command.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]);
        command.args(["-o", "GlobalKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"]);
        command.arg("-o").arg(format!("UserKnownHostsFile={}", known_hosts.display()));
        if !options.contains(&"-i") {
            command.arg("-i").arg(self.file("key"));
        }
        command.args(options).arg("-p").arg(instance.ssh_port.to_string());
        command.arg(format!("{}@{address}", instance.user));
        if !line.is_empty() {
            command.arg(line);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn run(&self, instance: &Instance, line: &str) -> Output {
        within(self.ssh(instance, &[], line).output()).await.unwrap()
    }

    /// Runs a command that must succeed, and returns what it printed.
    async fn ok(&self, instance: &Instance, line: &str) -> String {
        let output = self.run(instance, line).await;
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn run_with_input(&self, instance: &Instance, line: &str, input: &[u8]) -> Output {
        let mut child = self.ssh(instance, &[], line).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let write = async move {
            // A command may end without reading everything.
            let _ = stdin.write_all(input).await;
        };
        within(async { tokio::join!(write, child.wait_with_output()).1 }).await.unwrap()
    }

    async fn apply(&self, instance: &Instance, name: &str, definition: Value) -> Value {
        let line = format!("labhost-service apply {name}");
        let output = self.run_with_input(instance, &line, definition.to_string().as_bytes()).await;
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn status(&self, instance: &Instance, name: &str) -> Value {
        let text = self.ok(instance, &format!("labhost-service status {name}")).await;
        serde_json::from_str(&text).unwrap()
    }

    async fn wait_for_state(&self, instance: &Instance, name: &str, state: &str) -> Value {
        until(&format!("{name} is {state}"), async || self.status(instance, name).await["state"] == state)
            .await;
        self.status(instance, name).await
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let end = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(self.local.destroy(false))
        };
        let left = std::thread::scope(|scope| scope.spawn(end).join()).unwrap();
        if !std::thread::panicking() {
            assert_eq!(left.unwrap(), Vec::<String>::new());
        }
    }
}

fn state_in(directory: &Path) -> PathBuf {
    directory.join("a folder's name").join("x".repeat(100)).join("artifacts")
}

fn launch(token: &str, slots: &[u32]) -> Launch {
    Launch {
        token: token.to_owned(),
        fleet: "app".to_owned(),
        instance_type: "t2.micro".to_owned(),
        slots: slots.to_vec(),
        cluster: Some("cluster1".to_owned()),
        role: None,
        key: "lab".to_owned(),
        group: None,
        image: None,
        tags: BTreeMap::new(),
        expires_at_s: now_s() + 3600,
    }
}

fn now_s() -> u64 {
    epoch_s(SystemTime::now())
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process exists and is no zombie.
fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn signal(name: &str, pid: u64) {
    let sent = std::process::Command::new("/bin/kill").args([name, &pid.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()));
}

fn kill(pid: u64) {
    signal("-KILL", pid);
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[tokio::test]
async fn a_command_runs_in_its_instance() {
    let (lab, instance) = Lab::with_instance().await;
    assert_eq!(instance.state, State::Running);
    let output = lab.run(&instance, "echo out; echo err >&2; exit 7").await;
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    let line = "echo $INSTANCE_ID $CLUSTER_NAME $LABHOST_EMULATE; pwd; echo $HOME; umask";
    let home = lab.home(&instance);
    let expected = format!("{} cluster1 t2.micro\n{1}\n{1}\n0077\n", instance.id, home.display());
    assert_eq!(lab.ok(&instance, line).await, expected);
    let environment = lab.ok(&instance, "env").await;
    assert!(!environment.contains("CARGO"), "{environment}");
    assert_eq!(lab.run(&instance, "kill -TERM $$").await.status.code(), Some(128 + 15));
}

#[tokio::test]
async fn input_arrives_whole_and_its_end_ends_only_the_input() {
    let (lab, instance) = Lab::with_instance().await;
    let scramble = |index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8;
    let bytes: Vec<u8> = (0..20_000_000).map(scramble).collect();
    let output = lab.run_with_input(&instance, "cat > file && wc -c < file && cat file", &bytes).await;
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(output.stdout.starts_with(b"20000000\n"));
    assert!(output.stdout[9..] == bytes);
    // Both directions at once: the command waits to be read from while its input piles up.
    let output = lab.run_with_input(&instance, "sleep 0.2; cat", &bytes).await;
    assert!(output.stdout == bytes);
    let output = lab.run_with_input(&instance, "read line; echo got $line; cat; echo end", b"one\n").await;
    assert_eq!(output.stdout, b"got one\nend\n");
    assert_eq!(lab.run_with_input(&instance, "exit 4", &bytes).await.status.code(), Some(4));
}

#[tokio::test]
async fn eight_commands_share_a_connection_with_one_that_does_not_read() {
    let (lab, instance) = Lab::with_instance().await;
    let control = format!("-oControlPath={}", lab.file("control").display());
    let options = [control.as_str(), "-oControlMaster=no"];
    let _master = lab.ssh(&instance, &[&control, "-oControlMaster=yes", "-N"], "").spawn().unwrap();
    until("the connection is there", async || lab.file("control").exists()).await;
    let mut deaf = lab.ssh(&instance, &options, "sleep 1000").stdin(Stdio::piped()).spawn().unwrap();
    let mut input = deaf.stdin.take().unwrap();
    within(input.write_all(&vec![b'x'; 10_000_000])).await.unwrap();
    let line =
        |number| format!("touch ready-{number}; while [ ! -e go ]; do sleep 0.01; done; echo {number}");
    let running: Vec<_> =
        (0..8).map(|number| lab.ssh(&instance, &options, &line(number)).spawn().unwrap()).collect();
    let home = lab.home(&instance);
    let is_ready = |number| home.join(format!("ready-{number}")).exists();
    until("all eight run at once", async || (0..8).all(is_ready)).await;
    fs::write(home.join("go"), "").unwrap();
    for (number, child) in running.into_iter().enumerate() {
        let output = within(child.wait_with_output()).await.unwrap();
        assert_eq!(output.stdout, format!("{number}\n").as_bytes());
    }
}

#[tokio::test]
async fn strangers_are_refused() {
    let (lab, instance) = Lab::with_instance().await;
    lab.make_key("other");
    let other = lab.file("other").display().to_string();
    let output = within(lab.ssh(&instance, &["-i", &other], "true").output()).await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied (publickey)"), "{output:?}");
    let root = Instance { user: "root".to_owned(), ..instance.clone() };
    assert_eq!(lab.run(&root, "true").await.status.code(), Some(255));
    let wrong = Instance {
        host_key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPgmNc8kBk4mxSxZNAQvDs2OVYxjtyJgm8hXUzZRB5pb"
            .to_owned(),
        ..instance.clone()
    };
    let output = lab.run(&wrong, "true").await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("Host key verification failed"), "{output:?}");
}

#[tokio::test]
async fn forwarding_is_refused() {
    let (lab, instance) = Lab::with_instance().await;
    let options = ["-oExitOnForwardFailure=yes", "-R", "127.0.0.1:0:127.0.0.1:9", "-N"];
    let output = within(lab.ssh(&instance, &options, "").output()).await.unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("forwarding failed"), "{output:?}");
    let address = format!("{}:2222", instance.public_ip.unwrap());
    let output = within(lab.ssh(&instance, &["-W", &address], "").output()).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("administratively prohibited"), "{output:?}");
}

#[tokio::test]
async fn what_others_must_not_read_is_private() {
    let (lab, instance) = Lab::with_instance().await;
    let socket = PathBuf::from(lab.ok(&instance, "echo $LABHOST_AGENT").await.trim());
    let home = lab.state().join("local").join(&instance.id);
    let runtime = socket.parent().unwrap().to_owned();
    for (path, mode) in [
        (runtime, 0o700),
        (socket, 0o600),
        (lab.state().join("local"), 0o700),
        (home.clone(), 0o700),
        (home.join("host_key"), 0o600),
        (home.join("root"), 0o700),
    ] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[tokio::test]
async fn a_terminal_is_one() {
    let (lab, instance) = Lab::with_instance().await;
    let command = lab.ssh(&instance, &["-tt"], "tty && stty size && echo $TERM").output();
    let output = within(command).await.unwrap();
    assert!(output.stdout.starts_with(b"/dev/pts/") && output.status.success(), "{output:?}");
    let mut shell = lab.ssh(&instance, &["-tt"], "").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = shell.stdin.take().unwrap();
    stdin.write_all(b"echo $((6*7)); exit 3\n").await.unwrap();
    let output = within(shell.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("42\r\n"), "{output:?}");
}

#[tokio::test]
async fn a_command_ends_when_its_client_goes() {
    let (lab, instance) = Lab::with_instance().await;
    let file = lab.home(&instance).join("pid");
    let line = "trap '' HUP; echo $$ > pid.tmp; mv pid.tmp pid; sleep 1000; sleep 1000";
    let mut client = lab.ssh(&instance, &[], line).spawn().unwrap();
    until("the command runs", async || file.exists()).await;
    let pid = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    assert!(is_alive(pid));
    client.kill().await.unwrap();
    until("the command ends", async || !is_alive(pid)).await;
}

#[tokio::test]
async fn a_repeated_launch_makes_nothing_new() {
    let lab = Lab::start().await;
    let asked = launch("once", &[1, 2]);
    let first = lab.local.launch(&asked).await.unwrap();
    let later = Launch { expires_at_s: asked.expires_at_s + 9, ..asked };
    assert_eq!(lab.local.launch(&later).await.unwrap(), first);
    assert_eq!(lab.local.list().await.unwrap(), first);
    let error = lab.local.launch(&launch("once", &[3])).await.unwrap_err();
    assert!(error.message.contains("another launch"), "{error}");
    let wrong = Launch { instance_type: "t2.larg".to_owned(), ..launch("wrong", &[1]) };
    let error = lab.local.launch(&wrong).await.unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("did you mean `t2.large`?"));
    lab.local.terminate(&[first[0].id.clone(), "i-unknown".to_owned()]).await.unwrap();
    assert_eq!(lab.local.list().await.unwrap(), first[1..]);
    assert_eq!(lab.launch(&[9]).await[0].public_ip, first[0].public_ip);
}

#[tokio::test]
async fn a_launch_cut_short_leaves_all_instances_or_none() {
    let lab = Lab::start().await;
    for round in 0..4 {
        let before = lab.local.list().await.unwrap().len();
        let agent = lab.local.agent_pid().await.unwrap().into();
        let asked = launch(&format!("round-{round}"), &(1..=20).collect::<Vec<_>>());
        let cut = async {
            for _ in 0..round * 20 {
                tokio::task::yield_now().await;
            }
            kill(agent);
        };
        let _ = tokio::join!(lab.local.launch(&asked), cut);
        lab.local.start().await.unwrap();
        let after = lab.local.list().await.unwrap();
        assert!([before, before + 20].contains(&after.len()), "{before} {}", after.len());
        let again = lab.local.launch(&asked).await.unwrap();
        let all = lab.local.list().await.unwrap();
        assert_eq!((all.len(), again.len()), (before + 20, 20));
        let names = fs::read_dir(lab.state().join("local")).unwrap().flatten().map(|it| it.file_name());
        assert_eq!(names.filter(|it| it.to_string_lossy().starts_with("i-")).count(), all.len());
        lab.ok(&again[19], "true").await;
    }
}

#[tokio::test]
async fn a_taken_port_is_a_clear_error_and_leaves_nothing() {
    let (lab, first) = Lab::with_instance().await;
    let next = std::net::Ipv4Addr::from(u32::from(first.public_ip.unwrap()) + 1);
    let _squatter = std::net::TcpListener::bind((next, first.ssh_port)).unwrap();
    let error = lab.local.launch(&launch("squat", &[2])).await.unwrap_err();
    assert!(error.message.contains(&format!("{next}:2222")), "{error}");
    assert_eq!(lab.local.list().await.unwrap().len(), 1);
    let names = fs::read_dir(lab.state().join("local")).unwrap().flatten().map(|it| it.file_name());
    assert_eq!(names.filter(|it| it.to_string_lossy().starts_with("i-")).count(), 1);
}

#[tokio::test]
async fn a_service_follows_its_definition() {
    let (lab, instance) = Lab::with_instance().await;
    let script = "#!/bin/sh\ntrap 'echo reloaded' HUP\necho started $WHO\nwhile :; do sleep 0.01; done\n";
    lab.run_with_input(&instance, "cat > loop && chmod 700 loop", script.as_bytes()).await;
    let definition = |hash| json!({ "exec": "./loop", "env": { "WHO": "me" }, "hash": hash });
    let first = lab.apply(&instance, "loop", definition("1")).await;
    assert_eq!((&first["changed"], &first["service"]["state"]), (&json!(true), &json!("running")));
    let again = lab.apply(&instance, "loop", definition("1")).await;
    assert_eq!((&again["changed"], &again["service"]["pid"]), (&json!(false), &first["service"]["pid"]));
    let changed = lab.apply(&instance, "loop", definition("2")).await;
    assert_eq!(changed["changed"], true);
    assert_ne!(changed["service"]["pid"], first["service"]["pid"]);
    assert!(!is_alive(number(&first["service"]["pid"])));
    until("both starts are logged", async || {
        lab.ok(&instance, "labhost-service logs loop").await.matches("started me").count() == 2
    })
    .await;
    lab.ok(&instance, "labhost-service reload loop").await;
    until("the reload is logged", async || {
        lab.ok(&instance, "labhost-service logs loop -n 1").await == "reloaded\n"
    })
    .await;
}

#[tokio::test]
async fn a_service_is_started_stopped_and_removed() {
    let (lab, instance) = Lab::with_instance().await;
    let applied = lab.apply(&instance, "web", json!({ "exec": "sleep 1000" })).await;
    kill(number(&applied["service"]["pid"]));
    until("it is started again", async || {
        let status = lab.status(&instance, "web").await;
        status["state"] == "running" && status["restarts"] == 1 && status["exit_status"] == 137
    })
    .await;
    lab.ok(&instance, "labhost-service stop web").await;
    let status = lab.status(&instance, "web").await;
    assert_eq!((&status["state"], &status["pid"]), (&json!("stopped"), &Value::Null));
    lab.ok(&instance, "labhost-service start web").await;
    lab.ok(&instance, "labhost-service restart web").await;
    let all: Value = serde_json::from_str(&lab.ok(&instance, "labhost-service status").await).unwrap();
    assert_eq!(all.as_array().map(Vec::len), Some(1));
    assert_eq!(lab.ok(&instance, "labhost-service remove web").await, "{\"removed\":\"web\"}\n");
    lab.ok(&instance, "labhost-service remove web").await;
    assert_eq!(lab.run(&instance, "labhost-service status web").await.status.code(), Some(1));
    assert!(!is_alive(number(&all[0]["pid"])));
}

#[tokio::test]
async fn a_service_that_cannot_run_is_given_up_with_its_log() {
    let (lab, instance) = Lab::with_instance().await;
    lab.apply(&instance, "broken", json!({ "exec": "./missing" })).await;
    let status = lab.wait_for_state(&instance, "broken", "failed").await;
    assert_eq!((&status["exit_status"], &status["restarts"]), (&json!(127), &json!(4)));
    assert!(lab.ok(&instance, "labhost-service logs broken -n 1").await.contains("missing"));
    lab.apply(&instance, "job", json!({ "exec": "echo done", "restart": "no" })).await;
    lab.wait_for_state(&instance, "job", "stopped").await;
    assert_eq!(lab.ok(&instance, "labhost-service logs job").await, "done\n");
    for (line, code) in [("start ../x", 2), ("start nothing", 1), ("apply web < /dev/null", 2), ("", 2)] {
        let output = lab.run(&instance, &format!("labhost-service {line}")).await;
        assert_eq!(output.status.code(), Some(code), "{line}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[tokio::test]
async fn a_log_is_followed() {
    let (lab, instance) = Lab::with_instance().await;
    lab.apply(&instance, "web", json!({ "exec": "sh -c 'echo one; while [ ! -e go ]; do sleep 0.01; done; echo two'", "restart": "no" })).await;
    let mut follower = lab.ssh(&instance, &[], "labhost-service logs web -f").spawn().unwrap();
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(follower.stdout.take().unwrap()));
    assert_eq!(within(lines.next_line()).await.unwrap().unwrap(), "one");
    fs::write(lab.home(&instance).join("go"), "").unwrap();
    assert_eq!(within(lines.next_line()).await.unwrap().unwrap(), "two");
}

#[tokio::test]
async fn a_killed_agent_is_a_power_cut() {
    let lab = Lab::start().await;
    let before = lab.launch(&[1, 2]).await;
    let line = "sh -c 'setsid sleep 1000 & echo $! > escaped.tmp; mv escaped.tmp escaped; wait'";
    let applied = lab.apply(&before[0], "web", json!({ "exec": line })).await;
    let service = number(&applied["service"]["pid"]);
    let file = lab.home(&before[0]).join("escaped");
    until("the service has started another process", async || file.exists()).await;
    let escaped = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    kill(lab.local.agent_pid().await.unwrap().into());
    until("the service dies with the agent", async || !is_alive(service)).await;
    assert_eq!(lab.local.agent_pid().await, None);
    let stopped = lab.local.list().await.unwrap();
    assert_eq!(stopped.len(), 2);
    assert!(stopped.iter().all(|instance| instance.state == State::Stopped));
    lab.local.start().await.unwrap();
    assert!(!is_alive(escaped));
    assert_eq!(lab.local.list().await.unwrap(), before);
    let status = lab.wait_for_state(&before[0], "web", "running").await;
    assert_ne!(number(&status["pid"]), service);
    assert_eq!(lab.ok(&before[1], "echo $INSTANCE_ID").await.trim(), before[1].id);
}

#[tokio::test]
async fn an_agent_whose_socket_was_cleaned_away_comes_back() {
    let (lab, instance) = Lab::with_instance().await;
    let agent = lab.local.agent_pid().await;
    let socket = PathBuf::from(lab.ok(&instance, "echo $LABHOST_AGENT").await.trim());
    fs::remove_dir_all(socket.parent().unwrap()).unwrap();
    until("the agent answers again", async || lab.local.agent_pid().await == agent).await;
    assert_eq!(lab.local.list().await.unwrap(), [instance]);
}

#[tokio::test]
async fn a_running_agent_finds_its_state_gone_and_goes_on() {
    let (lab, _) = Lab::with_instance().await;
    fs::remove_dir_all(lab.state()).unwrap();
    lab.local.start().await.unwrap();
    assert_eq!(lab.local.list().await.unwrap(), []);
    let instance = &lab.launch(&[7]).await[0];
    let applied = lab.apply(instance, "web", json!({ "exec": "sleep 1000" })).await;
    assert_eq!(applied["changed"], true);
}

#[tokio::test]
async fn an_agent_told_to_end_keeps_the_instances() {
    let (lab, instance) = Lab::with_instance().await;
    let applied = lab.apply(&instance, "web", json!({ "exec": "sleep 1000" })).await;
    let agent = lab.local.agent_pid().await.unwrap().into();
    signal("-TERM", agent);
    until("the agent ends", async || !is_alive(agent)).await;
    assert!(!is_alive(number(&applied["service"]["pid"])));
    lab.local.start().await.unwrap();
    assert_eq!(lab.local.list().await.unwrap(), [instance]);
}

#[tokio::test]
async fn a_lab_ends_when_its_time_is_over() {
    let (lab, instance) = Lab::with_instance().await;
    let applied = lab.apply(&instance, "web", json!({ "exec": "sleep 1000" })).await;
    let later = now_s() + 7200;
    lab.local.extend(later).await.unwrap();
    assert_eq!(lab.local.list().await.unwrap()[0].expires_at_s, later);
    lab.local.extend(now_s()).await.unwrap();
    until("nothing remains", async || lab.local.remains().await.unwrap().is_empty()).await;
    assert!(!is_alive(number(&applied["service"]["pid"])));
    assert!(!lab.state().join("local").exists());
}

/// Damages a lab that has an instance with a service, destroys it, and looks whether anything is left.
async fn destroyed_after(damage: impl AsyncFnOnce(&Lab)) {
    let (lab, instance) = Lab::with_instance().await;
    let applied = lab.apply(&instance, "web", json!({ "exec": "sleep 1000" })).await;
    let agent = lab.local.agent_pid().await.unwrap();
    assert!(lab.local.remains().await.unwrap().len() >= 4);
    damage(&lab).await;
    assert_eq!(lab.local.destroy(true).await.unwrap(), Vec::<String>::new());
    assert_eq!(lab.local.remains().await.unwrap(), Vec::<String>::new());
    assert!(!is_alive(number(&applied["service"]["pid"])) && !is_alive(agent.into()));
    assert!(!lab.state().join("local").exists());
    assert_eq!(lab.local.destroy(true).await.unwrap(), Vec::<String>::new());
    assert_eq!(lab.local.list().await.unwrap(), []);
}

#[tokio::test]
async fn destroy_removes_what_was_made_and_nothing_else() {
    let lab = Lab::start().await;
    lab.launch(&[1]).await;
    fs::write(lab.state().join("bench-1.json"), "{}").unwrap();
    assert_eq!(lab.local.destroy(false).await.unwrap(), Vec::<String>::new());
    assert_eq!(fs::read_dir(lab.state()).unwrap().count(), 1);
    destroyed_after(async |_| ()).await;
}

#[tokio::test]
async fn destroy_works_with_the_agent_dead() {
    destroyed_after(async |lab| kill(lab.local.agent_pid().await.unwrap().into())).await;
}

#[tokio::test]
async fn destroy_works_with_the_agent_wedged() {
    destroyed_after(async |lab| signal("-STOP", lab.local.agent_pid().await.unwrap().into())).await;
}

#[tokio::test]
async fn destroy_works_with_the_state_gone() {
    destroyed_after(async |lab| fs::remove_dir_all(lab.state()).unwrap()).await;
}

#[tokio::test]
async fn destroy_works_with_the_agent_dead_and_the_state_gone() {
    destroyed_after(async |lab| {
        kill(lab.local.agent_pid().await.unwrap().into());
        fs::remove_dir_all(lab.state()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_instance_without_its_directory_is_terminated() {
    let lab = Lab::start().await;
    let instances = lab.launch(&[1, 2]).await;
    let applied = lab.apply(&instances[0], "web", json!({ "exec": "sleep 1000" })).await;
    fs::remove_dir_all(lab.state().join("local").join(&instances[0].id)).unwrap();
    assert_eq!(lab.local.list().await.unwrap(), instances[1..]);
    assert!(!is_alive(number(&applied["service"]["pid"])));
}

#[tokio::test]
async fn two_labs_do_not_collide() {
    let (one, two) = tokio::join!(Lab::start(), Lab::start());
    let (mine, theirs) = (one.launch(&[1]).await, two.launch(&[1]).await);
    assert_ne!(mine[0].public_ip, theirs[0].public_ip);
    assert_ne!(mine[0].host_key, theirs[0].host_key);
    drop(two);
    assert_eq!(one.local.list().await.unwrap(), mine);
    one.ok(&mine[0], "true").await;
}

#[tokio::test]
async fn with_ssh_stopped_nothing_gets_in() {
    let (lab, instance) = Lab::with_instance().await;
    let mut open = lab.ssh(&instance, &[], "echo in; cat").stdin(Stdio::piped()).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(open.stdout.take().unwrap()));
    assert_eq!(within(lines.next_line()).await.unwrap().unwrap(), "in");
    lab.local.set_ssh(false).await.unwrap();
    assert_eq!(within(open.wait()).await.unwrap().code(), Some(255));
    let output = lab.run(&instance, "true").await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("Connection refused"), "{output:?}");
    lab.local.set_ssh(true).await.unwrap();
    lab.ok(&instance, "true").await;
}

#[tokio::test]
async fn an_agent_that_cannot_start_is_reported() {
    let lab = Lab::start().await;
    lab.local.destroy(false).await.unwrap();
    let broken = Local::new(&lab.state(), Path::new("/bin/false")).unwrap();
    let error = broken.start().await.unwrap_err();
    assert!(error.message.contains("does not answer"), "{error}");
}
