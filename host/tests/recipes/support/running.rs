//! A command under a deadline, with its output so far.

use std::{
    io::Read,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use super::{PATIENCE, kill};

/// A command that has been started, in a process group of its own. Dropped, it is killed.
pub(crate) struct Running {
    pid: u32,
    shown: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    open_streams: u32,
    status: Option<ExitStatus>,
}

impl Progress {
    fn has_ended(&self) -> bool {
        self.status.is_some() && self.open_streams == 0
    }

    fn text(&self) -> String {
        format!(
            "--- stdout\n{}\n--- stderr\n{}",
            String::from_utf8_lossy(&self.stdout),
            String::from_utf8_lossy(&self.stderr)
        )
    }
}

impl State {
    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let shown = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|cause| panic!("start {shown}: {cause}"));
        let state = Arc::new(State::default());
        state.lock().open_streams = 2;
        collect(&state, child.stdout.take().unwrap(), |progress| &mut progress.stdout);
        collect(&state, child.stderr.take().unwrap(), |progress| &mut progress.stderr);
        let pid = child.id();
        watch(&state, child);
        Self { pid, shown, state }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid, signal);
    }

    /// Waits until the command has printed `text`.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        let printed = |progress: &Progress| progress.has_ended() || progress.text().contains(text);
        let seen = self.wait(&format!("prints {text:?}"), PATIENCE, printed);
        let seen = seen.unwrap_or_else(|late| panic!("{late}"));
        assert!(seen.contains(text), "{} ended without {text:?}\n{seen}", self.shown);
    }

    /// Waits for the end of the command and of its output.
    #[track_caller]
    pub(crate) fn end(self) -> Ended {
        self.try_end().unwrap_or_else(|late| panic!("{late}"))
    }

    /// As [`Running::end`]; a command that does not end in time is killed, and what it printed is the error.
    pub(crate) fn try_end(self) -> Result<Ended, String> {
        self.end_within(PATIENCE)
    }

    /// As [`Running::try_end`], for a command that must not wait for something that takes longer.
    pub(crate) fn end_within(self, patience: Duration) -> Result<Ended, String> {
        self.wait("ends", patience, Progress::has_ended)?;
        let progress = self.state.lock();
        let status = progress.status.expect("it has ended");
        Ok(Ended {
            code: status.code().unwrap_or_else(|| -status.signal().unwrap_or_default()),
            stdout: String::from_utf8_lossy(&progress.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&progress.stderr).into_owned(),
            shown: self.shown.clone(),
        })
    }

    /// Returns what was printed until `holds`.
    fn wait(
        &self,
        what: &str,
        patience: Duration,
        holds: impl Fn(&Progress) -> bool,
    ) -> Result<String, String> {
        let deadline = Instant::now() + patience;
        let mut progress = self.state.lock();
        while !holds(&progress) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = progress.text();
                drop(progress);
                self.kill_group();
                return Err(format!("not within {} s: {} {what}\n{text}", patience.as_secs(), self.shown));
            }
            let waited = self.state.changed.wait_timeout(progress, left);
            progress = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(progress.text())
    }

    fn kill_group(&self) {
        if self.state.lock().status.is_none()
            && let Some(group) = self.pid.try_into().ok().and_then(Pid::from_raw)
        {
            // The only possible failure is that it has just ended.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
    }
}

fn collect(
    state: &Arc<State>,
    mut stream: impl Read + Send + 'static,
    of: fn(&mut Progress) -> &mut Vec<u8>,
) {
    let state = Arc::clone(state);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            state.change(|progress| of(progress).extend_from_slice(&buffer[..read]));
        }
        state.change(|progress| progress.open_streams -= 1);
    });
}

fn watch(state: &Arc<State>, mut child: Child) {
    let state = Arc::clone(state);
    thread::spawn(move || {
        let status = child.wait().expect("wait for a child of ours");
        state.change(|progress| progress.status = Some(status));
    });
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code, or the signal's number with a minus.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    shown: String,
}

/// [`Ended::code`] of a process that was killed with SIGKILL.
pub(crate) const KILLED: i32 = -9;

impl Ended {
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Whether a text stands in either stream.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.stdout.contains(text) || self.stderr.contains(text)
    }

    #[track_caller]
    pub(crate) fn expect_says(self, text: &str) -> Self {
        assert!(self.says(text), "{text:?} is missing\n{self}");
        self
    }

    #[track_caller]
    pub(crate) fn expect_silent_about(self, text: &str) -> Self {
        assert!(!self.says(text), "{text:?} should not be there\n{self}");
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { code, stdout, stderr, shown } = self;
        write!(f, "{shown} ended with {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}
