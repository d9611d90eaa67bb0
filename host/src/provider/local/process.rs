//! Processes of instances: started in surroundings of their own, signalled as a group, found again by their mark.
//!
//! A child dies with the agent (`PR_SET_PDEATHSIG`), which the kernel ties to the thread that forked: the
//! agent therefore starts all children on its main thread. What a child starts itself is found by its
//! mark instead. This module waits for nobody.

use std::{
    ffi::OsStr,
    fs, io,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{PidfdFlags, Signal};

use super::mark::Mark;

/// How long [`kill_marked`] goes on when new processes keep appearing.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// What every process of an instance starts with; nothing of the agent's own environment is passed on.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) root: PathBuf,
    pub(super) env: Vec<(String, String)>,
    /// See [`super::mark::descriptor`].
    pub(super) descriptor: Arc<OwnedFd>,
}

/// A command in its own session and process group, with null for its standard streams.
pub(super) fn command<A: AsRef<OsStr>>(
    program: &str,
    arguments: &[A],
    around: &Surroundings,
) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(around.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&around.root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let agent = rustix::process::getpid();
    let descriptor = around.descriptor.clone();
    // SAFETY: between fork and exec only system calls are made; nothing is allocated or locked.
    unsafe { command.pre_exec(move || settle(agent, &descriptor)) };
    command
}

/// Runs in the child before it becomes the program.
fn settle(agent: rustix::process::Pid, descriptor: &OwnedFd) -> io::Result<()> {
    rustix::process::setsid()?;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGPIPE] {
        // What is ignored stays so over exec, and a shell cannot trap it: nohup, or a job in the background.
        // SAFETY: setting a default disposition runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // From here on it stays open in all that the program starts.
    rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The agent may have died before the line above took effect.
    if rustix::process::getppid() != Some(agent) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// The process group of a child, as long as its number means that child.
#[derive(Debug)]
pub(super) struct Group {
    leader: rustix::process::Pid,
    reaped: AtomicBool,
}

impl Group {
    /// `None` when the child has already been waited for.
    pub(super) fn of(child: &tokio::process::Child) -> Option<Self> {
        let leader = rustix::process::Pid::from_raw(child.id()?.try_into().ok()?)?;
        Some(Self { leader, reaped: AtomicBool::new(false) })
    }

    pub(super) fn id(&self) -> u32 {
        self.leader.as_raw_nonzero().get().unsigned_abs()
    }

    /// Signals all processes of the group; after [`Group::set_reaped`] it does nothing.
    pub(super) fn signal(&self, signal: Signal) {
        if !self.reaped.load(Ordering::Acquire) {
            // The only possible failure is that nobody is left.
            let _ = rustix::process::kill_process_group(self.leader, signal);
        }
    }

    /// Signals the first process alone.
    pub(super) fn signal_leader(&self, signal: Signal) {
        if !self.reaped.load(Ordering::Acquire) {
            // The only possible failure is that it has just ended.
            let _ = rustix::process::kill_process(self.leader, signal);
        }
    }

    /// To be called as soon as the leader has been waited for: from then on its number may mean somebody else.
    pub(super) fn set_reaped(&self) {
        self.reaped.store(true, Ordering::Release);
    }
}

/// The status as a shell shows it: 128 and the signal's number for a death by signal.
pub(super) fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A process found by its mark.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) pid: u32,
    pub(super) name: String,
}

/// The processes with one of the marks, except this process and the ones it descends from.
pub(super) fn marked(marks: &[Mark]) -> Vec<Found> {
    let spared = ancestors();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| !spared.contains(pid) && carries(*pid, marks))
        .map(|pid| Found { pid, name: name_of(pid) })
        .collect()
}

/// Kills all processes with one of the marks, again and again until all have ended; returns those that stay.
///
/// Blocks for up to five seconds when processes appear faster than they can be killed.
pub(super) fn kill_marked(marks: &[Mark]) -> Vec<Found> {
    let deadline = Instant::now() + KILL_PATIENCE;
    let mut killed = Vec::new();
    loop {
        let left = marked(marks);
        killed.retain(|pid| !has_ended(*pid));
        if (left.is_empty() && killed.is_empty()) || Instant::now() > deadline {
            return left;
        }
        for process in &left {
            kill_if(process.pid, |pid| carries(pid, marks));
        }
        killed.extend(left.iter().map(|process| process.pid));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether there is no such process, or only its exit status waits to be fetched.
pub(super) fn has_ended(pid: u32) -> bool {
    stat(pid).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

/// A process's state and its parent's id.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; the fields after the last bracket are state and parent.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Kills a process if it still is the one that is meant, without a race against the reuse of its number.
pub(super) fn kill_if(pid: u32, is_meant: impl Fn(u32) -> bool) {
    let Some(raw) = pid.try_into().ok().and_then(rustix::process::Pid::from_raw) else { return };
    if let Ok(handle) = rustix::process::pidfd_open(raw, PidfdFlags::empty())
        && is_meant(pid)
    {
        // The only possible failure is that it has just ended.
        let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
    }
}

fn carries(pid: u32, marks: &[Mark]) -> bool {
    marks.iter().any(|mark| mark.is_on(pid))
}

fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "?".to_owned(), |it| it.trim().to_owned())
}

/// This process, its parent, and so on up to the first.
fn ancestors() -> Vec<u32> {
    let parent = |pid: &u32| stat(*pid).map(|(_, parent)| parent).filter(|parent| *parent > 0);
    std::iter::successors(Some(std::process::id()), parent).collect()
}

/// Raises the soft limit of open files to the hard one; children inherit it.
pub(super) fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it everything works, with fewer connections.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::local::mark;

    fn around(mark: &str) -> Surroundings {
        let (name, value) = mark.split_once('=').unwrap();
        let descriptor = Arc::new(mark::descriptor("/".as_ref()).unwrap());
        Surroundings { root: "/".into(), env: vec![(name.to_owned(), value.to_owned())], descriptor }
    }

    #[tokio::test]
    async fn marked_processes_are_found_and_killed() {
        let entry = format!("LABHOST_LAB=test-{}", std::process::id());
        let marks = [Mark::of_lab(entry.clone(), "/none".into())];
        let mut child = command("/bin/sleep", &["60"], &around(&entry)).spawn().unwrap();
        let pid = child.id().unwrap();
        while marked(&marks).is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(marked(&marks)[0].pid, pid);
        assert!(marked(&[Mark::of_lab(format!("{entry}0"), "/none".into())]).is_empty());
        assert!(kill_marked(&marks).is_empty());
        assert_eq!(exit_code(child.wait().await.unwrap()), 128 + 9);
    }

    #[tokio::test]
    async fn the_environment_is_ours_alone() {
        let mut command = command::<&str>("/usr/bin/env", &[], &around("A=b"));
        let output = command.stdout(Stdio::piped()).spawn().unwrap().wait_with_output().await.unwrap();
        assert_eq!(output.stdout, b"A=b\n");
    }

    #[test]
    fn this_process_and_its_parents_are_spared() {
        let own = ancestors();
        assert_eq!(own[0], std::process::id());
        assert!(own.len() > 1, "{own:?}");
    }
}
