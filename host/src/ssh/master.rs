//! The `ssh` master process of one host: started here, spoken to through `openssh`'s native-mux.
//!
//! It is started here rather than by `openssh::SessionBuilder` because that one leaves the process alone when
//! its future is dropped: a cancelled connect would leave an `ssh` waiting for a silent server.
//!
//! This module runs no commands on the host.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt},
    },
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tokio::{process, time::Instant};

use super::{config, keeper::Keeper};
use crate::{Error, Kind, error::Context, instance::Instance, units::Span};

/// A master that nobody is connected to ends by itself after this many seconds, should its keeper have failed.
/// While labhost lives it holds a connection to the master, so the time never begins.
const IDLE_MAX_S: u32 = 10;
/// Waits between attempts double from the first to the last: a local server answers within the first few, a
/// booting machine is not flooded. One attempt costs about 10 ms of CPU.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_millis(320);
/// Bytes that a socket's path may have on Linux (`sun_path` without its final NUL).
const SOCKET_PATH_MAX: usize = 107;
/// `/s-XXXXXX/master`, and the 17 characters that `ssh` appends while it creates the socket.
const SOCKET_NAME_LEN: usize = 16 + 17;
const DIRECTORY_PREFIX: &str = "s-";
/// A control directory without a socket that is older than this was left by a labhost that was killed; younger
/// ones may belong to a connect in progress, which takes seconds.
const STALE_AFTER: Duration = Duration::from_secs(600);

pub(crate) struct Master {
    pub(crate) mux: openssh::Session,
    pub(crate) keeper: Keeper,
}

/// Attempts until there is a login, the deadline has passed, or the failure is one that waiting does not cure.
pub(crate) async fn start(
    instance: &Instance,
    config: &Path,
    control_dir: &Path,
    deadline: Duration,
) -> Result<Master, Error> {
    prepare(control_dir)?;
    let end = Instant::now() + deadline;
    let mut wait = RETRY_FIRST;
    // An attempt that the deadline cuts off says less than one before it that came to an end.
    let mut failure = "no answer".to_owned();
    loop {
        match tokio::time::timeout_at(end, attempt(instance, config, control_dir)).await {
            Ok(Ok(master)) => return Ok(master),
            Ok(Err(Failure::Final(error))) => return Err(error),
            Ok(Err(Failure::Again(reason))) => failure = reason,
            Err(_) => {}
        }
        if Instant::now() + wait >= end {
            let operation = connect_to(instance);
            return Err(Error::host(format!("{operation}: {failure}, for {}", Span(deadline)))
                .with_hint("is the instance running? `labhost status` shows it; a later run tries again"));
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_LAST);
    }
}

pub(crate) fn connect_to(instance: &Instance) -> String {
    let address = instance.public_ip.map_or_else(|| "no address".to_owned(), |ip| ip.to_string());
    format!("connect to {} ({address}:{})", instance.name, instance.ssh_port)
}

enum Failure {
    Final(Error),
    /// The reason, in words that follow a colon.
    Again(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

async fn attempt(instance: &Instance, config: &Path, control_dir: &Path) -> Result<Master, Failure> {
    let directory = tempfile::Builder::new()
        .prefix(DIRECTORY_PREFIX)
        .tempdir_in(control_dir)
        .context(Kind::Internal, || format!("create a directory in {}", control_dir.display()))?;
    let status = command(instance, config, &directory).status().await.map_err(no_client)?;
    if !status.success() {
        let log = fs::read(directory.path().join("log")).unwrap_or_default();
        return Err(judge(instance, &String::from_utf8_lossy(&log)));
    }
    let keeper = Keeper::start(directory.path()).await;
    let mux = openssh::Session::new_native_mux(directory);
    let keeper = keeper.map_err(|error| Failure::Again(format!("the connection ended at once ({error})")))?;
    Ok(Master { mux, keeper })
}

/// `ssh -f` returns when it is logged in, and its child goes on in the background.
fn command(instance: &Instance, config: &Path, directory: &TempDir) -> process::Command {
    let mut command = process::Command::new("ssh");
    command
        .arg("-F")
        .arg(config)
        .arg("-E")
        .arg(directory.path().join("log"))
        .arg("-S")
        .arg(directory.path().join("master"))
        .args(["-M", "-f", "-N", "-o", "BatchMode=yes", "-o"])
        .arg(format!("ControlPersist={IDLE_MAX_S}s"))
        .arg(&instance.id)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}

fn no_client(error: std::io::Error) -> Failure {
    Failure::Final(
        Error::host(format!("start ssh: {error}"))
            .with_hint("labhost needs OpenSSH's client: apt-get install openssh-client"),
    )
}

/// What `ssh`'s log means. What is not known to be final is tried again: a booting machine fails in many ways.
fn judge(instance: &Instance, log: &str) -> Failure {
    let has = |text: &str| log.contains(text);
    let fails = |what: &str| Error::host(format!("{}: {what}", connect_to(instance))).with_detail(log);
    if has("HOST IDENTIFICATION HAS CHANGED")
        || has("Host key verification failed")
        || has("no matching host key")
    {
        return Failure::Final(key_changed(instance, log));
    }
    if has("Permission denied (") || has("Too many authentication failures") {
        let error = fails(&format!("the login key for user `{}` was refused", instance.user))
            .with_hint("the instance was launched with another key; `stop` it and run again");
        return Failure::Final(error);
    }
    if has("Bad configuration option")
        || has("bad configuration options")
        || has("Could not resolve hostname")
    {
        let error = fails("ssh_config has no usable entry for it");
        return Failure::Final(error.with_hint("run again: the file is written anew by each run"));
    }
    Failure::Again(reason(log))
}

fn key_changed(instance: &Instance, log: &str) -> Error {
    let expected = match config::fingerprint(instance) {
        Ok(fingerprint) => fingerprint,
        Err(error) => return error,
    };
    let shown = log.split_whitespace().find(|word| word.starts_with("SHA256:"));
    let found = shown.map_or("a key of another kind", |word| word.trim_end_matches('.'));
    let operation = connect_to(instance);
    Error::host(format!("{operation}: host key changed: expected {expected}, found {found}"))
        .with_hint(
            "another machine answers at this address, or the instance was made anew behind labhost's back; \
             nothing was sent to it. Terminate the instance and run again",
        )
        .with_detail(log)
}

/// The last line of the log without the parts that repeat what the message says already.
fn reason(log: &str) -> String {
    let last =
        log.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("ssh ended without a word");
    let line = last.strip_prefix("ssh: ").unwrap_or(last);
    match line.strip_prefix("connect to host ").and_then(|rest| rest.split_once(": ")) {
        Some((_, cause)) => cause.to_lowercase(),
        None => line.to_owned(),
    }
}

/// The directory must be ours alone, because who can reach a control socket can log in; and short.
fn prepare(control_dir: &Path) -> Result<(), Error> {
    let shown = control_dir.display();
    let name = AsRef::<OsStr>::as_ref(control_dir).as_bytes();
    if name.len() + SOCKET_NAME_LEN > SOCKET_PATH_MAX {
        let max = SOCKET_PATH_MAX - SOCKET_NAME_LEN;
        return Err(Error::internal(format!("control directory {shown}: longer than {max} bytes"))
            .with_hint("set TMPDIR or XDG_RUNTIME_DIR to a shorter path"));
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(control_dir).context(Kind::Internal, || format!("create {shown}"))?;
    let facts = fs::symlink_metadata(control_dir).context(Kind::Internal, || format!("look at {shown}"))?;
    let ours = facts.uid() == rustix::process::geteuid().as_raw();
    if !facts.is_dir() || !ours || facts.mode() & 0o077 != 0 {
        return Err(Error::internal(format!("control directory {shown}: others could use it"))
            .with_hint(format!("remove it, or make it yours with mode 0700: chmod 700 {shown}")));
    }
    sweep(control_dir);
    Ok(())
}

/// Removes what killed labhosts left; failures do not matter, the next connect tries again.
fn sweep(control_dir: &Path) {
    for entry in fs::read_dir(control_dir).into_iter().flatten().flatten() {
        let ours = entry.file_name().as_bytes().starts_with(DIRECTORY_PREFIX.as_bytes());
        let age = entry.metadata().and_then(|facts| facts.modified());
        let old =
            age.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > STALE_AFTER));
        if ours && old && !entry.path().join("master").exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Removes the control directories in a lab's folder for sockets, and what is empty then of that folder and its
/// parent. Left alone when others could have made any of it, because then a link may lead elsewhere.
pub fn remove_control_dir(runtime_dir: &Path) {
    let (control_dir, parent) = (runtime_dir.join("ssh"), runtime_dir.parent());
    let ours = |path: &Path| {
        let us = rustix::process::geteuid().as_raw();
        fs::symlink_metadata(path)
            .is_ok_and(|facts| facts.is_dir() && facts.uid() == us && facts.mode() & 0o077 == 0)
    };
    if parent.is_some_and(ours) && ours(runtime_dir) && ours(&control_dir) {
        let _ = fs::remove_dir_all(control_dir);
        let _ = fs::remove_dir(runtime_dir);
        let _ = parent.map(fs::remove_dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_directories_of_others_are_not_removed() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let base = tempfile::tempdir_in("/tmp").unwrap();
        let private = |path: &Path| {
            fs::create_dir_all(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        };
        let (parent, elsewhere) = (base.path().join("labhost-0"), base.path().join("elsewhere"));
        private(&parent);
        private(&elsewhere);
        private(&elsewhere.join("ssh"));
        symlink(&elsewhere, parent.join("link")).unwrap();
        remove_control_dir(&parent.join("link"));
        assert!(elsewhere.join("ssh").exists());
        let lab = parent.join("1234");
        private(&lab);
        private(&lab.join("ssh"));
        private(&lab.join("ssh/s-left"));
        remove_control_dir(&lab);
        assert!(!lab.exists() && parent.exists());
    }

    #[test]
    fn names_the_cause_in_few_words() {
        assert_eq!(
            reason("ssh: connect to host 127.0.0.1 port 22: Connection refused\r\n"),
            "connection refused"
        );
        let reset = "kex_exchange_identification: read: Connection reset by peer\nConnection reset by 127.0.0.1 port 2\n";
        assert_eq!(reason(reset), "Connection reset by 127.0.0.1 port 2");
        assert_eq!(reason(" \n"), "ssh ended without a word");
    }

    #[test]
    fn a_control_directory_that_others_can_use_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir_in("/tmp").unwrap();
        let open = base.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(prepare(&open).unwrap_err().message.contains("others could use it"));
        let link = base.path().join("link");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).unwrap();
        prepare(&open).unwrap();
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert!(prepare(&link).unwrap_err().message.contains("others could use it"));
    }

    #[test]
    fn only_old_directories_without_a_socket_are_swept() {
        let control = tempfile::tempdir_in("/tmp").unwrap();
        let make = |name: &str, socket: bool, old: bool| {
            let path = control.path().join(name);
            fs::create_dir(&path).unwrap();
            if socket {
                fs::write(path.join("master"), "").unwrap();
            }
            if old {
                let directory = fs::File::open(&path).unwrap();
                directory.set_modified(SystemTime::now() - 2 * STALE_AFTER).unwrap();
            }
        };
        make("s-left", false, true);
        make("s-used", true, true);
        make("s-new", false, false);
        make("other", false, true);
        sweep(control.path());
        let mut left: Vec<_> =
            fs::read_dir(control.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other", "s-new", "s-used"]);
    }

    #[test]
    fn a_control_directory_too_long_for_a_socket_is_refused() {
        let long = format!("/tmp/{}", "x".repeat(SOCKET_PATH_MAX));
        assert!(prepare(Path::new(&long)).unwrap_err().message.contains("longer than"));
    }
}
