//! A lab for one test, removed when the test ends, however it ends.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, SystemTime},
};

use labhost::instance::Instance;
use labhost::provider::{Launch, LoginKey, Provider, local::Local};
use labhost::units::epoch_s;
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, time::Instant};

/// Nothing here takes longer unless it hangs; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Lab {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) local: Local,
}

impl Lab {
    /// A started lab with a login key, in a path with blanks that is longer than a socket's may be.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let local =
            Local::new(&state_in(directory.path()), Path::new(env!("CARGO_BIN_EXE_labhost"))).unwrap();
        let lab = Self { directory, local };
        lab.make_key("key");
        lab.local.start().await.unwrap();
        let public_key = fs::read_to_string(lab.file("key.pub")).unwrap();
        let key = LoginKey { name: "lab".to_owned(), public: public_key, adopt: false };
        lab.local.ensure_key(&key).await.unwrap();
        lab
    }

    /// A started lab with one instance.
    pub(crate) async fn with_instance() -> (Self, Instance) {
        let lab = Self::start().await;
        let instance = lab.launch(&[1]).await.remove(0);
        (lab, instance)
    }

    pub(crate) fn make_key(&self, name: &str) {
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(self.file(name))
            .status()
            .expect("ssh-keygen must be installed (apt-get install openssh-client)");
        assert!(made.success());
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        state_in(self.directory.path())
    }

    pub(crate) fn home(&self, instance: &Instance) -> PathBuf {
        self.state().join("local").join(&instance.id).join("root")
    }

    pub(crate) async fn launch(&self, slots: &[u32]) -> Vec<Instance> {
        self.local.launch(&launch(&format!("token-{slots:?}"), slots)).await.unwrap()
    }

    /// OpenSSH's client with the host key pinned, `options` before the destination and `line` to run.
    pub(crate) fn ssh(&self, instance: &Instance, options: &[&str], line: &str) -> Command {
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

    pub(crate) async fn run(&self, instance: &Instance, line: &str) -> Output {
        within(self.ssh(instance, &[], line).output()).await.unwrap()
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub(crate) async fn ok(&self, instance: &Instance, line: &str) -> String {
        let output = self.run(instance, line).await;
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) async fn run_with_input(&self, instance: &Instance, line: &str, input: &[u8]) -> Output {
        let mut child = self.ssh(instance, &[], line).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let write = async move {
            // A command may end without reading everything.
            let _ = stdin.write_all(input).await;
        };
        within(async { tokio::join!(write, child.wait_with_output()).1 }).await.unwrap()
    }

    pub(crate) async fn apply(&self, instance: &Instance, name: &str, definition: Value) -> Value {
        let line = format!("labhost-service apply {name}");
        let output = self.run_with_input(instance, &line, definition.to_string().as_bytes()).await;
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) async fn status(&self, instance: &Instance, name: &str) -> Value {
        let text = self.ok(instance, &format!("labhost-service status {name}")).await;
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn wait_for_state(&self, instance: &Instance, name: &str, state: &str) -> Value {
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

pub(crate) fn state_in(directory: &Path) -> PathBuf {
    directory.join("a folder's name").join("x".repeat(100)).join("artifacts")
}

pub(crate) fn launch(token: &str, slots: &[u32]) -> Launch {
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

pub(crate) fn now_s() -> u64 {
    epoch_s(SystemTime::now())
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process exists and is no zombie.
pub(crate) fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

pub(crate) fn signal(name: &str, pid: u64) {
    let sent = std::process::Command::new("/bin/kill").args([name, &pid.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()));
}

pub(crate) fn kill(pid: u64) {
    signal("-KILL", pid);
}

pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))
}
