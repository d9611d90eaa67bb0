//! Instances on this machine: directories with an address of their own, an embedded SSH server, and services,
//! all kept by one detached agent process per lab.
//!
//! | file | what it is about |
//! |---|---|
//! | `place` | paths, and who may use them |
//! | `daemon`, `control`, `wire` | the agent's process, its socket, what is said on it |
//! | `agent` | what it does for each request |
//! | `record`, `address`, `types` | what is remembered, addresses, instance types |
//! | `machine`, `sshd`, `session`, `command`, `feed`, `pty` | one instance and its SSH server |
//! | `service`, `keeper`, `unit`, `log` | its services |
//! | `uplink` | a slow way to the instances, for measurements |
//! | `guest` | `labhost-service`, the program that controls them |
//! | `process` | starting, signalling, finding processes |
//!
//! This file is the client: what `labhost` does when a recipe says `--provider local`. Local instances are no
//! sandbox: their processes run as the user who started the lab, and one that leaves its process group and
//! clears its environment is not found again. Groups and images mean nothing here.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::AsFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Change, Cost, Ingress, Launch, LoginKey, Pending, Provider, Step, Verb, unknown_type, wait_until_listed,
};
use crate::{Error, Kind, error::Context, instance::Instance};

/// Writes a line to the agent's log, as far as it can be written: a disk that is full must not end the agent, and with
/// it the lab, which `eprintln!` would.
macro_rules! note {
    ($($text:tt)*) => {
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($text)*))))
    };
}

mod address;
mod agent;
mod command;
mod control;
mod daemon;
mod feed;
mod guest;
mod keeper;
mod log;
mod machine;
mod mark;
mod place;
mod process;
mod pty;
mod record;
mod service;
mod session;
mod sshd;
mod types;
mod unit;
mod uplink;
mod wire;

pub use daemon::agent_main;
pub use guest::guest_main;

use place::{Place, remove_tree};
use wire::{Answer, PROTOCOL, Request};

/// From spawning the agent to its first answer; usually some 20 ms.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// An answer takes longer only when the agent is wedged.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// From asking the agent to remove everything to killing it: its own grace for services, and some more.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(4);

/// How long a look at what is there waits for an agent before it looks for itself.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// How often something that should happen soon is looked for.
const POLL: Duration = Duration::from_millis(5);

/// Pause between two looks at instances that are still pending.
const RUNNING_POLL: Duration = Duration::from_millis(200);

/// More than any laptop needs; nothing here costs money.
const INSTANCES_USUAL_MAX: usize = 64;

/// How much of the agent's log is shown when it does not start.
const LOG_TAIL_BYTES: u64 = 2000;

/// A log beyond this size is begun anew when an agent starts.
const LOG_BYTES_MAX: u64 = 1_000_000;

/// The local provider of one lab.
#[derive(Debug)]
pub struct Local {
    place: Place,
    exe: PathBuf,
}

impl Local {
    /// `state_dir` need not exist. `labhost_exe` is the program that calls [`agent_main`] when run as
    /// `labhost_exe agent --state DIR`, and [`guest_main`] when run as `labhost_exe guest ARGS`.
    pub fn new(state_dir: &Path, labhost_exe: &Path) -> Result<Self, Error> {
        let exe = std::path::absolute(labhost_exe)
            .context(Kind::Internal, || format!("find {}", labhost_exe.display()))?;
        Ok(Self { place: Place::of(state_dir)?, exe })
    }

    /// For tests and experiments: closes (`false`) or opens again (`true`) the SSH servers of all instances.
    /// Services go on.
    pub async fn set_ssh(&self, is_open: bool) -> Result<(), Error> {
        self.ask(if is_open { Request::SshStart } else { Request::SshStop }).await.map(drop)
    }

    /// The agent's process, if one runs.
    pub async fn agent_pid(&self) -> Option<u32> {
        match self.try_ask(&Request::Hello, LOOK_PATIENCE).await {
            Ok(Answer::Hello { pid, .. }) => Some(pid),
            _ => None,
        }
    }

    /// For fakes of other providers: gives a running instance another SSH host key (OpenSSH's private form).
    /// Connections that stand are kept.
    pub async fn set_host_key(&self, id: &str, secret: &str) -> Result<(), Error> {
        let request = Request::HostKey { instance: id.to_owned(), secret: secret.to_owned() };
        self.ask(request).await.map(drop)
    }

    async fn try_ask(&self, request: &Request, patience: Duration) -> io::Result<Answer> {
        match self.place.has_runtime() {
            Ok(true) => wire::ask(&self.place.socket(), request, patience).await,
            Ok(false) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(io::Error::other(error.message)),
        }
    }

    /// Asks a running agent; starts one first when there is none.
    async fn ask(&self, request: Request) -> Result<Answer, Error> {
        let asked = match self.try_ask(&request, ANSWER_PATIENCE).await {
            Err(cause) if is_absent(&cause) => {
                self.ensure_agent().await?;
                self.try_ask(&request, ANSWER_PATIENCE).await
            }
            asked => asked,
        };
        asked.map_err(|cause| self.not_answering(&cause))?.checked()
    }

    fn not_answering(&self, cause: &io::Error) -> Error {
        let who = self.lock_holder().map_or_else(String::new, |pid| format!(" (process {pid})"));
        Error::host(format!("ask the lab's agent{who}: {cause}")).with_hint(format!(
            "its log is {}; stopping the lab also ends an agent that hangs",
            self.place.agent_log().display()
        ))
    }

    /// Returns once an agent answers.
    async fn ensure_agent(&self) -> Result<(), Error> {
        self.write_bin()?;
        if self.is_answered().await? {
            return Ok(());
        }
        self.place.make_runtime()?;
        let mut child = self.spawn_agent()?;
        let deadline = Instant::now() + START_PATIENCE;
        while Instant::now() < deadline {
            // An agent that ends with success has found another one, which is about to answer.
            if child.try_wait().is_ok_and(|ended| ended.is_some_and(|status| !status.success())) {
                break;
            }
            if self.is_answered().await? {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(Error::host("start the lab's agent: it does not answer")
            .with_hint(format!("its log is {}", self.place.agent_log().display()))
            .with_detail(self.log_tail()))
    }

    async fn is_answered(&self) -> Result<bool, Error> {
        match self.try_ask(&Request::Hello, ANSWER_PATIENCE).await {
            Ok(Answer::Hello { protocol: PROTOCOL, .. }) => Ok(true),
            Ok(_) => Err(Error::host("the lab's agent is of another version of labhost")
                .with_hint("remove the lab with `labhost recipes/stop.rhai --confirm`, then run again")),
            Err(cause) if is_absent(&cause) => Ok(false),
            Err(cause) => Err(self.not_answering(&cause)),
        }
    }

    fn spawn_agent(&self) -> Result<tokio::process::Child, Error> {
        let path = self.place.agent_log();
        let is_long = fs::metadata(&path).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX);
        let log = OpenOptions::new()
            .create(true)
            .append(!is_long)
            .write(true)
            .truncate(is_long)
            .mode(0o600)
            .open(&path)
            .context(Kind::Host, || format!("open {}", path.display()))?;
        let mut command = tokio::process::Command::new(&self.exe);
        command.args(["agent", "--state"]).arg(&self.place.state).current_dir("/");
        command.env_clear().env(crate::identity::MARK, &self.place.lab);
        let kept = ["PATH", "HOME", "LANG", "RUST_BACKTRACE", uplink::VARIABLE];
        command.envs(kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: two system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                close_others_on_exec();
                Ok(rustix::process::setsid().map(drop)?)
            })
        };
        command.spawn().context(Kind::Host, || format!("start the lab's agent: run {}", self.exe.display()))
    }

    /// Writes the programs that instances find on their search path, unless they are there.
    fn write_bin(&self) -> Result<(), Error> {
        let bin = self.place.bin();
        let path = bin.join("labhost-service");
        let quoted = format!("'{}'", self.exe.to_string_lossy().replace('\'', r"'\''"));
        let script = format!("#!/bin/sh\nexec {quoted} guest \"$@\"\n");
        if fs::read(&path).is_ok_and(|text| text == script.as_bytes()) {
            return Ok(());
        }
        let write = || {
            let mut builder = fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(&bin)?;
            record::write_atomic(&path, script.as_bytes())?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
        };
        write().context(Kind::Host, || format!("write {}", path.display()))
    }

    fn log_tail(&self) -> String {
        let mut text = String::new();
        let read = OpenOptions::new().read(true).open(self.place.agent_log()).and_then(|mut file| {
            let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
            file.seek(SeekFrom::Start(start))?;
            file.read_to_string(&mut text)
        });
        read.map_or_else(|cause| format!("its log cannot be read: {cause}"), |_| text)
    }

    /// Ends the agent, by asking if it listens and by force if not. What is left is found by its mark.
    async fn end_agent(&self) -> Result<(), Error> {
        if !self.place.has_runtime()? {
            return Ok(());
        }
        let Some(pid) = self.lock_holder() else { return Ok(()) };
        let deadline = Instant::now() + SHUTDOWN_PATIENCE;
        // A refusal or silence makes no difference: what follows does without the agent.
        let asked = wire::ask(&self.place.socket(), &Request::Shutdown, SHUTDOWN_PATIENCE).await;
        while asked.is_ok() && !process::has_ended(pid) && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
        process::kill_if(pid, |pid| self.is_agent(pid));
        Ok(())
    }

    fn is_agent(&self, pid: u32) -> bool {
        self.place.mark().is_on(pid)
    }

    /// The process that holds the agent's lock, if any does.
    fn lock_holder(&self) -> Option<u32> {
        use rustix::fs::{FlockOperation, flock};
        let file = fs::File::open(self.place.lock()).ok()?;
        match flock(file.as_fd(), FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                fs::read_to_string(self.place.lock()).ok()?.trim().parse().ok()
            }
            _ => None,
        }
    }

    /// In words, what there is of the lab.
    async fn what_remains(&self) -> Result<Vec<String>, Error> {
        let instances = self.instances(LOOK_PATIENCE).await;
        let mut remains: Vec<_> = instances
            .unwrap_or_else(|_| record::on_disk(&self.place))
            .into_iter()
            .map(|it| format!("local instance {} ({}, {})", it.name, it.id, it.instance_type))
            .collect();
        let processes = process::marked(&[self.place.mark()]);
        let agent = self.lock_holder();
        if let Some(pid) = agent {
            remains.push(format!("the lab's agent, process {pid}"));
        }
        let others: Vec<_> = processes
            .iter()
            .filter(|it| Some(it.pid) != agent)
            .map(|it| format!("{} ({})", it.pid, it.name))
            .collect();
        if !others.is_empty() {
            remains.push(format!("processes {}", others.join(", ")));
        }
        for directory in [self.place.local(), self.place.runtime()] {
            if fs::symlink_metadata(&directory).is_ok() {
                remains.push(format!("the directory {}", directory.display()));
            }
        }
        Ok(remains)
    }

    /// Without an agent, what is on disk: it can be started again or removed.
    async fn instances(&self, patience: Duration) -> Result<Vec<Instance>, Error> {
        match self.try_ask(&Request::List, patience).await {
            Ok(answer) => instances_in(answer.checked()?),
            Err(cause) if is_absent(&cause) => Ok(record::on_disk(&self.place)),
            Err(cause) => Err(self.not_answering(&cause)),
        }
    }

    async fn remove_all(&self) -> Result<Vec<String>, Error> {
        let mut left = Vec::new();
        if let Err(error) = self.end_agent().await {
            left.push(error.message);
        }
        let stuck = process::kill_marked(&[self.place.mark()]);
        left.extend(stuck.iter().map(|it| format!("process {} ({}) cannot be killed", it.pid, it.name)));
        if let Err(cause) = remove_tree(&self.place.local()) {
            left.push(format!("remove {}: {cause}", self.place.local().display()));
        }
        if self.place.has_runtime()?
            && let Err(cause) = self.place.remove_runtime()
        {
            left.push(format!("remove {}: {cause}", self.place.runtime().display()));
        }
        Ok(left)
    }
}

/// Keys and groups are nothing of their own here.
fn rehearsed(step: &Step) -> Vec<Change> {
    let (verb, whats) = match step {
        Step::Key(_) | Step::Group { .. } => return Vec::new(),
        Step::Launch(launch) => {
            let what = |slot| format!("instance {}-{slot} ({})", launch.fleet, launch.instance_type);
            (Verb::Add, launch.slots.iter().map(what).collect::<Vec<_>>())
        }
        Step::Terminate(instances) => {
            let what = |it: &Instance| format!("instance {} ({}, {})", it.name, it.id, it.instance_type);
            (Verb::Remove, instances.iter().map(what).collect())
        }
    };
    whats.into_iter().map(|what| Change { verb, what }).collect()
}

fn instances_in(answer: Answer) -> Result<Vec<Instance>, Error> {
    match answer {
        Answer::Instances { instances } => Ok(instances),
        other => Err(Error::internal(format!("the agent gave an answer that does not fit: {other:?}"))),
    }
}

/// Whether the failure means that no agent is there or that it has just died, rather than one that does not
/// answer. All requests may be repeated.
fn is_absent(cause: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(cause.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof)
}

impl Provider for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn start(&self) -> Pending<'_, ()> {
        Box::pin(self.ensure_agent())
    }

    fn instances_max(&self) -> usize {
        INSTANCES_USUAL_MAX
    }

    fn check_type<'a>(&'a self, name: &'a str) -> Pending<'a, ()> {
        let is_known = types::NAMES.contains(&name);
        Box::pin(async move { if is_known { Ok(()) } else { Err(unknown_type(name, &types::NAMES)) } })
    }

    fn cost(&self, _types: &[&str]) -> Cost {
        Cost { usd_per_hour: Some(0.0), note: "local instances cost nothing".to_owned() }
    }

    fn vcpus(&self, _instance_type: &str) -> Option<u32> {
        None
    }

    fn ensure_key<'a>(&'a self, key: &'a LoginKey) -> Pending<'a, ()> {
        let request = Request::Key { name: key.name.clone(), public_key: key.public.clone() };
        Box::pin(async move { self.ask(request).await.map(drop) })
    }

    fn ensure_group<'a>(&'a self, name: &'a str, _ingress: &'a [Ingress]) -> Pending<'a, String> {
        Box::pin(async { Ok(name.to_owned()) })
    }

    fn image<'a>(&'a self, _name: &'a str, _before: Option<&'a str>) -> Pending<'a, String> {
        Box::pin(async { Ok("local".to_owned()) })
    }

    fn launch<'a>(&'a self, launch: &'a Launch) -> Pending<'a, Vec<Instance>> {
        Box::pin(async move { instances_in(self.ask(Request::Launch { launch: launch.clone() }).await?) })
    }

    fn list(&self) -> Pending<'_, Vec<Instance>> {
        Box::pin(self.instances(ANSWER_PATIENCE))
    }

    fn wait_running<'a>(&'a self, ids: &'a [String], deadline: Instant) -> Pending<'a, Vec<Instance>> {
        Box::pin(wait_until_listed(self, ids, deadline, RUNNING_POLL))
    }

    fn terminate<'a>(&'a self, ids: &'a [String]) -> Pending<'a, ()> {
        Box::pin(async move { self.ask(Request::Terminate { ids: ids.to_vec() }).await.map(drop) })
    }

    fn extend(&self, expires_at_s: u64) -> Pending<'_, ()> {
        Box::pin(async move { self.ask(Request::Extend { expires_at_s }).await.map(drop) })
    }

    fn rehearse<'a>(&'a self, step: &'a Step) -> Pending<'a, Vec<Change>> {
        Box::pin(async move { Ok(rehearsed(step)) })
    }

    fn remains(&self) -> Pending<'_, Vec<String>> {
        Box::pin(self.what_remains())
    }

    fn destroy(&self, _keep_bootstrap: bool) -> Pending<'_, Vec<String>> {
        Box::pin(self.remove_all())
    }
}

/// Has everything but the standard streams closed when this process becomes another program: who started labhost may
/// wait for the end of a descriptor that was passed on, or hold a lock by it (`flock`), and the agent lives for hours.
///
/// Kernels before 5.11 refuse; the descriptors are then passed on.
fn close_others_on_exec() {
    let first = libc::STDERR_FILENO + 1;
    // SAFETY: sets a flag on descriptors, and closes none now.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}
