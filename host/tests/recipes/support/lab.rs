//! A lab in a temporary folder with the repository's recipes.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use labhost::{identity::runtime_dir, instance::Instance, lab::journal::Record, provider::local::Local};
use rustix::process::Signal;

use super::{Ended, Found, Running, Watch, get, kill, processes, programs, until};

/// A fleet of one worker, as a line of the topology.
pub(crate) const WORKER: &str = r#"#{ name: "app", type: "t2.micro", count: 1, cluster: "cluster1" }"#;
/// The load balancer, as a line of the topology.
pub(crate) const BALANCER: &str = r#"#{ name: "lb", type: "t2.large", count: 1, role: "balancer" }"#;

/// A lab of its own. Dropped, it is removed with `stop`, and by force should that fail.
pub(crate) struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// The repository's recipes with a topology of one worker and one balancer; nothing runs yet.
    pub(crate) fn new() -> Self {
        let lab = Self { folder: tempfile::Builder::new().prefix("lab-").tempdir().unwrap() };
        copy_files(&programs::workspace().join("recipes"), &lab.file("recipes"));
        lab.set_topology(&[WORKER, BALANCER]);
        lab
    }

    /// As [`Lab::new`], up and running.
    #[track_caller]
    pub(crate) fn up() -> Self {
        let lab = Self::new();
        lab.run().expect(0);
        lab
    }

    /// A lab with one host, `app-1`, on which nothing runs.
    #[track_caller]
    pub(crate) fn with_host() -> Self {
        let lab = Self::new();
        lab.recipe("").expect(0);
        lab
    }

    /// Replaces the fleets of the topology, as a user edits them.
    pub(crate) fn set_topology(&self, fleets: &[&str]) {
        let text = format!(
            "export const FLEETS = [\n    {},\n];\nexport const WORK = \"1ms\";\n",
            fleets.join(",\n    ")
        );
        self.write("recipes/topology.rhai", &text);
    }

    /// Runs `text` as recipes/x.rhai, with the host `app-1` in `host`; its first line is line 2 of the file.
    #[track_caller]
    pub(crate) fn recipe(&self, text: &str) -> Ended {
        self.write_recipe(text);
        self.labhost(&["recipes/x.rhai"])
    }

    /// Writes what [`Lab::recipe`] runs.
    pub(crate) fn write_recipe(&self, text: &str) {
        let host = r#"ec2::key_pair(#{ name: "lab" }); let host = ec2::wait(ec2::instances(#{ name: "app", type: "t2.micro", count: 1 }))[0];"#;
        self.write("recipes/x.rhai", &format!("{host}\n{text}"));
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        fs::write(self.file(path), text).unwrap();
    }

    #[track_caller]
    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.file(path)).unwrap_or_else(|cause| panic!("read {path}: {cause}"))
    }

    /// A path in the lab's folder.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.file("artifacts")
    }

    /// `labhost WORDS`, in the lab's folder, with nothing of labhost's own variables but the programs, and without
    /// a way to AWS, whatever this machine's user has.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_labhost"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LABHOST_") || name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        for file in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
            command.env(file, "/dev/null");
        }
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
        command.args(words).current_dir(self.folder.path()).env("LABHOST_PROGRAMS", programs::folder());
        command
    }

    #[track_caller]
    pub(crate) fn labhost(&self, words: &[&str]) -> Ended {
        self.start(words).end()
    }

    pub(crate) fn start(&self, words: &[&str]) -> Running {
        Running::start(self.command(words))
    }

    /// Runs with `LABHOST_KILL_AT_JOURNAL_LINE`, for example `before:3`.
    #[track_caller]
    pub(crate) fn killed_at(&self, point: &str, words: &[&str]) -> Ended {
        let mut command = self.command(words);
        command.env("LABHOST_KILL_AT_JOURNAL_LINE", point);
        Running::start(command).end()
    }

    #[track_caller]
    pub(crate) fn run(&self) -> Ended {
        self.labhost(&["recipes/run.rhai"])
    }

    #[track_caller]
    pub(crate) fn stop(&self) -> Ended {
        self.labhost(&["recipes/stop.rhai", "--confirm"])
    }

    /// What artifacts/instances.json says.
    #[track_caller]
    pub(crate) fn instances(&self) -> Vec<Instance> {
        serde_json::from_str(&self.read("artifacts/instances.json")).unwrap()
    }

    /// Ids in the order of instances.json.
    #[track_caller]
    pub(crate) fn ids(&self) -> Vec<String> {
        self.instances().into_iter().map(|it| it.id).collect()
    }

    /// Names in the order of instances.json.
    #[track_caller]
    pub(crate) fn names(&self) -> Vec<String> {
        self.instances().into_iter().map(|it| it.name).collect()
    }

    /// The instance called `name`.
    #[track_caller]
    pub(crate) fn instance(&self, name: &str) -> Instance {
        let found = self.instances().into_iter().find(|it| it.name == name);
        found.unwrap_or_else(|| panic!("there is no instance {name}: {:?}", self.names()))
    }

    /// The directory that is the instance `name`.
    #[track_caller]
    pub(crate) fn home(&self, name: &str) -> PathBuf {
        self.artifacts().join("local").join(self.instance(name).id)
    }

    /// The URL of `path` at the lab's balancer, as lb.json says.
    #[track_caller]
    pub(crate) fn url(&self, path: &str) -> String {
        let view: serde_json::Value = serde_json::from_str(&self.read("artifacts/lb.json")).unwrap();
        format!("{}{path}", view["url"].as_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn journal(&self) -> Vec<Record> {
        let text = self.read("artifacts/journal.ndjson");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The steps that the journal has announced, oldest first.
    #[track_caller]
    pub(crate) fn steps(&self) -> Vec<String> {
        let intents =
            self.journal().into_iter().filter(|it| it.phase == labhost::lab::journal::Phase::Intent);
        intents.map(|it| it.step).collect()
    }

    /// The folder of the agent's socket and of SSH's.
    pub(crate) fn runtime(&self) -> PathBuf {
        runtime_dir(&self.folder.path().canonicalize().unwrap().join("artifacts"))
    }

    /// All processes that carry the lab's mark: the agent, services, commands, and what these started even when it
    /// has wiped its environment.
    pub(crate) fn processes(&self) -> Vec<Found> {
        let id = self.runtime().file_name().unwrap().to_string_lossy().into_owned();
        let mut found = processes(&Watch::Environment(format!("LABHOST_LAB={id}")));
        let local = self.folder.path().canonicalize().unwrap().join("artifacts/local");
        let holders = processes(&Watch::Descriptor(local.join("i-").display().to_string()));
        found.extend(holders.into_iter().filter(|it| it.pid != std::process::id()));
        found.sort_by_key(|it| it.pid);
        found.dedup();
        found
    }

    /// The agent's process, if one runs.
    pub(crate) fn agent(&self) -> Option<u32> {
        let is_agent = |it: &Found| it.command.contains(" agent --state ");
        self.processes().into_iter().find(is_agent).map(|it| it.pid)
    }

    /// Kills the agent with SIGKILL and waits until it is gone.
    #[track_caller]
    pub(crate) fn kill_agent(&self) {
        let agent = self.agent().expect("an agent runs");
        kill(agent, Signal::KILL);
        until("the agent is gone", || (self.agent() != Some(agent)).then_some(()));
    }

    /// The provider, as a test's own way to the agent.
    pub(crate) fn provider(&self) -> Local {
        Local::new(&self.artifacts(), Path::new(env!("CARGO_BIN_EXE_labhost"))).unwrap()
    }

    /// Asserts that every fleet has exactly `wished` (names such as `app-1`), each once and running.
    #[track_caller]
    pub(crate) fn assert_exactly(&self, wished: &[&str]) {
        let instances = self.instances();
        let names: BTreeSet<&str> = instances.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, wished.iter().copied().collect(), "{instances:?}");
        assert_eq!(instances.len(), wished.len(), "a slot is taken twice: {instances:?}");
        let homes = fs::read_dir(self.artifacts().join("local")).unwrap().flatten();
        let homes = homes.filter(|it| it.file_name().to_string_lossy().starts_with("i-"));
        assert_eq!(homes.count(), wished.len(), "directories without an instance");
    }

    /// Asserts that a request for this cluster is answered by one of its instances.
    #[track_caller]
    pub(crate) fn assert_serves(&self, cluster: &str) {
        let answer = get(&self.url(&format!("/{cluster}")));
        assert_eq!(answer.status, 200, "{answer:?}");
        let (told, id) = (answer.json()["cluster"].clone(), answer.json()["instance_id"].clone());
        assert_eq!(told, cluster);
        let is_it = |it: &Instance| it.cluster.as_deref() == Some(cluster) && id == it.id.as_str();
        assert!(self.instances().iter().any(is_it), "{answer:?} is of no instance of {cluster}");
    }

    /// Asserts that nothing of the lab is on this machine, benchmark results apart.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.processes(), [], "processes are left");
        assert!(!self.runtime().exists(), "{} is left", self.runtime().display());
        let left = fs::read_dir(self.artifacts()).into_iter().flatten().flatten();
        let left: Vec<_> = left.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
        assert!(left.iter().all(|name| name.starts_with("bench-")), "files are left: {left:?}");
        assert!(!left.is_empty() || !self.artifacts().exists(), "an empty folder is left");
        // A connection's `ssh` ends by itself when the server is gone.
        let ssh = Watch::Command(self.artifacts().display().to_string());
        until("no ssh of the lab is left", || processes(&ssh).is_empty().then_some(()));
    }
}

/// Copies a folder with all that is in it.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_files(&path, &copy);
        } else {
            fs::copy(path, copy).unwrap();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let recipe = programs::workspace().join("recipes/stop.rhai");
        let mut command = self.command(&[&recipe.display().to_string(), "--confirm"]);
        command.arg("--state").arg(self.artifacts());
        match Running::start(command).try_end() {
            Ok(ended) if ended.code == 0 => {}
            Ok(ended) => eprintln!("what is left is killed: {ended}"),
            Err(late) => eprintln!("what is left is killed: {late}"),
        }
        for process in self.processes() {
            kill(process.pid, Signal::KILL);
        }
        let _ = fs::remove_dir_all(self.runtime());
    }
}
