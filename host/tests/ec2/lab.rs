//! A lab on the fake: labhost's own program, with the repository's recipes, in a folder of its own.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use labhost::instance::Instance;

use super::fake::Cloud;

/// Nothing here takes longer unless it hangs; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// One worker and the balancer.
pub(crate) const SMALL: &str = r#"
    #{ name: "app", type: "t2.micro", count: 2, cluster: "cluster1" },
    #{ name: "lb",  type: "t2.large", count: 1, role: "balancer" },"#;
/// The repository's own topology.
pub(crate) const WHOLE: &str = r#"
    #{ name: "large", type: "t2.large", count: 4, cluster: "cluster1" },
    #{ name: "micro", type: "t2.micro", count: 4, cluster: "cluster2" },
    #{ name: "lb",    type: "t2.large", count: 1, role: "balancer" },"#;

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Asserts that it was killed.
    #[track_caller]
    pub(crate) fn expect_killed(self) -> Self {
        assert_eq!(self.code, None, "{self}");
        self
    }

    /// Both streams.
    pub(crate) fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    #[track_caller]
    pub(crate) fn says(self, part: &str) -> Self {
        assert!(self.text().contains(part), "{part:?} is not in\n{self}");
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit {:?}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

/// A lab's folder.
pub(crate) struct Lab {
    folder: tempfile::TempDir,
    url: String,
    /// Further variables.
    pub(crate) env: Vec<(String, String)>,
}

impl Lab {
    /// The repository's recipes with a small topology, for a cloud of local instances; nothing runs yet.
    pub(crate) fn new(cloud: &Cloud) -> Self {
        let reach = [
            ("LABHOST_EC2_SSH_PORT", "2222"),
            ("LABHOST_EC2_HTTP_PORT", "8080"),
            ("LABHOST_EC2_USER", "lab"),
            ("LABHOST_EC2_PACE", "0.02"),
        ];
        Self::at(cloud.url(), &reach)
    }

    /// The same for a cloud of machines, which are reached as EC2's are, from the address `caller`.
    pub(crate) fn on_machines(cloud: &Cloud, caller: &str) -> Self {
        Self::at(cloud.url(), &[("LABHOST_EC2_PACE", "0.2"), ("LABHOST_MY_IP", caller)])
    }

    /// The same for any endpoint, with further variables.
    pub(crate) fn at(url: &str, env: &[(&str, &str)]) -> Self {
        let folder = tempfile::Builder::new().prefix("ec2lab-").tempdir().unwrap();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let lab = Self { folder, url: url.to_owned(), env };
        fs::create_dir(lab.file("recipes")).unwrap();
        for entry in fs::read_dir(workspace().join("recipes")).unwrap().flatten() {
            if entry.path().is_file() {
                fs::copy(entry.path(), lab.file("recipes").join(entry.file_name())).unwrap();
            }
        }
        lab.set_topology(SMALL);
        lab
    }

    pub(crate) fn set_topology(&self, fleets: &str) {
        let text = format!("export const FLEETS = [{fleets}\n];\nexport const WORK = \"1ms\";\n");
        self.write("recipes/topology.rhai", &text);
    }

    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        fs::write(self.file(path), text).unwrap();
    }

    #[track_caller]
    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.file(path)).unwrap_or_else(|cause| panic!("read {path}: {cause}"))
    }

    #[track_caller]
    pub(crate) fn instances(&self) -> Vec<Instance> {
        serde_json::from_str(&self.read("artifacts/instances.json")).unwrap()
    }

    /// The value of the lab's tag `labhost:lab`, as labhost says it at the start of a run.
    #[track_caller]
    pub(crate) fn tag(&self) -> String {
        let text = self.plan().text();
        let (_, rest) = text.split_once(", lab ").unwrap_or_else(|| panic!("no lab is named in {text}"));
        rest.chars().take_while(char::is_ascii_alphanumeric).collect()
    }

    /// Secrets of own host keys that are still in the provider's files.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let mut secrets = Vec::new();
        for entry in fs::read_dir(self.file("artifacts/ec2")).unwrap().flatten() {
            let value: serde_json::Value =
                serde_json::from_str(&fs::read_to_string(entry.path()).unwrap()).unwrap();
            let own = value["own"].as_array().cloned().unwrap_or_default();
            secrets.extend(own.iter().map(|key| key["secret"].as_str().unwrap().to_owned()));
        }
        secrets
    }

    /// Makes a login key in the lab's folder.
    pub(crate) fn make_key(&self, name: &str) {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(self.file(name));
        assert!(
            command
                .status()
                .expect("ssh-keygen must be installed (apt-get install openssh-client)")
                .success()
        );
    }

    /// Removes the lab's state, as a careless user does.
    pub(crate) fn lose_state(&self) {
        fs::remove_dir_all(self.file("artifacts")).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("LABHOST_") || name.starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command
            .args(words)
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .env("LABHOST_PROGRAMS", programs())
            .env("AWS_ENDPOINT_URL", &self.url)
            .env("AWS_ACCESS_KEY_ID", "AKIDTEST")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("LABHOST_MY_IP", "198.51.100.7");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs labhost with these words to its end.
    #[track_caller]
    pub(crate) fn labhost(&self, words: &[&str]) -> Ended {
        end(self.command(words))
    }

    #[track_caller]
    pub(crate) fn run(&self) -> Ended {
        self.labhost(&["--provider", "ec2", "recipes/run.rhai"])
    }

    /// Instances only: no programs, no services.
    #[track_caller]
    pub(crate) fn provision(&self) -> Ended {
        self.labhost(&["--provider", "ec2", "recipes/provision.rhai"])
    }

    /// As [`Lab::provision`], killed at a point such as `before:3` of the journal.
    #[track_caller]
    pub(crate) fn provision_killed(&self, point: &str) -> Ended {
        let mut command = self.command(&["--provider", "ec2", "recipes/provision.rhai"]);
        command.env("LABHOST_KILL_AT_JOURNAL_LINE", point);
        end(command)
    }

    #[track_caller]
    pub(crate) fn stop_killed(&self, point: &str) -> Ended {
        let mut command = self.command(&["recipes/stop.rhai", "--confirm"]);
        command.env("LABHOST_KILL_AT_JOURNAL_LINE", point);
        end(command)
    }

    /// As [`Lab::labhost`], with one more variable; `begun` is told the process as soon as it is there.
    #[track_caller]
    pub(crate) fn labhost_watched(
        &self,
        words: &[&str],
        env: Option<(&str, String)>,
        begun: impl FnOnce(rustix::process::Pid),
    ) -> Ended {
        let mut command = self.command(words);
        command.envs(env).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("labhost starts");
        begun(rustix::process::Pid::from_child(&child));
        finish(child, &command)
    }

    /// As [`Lab::provision`], with Ctrl-C as soon as `is_time`.
    #[track_caller]
    pub(crate) fn provision_interrupted_when(&self, is_time: impl Fn() -> bool) -> Ended {
        let mut command = self.command(&["--provider", "ec2", "recipes/provision.rhai"]);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let deadline = Instant::now() + PATIENCE;
        while !is_time() {
            assert!(Instant::now() < deadline, "it is never time for Ctrl-C");
            std::thread::sleep(Duration::from_millis(5));
        }
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        finish(child, &command)
    }

    #[track_caller]
    pub(crate) fn plan(&self) -> Ended {
        self.labhost(&["--provider", "ec2", "--plan", "recipes/provision.rhai"])
    }

    #[track_caller]
    pub(crate) fn stop(&self) -> Ended {
        self.labhost(&["--provider", "ec2", "recipes/stop.rhai", "--confirm"])
    }

    /// Stops, and asserts by the cloud's own ledger that nothing is left, here neither.
    #[track_caller]
    pub(crate) fn stop_clean(&self, cloud: &Cloud) {
        self.stop().expect(0);
        let sockets = labhost::identity::runtime_dir(&self.file("artifacts"));
        assert!(!sockets.exists(), "{} is left", sockets.display());
        assert_eq!(cloud.left(), Vec::<String>::new());
    }
}

/// The labhost under test; for figures, a build with optimisation may stand in.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("LABHOST_UNDER_TEST").map_or_else(|| env!("CARGO_BIN_EXE_labhost").into(), PathBuf::from)
}

#[track_caller]
fn end(mut command: Command) -> Ended {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    finish(child.expect("labhost starts"), &command)
}

#[track_caller]
fn finish(mut child: Child, command: &Command) -> Ended {
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |mut stream: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let (out, err) = (read(Box::new(out)), read(Box::new(err)));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} takes too long:\n{}\n{}", out.join().unwrap(), err.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ended { code: status.code(), stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("host/ lies in the workspace")
}

/// The folder with the worker and the balancer, built once for all tests.
pub(crate) fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let names = ["worker", "balancer"].map(str::to_owned);
        let built = runtime.block_on(labhost::programs::build(workspace(), &names)).unwrap();
        built[0].parent().expect("a program lies in a folder").to_owned()
    })
}
