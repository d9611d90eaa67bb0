//! Processes of this machine, as /proc shows them.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use super::PATIENCE;

/// How often a condition is looked at that will hold soon.
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) pid: u32,
    /// The command line, words separated by blanks.
    pub(crate) command: String,
}

/// What makes a process one of a lab.
#[derive(Debug, Clone)]
pub(crate) enum Watch {
    /// This entry in its environment.
    Environment(String),
    /// This text in its command line.
    Command(String),
    /// An open file or folder whose path begins with this text.
    Descriptor(String),
}

/// All processes that fit, zombies excluded.
pub(crate) fn processes(watch: &Watch) -> Vec<Found> {
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|it| it.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| look_at(pid, watch)).collect()
}

/// `None` for a process that does not fit, and for one that has ended.
fn look_at(pid: u32, watch: &Watch) -> Option<Found> {
    let read = |file: &str| {
        Some(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).ok()?).into_owned())
    };
    let command = read("cmdline")?.replace('\0', " ").trim().to_owned();
    let fits = match watch {
        Watch::Environment(entry) => read("environ")?.split('\0').any(|one| one == entry),
        Watch::Command(text) => command.contains(text),
        Watch::Descriptor(beginning) => fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().any(|it| {
            fs::read_link(it.path()).is_ok_and(|target| target.to_string_lossy().starts_with(beginning))
        }),
    };
    fits.then_some(Found { pid, command })
}

/// Sends a signal; one who is gone already is no failure.
pub(crate) fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().expect("a process id")).expect("a process id");
    let _ = rustix::process::kill_process(pid, signal);
}

/// Looks again and again until `holds` gives something; panics when that takes too long.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(LOOK_EVERY);
    }
}
