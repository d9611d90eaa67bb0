//! Runs a test's body in namespaces of its own: mounts, network, processes.
//!
//! The test starts itself again under `unshare`. What the body makes (machines, bridges, addresses, roots) exists only
//! in there and ends with it, also when it fails, hangs or is killed; only empty control groups must be removed.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// Set inside; holds the name of the control groups.
const INSIDE: &str = "LABHOST_MACHINES_INSIDE";
/// Set where machines must be possible: a test that cannot run fails.
const REQUIRED: &str = "LABHOST_MACHINES";
/// What is written inside lies here, in memory.
pub(crate) const FOLDER: &str = "/mnt";
/// Nine machines on two busy cores take a minute.
const PATIENCE: Duration = Duration::from_secs(480);
/// Making the root downloads and unpacks a hundred megabytes.
const ROOT_WITHIN: Duration = Duration::from_secs(600);
/// Programs that are needed, and Debian's packages that bring them.
const NEEDED: [(&str, &str); 7] = [
    ("systemd-nspawn", "systemd-container"),
    ("debootstrap", "debootstrap"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("unshare", "util-linux"),
    ("ssh", "openssh-client"),
    ("curl", "curl"),
];

/// Machines share two cores with whatever else runs: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Why no machines can be had here; `None` when they can.
pub(crate) fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("machines need root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    let missing: Vec<_> =
        NEEDED.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() { refused_namespace() } else { Some(format!("install {}", missing.join(", "))) }
}

/// In a container root may be without the right to make namespaces and mounts. Tried once.
fn refused_namespace() -> Option<String> {
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    let probe = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "/bin/sh", "-c"]);
        let tried = command.arg(format!("mount -t tmpfs tmpfs {FOLDER} && {MOUNT_GROUPS}")).output().ok()?;
        let said = String::from_utf8_lossy(&tried.stderr).trim().replace('\n', "; ");
        (!tried.status.success())
            .then(|| format!("namespaces are refused here ({said}); CAP_SYS_ADMIN is needed"))
    };
    REFUSED.get_or_init(probe).clone()
}

/// Whether the tests may be passed over when there is an obstacle.
pub(crate) fn are_machines_required() -> bool {
    std::env::var_os(REQUIRED).is_some_and(|value| value == "1")
}

/// Says at the terminal, past the test runner's capture.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Runs `body` inside, or says that it does not run. `name` is the test's own path in this program.
#[track_caller]
pub(crate) fn isolated(name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    if let Some(obstacle) = obstacle() {
        assert!(!are_machines_required(), "{obstacle}");
        return say(&format!("NOT RUN: {name}: {obstacle}"));
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    crate::lab::programs();
    make_root();
    let groups = Groups::new();
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"])
        .arg("--mount-proc")
        .arg(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env("TMPDIR", FOLDER)
        .env(INSIDE, &groups.name);
    finish(command.spawn().expect("unshare starts"), PATIENCE, name);
}

/// Where roots are kept between runs.
pub(crate) fn root() -> PathBuf {
    let suite = suite();
    Path::new("/var/cache/labhost-test").join(suite)
}

/// Debian's release; another one may be asked for.
fn suite() -> String {
    std::env::var("LABHOST_MACHINES_SUITE").unwrap_or_else(|_| "bookworm".to_owned())
}

#[track_caller]
fn make_root() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines/make-root.sh");
    let child = Command::new(script).arg(root()).arg(suite()).spawn().expect("the script starts");
    finish(child, ROOT_WITHIN, "make-root.sh");
}

#[track_caller]
fn finish(mut child: Child, within: Duration, what: &str) {
    let deadline = Instant::now() + within;
    let status = loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what} takes longer than {within:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{what}: {status}");
}

/// The control group of one test, with one group for each machine in it; machines that shared one would end each
/// other's services.
struct Groups {
    name: String,
}

impl Groups {
    fn new() -> Self {
        Self { name: format!("labhost-test-{}", std::process::id()) }
    }
}

impl Drop for Groups {
    /// Innermost first; processes that were just killed may hold them for a moment. Those of killed tests go too.
    fn drop(&mut self) {
        let script = format!(
            "{MOUNT_GROUPS} && cd /sys/fs/cgroup && for group in labhost-test-*; do
                 [ -e /proc/${{group##*-}} ] || find $group -depth -type d -exec rmdir {{}} + 2>/dev/null
             done
             for _ in $(seq 100); do
                 [ -d {name} ] || exit 0
                 find {name} -depth -type d -exec rmdir {{}} + 2>/dev/null || sleep 0.1
             done; [ ! -d {name} ]",
            name = self.name
        );
        let status = Command::new("unshare").args(["--mount", "/bin/sh", "-c", &script]).status();
        if !status.is_ok_and(|status| status.success()) {
            say(&format!("left behind: the control group {}", self.name));
        }
    }
}

/// Machines get control groups of version 2, as Ubuntu has them, also where this machine itself uses version 1:
/// there systemd does not learn that a group is empty and takes 90 s to shut down.
pub(crate) const MOUNT_GROUPS: &str = "mount -t cgroup2 cgroup2 /sys/fs/cgroup";

/// Makes a group for one machine; returns the file that takes in whoever writes 0 to it.
pub(crate) fn machine_group(machine: &str) -> PathBuf {
    let name = std::env::var(INSIDE).expect("machines run inside only");
    let folder = Path::new("/sys/fs/cgroup").join(name).join(machine);
    fs::create_dir_all(&folder).expect("a control group can be made");
    folder.join("cgroup.procs")
}
