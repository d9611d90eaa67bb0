//! The hosts, reached over SSH: commands, files, readiness. The same for every provider; nothing here knows where
//! an instance came from.
//!
//! [`write_config`] writes the files that `ssh` reads, [`Session::connect`] logs in, and everything else goes
//! through that one connection (`openssh`, native-mux). A command's process group is killed on the host when its
//! time is up, when the session's token is cancelled, and when nobody waits for it any more.
//!
//! This module forwards no ports, opens no TCP connection of its own, and does not reconnect.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use openssh::Stdio;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{Error, Kind, instance::Instance};

mod capture;
mod command;
mod config;
mod files;
mod keeper;
mod master;
mod quote;
mod ready;
mod running;
mod spread;
mod trailer;

pub use command::{Command, Output};
pub use config::write_config;
pub use files::Uploaded;
pub use master::remove_control_dir;
pub use quote::quote;
pub use running::Stream;
pub use spread::{COPY_PORT, Spread};

use capture::{Capture, Lines};
use command::{last_lines, shown, too_late};
use keeper::Keeper;
use running::{Input, Running, Sink};
use trailer::Ending;

/// Commands at once on one host. A server allows ten channels by default (sshd's MaxSessions); the other two are
/// for kills, and for a channel that the server still counts.
const CHANNELS_MAX: usize = 8;
/// Time for a command to end after SIGTERM, in tenths of a second, before SIGKILL.
const GRACE_TENTHS: u32 = 10;
/// The kill script's own limit: the grace, as long again for SIGKILL to act, and a round trip.
const KILL_MAX: Duration = Duration::from_secs(4);
/// A master that answers does so within milliseconds.
const CHECK_MAX: Duration = Duration::from_secs(2);

/// One login on one host. Clones share it.
///
/// Dropping the last clone ends the connection; [`Session::close`] also waits for kills that are under way.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    /// The instance's name, for messages.
    host: String,
    /// `None` once closed.
    mux: Mutex<Option<Mux>>,
    channels: Arc<Semaphore>,
    /// Process groups to kill, collected so that one channel serves all that are waiting.
    doomed: Mutex<Vec<u32>>,
    killer: tokio::sync::Mutex<()>,
    cancel: CancellationToken,
}

struct Mux {
    session: Arc<openssh::Session>,
    _keeper: Keeper,
}

impl Inner {
    fn mux(&self) -> Option<Arc<openssh::Session>> {
        let mux = self.mux.lock().unwrap_or_else(PoisonError::into_inner);
        mux.as_ref().map(|mux| mux.session.clone())
    }

    /// TERM, a grace, KILL, over a channel of its own. Returns when the group is gone, or says why it may not be.
    async fn kill_group(&self, group: u32) -> Result<(), String> {
        let doomed = || self.doomed.lock().unwrap_or_else(PoisonError::into_inner);
        doomed().push(group);
        let _turn = self.killer.lock().await;
        let groups = std::mem::take(&mut *doomed());
        if groups.is_empty() {
            return Ok(());
        }
        let Some(mux) = self.mux() else { return Err("the session is closed".to_owned()) };
        let mut command = mux.arc_raw_command(kill_script(&groups));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match timeout(KILL_MAX, command.status()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(_)) => Err("it is still there".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the host does not answer".to_owned()),
        }
    }
}

/// Exits 0 when none of the groups has a living process any more.
///
/// `kill -s` because dash knows `--` only in that form. A group of which only zombies are left still takes signals,
/// and some inits of containers are slow to reap them; so what `kill` calls alive is looked up in /proc.
fn kill_script(groups: &[u32]) -> String {
    let all: Vec<String> = groups.iter().map(u32::to_string).collect();
    let script = format!(
        r#"g=' {} '
s() {{ for p in $g; do kill -s $1 -- -$p && r=0; done; }}
a() {{
  r=1; s 0; [ $r = 0 ] || return 1
  for f in /proc/[0-9]*/stat; do
    read -r t <$f || continue; t=${{t##*) }}; set -- $t
    case $g in *" $3 "*) [ $1 = Z ] || return 0 ;; esac
  done
  return 1
}}
w() {{ i=0; while a; do [ $i -lt {GRACE_TENTHS} ] || return 1; i=$((i+1)); sleep 0.1; done; }}
s TERM; a || exit 0; sleep 0.02; w && exit 0; s KILL; a || exit 0; sleep 0.02; w"#,
        all.join(" ")
    );
    format!("exec /bin/sh -c {}", quote(&script))
}

impl Session {
    /// Logs in, trying again until the deadline while the host refuses, resets or does not answer. A host key other
    /// than the pinned one and a refused login key are final at once.
    ///
    /// `config` is the file of [`write_config`]. `control_dir` is created with mode 0700 where it is missing, and
    /// refused when others can use it or its path is longer than a socket's may be (74 bytes).
    pub async fn connect(
        instance: &Instance,
        config: &Path,
        control_dir: &Path,
        deadline: Duration,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let start = master::start(instance, config, control_dir, deadline);
        let Some(master) = cancel.run_until_cancelled(start).await else {
            return Err(interrupted(&master::connect_to(instance)));
        };
        let master = master?;
        let mux = Mux { session: Arc::new(master.mux), _keeper: master.keeper };
        Ok(Self {
            inner: Arc::new(Inner {
                host: instance.name.clone(),
                mux: Mutex::new(Some(mux)),
                channels: Arc::new(Semaphore::new(CHANNELS_MAX)),
                doomed: Mutex::default(),
                killer: tokio::sync::Mutex::default(),
                cancel: cancel.child_token(),
            }),
        })
    }

    /// The instance's name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.inner.host
    }

    /// Whether the connection still stands, as far as this machine knows.
    pub async fn is_connected(&self) -> bool {
        let Some(mux) = self.inner.mux() else { return false };
        matches!(timeout(CHECK_MAX, mux.check()).await, Ok(Ok(())))
    }

    /// Ends the commands of all clones, waits until they are killed (a few seconds at most), and logs out.
    pub async fn close(&self) {
        self.inner.cancel.cancel();
        // A channel is free again when its command has ended or is killed.
        let _ = timeout(KILL_MAX, self.inner.channels.acquire_many(CHANNELS_MAX as u32)).await;
        let mux = self.inner.mux.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(session) = mux.and_then(|mux| Arc::into_inner(mux.session)) {
            let _ = timeout(CHECK_MAX, session.close()).await;
        }
    }

    /// Runs a command and returns its whole output.
    ///
    /// Errors: the command could not be sent, the connection was lost, the time is up, the token was cancelled, an
    /// output stream was longer than 16 MiB, or (with `check`) the exit status is not 0. On every error the command's
    /// process group is gone from the host, or the message says why that is not certain.
    pub async fn run(&self, command: &Command) -> Result<Output, Error> {
        let operation = self.operation(command);
        let mut capture = Capture::default();
        let input = command.stdin.as_deref().map_or(Input::Nothing, Input::Bytes);
        let mut sink = |stream: Stream, bytes: &[u8]| {
            capture.push(stream, bytes).map_err(|what| Error::host(format!("{operation}: {what}")))
        };
        let ended = self.perform(&operation, command, input, &mut sink).await;
        let (code, elapsed) = ended.map_err(|error| with_stderr(error, &capture.stderr))?;
        let output = Output { code, stdout: capture.stdout, stderr: capture.stderr, elapsed };
        output.checked(command, &operation)
    }

    /// Runs a command and hands on its output line by line while it runs, without line ends; a line of more than
    /// 64 KiB comes in pieces. The output returned holds only the end of each stream (16 KiB).
    pub async fn run_streaming(
        &self,
        command: &Command,
        on_line: &mut (dyn FnMut(Stream, &str) + Send),
    ) -> Result<Output, Error> {
        let operation = self.operation(command);
        let mut lines = Lines::new(on_line);
        let input = command.stdin.as_deref().map_or(Input::Nothing, Input::Bytes);
        let mut sink = |stream: Stream, bytes: &[u8]| {
            lines.push(stream, bytes);
            Ok(())
        };
        let ended = self.perform(&operation, command, input, &mut sink).await;
        let (stdout, stderr) = lines.finish();
        let (code, elapsed) = ended.map_err(|error| with_stderr(error, &stderr))?;
        Output { code, stdout, stderr, elapsed }.checked(command, &operation)
    }

    fn operation(&self, command: &Command) -> String {
        format!("run `{}` on {}", shown(&command.line), self.inner.host)
    }

    /// Runs a command to its end; returns its exit status and the time taken.
    async fn perform(
        &self,
        operation: &str,
        command: &Command,
        input: Input<'_>,
        sink: Sink<'_>,
    ) -> Result<(i32, Duration), Error> {
        let started = Instant::now();
        let mut running = None;
        let work = self.work(operation, command, input, sink, &mut running);
        let stopped = tokio::select! {
            biased;
            () = self.inner.cancel.cancelled() => Err(interrupted(operation)),
            error = late(operation, command.timeout) => Err(error),
            result = work => result,
        };
        match (stopped, running) {
            (Ok(code), Some(running)) => {
                running.finish().await;
                Ok((code, started.elapsed()))
            }
            (Ok(code), None) => Ok((code, started.elapsed())),
            (Err(error), Some(running)) => Err(ended(error, running).await),
            (Err(error), None) => Err(error),
        }
    }

    async fn work(
        &self,
        operation: &str,
        command: &Command,
        input: Input<'_>,
        sink: Sink<'_>,
        slot: &mut Option<Running>,
    ) -> Result<i32, Error> {
        let label = trailer::label();
        let text = command.render(&label)?;
        let started = Running::start(&self.inner, text, label).await;
        let running = slot.insert(started.map_err(|error| self.not_sent(operation, &error))?);
        match running.drive(input, sink).await? {
            Some(Ending::Exit(code)) => Ok(code),
            Some(Ending::NoDirectory) => {
                let directory = command.cwd.as_deref().unwrap_or_default();
                Err(Error::host(format!("{operation}: cannot enter the directory `{directory}`")))
            }
            Some(Ending::NoGroup) => Err(Error::host(format!(
                "{operation}: the SSH server does not give a command its own process group, so it could not be killed"
            ))),
            None if self.is_connected().await => Err(broken_off(operation, &running.noise())),
            None => {
                running.abandon();
                Err(self.lost(operation))
            }
        }
    }

    fn not_sent(&self, operation: &str, error: &openssh::Error) -> Error {
        match error {
            openssh::Error::Disconnected => self.lost(operation),
            other => {
                let cause =
                    std::error::Error::source(other).map_or(String::new(), |cause| format!(": {cause}"));
                Error::host(format!("{operation}: could not be sent: {other}{cause}"))
            }
        }
    }

    fn lost(&self, operation: &str) -> Error {
        Error::host(format!("{operation}: the connection to {} was lost", self.inner.host))
            .with_hint("the command may still be running there; run the recipe again to connect anew")
    }
}

fn broken_off(operation: &str, noise: &[u8]) -> Error {
    Error::host(format!("{operation}: ended without saying how"))
        .with_hint("its wrapper was killed on the host, or the login's shell does not run commands")
        .with_detail(last_lines(noise))
}

fn interrupted(operation: &str) -> Error {
    Error::new(Kind::Interrupted, format!("{operation}: interrupted"))
}

/// Never returns without a limit.
async fn late(operation: &str, limit: Option<Duration>) -> Error {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            too_late(operation, limit)
        }
        None => std::future::pending().await,
    }
}

/// Kills what is left of a command that failed, and adds to the error when that is not certain.
async fn ended(mut error: Error, mut running: Running) -> Error {
    if let Some(task) = running.kill()
        && let Ok(Err(reason)) = task.await
    {
        error.message += &format!("; it may still run there: {reason}");
    }
    error
}

fn with_stderr(error: Error, stderr: &[u8]) -> Error {
    if error.detail.is_some() { error } else { error.with_detail(last_lines(stderr)) }
}
